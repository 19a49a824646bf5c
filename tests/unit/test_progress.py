from __future__ import annotations

import io
import sys

import pytest

from hessprobe.progress import Stages, progress_bars


def shares(*reports, stage="spectrum"):
    stages = Stages()
    return [stages.at(stage, done, total) for done, total in reports]


def test_a_share_never_goes_back_where_more_is_left_than_was_thought():
    # An eigenvalue search that ran 61 -> 9 -> 42 %.
    assert shares((61, 100), (90, 1000), (420, 1000), (700, 1000)) == [
        ("spectrum", 0.61),
        ("spectrum", 0.61),
        ("spectrum", 0.61),
        ("spectrum", 0.7),
    ]


def test_a_share_is_unknown_until_there_is_a_total_and_stays_known_then():
    assert [share for _, share in shares((3, None), (5, 10), (6, None), (0, 0))] == [None, 0.5, 0.5, 0.5]


def test_no_share_is_beyond_the_whole():
    assert [share for _, share in shares((-1, 10), (12, 10))] == [0.0, 1.0]


def test_a_finished_stage_begins_again_in_its_next_round():
    assert shares((10, 10), (0, 10), (5, 10), (10, 10), (0, None), (4, None)) == [
        ("spectrum", 1.0),
        ("spectrum 2", 0.0),
        ("spectrum 2", 0.5),
        ("spectrum 2", 1.0),
        ("spectrum 3", None),
        ("spectrum 3", None),
    ]
    # What only says again that it is done does not.
    assert shares((10, 10), (10, 10), (12, None))[-1] == ("spectrum", 1.0)


def test_stages_are_apart():
    stages = Stages()
    stages.at("trace", 9, 10)
    assert stages.at("frob", 1, 10) == ("frob", 0.1)


@pytest.fixture
def drawn(monkeypatch):
    """What the bars are, by name, whenever one changes."""
    from rich.progress import Progress

    seen, made = [], Progress.update

    def update(self, task, **changes):
        made(self, task, **changes)
        seen.append({each.description: (each.completed, each.total) for each in self.tasks if each.visible})

    monkeypatch.setattr(Progress, "update", update)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    return seen


def test_the_bars_are_those_shares(drawn):
    with progress_bars(True, waiting="starting") as update:
        for done, total in ((1, None), (61, 100), (90, 1000), (100, 100), (0, 100)):
            update("search", done, total, "")
    assert drawn[0] == {}
    assert drawn[1:] == [
        {"search": (0.0, None)},
        {"search": (0.61, 1.0)},
        {"search": (0.61, 1.0)},
        {"search": (1.0, 1.0)},
        {"search 2": (0.0, 1.0)},
    ]


def test_bars_have_no_colour():
    from hessprobe.progress import _bars

    bars = _bars()
    bars.add_task("x", total=10, completed=4, remark="y")
    from rich.console import Console
    from rich.theme import Theme

    from hessprobe.progress import _PLAIN

    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", theme=Theme(_PLAIN), width=100)
    console.print(bars.make_tasks_table(bars.tasks))
    shown = console.file.getvalue()
    assert "40%" in shown
    assert "\x1b[3" not in shown

"""The study counts right, finds intervals that are too short, and loses nothing when it is interrupted."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from hessprobe.errors import HessprobeError, JournalError
from hessprobe.validation import coverage
from hessprobe.validation.coverage import Settings, Study, study, tally
from hessprobe.validation.coverage.problem import Answer, Problem, Trial


def interval(factor: float, flagged: bool = False):
    """A trial of a normal value with a known error, whose bar is ``factor`` times as long as it should be."""

    def run(problem, size, seed):
        truth = np.array([float(np.trace(problem.drawn.matrix))])
        value = truth + np.random.default_rng(seed).standard_normal(1)
        half = 1.959964 * factor
        yield "sum", Answer(value, value - half, value + half, truth, flagged)

    return Trial("normal", ("sum",), run)


@pytest.fixture
def trials(monkeypatch):
    def use(*made):
        monkeypatch.setattr(study, "TRIALS", made)
        monkeypatch.setattr(study, "select", lambda pattern: made)
        monkeypatch.setattr(study, "questions", lambda: ("sum",))

    return use


@pytest.mark.parametrize(
    ("factor", "flagged", "verdict"), [(1, False, "holds"), (0.8, False, "low"), (0.8, True, "flagged")]
)
def test_a_bar_that_is_too_short_is_found_unless_it_says_so(trials, factor, flagged, verdict):
    trials(interval(factor, flagged))
    made = Study(Settings(families=("flat",), sizes=(8,), seeds=400))
    assert len(list(made.run())) == 1
    (cell,) = made.rows
    assert tally.verdict(cell) == verdict
    assert cell["width"] == pytest.approx(factor, rel=0.03)
    assert cell["coverage"] == pytest.approx(math.erf(1.959964 * factor / math.sqrt(2)), abs=0.03)
    assert cell["truth_above"] + cell["truth_below"] == pytest.approx(1 - cell["coverage"])
    assert ("first" in cell, cell["runs"]) == ((True, 1600) if verdict == "low" else (False, 400))
    assert len(coverage.failing(made.rows)) == (verdict == "low")


def test_what_an_estimator_refuses_fails_and_is_told(trials):
    def refuse(problem, size, seed):
        raise HessprobeError("no such matrix")
        yield

    trials(replace(interval(1), run=refuse))
    made = Study(Settings(families=("flat",), sizes=(8,), seeds=20))
    list(made.run())
    assert tally.verdict(made.rows[0]) == "refused"
    assert "no such matrix" in made.rows[0]["refusal"]


def test_an_interrupted_study_goes_on_where_it_stood(trials, tmp_path):
    trials(interval(1))
    settings, keep = Settings(families=("flat", "pairs"), seeds=20), tmp_path / "cells"
    whole = Study(settings)
    list(whole.run())
    first = Study(settings, keep)
    running = first.run()
    done = [next(running), next(running)]
    running.close()
    keep.write_text(keep.read_text() + '{"unit": {"tri')  # killed in the middle of a line
    second = Study(settings, keep)
    assert len(second.left) == len(whole.units) - 2
    assert not set(done) & set(second.run())

    def timeless(made):
        return [{**row, "seconds": 0} for row in made.sorted_rows()]

    assert timeless(second) == timeless(whole)
    with pytest.raises(
        JournalError, match=r"seeds was 20 and is 40\. Give the same command, or remove it to begin anew"
    ):
        Study(replace(settings, seeds=40), keep)
    second.finished()
    assert not keep.exists()


def test_cells_of_other_code_are_not_mixed_in(trials, tmp_path, monkeypatch):
    trials(interval(1))
    settings, keep = Settings(families=("flat",), sizes=(8,), seeds=20), tmp_path / "cells"
    list(Study(settings, keep).run())
    monkeypatch.setattr(study, "fingerprint", lambda: "another")
    with pytest.raises(JournalError, match=r"another run: code was '\w+' and is 'another'"):
        Study(settings, keep)


def test_damaged_cells_are_an_error_that_names_the_line(trials, tmp_path):
    trials(interval(1))
    settings, keep = Settings(families=("flat", "pairs"), sizes=(8,), seeds=20), tmp_path / "cells"
    list(Study(settings, keep).run())
    lines = keep.read_bytes().splitlines(keepends=True)
    keep.write_bytes(b"".join([lines[0], lines[1].replace(b"8", b"9"), *lines[2:]]))
    with pytest.raises(JournalError, match=r"cells is damaged in line 2\. Remove it to begin anew"):
        Study(settings, keep)
    # Killed before its first line was whole.
    keep.write_bytes(lines[0][:20])
    assert len(Study(settings, keep).left) == len(Study(settings).left)


def test_two_processes_make_the_cells_of_one():
    settings = Settings(pattern="trace", families=("flat",), sizes=(8, 16), seeds=20, confirm=0)
    alone, shared = Study(settings), Study(settings)
    list(alone.run())
    list(shared.run(jobs=2))
    assert [row["coverage"] for row in alone.sorted_rows()] == [row["coverage"] for row in shared.sorted_rows()]


def test_the_score_interval_is_that_of_the_formula():
    low, high = tally.wilson(0.9, 100)
    for end in (low, high):
        assert abs(end - 0.9) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 100), rel=1e-6)
    assert tally.wilson(1.0, 50)[1] == pytest.approx(1.0)


def test_every_trial_answers_its_questions():
    for trial in coverage.TRIALS:
        problem = trial.make(trial.families[-1], 3)
        assert isinstance(problem, Problem)
        found = dict(trial.run(problem, trial.sizes[0], 1))
        assert tuple(found) == trial.questions
        for answer in found.values():
            assert answer.value.shape == answer.low.shape == answer.high.shape == answer.truth.shape


def test_families_and_estimators_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="Did you mean 'flat'"):
        Settings(families=("flatt",))
    with pytest.raises(ValueError, match="Did you mean 'xtrace'"):
        coverage.select("xtrac")


def test_the_page_names_the_worst_cell_and_shows_all(trials):
    rows = []
    for factor, family in ((1, "flat"), (0.6, "pairs")):
        trials(interval(factor))
        made = Study(Settings(families=(family,), sizes=(8,), seeds=100))
        list(made.run())
        rows += [{**row, "question": "trace"} for row in made.rows]
    text = coverage.markdown(json.loads(json.dumps(rows)), {"confirm": 4, "code": "c"}, {"torch": "2", "device": "cpu"})
    (line,) = [line for line in text.splitlines() if line.startswith("| trace | 2 |")]
    assert "pairs, 8 probes" in line
    assert "1 fail" in line
    assert "## Cells that fail" in text
    assert text.count("\n| flat |") == 1
    assert "\n| pairs | **0." in text

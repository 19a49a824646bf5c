"""The figure of a track: which thresholds are in sight, and legends that no line crosses."""

from __future__ import annotations

import pytest

from hessprobe.report.figures import figures_of


def point(step, value, plain, aware=None):
    return {
        "step": step,
        "loss": 1.0 / (1 + step),
        "edge": {"plain": plain, "sharpness_aware": aware, "formula": "2(1+β)/lr"},
        "measures": {"lambda-max": {"value": value, "interval": [0.9 * value, 1.1 * value]}},
        "scores": {"test_loss": 1.0, "train_accuracy": 0.9, "test_accuracy": 0.8},
        "alignment": {"k": 1, "first": 0.5, "space": 0.5},
    }


def drawn(*points):
    (found,) = figures_of({"command": "track", "results": list(points), "arguments": {}})
    return found.figure()


def entries(panel):
    return [text.get_text() for text in panel.get_legend().get_texts()]


def test_a_threshold_within_reach_of_another_widens_the_axis():
    panel = drawn(point(0, 0.36, 38.0, 9.8), point(1, 0.01, 40.0, 0.9), point(2, 0.01, 4e8, 1500.0)).axes[0]
    assert entries(panel) == [r"$\lambda_{\max}$", "with SAM's ascent", "2(1+β)/lr"]
    assert panel.get_yscale() == "log"
    assert 38 < panel.get_ylim()[1] < 100
    assert not panel.texts


@pytest.mark.parametrize(("last", "sign"), [(500.0, "="), (900.0, "\u2265")])
def test_a_threshold_out_of_sight_is_a_note_and_not_in_the_legend(last, sign):
    figure = drawn(point(0, 0.36, 500.0, 9.8), point(1, 0.3, last, 9.0))
    panel = figure.axes[0]
    assert entries(panel) == [r"$\lambda_{\max}$", "with SAM's ascent"]
    assert panel.get_ylim()[1] < 20
    (note,) = panel.texts
    assert note.get_text() == f"2(1+β)/lr {sign} 500, above"
    figure.draw_without_rendering()
    box, legend = note.get_window_extent(), panel.get_legend().get_window_extent()
    assert legend.y0 >= box.y1 - 1
    assert panel.bbox.y1 <= box.y0 <= panel.bbox.y1 + 5
    assert box.x1 <= figure.bbox.x1


def test_legends_stand_outside_of_their_panels():
    figure = drawn(point(0, 2.0, 3.0), point(5, 2.5, 3.0))
    figure.draw_without_rendering()
    panels = [panel for panel in figure.axes if panel.get_legend()]
    assert [panel.get_ylabel() for panel in panels] == ["largest eigenvalue", "loss", "accuracy (%)"]
    for panel in panels:
        box = panel.get_legend().get_window_extent()
        assert box.y0 >= panel.bbox.y1
        assert box.x1 <= panel.bbox.x1
        assert not any(box.overlaps(other.bbox) for other in figure.axes)

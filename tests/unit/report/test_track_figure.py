"""The figure of a track: which thresholds are in sight, and legends that no line crosses."""

from __future__ import annotations

import pytest
from figure_checks import WIDTHS, require_fit

from hessprobe.report.figures import figures_across, figures_of


def point(step, value, plain, aware=None):
    return {
        "step": step,
        "loss": 1.0 / (1 + step),
        "edge": {"plain": plain, "sharpness_aware": aware, "formula": "2(1+β)/lr"},
        "measures": {"lambda-max": {"value": value, "interval": [0.9 * value, 1.1 * value]}},
        "scores": {"test_loss": 1.0, "train_accuracy": 0.9, "test_accuracy": 0.8},
        "alignment": {"k": 1, "first": 0.5, "space": 0.5},
    }


def found(*points):
    return figures_of(record(*points))[0]


def record(*points, run="runs/sam.pt"):
    return {"command": "track", "results": list(points), "arguments": {"run_dir": [run]}}


def drawn(*points):
    return found(*points).figure()


def entries(panel):
    return [text.get_text() for text in panel.get_legend().get_texts()]


RUN = [point(0, 0.36, 76.0, 9.8), point(1, 2.4, 80.0, 0.9), point(2, 2.0, 4e8, 1500.0)]


@pytest.mark.parametrize("width", WIDTHS)
def test_thresholds_are_inside_the_axes_whatever_their_height(width):
    figure = require_fit(found(*RUN), width)
    panel = figure.axes[0]
    assert entries(panel) == [r"$\lambda_{\max}$", "SAM's threshold", "threshold 2(1+β)/lr"]
    assert panel.get_yscale() == "log"
    low, high = panel.get_ylim()
    # The lowest part of each line is seen, what goes to infinity leaves the panel.
    assert low < 0.36
    assert 80 < high < 300
    assert figure._suptitle.get_text() == "sam.pt"
    columns = {one.get_subplotspec().colspan.start for one in figure.axes}
    assert columns == ({0} if width < 5 else {0, 1})
    assert [one.get_xlabel() for one in figure.axes if one.get_xlabel()] == ["step"] * len(columns)


def test_what_the_thresholds_mean_is_said_and_stands_in_the_data():
    one = found(*RUN)
    assert "The largest eigenvalue is above 2(1+β)/lr at 0 of 3 points." in one.alt
    assert "SAM's threshold is the eigenvalue a with a (1 + rho a / |g|) = 2(1+β)/lr." in one.alt
    assert one.data[1]["SAM's threshold"] == 0.9
    assert (one.data[1]["lambda-max"], one.data[1]["lambda-max low"]) == (2.4, pytest.approx(2.16))
    assert one.data[0]["test_accuracy"] == 0.8


def test_legends_stand_outside_of_their_panels():
    figure = drawn(point(0, 2.0, 3.0), point(5, 2.5, 3.0))
    figure.draw_without_rendering()
    panels = [panel for panel in figure.axes if panel.get_legend()]
    assert [panel.get_ylabel() for panel in panels] == [r"$\lambda_{\max}$", "loss", "accuracy (%)"]
    for panel in panels:
        box = panel.get_legend().get_window_extent()
        assert box.y0 >= panel.bbox.y1
        assert box.x1 <= panel.bbox.x1
        assert not any(box.overlaps(other.bbox) for other in figure.axes)


def traced(step, value, accuracy):
    one = point(step, value, 80.0)
    one["measures"]["trace"] = {"value": 7 * value, "interval": [6 * value, 8 * value]}
    return one | {"scores": {"test_accuracy": accuracy}}


@pytest.mark.parametrize("width", WIDTHS)
def test_curvature_stands_above_test_accuracy_one_color_a_run(width):
    runs = [record(traced(0, 1.0, 0.1), traced(9, 4.0, 0.9), run="runs/sgd.pt"),
            record(traced(0, 1.0, 0.1), traced(9, 2.0, 0.8))]  # fmt: skip
    (one,) = figures_across(runs)
    figure = require_fit(one, width)
    assert [panel.get_ylabel() for panel in figure.axes] == [r"$\lambda_{\max}$", "trace", "test acc. (%)"]
    accuracies = [line.get_ydata().tolist() for line in figure.axes[-1].lines]
    assert accuracies == [pytest.approx([10, 90]), pytest.approx([10, 80])]
    shades = [[line.get_color() for line in panel.lines if len(line.get_xdata()) == 2][:2] for panel in figure.axes]
    assert len(set(shades[-1])) == 2
    # An interval is drawn as lines too, of the color of its run.
    assert all(set(each) <= set(shades[-1]) for each in shades)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sgd.pt", "sam.pt"]
    assert "sam.pt: largest eigenvalue 1 to 2, trace 7 to 14, test accuracy 10 to 80 %" in one.alt
    assert [row["run"] for row in one.data] == ["sgd.pt", "sgd.pt", "sam.pt", "sam.pt"]
    assert figures_across(runs[:1]) == []


def test_one_run_has_a_figure_of_its_own_for_accuracy_and_for_the_gradient():
    names = [one.name for one in figures_of(record(traced(0, 1.0, 0.1), traced(9, 4.0, 0.9)))]
    assert names == ["track", "training", "overlap"]
    overlap = figures_of(record(*RUN))[2]
    (axis,) = require_fit(overlap, 3.25).axes
    assert axis.lines[0].get_ydata().tolist() == [0.5] * 3
    silent = [point(0, 1.0, 80.0) | {"alignment": None, "scores": {}}]
    assert [one.name for one in figures_of(record(*silent))] == ["track"]

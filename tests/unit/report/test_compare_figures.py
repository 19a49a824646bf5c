"""The figures of a comparison: what is drawn where, from a hand-made record."""

from __future__ import annotations

from itertools import combinations

import matplotlib.colors
import pytest
from figure_checks import WIDTHS, require_fit

from hessprobe.errors import RecordError
from hessprobe.records import typed
from hessprobe.records.compare import CompareRecord, Difference
from hessprobe.report.comparison import comparison_csv, verdict_text
from hessprobe.report.figures import figures_of


def difference(checkpoint, measure, value, half, verdict, independent=1.0, **more):
    known = {"checkpoint": checkpoint, "measure": measure, "value": value, "interval": [value - half, value + half]}
    errors = {"probe": half / 2, "data": None, "solver": 0.0}
    known |= {
        "kind": "estimate",
        "beyond_data": None,
        "confidence": 0.95,
        "independent_std_error": independent,
        "errors": errors,
        "std_error": half / 2,
    }
    return {**known, "verdict": verdict, "stands": True, "p": 0.01, "flags": [], "baseline": "sgd", **more}


def value(checkpoint, measure, number, half):
    return {"checkpoint": checkpoint, "measure": measure, "operator": "hessian", "value": number,
            "interval": [number - half, number + half], "std_error": half / 2, "confidence": 0.95, "kind": "estimate",
            "errors": {"probe": half / 2, "data": 0.75, "solver": 0.0}}  # fmt: skip


def record():
    labels = ("sgd", "sam", "asam", "gsam", "usam")
    checkpoints = [
        {"label": label, "path": f"{label}.pt", "gaps": {"loss": 0.1 * i, "accuracy": 0.01 * i}}
        for i, label in enumerate(labels)
    ]
    ranks = {"tau": 0.8, "interval": [0.1, 1.0], "confidence": 0.95, "count": 5, "method": "x", "verdict": "rises"}
    return {
        "command": "compare",
        "results": [value(label, "trace", 3.0 + i, 0.5) for i, label in enumerate(labels)],
        "checkpoints": checkpoints,
        "baseline": "sgd",
        "differences": [
            difference("sam", "trace", 1.0, 0.25, "sharper"),
            difference("asam", "trace", -2.0, 0.5, "flatter"),
            difference("gsam", "trace", 0.1, 0.2, "within error"),
            difference("sam", "lambda-max", -1.0, 0.1, "flatter"),
            {**difference("usam", "lambda-max", 0.0, 0.0, "undecided"), "value": None, "interval": [None, None]},
        ],
        "correlations": [{"measure": "trace", "gap": gap, **ranks} for gap in ("loss", "accuracy")],
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["differences", "gap-loss", "tau"])
def test_figures_of_a_comparison_fit(width, name):
    require_fit(by_name(figures_of(record()))[name], width)


def test_the_intervals_of_tau_are_lines_of_their_own():
    drawn = by_name(figures_of(record()))["tau"]
    (panel,) = drawn.figure(3.25).axes
    intervals = [line for line in panel.lines if line.get_alpha()]
    assert [line.get_xdata().tolist() for line in intervals] == [[0.1, 1.0], [0.1, 1.0]]
    points = [line for line in panel.lines if line.get_marker() == "o"]
    assert [line.get_xdata().tolist() for line in points] == [[0.8], [0.8]]
    # One row a measure, the two gaps apart, each on its interval.
    heights = [line.get_ydata()[0] for line in points]
    assert heights == [line.get_ydata()[0] for line in intervals]
    assert heights[0] < 0 < heights[1]
    assert drawn.data[0] == {"measure": "trace", "gap": "loss", "tau": 0.8, "low": 0.1, "high": 1.0}
    blind = record()
    blind["correlations"] = [{**row, "tau": None, "interval": [None, None]} for row in blind["correlations"]]
    assert "tau" not in by_name(figures_of({**blind, "correlations": []}))


def by_name(figures):
    return {one.name: one for one in figures}


def test_differences_have_a_panel_a_measure_with_intervals_and_the_wider_ones():
    found = by_name(figures_of(record()))
    assert list(found) == ["differences", "gap-loss", "gap-accuracy", "tau"]
    panels = [axes for axes in found["differences"].figure().axes if axes.get_visible()]
    assert [panel.get_title(loc="left") for panel in panels] == ["trace", "lambda-max"]
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["sam", "asam", "gsam"]
    points = list(panels[0].containers)
    assert [point[0].get_xdata()[0] for point in points] == [1.0, -2.0, 0.1]
    assert [point[0].get_ydata()[0] for point in points] == [0, 1, 2]
    lows = [float(point[2][0].get_segments()[0][0][0]) for point in points]
    assert lows == pytest.approx([0.75, -2.5, -0.1])
    colors = [matplotlib.colors.to_hex(point[0].get_color()) for point in points]
    assert len(set(colors)) == 3
    wide = [line for line in panels[0].lines if line.get_linewidth() == 5]
    # Errors of 1 where they are 0.125, and intervals of twice the error.
    assert wide[0].get_xdata() == pytest.approx([-1.0, 3.0])
    # A number that is not finite is not drawn.
    assert len(panels[1].containers) == 1
    assert "trace of sam +1.00 (0.75 to 1.25), sharper" in found["differences"].alt


def test_the_baseline_stands_once_below_all_panels_however_long_its_name():
    known = record()
    known["baseline"] = "vit-small-imagenet-sam-rho005-seed3-epoch-0020"
    figure = by_name(figures_of(known))["differences"].figure()
    figure.draw_without_rendering()
    below = figure.texts[-1]
    assert below.get_text() == f"difference to {known['baseline']}"
    box = below.get_window_extent()
    others = [figure.legends[0].get_window_extent(), *(panel.get_tightbbox() for panel in figure.axes)]
    assert not any(box.overlaps(other) for other in others)


def test_gaps_are_scattered_with_error_bars_and_names():
    found = by_name(figures_of(record()))
    (panel,) = found["gap-loss"].figure(6.75).axes
    points = [container[0].get_xydata()[0] for container in panel.containers]
    assert [list(point) for point in points] == [pytest.approx([0.1 * i, 3.0 + i]) for i in range(5)]
    segment = panel.containers[0][2][0].get_segments()[0]
    assert [end[1] for end in segment] == pytest.approx([2.5, 3.5])
    assert {text.get_text() for text in panel.texts} == {"sgd", "sam", "asam", "gsam", "usam"}
    assert panel.get_title(loc="left") == "trace\nτ = 0.80 (0.10 to 1.00)"
    assert panel.get_xlabel() == "test \u2212 training loss"
    assert "over 5 checkpoints" in found["gap-loss"].alt


def crowded():
    found = record()
    names = [f"sam-epoch-{10 * i:04d}" for i in range(8)]
    values = [0.6, 0.03, 0.019, 0.015, 0.0132, 0.0121, 0.0116, 0.0111]
    gaps = [0.125, 0.083, 0.085, 0.0865, 0.088, 0.0885, 0.0891, 0.09]
    found["results"] = [value(name, "trace", number, 0.9 * number) for name, number in zip(names, values, strict=True)]
    found["results"][1]["interval"][0] = -0.01
    found["checkpoints"] = [
        {"label": name, "path": f"{name}.pt", "gaps": {"loss": gap, "accuracy": None}}
        for name, gap in zip(names, gaps, strict=True)
    ]
    found["correlations"] = found["correlations"][:1]
    return found, names


def test_checkpoints_close_together_have_numbers_with_a_key_on_a_logarithmic_axis():
    known, names = crowded()
    figure = by_name(figures_of(known))["gap-loss"].figure()
    (panel,) = figure.axes
    assert (panel.get_xscale(), panel.get_yscale()) == ("linear", "log")
    assert [text.get_text() for text in panel.texts] == [str(1 + index) for index in range(8)]
    boxes = [text.get_window_extent() for text in panel.texts]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    (key,) = figure.legends
    assert [text.get_text() for text in key.get_texts()] == [f"{i}  {name}" for i, name in enumerate(names, 1)]
    assert not key.get_window_extent().overlaps(panel.get_tightbbox())
    assert key.get_window_extent().x1 <= figure.bbox.x1
    # The end of an interval below zero leaves the panel, and does not widen the axis.
    assert panel.get_ylim()[0] > 1e-4


def test_a_record_without_correlations_or_differences_draws_less():
    bare = record()
    del bare["correlations"]
    assert list(by_name(figures_of(bare))) == ["differences"]
    bare["differences"] = []
    assert figures_of(bare) == []
    broken = record()
    del broken["differences"][0]["verdict"]
    with pytest.raises(RecordError, match=r"differences\[0\], lacks the entry 'verdict'"):
        figures_of(broken)


def test_the_same_record_gives_the_same_file():
    first, second = (by_name(figures_of(record()))["gap-accuracy"].content("svg") for _ in range(2))
    assert first == second


def said(row, *sign):
    return verdict_text(typed.read(Difference, row, "the difference"), *sign)


def test_verdicts_in_words():
    row = difference("sam", "trace", -3.14159, 0.4, "flatter")
    assert said(row) == said({**row, "beyond_data": True}) == "flatter by 3.14 ± 0.20"
    assert said({**row, "beyond_data": None}) == "flatter by 3.14 ± 0.20"
    assert said({**row, "beyond_data": False}) == "flatter by 3.14 ± 0.20, may vanish on other data"
    assert said({**row, "stands": False}, "+/-") == "flatter by 3.14 +/- 0.20 (alone)"
    assert said({**row, "verdict": "within error", "value": -0.1}) == "within error (-0.10 ± 0.20)"
    assert said({**row, "verdict": "undecided", "flags": ["bound"]}) == "undecided: a bound, not a value"
    assert said({**row, "verdict": "undecided"}) == "undecided: not finite"
    bracket = {**row, "kind": "bracket", "interval": [-3.20, -3.11], "std_error": 0.0}
    bracket["errors"] = {"probe": 0.0, "data": None, "solver": 0.06}
    assert said(bracket) == "flatter by 3.142 [3.110, 3.200]"
    assert said({**bracket, "verdict": "within error"}) == "within error (-3.142 [-3.200, -3.110])"


def test_csv_has_a_line_a_value():
    made = record()
    made["differences"][0] |= {"errors": {"probe": 0.125, "data": 0.5, "solver": 0.0}, "beyond_data": False}
    lines = comparison_csv(CompareRecord.of(made)).splitlines()
    assert lines[0] == (
        "measure,operator,checkpoint,path,value,std_error,data_std_error,kind,low,high,confidence,difference,"
        "difference_std_error,difference_data_std_error,difference_kind,difference_low,difference_high,verdict,p,stands,"
        "beyond_data"
    )
    assert lines[2] == (
        "trace,hessian,sam,sam.pt,4.0,0.25,0.75,estimate,3.5,4.5,0.95,"
        "1.0,0.125,0.5,estimate,0.75,1.25,sharper,0.01,True,False"
    )
    assert lines[1].endswith(",0.95,,,,,,,,,,")

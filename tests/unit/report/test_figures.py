"""Figures from hand-made records: what stands in them, and what is refused by name."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from figure_checks import WIDTHS, require_fit, written
from figure_records import arrays, density_row, layer, record, row

from hessprobe.errors import RecordError
from hessprobe.records.record import read_record
from hessprobe.report.figures import figures_across, figures_of
from hessprobe.report.figures.style import GRAY


def measured():
    spectrum = arrays(eigenvalues=[9.0, 4.0, -1.0], eigenvalue_errors=[0.1, 0.2, 0.3], residuals=[0.01, 0.02, 0.04])
    trace = row("trace", 3.0, layers={"net.0.weight": layer(2.0, 0.25), "net.0.bias": layer(0.5, 0.1),
                                      "net.1.weight": layer(-0.5, 0.2)})  # fmt: skip
    share = row("frob", 5.0, layers={"net.0.weight": layer(0.7, 0.1), "net.0.bias": layer(0.1, 0.1),
                                     "net.1.weight": layer(0.2, 0.1)})  # fmt: skip
    return record("measure", row("lambda-max", 9.0, arrays=spectrum), trace, share, density_row())


def by_name(figures):
    assert len({one.name for one in figures}) == len(figures)
    return {one.name: one for one in figures}


def test_a_measurement_gives_density_eigenvalues_and_layers():
    found = by_name(figures_of(measured()))
    assert list(found) == ["density-hessian", "eigenvalues-hessian", "layers-hessian", "heat-hessian"]
    assert found["density-hessian"].alt == (
        "Above, how many eigenvalues of the Hessian lie where, from \u22120.9 to 3.9; below, the share of them below "
        "each point, on an axis that is linear between \u22120.001 and 0.001 (gray) and logarithmic beyond. At 0 the "
        "90 % band of the distribution reaches from 10 to 30 %. The band holds with this confidence at "
        "each point, not at all of them at once. It is "
        "what the Lanczos steps and probes leave open about the share below: wide where the steps are too few to tell "
        "crowded eigenvalues apart, as near 0."
    )
    assert found["eigenvalues-hessian"].alt == (
        "Extreme eigenvalues of the Hessian: 9.00 ± 0.10, 4.00 ± 0.20, \u22121.00 ± 0.30; the largest residual is 0.04."
    )
    assert "trace: net.0.weight 2.00 (1.75 to 2.25), net.0.bias 0.50 (0.40 to 0.60)" in found["layers-hessian"].alt


def test_quantiles_of_a_density_are_said_with_their_intervals():
    made = density_row()
    made["arrays"] |= arrays(
        quantile_levels=[0.05, 0.5, 0.95], quantile=[-0.5, 0.25, 2.0],
        quantile_low=[-0.75, -0.125, 1.5], quantile_high=[-0.25, 0.5, 2.5],
    )  # fmt: skip
    alt = figures_of(record("measure", made))[0].alt
    assert (
        "Of the eigenvalues lie 5 % up to \u22120.50 (\u22120.75 to \u22120.25); 50 % up to 0.25 (\u22120.12 to 0.50); "
        "95 % up to 2.00 (1.50 to 2.50). At 0 the 90 % band"
    ) in alt


def test_eigenvalues_are_drawn_with_their_errors():
    (panel,) = by_name(figures_of(measured()))["eigenvalues-hessian"].figure().axes
    (bar,) = panel.containers
    points, _, (spans,) = bar
    assert points.get_ydata().tolist() == [9.0, 4.0, -1.0]
    assert [tuple(np.round(s[:, 1], 9)) for s in spans.get_segments()] == [(8.9, 9.1), (3.8, 4.2), (-1.3, -0.7)]
    assert (panel.get_title(), panel.get_ylabel()) == ("largest", "eigenvalue")


def both_ends(operator="hessian"):
    values, errors = [9.0, 4.0, 3.0, -0.02, -0.03, -0.05], [0.1, 0.2, 0.3, 1e-3, 2e-3, 3e-3]
    spectrum = arrays(eigenvalues=values, eigenvalue_errors=errors, residuals=[0.01, 0.02, 0.04, 1e-3, 1e-3, 1e-3])
    return record(
        "measure", *(row(name, 9.0, arrays=spectrum, operator=operator) for name in ("lambda-max", "lambda-min"))
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_each_end_of_the_spectrum_has_a_panel_and_a_scale_of_its_own(width):
    (drawn,) = figures_of(both_ends())
    figure = require_fit(drawn, width)
    largest, smallest = figure.axes
    assert [panel.get_title() for panel in figure.axes] == ["largest", "smallest"]
    assert largest.containers[0][0].get_ydata().tolist() == [9.0, 4.0, 3.0]
    assert smallest.containers[0][0].get_ydata().tolist() == [-0.05, -0.03, -0.02]
    assert smallest.get_ylim()[0] > -0.06
    # A line at 0 would flatten what is far from it: points and two caps are all.
    assert [len(panel.lines) for panel in (largest, smallest)] == [3, 3]
    assert largest.get_ylim()[0] > 2
    assert not any("Ritz" in text.get_text() for text in figure.findobj() if hasattr(text, "get_text"))
    assert [(each["end"], each["number"], each["eigenvalue"]) for each in drawn.data][3:] == [
        ("smallest", 1, -0.05), ("smallest", 2, -0.03), ("smallest", 3, -0.02),
    ]  # fmt: skip
    # Of a matrix without negative eigenvalues all that were found are the largest.
    assert len(figures_of(both_ends("ggn"))[0].figure(width).axes) == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_layers_and_operators_fit(width):
    require_fit(by_name(figures_of(measured()))["layers-hessian"], width)
    known = {"lambda-max": 2.0, "lambda-min": -0.01, "trace": 20.0, "frob": 3.0}
    rows = [row(name, value) for name, value in known.items()]
    ggn = record("measure", row("trace", 19.0, operator="ggn"))
    drawn = by_name(figures_across([record("measure", *rows), ggn]))["operators"]
    figure = require_fit(drawn, width)
    assert [panel.get_title(loc="left") for panel in figure.axes] == list(known)
    rows = [one.get_subplotspec().rowspan.start for one in figure.axes]
    assert rows == ([0, 0, 1, 1] if width < 5 else [0, 0, 0, 0])
    assert {
        "matrix": "Gauss-Newton matrix",
        "quantity": "trace",
        "value": 19.0,
        "low": 18.5,
        "high": 19.5,
    } in drawn.data


def test_one_eigenvalue_is_no_figure():
    lone = record("measure", row("lambda-max", 9.0, arrays=arrays(eigenvalues=[9.0])), row("trace", 1.0))
    assert figures_of(lone) == []


def test_every_layer_has_a_bar_with_its_interval():
    trace, share = by_name(figures_of(measured()))["layers-hessian"].figure().axes
    assert [label.get_text() for label in trace.get_yticklabels()] == ["net.0.weight", "net.0.bias", "net.1.weight"]
    assert [patch.get_width() for patch in trace.containers[1]] == [2.0, 0.5, -0.5]
    (spans,) = trace.containers[0][2]
    assert np.allclose([s[:, 0] for s in spans.get_segments()], [[1.75, 2.25], [0.4, 0.6], [-0.7, -0.3]])
    assert [patch.get_width() for patch in share.containers[1]] == [0.7, 0.1, 0.2]
    # Modules are told apart by their background: one stripe for the first.
    stripes = [patch for patch in trace.patches if patch.get_zorder() == 0]
    assert [(patch.get_y(), patch.get_height()) for patch in stripes] == [(-0.5, 2.0)]


def test_names_of_layers_stay_whole_in_one_column_and_the_numbers_below_apart():
    names = ("layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias")
    sizes = dict(zip(names, (0.7, 0.1, 0.2, 0.01), strict=True))
    layers = {each: layer(value, 0.01) for each, value in sizes.items()}
    rows = [row(measure, 1.0, layers=layers) for measure in ("lambda-max", "trace", "frob")]
    found = by_name(figures_of(record("measure", *rows)))["layers-hessian"]
    figure = require_fit(found, 3.25)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(names)
    figure.draw_without_rendering()
    for panel in figure.axes:
        low, high = panel.get_xlim()
        seen = [text for text in panel.get_xticklabels() if low <= text.get_position()[0] <= high]
        boxes = sorted((text.get_window_extent() for text in seen), key=lambda box: box.x0)
        assert len(boxes) >= 2
        # A letter's room between two numbers, so that they are not read as one.
        assert all(left.x1 + 4 <= right.x0 for left, right in pairwise(boxes))


def test_of_many_layers_the_largest_are_drawn_and_counted():
    many = {f"l{i}.weight": layer(float(i), 0.1) for i in range(100)}
    (found,) = figures_of(record("measure", row("trace", 1.0, layers=many)))
    (axes,) = found.figure().axes
    assert len(axes.containers[1]) == 80
    assert axes.get_title(loc="left") == "the 80 largest of 100"
    assert axes.get_yticklabels()[0].get_text() == "l20.weight"


def test_long_names_of_layers_differ_where_the_layers_do():
    names = [f"tower.encoder.blocks.{i}.attention.self.query_key_value.{e}" for i in (0, 1) for e in ("weight", "bias")]
    (found,) = figures_of(record("measure", row("trace", 3.0, layers={name: layer(1.0, 0.1) for name in names})))
    (axes,) = found.figure().axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels[0] == "…0.attention.self.query_key_value.weight"
    assert labels[3] == "…1.attention.self.query_key_value.bias"
    longer = {f"stem.{name}.of.the.whole": layer(1.0, 0.1) for name in [*names, "x"]}
    (found,) = figures_of(record("measure", row("trace", 3.0, layers=longer)))
    # Where the middle alone would be the difference, names are whole.
    labels = [text.get_text() for text in found.figure().axes[0].get_yticklabels()]
    assert labels[0] == f"…{names[0]}.of.the.whole"
    assert len(set(labels)) == 5


def test_operators_stand_side_by_side():
    hessian = record("measure", row("trace", 3.0), row("lambda-max", 2.0), density_row())
    ggn = record("measure", row("trace", 2.5, operator="ggn"), density_row("ggn", shift=1.0))
    found = by_name(figures_across([hessian, ggn, record("sharpness")]))
    assert list(found) == ["operators", "densities"]
    assert found["operators"].alt == "trace: Hessian 3, Gauss-Newton matrix 2.5; lambda-max: Hessian 2."
    trace, top = found["operators"].figure().axes
    assert [patch.get_width() for patch in trace.containers[1]] == [3.0, 2.5]
    assert math.isnan(top.containers[1][1].get_width())
    assert [line.get_label() for line in found["densities"].figure().axes[0].lines] == [
        "Hessian", "Gauss-Newton matrix",
    ]  # fmt: skip
    other = {**ggn, "arguments": {"ckpt": "another.pt"}}
    assert figures_across([hessian, other]) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_heat_map_has_the_share_of_every_layer_in_every_measure(width):
    drawn = by_name(figures_of(measured()))["heat-hessian"]
    figure = require_fit(drawn, width)
    panel = figure.axes[0]
    # Trace: 2, 0.5, -0.5 of 3 in size; squared norm: 0.7, 0.1, 0.2.
    assert np.allclose(panel.images[0].get_array(), [[2 / 3, 0.7], [1 / 6, 0.1], [1 / 6, 0.2]])
    assert [text.get_text() for text in panel.texts] == ["67", "70", "17", "10", "17", "20"]
    assert drawn.alt.endswith("trace most in net.0.weight; frob most in net.0.weight.")
    assert {"layer": "net.1.weight", "measure": "trace", "value": -0.5, "share": pytest.approx(1 / 6)} in drawn.data


@pytest.mark.parametrize("width", WIDTHS)
def test_spectra_of_checkpoints_stand_below_each_other(width):
    first, second = (
        {**record("measure", density_row(shift=shift)), "arguments": {"ckpt": f"runs/{name}.pt"}}
        for name, shift in (("start", 0.0), ("end", 0.5))
    )
    drawn = by_name(figures_across([first, second]))["spectra-hessian"]
    figure = require_fit(drawn, width)
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["start", "end"]
    assert len({panel.get_ylim() for panel in figure.axes}) == 1
    assert {row["checkpoint"] for row in drawn.data} == {"start", "end"}
    assert figures_across([first]) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_barrier_between_two_checkpoints_is_measured_from_the_line_of_their_losses(width):
    x = [-0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    marks = [{"name": "a", "coordinates": [0.0], "loss": 1.0}, {"name": "b", "coordinates": [1.0], "loss": 3.0}]
    loss = [5.0, 1.0, 2.0, 6.0, 4.0, 3.0, 9.0]
    row = {**seen(), "directions": "line", "axes": [x], "marks": marks, "values": {"loss": loss}, "quadratic": None}
    (drawn,) = figures_of(record("landscape", row))
    # The largest of 0, 0.5, 4, 1.5, 0 above the line 1 + 2 t; what lies beyond the checkpoints does not count.
    assert drawn.alt.endswith("the barrier between the two is 4, at 0.5 of the way.")
    figure = require_fit(drawn, width)
    (bar,) = [line for line in figure.axes[0].lines if line.get_label() == "barrier 4"]
    assert [list(bar.get_xdata()), list(bar.get_ydata())] == [[0.5, 0.5], [2.0, 6.0]]


def sharp(rho, value, predicted, **more):
    model = None if predicted is None else {"value": predicted, "std_error": 0.0}
    return row("worst", value, rho=rho, m=None, predicted=model, **more)


def test_sharpness_stands_against_the_radius_beside_its_prediction():
    rows = [sharp(0.1, 2.0, 1.5), sharp(0.05, 0.5, 0.4), row("fisher-rao", 1.0), sharp(0.05, 0.7, None) | {"m": 16}]
    (found,) = figures_of(record("sharpness", *rows))
    (axes,) = found.figure().axes
    (legend,) = found.figure().legends
    assert [text.get_text() for text in legend.get_texts()] == ["worst", "worst, m = 16", "second order"]
    assert axes.containers[0][0].get_xdata().tolist() == [0.05, 0.1]
    assert axes.containers[0][0].get_ydata().tolist() == [0.5, 2.0]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed[0].get_ydata().tolist() == [0.4, 1.5]
    assert axes.get_xlabel() == r"radius $\rho$"
    assert "worst 2 (second order 1.5) at rho = 0.1; worst, m = 16 0.7 at rho = 0.05" in found.alt


def test_rises_far_apart_stand_on_logarithmic_axes():
    rows = [sharp(0.05, 9e-4, 8e-4), sharp(0.2, 0.03, 0.012), sharp(0.05, 7e-7, 7e-7) | {"m": 16}]
    (found,) = figures_of(record("sharpness", *rows))
    (axes,) = found.figure().axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.05", "0.2"]


def test_rises_far_apart_at_one_radius_are_all_seen():
    low = sharp(0.05, 2e-7, 8e-7, half=3e-7) | {"m": 16}
    (found,) = figures_of(record("sharpness", sharp(0.05, 2e-3, 1.7e-3, half=1e-5), low))
    figure = found.figure()
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    # An interval that reaches below zero leaves the panel at the bottom.
    assert 1e-8 < axes.get_ylim()[0] < 2e-7
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.05"]
    figure.draw_without_rendering()
    assert not figure.legends[0].get_window_extent().overlaps(axes.bbox)


def test_a_small_rise_below_zero_has_a_panel_of_its_own():
    rows = [sharp(0.05, 2e-3, 1.7e-3), sharp(0.05, -1e-7, 8e-7) | {"m": 16}]
    (found,) = figures_of(record("sharpness", *rows))
    axes = found.figure().axes
    assert [one.containers[0].get_label() for one in axes] == ["worst", "worst, m = 16"]
    assert [one.get_yscale() for one in axes] == ["linear", "linear"]


def test_diagnostics_give_the_arc_and_the_parts_of_the_curvature():
    arc = {"alphas": [0.0, 1.0, 2.0], "rises": [0.1, 0.3, 0.2], "model": [0.1, 0.2, 0.2], "best": 1.0, "rho_max": 0.1}
    split = {"name": "trace", "whole": layer(3.0, 0.1), "gauss_newton": layer(4.0, 0.2), "functional": layer(-1.0, 0.2)}
    found = by_name(figures_of(record("sharpness", sharp(0.1, 2.0, 1.0), diagnostics={"arc": arc, "splits": [split]})))
    assert list(found) == ["sharpness", "arc", "operators"]
    assert found["arc"].figure().axes[0].lines[0].get_ydata().tolist() == [0.1, 0.3, 0.2]
    assert found["operators"].alt == "trace: Hessian 3, Gauss-Newton 4, functional part \u22121."


@pytest.mark.parametrize("width", WIDTHS)
def test_the_sharpness_of_checkpoints_lies_over_each_other(width):
    rows = [sharp(0.05, 0.5, 0.4), sharp(0.1, 2.0, 1.5), sharp(0.2, 9.0, 6.0)]
    average = [{**each, "measure": "average"} for each in rows]
    one, other = (
        {**record("sharpness", *found), "arguments": {"ckpt": f"runs/{name}.pt"}}
        for name, found in (("sgd", [*rows, *average]), ("sam", rows))
    )
    (drawn,) = figures_across([one, other])
    figure = require_fit(drawn, width)
    worst, _ = figure.axes
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["worst", "average"]
    assert [bar.get_label() for bar in worst.containers] == ["sgd", "sam"]
    assert len({bar[0].get_color() for bar in worst.containers}) == 2
    assert [line.get_color() for line in worst.lines if line.get_linestyle() == "--"] == [
        bar[0].get_color() for bar in worst.containers
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sgd", "sam", "second order"]
    assert "worst of sam 9 (second order 6) at rho = 0.2" in drawn.alt
    assert figures_across([one]) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_sharpness_arc_and_invariance_fit(width):
    lines = [sharp(rho, 10 * rho**2, 9 * rho**2) | {"m": m} for rho in (0.02, 0.05, 0.1, 0.2) for m in (None, 16)]
    arc = {"alphas": [0.0, 1.0, 2.0], "rises": [0.1, 0.3, 0.2], "model": [0.1, 0.2, 0.2], "best": 1.0, "rho_max": 0.1}
    for drawn in figures_of(record("sharpness", *lines, diagnostics={"arc": arc, "splits": []})):
        require_fit(drawn, width)
    changes = [change("trace", 100.0, "changes"), change("adaptive-lambda-max", 1.0, "invariant")]
    require_fit(figures_of(record("invariance", *changes))[0], width)


def change(measure, ratio, verdict, before=2.0):
    parts = {"before": {"value": before}, "after": {"value": ratio * before}}
    return {"measure": measure, "transform": "scaling", "strength": 4.0, "verdict": verdict, **parts,
            "difference_error": {"std_error": 0.1, "bound": 0.01}}  # fmt: skip


def test_invariance_shows_after_over_before():
    rows = [
        change("trace", 100.0, "changes"),
        change("chc-trace", 1.0, "invariant"),
        change("logdet", 10.0, "undecided (error too large)", before=-50.0),
        change("lambda-min", -3.0, "changes"),
        {**change("frob", 1.0, "not measured"), "before": None},
    ]
    (found,) = figures_of(record("invariance", *rows))
    (axes,) = found.figure().axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["trace", "chc-trace", "logdet"]
    assert [bar[0].get_xdata()[0] for bar in axes.containers] == pytest.approx([2.0, 0.0, -5.82])
    (spans,) = axes.containers[1][2]
    assert np.ptp(spans.get_segments()[0][:, 0]) == pytest.approx(2 * (1.96 * 0.1 + 0.01) / 2 / math.log(10))
    looks = [(bar[0].get_marker(), bar[0].get_markerfacecolor() == "white") for bar in axes.containers]
    assert looks == [("o", False), ("o", True), ("<", True)]
    assert "trace under scaling 4: \u00d7 100 (changes), chc-trace under scaling 4: \u00d7 1 (invariant)" in found.alt
    assert "logdet under scaling 4: \u00d7 10⁻¹⁹⁵" in found.alt
    # A decade at least to either side, and what is beyond six at the end of the axis.
    assert axes.get_xlim() == pytest.approx((-6.0, 2.2))
    assert all(tick == round(tick) for tick in axes.get_xticks())
    legend = [text.get_text() for text in found.figure().legends[0].get_texts()]
    assert legend == ["scaling 4", "changes", "invariant", "undecided", "beyond the axis"]


def test_curves_of_claims():
    series = [{"label": "theory", "x": [1.0, 2.0], "y": [3.0, 4.0], "dashed": True},
              {"label": "seen", "x": [1.0, 2.0], "y": [3.1, None], "dashed": False}]  # fmt: skip
    curve = {"x": "t", "y": "loss", "series": series, "log_x": False, "log_y": True}
    claim = {"claim": "family/what", "statement": "It holds.", "verdict": "holds", "measured": 3.1, "predicted": 3.0}
    (found,) = figures_of(record("validate", {**claim, "curve": curve}, claim))
    (axes,) = found.figure().axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("t", "loss", "log")
    assert [(line.get_label(), line.get_linestyle()) for line in axes.lines] == [("theory", "--"), ("seen", "-")]
    assert (found.name, found.alt) == (
        "family-what", "family/what, holds: It holds. Measured 3.1, predicted 3.",
    )  # fmt: skip


def claim(*series, statement="It holds."):
    lines = [{"label": label, "x": [0.05, 0.2], "y": [1.0, 1e3], "dashed": dashed} for label, dashed in series]
    curve = {"x": "rho", "y": "loss", "series": lines, "log_x": True, "log_y": True}
    row = {"claim": "a/b", "statement": statement, "verdict": "holds", "curve": curve}
    (found,) = figures_of(record("validate", row))
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_a_claim_has_its_sentence_above_and_its_legend_below(width):
    sentence = "The same from n sampled directions: the error is that of the delta method with the exact covariance."
    drawn = claim(*((f"line {i}", False) for i in range(6)), statement=sentence)
    figure = require_fit(drawn, width)
    assert figure._suptitle.get_text().replace("\n", " ") == sentence
    (axes,) = figure.axes
    assert axes.get_legend() is None
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.y0 < box.y1 <= axes.get_tightbbox().y0
    # Less than two decades are written out, more are powers.
    ticks = [text.get_text() for text in axes.get_xticklabels() if 0.05 <= text.get_position()[0] <= 0.2]
    assert ticks == ["0.05", "0.1", "0.2"]
    # A sentence without end leaves room for the curve.
    long = require_fit(claim(("a", False), ("b", False), statement="word " * 200), width)
    assert long._suptitle.get_text().count("\n") == 3
    assert long.axes[0].get_window_extent().height > 0.8 * long.dpi


def test_theory_and_data_of_one_claim_have_one_color():
    pairs = [("trace", False), ("trace, predicted", True), ("trace, plain", False), ("trace, plain, theory", True),
             ("bound", True)]  # fmt: skip
    first, predicted, plain, theory, bound = (line.get_color() for line in claim(*pairs).figure().axes[0].lines)
    assert first == predicted
    assert plain == theory
    assert len({first, plain, bound}) == 3
    measured, formula = (line.get_color() for line in claim(("runs", False), ("formula", True)).figure().axes[0].lines)
    assert measured == formula


def keys(figure):
    """Entries of the legend, in rows from above: the text, and the color, dashes and marker of its line."""
    (legend,) = figure.legends
    rows = {}
    for text, line in zip(legend.get_texts(), legend.legend_handles, strict=True):
        place = round(text.get_window_extent().y0 / 8)
        rows.setdefault(place, []).append((text.get_text(), line.get_color(), line.get_linestyle(), line.get_marker()))
    return [row for _, row in sorted(rows.items(), reverse=True)]


def test_kinds_and_theory_of_several_quantities_stand_once_in_the_legend():
    names, kinds = ("trace", "squared norm", "log-determinant"), ("plain", "antithetic")
    series = [(f"{name}, {kind}{end}", bool(end)) for name in names for kind in kinds for end in ("", ", theory")]
    figure = require_fit(claim(*series), 3.25)
    colors = [line.get_color() for line in figure.axes[0].lines]
    assert colors == [color for color in dict.fromkeys(colors) for _ in range(4)]
    drawn = [(line.get_linestyle(), line.get_marker(), line.get_markerfacecolor()) for line in figure.axes[0].lines]
    assert drawn[:4] == [("-", "o", colors[0]), ("--", "None", colors[0]), ("-", "s", "#ffffff"),
                         ("--", "None", colors[0])]  # fmt: skip
    first, second = keys(figure)
    assert first == [(name, color, "-", "None") for name, color in zip(names, colors[::4], strict=True)]
    assert second == [("plain", GRAY, "-", "o"), ("theory", GRAY, "--", "None"), ("antithetic", GRAY, "-", "s")]


def test_a_name_alone_is_the_first_kind_and_sums_have_their_sign():
    names = ("sum of |l|", "sum of |l|, exact at 0", "sum of 1 - exp(-3l)", "sum of 1 - exp(-3l), exact at 0")
    figure = require_fit(claim(*((name, False) for name in names), ("lambda_max by moments", False)), 3.25)
    assert [line.get_marker() for line in figure.axes[0].lines] == ["o", "s", "o", "s", "o"]
    said = [text for row in keys(figure) for text, *_ in row]
    assert said == ["\u03a3 |l|", "\u03a3(1 \u2212 exp(\u22123l))", "\u03bb$_{\\mathregular{max}}$ by moments",
                    "exact at 0"]  # fmt: skip


def test_many_points_are_told_apart_by_dashes():
    names = [f"lam {lam}, rho {rho} of rho*" for lam in (0, 1) for rho in (0.1, 0.5)]
    lines = [{"label": name, "x": list(range(30)), "y": [1.0] * 30, "dashed": False} for name in names]
    curve = {"x": "step", "y": "f - f*", "series": lines, "log_x": False, "log_y": False}
    row = {"claim": "a/b", "statement": "It holds.", "verdict": "holds", "curve": curve}
    figure = require_fit(figures_of(record("validate", row))[0], 3.25)
    first, second, third, fourth = figure.axes[0].lines
    assert [first.is_dashed(), second.is_dashed(), third.is_dashed(), fourth.is_dashed()] == [False, True, False, True]
    assert (first.get_color(), third.get_color()) == (second.get_color(), fourth.get_color())
    said = [(text, dashes) for row in keys(figure) for text, _, dashes, _ in row]
    assert [text for text, _ in said] == ["\u03bb 0", "\u03bb 1", "\u03c1 0.1 of \u03c1*", "\u03c1 0.5 of \u03c1*"]
    assert [dashes for _, dashes in said] == ["-", "-", "-", "--"]
    assert figure.axes[0].get_ylabel() == "f \u2212 f*"


def test_the_fullest_legends_of_the_committed_claims_have_three_rows_at_most():
    path = Path(__file__).resolve().parents[3] / "reports" / "validation" / "validation.json"
    claims = sorted(figures_of(read_record(path)), key=lambda drawn: len({row["series"] for row in drawn.data}))
    for drawn in claims[-4:]:
        figure = require_fit(drawn, 3.25)
        assert 1 <= len(keys(figure)) <= 3, drawn.name
        assert not any("_" in text.get_text().replace("$_{", "") for text in written(figure)), drawn.name


def test_a_long_claim_ends_with_a_clause():
    clause = (
        "On a quadratic the minimiser is where it was for as long as the weight is below what the eigenvalue allows"
    )
    drawn = claim(("a", False), statement=f"{clause}; beyond it, {'far ' * 30}it goes.")
    assert drawn.figure(3.25)._suptitle.get_text().replace("\n", " ") == clause
    assert drawn.figure(6.75)._suptitle.get_text().endswith("it goes.")
    held = claim(("a", False), statement=f"{'far ' * 9}away (1 + eta rho)^t holds.").figure(3.25)
    assert held._suptitle.get_text().split("\n")[1] == "(1\u00a0+\u00a0\u03b7\u00a0\u03c1)$^{\\mathregular{t}}$ holds."


def seen():
    x = [-1.0, 0.0, 1.0]
    return {"directions": "random", "axes": [x], "labels": ["a"], "lengths": [1.0], "gram": [[1.0]], "facts": {},
            "values": {"loss": [2.0, 1.0, None]}, "marks": [],
            "quadratic": {"slope": [0.0], "bend": [[2.0]]}}  # fmt: skip


def test_a_landscape_is_that_of_its_record():
    (found,) = figures_of(record("landscape", seen()))
    (panel,) = found.figure().axes
    assert panel.lines[0].get_xdata().tolist() == [-1.0, 0.0, 1.0]
    assert panel.lines[0].get_ydata().tolist()[:2] == [2.0, 1.0]
    assert panel.get_title() == "net.pt\n1 of 3 points not finite (hatched)"
    assert found.alt == (
        "Loss landscape on 3 points (a); 1 at the checkpoint; loss from 1 to 2; 1 points of it are not finite."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": [[-1.0, 0.5, 1.0]]}, "has an axis without 0, the checkpoint"),
        ({"values": {"loss": [1.0, 2.0]}}, r"has values of 'loss' of shape \(2,\) on axes of \(3,\)"),
        ({"values": {"los": [1.0, 2.0, 3.0]}}, "values lacks the entry 'loss'"),
        ({"values": {"loss": [1.0, 2.0, 3.0], "new": [1.0, 2.0, 3.0]}}, "'new', which this hessprobe does not know"),
        ({"quadratic": {"slope": [0.0]}}, "quadratic lacks the entry 'bend'"),
    ],
)
def test_a_landscape_that_does_not_fit_is_refused(change, message):
    with pytest.raises(RecordError, match=message):
        figures_of(record("landscape", {**seen(), **change}))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("results", 3, "arrays", "cdf"), r"results\[3\], arrays lacks the entry 'cdf'\. Write the record again\."),
        (("results", 3, "arrays"), r"results\[3\], lacks the entry 'arrays'"),
        (
            ("results", 1, "layers", "net.0.bias", "interval"),
            r"results\[1\], layers, 'net.0.bias', lacks the entry 'in",
        ),
        (("results", 0, "arrays", "residuals"), r"results\[0\], arrays lacks the entry 'residuals'"),
    ],
)
def test_a_missing_entry_is_named(path, message):
    broken = copy.deepcopy(measured())
    place = broken
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    with pytest.raises(RecordError, match=message):
        figures_of(broken)


def test_numbers_that_are_not_numbers_and_lists_left_out_are_refused():
    broken = measured()
    broken["results"][3]["arrays"]["cdf"]["values"] = ["x"]
    with pytest.raises(RecordError, match=r"results\[3\], arrays, cdf, holds something that is no number"):
        figures_of(broken)
    broken["results"][3]["arrays"]["cdf"]["values"] = None
    with pytest.raises(RecordError, match=r"results\[3\], arrays, cdf, has NoneType as 'values'"):
        figures_of(broken)


def test_the_same_record_gives_the_same_files_and_commands_without_figures_none():
    for found, again in zip(figures_of(measured()), figures_of(measured()), strict=True):
        assert found.content("svg") == again.content("svg")
    assert figures_of(record("train")) == []


def test_naming_figures_needs_no_plotting():
    code = (
        "import sys, hessprobe.report.figures as f\n"
        "f.figures_of({'command': 'measure', 'results': [], 'arguments': {}})\n"
        "import hessprobe.report.figures.landscape, hessprobe.report.figures.sharpness\n"
        "print('matplotlib' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr

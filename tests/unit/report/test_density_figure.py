"""The spectral density as a figure: a kernel as wide everywhere on its axis, the band, the linear zone at 0."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from figure_checks import WIDTHS, require_fit
from figure_records import arrays, density_row, record, row

from hessprobe.report.figures import figures_across, figures_of
from hessprobe.report.figures.kernel import curve, symlog, unsymlog


def network_row(operator="hessian", seed=0):
    """A bulk about 0 of 300 eigenvalues, a tail over two decades, and five outliers."""
    draw = np.random.default_rng(seed)
    bulk = draw.normal(scale=2e-3, size=300)
    nodes = np.sort(np.concatenate([bulk, np.geomspace(5e-3, 0.3, 60), [0.5, 0.9, 1.4, 1.9, 2.4]]))
    nodes = np.abs(nodes) if operator == "ggn" else nodes
    nodes = np.sort(nodes)
    grid = np.linspace(nodes[0] - 0.05, 2.5, 200)
    cdf = np.searchsorted(nodes, grid) / len(nodes)
    low, high = np.clip(cdf - 0.03, 0, 1), np.clip(cdf + 0.03, 0, 1)
    weights = np.full(len(nodes), 1 / len(nodes))
    named = {"cdf_band_low": low, "cdf_band_high": high, "nodes": nodes, "weights": weights}
    named = {"grid": grid, "density": cdf, "cdf": cdf, **named}
    found = arrays(**{name: values.tolist() for name, values in named.items()})
    return row("density", 0.1, operator=operator, arrays=found)


@pytest.mark.parametrize("threshold", [None, 0.01])
@pytest.mark.parametrize("positive", [False, True])
def test_a_curve_integrates_to_its_weights(threshold, positive):
    nodes = np.array([0.0, 1e-3, 0.02, 0.5, 3.0]) if positive else np.array([-0.7, -2e-3, 0.0, 0.02, 3.0])
    x, y = curve(nodes, np.array([0.3, 0.2, 0.2, 0.2, 0.1]), threshold, positive)
    assert np.trapezoid(y, x) == pytest.approx(1.0, abs=2e-3)
    assert (x.min() >= 0) == positive
    assert np.all(np.diff(x) > 0)


def test_a_kernel_is_as_wide_everywhere_on_its_axis():
    # Three lines of one eigenvalue each, three decades apart: full width at half maximum, as a share of the eigenvalue.
    nodes = np.array([-0.001, 0.01, 1.0, 10.0])
    x, y = curve(nodes, np.full(4, 0.25), 0.001, False)
    t = symlog(x, 0.001)
    mass = y * np.gradient(x, t)
    widths = []
    for node in nodes:
        near = np.abs(t - symlog(np.array([node]), 0.001)[0]) < 0.6
        half = t[near][mass[near] > mass[near].max() / 2]
        widths.append(half[-1] - half[0])
    assert max(widths) < 1.3 * min(widths)
    # The published value for a Gaussian, 2 sqrt(2 ln 2) widths of 2 cells of 480.
    span = np.ptp(symlog(nodes, 0.001))
    assert np.mean(widths) == pytest.approx(2 * math.sqrt(2 * math.log(2)) * 2 * span / 480, rel=0.25)


@pytest.mark.parametrize("style", ["paper", "dark"])
def test_powers_of_ten_stand_apart(style):
    # Two decades of negative eigenvalues on a short stretch, beside all of the positive ones.
    made = network_row()
    nodes = np.sort(np.concatenate([-np.geomspace(1e-4, 0.03, 30), np.geomspace(1e-4, 3.0, 90)]))
    made["arrays"] |= arrays(nodes=nodes.tolist(), weights=[1 / 120] * 120)
    for width in WIDTHS:
        figure = require_fit(figures_of(record("measure", made))[0], width, style)
        panel = figure.axes[-1]
        low, high = panel.get_xlim()
        ticks = [each for each in panel.xaxis.get_major_ticks() if low <= each.get_loc() <= high]
        assert min(each.get_loc() for each in ticks) < 0
        assert len(ticks) >= 3
        boxes = sorted((each.label1.get_window_extent() for each in ticks), key=lambda box: box.x0)
        # A twentieth of an inch between two at least.
        assert min(right.x0 - left.x1 for left, right in pairwise(boxes)) > 0.05 * figure.dpi


def test_nodes_of_many_eigenvalues_leave_no_holes_between_them_and_single_ones_do():
    nodes, weights = np.array([0.0, 0.1, 0.2, 0.3, 2.0, 3.0]), np.array([0.3, 0.3, 0.2, 0.198, 1e-3, 1e-3])
    x, y = curve(nodes, weights, None, False)
    between = np.interp([0.05, 0.15, 0.25], x, y)
    assert np.all(between > 0.5 * np.interp([0.0, 0.1, 0.2], x, y).min())
    assert np.interp(2.5, x, y) < 1e-12 * np.interp(2.0, x, y)


def test_symlog_is_undone_and_smooth():
    x = np.linspace(-3, 3, 601)
    assert np.allclose(unsymlog(symlog(x, 0.01), 0.01), x, rtol=1e-12, atol=1e-15)
    slopes = np.diff(symlog(np.array([0.0099, 0.00999, 0.01, 0.01001, 0.0101]), 0.01))
    assert slopes[1] / 1e-5 == pytest.approx(slopes[2] / 1e-5, rel=2e-3)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("style", ["paper", "dark"])
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_the_figure_of_a_network_fits(width, style, operator):
    (drawn,) = figures_of(record("measure", network_row(operator)))
    figure = require_fit(drawn, width, style)
    panels = figure.axes
    assert [one.get_xscale() for one in panels] == (["symlog"] * 2 if width < 5 else ["linear", "symlog", "symlog"])
    density, distribution = panels[-2:]
    # The outermost eigenvalues are inside, each as a peak, and no empty decade is below.
    low, high = density.get_xlim()
    assert high > 2.4
    assert (low > -0.005) == (operator == "ggn")
    floor, top = density.get_ylim()
    x, y = density.lines[0].get_data()
    assert floor < np.interp(2.4, x, y) < 10 * floor
    assert y.max() < top < 5 * y.max()
    for panel in (density, distribution):
        (zone,) = panel.patches
        assert (zone.get_x(), zone.get_width()) == (-0.001, 0.002)
    assert distribution.get_xlabel() == "eigenvalue (gray: linear)"


def test_a_matrix_without_negative_eigenvalues_has_no_density_below_0():
    (drawn,) = figures_of(record("measure", network_row("ggn")))
    for panel in drawn.figure(6.75).axes[:2]:
        assert panel.lines[0].get_xdata().min() >= 0


def test_the_band_is_drawn_between_its_ends_and_stands_in_the_data():
    (drawn,) = figures_of(record("measure", density_row()))
    panel = drawn.figure(3.25).axes[1]
    (line,), (band,) = panel.lines, panel.collections
    assert line.get_ydata().tolist() == [0.0, 0.2, 0.85, 0.92, 1.0]
    corners = {(x, y) for x, y in band.get_paths()[0].vertices.tolist()}
    assert {(0.0, 0.1), (0.0, 0.3), (1.0, 0.1), (4.0, 0.9), (2.0, 1.0), (4.0, 1.0)} <= corners
    legend = drawn.figure(3.25).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["distribution function", "90 % band"]
    rows = [each for each in drawn.data if each["panel"] == "distribution"]
    assert [(each["eigenvalue"], each["low"], each["high"]) for each in rows][1] == (0.0, 0.1, 0.3)
    assert {each["panel"] for each in drawn.data} == {"distribution", "density, linear", "density, symlog"}


@pytest.mark.parametrize("width", WIDTHS)
def test_densities_of_two_matrices_fit_over_each_other(width):
    rows = [record("measure", network_row()), record("measure", network_row("ggn"))]
    drawn = next(one for one in figures_across(rows) if one.name == "densities")
    figure = require_fit(drawn, width)
    assert len(figure.axes) == (1 if width < 5 else 2)
    for panel in figure.axes:
        assert [line.get_label() for line in panel.lines] == ["Hessian", "Gauss-Newton matrix"]
        for line in panel.lines:
            assert panel.get_ylim()[0] < np.interp(2.4, *line.get_data())
    assert {each["matrix"] for each in drawn.data} == {"Hessian", "Gauss-Newton matrix"}

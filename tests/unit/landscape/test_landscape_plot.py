"""Figures: formats, the log scale, holes, overlays, the offline page."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
from figure_checks import WIDTHS, require_fit
from matplotlib.colors import LogNorm
from matplotlib.contour import QuadContourSet

from hessprobe.landscape import Landscape, write_html
from hessprobe.report.figures import planes
from hessprobe.report.figures.landscape import drawn
from hessprobe.report.figures.landscape_scale import scale
from hessprobe.report.figures.surfaces import free_turn


def plane(hole=False, **options):
    x = np.linspace(-1, 1, 7)
    loss = 0.01 + 5 * x[:, None] ** 2 + x[None, :] ** 2
    if hole:
        loss[0, 0], loss[6, 3] = np.nan, np.inf
    values = {"loss": loss, "lambda-min": x[:, None] + 0 * x[None, :]}
    options = {"kind": "random", "labels": ("a", "b"), "slope": np.zeros(2), "bend": np.diag([10.0, 2.5]), **options}
    return Landscape((x, x), values, np.ones((7, 7), bool), lengths=(1.0, 2.0), gram=np.diag([1.0, 4.0]), **options)


def line(**options):
    x = np.linspace(-1, 1, 7)
    loss = 0.1 + x**2
    loss[-1] = np.nan
    return Landscape((x,), {"loss": loss}, np.ones(7, bool), ("a",), "line", (1.0,), np.eye(1), **options)


def text_of(landscape, tmp_path, **options):
    return drawn(landscape, **options).save(tmp_path / "f.svg").read_text()


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_formats(ending, start, tmp_path):
    assert drawn(line()).save(tmp_path / f"f.{ending}").read_bytes().startswith(start)


def test_figures_are_the_same_every_time(tmp_path):
    assert text_of(plane(), tmp_path) == text_of(plane(), tmp_path)


def test_contours_name_axes_overlays_and_units(tmp_path):
    text = text_of(plane(), tmp_path, rho=0.3, title="a title")
    for piece in ("a title", "second-order model", "model 10 % off", "SAM's ball",
                  "(1 = 2 in parameter space)", "of the Hessian"):  # fmt: skip
        assert piece in text
    assert "not finite" not in text
    assert "second-order" not in text_of(plane(slope=None), tmp_path)


def test_holes_are_counted_in_the_figure(tmp_path):
    assert "2 of 49 points not finite (hatched)" in text_of(plane(hole=True), tmp_path)
    assert "1 of 7 points not finite (hatched)" in text_of(line(), tmp_path)


LOSSES = (0.01, 3.0, 1.0, 0.1, 2.0, 0.5)


def pca(*names, center="net.pt", places=((0.0, 0.0), (0.6, -0.5), (0.3, -0.4), (0.05, -0.1))):
    """A trajectory whose center, named first, is its end."""
    found = plane(kind="pca", labels=("principal component 1 (84.3 % of variance)", "principal component 2 (14 %)"),
                  marks=tuple(zip((center, *names), places, LOSSES[: len(places)], strict=True)))  # fmt: skip
    del found.values["lambda-min"]
    found = replace(found, lengths=(1.0, 1.0))
    return replace(found, axes=(found.axes[0], found.axes[1] / 2))


def test_checkpoints_show_their_true_loss(tmp_path):
    marks = (("one", (0.5, 0.5), 1.75), ("two", (0.0, 0.0), 0.01))
    lone = plane(kind="pca", marks=marks)
    del lone.values["lambda-min"]
    drawn(lone).save(tmp_path / "f.svg", 6.75)
    text = (tmp_path / "f.svg").read_text()
    assert "one: 1.75" in text
    assert "others (fill: loss)" in text
    assert "b, true loss" in text_of(line(marks=(("b", (0.5,), 0.35),)), tmp_path)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_trajectory_ends_in_its_center_without_a_line_to_its_start(width):
    figure = require_fit(drawn(pca("run-epoch-0000", "run-epoch-0010", "run-epoch-0020"), title="net.pt"), width)
    panel = figure.axes[0]
    (path,) = [each for each in panel.lines if len(each.get_xdata()) == 4]
    assert path.get_xdata().tolist() == [0.6, 0.3, 0.05, 0.0]
    # Names are those words that differ, and the center has its own in the legend.
    names = [text.get_text() for text in panel.texts if not text.get_text()[0].isdigit() or text.get_text()[:2] == "00"]
    assert [name.split(":")[0] for name in names] == ["0000", "0010", "0020"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "net.pt" in legend
    assert (panel.get_title(), panel.get_xlabel()) == ("net.pt", "PC 1 (84.3 % of variance)")
    # Both axes to one scale.
    box = panel.get_window_extent()
    assert box.height / box.width == pytest.approx(0.5, rel=0.02)
    forward = pca("b", "c", "d", places=((0.0, 0.0), (0.05, -0.1), (0.3, -0.4), (0.6, -0.5)))
    path = next(each for each in drawn(forward).figure().axes[0].lines if len(each.get_xdata()) == 4)
    assert path.get_xdata().tolist() == [0.0, 0.05, 0.3, 0.6]


@pytest.mark.parametrize("width", WIDTHS)
def test_fill_lines_bar_and_model_have_the_same_levels(width):
    lone = plane()
    del lone.values["lambda-min"]
    figure = require_fit(drawn(lone, title="net.pt"), width)
    (panel,) = figure.axes
    fill, lines, model = [each for each in panel.collections if isinstance(each, QuadContourSet)][:3]
    assert fill.levels.tolist() == lines.levels.tolist()
    # From 0.01 to 6: the fill begins and ends at round numbers that hold the values, spaced by ratio.
    assert (fill.levels[0], fill.levels[-1]) == (0.01, 10.0)
    assert isinstance(fill.norm, LogNorm)
    assert 7 <= len(fill.levels) <= 13
    assert set(model.levels) <= set(fill.levels)
    (bar,) = panel.child_axes
    shown = {float(text.get_text()) for text in bar.get_yticklabels()}
    assert shown == set(model.levels)
    # The bar is as high as the panel, the panel a square.
    box, beside = panel.get_window_extent(), bar.get_window_extent()
    assert (beside.y0, beside.y1) == pytest.approx((box.y0, box.y1), abs=1)
    assert box.width == pytest.approx(box.height, rel=0.01)
    assert box.width > 0.55 * figure.bbox.width
    # Numbers stand on the dashed lines, which are not cut open: one curve each.
    assert {text.get_text() for text in panel.texts} <= {text.get_text() for text in bar.get_yticklabels()}
    assert panel.texts
    whole = [path for path in model.get_paths() if len(path.vertices)]
    assert all(sum(code == path.MOVETO for code in path.codes) <= 2 for path in whole)


def test_a_line_shows_how_far_its_model_holds():
    figure = drawn(line(slope=np.zeros(1), bend=np.array([[4.0]])), rho=0.1).figure()
    (panel,) = figure.axes
    # 0.1 + 2 x^2 against 0.1 + x^2: at 1/3 the model is half of the loss off.
    dotted = [each for each in panel.lines if each.get_linestyle() == ":"]
    assert [each.get_xdata()[0] for each in dotted] == [0.0, 0.0]
    figure = drawn(line(slope=np.zeros(1), bend=np.array([[2.1]]))).figure()
    dotted = [each for each in figure.axes[0].lines if each.get_linestyle() == ":"]
    assert dotted == []  # nowhere a tenth off
    assert [each.get_text() for each in figure.legends[0].get_texts()] == ["second-order model", "checkpoint"]


@pytest.mark.parametrize("width", WIDTHS)
def test_many_quantities_fill_a_grid_without_an_empty_cell(width):
    many = plane()
    many.values.update({"error": many.values["loss"] / 10, "grad-norm": many.values["loss"]})
    many.values["lambda-max"] = many.values["loss"] * 3
    figure = require_fit(drawn(many, title="net.pt"), width)
    titles = [each.get_title() for each in figure.axes if each.get_title()]
    assert titles == ["loss", r"$\lambda_{\min}$ of the Hessian", "error rate", "gradient norm",
                      r"$\lambda_{\max}$ of the Hessian"]  # fmt: skip
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == ((3, 2) if width < 5 else (2, 3))
    # The sixth cell holds the legend.
    assert figure.axes[5].get_legend() is not None
    assert not figure.legends
    assert figure._supxlabel.get_text() == "a"


def test_a_quantity_that_is_finite_nowhere_is_said():
    lost = plane()
    lost.values["lambda-min"] = np.full((7, 7), np.nan)
    titles = [each.get_title() for each in drawn(lost).figure().axes]
    assert r"$\lambda_{\min}$ of the Hessian" + "\n49 of 49 points not finite (hatched)" in titles


@pytest.mark.parametrize("width", WIDTHS)
def test_a_surface_names_its_height_and_marks_the_checkpoint(width):
    lone = plane()
    del lone.values["lambda-min"]
    figure = drawn(lone, style="surface", title="net.pt").figure(width)
    figure.draw_without_rendering()
    (panel,) = figure.axes
    assert panel.get_zlabel() == "loss"
    star = [each for each in panel.lines if each.get_marker() == "*"]
    assert [list(map(float, np.ravel(each.get_data_3d()))) for each in star] == [[0.0, 0.0, pytest.approx(-2.0)]]
    # Logarithmic, with the numbers of the values.
    assert [text.get_text() for text in panel.get_zticklabels()][:2] == ["0.01", "0.1"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["checkpoint"]
    for text in (panel.zaxis.label, panel.xaxis.label, panel.yaxis.label, panel.title):
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y0 >= 0
    assert panel.title.get_window_extent().y0 > panel.zaxis.label.get_window_extent().y1


def test_the_camera_shows_the_minimum_or_stands_where_it_is_asked_to():
    lone = plane()
    del lone.values["lambda-min"]
    x = lone.axes[0]
    # A wall on the side from which it is usually looked at: turn -60 is right of and before the box.
    lone.values["loss"][:] = (
        0.2 + 0.1 * (x[:, None] ** 2 + x[None, :] ** 2) + 5 * (x[None, :] < -0.3) * (x[:, None] > -0.4)
    )
    height = lone.values["loss"]
    assert free_turn(replace(lone, values={"loss": np.full((7, 7), 1.0)}), np.full((7, 7), 1.0)) == -60
    turn = free_turn(lone, height)
    assert 0 < turn % 360 < 180
    panel = drawn(lone, style="surface").figure().axes[0]
    assert (panel.elev, panel.azim) == (35, turn)
    panel = drawn(lone, style="surface", camera=(20.0, 15.0)).figure().axes[0]
    assert (panel.elev, panel.azim) == (20, 15)


def test_log_scale_where_values_span_decades():
    assert scale(np.array([0.01, 1.0]), "loss").logarithmic
    assert not scale(np.array([0.2, 1.0]), "loss").logarithmic
    assert not scale(np.array([-0.1, 100.0]), "loss").logarithmic
    assert not scale(np.array([0.001, 1.0]), "error").logarithmic
    same = scale(np.array([2.0, 2.0]), "loss")
    assert same.norm.vmin < 2 < same.norm.vmax
    assert (np.diff(same.levels) > 0).all()


@pytest.mark.parametrize("ends", [(0.559, 10.1), (0.01, 6.0), (1e-4, 3e3), (0.55, 0.58), (-3.0, 7.0), (1e-9, 1e9)])
def test_levels_are_round_numbers_that_cover_the_values(ends):
    shown = scale(np.array(ends), "loss")
    levels = shown.levels
    assert levels[0] <= ends[0] * (1 + 1e-12 * np.sign(ends[0]))
    assert levels[-1] >= ends[1]
    assert 6 <= len(levels) <= 20
    assert (np.diff(levels) > 0).all()
    # No level beyond the next after the values, and numbers that are printed in full.
    assert levels[1] > ends[0]
    assert levels[-2] < ends[1]
    assert all(float(f"{level:.4g}") == pytest.approx(level, rel=1e-9, abs=1e-12) for level in levels)
    assert set(shown.ticks) <= set(levels)
    assert 3 <= len(shown.ticks) <= 6


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"format of path must be one of png, svg, pdf; got 'jpg'\."):
        drawn(line()).save(tmp_path / "f.jpg")
    empty = line()
    empty.values["loss"][:] = np.nan
    with pytest.raises(ValueError, match=r"landscape must hold a finite loss; got only holes\. Choose a smaller span"):
        drawn(empty)


def unpacked(text, name):
    packed = text.partition(f'id="{name}">')[2].partition("</script>")[0]
    return zlib.decompress(base64.b85decode(packed)).decode()


def test_the_page_works_offline_and_is_small(tmp_path):
    pytest.importorskip("plotly")
    x = np.linspace(-1, 1, 51)
    loss = np.random.default_rng(0).uniform(0.01, 6.0, (51, 51))
    loss[0, 0] = np.nan
    large = replace(plane(marks=(("<b>one</b></script>", (0.5, 0.5), 1.75),)), axes=(x, x), values={"loss": loss},
                    done=np.ones((51, 51), bool))  # fmt: skip
    text = write_html(large, tmp_path / "f.html", title="a <title>").read_text()
    assert len(text) < 2_000_000
    assert "<title>a &lt;title&gt;</title>" in text
    assert "src=" not in text
    assert "plotly.js v" in unpacked(text, "library")[:200]
    figure = json.loads(unpacked(text, "figure"))
    surface, points = figure["data"]
    assert surface["z"][0][0] is None
    assert surface["customdata"][3][7] == pytest.approx(loss[7, 3], rel=1e-5)
    assert points["text"][1] == "&lt;b&gt;one&lt;/b&gt;&lt;/script&gt;: 1.75"
    # The ticks are those of the bar of the figure.
    shown = [tick.get_text() for tick in drawn(large).figure().axes[0].child_axes[0].get_yticklabels()]
    axis = figure["layout"]["scene"]["zaxis"]
    assert axis["ticktext"] == surface["colorbar"]["ticktext"] == shown
    assert [10**place for place in axis["tickvals"]] == pytest.approx([float(tick) for tick in shown])
    with pytest.raises(ValueError, match="landscape must be of a plane for a surface; got a line"):
        write_html(line(), tmp_path / "g.html")


def test_measuring_a_landscape_needs_no_plotting():
    code = (
        "import sys, hessprobe.landscape as l\n"
        "assert 'torch' not in sys.modules\n"
        "l.evaluate, l.random_plane, l.survey\n"
        "print(sorted({'matplotlib', 'plotly'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize("width", WIDTHS)
def test_each_run_has_its_path_in_one_plane(width):
    names = ("sgd", "sgd-epoch-0000", "sgd-epoch-0004", "sam-epoch-0000", "sam-epoch-0004", "sam")
    places = ((0.0, 0.0), (0.6, -0.5), (0.3, -0.4), (0.6, -0.4), (0.4, 0.1), (0.2, 0.3))
    figure = require_fit(drawn(pca(*names[1:], places=places, center="sgd")), width)
    (panel,) = figure.axes
    paths = [each for each in panel.lines if len(each.get_xdata()) == 3]
    # The center, named first, is the end of its run: it stands nearer to the last of the others than to the first.
    assert [path.get_xdata().tolist() for path in paths] == [[0.6, 0.3, 0.0], [0.6, 0.4, 0.2]]
    assert len({path.get_color() for path in paths}) == 2
    assert {text.get_text() for text in figure.legends[0].get_texts()} >= {"sgd", "sam", "start"}
    assert planes.runs_of(["sgd", "sgd-epoch-0001", "sam"]) == {}
    assert planes.runs_of(["a.step-3", "a", "b", "b_step9"]) == {"a": [0, 1], "b": [2, 3]}


@pytest.mark.parametrize("style", ["paper", "dark"])
def test_a_low_panel_has_a_short_name_beside_it(style):
    found = pca("a", "b", "c")
    labels = tuple(f"principal component {i} ({share} % of variance)" for i, share in ((1, 76.3), (2, 16.9)))
    low, square = replace(found, labels=labels), replace(found, labels=labels, axes=(found.axes[0], found.axes[0]))
    panel = require_fit(drawn(low), 3.25, style).axes[0]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("PC 1 (76.3 % of variance)", "PC 2 (16.9 %)")
    assert drawn(square).figure(3.25).axes[0].get_ylabel() == "PC 2 (16.9 % of variance)"


def test_each_eigenvector_has_its_number():
    found = replace(plane(kind="eigen", labels=("eigenvector of 2.374", "eigenvector of 1.825")), lengths=(1.0, 1.0))
    del found.values["lambda-min"]
    panel = require_fit(drawn(found), 3.25).axes[0]
    assert panel.get_xlabel() == r"along $v_1$, $\lambda$ = 2.374"
    assert panel.get_ylabel() == r"along $v_2$, $\lambda$ = 1.825"


MAPS = {
    "plane": plane(),
    "run": pca("a", "b", "c"),
    "runs": pca("a-epoch-1", "b", "b-epoch-1", center="a"),
}


@pytest.mark.parametrize("found", MAPS.values(), ids=MAPS)
def test_the_legend_of_a_map_is_seen_on_a_dark_ground(found):
    from matplotlib.colors import to_rgb

    def light(color):
        return float(np.dot(to_rgb(color), (0.2126, 0.7152, 0.0722)))

    figure = drawn(found).figure(3.25, "dark")
    legends = [*figure.legends, *(panel.get_legend() for panel in figure.axes if panel.get_legend())]
    lines = [each for legend in legends for each in legend.get_lines()]
    assert len(lines) >= 3
    for each in lines:
        if each.get_linestyle() != "None":
            assert light(each.get_color()) > 0.25, each.get_label()
        if each.get_marker() not in (None, "None"):
            assert light(each.get_markeredgecolor()) > 0.25, each.get_label()

"""Figures: formats, the log scale, holes, overlays, the offline page."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from hessprobe.landscape import Landscape, write_html
from hessprobe.report.figures.landscape import drawn
from hessprobe.report.figures.landscape_scale import scale


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
    for piece in ("a title", "second-order model, same levels", "model 10 % off the loss", "SAM's ball",
                  "(1 = 2 in parameter space)", "smallest Hessian eigenvalue"):  # fmt: skip
        assert piece in text
    assert "not finite" not in text
    assert "second-order" not in text_of(plane(slope=None), tmp_path)


def test_holes_are_counted_in_the_figure(tmp_path):
    assert "2 of 49 points not finite, hatched" in text_of(plane(hole=True), tmp_path)
    assert "1 of 7 points not finite, hatched" in text_of(line(), tmp_path)


def test_checkpoints_show_their_true_loss(tmp_path):
    marks = (("one", (0.5, 0.5), 1.75), ("two", (0.0, 0.0), 0.01))
    text = text_of(plane(kind="pca", marks=marks), tmp_path)
    assert "one: 1.75" in text
    assert "checkpoints, filled with their true loss" in text
    assert "b, true loss" in text_of(line(marks=(("b", (0.5,), 0.35),)), tmp_path)


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


def test_many_quantities_stand_in_rows_of_three():
    many = plane()
    many.values.update({"error": many.values["loss"] / 10, "grad-norm": many.values["loss"]})
    figure = drawn(many).figure()
    titles = [each.get_title() for each in figure.axes if each.get_title()]
    assert titles == ["loss", "smallest Hessian eigenvalue", "error rate", "gradient norm"]
    assert figure.get_size_inches().tolist() == pytest.approx([3 * 5.4, 0.6 + 2 * 4.6])


def test_a_quantity_that_is_finite_nowhere_is_said():
    lost = plane()
    lost.values["lambda-min"] = np.full((7, 7), np.nan)
    assert "smallest Hessian eigenvalue: not finite anywhere" in [
        each.get_title() for each in drawn(lost).figure().axes
    ]


def test_surface(tmp_path):
    assert "log scale" in text_of(plane(hole=True), tmp_path, style="surface")


def test_log_scale_where_values_span_decades():
    assert scale(np.array([0.01, 1.0]), "loss")[2]
    assert not scale(np.array([0.1, 1.0]), "loss")[2]
    assert not scale(np.array([-0.1, 100.0]), "loss")[2]
    assert not scale(np.array([0.001, 1.0]), "error")[2]
    norm, levels, _ = scale(np.array([2.0, 2.0]), "loss")
    assert norm.vmin < 2 < norm.vmax
    assert (np.diff(levels) > 0).all()


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"format of path must be one of png, svg, pdf; got 'jpg'\."):
        drawn(line()).save(tmp_path / "f.jpg")
    empty = line()
    empty.values["loss"][:] = np.nan
    with pytest.raises(ValueError, match=r"landscape must hold a finite loss; got only holes\. Choose a smaller span"):
        drawn(empty)


def test_the_page_works_offline(tmp_path):
    pytest.importorskip("plotly")
    marks = (("<b>one</b>", (0.5, 0.5), 1.75),)
    path = write_html(plane(hole=True, marks=marks), tmp_path / "f.html", title="a title")
    text = path.read_text()
    assert len(text) > 3_000_000  # the library stands in the file
    assert "<script src=" not in text
    assert '"type":"surface"' in text
    assert "log10 of loss" in text
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

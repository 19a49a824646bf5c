"""Figures and pages that measuring commands make at once: where they go, how wide they are, what is refused."""

from __future__ import annotations

import csv
import re

import pytest

QUICK = ("--examples", "60", "--engine", "double-backward")


def inches(path):
    """Return the width of a PDF."""
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", path.read_bytes())
    return float(box[1]) / 72


def test_measure_draws_at_the_width_of_a_column_with_its_fonts_and_its_numbers(run, digits_checkpoint, tmp_path):
    figure = tmp_path / "layers.pdf"
    done = run("measure", digits_checkpoint, *QUICK, "--measure", "trace", "--measure", "frob", "--per-layer",
               "--probes", "4", "--out", figure, "--width", "3.25")  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert inches(figure) == pytest.approx(3.25)
    # Type 42 is TrueType, whole in the file; type 3 is refused by journals.
    content = figure.read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content
    with figure.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["measure"] for row in rows} == {"trace", "frob"}
    assert f"wrote {figure}" in done.out


def test_a_page_is_made_from_one_checkpoint(run, digits_checkpoint, tmp_path):
    page = tmp_path / "page.html"
    done = run("measure", digits_checkpoint, *QUICK, "--measure", "trace", "--probes", "4", "--report", page)
    assert (done.code, done.err) == (0, "")
    text = page.read_text(encoding="utf-8")
    assert f"<title>Curvature of {digits_checkpoint.name}</title>" in text
    assert 'id="verdict"' in text
    # The command of the page is the one that was typed.
    assert f"hessprobe measure {digits_checkpoint}" in text
    assert "--probes 4" in text
    # Again, over its own page; over another file not.
    again = run("measure", digits_checkpoint, *QUICK, "--measure", "trace", "--probes", "4", "--report", page)
    assert again.code == 0
    page.write_text("mine")
    refused = run("measure", digits_checkpoint, *QUICK, "--measure", "trace", "--report", page)
    assert (refused.code, page.read_text()) == (2, "mine")
    assert "--report must not replace a file that hessprobe did not write" in refused.err


def test_sharpness_draws_and_leaves_a_foreign_table_alone(run, digits_checkpoint, tmp_path):
    figure, table = tmp_path / "s.svg", tmp_path / "s.csv"
    table.write_text("mine")
    given = ("--kind", "ascent", "--rho", "0.05", "--rho", "0.1", "--out", figure, "--report", tmp_path / "s.html")
    done = run("sharpness", digits_checkpoint, *QUICK, *given)
    assert done.code == 0
    assert figure.read_text().startswith("<?xml")
    assert table.read_text() == "mine"
    assert f"note: {table} was left as it is" in done.err
    assert "rises by" in (tmp_path / "s.html").read_text(encoding="utf-8")


def test_the_table_of_the_command_is_not_replaced_by_that_of_its_figure(run, digits_checkpoint, tmp_path):
    figure, table = tmp_path / "m.png", tmp_path / "m.csv"
    given = ("--measure", "trace", "--per-layer", "--probes", "4", "--out", figure, "--csv", table)
    assert run("measure", digits_checkpoint, *QUICK, *given).code == 0
    assert table.read_text().startswith("measure,operator,")
    assert (tmp_path / "m-figure.csv").read_text().splitlines()[0].startswith("measure,")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--out", "m.pdf", "--measure", "trace"),
         "--out must have something to draw; got trace, single numbers. Add --per-layer"),
        (("--out", "m.bmp", "--per-layer"), "--out must end in .png, .svg, .pdf; got 'm.bmp'."),
        (("--report", "page.pdf"), "--report must end in .html, .htm; got 'page.pdf'."),
        (("--out", "m.pdf", "--per-layer", "--width", "325"), "--width must be in inches, 2 to 20; got 325."),
        (("--out", "m.pdf", "--per-layer", "--style", "drak"), "Did you mean 'dark'?"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_before_any_work(run, digits_checkpoint, monkeypatch, tmp_path, given, message):
    monkeypatch.chdir(tmp_path)
    done = run("measure", digits_checkpoint, *given)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not list(tmp_path.iterdir())


def test_a_look_without_a_figure_is_said_to_do_nothing(run, digits_checkpoint):
    done = run("measure", digits_checkpoint, *QUICK, "--measure", "trace", "--probes", "4", "--width", "3.25")
    assert done.code == 0
    assert "note: --width and --style have no effect here; they are for the figure of --out" in done.err


@pytest.mark.parametrize("command", ["measure", "sharpness", "invariance", "compare", "track", "landscape"])
def test_every_command_that_draws_takes_the_same_options(run, command):
    shown = run(command, "--help").out
    for option in ("--out", "--width", "--style", "--report"):
        assert option in shown

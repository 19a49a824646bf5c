"""Widths, styles, embedded fonts and the numbers beside a figure."""

from __future__ import annotations

import csv
import re
import struct
import zlib

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from hessprobe.report.figures import style
from hessprobe.report.figures.drawn import Drawn, table


def lines(figure):
    panel = figure.subplots()
    panel.plot([0, 1], [1, 2], color=style.BLUE, label="a")
    panel.axhline(1.5, color=style.BLACK)
    panel.axhspan(1.2, 1.4, color=style.SHADE)
    panel.legend()
    filled = figure.add_axes((0.6, 0.2, 0.1, 0.1), label=style.FILLED)
    filled.plot([0, 1], [0, 1], color=style.BLACK)


FIGURE = Drawn("a", "A", "a", lines, size=(4.0, 3.0))


def pixels(png):
    return struct.unpack(">II", png[16:24])


def test_a_figure_is_as_wide_as_asked_for():
    assert pixels(FIGURE.content("png")) == (1200, 900)
    assert pixels(FIGURE.content("png", 3.25)) == (975, 731)
    tall = Drawn("a", "A", "a", lines, height=lambda width: 2.0)
    assert pixels(tall.content("png", 6.75)) == (2025, 600)
    for wrong in (1.9, 20.1, float("nan")):
        with pytest.raises(ValueError, match=r"width must be .*; got .* In inches\."):
            FIGURE.figure(wrong)
    with pytest.raises(
        ValueError, match=r"style must be one of paper, screen, dark; got 'drak'\. Did you mean 'dark'\?"
    ):
        FIGURE.figure(style="drak")


def test_a_pdf_carries_its_fonts_and_is_the_same_every_time():
    content = FIGURE.content("pdf", 3.25)
    assert content == FIGURE.content("pdf", 3.25)
    assert b"/FontFile2" in content
    # Type 3 outlines are what journals refuse.
    assert re.search(rb"/Subtype\s*/Type3", content) is None
    (box,) = re.findall(rb"/MediaBox \[ 0 0 (\S+) (\S+) \]", content)
    assert [float(each) for each in box] == [234.0, 175.5]


@pytest.mark.parametrize(("name", "least", "most"), [("paper", 7, 8.5), ("screen", 8, 9), ("dark", 8, 9)])
def test_letters_have_7_to_9_points(name, least, most):
    panel = FIGURE.figure(3.25, name).axes[0]
    sizes = [panel.xaxis.label.get_fontsize(), panel.get_xticklabels()[0].get_fontsize(), panel.title.get_fontsize()]
    sizes += [panel.get_legend().get_texts()[0].get_fontsize()]
    assert (min(sizes), max(sizes)) == (least, most)


def luminance(color):
    values = np.array(to_rgb(color))
    linear = np.where(values <= 0.03928, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_dark_style_is_readable_on_its_ground():
    shown = [style.DARK.get(color, color) for color in style.COLORS]
    assert len(set(shown)) == len(shown)
    assert min(contrast(color, style.GROUND) for color in shown) >= 4.5
    figure = FIGURE.figure(style="dark")
    panel, filled = figure.axes
    assert luminance(figure.get_facecolor()[:3]) < 0.02
    known = {color: (*to_rgb(dark), 1.0) for color, dark in style.DARK.items()}
    assert [line.get_color() for line in panel.lines] == [known[style.BLUE], known[style.BLACK]]
    assert panel.patches[0].get_facecolor() == known[style.SHADE]
    assert panel.get_legend().get_lines()[0].get_color() == panel.lines[0].get_color()
    assert contrast(panel.get_xticklabels()[0].get_color(), style.GROUND) > 10
    # What lies over a color map keeps the colors chosen for it.
    assert filled.lines[0].get_color() == style.BLACK
    assert FIGURE.figure().axes[0].lines[0].get_color() == style.BLUE


def test_the_numbers_of_a_figure_stand_beside_it(tmp_path):
    rows = [*table(panel="loss", x=np.array([0.1, 0.2]), y=[1 / 3, np.nan]), {"panel": "b", "z": 3, "y": np.inf}]
    path = Drawn("a", "A", "a", lines, data=rows).save_data(tmp_path / "a.csv")
    assert path.read_bytes() == b"panel,x,y,z\nloss,0.1,0.3333333333333333,\nloss,0.2,,\nb,,,3\n"
    with path.open() as file:
        assert float(next(csv.DictReader(file))["y"]) == 1 / 3
    with pytest.raises(ValueError, match="shape"):
        table(x=[1, 2], y=[1, 2, 3])


def test_png_and_svg_are_the_same_every_time():
    for kind in ("png", "svg"):
        assert zlib.crc32(FIGURE.content(kind)) == zlib.crc32(FIGURE.content(kind))

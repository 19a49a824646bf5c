"""The surface to turn around: unpacked and drawn by the browser alone, in both colors."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hessprobe.landscape import Landscape, write_html


def surface(folder):
    x = np.linspace(-1, 1, 21)
    loss = 0.01 + 5 * x[:, None] ** 2 + x[None, :] ** 2
    found = Landscape((x, x), {"loss": loss, "error": loss / 10}, np.ones((21, 21), bool), ("a", "b"), "eigen",
                      (1.0, 1.0), np.eye(2))  # fmt: skip
    return write_html(found, folder / "surface.html", title="net.pt")


# What the page asks of the library; drawing itself needs a graphics card.
STUB = """window.Plotly = {newPlot(place, data, layout) { window.drawn = [data, layout] },
                           relayout(place, changes) { window.changes = changes }}; // \u2212"""


@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(22, 22, 22)")])
def test_the_page_unpacks_its_figure_and_follows_the_colors(browser, tmp_path, monkeypatch, scheme, ground):
    pytest.importorskip("plotly")
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: STUB)
    browser.open(surface(tmp_path), scheme=scheme)
    until = time.monotonic() + 30
    while browser.run("return document.body.dataset.drawn") != "yes" and time.monotonic() < until:
        time.sleep(0.1)
    assert browser.run("return document.title") == "net.pt"
    data, layout = browser.run("return window.drawn")
    assert np.shape(data[0]["z"]) == (21, 21)
    assert layout["scene"]["zaxis"]["ticktext"][0] == "0.01"
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == ground
    changes = browser.run("return window.changes")
    assert changes["paper_bgcolor"] == {"light": "#ffffff", "dark": "#161616"}[scheme]
    assert changes["scene.zaxis.color"] == {"light": "#111111", "dark": "#e8e8e8"}[scheme]
    assert [each for each in browser.requests() if not each.startswith(("file:", "data:", "blob:"))] == []

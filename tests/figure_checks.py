"""What every figure keeps to: letters of 7 to 9 points, nothing over each other, nothing beyond the edge."""

from __future__ import annotations

from itertools import combinations

WIDTHS = (3.25, 6.75)


def written(figure):
    """Return every text that is seen, of ticks those within the axis."""
    found = [*figure.texts, figure._suptitle, figure._supxlabel, figure._supylabel]
    for legend in figure.legends:
        found += legend.get_texts()
    for panel in [each for one in figure.axes for each in (one, *one.child_axes)]:
        if not panel.get_visible():
            continue
        found += [panel.title, panel._left_title, panel._right_title]
        if panel.axison:
            found += _of_axes(panel)
        found += panel.texts
        if panel.get_legend() is not None:
            found += panel.get_legend().get_texts()
    return list({id(text): text for text in found if text and text.get_visible() and text.get_text().strip()}.values())


def _of_axes(panel):
    found = []
    for axis in (panel.xaxis, panel.yaxis, *([panel.zaxis] if hasattr(panel, "zaxis") else [])):
        low, high = sorted(axis.get_view_interval())
        room = 1e-9 * (high - low)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if low - room <= tick.get_loc() <= high + room:
                found += [label for label in (tick.label1, tick.label2) if label.get_visible()]
        found += [axis.label, axis.get_offset_text()]
    return found


def require_fit(drawn, width, style="paper"):
    """Draw a figure at a width and require what every figure keeps to; return it."""
    figure = drawn.figure(width, style)
    figure.draw_without_rendering()
    assert figure.get_figwidth() == width
    texts = written(figure)
    assert len(texts) > 3
    for text in texts:
        assert 6.99 <= text.get_fontsize() <= 9.01, (text.get_text(), text.get_fontsize())
    boxes = [(text, text.get_window_extent()) for text in texts]
    for text, box in boxes:
        beyond = (-1 - box.x0, -1 - box.y0, box.x1 - figure.bbox.x1 - 1, box.y1 - figure.bbox.y1 - 1)
        assert max(beyond) <= 0, (text.get_text(), beyond)
    for (one, first), (other, second) in combinations(boxes, 2):
        # A turned text takes less room than its box: none of ours is turned but by a right angle.
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        up = min(first.y1, second.y1) - max(first.y0, second.y0)
        # In pixels of 1/100 inch; a descender's empty room may touch.
        assert across <= 1 or up <= 1, (one.get_text(), other.get_text())
    return figure

"""Names beside points: where they stand without covering one another, the points, or the border."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float]
# Left, bottom, right, top.
Box = tuple[float, float, float, float]

# Marks the names that ``spread`` moves; no legend reads the label of a text.
_NAME = "_name beside a point"
# Directions from a point in the order in which they are tried, in sixteenths of a turn from the right.
_TURNS = (0, 8, 2, 14, 6, 10, 4, 12, 1, 15, 7, 9, 3, 13, 5, 11)
_RINGS = 12
# In points: from a point to the nearest name, between two rings, kept free around a name, half of a marker.
_GAP, _STEP, _FREE, _MARKER = 3.5, 5.0, 2.0, 2.5
# Half of the star of the checkpoint in the middle.
_STAR = 3.5
_POINTS_PER_INCH = 72


def name(panel: Any, place: Sequence[float], text: str, **style: Any) -> None:
    """Write a name at a point of a panel; ``spread`` moves it to where there is room."""
    note = panel.annotate(text, place, xytext=(0, 0), textcoords="offset points", va="bottom", ha="left", **style)
    note.set_label(_NAME)
    # A name that is moved afterwards must not have moved the panels.
    note.set_in_layout(False)


def spread(figure: Figure, color: str) -> None:
    """Move every name of a finished figure beside its point, with a thin line where it had to go far.

    Args:
        figure: with all of its panels and legends.
        color: of the lines.
    """
    panels: list[Any] = [panel for panel in figure.axes if any(_is_name(text) for text in panel.texts)]
    if not panels:
        return
    # Where panels lie is known only now.
    figure.draw_without_rendering()
    canvas: Any = figure.canvas
    unit = figure.dpi / _POINTS_PER_INCH
    for panel in panels:
        notes = [text for text in panel.texts if _is_name(text)]
        points: list[Point] = [tuple(panel.transData.transform(note.xy) / unit) for note in notes]
        extents = [note.get_window_extent(canvas.get_renderer()) for note in notes]
        sizes = [(each.width / unit, each.height / unit) for each in extents]
        others = [text.get_window_extent(canvas.get_renderer()) for text in panel.texts if not _is_name(text)]
        stars = [panel.transData.transform(line.get_xydata()[0]) / unit for line in panel.lines if _is_star(line)]
        covered = [(x - _STAR, y - _STAR, x + _STAR, y + _STAR) for x, y in stars]
        taken = [*(_box(each, unit) for each in others), *covered]
        boxes = places(points, sizes, _box(panel.get_window_extent(), unit), taken)
        for note, point, box in zip(notes, points, boxes, strict=True):
            note.set_position((box[0] - point[0], box[1] - point[1]))
            near = _nearest(box, point)
            if math.dist(near, point) > _GAP + 1:
                far = panel.transData.inverted().transform((near[0] * unit, near[1] * unit))
                panel.plot(*zip(note.xy, far, strict=True), color=color, lw=0.4, zorder=2, scalex=False, scaley=False)


def _box(extent: Any, unit: float) -> Box:
    return extent.x0 / unit, extent.y0 / unit, extent.x1 / unit, extent.y1 / unit


def _is_star(line: Any) -> bool:
    return bool(line.get_marker() == "*" and len(line.get_xdata()))


def _is_name(text: Any) -> bool:
    return bool(text.get_label() == _NAME)


def places(points: Sequence[Point], sizes: Sequence[Point], frame: Box, texts: Sequence[Box] = ()) -> list[Box]:
    """Return for every name the box in which it stands, as near to its point as is free.

    Names are placed in their order; each takes the first free place on growing rings around its point. Free is what
    lies in the frame and covers no point, no other text, no name placed before, and no line from one of these to its
    point; its own line covers none of these either. A name without a free place stands where it covers least.

    Args:
        points: to name, in points (1/72 inch).
        sizes: widths and heights of the names.
        frame: the panel.
        texts: what else is written in it.
    """
    marks = [(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in points]
    taken = list(texts)
    found = []
    for point, size in zip(points, sizes, strict=True):
        best, least = (point[0], point[1], point[0] + size[0], point[1] + size[1]), math.inf
        for box in _around(point, size):
            covered = _outside(box, frame) + sum(_overlap(box, other) for other in (*marks, *taken))
            covered += sum(_overlap(step, other) for step in _line(point, box) for other in (*marks, *taken))
            if covered < least:
                best, least = box, covered
            if covered == 0:
                break
        taken += [_grown(best), *_line(point, best)]
        found.append(best)
    return found


def _around(point: Point, size: Point) -> Iterator[Box]:
    for ring in range(_RINGS):
        for turn in _TURNS:
            across, up = math.cos(math.pi * turn / 8), math.sin(math.pi * turn / 8)
            reach = _GAP + ring * _STEP
            # The name touches the ring from outside: beside it with its end, over it with its middle.
            x = point[0] + reach * across + size[0] / 2 * max(-1.0, min(1.0, 1.5 * across))
            y = point[1] + reach * up + size[1] / 2 * max(-1.0, min(1.0, 1.5 * up))
            yield (x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2)


def _line(point: Point, box: Box) -> list[Box]:
    """Return steps along the line from a point to its name, beyond the marker."""
    end = _nearest(box, point)
    count = int(math.dist(point, end) / 2)
    shares = [(index + 0.5) / count for index in range(count)]
    steps = [(point[0] + s * (end[0] - point[0]), point[1] + s * (end[1] - point[1])) for s in shares]
    return [(x - 0.5, y - 0.5, x + 0.5, y + 0.5) for x, y in steps if math.dist((x, y), point) > _MARKER]


def _nearest(box: Box, point: Point) -> Point:
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _grown(box: Box) -> Box:
    return box[0] - _FREE, box[1] - _FREE, box[2] + _FREE, box[3] + _FREE


def _overlap(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return across * up if across > 0 and up > 0 else 0.0


def _outside(box: Box, frame: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, frame)

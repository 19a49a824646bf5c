"""Where names beside points stand without covering one another."""

from __future__ import annotations

from collections.abc import Sequence


def sides(
    x: Sequence[float], y: Sequence[float], lengths: Sequence[float], line: float, margin: float
) -> list[tuple[bool, bool]]:
    """Return for every name whether it stands right of its point and above it: inwards, and where none stands yet.

    Args:
        x: places of the points across, as shares of the panel.
        y: their places upwards.
        lengths: of the names, as shares of the panel.
        line: height of a name, as a share of the panel.
        margin: how far beyond the outermost points a name may reach, as a share of the panel.
    """
    taken: list[tuple[float, float, float]] = []
    chosen = []
    for across, height, length in zip(x, y, lengths, strict=True):
        inward = across <= 0.5
        places = {}
        for right, up in ((inward, True), (inward, False), (not inward, True), (not inward, False)):
            left = across if right else across - length
            places[right, up] = (left, left + length, height + (line if up else -line) / 2)
        inside = {key: box for key, box in places.items() if box[0] >= -margin and box[1] <= 1 + margin}
        free = (key for key, box in inside.items() if not any(_overlap(box, other, line) for other in taken))
        best = next(free, (inward, True))
        taken.append(places[best])
        chosen.append(best)
    return chosen


def _overlap(one: tuple[float, float, float], other: tuple[float, float, float], line: float) -> bool:
    return one[0] < other[1] and other[0] < one[1] and abs(one[2] - other[2]) < line

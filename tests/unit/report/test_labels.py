"""Names beside points: free places, and figures in which no two names lie on each other."""

from __future__ import annotations

from itertools import combinations

import pytest

from hessprobe.report.figures.labels import name, places, spread
from hessprobe.report.figures.style import build

FRAME = (0.0, 0.0, 140.0, 120.0)
SIZE = (40.0, 7.0)


def overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_a_name_alone_stands_right_of_its_point_and_left_of_it_at_the_border():
    (alone,) = places([(20.0, 60.0)], [SIZE], FRAME)
    assert alone == pytest.approx((23.5, 56.5, 63.5, 63.5))
    (border,) = places([(120.0, 60.0)], [SIZE], FRAME)
    assert border == pytest.approx((76.5, 56.5, 116.5, 63.5))


def test_names_of_a_cluster_cover_neither_each_other_nor_points_nor_texts():
    points = [(60.0 + 2.0 * index, 60.0 - index) for index in range(8)]
    written = (64.0, 70.0, 90.0, 80.0)
    found = places(points, [SIZE] * 8, FRAME, [written])
    assert not [pair for pair in combinations([*found, written], 2) if overlap(*pair)]
    for x, y in points:
        assert not any(overlap(box, (x - 2.4, y - 2.4, x + 2.4, y + 2.4)) for box in found)
    assert all(box[0] >= 0 and box[1] >= 0 and box[2] <= 140 and box[3] <= 120 for box in found)
    assert found == places(points, [SIZE] * 8, FRAME, [written])


def test_a_name_without_a_free_place_stands_where_it_covers_least():
    # Wider than the panel by 10: above the point, as much outside to the left as to the right.
    (found,) = places([(20.0, 15.0)], [(50.0, 7.0)], (0.0, 0.0, 40.0, 30.0))
    assert found == pytest.approx((-5.0, 18.5, 45.0, 25.5))


def test_names_far_from_their_points_have_a_line():
    def draw(figure):
        panel = figure.subplots()
        panel.plot([0, 1], [0, 1], "o")
        for index in range(8):
            name(panel, (0.5 + 1e-3 * index, 0.5), f"epoch-{index}")
        spread(figure, "gray")

    figure = build(draw, (2.4, 2.2))
    (panel,) = figure.axes
    boxes = [text.get_window_extent() for text in panel.texts]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    lines = panel.lines[1:]
    assert lines
    assert lines[0].get_xdata()[0] == pytest.approx(0.5, abs=0.01)
    # The lines have left the limits where they were.
    assert panel.get_xlim() == pytest.approx((-0.05, 1.05))


def test_a_name_does_not_cover_the_star_of_the_checkpoint():
    def draw(figure):
        panel = figure.subplots()
        panel.set(xlim=(-1, 1), ylim=(-1, 1))
        # A name on the right of the point would lie over the star.
        panel.plot(0.2, 0.0, marker="*", ms=7, ls="none")
        name(panel, (0.0, 0.0), "name", fontsize=7)
        spread(figure, "gray")

    figure = build(draw, (3.0, 3.0))
    figure.draw_without_rendering()
    (panel,) = figure.axes
    star = panel.transData.transform((0.2, 0.0))
    box = panel.texts[0].get_window_extent()
    assert not (box.x0 - 3 < star[0] < box.x1 + 3 and box.y0 - 3 < star[1] < box.y1 + 3)

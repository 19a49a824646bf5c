from __future__ import annotations

from hessprobe.report.figures.labels import sides


def test_names_stand_inwards_and_not_over_one_another():
    assert sides([0.1, 0.9], [0.5, 0.5], [0.2, 0.2], 0.05, 0.0) == [(True, True), (False, True)]
    # The second of two neighbors goes below, the third to the other side.
    assert sides([0.6] * 3, [0.5] * 3, [0.3] * 3, 0.05, 0.0) == [(False, True), (False, False), (True, True)]


def test_a_name_without_a_free_place_stands_inwards():
    assert sides([0.2] * 3, [0.5] * 3, [0.5] * 3, 0.05, 0.0)[-1] == (True, True)

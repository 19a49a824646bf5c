from __future__ import annotations

import pytest
from page_records import estimate

from hessprobe.report.sections.measures import bars


def test_bars_share_a_scale_that_holds_zero():
    rows = [estimate(4.0, 1.0), estimate(-1.0, 0.0), estimate(1.0) | {"value": None}]
    first, second, third = bars(rows)
    # From -1 to 5: a unit is a sixth.
    assert (first.zero, first.value, first.low, first.high) == pytest.approx((16.667, 83.333, 66.667, 100.0), abs=1e-3)
    assert first.data is None
    assert (second.zero, second.value) == pytest.approx((16.667, 0.0), abs=1e-3)
    assert third is None
    assert bars([estimate(0.0, 0.0)]) == [None]


def test_bars_show_the_errors_that_are_printed_beside_them():
    told = estimate(4.0, 0.5) | {"errors": {"probe": 0.5, "data": 1.0, "solver": 0.0}}
    (bar,) = bars([told])
    # From 0 to 5: the data error reaches the end, the standard error half as far, the interval of 2 errors nowhere.
    assert (bar.low, bar.value, bar.high) == pytest.approx((70.0, 80.0, 90.0))
    assert bar.data == pytest.approx((60.0, 100.0))
    held = {"kind": "bracket", "bracket": [4.0, 5.0], "interval": [4.0, 5.0], "bracket_confidence": 0.99}
    (bracket,) = bars([estimate(4.0, 0.0) | held | {"errors": {"probe": 0.0, "data": None, "solver": 1.0}}])
    assert (bracket.low, bracket.high) == pytest.approx((80.0, 100.0))

from __future__ import annotations

import pytest
from page_records import estimate

from hessprobe.report.sections.measures import bars


def test_bars_share_a_scale_that_holds_zero():
    rows = [estimate(4.0, 0.5), estimate(-1.0, 0.0), estimate(1.0) | {"value": None}]
    first, second, third = bars(rows)
    # From -1 to 5: a unit is a sixth.
    assert (first.zero, first.value, first.low, first.high) == pytest.approx((16.667, 83.333, 66.667, 100.0), abs=1e-3)
    assert (second.zero, second.value) == pytest.approx((16.667, 0.0), abs=1e-3)
    assert third is None
    assert bars([estimate(0.0, 0.0)]) == [None]

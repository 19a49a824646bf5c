"""Typed records: what is declared is what is written, and what is read back is what was written."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from page_records import compared, difference, estimate, measured, sharp

from hessprobe.errors import RecordError
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.records import typed
from hessprobe.records.compare import CompareRecord, Difference
from hessprobe.records.sharpness import SharpnessRecord
from hessprobe.records.typed import Measured, MeasureRecord, Number


@dataclass(frozen=True, kw_only=True)
class Inner:
    low: float | None
    name: str = "b"


@dataclass(frozen=True, kw_only=True)
class Perhaps:
    radius: float
    m: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int
    pair: tuple[float | None, float | None] = (None, None)
    inner: Inner = field(metadata=typed.FLAT)
    perhaps: Perhaps | None = field(default=None, metadata=typed.FLAT)
    named: dict[str, Inner] | None = field(default=None, metadata=typed.LEFT_OUT)
    listed: tuple[Inner, ...] = ()
    any: Any = None
    sure: bool = True


WRITTEN = {"count": 3, "pair": [1.0, None], "low": 0.5, "name": "b", "radius": 2, "m": None,
           "named": {"x": {"low": None, "name": "y"}}, "listed": [{"low": 1, "name": "b"}], "any": {"k": [1]},
           "sure": False}  # fmt: skip


def test_what_is_read_is_written_again_in_the_order_of_the_fields():
    found = typed.read(Outer, WRITTEN, "the record")
    assert (found.inner.low, found.perhaps, found.pair) == (0.5, Perhaps(radius=2), (1.0, None))
    assert (found.named, found.listed) == ({"x": Inner(low=None, name="y")}, (Inner(low=1),))
    assert json.dumps(typed.written(found)) == json.dumps(WRITTEN)
    bare = typed.written(typed.read(Outer, {"count": 1, "low": 2.0, "later": 3}, "the record"))
    assert list(bare) == ["count", "pair", "low", "name", "listed", "any", "sure"]


def test_numbers_that_are_not_finite_are_written_as_null():
    one = Outer(count=1, pair=(math.nan, math.inf), inner=Inner(low=-math.inf), any=[math.nan])
    assert json.dumps(typed.written(one), allow_nan=False)
    assert typed.written(one)["pair"] == [None, None]
    assert typed.written(one)["low"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": None}, r"the record has NoneType as 'count'\. Write the record again\."),
        ({"count": 1.5}, "the record has float as 'count'"),
        ({"count": True}, "the record has bool as 'count'"),
        ({"low": "1"}, "the record has str as 'low'"),
        ({"pair": [1.0]}, "the record has 1 numbers as 'pair', not 2"),
        ({"pair": 1.0}, "the record has float as 'pair'"),
        ({"named": {"x": {}}}, r"^named, 'x', lacks the entry 'low'"),
        ({"named": []}, "the record has list as 'named'"),
        ({"listed": [{"low": 1.0}, {"name": "a"}]}, r"^listed\[1\], lacks the entry 'low'"),
        ({"listed": [3]}, r"the record has int as 'listed\[0\]'"),
        ({"sure": 1}, "the record has int as 'sure'"),
    ],
)
def test_what_is_missing_or_of_another_type_is_refused_by_name(change, message):
    with pytest.raises(RecordError, match=message):
        typed.read(Outer, WRITTEN | change, "the record")


def test_a_missing_entry_is_refused_where_it_stands():
    broken = compared()
    del broken["differences"][1]["errors"]["solver"], broken["differences"][1]["verdict"]
    with pytest.raises(RecordError, match=r"^differences\[1\], lacks the entry 'verdict'"):
        CompareRecord.of(broken)


def test_numbers_keep_what_an_estimate_says():
    made = Estimate(2.0, ErrorParts(0.1, 0.3, 0.25), df=9, matvecs=10, samples=10, method="hutchinson", flags=("weak",))
    number = Number.of_estimate(made, 0.9)
    low, high = made.interval(0.9)
    assert (number.interval, number.flags, number.errors.data) == ((low, high), ("weak",), 0.3)
    # Behind the sign stands the larger of the two.
    assert (number.std_error, number.error) == (0.1, 0.25)
    assert number.spread == (2.0, 2.0 - low, high - 2.0)
    assert typed.written(number) == json.loads(json.dumps(made.row(0.9)))
    assert not number.is_exact
    exact = Number.of_estimate(Estimate(2.0, ErrorParts(0.0, None, 0.0), df=9, method="exact"), 0.9)
    assert (exact.is_exact, exact.error) == (True, 0.0)
    unknown = Number.of(estimate() | {"value": None, "interval": [None, None], "std_error": None})
    assert (unknown.error, unknown.is_exact) == (None, False)
    assert all(map(math.isnan, unknown.spread))
    assert Number.of(estimate(2.0) | {"interval": [None, 3.0]}).spread == (2.0, 0.0, 1.0)


@pytest.mark.parametrize("row", [measured(), measured(layers={"w": estimate()}, arrays={"a": {"values": [1.0]}})])
def test_a_measured_row_is_read_whole(row):
    again = typed.written(typed.read(Measured, row, "results[0],"))
    assert {key: again[key] for key in row if key != "layers"} == {
        key: value | {"data_df": None} if key == "errors" else value for key, value in row.items() if key != "layers"
    }
    assert list(again.get("layers") or {}) == list(row.get("layers", {}))


def test_records_of_the_page_are_read():
    found = CompareRecord.of(compared())
    assert [one.checkpoint for one in found.results] == ["sgd", "sam"]
    assert typed.read(Difference, difference(), "differences[0],").gain == 5.1
    rows = [sharp(), sharp("fisher-rao", rho=None)]
    del rows[1]["rho"], rows[1]["m"], rows[1]["predicted"], rows[1]["ratio"]
    one, other = SharpnessRecord.of({"results": rows}).results
    assert (one.ball.rho, one.ball.predicted.value, other.ball) == (0.05, 0.00039, None)
    assert (one.title, SharpnessRecord.of({"results": [sharp(m=8)]}).results[0].title) == ("worst", "worst, m = 8")
    assert MeasureRecord.of({"results": [measured()]}).results[0].number.value == 0.779306

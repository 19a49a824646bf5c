"""How times grow: the exponent of a power law is its own, and every question is timed at every size."""

from __future__ import annotations

import pytest

from hessprobe.benchmarks import growth


def rows(exponent: float, factor: float = 1.0) -> list[dict]:
    return [
        growth.Grown("trace", "examples", n, 2e-3 * n**exponent * (factor if n == 1000 else 1.0)).row()
        for n in (100, 1000, 10_000)
    ]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_the_exponent_of_a_power_law_is_found_and_known_exactly(exponent):
    assert growth.exponent(rows(exponent)) == pytest.approx((exponent, 0.0), abs=1e-7)
    assert growth.exponent(rows(exponent, 1.3))[1] > 0.05
    assert f"| {exponent:.2f} ± 0.00 |" in growth.page(rows(exponent))


def test_every_question_is_timed_where_it_grows(monkeypatch):
    found: list[growth.Grown] = []
    sizes = {"examples": (16, 64), "parameters": (8, 16), "probes": (4, 8)}
    monkeypatch.setattr(growth, "_EXAMPLES", 32)
    monkeypatch.setattr(growth, "_WIDTH", 8)
    growth.measure(found.append, sizes=sizes)
    asked = {(one.question, one.grows) for one in found}
    questions = set(growth.QUESTIONS)
    assert asked == {(q, g) for q in questions for g in sizes} - {("eight steps of Lanczos", "probes")}
    assert {one.size for one in found if one.grows == "parameters"} == {n * n + n + 10 * n + 10 for n in (8, 16)}
    assert all(one.seconds > 0 for one in found)


def test_eight_steps_are_eight_products():
    H = growth.Hessian(growth.risk_of(64, 8))
    assert growth.QUESTIONS["eight steps of Lanczos"](H, 8, 0).lengths.tolist() == [8]

"""What products cost is told apart by kind, in units of a gradient that was timed by the same clock."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import hessprobe as hp
from hessprobe.cli import render
from hessprobe.estimate import Cost, Estimate
from hessprobe.hvp import FunctionalPart, GaussNewton, Hessian, batch_products, engines, verification
from hessprobe.hvp.engines import fresh_gradient
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.batches import EmpiricalBatch


def _risk(sizes: tuple[int, ...] = (12, 6, 6)) -> EmpiricalRisk:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    data = [(torch.randn(n, 4, dtype=torch.float64), torch.randint(3, (n,))) for n in sizes]
    return EmpiricalRisk(model, nn.functional.cross_entropy, data)


def _rows(operator, count: int) -> torch.Tensor:
    return torch.ones(count, operator.dim, dtype=operator.dtype)


@pytest.fixture
def gradient_takes(monkeypatch):
    """Let gradients take these seconds, one after the other: the one that is looked at, and those of the first batch.

    What is left of them is returned.
    """

    def set_to(looked_at: float, *seconds: float) -> list[float]:
        now, left = [0.0], list(seconds)

        def slow(work, times):
            def done(*arguments, **options):
                now[0] += times.pop(0) if times else 0.0
                return work(*arguments, **options)

            return done

        # The first one is that of the loss that is looked at.
        evaluated = EmpiricalBatch.__call__
        monkeypatch.setattr(EmpiricalBatch, "__call__", slow(evaluated, [looked_at]))
        monkeypatch.setattr(engines, "_gradient", slow(engines._gradient, left))
        monkeypatch.setattr(batch_products, "fresh_gradient", slow(fresh_gradient, left))
        for module in (engines, batch_products, verification):
            monkeypatch.setattr(module, "device_clock", lambda device: now[0])
        return left

    return set_to


def test_the_gradient_of_the_first_batch_is_timed_as_its_product_is_made_and_stands_for_all(gradient_takes):
    # The part that is looked at, and the batches: 1.0, 1.2 and 1.2 s for all data.
    risk = _risk((72, 48, 24))
    left = gradient_takes(9.0, 9.0, 0.5, 0.4, 0.2)
    H = Hessian(risk, engine="double_backward")
    assert H.gradient_seconds is None
    H.matvecs(_rows(H, 1))
    assert math.isclose(H.gradient_seconds, 0.5 / (72 / 144))
    assert left == []


@pytest.mark.parametrize(("looked_at", "made"), [(0.004, 0.001), (0.001, 0.004)])
def test_of_a_batch_that_is_looked_at_whole_the_least_time_counts(gradient_takes, looked_at, made):
    risk = _risk((3, 3))
    gradient_takes(looked_at, made, 9.0)
    H = Hessian(risk, engine="double_backward")
    H.matvecs(_rows(H, 1))
    assert math.isclose(H.gradient_seconds, 0.001 / (3 / 6))


@pytest.mark.parametrize(("seconds", "looks"), [((0.5, 9.0), 1), ((0.004, 0.001, 9.0), 2)])
def test_a_gradient_that_no_product_needs_is_timed_twice_where_it_is_short(gradient_takes, seconds, looks):
    risk = _risk((72, 48, 24))
    left = gradient_takes(9.0, *seconds)
    H = Hessian(risk, engine="forward_over_reverse")
    H.matvecs(_rows(H, 1))
    assert math.isclose(H.gradient_seconds, min(seconds[:looks]) / (72 / 144))
    assert len(left) == len(seconds) - looks


@pytest.mark.parametrize(("looked_at", "made", "later"), [(0.1, 9.0, 9.0), (9.0, 0.4, 9.0), (9.0, 9.0, 0.2)])
def test_a_busy_moment_is_undercut_by_a_part_or_by_a_later_batch(gradient_takes, looked_at, made, later):
    risk = _risk((64, 32))
    gradient_takes(looked_at, 9.0, made, later)
    H = Hessian(risk, engine="double_backward")
    H.matvecs(_rows(H, 1))
    assert math.isclose(H.gradient_seconds, 0.6)


def test_the_clock_is_looked_at_for_the_first_products_alone():
    batch, theta = next(iter(_risk().terms())), _risk().theta
    engine = engines.DoubleBackward()
    assert [engine(batch, theta).gradient_seconds > 0 for _ in range(10)] == [True] * 8 + [False] * 2


def test_products_count_by_kind_and_those_of_one_batch_as_a_share():
    H = Hessian(_risk(), engine="double_backward", surrogate_engine="double_backward")
    H.matvecs(_rows(H, 3))
    for _, term in H.terms():
        term.matvecs(_rows(H, 2))
    near = H.surrogate
    near.matvecs(_rows(H, 4))
    near.quadratic_forms(_rows(H, 5))
    near.sampled_trace(range(2, 8))
    assert H.made == pytest.approx({"hessian": 5, "surrogate": 4, "surrogate forms": 5, "output draws": 6})


def test_one_term_counts_as_its_share():
    H = Hessian(_risk(), engine="double_backward")
    for (_, term), rows in zip(H.terms(), (3, 0, 0), strict=True):
        if rows:
            term.matvecs(_rows(H, rows))
    assert H.made["hessian"] == pytest.approx(1.0)


def test_products_by_groups_of_examples_count_with_those_of_the_matrix():
    H = Hessian(_risk((24,)), engine="double_backward")
    finer = H.grouped(4)
    assert finer.n_terms == 4
    for _, term in finer.terms():
        term.matvecs(_rows(H, 2))
    assert H.made["hessian"] == pytest.approx(2.0)


def test_the_other_matrices_tell_theirs():
    G = GaussNewton(_risk(), engine="double_backward")
    G.matvecs(_rows(G, 2))
    assert G.made["GaussNewton"] == 2
    assert G.gradient_seconds > 0
    F = FunctionalPart(_risk(), engine="double_backward")
    F.matvecs(_rows(F, 2))
    assert (F.made["hessian"], F.made["GaussNewton"]) == (2, 2)
    assert F.gradient_seconds > 0


def test_the_least_time_of_each_kind_is_kept(monkeypatch):
    now = [0.0]

    def clock(device):
        now[0] += next(ticks)
        return now[0]

    for module in ("pool", "batch_products", "gauss_newton"):
        monkeypatch.setattr(f"hessprobe.hvp.{module}.device_clock", clock)
    # The time of a gradient is another test's: it looks at the clock as well.
    monkeypatch.setattr(batch_products.BatchProducts, "_gradient_time", lambda self, batch, theta: 1.0)
    G = GaussNewton(_risk(), engine="double_backward")
    assert set(G.seconds) <= {"gradient"}
    # Two looks at the clock a pass, at the first term alone: 6 s for 3 vectors, then 5 s; 1 s for one of three terms.
    ticks = iter([0.0, 6.0])
    G.matvecs(_rows(G, 3))
    ticks = iter([0.0, 5.0])
    G.matvecs(_rows(G, 1))
    assert G.seconds["GaussNewton"] == 2.0
    ticks = iter([0.0, 1.0])
    for _, term in G.terms():
        term.quadratic_forms(_rows(G, 2))
    assert G.seconds["forms"] == 1.5
    ticks = iter([0.0, 8.0])
    G.sampled_trace(range(4))
    assert G.seconds["output draws"] == 2.0


def test_a_hessian_names_the_times_of_its_surrogate():
    H = Hessian(_risk(), engine="double_backward", surrogate_engine="double_backward")
    assert H.seconds == {}
    H.matvecs(_rows(H, 1))
    H.surrogate.matvecs(_rows(H, 1))
    H.surrogate.sampled_trace(range(2))
    assert set(H.seconds) == {"gradient", "hessian", "surrogate", "output draws"}
    assert H.seconds["gradient"] == H.gradient_seconds


def test_a_cost_is_in_gradients_where_one_was_timed():
    assert Estimate(1.0, seconds=3.0).cost == Cost(3.0, None, {})
    timed = Estimate(1.0, seconds=3.0, gradient_seconds=0.5, made={"hessian": 4.0})
    assert timed.cost == Cost(3.0, 6.0, {"hessian": 4.0})
    assert timed.row()["cost"] == {"gradients": 6.0, "made": {"hessian": 4.0}}
    assert timed.scaled(-2.0).cost == timed.cost


def test_a_measure_tells_what_it_made_and_not_what_another_had_made():
    found = hp.measure(["frob", "trace"], _risk(), n_probes=8, engine="double_backward", data_error=False)
    first, second = found["frob"].cost, found["trace"].cost
    assert first.made["hessian"] == pytest.approx(found["frob"].matvecs)
    assert first.gradients == pytest.approx(first.seconds / found["frob"].gradient_seconds)
    assert second.gradients > 0
    assert sum(second.made.values()) > 0


def test_the_line_below_the_table_rounds_to_what_is_known():
    counts = {"trace": 183.6, "frob": 2.345}
    rows = [{"measure": name, "cost": {"gradients": count}} for name, count in counts.items()] + [{"measure": "x"}]
    assert list(render.costs(rows)) == ["cost in gradients of the loss: trace 184, frob 2.3"]
    assert list(render.costs([{"measure": "x", "cost": {"gradients": None}}])) == []

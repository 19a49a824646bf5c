"""What a measurement will take: products, memory and the arithmetic of its time, against the measurement itself."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hessprobe as hp
from hessprobe.benchmarks import rehearsal
from hessprobe.benchmarks.rehearsal import SAMPLED, SEARCHED, FirstBatch, rehearse
from hessprobe.errors import MemoryBudgetError
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.measures import MeasureSettings, measure_all
from hessprobe.measures.context import make_operator


def network(batches: int = 4, *, ragged: bool = False) -> hp.EmpiricalRisk:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 5))
    source = torch.Generator().manual_seed(1)
    sizes = [64] * batches
    if ragged:
        sizes[-1] = 16
    data = [(torch.randn(n, 12, generator=source), torch.randint(5, (n,), generator=source)) for n in sizes]
    return hp.EmpiricalRisk(model, F.cross_entropy, data)


def test_the_first_batch_is_a_risk_of_its_own():
    risk = network(ragged=True)
    part = FirstBatch(risk)
    alone = hp.EmpiricalRisk(risk.module, F.cross_entropy, risk._data[:1])
    v = torch.randn(1, risk.dim, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(hp.Hessian(part).matvecs(v), hp.Hessian(alone).matvecs(v))
    assert part.share == pytest.approx(64 / 208)


@pytest.mark.parametrize("batches", [4, 20])
def test_products_of_a_fixed_plan_are_foreseen(batches: int):
    risk, settings = network(batches), MeasureSettings(n_probes=8)
    foreseen = rehearse(["trace"], risk, settings).measures[0]
    real = next(iter(measure_all(["trace"], risk, settings))).estimate
    assert foreseen.fixed
    # What a pass over the outputs counts depends on the number of batches.
    assert foreseen.products == pytest.approx(real.matvecs, rel=0.03)
    assert foreseen.low == foreseen.seconds == foreseen.high


@pytest.mark.parametrize("batches", [4, 20])
@pytest.mark.parametrize("name", ["lambda-max", "frob", "trace"])
def test_products_that_depend_on_the_spectrum_are_within_the_range(name: str, batches: int):
    risk, settings = network(batches), MeasureSettings(rtol=0.05)
    foreseen = rehearse([name], risk, settings).measures[0]
    real = next(iter(measure_all([name], risk, settings))).estimate
    low, high = SAMPLED if name == "trace" else SEARCHED
    assert not foreseen.fixed
    assert low * foreseen.products <= real.matvecs <= high * foreseen.products
    assert foreseen.low < foreseen.seconds < foreseen.high


def test_what_is_kept_is_that_of_all_batches():
    risk, settings = network(), MeasureSettings(n_probes=8, data_error=False)
    forecast = rehearse(["trace"], risk, settings)
    operator = make_operator(risk, settings, 60)
    list(measure_all(["trace"], risk, settings, operator=operator))
    budget = operator._source.budget
    assert forecast.kept == pytest.approx(budget.total - budget.room, rel=0.01)
    assert forecast.kept > 0


@pytest.mark.parametrize(("n_probes", "factors"), [(8, (1.0, 1.0)), (None, SAMPLED)])
def test_the_time_is_that_of_the_products_over_all_data_and_of_the_rest_once(n_probes, factors):
    estimate = Estimate(
        value=1.0, errors=ErrorParts(), matvecs=10.0, method="hutchinson", made={"hessian": 10.0, "forms": 4.0}
    )
    operator = SimpleNamespace(seconds={"hessian": 0.5, "forms": 0.25, "gradient": 9.0})
    found = rehearsal._foreseen("trace", estimate, MeasureSettings(n_probes=n_probes), operator, spent=8.0, more=3.0)
    assert found.seconds == 8.0 + 6.0 * 3
    assert (found.low, found.high) == pytest.approx(tuple(f * (8.0 + 6.0 * 3) for f in factors))
    # Products in blocks take less than by themselves: never more than all there was.
    found = rehearsal._foreseen("trace", estimate, MeasureSettings(n_probes=n_probes), operator, spent=4.0, more=3.0)
    assert found.seconds == 4.0 + 4.0 * 3


def test_nothing_of_a_rehearsal_changes_the_risk():
    risk = network()
    loss, state = risk.loss(), torch.get_rng_state()
    rehearse(["lambda-max", "trace"], risk, MeasureSettings(rtol=0.2))
    assert torch.equal(risk.loss(), loss)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_fits():
    forecast = replace(rehearse(["lambda-max"], network(), MeasureSettings(rtol=0.2)), peak=5 * 10**9, limit=None)
    assert replace(forecast, available=6 * 10**9).advice == "it fits the 6.0 GB free here"
    assert replace(forecast, available=10**9).advice == "more than the 1.0 GB free here: --memory 800M cuts it to fit"
    limited = replace(forecast, limit=2 * 10**9)
    assert limited.advice == "more than the 2.0 GB of --memory: give --memory 5000M, or a smaller --batch-size"
    assert "does not tell" in replace(forecast, peak=None).advice


def test_a_limit_that_holds_nothing_is_refused_as_in_the_measurement():
    with pytest.raises(MemoryBudgetError, match="must be at least"):
        rehearse(["lambda-max"], network(), MeasureSettings(memory=10**6))


def test_a_rank_is_foreseen_its_own_batches_of_a_pass(monkeypatch: pytest.MonkeyPatch):
    risk, further = network(8), {}
    real = rehearsal._foreseen

    def foreseen(name, *rest):
        further[name] = rest[-1]
        return real(name, *rest)

    monkeypatch.setattr(rehearsal, "_foreseen", foreseen)
    settings = MeasureSettings(n_probes=4)
    alone = rehearse(["lambda-max", "trace"], risk, settings)
    assert alone.ranks == 1
    assert further == {"lambda-max": pytest.approx(7), "trace": pytest.approx(7)}
    monkeypatch.setattr(rehearsal, "current", lambda risk: SimpleNamespace(count=3))
    monkeypatch.setattr(rehearsal, "on_this_machine", lambda: 3)
    shared = rehearse(["lambda-max", "trace"], risk, settings)
    # Three of eight batches, the rehearsed one among them; of a trace every batch is cut.
    assert further == {"lambda-max": pytest.approx(2), "trace": pytest.approx(7)}
    assert shared.ranks == 3
    assert shared.kept / 3 == alone.kept / 8
    assert shared.available < alone.available / 2

"""The first product of a Hessian pays for itself alone: no imports, no recordings, no races."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from hessprobe.errors import UnsupportedError
from hessprobe.hvp import Hessian, batch_products, engines, known, verification
from hessprobe.hvp.auto import Choice, no_recorder
from hessprobe.hvp.engines import DoubleBackward, pulled_back
from hessprobe.hvp.linearized import Linearized
from hessprobe.hvp.pool import Chunked
from hessprobe.objective import EmpiricalRisk
from hessprobe.vectors import all_finite, vectors_within

_FIRST = """
import sys, torch, hessprobe as hp
data = [(torch.randn(8, 3), torch.randn(8, 2))]
H = hp.Hessian(hp.EmpiricalRisk(torch.nn.Linear(3, 2), torch.nn.MSELoss(), data), engine="double_backward")
H @ torch.ones(8)
print([name for name in ("sympy", "torch._dynamo") if name in sys.modules])
"""


def _risk(batches: int = 4, examples: int = 64, seed: int = 0, dtype: torch.dtype = torch.float64) -> EmpiricalRisk:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    data = [(torch.randn(examples, 6, dtype=dtype), torch.randint(3, (examples,))) for _ in range(batches)]
    return EmpiricalRisk(model, nn.functional.cross_entropy, data)


def test_a_first_product_imports_no_compiler_and_no_algebra():
    done = subprocess.run([sys.executable, "-c", _FIRST], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_product_pulled_back_is_that_of_autograd_bit_for_bit():
    x = torch.randn(7, dtype=torch.float32, requires_grad=True)
    gradient = (x**3).cumsum(0)
    v = torch.randn(7)
    assert torch.equal(pulled_back(gradient, x, v), torch.autograd.grad(gradient, x, v, retain_graph=True)[0])


def test_an_ample_budget_measures_one_slice(monkeypatch):
    seen: list[int] = []
    known = DoubleBackward.__call__

    def watched(self, loss, theta):
        seen.append(loss.examples)
        return known(self, loss, theta)

    monkeypatch.setattr(DoubleBackward, "__call__", watched)
    risk = _risk(batches=1)
    v = torch.ones(1, risk.dim, dtype=torch.float64)
    H = Hessian(risk, engine="double_backward")
    H.matvecs(v)
    # An eighth to look at the loss on, but at least 16 examples: its size tells that of the others.
    assert seen == [16, 64]
    assert H.engine._line == (0.0, DoubleBackward()(next(iter(risk.terms())).slice(0, 16), risk.theta).nbytes / 16)
    # What is left may not hold a second part of that size, or is limited.
    for least, limit in ((H.engine._line[1] * 64 * 3.9, None), (1 << 40, 1 << 30)):
        del seen[:]
        with vectors_within(limit):
            other = Hessian(risk, engine="double_backward", memory=int(least))
            other.matvecs(v)
        assert 4 in seen
        assert torch.equal(other.matvecs(v), H.matvecs(v))


@pytest.mark.parametrize("examples", [20, 64, 200])
def test_a_loss_is_evaluated_once_for_all_that_is_looked_at(monkeypatch, examples):
    risk = _risk(batches=1, examples=examples)
    batch, seen = next(iter(risk.terms())), []
    known = type(batch).__call__

    def watched(self, theta):
        seen.append((self.examples, torch.is_grad_enabled()))
        return known(self, theta)

    monkeypatch.setattr(type(batch), "__call__", watched)
    Hessian(risk, engine="double_backward").matvecs(torch.ones(1, risk.dim, dtype=torch.float64))
    few = max(examples // 8, 16)
    # The gradient, four slopes at a step, the product of a part; how large products are is measured where the part is
    # more than a quarter.
    sizes = [] if 4 * few <= examples else [max(examples // 16, 1)]
    assert [n for n, grads in seen if grads] == [few, *sizes, few, examples]
    assert [n for n, grads in seen if not grads] == [few] * 4
    # Directions are half as long as a vector, and of no use any more.
    assert verification.signs.cache_info().currsize == 0


def _cut_off(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    entropy = nn.functional.cross_entropy(outputs, targets, ignore_index=-100)
    return entropy * (1 + outputs.detach().square().mean())


@pytest.mark.parametrize("ignored", [0, 40], ids=["all", "the first ones without targets"])
def test_a_loss_that_is_looked_at_on_a_part_of_the_batch_is_refused_as_ever(ignored):
    x, y = torch.randn(200, 6, generator=torch.Generator().manual_seed(1)).double(), torch.arange(200) % 3
    y[:ignored] = -100
    risk = EmpiricalRisk(_risk().module, _cut_off, [(x, y)], weighting="tokens")
    with pytest.raises(UnsupportedError, match="gradient of the loss is not its slope"):
        Hessian(risk).matvecs(torch.ones(1, risk.dim, dtype=torch.float64))


def test_entries_that_are_not_finite_are_found_and_sums_that_overflow_are_none():
    rows = torch.ones(3, 1000)
    assert all_finite(rows)
    assert all_finite(rows * torch.finfo(torch.float32).max)
    for bad in (float("nan"), float("inf"), -float("inf")):
        for place in ((0, 0), (1, 500), (2, 999)):
            wrong = rows.clone()
            wrong[place] = bad
            assert not all_finite(wrong)
    both = rows.clone()
    both[0, 0], both[0, 1] = float("inf"), -float("inf")
    assert not all_finite(both)


def test_the_memory_of_a_graph_is_read_once_a_shape(monkeypatch):
    read: list[int] = []
    reading = engines.graph_bytes

    def watched(*roots, ignore=()):
        read.append(reading(*roots, ignore=ignore))
        return read[-1]

    monkeypatch.setattr(engines, "graph_bytes", watched)
    engine, sizes = DoubleBackward(), [64, 64, 32, 64, 32]
    batches = [batch for n in sizes for batch in _risk(batches=1, examples=n).terms()]
    theta = _risk(batches=1).theta
    found = [engine(batch, theta).nbytes for batch in batches]
    assert len(read) == 2
    assert found[:3] == [found[0], found[0], found[4]]
    assert found == [known_bytes(batch, theta) for batch in batches]
    assert found[0] > found[2]


def known_bytes(batch, theta):
    return DoubleBackward()(batch, theta).nbytes


class Clock:
    """Seconds that pass where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self, device: torch.device) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    for module in ("pool", "batch_products"):
        monkeypatch.setattr(f"hessprobe.hvp.{module}.device_clock", made)
        monkeypatch.setattr(f"hessprobe.hvp.{module}.process_time", lambda: made.now)
    known.ENGINES_TAKEN.clear()
    known.RECORDINGS.clear()
    return made


@pytest.fixture
def race(monkeypatch):
    """Count the races; the recording wins each."""
    found: list[int] = []

    def chosen(engines, batch, theta, budget, terms, expected):
        found.append(expected)
        return Choice(Chunked(engines["linearized"](), budget), {"linearized": 1.0}, {})

    monkeypatch.setattr(batch_products, "choose", chosen)
    return found


def _slowed(monkeypatch, clock, seconds):
    """Let every product by double backward take so many seconds a batch."""
    call = DoubleBackward.__call__

    def slow(self, loss, theta):
        product = call(self, loss, theta)

        def apply(V):
            clock.now += seconds * len(V)
            return product.apply(V)

        return replace(product, apply=apply, add=None)

    monkeypatch.setattr(DoubleBackward, "__call__", slow)


def test_one_and_ten_products_are_made_without_a_race(clock, race, monkeypatch):
    _slowed(monkeypatch, clock, 0.01)
    H = Hessian(_risk())
    for _ in range(10):
        H.matvecs(torch.ones(1, H.dim, dtype=H.dtype))
    assert race == []
    assert H.engines[0] == "double_backward"
    assert "linearized: not tried: too few products so far" in H.engine_note


def test_engines_race_when_what_is_left_pays_for_it(clock, race, monkeypatch):
    # A fifth of the time of as many products again as have been made, 4 batches of 0.25 s each, against a race of 12
    # products of one batch and the recording: 1.6 and 3.2 s after 8 and 16 products, against 3.1 s.
    _slowed(monkeypatch, clock, 0.25)
    monkeypatch.setattr(batch_products, "recording_seconds", lambda nodes: 0.1)
    H = Hessian(_risk())
    V = torch.randn(1, H.dim, dtype=H.dtype, generator=torch.Generator().manual_seed(0))
    before = H.matvecs(V)
    for _ in range(15):
        H.matvecs(V)
    assert race == []
    assert H.engines[0] == "double_backward"
    after = H.matvecs(V)
    assert len(race) == 1
    assert H.engines[0] == "linearized"
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)
    for _ in range(40):
        H.matvecs(V)
    assert len(race) == 1


def test_nothing_is_recorded_where_memory_is_limited_to_less_than_that_takes(clock, race, monkeypatch):
    _slowed(monkeypatch, clock, 0.25)
    monkeypatch.setattr(batch_products, "recording_seconds", lambda nodes: 0.1)
    H = Hessian(_risk())
    V = torch.randn(1, H.dim, dtype=H.dtype, generator=torch.Generator().manual_seed(0))
    with vectors_within(1 << 20):
        assert not no_recorder(1 << 40, H.risk.theta)
        monkeypatch.setattr(H._source.budget, "total", (1 << 28) + 8 * H.risk.theta.nbytes - 1)
        for _ in range(40):
            H.matvecs(V)
    assert race == []
    assert H.engines[0] == "double_backward"
    assert not no_recorder(1, H.risk.theta)


def test_a_long_job_that_was_announced_races_after_its_first_product(clock, race, monkeypatch):
    _slowed(monkeypatch, clock, 0.01)
    H = Hessian(_risk(), expected_matvecs=3000)
    H.matvecs(torch.ones(1, H.dim, dtype=H.dtype))
    assert race == []
    H.matvecs(torch.ones(1, H.dim, dtype=H.dtype))
    assert race == [3000]


def test_waiting_for_a_core_is_no_reason_to_record(clock, race, monkeypatch):
    _slowed(monkeypatch, clock, 0.25)
    monkeypatch.setattr(batch_products, "recording_seconds", lambda nodes: 0.1)
    # Of a second a product nine tenths go to other programs.
    for module in ("pool", "batch_products"):
        monkeypatch.setattr(f"hessprobe.hvp.{module}.process_time", lambda: clock.now / 10)
    for by_terms in (False, True):
        H = Hessian(_risk())
        V = torch.ones(1, H.dim, dtype=H.dtype)
        for _ in range(20):
            [term.matvecs(V) for _, term in H.terms()] if by_terms else H.matvecs(V)
        assert H._source.pool.watch.seconds == pytest.approx(0.1)
    assert race == []


def test_products_by_terms_count_too(clock, race, monkeypatch):
    _slowed(monkeypatch, clock, 0.01)
    H = Hessian(_risk(), expected_matvecs=3000)
    V = torch.ones(2, H.dim, dtype=H.dtype)
    for _ in range(2):
        [term.matvecs(V) for _, term in H.terms()]
    assert race == [3000]
    assert H.engines[0] == "linearized"


def test_a_second_risk_of_the_kind_takes_what_was_the_fastest_and_records_nothing(clock, race, monkeypatch):
    _slowed(monkeypatch, clock, 0.01)
    H = Hessian(_risk(), expected_matvecs=3000)
    for _ in range(2):
        H.matvecs(torch.ones(1, H.dim, dtype=H.dtype))
    recorded: list[int] = []
    monkeypatch.setattr("hessprobe.hvp.linearized.trace_linear", lambda *a: recorded.append(1))
    other = Hessian(_risk(seed=1))
    V = torch.randn(2, other.dim, dtype=other.dtype, generator=torch.Generator().manual_seed(0))
    expected = Hessian(_risk(seed=1), engine="double_backward").matvecs(V)
    # The first products are made at once all the same, and nothing races.
    for made in range(0, 12, 2):
        torch.testing.assert_close(other.matvecs(V), expected)
        assert other.engines[0] == ("double_backward" if made < 8 else "linearized")
    assert recorded == []
    assert len(race) == 1
    assert "double_backward: slower: linearized was the fastest for a risk of this kind" in other.engine_note


def test_a_second_risk_does_not_race_for_what_had_won_at_once(clock, monkeypatch):
    races: list[int] = []

    def chosen(engines, batch, theta, budget, terms, expected):
        races.append(1)
        return Choice(Chunked(engines["double_backward"](), budget), {"double_backward": 1.0}, {})

    monkeypatch.setattr(batch_products, "choose", chosen)
    _slowed(monkeypatch, clock, 0.01)
    for seed in range(2):
        H = Hessian(_risk(seed=seed), expected_matvecs=3000)
        for _ in range(10):
            H.matvecs(torch.ones(1, H.dim, dtype=H.dtype))
        assert H.engines[0] == "double_backward"
    assert len(races) == 1


@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-8), (torch.float32, 3e-3)])
def test_an_engine_that_disagrees_is_not_taken(clock, race, monkeypatch, dtype, off):
    _slowed(monkeypatch, clock, 0.01)

    def wrong(self, loss, theta):
        product = DoubleBackward()(loss, theta)
        return replace(product, apply=lambda V: (1 + off) * product.apply(V), add=None)

    monkeypatch.setattr(Linearized, "__call__", wrong)
    H = Hessian(_risk(dtype=dtype), expected_matvecs=3000)
    V = torch.ones(1, H.dim, dtype=H.dtype)
    first = H.matvecs(V)
    assert torch.equal(H.matvecs(V), first)
    assert len(race) == 1
    assert H.engines[0] == "double_backward"
    assert "linearized: its product differs from that of double_backward" in H.engine_note


@pytest.mark.parametrize("kind", [UnsupportedError, RuntimeError])
def test_what_was_the_fastest_for_another_risk_may_not_hold_for_this_one(clock, race, monkeypatch, kind):
    # A recording is not taken where its gradient and the own one differ, which at a minimum is rounding.
    _slowed(monkeypatch, clock, 0.01)
    first = Hessian(_risk(), expected_matvecs=3000)
    V = torch.ones(1, first.dim, dtype=first.dtype)
    for _ in range(3):
        first.matvecs(V)
    assert first.engines[0] == "linearized"

    def refused(self, loss, theta):
        raise kind("The recorded gradient differs from the model's own.")

    monkeypatch.setattr(Linearized, "__call__", refused)
    second = Hessian(_risk(seed=1), expected_matvecs=3000)
    found = [second.matvecs(V) for _ in range(3)]
    torch.testing.assert_close(found[0], Hessian(_risk(seed=1), engine="double_backward").matvecs(V), rtol=0, atol=0)
    assert all(torch.equal(each, found[0]) for each in found)
    assert second.engines[0] == "double_backward"
    assert "linearized: The recorded gradient differs" in second.engine_note


def test_a_switch_gives_its_memory_back(clock, race, monkeypatch):
    _slowed(monkeypatch, clock, 0.01)
    H = Hessian(_risk(), expected_matvecs=3000, memory=1 << 24)
    for _ in range(3):
        H.matvecs(torch.ones(1, H.dim, dtype=H.dtype))
    pool = H._source.pool
    assert pool.kept == 4
    assert pool.budget.total - pool.budget.room == sum(product.nbytes for _, product in pool)


def test_what_cannot_begin_falls_to_a_race(monkeypatch):
    known.ENGINES_TAKEN.clear()

    def broken(self, loss, theta):
        raise RuntimeError("no second derivative here")

    monkeypatch.setattr(DoubleBackward, "__call__", broken)
    risk = _risk()
    H = Hessian(risk, memory=1 << 24)
    monkeypatch.undo()
    expected = Hessian(risk, engine="forward_over_reverse")
    monkeypatch.setattr(DoubleBackward, "__call__", broken)
    V = torch.ones(1, H.dim, dtype=H.dtype)
    torch.testing.assert_close(H.matvecs(V), expected.matvecs(V))
    assert H.engines[0] != "double_backward"
    assert "no second derivative here" in H.engine_note
    # Another risk of the kind does not begin with what does not work.
    monkeypatch.setattr(batch_products, "choose", lambda *a: pytest.fail("a second race"))
    again = Hessian(_risk(seed=1), memory=1 << 24)
    again.matvecs(V)
    assert again.engines[0] == H.engines[0]


def test_a_batch_that_cannot_be_cut_is_looked_at_whole(clock, race, monkeypatch):
    _slowed(monkeypatch, clock, 0.01)

    def uncut(self, start, stop):
        raise RuntimeError("Sparse CSR tensors do not have strides")

    monkeypatch.setattr("hessprobe.objective.batches.EmpiricalBatch.slice", uncut)
    H = Hessian(_risk(), expected_matvecs=3000)
    for _ in range(2):
        H.matvecs(torch.ones(1, H.dim, dtype=H.dtype))
    assert race == [3000]

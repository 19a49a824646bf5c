"""The choice of an engine: fastest exact one that works; reasons for the rest."""

from __future__ import annotations

from collections.abc import Callable

import nets
import pytest
import torch
from torch import Tensor, nn

from hessprobe.errors import MemoryBudgetError, NonFiniteError, UnsupportedError
from hessprobe.hvp import Hessian
from hessprobe.hvp.auto import Choice, choose
from hessprobe.hvp.engines import LossFunction, Product
from hessprobe.objective import EmpiricalRisk


class Clock:
    """Time that passes when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """An engine whose products take given seconds on a fake clock, or that fails."""

    def __init__(
        self,
        name: str,
        seconds: float | Callable[[int], float] = 1.0,
        *,
        build: float = 0.0,
        setup: float = 0.0,
        error: Exception | None = None,
        nbytes: int = 0,
    ) -> None:
        self.name, self.is_exact, self.keeps, self.setup_seconds = name, name != "inexact", True, setup
        self._seconds, self._build, self._error, self._nbytes = seconds, build, error, nbytes
        self.clock, self.calls, self.kept = Clock(), 0, 0

    def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
        if self._error is not None:
            raise self._error
        self.clock.now += self._build

        def apply(V: Tensor) -> Tensor:
            self.calls += 1
            self.clock.now += self._seconds(self.calls) if callable(self._seconds) else self._seconds
            return V

        return Product(apply, self._nbytes)


def _choose(*engines: Fake, budget: int = 100, terms: int = 8, expected: int = 60) -> Choice:
    theta, clock = torch.zeros(3), Clock()
    for engine in engines:
        engine.clock = clock
    made = {e.name: (lambda e=e: e) for e in engines}
    return choose(made, lambda t: t.sum(), theta, budget, terms, expected, clock)


def test_the_fastest_is_taken_and_the_rest_explained() -> None:
    choice = _choose(Fake("slow", 1.4), Fake("fast", 1.0), Fake("broken", error=UnsupportedError("no rule")))
    assert choice.engine.name == "fast"
    assert choice.seconds == {"slow": pytest.approx(1.4), "fast": pytest.approx(1.0)}
    assert choice.reasons == {"slow": "slower: 1.4 x the time of fast", "broken": "unsupported: no rule"}
    assert "broken" in str(choice)


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("stalled", ["good", "poor"])
def test_a_machine_that_stalls_does_not_change_the_choice(stalled: str, parity: int) -> None:
    """Every other product of one engine takes three times as long; and at the start all take twice as long."""

    def seconds(name: str, plain: float) -> Callable[[int], float]:
        return lambda call: plain * (3 if name == stalled and call % 2 == parity else 1) * (2 if call < 3 else 1)

    choice = _choose(Fake("poor", seconds("poor", 1.3)), Fake("good", seconds("good", 1.0)))
    assert choice.engine.name == "good"
    assert choice.reasons["poor"].startswith("slower" if stalled == "poor" else "slower: 1.3 x the time of good")


@pytest.mark.parametrize(("lean", "taken"), [(1.0, "lean"), (1.08, "lean"), (1.15, "heavy")])
def test_within_a_tie_the_engine_with_fewer_operations_is_taken(lean: float, taken: str) -> None:
    choice = _choose(Fake("lean", lean), Fake("heavy", 1.0))
    assert choice.engine.name == taken
    if lean == 1.08:
        assert choice.reasons["heavy"] == "within 10 % of lean, which has fewer operations"


def test_timing_is_a_small_share_of_the_job() -> None:
    engines = Fake("a", 1.0), Fake("b", 1.2), Fake("hopeless", 5.0)
    _choose(*engines, terms=1, expected=60)
    # Warming up, and then three rounds for the two that are close; the third is seen twice.
    assert [engine.calls for engine in engines] == [4, 4, 3]
    engines = Fake("a", 1.0), Fake("b", 1.2)
    _choose(*engines, terms=1000, expected=60)
    assert [engine.calls for engine in engines] == [13, 13]


def test_blocks_count_where_blocks_will_come() -> None:
    class Batched(Fake):
        def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
            def apply(V: Tensor) -> Tensor:
                self.clock.now += 1.5 if len(V) == 1 else 2.0
                return V

            return Product(apply)

    class OneByOne(Fake):
        def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
            def apply(V: Tensor) -> Tensor:
                self.clock.now += 1.0 * len(V)
                return V

            return Product(apply)

    assert _choose(Batched("batched"), OneByOne("single"), expected=60).engine.name == "single"
    assert _choose(Batched("batched"), OneByOne("single"), expected=600).engine.name == "batched"


def test_a_tiny_job_is_not_worth_recording() -> None:
    recorder = Fake("recorder", 0.001, setup=2.0)
    choice = _choose(recorder, Fake("plain", 0.004), terms=8, expected=60)
    assert choice.reasons["recorder"].startswith("not worth recording: plain does the whole job in 1.9 s")
    assert recorder.calls == 0
    assert _choose(recorder, Fake("plain", 0.005), terms=8, expected=60).engine.name == "recorder"
    # Where nothing else works it is tried all the same.
    broken = Fake("plain", error=RuntimeError("no rule"))
    assert _choose(recorder, broken, terms=1, expected=1).engine.name == "recorder"


def test_an_inexact_engine_is_the_last_resort() -> None:
    assert _choose(Fake("exact", 2.0), Fake("inexact")).engine.name == "exact"
    broken = Fake("exact", error=RuntimeError("derivative for x is not implemented"))
    assert _choose(broken, Fake("inexact")).engine.name == "inexact"


def test_an_engine_that_does_not_fit_is_charged_for_building_anew() -> None:
    def big() -> Fake:
        return Fake("big", 1.0, build=2.0, nbytes=50)

    assert _choose(big(), Fake("lean", 1.5), terms=2).engine.name == "big"
    # Two of eight are kept: 1 + 2 * 6/8 > 1.5.
    assert _choose(big(), Fake("lean", 1.5), terms=8).engine.name == "lean"


def test_an_engine_whose_product_of_one_batch_is_too_large_is_out() -> None:
    large = Fake("large", 0.1, nbytes=500)
    choice = _choose(large, Fake("lean"))
    assert choice.engine.name == "lean"
    assert choice.reasons["large"].startswith("too large: A curvature product of one batch keeps 500 B")
    # An inexact engine does not take the place of an exact one that lacks memory only.
    with pytest.raises(MemoryBudgetError, match=r"No engine fits the memory. .*keeps 500 B, more than the budget"):
        _choose(large, Fake("inexact"))


def test_candidates_that_do_not_fit_side_by_side_are_not_held() -> None:
    held = []

    class Tracked(Fake):
        def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
            held.append(1)
            return super().__call__(loss, theta)

    _choose(Tracked("a", nbytes=60), Tracked("b", nbytes=30), terms=1)
    assert len(held) == 2
    _choose(Tracked("a", nbytes=60), Tracked("b", nbytes=60), terms=1)
    # Built once each to begin with, and anew in each of the two rounds that follow.
    assert len(held) == 2 + 6


def test_no_engine_left() -> None:
    with pytest.raises(UnsupportedError, match=r"No engine can differentiate this model twice.*why"):
        _choose(Fake("a", error=RuntimeError("why")))


def test_errors_that_no_engine_can_mend_surface() -> None:
    with pytest.raises(NonFiniteError):
        _choose(Fake("a", error=NonFiniteError("nan")), Fake("b"))
    with pytest.raises(ZeroDivisionError):
        _choose(Fake("a", error=ZeroDivisionError()))


class OnlyOnce(torch.autograd.Function):
    """A square whose backward cannot be differentiated again, nor batched, nor pushed forward."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)  # type: ignore[attr-defined]
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return 2 * x * grad


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * OnlyOnce.apply(self.weight)


def test_a_model_without_second_derivatives_falls_to_finite_differences() -> None:
    data = [(torch.ones(3, 2).double(), torch.zeros(3, 2).double())]
    H = Hessian(EmpiricalRisk(Square(), nn.MSELoss(), data))
    # L = (w1^4 + w2^4) / 2, H = diag(6 w^2).
    matrix = H.to_dense()
    torch.testing.assert_close(matrix, torch.diag(torch.tensor([6.0, 24.0]).double()), rtol=1e-7, atol=1e-6)
    assert H.engine.name == "finite_difference"
    assert not H.is_exact
    assert "double_backward" in H.engine_note


def test_an_unknown_engine_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'linearized'"):
        Hessian(nets.mlp().risk(), engine="linearised")

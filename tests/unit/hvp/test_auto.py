"""The choice of an engine: fastest exact one that works; reasons for the rest."""

from __future__ import annotations

import time

import nets
import pytest
import torch
from torch import Tensor, nn

from hessprobe.errors import NonFiniteError, UnsupportedError
from hessprobe.hvp import Hessian
from hessprobe.hvp.auto import choose
from hessprobe.hvp.engine import LossFunction, Product
from hessprobe.objective import EmpiricalRisk


class Fake:
    """An engine that takes a given time, or fails."""

    def __init__(self, name: str, seconds: float = 0.0, error: Exception | None = None, nbytes: int = 0) -> None:
        self.name, self.is_exact = name, name != "inexact"
        self._seconds, self._error, self._nbytes = seconds, error, nbytes
        self.built = 0

    def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
        if self._error is not None:
            raise self._error
        self.built += 1

        def apply(V: Tensor) -> Tensor:
            time.sleep(self._seconds)
            return V

        return Product(apply, self._nbytes)


def _choose(*engines: Fake, budget: int = 100) -> object:
    theta = torch.zeros(3)
    return choose({e.name: (lambda e=e: e) for e in engines}, lambda t: t.sum(), theta, budget)


def test_the_fastest_is_taken_and_the_rest_explained() -> None:
    choice = _choose(Fake("slow", 0.02), Fake("fast", 0.001), Fake("broken", error=UnsupportedError("no rule")))
    assert choice.engine.name == "fast"
    assert "slower" in choice.reasons["slow"]
    assert choice.reasons["broken"] == "unsupported: no rule"
    assert "broken" in str(choice)


def test_an_inexact_engine_is_the_last_resort() -> None:
    assert _choose(Fake("exact", 0.01), Fake("inexact")).engine.name == "exact"
    broken = Fake("exact", error=RuntimeError("derivative for x is not implemented"))
    assert _choose(broken, Fake("inexact")).engine.name == "inexact"


def test_an_engine_that_does_not_fit_is_charged_for_building_anew() -> None:
    class SlowToBuild(Fake):
        def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
            time.sleep(0.02)
            return super().__call__(loss, theta)

    assert _choose(SlowToBuild("big", 0.001, nbytes=50), Fake("lean", 0.005)).engine.name == "big"
    assert _choose(SlowToBuild("big", 0.001, nbytes=500), Fake("lean", 0.005)).engine.name == "lean"


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
    matrix = H.dense()
    torch.testing.assert_close(matrix, torch.diag(torch.tensor([6.0, 24.0]).double()), rtol=1e-7, atol=1e-6)
    assert H.engine.name == "finite_difference"
    assert not H.is_exact
    assert "double_backward" in H.engine_note


def test_an_unknown_engine_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'linearized'"):
        Hessian(nets.mlp().risk(), engine="linearised")

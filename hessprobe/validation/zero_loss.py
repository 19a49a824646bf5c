"""A toy whose minima form a curve, and the losses that the sharpness measures make of it, without sampling.

L(theta, y) = (1/2) sum_i f_i(theta) y_i^2, f = (e^theta, 3 e^{-2 theta}, 1 + 4 theta^2): the minima are y = 0, where
the Hessian is diag(0, f), so that every measure is a function of theta with a minimum of its own.

With u ~ N(0, I), w = y/rho and f' = f(theta + rho u_0), t = (L(x + rho u) - L(x))/rho^2 is, given u_0, a sum of
independent f'_i (w_i + u_i)^2/2 less sum_i f_i w_i^2/2: its moments are known, and one integral over u_0 remains.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from hessprobe.universal import quadrature
from hessprobe.validation.dynamics import Function

_ORDER = 40


def curvatures(theta: Tensor) -> Tensor:
    """Return f (..., 3) at ``theta`` (...)."""
    return torch.stack([torch.exp(theta), 3 * torch.exp(-2 * theta), 1 + 4 * theta**2], -1)


def toy(x: Tensor) -> Tensor:
    """Return L (...) at ``x`` (..., 4)."""
    return (curvatures(x[..., 0]) * x[..., 1:] ** 2).sum(-1) / 2


def trace_change(x: Tensor, rho: float) -> Tensor:
    """Return E t."""
    later, w = _later(x, rho)
    return ((later * (w**2 + 1)).sum(-1) / 2 * _weights()).sum() - _here(x, rho)


def variance_change(x: Tensor, rho: float) -> Tensor:
    """Return Var t."""
    later, w = _later(x, rho)
    means = (later * (w**2 + 1)).sum(-1) / 2
    mean = (means * _weights()).sum()
    inner = (later**2 * (w**2 + 0.5)).sum(-1)
    return ((inner + (means - mean) ** 2) * _weights()).sum()


def decay_change(x: Tensor, rho: float, rate: float = 1.0) -> Tensor:
    """Return log E e^{-rate t}."""
    later, w = _later(x, rho)
    shifted = 1 + rate * later
    logs = -torch.log(shifted).sum(-1) / 2 - (rate * later * w**2 / shifted).sum(-1) / 2
    return torch.logsumexp(logs + torch.log(_weights()), 0) + rate * _here(x, rho)


def _later(x: Tensor, rho: float) -> tuple[Tensor, Tensor]:
    nodes = quadrature.rule("gaussian", 1, _ORDER)[0][:, 0]
    return curvatures(x[0] + rho * nodes), x[1:] / rho


def _weights() -> Tensor:
    return quadrature.rule("gaussian", 1, _ORDER)[1]


def _here(x: Tensor, rho: float) -> Tensor:
    return toy(x) / rho**2


# The measures on the minima, as functions of theta.
SHARPNESS: dict[str, Function] = {
    "trace": lambda theta: curvatures(theta).sum(-1) / 2,
    "frob": lambda theta: (curvatures(theta) ** 2).sum(-1) / 2,
    "det": lambda theta: torch.prod(1 + curvatures(theta), -1),
    "normal det": lambda theta: torch.prod(curvatures(theta), -1),
}
# R_rho at any point.
CHANGES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "trace": trace_change,
    "frob": variance_change,
    "det": lambda x, rho: torch.exp(-2 * decay_change(x, rho)),
}
# R_rho = S + rho^2 R_2 + O(rho^4) on the minima: Gaussian moments of the Taylor series of f about theta.
SECOND: dict[str, Function] = {
    "trace": lambda theta: _bend(lambda s: curvatures(s).sum() / 4)(theta),
    "frob": lambda theta: (
        _bend(lambda s: (curvatures(s) ** 2).sum() / 4)(theta) + _rate(lambda s: curvatures(s).sum() / 2)(theta) ** 2
    ),
    "det": lambda theta: (
        -_bend(lambda s: torch.prod(1 + curvatures(s), -1) ** -0.5)(theta)
        * torch.prod(1 + curvatures(theta), -1) ** 1.5
    ),
}


def _rate(function: Function) -> Function:
    slope: Function = torch.func.grad(function)
    return slope


def _bend(function: Function) -> Function:
    return _rate(_rate(function))


def stationary(function: Function, low: float = -0.9, high: float = 0.9) -> float:
    """Return the root in (low, high) of the derivative of a function of one number."""
    slope = _rate(function)
    return float(optimize.brentq(lambda s: float(slope(torch.tensor(s, dtype=torch.float64))), low, high, xtol=1e-14))


def minimum(function: Function, start: tuple[float, ...]) -> Tensor:
    """Return the minimiser (d,) of a smooth function near ``start``: BFGS, then Newton steps to the last digits."""
    slope, bend = torch.func.grad(function), torch.func.hessian(function)

    def value(x: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, object]:
        at = torch.from_numpy(x)
        return float(function(at)), slope(at).numpy()

    found = torch.from_numpy(optimize.minimize(value, np.array(start), jac=True, method="BFGS").x)
    for _ in range(4):
        found = found - torch.linalg.solve(bend(found), slope(found))
    if not float(torch.linalg.eigvalsh(bend(found))[0]) > 0 or not math.isfinite(float(function(found))):
        raise ArithmeticError(f"no minimum near {start}: the search ended at {found.tolist()}.")
    return found

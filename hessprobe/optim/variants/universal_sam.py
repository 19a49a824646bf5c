"""SAM for any (phi, psi, mu)-sharpness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware, TensorList
from hessprobe.optim.schedules import Schedule
from hessprobe.optim.variants.perturbed_losses import Law, checked_law, radius, require_losses, sample


def identity(t: Tensor) -> Tensor:
    """Return t; with it for phi and psi the measure is half the trace."""
    return t


class UniversalSAM(SharpnessAware):
    """SAM for the sharpness S = phi(E psi(u'Hu/2)), u ~ mu, for any phi, psi and mu.

    With u_1, ..., u_n ~ mu, t_i = (L(w + rho u_i) - L(w))/rho^2, g_i = grad L(w + rho u_i) and s = mean_i psi(t_i) in
    R^m:

        base step with g + lam sum_k d_k phi(s) mean_i psi_k'(t_i) (g_i - g),    the gradient of L + lam rho^2 phi(s).

    The derivatives of phi and psi are taken by autograd, on numbers. The mean of phi(s) is not phi of the mean: finite
    n is biased unless phi is affine. Where g is not zero, t_i also holds <g, u_i>/rho, which ``antithetic`` removes. n
    + 1 gradients a step, 2n + 1 with ``antithetic``, and m vectors of memory.

    The closure must return the loss unscaled.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius > 0 or a schedule. Where groups differ, that of the first perturbed group is the rho of the formula,
            and mu is wider or narrower in the others.
        phi: maps s, of the shape that psi returns, to a number; torch operations only. The identity by default.
        psi: maps t, a float64 number, to a number or a tensor (m,); torch operations only. The identity by default,
            which makes this Trace-SAM.
        mu: ``"gaussian"`` N(0, width^2 I), ``"rademacher"``, ``"sphere"`` (of radius sqrt(d), so that E u u' = I),
            ``"unit-sphere"``, ``"cube"`` [-width, width]^d, or a function (parameters, generator) -> one tensor a
            parameter. One draw over all parameters together.
        width: see ``mu``; > 0.
        lam: weight >= 0; 1 is the paper's objective.
        n: directions, >= 1.
        antithetic: t_i and g_i are means over +u_i and -u_i.
        **engine: see ``SharpnessAware``.

    References:
        Tahmasebi et al., A Universal Class of Sharpness-Aware Minimization Algorithms, ICML 2024.
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.1,
        *,
        phi: Callable[[Tensor], Tensor] = identity,
        psi: Callable[[Tensor], Tensor] = identity,
        mu: Law = "gaussian",
        width: float = 1.0,
        lam: float = 1.0,
        n: int = 1,
        antithetic: bool = True,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        if not (callable(phi) and callable(psi)):
            raise TypeError(f"phi and psi must be functions of a tensor; got {phi!r} and {psi!r}.")
        self.phi, self.psi, self.mu = phi, psi, checked_law(mu)
        self.width = checks.real("width", width, low=0, low_open=True)
        self.lam, self.n, self.antithetic = checks.real("lam", lam, low=0), checks.positive_int("n", n), antithetic

    def rule(self) -> Rule:
        """See the class."""
        require_losses(self)
        square = radius(self) ** 2
        here = yield At()
        moments: Tensor | None = None
        slopes: list[TensorList] = []
        for _ in range(self.n):
            one = yield from sample(self, here, self.mu, self.width, self.antithetic)
            value, derivatives = _derivatives(self.psi, one.change / square)
            moments = value / self.n if moments is None else moments + value / self.n
            slopes = slopes or [here.gradient.zeros() for _ in derivatives]
            for total, derivative in zip(slopes, derivatives, strict=True):
                total.add_(one.slope, alpha=derivative / self.n)
        sharpness, weights = _gradient(self.phi, moments)
        self.last.extra["sharpness"] = sharpness
        direction = here.gradient.clone()
        for total, weight in zip(slopes, weights, strict=True):
            direction.add_(total, alpha=self.lam * weight)
        return direction


def _derivatives(psi: Callable[[Tensor], Tensor], t: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return psi(t) and d psi_k / dt, k = 1, ..., m."""
    with torch.enable_grad():
        point = t.detach().requires_grad_()
        value = psi(point)
        if not isinstance(value, Tensor) or value.ndim > 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"psi must return a number or a tensor (m,), made with torch operations; got {got}.")
        return value.detach(), [_slope(entry, point) for entry in value.reshape(-1)]


def _gradient(phi: Callable[[Tensor], Tensor], moments: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """Return phi(s) and d phi / d s_k."""
    with torch.enable_grad():
        point = torch.as_tensor(moments).detach().requires_grad_()
        value = phi(point)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"phi must return one number, made with torch operations; got {got}.")
        return value.detach().reshape(()), list(_slope(value.reshape(()), point).reshape(-1))


def _slope(value: Tensor, point: Tensor) -> Tensor:
    if not value.requires_grad:  # a constant
        return torch.zeros_like(point)
    (slope,) = torch.autograd.grad(value, point, retain_graph=True, allow_unused=True)
    return torch.zeros_like(point) if slope is None else slope

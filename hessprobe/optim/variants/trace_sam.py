"""Trace-SAM."""

from __future__ import annotations

from typing import Unpack

import torch

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware
from hessprobe.optim.schedules import Schedule
from hessprobe.optim.variants.perturbed_losses import CONVENTIONS, first_radius, sample


class TraceSAM(SharpnessAware):
    """Trace-SAM: lowers the mean loss at random displacements, hence the trace of the Hessian.

    With u_1, ..., u_n ~ mu and g_i = grad L(w + rho u_i):

        base step with g + lam mean_i (g_i - g),        the gradient of L + lam mean_i (L(w + rho u_i) - L(w)),

    for mu = N(0, I) about L + lam rho^2 Tr(H)/2. n + 1 gradients a step, 2n + 1 with ``antithetic``.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule; the displacement is about rho sqrt(d) long for mu = N(0, I)
            (``last.extra["displacement_norms"]``), and rho long on the unit sphere.
            The authors' values are rho = 0.01 and ``antithetic=False``, at which the trace ends about as with the base.
        lam: weight >= 0 of the regularizer; lam = 1 with n = 1 is the base optimizer with noise on the weights.
        n: directions, >= 1.
        antithetic: evaluate at w - rho u_i as well, which removes the odd orders in rho from the estimate.
        convention: ``"code"``: mu = N(0, I), as the authors' code draws. ``"paper"``: mu uniform on the unit sphere of
            all parameters together, which that code's sampler is named after (it computes the norm and does not
            divide by it); the regularizer is then lam rho^2 Tr(H)/(2d), so lam must grow with d.
        **engine: see ``SharpnessAware``.

    References:
        Tahmasebi et al., A Universal Class of Sharpness-Aware Minimization Algorithms, ICML 2024. The formula is that
        of the public code; the table of the paper was not available.
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.1,
        *,
        lam: float = 1.0,
        n: int = 1,
        antithetic: bool = True,
        convention: str = "code",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.lam, self.n = checks.real("lam", lam, low=0), checks.positive_int("n", n)
        self.antithetic = antithetic
        self.convention = checks.one_of("convention", convention, CONVENTIONS)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        law, total = "gaussian" if self.convention == "code" else "unit-sphere", here.gradient.zeros()
        change = torch.zeros_like(here.loss, dtype=torch.float64)
        for _ in range(self.n):
            one = yield from sample(self, here, law, 1.0, self.antithetic)
            total.add_(one.slope)
            change = change + one.change / self.n
        rho = first_radius(self)
        if rho > 0:
            self.last.extra["sharpness"] = change / rho**2
        return here.gradient + total.mul_(self.lam / self.n)

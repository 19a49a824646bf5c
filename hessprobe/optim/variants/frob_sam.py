"""Frob-SAM."""

from __future__ import annotations

from typing import Unpack

import torch

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware
from hessprobe.optim.schedules import Schedule
from hessprobe.optim.variants.perturbed_losses import CONVENTIONS, radius, require_losses, sample


class FrobSAM(SharpnessAware):
    """Frob-SAM: lowers the variance of the loss over random displacements, hence the Frobenius norm of the Hessian.

    With u_1, ..., u_n ~ N(0, I), n >= 2, L_i = L(w + rho u_i), g_i = grad L(w + rho u_i), and Cov the sample covariance
    with divisor n - 1:

        base step with g + (lam/rho^2) Cov(L_i, g_i),        the gradient of L + (lam/(2 rho^2)) Var(L_i).

    The mean of the regularizer is lam (norm(g)^2/2 + rho^2 norm(H)_F^2/4 + rho^2 <g, grad Tr H>/2) + O(rho^4): away
    from minima it is a penalty on the gradient, unless norm(H)_F > sqrt(2) norm(g)/rho. With ``antithetic``, L_i and
    g_i are means over +u_i and -u_i, and norm(g)^2 drops out. n + 1 gradients a step, 2n + 1 with ``antithetic``, and
    two more vectors of memory. The covariance is computed about running means, losses in float64; losses of half
    precision remain too coarse for small rho.

    The covariance of n losses and gradients is noisy, with heavy tails: without ``limit`` a weight that lowers
    norm(H)_F ends the digits network at chance within an epoch, and the authors' values (rho = lam = 0.005, n = 2) do
    not lower it. ``reports/optimizer_defaults.md`` shows what the defaults do.

    The closure must return the loss unscaled.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius > 0 or a schedule; the displacement is about rho sqrt(d) long
            (``last.extra["displacement_norms"]``). Where groups differ, that of the first perturbed group is the rho
            of the formula, and mu is wider or narrower in the others.
        lam: weight >= 0.
        n: directions, >= 2.
        antithetic: see above.
        limit: bound > 0 on the norm of the regularizer's gradient, in units of norm(g); None for the formula as it is.
        convention: ``"code"``: as above. ``"paper"``: lam is the weight of rho^2 R with R the variance of
            (L_i - L)/rho^2 with divisor n, so lam_paper/lam_code = n/(2(n - 1)) for one direction: equal at n = 2.
        **engine: see ``SharpnessAware``.

    References:
        Tahmasebi et al., A Universal Class of Sharpness-Aware Minimization Algorithms, ICML 2024. The formula is that
        of the public code; the expansion and ``antithetic`` are derived here.
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        lam: float = 0.1,
        n: int = 4,
        antithetic: bool = False,
        limit: float | None = 1.0,
        convention: str = "code",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.lam = checks.real("lam", lam, low=0)
        self.n = checks.positive_int("n", n, minimum=2, hint="A variance needs two directions.")
        self.antithetic = antithetic
        self.limit = None if limit is None else checks.real("limit", limit, low=0, low_open=True)
        self.convention = checks.one_of("convention", convention, CONVENTIONS)

    def rule(self) -> Rule:
        """See the class."""
        require_losses(self)
        rho = radius(self)
        here = yield At()
        mean_slope, covariance = here.gradient.zeros(), here.gradient.zeros()
        mean = variance = torch.zeros((), dtype=torch.float64, device=here.loss.device)
        for i in range(1, self.n + 1):
            one = yield from sample(self, here, "gaussian", 1.0, self.antithetic)
            # Welford: no difference of two large sums.
            off, mean_slope = one.change - mean, mean_slope.add_(one.slope - mean_slope, alpha=1 / i)
            covariance.add_(one.slope - mean_slope, alpha=off)
            mean = mean + off / i
            variance = variance + off * (one.change - mean)
        divisor = self.n - 1 if self.convention == "code" else self.n / 2
        self.last.extra["sharpness"] = variance / (2 * divisor * rho**4)
        covariance.mul_(self.lam / (rho**2 * divisor))
        if self.limit is not None:
            longest = self.limit * here.gradient.norm()
            covariance.mul_((longest / covariance.norm().clamp_min(self.eps)).clamp_max(1.0))
        return here.gradient + covariance

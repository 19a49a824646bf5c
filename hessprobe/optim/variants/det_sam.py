"""Det-SAM."""

from __future__ import annotations

from typing import Unpack

import torch

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware, TensorList
from hessprobe.optim.schedules import Schedule
from hessprobe.optim.variants.perturbed_losses import CONVENTIONS, radius, require_losses, sample


class DetSAM(SharpnessAware):
    """Det-SAM: lowers a determinant of the Hessian, through exponential averages of perturbed losses.

    With u_1, ..., u_n ~ mu, t_i = (L(w + rho u_i) - L(w))/rho^2, s = mean_i exp(-c t_i) and weights
    p_i = exp(-c t_i)/sum_j exp(-c t_j):

        base step with g + 2 c lam s^-2 sum_i p_i (g_i - g),    the gradient of L + lam rho^2 / s^2;
        log=True:      g + 2 c lam sum_i p_i (g_i - g),         the gradient of L - 2 lam rho^2 log s.

    For mu = N(0, sigma^2 I), c = 1 and many directions, 1/s^2 is det(I + sigma^2 H) and -2 log s its logarithm (where g
    = 0, or with ``antithetic``). A finite n is biased upwards (H = diag(.5, 1, 2), determinant 9: mean 10.3 at n = 16,
    9.07 at n = 256), the logarithm much less. At n = 1 no determinant is involved: 1/s^2 = exp(2 c t_1). On a cube of
    half width h, 1/s^2 is about 1 + c h^2 Tr(H)/3, a trace, unless h sqrt(lambda_min) is 3 or more. n + 1 gradients a
    step, 2n + 1 with ``antithetic``.

    The closure must return the loss unscaled.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius > 0 or a schedule. Where groups differ, that of the first perturbed group is the rho of the formula.
        lam: weight >= 0.
        n: directions, >= 1; 64 or more for a determinant. The authors take 1, ``width=0.01``, ``log=False`` and
            ``antithetic=False``, at which neither determinant nor trace end much lower than with the base.
        antithetic: t_i and g_i are means over +u_i and -u_i.
        mu: ``"cube"``: uniform in [-width, width]^d; ``"gaussian"``: N(0, width^2 I).
        width: half width of the cube or standard deviation, > 0.
        log: the log-determinant in place of the determinant.
        convention: ``"code"``: c = 1/2, as in the authors' code; ``"paper"``: c = 1, which makes the formula that of
            exp(-u'Hu/2), whose integral is the determinant. Both leave out the constant (4 pi)^d or (2 pi)^d.
        **engine: see ``SharpnessAware``.

    References:
        Tahmasebi et al., A Universal Class of Sharpness-Aware Minimization Algorithms, ICML 2024. The rule at
        ``convention="code"``, ``log=False`` on a cube is that of the public code; the rest is derived here.
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 1.0,
        *,
        lam: float = 1.0,
        n: int = 2,
        antithetic: bool = True,
        mu: str = "cube",
        width: float = 0.1,
        log: bool = True,
        convention: str = "code",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.lam, self.n = checks.real("lam", lam, low=0), checks.positive_int("n", n)
        self.antithetic, self.log = antithetic, log
        self.mu = checks.one_of("mu", mu, ("cube", "gaussian"))
        self.width = checks.real("width", width, low=0, low_open=True)
        self.convention = checks.one_of("convention", convention, CONVENTIONS)

    def rule(self) -> Rule:
        """See the class."""
        require_losses(self)
        rate = (0.5 if self.convention == "code" else 1.0) / radius(self) ** 2
        here = yield At()
        one = yield from sample(self, here, self.mu, self.width, self.antithetic)
        top, total, mean = -rate * one.change, torch.ones_like(one.change), one.slope
        for _ in range(self.n - 1):
            one = yield from sample(self, here, self.mu, self.width, self.antithetic)
            exponent = -rate * one.change
            top, total, share = _merge(top, total, exponent)
            mean = mean.add_(one.slope - mean, alpha=share)
        log_s = top + torch.log(total / self.n)
        self.last.extra["sharpness"] = -2 * log_s if self.log else torch.exp(-2 * log_s)
        return self._direction(here.gradient, mean, log_s)

    def _direction(self, gradient: TensorList, mean: TensorList, log_s: torch.Tensor) -> TensorList:
        factor = self.lam * (1.0 if self.convention == "code" else 2.0)
        return gradient + mean * (factor if self.log else factor * torch.exp(-2 * log_s))


def _merge(
    top: torch.Tensor, total: torch.Tensor, exponent: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (m, sum_j exp(x_j - m), share of the new term in it): nothing overflows, whatever the exponents."""
    highest = torch.maximum(top, exponent)
    new = torch.exp(exponent - highest)
    total = total * torch.exp(top - highest) + new
    return highest, total, new / total

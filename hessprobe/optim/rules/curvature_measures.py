"""Frob-SAM, Trace-SAM, Det-SAM: members of the (phi, psi, mu) family that lower one measure of the Hessian."""

from __future__ import annotations

from typing import Unpack

import torch

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware, TensorList
from hessprobe.optim.rules.universal import CONVENTIONS, first_radius, radius, require_losses, sample
from hessprobe.optim.schedules import Schedule


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

    Examples:
        >>> import torch
        >>> from hessprobe.optim import FrobSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = FrobSAM(torch.optim.SGD([w], lr=0.1), rho=0.05, lam=0.1)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6839, -1.9002]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        lam: float = 0.05,
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

    Examples:
        >>> import torch
        >>> from hessprobe.optim import TraceSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = TraceSAM(torch.optim.SGD([w], lr=0.1), rho=0.1, lam=0.1)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.7000, -1.9000]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
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

    Examples:
        >>> import torch
        >>> from hessprobe.optim import DetSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = DetSAM(torch.optim.SGD([w], lr=0.1), n=2)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.7000, -1.9000]])
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

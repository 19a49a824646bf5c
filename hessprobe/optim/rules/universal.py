"""SAM for any (phi, psi, mu)-sharpness: losses and gradients at random displacements, and plain weight noise."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, Unpack

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import about
from hessprobe.optim.engine import At, EngineOptions, Evaluation, Rule, SharpnessAware, TensorList
from hessprobe.optim.engine.randomness import normal_like, uniform_like
from hessprobe.optim.engine.ranks import mean_over_ranks
from hessprobe.optim.schedules import Schedule

LAWS = ("gaussian", "rademacher", "sphere", "unit-sphere", "cube")
CONVENTIONS = ("code", "paper")

Law: TypeAlias = str | Callable[[Sequence[Tensor], torch.Generator], Sequence[Tensor]]


@dataclass(frozen=True)
class Sample:
    """What one direction u gave.

    Attributes:
        change: L(w + rho u) - L(w), or (L(w + rho u) + L(w - rho u))/2 - L(w); float64, 0-dimensional.
        slope: the same combination of gradients; the caller may overwrite it.
    """

    change: Tensor
    slope: TensorList


def sample(
    optimizer: SharpnessAware, here: Evaluation, mu: Law, width: float, antithetic: bool
) -> Generator[At, Evaluation, Sample]:
    """Draw one direction from ``mu`` over all parameters together, and evaluate there.

    ``last.extra["displacement_norms"]`` gets norm(rho u), which is about rho sqrt(d) for a law with unit variance.
    """
    direction = draw(optimizer, here.gradient, mu, width)
    displacement = optimizer.displacement(direction)
    lengths = direction.tensor_norms()
    factors = torch.tensor([float(f) for f in displacement.factors], dtype=lengths.dtype, device=lengths.device)
    optimizer.last.extra.setdefault("displacement_norms", []).append((lengths * factors).norm())
    there = yield At(displacement)
    loss, slope = there.loss.double(), there.gradient
    if antithetic:
        opposite = yield At(optimizer.displacement(direction, -1.0))
        loss, slope = (loss + opposite.loss.double()) / 2, (slope + opposite.gradient).mul_(0.5)
    return Sample(mean_over_ranks(optimizer, loss - here.loss.double()), slope - here.gradient)


def draw(optimizer: SharpnessAware, like: TensorList, mu: Law, width: float) -> TensorList:
    """Return u ~ mu with the shapes of ``like``, a function of (seed, step, number of the draw) alone."""
    source = optimizer.generator()
    if callable(mu):
        return _own(mu, like, source)
    if mu == "cube":
        return uniform_like(like, source, width)
    u = normal_like(like, source)
    if mu == "rademacher":
        return u.map(lambda t: torch.where(t < 0, -1.0, 1.0).to(t))
    if mu == "gaussian":
        return u if width == 1.0 else u.mul_(width)
    moved = optimizer.perturbed(u)
    length = sum(t.numel() for t in moved.tensors) ** 0.5 if mu == "sphere" else 1.0
    return u * (length / moved.norm().clamp_min(optimizer.eps))


def first_radius(optimizer: SharpnessAware) -> float:
    """Return the rho of the first perturbed group, 0 where there is none."""
    groups = zip(optimizer.group_values("rho"), optimizer.group_values("perturb"), strict=True)
    return next((float(rho) for rho, perturb in groups if perturb), 0.0)


def radius(optimizer: SharpnessAware) -> float:
    """Return the rho of the formula: that of the first perturbed group; other groups' radii scale mu.

    Raises:
        ValueError: it is 0, where the ratio of loss and rho^2 has no value.
    """
    rho = first_radius(optimizer)
    if not rho > 0:
        raise ValueError(
            about(
                "rho",
                f"must be > 0 for {type(optimizer).__name__}, which divides by its square; got {rho:g} in step "
                f"{optimizer.t}. Use a small rho; lam=0 leaves the sharpness out.",
            )
        )
    return rho


def require_losses(optimizer: SharpnessAware) -> None:
    """Refuse a step by hand, in which no losses are known."""
    if optimizer._manual is not None:
        optimizer.abandon()
        raise RuntimeError(f"{type(optimizer).__name__} needs losses; use opt.step(closure).")


def checked_law(mu: Law) -> Law:
    """Return ``mu``, a function or one of ``LAWS``."""
    return mu if callable(mu) else checks.one_of("mu", mu, LAWS)


def _own(mu: Callable[..., Sequence[Tensor]], like: TensorList, source: torch.Generator) -> TensorList:
    tensors = list(mu(like.tensors, source))
    shapes, wanted = [tuple(t.shape) for t in tensors], [tuple(t.shape) for t in like.tensors]
    if shapes != wanted:
        raise ValueError(f"mu must return one tensor a parameter, of its shape: {wanted}; got {shapes}.")
    return TensorList([t.to(p) for t, p in zip(tensors, like.tensors, strict=True)], like.foreach)


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

    Examples:
        >>> import torch
        >>> from hessprobe.optim import UniversalSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = UniversalSAM(torch.optim.SGD([w], lr=0.1), rho=0.1, lam=0.1, n=4, psi=lambda t: t**2)
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


class RWP(SharpnessAware):
    """Random weight perturbation (m-RWP): the gradient under noise sized to each filter, mixed with the plain one.

        n ~ N(0, (rho norm(w_f))^2) for the entries of filter f: slice w[i] of a tensor of two or more dimensions,
        the whole of a tensor of one
        base step with (1 - alpha) grad L_{B_1}(w) + alpha grad L_{B_2}(w + n)

    Two gradients a step, neither of which waits for the other. In the paper B_1 and B_2 are two batches on two
    devices: with ``shards=2`` give ``step`` two closures, B_1's and B_2's (``step`` then returns the loss of B_1).
    With ``shards=1``, the default, both gradients see the step's own batch. alpha = 1 is plain RWP. The noise depends
    on seed and step number only.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: noise >= 0 relative to the filter's norm (gamma in the authors' code), or a schedule.
        alpha: in [0, 1].
        shards: 1 or 2.
        **engine: see ``SharpnessAware``.

    References:
        Li et al., Revisiting Random Weight Perturbation for Efficiently Improving Generalization, TMLR 2024.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import RWP
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = RWP(torch.optim.SGD([w], lr=0.1), rho=0.2, alpha=0.5)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6502, -1.9019]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.01,
        *,
        alpha: float = 0.5,
        shards: int = 1,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.alpha = checks.real("alpha", alpha, low=0, high=1)
        if shards not in (1, 2):
            raise ValueError(f"shards must be 1 or 2; got {shards!r}. Give 2 for two batches a step.")
        if shards == 2 and self.accumulate != "global":
            raise ValueError(about("accumulate", f"must be 'global' with shards=2; got {self.accumulate!r}."))
        self.shards = shards

    def rule(self) -> Rule:
        """See the class."""
        first, second = (None, None) if self.shards == 1 else (0, 1)
        noise = normal_like(self.weights.original(), self.generator())
        sized = noise.map(lambda n, w: n * _filter_norms(w), self.weights.original())
        here = yield At(shard=first)
        there = yield At(self.displacement(sized), shard=second)

        def mixed(plain: Tensor, noisy: Tensor) -> Tensor:
            return torch.lerp(plain, noisy, self.alpha)

        return here.gradient.map(mixed, there.gradient)


def _filter_norms(weight: Tensor) -> Tensor:
    rows = weight.reshape(1, -1) if weight.ndim < 2 else weight.flatten(1)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms.view(-1, *[1] * (weight.ndim - 1)) if weight.ndim else norms.view(())

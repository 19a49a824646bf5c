"""Rules that follow the leading eigenvector of the Hessian: Eigen-SAM, X-SAM, and how they find it."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from dataclasses import dataclass
from typing import Unpack

import torch

from hessprobe import checks
from hessprobe.errors import NumericalWarning
from hessprobe.krylov import Eigenpairs, eigsh
from hessprobe.operators import Congruence, LinearOperator
from hessprobe.optim.engine import At, Curvature, EngineOptions, Evaluation, Rule, SharpnessAware, TensorList
from hessprobe.optim.engine.ranks import MeanOverRanks
from hessprobe.optim.engine.tensors import part_of, whole
from hessprobe.optim.schedules import Schedule

NAME = "eigenvector"

# The old vector may belong to another eigenvalue by now: none is this share larger.
_WIDTH = 0.05


@dataclass(frozen=True)
class EigenSettings:
    """When and how well the eigenvector is found.

    Attributes:
        every: steps from one search to the next; the first step searches.
        which: ``"largest"`` eigenvalue, or largest ``"magnitude"``.
        tol: relative residual, see ``hessprobe.krylov.eigsh``.
        max_matvecs: most Hessian-vector products a search.
    """

    every: int
    which: str
    tol: float
    max_matvecs: int

    def __post_init__(self) -> None:
        checks.positive_int("every", self.every)
        checks.one_of("which", self.which, ("largest", "magnitude"))
        checks.real("tol", self.tol, low=0, high=1, low_open=True, high_open=True)
        checks.positive_int("max_matvecs", self.max_matvecs, minimum=2)


def leading_eigenvector(
    optimizer: SharpnessAware, settings: EigenSettings
) -> Generator[Curvature, Evaluation, TensorList]:
    """Return the eigenvector of length 1: a new one every ``settings.every`` steps, else the one remembered.

    It is that of the block of the perturbed groups, zero in the others. ``last.extra`` gets ``eigenvalue`` and
    ``eigen_residual`` in the steps that search; a vector that has not converged is used nevertheless.
    """
    known = optimizer.recall(NAME)
    if known is not None and (optimizer.t - 1) % settings.every:
        return known
    parameters = optimizer.parameters()
    start = None if known is None else torch.cat([whole(t).reshape(-1) for t in known.tensors])[None]
    if start is not None and not bool(start.any()):
        start = None

    def use(operator: LinearOperator) -> Eigenpairs:
        with warnings.catch_warnings():
            # Said in last.extra: a warning every few steps would drown the log of a run.
            warnings.simplefilter("ignore", NumericalWarning)
            return eigsh(
                _perturbed_block(optimizer, operator),
                1,
                settings.which,
                tol=settings.tol,
                rtol=_WIDTH,
                max_matvecs=settings.max_matvecs,
                seed=optimizer.seed,
                start=start,
                data_error=False,
            )

    pairs: Eigenpairs = (yield Curvature(use)).result
    pieces = torch.split(pairs.vectors[0], [p.numel() for p in parameters])
    everywhere = TensorList([part_of(v.reshape(p.shape).clone(), p) for v, p in zip(pieces, parameters, strict=True)])
    keep = optimizer.group_values("perturb")
    # The solver's random start leaves a trace in coordinates that the block's zeros do not reach.
    vector = everywhere if all(keep) else everywhere.where(keep).unit()
    optimizer.remember(NAME, vector)
    optimizer.last.extra.update(eigenvalue=pairs.values[0], eigen_residual=pairs.residuals[0])
    return vector


def _perturbed_block(optimizer: SharpnessAware, operator: LinearOperator) -> LinearOperator:
    keep = optimizer.group_values("perturb")
    shared = MeanOverRanks(optimizer, operator)
    if all(keep):
        return shared
    sides = [torch.full((p.numel(),), float(k)) for p, k in zip(optimizer.parameters(), keep, strict=True)]
    return Congruence(shared, torch.cat(sides).to(device=operator.device, dtype=operator.dtype))


class EigenSAM(SharpnessAware):
    """Eigen-SAM: tilts the ascent towards the top eigenvector of the Hessian.

    With v the eigenvector of the largest eigenvalue and h = u(g):

        e = rho (h + alpha sign(<g, v>) (v - <h, v> h)),        base step with grad L(w + e)

    which is not made length rho again: norm(e) <= rho sqrt(1 + alpha^2). The sign makes e independent of that of v.
    alpha = 0 is SAM. Two gradients a step, and the products of an eigensolver run every ``every`` steps
    (``last.products``), warm-started; one vector of memory.

    The Hessian is that of ``loss=``, which ``step`` must be given; the authors evaluate it in evaluation mode, with
    five power steps. Their code has no v before step ``every``, and displaces by rho g, not normalized, until then;
    here the first step finds v.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        alpha: tilt >= 0.
        every: steps >= 1 from one eigensolver run to the next.
        which: ``"largest"`` eigenvalue, or largest ``"magnitude"``, to which power steps converge.
        tol: relative residual of the eigenvector, in (0, 1).
        max_matvecs: most products a run, >= 2.
        **engine: see ``SharpnessAware``.

    References:
        Luo et al., Explicit Eigenvalue Regularization Improves Sharpness-Aware Minimization, NeurIPS 2024.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import EigenSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = EigenSAM(torch.optim.SGD([w], lr=0.1), rho=0.2, alpha=0.2)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure, loss=lambda: (a * w**2).sum() / 2)
        >>> w.data
        tensor([[ 0.6419, -1.8974]])
    """

    needs_loss = True
    vectors = (NAME,)

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.1,
        *,
        alpha: float = 0.2,
        every: int = 100,
        which: str = "largest",
        tol: float = 0.01,
        max_matvecs: int = 100,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.alpha = checks.real("alpha", alpha, low=0)
        self.eigen = EigenSettings(every, which, tol, max_matvecs)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        v = yield from leading_eigenvector(self, self.eigen)
        moved = self.perturbed(here.gradient)
        inverse = 1.0 / (moved.norm() + self.eps)
        along = moved.dot(self.perturbed(v))
        tilt = self.alpha * torch.sign(along)
        # h (1 - tilt <h, v>) + tilt v, for h = inverse g.
        direction = (here.gradient * (inverse * (1.0 - tilt * along * inverse))).add_(v, alpha=tilt)
        there = yield At(self.displacement(direction))
        return there.gradient


class EigenCorrectedSAM(SharpnessAware):
    """X-SAM: takes from SAM's gradient a part of its component along the top eigenvector of the Hessian.

    With v the eigenvector of the largest eigenvalue and g_a = grad L(w + rho u(g)):

        base step with u(g_a) - alpha <g_a, v> v,        or g_a - alpha <g_a, v> v with ``normalize=False``

    Certain: the component along v is reduced, with alpha 0.2 in the authors' own example (the description of their
    code says so; the code itself was not at hand). The formula is that of a secondary account of the paper, which
    writes alpha sign(<g_a, v>) <g_a, v> v: as v and -v are the same eigenvector, that is defined only once v points to
    a side, taken here such that <g_a, v> >= 0, where it is the formula above. As written, a direction of length one
    meets a component in the units of the gradient; ``normalize=False`` keeps both in those units, and alpha = 0 is SAM
    then. Not XSAM, see that class.

    Two gradients a step, and the products of an eigensolver run every ``every`` steps (``last.products``),
    warm-started; one vector of memory. The Hessian is that of ``loss=``, which ``step`` must be given.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        alpha: strength in [0, 2].
        normalize: see above.
        every: steps >= 1 from one eigensolver run to the next.
        which: ``"largest"`` eigenvalue, or largest ``"magnitude"``.
        tol: relative residual of the eigenvector, in (0, 1).
        max_matvecs: most products a run, >= 2.
        **engine: see ``SharpnessAware``.

    References:
        Duan, Chen, Guan, X-SAM: Boosting Sharpness-Aware Minimization with Dominant-Eigenvector Gradient Correction,
        2026 (arXiv 2601.10251).

    Examples:
        >>> import torch
        >>> from hessprobe.optim import EigenCorrectedSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = EigenCorrectedSAM(torch.optim.SGD([w], lr=0.1), rho=0.2, alpha=0.5)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure, loss=lambda: (a * w**2).sum() / 2)
        >>> w.data
        tensor([[ 1.0824, -1.9722]])
    """

    needs_loss = True
    vectors = (NAME,)

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        alpha: float = 0.5,
        normalize: bool = True,
        every: int = 100,
        which: str = "largest",
        tol: float = 0.01,
        max_matvecs: int = 100,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.alpha = checks.real("alpha", alpha, low=0, high=2)
        self.normalize = normalize
        self.eigen = EigenSettings(every, which, tol, max_matvecs)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        v = yield from leading_eigenvector(self, self.eigen)
        there = yield At(self.ascent(here.gradient))
        along = there.gradient.dot(v)
        self.last.extra["along_eigenvector"] = along
        direction = there.gradient.unit(self.eps) if self.normalize else there.gradient.clone()
        return direction.add_(v, alpha=-self.alpha * along)

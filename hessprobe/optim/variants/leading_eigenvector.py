"""The leading eigenvector of the Hessian in training: found by the eigensolver, warm-started, kept between steps."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from dataclasses import dataclass

import torch

from hessprobe import checks
from hessprobe.errors import NumericalWarning
from hessprobe.krylov import Eigenpairs, eigsh
from hessprobe.operators import Congruence, LinearOperator
from hessprobe.optim.engine import Curvature, Evaluation, SharpnessAware, TensorList
from hessprobe.optim.engine.ranks import MeanOverRanks
from hessprobe.optim.engine.sharded import part_of, whole

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

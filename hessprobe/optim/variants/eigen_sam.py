"""Eigen-SAM."""

from __future__ import annotations

from typing import Unpack

import torch

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware
from hessprobe.optim.schedules import Schedule
from hessprobe.optim.variants.leading_eigenvector import NAME, EigenSettings, leading_eigenvector


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

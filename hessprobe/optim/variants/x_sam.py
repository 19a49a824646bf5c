"""X-SAM, the eigenvector-corrected one."""

from __future__ import annotations

from typing import Unpack

import torch

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware
from hessprobe.optim.schedules import Schedule
from hessprobe.optim.variants.leading_eigenvector import NAME, EigenSettings, leading_eigenvector


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

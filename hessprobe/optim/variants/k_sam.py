"""K-SAM."""

from __future__ import annotations

from typing import Unpack, cast

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware
from hessprobe.optim.schedules import Schedule
from hessprobe.optim.variants.esam import most_sensitive


class KSAM(SharpnessAware):
    """K-SAM: both gradients of SAM on the K examples of the batch with the largest loss.

        S = the K largest l_i(w),     e = rho u(grad L_S(w)),     base step with grad L_S(w + e)

    ``closure(subset)`` returns the losses of the examples in ``subset`` (an index tensor, or None for all) without
    calling backward. A step takes two gradients on K examples and a forward pass on all n: with K = n/2 a little more
    than one gradient. keep = 1 is SAM. The loss returned is that of the whole batch at w.

    Certain: both gradients on the K largest losses. The one K for both stages is how the abstract reads.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        keep: K/n in (0, 1]; K = floor(keep n), at least 1. With 1/2 the hardest examples of small
            batches of wrong labels can end the training at chance.
        **engine: see ``SharpnessAware``.

    References:
        Ni et al., K-SAM: Sharpness-Aware Minimization at the Speed of SGD, 2022.
    """

    closure_kind = "per-sample"

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        keep: float = 0.8,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.keep = checks.real("keep", keep, low=0, high=1, low_open=True)

    def rule(self) -> Rule:
        """See the class."""
        everything = yield At(loss_only=True)
        subset = None if self.keep == 1.0 else most_sensitive(cast(Tensor, everything.losses), self.keep)
        here = yield At(subset=subset)
        there = yield At(self.ascent(here.gradient), subset=subset)
        return there.gradient

"""LookSAM."""

from __future__ import annotations

from typing import Unpack

import torch

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware, TensorList
from hessprobe.optim.schedules import Schedule


class LookSAM(SharpnessAware):
    """LookSAM: a SAM step every k-th time, and in between the part of it that changes slowly, used again.

    At steps 1, 1 + k, 1 + 2k, ...:

        g_s = grad L(w + rho u(g)),    g_v = g_s - (<g_s, g>/norm(g)^2) g,    base step with g_s

    and at the others, with the last g_v and norms over all parameters together:

        base step with g + alpha (norm(g)/norm(g_v)) g_v

    1 + 1/k gradients a step: the second one is really left out in between. One vector of memory. k = 1 is SAM. Where
    g_s is parallel to g up to rounding, g_v counts as zero: scaled up it would be nothing but noise.

    In between, the part used again is alpha times as long as the gradient of the batch, noise included, and points the
    same way for k - 1 steps. The paper's alpha = 0.7 wants a lower learning rate than SAM, or no momentum: the digits
    network (20 % wrong labels, batches of 32, momentum 0.9) ends at chance or at 73 % with lr 0.1, and at 95 to 96 %
    with lr 0.02; the default trains at SAM's learning rate.

    The layer-wise Look-LayerSAM of the same paper is not included.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        k: steps from one SAM step to the next, >= 1; 5 to 10 is usual.
        alpha: weight >= 0 of the part used again; 0.7 in the paper.
        **engine: see ``SharpnessAware``.

    References:
        Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization, CVPR 2022. There is no official code;
        the rule is the paper's with global norms.
    """

    vectors = ("sharp",)

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.1,
        *,
        k: int = 5,
        alpha: float = 0.2,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.k = checks.positive_int("k", k)
        self.alpha = checks.real("alpha", alpha, low=0)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        if (self.t - 1) % self.k:
            return with_sharp_part(here.gradient, self.recall("sharp"), self.alpha)
        there = yield At(self.ascent(here.gradient))
        self.remember("sharp", sharp_direction(there.gradient, here.gradient))
        return there.gradient


def sharp_direction(perturbed: TensorList, gradient: TensorList) -> TensorList:
    """Return u(g_v) for the part g_v of ``perturbed`` orthogonal to ``gradient``; zero where that is rounding alone."""
    part = perturbed.minus(perturbed.project(gradient))
    size = part.norm()
    rounding = 4 * torch.finfo(part.tensors[0].dtype).eps * perturbed.norm()
    smallest = torch.finfo(size.dtype).tiny
    return part.times(torch.where(size > rounding, 1.0 / size.clamp_min(smallest), torch.zeros_like(size)))


def with_sharp_part(gradient: TensorList, direction: TensorList | None, alpha: float) -> TensorList:
    """Return g + alpha norm(g) direction, or g before there is a direction."""
    if direction is None:
        return gradient
    return direction.times(alpha * gradient.norm()).add_(gradient)

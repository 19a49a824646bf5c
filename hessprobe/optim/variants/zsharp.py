"""ZSharp: SAM along the outstanding entries of the gradient."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.optim.engine import At, Displacement, EngineOptions, Rule, SharpnessAware, TensorList
from hessprobe.optim.engine.sharded import beside, part_of, whole
from hessprobe.optim.schedules import Schedule


class ZSharp(SharpnessAware):
    """ZSharp: ascends along the entries of each layer's gradient that stand out from the rest of the layer.

    For every tensor of two or more dimensions, with z = (g - mean(g))/std(g), the entries are kept where
    abs(z) > quantile_q(abs(z)), and all of them where none is; tensors of one dimension are kept whole. With g_l the
    kept part of tensor l, g^ that of all tensors and u(v) = v/norm(v):

        convention "code":     e_l = rho u(g_l) for filtered tensors, rho g_l/norm(g) for the others
        convention "paper":    e = rho u(g^), one norm over all
        base step with grad L_B(w + e)

    Two gradients a step. The authors' code gives every filtered tensor the length rho of its own, so its e is longer,
    about sqrt(number of layers) rho: a rho is not carried over from one convention to the other.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        quantile: q in [0, 1).
        convention: "code" or "paper".
        **engine: see ``SharpnessAware``.

    References:
        Yun, Sharpness-Aware Minimization with Z-Score Gradient Filtering, 2025.
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        quantile: float = 0.95,
        convention: str = "code",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.quantile = checks.real("quantile", quantile, low=0, high=1, high_open=True)
        self.convention = checks.one_of("convention", convention, ("code", "paper"))

    def rule(self) -> Rule:
        """See the class."""
        # No name is given to the first gradient: its memory is free again during the second pass.
        there = yield At(self._displacement((yield At()).gradient))
        return there.gradient

    def _displacement(self, gradient: TensorList) -> Displacement:
        masks = [self._mask(g) for g in gradient.tensors]
        pairs = list(zip(gradient.tensors, masks, strict=True))
        kept = TensorList([g if m is None else g * (m | _everywhere(m)) for g, m in pairs], gradient.foreach)
        if self.convention == "paper":
            return self.ascent(kept)
        length = self.perturbed(gradient).norm()
        lengths = [
            length if m is None else torch.where(whole(m.any()), norm, length)
            for m, norm in zip(masks, kept.tensor_norms(), strict=True)
        ]
        units = [(k / beside(size + self.eps, k)).to(k.dtype) for k, size in zip(kept.tensors, lengths, strict=True)]
        return self.displacement(TensorList(units, gradient.foreach))

    def _mask(self, gradient: Tensor) -> Tensor | None:
        mask = _outstanding(whole(gradient), self.quantile)
        return None if mask is None else part_of(mask, gradient)


def _outstanding(gradient: Tensor, quantile: float) -> Tensor | None:
    """Return where abs(z) is above its quantile, or None for a tensor that is not filtered."""
    if gradient.ndim < 2 or gradient.numel() < 2:
        return None
    wide = gradient.float() if gradient.dtype in (torch.float16, torch.bfloat16) else gradient
    scores = ((wide - wide.mean()) / (wide.std() + 1e-12)).abs()
    return scores > _quantile(scores.reshape(-1), quantile)


def _everywhere(mask: Tensor) -> Tensor:
    """Return the mask that keeps all where ``mask`` keeps nothing."""
    return part_of((~whole(mask).any()).expand(mask.shape), mask)


def _quantile(values: Tensor, q: float) -> Tensor:
    # torch.quantile refuses more than 2^24 values; like it, this interpolates between neighbors.
    position = q * (len(values) - 1)
    below = int(position)
    low = values.kthvalue(below + 1).values
    high = values.kthvalue(min(below + 2, len(values))).values
    return torch.lerp(low, high, position - below)

"""SAM on parts of the batch: ESAM, K-SAM, and micro-batch SAM (m-sharpness)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Unpack, cast

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import about
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware
from hessprobe.optim.engine.closures import Pass
from hessprobe.optim.engine.manual import ManualStep
from hessprobe.optim.engine.randomness import generator
from hessprobe.optim.schedules import Schedule


class ESAM(SharpnessAware):
    """Efficient SAM: ascends along some of the tensors, descends on the examples that the ascent hurts most.

    Stochastic weight perturbation: every tensor is kept with probability beta; the others are frozen in the first pass,
    so that their gradient is not computed. Sharpness-sensitive data selection: the floor(gamma n) of n examples with
    the largest l_i(w + e) - l_i(w).

        e = (rho/beta) u(g_kept),      base step with the gradient at w + e of the mean loss over the selected examples

    ``closure(subset)`` returns the losses of the examples in ``subset`` (an index tensor, or None for all) without
    calling backward. A step takes a gradient with respect to the kept tensors, one on floor(gamma n) examples, and a
    forward pass; the paper's 1.5 to 1.8 gradients. If no tensor is kept, nothing is displaced and the step is a base
    step on all examples, with one gradient (the official code stops with an error).
    beta = gamma = 1 is SAM.

    The selection descends on the hardest part of each batch: with the paper's gamma = 0.5 it wants a lower learning
    rate than SAM. The digits network (20 % wrong labels, batches of 32, momentum 0.9) ends at chance in two of three
    runs with lr 0.1, also with beta = 1, and at 96 to 97 % with lr 0.05 or with the default gamma. Not to be
    confused with EfficientSAM, a segmentation model.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        beta: in (0, 1], probability that a tensor is kept; 0.6, with large batches 0.5.
        gamma: in (0, 1], share of the examples selected, 0.5 in the paper; at least one is.
        convention: ``"paper"`` as above; ``"code"`` as the official code: only examples strictly above the
            floor(gamma n)-th largest (one fewer), all of them from gamma = 0.99 on, and no tensor frozen in the first
            step. Both draw tensors; a mask on single weights, as some readings of the paper have it, saves nothing.
        **engine: see ``SharpnessAware``; the official code has eps 1e-7.

    References:
        Du et al., Efficient Sharpness-aware Minimization for Improved Training of Neural Networks, ICLR 2022.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import ESAM
        >>> w = torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
        >>> opt = ESAM(torch.optim.SGD([w], lr=0.1), rho=0.2)
        >>> def closure(subset):
        ...     return (x if subset is None else x[subset]).mul(w).sum(1).square() / 2
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.7889, -1.9267]])
    """

    closure_kind = "per-sample"

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        beta: float = 0.6,
        gamma: float = 0.8,
        convention: str = "paper",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.beta = checks.real("beta", beta, low=0, high=1, low_open=True)
        self.gamma = checks.real("gamma", gamma, low=0, high=1, low_open=True)
        self.convention = checks.one_of("convention", convention, ("paper", "code"))

    def rule(self) -> Rule:
        """See the class."""
        kept = self._kept()
        if not any(kept):
            here = yield At()
            return here.gradient
        here = yield At(frozen=[not one for one in kept])
        norm = self.perturbed(here.gradient).norm()
        displacement = self.ascent(here.gradient, norm=norm * self.beta)
        if self.gamma >= (1.0 if self.convention == "paper" else 0.99):
            there = yield At(displacement)
            return there.gradient
        after = yield At(displacement, loss_only=True)
        rise = cast(Tensor, after.losses) - cast(Tensor, here.losses)
        there = yield At(displacement, subset=most_sensitive(rise, self.gamma, self.convention == "code"))
        return there.gradient

    def _kept(self) -> list[bool]:
        count = len(self.parameters())
        if self.convention == "code" and self.t == 1:
            return [True] * count
        draws = torch.rand(count, generator=generator(self.seed, self.t, 1), dtype=torch.float64)
        return [bool(draw <= self.beta) for draw in draws]


def most_sensitive(rise: Tensor, share: float, strictly: bool = False) -> Tensor:
    """Return the indices, ascending, of the floor(share n) largest entries of ``rise`` (n,), at least one.

    ``strictly`` leaves out those that equal the smallest of them, as long as one remains.
    """
    largest, indices = torch.topk(rise, portion(share, len(rise)))
    if strictly:
        indices = indices[largest > largest[-1]] if bool(largest[0] > largest[-1]) else indices[:1]
    return indices.sort().values


def portion(share: float, n: int) -> int:
    """Return floor(share n), at least 1; 0.29 of 100 is 29, whatever the product rounds to."""
    return max(1, math.floor(share * n + 1e-9))


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

    Examples:
        >>> import torch
        >>> from hessprobe.optim import KSAM
        >>> w = torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
        >>> opt = KSAM(torch.optim.SGD([w], lr=0.1), rho=0.2, keep=0.5)
        >>> def closure(subset):
        ...     return (x if subset is None else x[subset]).mul(w).sum(1).square() / 2
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.7642, -1.8955]])
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


class MicroBatchSAM(SharpnessAware):
    """m-SAM: every one of m shards of the batch is displaced along its own gradient.

        base step with sum_i (n_i/n) grad L_{B_i}(w + rho u(grad L_{B_i}(w)))

    Two gradients of every shard, so the cost of SAM on the whole batch. m = 1 is SAM; smaller shards move the implicit
    bias from the largest eigenvalue towards the trace. ``step`` takes a list of closures, one a shard, and
    ``weights=`` n_i/n where the shards differ in size (equal by default); a shorter list, as for a short last batch,
    is fine. Not Momentum SAM and not modality-aware SAM, which share the name MSAM.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        shards: m >= 1, how many closures a step takes: what a training loop reads.
        **engine: see ``SharpnessAware``; ``accumulate`` is ``"per_microbatch"``.

    References:
        Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021 (m-sharpness).
        Behdin et al., mSAM: Micro-Batch-Averaged Sharpness-Aware Minimization, 2023.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import MicroBatchSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = MicroBatchSAM(torch.optim.SGD([w], lr=0.1), rho=0.2, shards=2)
        >>> def closure(b):
        ...     def shard():
        ...         opt.zero_grad()
        ...         loss = (a * (w - b) ** 2).sum() / 2
        ...         loss.backward()
        ...         return loss
        ...     return shard
        >>> loss = opt.step([closure(0.0), closure(1.0)])
        >>> w.data
        tensor([[ 0.8215, -1.8684]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        shards: int = 4,
        **engine: Unpack[EngineOptions],
    ) -> None:
        if engine.setdefault("accumulate", "per_microbatch") != "per_microbatch":
            raise ValueError(
                about(
                    "accumulate",
                    f"must be 'per_microbatch' for MicroBatchSAM; got {engine['accumulate']!r}. "
                    "Use SAM for one displacement from the mean gradient.",
                )
            )
        super().__init__(base_optimizer, rho, **engine)
        self.shards = checks.positive_int("shards", shards)

    def rule(self) -> Rule:
        """See the class; run once for every shard."""
        there = yield At(self.ascent((yield At()).gradient))
        return there.gradient

    def _passes(self, closure: Any, loss: Callable[[], Tensor] | None, scaler: Any) -> list[Pass]:
        if self.shards > 1 and not isinstance(closure, Iterable):
            raise TypeError(
                f"closure must be a list of closures, one for each of the {self.shards} shards of the batch; "
                "got a single one, which would be SAM. Pass [closure_1, closure_2, ...], or set shards=1."
            )
        return super()._passes(closure, loss, scaler)

    def _manual_step(self) -> ManualStep:
        if self.shards > 1:
            raise RuntimeError("MicroBatchSAM cannot be stepped by hand; use opt.step([closure_1, closure_2, ...]).")
        return super()._manual_step()

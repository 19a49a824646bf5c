"""Sparse SAM (SSAM)."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Unpack, cast

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Evaluation, Rule, SharpnessAware, TensorList
from hessprobe.optim.engine.randomness import uniform_like
from hessprobe.optim.engine.sharded import part_of, whole
from hessprobe.optim.schedules import Schedule


class SparseSAM(SharpnessAware):
    """Sparse SAM: displaces only a share 1 - s of the weights.

        e = M * (rho/norm(g)) g  (elementwise; the norm is over all weights),      base step with grad L(w + e)

    ``mask="fisher"`` (SSAM-F): M marks the largest entries of sum_i (grad l_i(w))^2 over the first ``n_samples``
    examples of the batch (their own labels: the empirical Fisher diagonal). Squares of single examples cannot be had
    from a batch gradient, so this kind takes ``closure(subset)``, which returns the losses of the examples in
    ``subset`` (an index tensor, or None for all) without calling backward.

    ``mask="dynamic"`` (SSAM-D): M starts random; at a refresh the share r (1 + cos(pi (t - 1)/T))/2 of the marked
    weights with the smallest abs(g) is dropped and as many unmarked ones, drawn at random, take their place, from the
    next step on. The number of marked weights never changes. After T steps nothing changes any more.

    Two gradients a step; SSAM-F computes n_samples gradients of single examples at a refresh. One vector of memory.
    s = 0 is SAM.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        mask: ``"fisher"`` or ``"dynamic"``.
        sparsity: s in [0, 1), share of the weights that stay.
        every: steps between refreshes, >= 1; the paper's are 1 to 5 epochs.
        n_samples: examples for the Fisher diagonal, >= 1; 16 to 1024 in the paper, at most the batch here.
        drop_rate: r in [0, 1].
        steps: T >= 1, after which the dynamic mask rests.
        convention: when SSAM-F makes its masks. ``"paper"``: at steps 1, 1 + every, ..., before the ascent, so that
            every step has one. ``"code"``: at 2, 2 + every, ..., which are the weights of the official code (it makes
            them after the first step of an epoch); until then M = 0 and the first step is a base step.
        **engine: see ``SharpnessAware``.

    References:
        Mi et al., Make Sharpness-Aware Minimization Stronger: A Sparsified Perturbation Approach, NeurIPS 2022.
    """

    vectors = ("mask",)

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        mask: str = "dynamic",
        sparsity: float = 0.5,
        every: int = 100,
        n_samples: int = 16,
        drop_rate: float = 0.5,
        steps: int = 10_000,
        convention: str = "paper",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.mask = checks.one_of("mask", mask, ("fisher", "dynamic"))
        self.closure_kind = "per-sample" if mask == "fisher" else "backward"
        self.sparsity = checks.real("sparsity", sparsity, low=0, high=1, high_open=True)
        self.every = checks.positive_int("every", every)
        self.n_samples = checks.positive_int("n_samples", n_samples)
        self.drop_rate = checks.real("drop_rate", drop_rate, low=0, high=1)
        self.steps = checks.positive_int("steps", steps)
        self.convention = checks.one_of("convention", convention, ("paper", "code"))

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        if self.mask == "fisher":
            mask = yield from self._fisher_mask(here)
        else:
            mask = self._dynamic_mask(here.gradient)
        norm = self.perturbed(here.gradient).norm()
        there = yield At(self.ascent(here.gradient * mask, norm=norm))
        return there.gradient

    def _fisher_mask(self, here: Evaluation) -> Generator[At, Evaluation, TensorList]:
        first = 1 if self.convention == "paper" else 2
        known = self.recall("mask")
        due = self.t >= first and (self.t - first) % self.every == 0
        if not due and known is not None:
            return known
        if not due and self.t < first:
            return here.gradient.zeros()
        losses = cast(Tensor, here.losses)
        squares = here.gradient.zeros()
        for index in range(min(self.n_samples, len(losses))):
            one = yield At(subset=torch.tensor([index], device=losses.device))
            squares.add_(one.gradient * one.gradient)
        mask = self._largest(squares, self._live())
        self.remember("mask", mask)
        return mask

    def _dynamic_mask(self, gradient: TensorList) -> TensorList:
        mask = self.recall("mask")
        if mask is None:
            mask = self._largest(uniform_like(gradient, self.generator()), self._live())
            self.remember("mask", mask)
        if (self.t - 1) % self.every == 0:
            self.remember("mask", self._renewed(mask, gradient))
        return mask

    def _renewed(self, mask: TensorList, gradient: TensorList) -> TensorList:
        live, total = self._live(), self._perturbed_size()
        rate = self.drop_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, (self.t - 1) / self.steps)))
        dropped = min(math.floor(live * rate), total - live)
        outside = gradient.map(lambda g: torch.full_like(g, -math.inf))
        size = gradient.map(lambda g, m, low: torch.where(m > 0, g.abs(), low), mask, outside)
        draws = uniform_like(gradient, self.generator())
        fresh = draws.map(lambda r, m, low: torch.where(m > 0, low, r), mask, outside)
        return self._largest(size, live - dropped) + self._largest(fresh, dropped)

    def _largest(self, scores: TensorList, count: int) -> TensorList:
        """Return 1 at the ``count`` largest scores of weights that are perturbed, 0 elsewhere."""
        groups = self.group_values("perturb")
        parts = [s if p else torch.full_like(s, -math.inf) for s, p in zip(scores.tensors, groups, strict=True)]
        flat = torch.cat([whole(part).reshape(-1) for part in parts])
        marked = torch.zeros_like(flat)
        marked[torch.topk(flat, count).indices] = 1.0
        pieces = torch.split(marked, [part.numel() for part in parts])
        masks = [part_of(m.view(p.shape).clone(), p) for m, p in zip(pieces, parts, strict=True)]
        return TensorList(masks, scores.foreach)

    def _live(self) -> int:
        total = self._perturbed_size()
        return total - math.ceil(total * self.sparsity)

    def _perturbed_size(self) -> int:
        return sum(t.numel() for t, p in zip(self.parameters(), self.group_values("perturb"), strict=True) if p)

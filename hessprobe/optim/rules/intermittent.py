"""SAM on some of the steps: every k-th, at random, or where the gradient is large (LookSAM, AE-SAM, SS-SAM)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Unpack

import torch

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware, TensorList
from hessprobe.optim.engine.randomness import generator
from hessprobe.optim.schedules import Probability, Schedule


class IntervalSAM(SharpnessAware):
    """SAM at intervals: a SAM step at steps k, 2k, 3k, ..., a plain base step at the others.

    1 + 1/k gradients a step. k = 1 is SAM. The radius is usually larger than SAM's, to make up for the rarer use.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        k: steps from one SAM step to the next, >= 1.
        **engine: see ``SharpnessAware``.

    References:
        MosaicML Composer, whose SAM has this interval (10, with rho 0.5); not from a paper.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import IntervalSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = IntervalSAM(torch.optim.SGD([w], lr=0.1), rho=0.2, k=2)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> first, second = opt.step(closure), opt.step(closure)
        >>> w.data
        tensor([[ 0.4353, -1.8009]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.5,
        *,
        k: int = 10,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.k = checks.positive_int("k", k)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        if self.t % self.k:
            return here.gradient
        there = yield At(self.ascent(here.gradient))
        return there.gradient


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

    Examples:
        >>> import torch
        >>> from hessprobe.optim import LookSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = LookSAM(torch.optim.SGD([w], lr=0.1), rho=0.2, k=2)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> first, second = opt.step(closure), opt.step(closure)
        >>> w.data
        tensor([[ 0.4366, -1.8428]])
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


FIRST_AVERAGES: Mapping[str, float] = MappingProxyType({"mean": 0.0, "variance": 0.0})


@dataclass(frozen=True)
class AdaptivePolicy:
    """Decides from the squared gradient norm n_t whether step t is worth a second gradient.

        mu_t = d mu_{t-1} + (1 - d) n_t,      s_t^2 = d s_{t-1}^2 + (1 - d)(n_t - mu_t)^2,      mu_0 = s_0 = 0
        c_t = (t/T) lambda_1 + (1 - t/T) lambda_2,      SAM where n_t >= mu_t + c_t s_t

    Attributes:
        steps: T, length of the run >= 1; a longer run is refused.
        delta: d in [0, 1), forgetting.
        lambda1, lambda2: threshold, in standard deviations, at the end and at the beginning of the run.
    """

    steps: int
    delta: float
    lambda1: float
    lambda2: float

    def __post_init__(self) -> None:
        checks.positive_int("steps", self.steps)
        checks.real("delta", self.delta, low=0, high=1, high_open=True)
        for name in ("lambda1", "lambda2"):
            # Infinite thresholds are meaningful: SAM always or never.
            if not isinstance(getattr(self, name), (int, float)) or math.isnan(getattr(self, name)):
                raise ValueError(f"{name} must be a number; got {getattr(self, name)!r}. Use for example -1 or 1.")

    def threshold(self, t: int) -> float:
        """Return c_t.

        Raises:
            ValueError: the run is longer than ``steps``.
        """
        if t > self.steps:
            raise ValueError(
                f"steps must cover the run; got {self.steps} and this is step {t}. "
                "Give the optimizer the number of steps of the whole run."
            )
        parts = ((t / self.steps, self.lambda1), (1 - t / self.steps, self.lambda2))
        return sum(share * end for share, end in parts if share > 0)

    def wants(self, owner: SharpnessAware, norm: float) -> bool:
        """Return whether this step is a SAM step, and have ``owner`` remember the averages."""
        square = norm * norm
        mean = self.delta * owner.memory.number("mean") + (1 - self.delta) * square
        variance = self.delta * owner.memory.number("variance") + (1 - self.delta) * (square - mean) ** 2
        owner.memory.remember_number("mean", mean)
        owner.memory.remember_number("variance", variance)
        level, deviation = self.threshold(owner.t), math.sqrt(variance)
        # Zero deviations times an infinite level would be nan.
        wanted = square >= mean + level * deviation if math.isfinite(level) else level < 0
        owner.last.extra["sharp_step"] = wanted
        return wanted


class AESAM(SharpnessAware):
    """AE-SAM: a SAM step where the squared gradient norm is large beside its running mean, else a base step.

        SAM where norm(g)^2 >= mu_t + c_t s_t, else base step with g;     see ``AdaptivePolicy`` for mu, s and c

    1 to 2 gradients a step; ``last.extra["sharp_step"]`` tells which. The decision needs the norm on the host, one wait
    for a GPU a step. lambda_1 = lambda_2 = -inf is SAM, +inf the base optimizer.

    Certain: averages, threshold and test, on which two independent accounts of the paper agree. Not certain: the start
    mu_0 = s_0 = 0, which lets the first steps be SAM steps.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        steps: length of the run, >= 1.
        delta: forgetting of the averages, in [0, 1).
        lambda1, lambda2: threshold at the end and at the beginning, in standard deviations.
        **engine: see ``SharpnessAware``.

    References:
        Jiang, Yang, Zhang, Kwok, An Adaptive Policy to Employ Sharpness-Aware Minimization, ICLR 2023.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import AESAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = AESAM(torch.optim.SGD([w], lr=0.1), rho=0.2, steps=100)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6431, -1.8968]])
    """

    numbers = FIRST_AVERAGES

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        steps: int,
        delta: float = 0.9,
        lambda1: float = -1.0,
        lambda2: float = 1.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.policy = AdaptivePolicy(steps, delta, lambda1, lambda2)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        if not self.policy.wants(self, float(here.gradient.norm())):
            return here.gradient
        there = yield At(self.ascent(here.gradient))
        return there.gradient


class AELookSAM(SharpnessAware):
    """AE-LookSAM: SAM steps chosen as in AE-SAM, and in between LookSAM's part of the last one used again.

        where norm(g)^2 >= mu_t + c_t s_t:   g_s = grad L(w + rho u(g)), g_v its part orthogonal to g; base step: g_s
        else:                                base step with g + alpha (norm(g)/norm(g_v)) g_v

    The paper's alpha = 0.7 wants a lower learning rate than SAM: the digits network described in ``LookSAM`` ends at
    chance, 50 % and 92 % with lr 0.1; the default trains at SAM's.

    1 to 2 gradients a step, one vector of memory. Reconstructed from the paper's description and its two parts
    (``AESAM``, ``LookSAM``); no code of the authors was at hand.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        steps: length of the run, >= 1.
        alpha: weight >= 0 of the part used again; 0 is AE-SAM.
        delta: forgetting of the averages, in [0, 1).
        lambda1, lambda2: threshold at the end and at the beginning, in standard deviations.
        **engine: see ``SharpnessAware``.

    References:
        Jiang, Yang, Zhang, Kwok, An Adaptive Policy to Employ Sharpness-Aware Minimization, ICLR 2023.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import AELookSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = AELookSAM(torch.optim.SGD([w], lr=0.1), rho=0.2, steps=100)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6431, -1.8968]])
    """

    vectors = ("sharp",)
    numbers = FIRST_AVERAGES

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        steps: int,
        alpha: float = 0.2,
        delta: float = 0.9,
        lambda1: float = -1.0,
        lambda2: float = 1.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.policy = AdaptivePolicy(steps, delta, lambda1, lambda2)
        self.alpha = checks.real("alpha", alpha, low=0)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        if not self.policy.wants(self, float(here.gradient.norm())):
            return with_sharp_part(here.gradient, self.recall("sharp"), self.alpha)
        there = yield At(self.ascent(here.gradient))
        self.remember("sharp", sharp_direction(there.gradient, here.gradient))
        return there.gradient


class SSSAM(SharpnessAware):
    """Stochastic scheduled SAM (randomized sharpness-aware training): step t is a SAM step with probability p(t).

        with probability p(t):  base step with (1 - gamma) g + gamma grad L(w + rho u(g));     else with g

    1 + p gradients a step. gamma = 1 is SS-SAM, others its generalization G-RST (gamma > 1 makes up for rare SAM
    steps). p = 1 with gamma = 1 is SAM, p = 0 the base optimizer. The draw depends on seed and step alone, so all ranks
    agree.

    Certain: the random choice and the kinds of p (constant, piecewise, linear, trigonometric). Reconstructed from the
    abstract and summaries: the parametrization of these p, see ``hessprobe.optim.schedules``, and the mixture.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        probability: p in [0, 1], or a function of the step number t >= 1.
        gamma: weight >= 0 of the perturbed gradient on a SAM step.
        **engine: see ``SharpnessAware``.

    References:
        Zhao et al., SS-SAM: Stochastic Scheduled Sharpness-Aware Minimization for Efficiently Training Deep Neural
        Networks, 2022; second version: Randomized Sharpness-Aware Training for Boosting Computational Efficiency.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import SSSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = SSSAM(torch.optim.SGD([w], lr=0.1), rho=0.2, probability=0.5)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6431, -1.8968]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        probability: float | Probability = 0.5,
        gamma: float = 1.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        if not callable(probability):
            checks.real("probability", probability, low=0, high=1)
        self.probability = probability
        self.gamma = checks.real("gamma", gamma, low=0)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        if not self._draw():
            return here.gradient
        there = yield At(self.ascent(here.gradient))
        if self.gamma == 1.0:
            return there.gradient
        return (here.gradient * (1 - self.gamma)).add_(there.gradient, alpha=self.gamma)

    def _draw(self) -> bool:
        p = self.probability(self.t) if callable(self.probability) else self.probability
        checks.real("probability", p, low=0, high=1)
        # On the CPU, so that no GPU is waited for.
        return bool(torch.rand((), generator=generator(self.seed, self.t, 1), dtype=torch.float64) < p)

"""bSAM: the mean and the precision of a Gaussian over the weights."""

from __future__ import annotations

from typing import Unpack

import torch
from torch.optim.optimizer import ParamsT

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware, TensorList
from hessprobe.optim.engine.randomness import normal_like
from hessprobe.optim.schedules import Schedule


class BSAM(SharpnessAware):
    """bSAM: SAM as an optimal relaxation of Bayes; learns the mean w and the precisions s of a Gaussian over weights.

    With N examples, z standard normal, delta = prior_precision/N, squares and divisions elementwise, s_0 = 1, m_0 = 0:

        g = grad L(w + z/sqrt(N s)),      g_e = grad L(w + rho g/s),
        m <- b1 m + (1 - b1)(g_e + delta w),      w <- w - lr m/s,
        s <- b2 s + (1 - b2)(sqrt(s) abs(g) + delta + damping)

    w moves with the s of before and there is no bias correction, as in the authors' code. It owns its update (it takes
    parameters, not a base optimizer); ``step()`` without a closure is a plain gradient step. Two gradients a step, two
    vectors of memory. ``posterior_std`` is what the weights may be drawn with. The authors also split the batch into 8
    shards with noise of their own; here one draw serves the batch.

    Args:
        params: parameters or parameter groups.
        rho: >= 0 or a schedule; scales g/s and is no length.
        examples: N >= 1, size of the training set.
        lr: >= 0.
        betas: (b1, b2) in [0, 1).
        prior_precision: >= 0; 25 to 40 in the paper.
        damping: >= 0.
        **engine: see ``SharpnessAware``; ``seed`` is that of z.

    References:
        Moellenhoff and Khan, SAM as an Optimal Relaxation of Bayes, ICLR 2023.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import BSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = BSAM([w], rho=0.01, examples=100)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.8327, -1.9248]])
    """

    vectors = ("moment", "precision")

    def __init__(
        self,
        params: ParamsT,
        rho: float | Schedule = 0.01,
        *,
        examples: int,
        lr: float = 0.5,
        betas: tuple[float, float] = (0.9, 0.999),
        prior_precision: float = 25.0,
        damping: float = 0.1,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(torch.optim.SGD(params, lr=checks.real("lr", lr, low=0)), rho, **engine)
        self.examples = checks.positive_int("examples", examples)
        self.betas = decay_rates(betas)
        self.prior_precision = checks.real("prior_precision", prior_precision, low=0)
        self.damping = checks.real("damping", damping, low=0)

    def rule(self) -> Rule:
        """See the class."""
        weights = self.weights.original()
        precision = self._precision()
        noise = normal_like(weights, self.generator()).map(_divide_by_root, precision)
        sampled = yield At(self.displacement(noise, self.examples**-0.5, radius=1.0))
        there = yield At(self.displacement(sampled.gradient / precision))
        b1, b2 = self.betas
        delta = self.prior_precision / self.examples
        before = self.recall("moment")
        slope = (self.weights.original() * delta).add_(there.gradient)
        moment = slope * (1 - b1) if before is None else (before * b1).add_(slope, alpha=1 - b1)
        offset = delta + self.damping
        curvature = precision.map(lambda s, g: s.sqrt() * g.abs() + offset, sampled.gradient)
        self.remember("moment", moment)
        self.remember("precision", (precision * b2).add_(curvature, alpha=1 - b2))
        return moment / precision

    def posterior_std(self) -> list[torch.Tensor]:
        """Return 1/sqrt(N s) for every trainable parameter: the standard deviation of the weights."""
        self.prepare()
        return [(self.examples * s).rsqrt() for s in self._precision().tensors]

    def _precision(self) -> TensorList:
        known = self.recall("precision")
        ones = self.weights.original().map(torch.ones_like)
        # Zero marks a parameter that was added after the last step.
        return ones if known is None else known.map(lambda s, one: torch.where(s > 0, s, one), ones)


def decay_rates(betas: tuple[float, float]) -> tuple[float, float]:
    """Return (b1, b2) after checking that there are two in [0, 1).

    Raises:
        ValueError: not two numbers, or one outside [0, 1).
    """
    if len(betas) != 2:
        raise ValueError(f"betas must be two numbers; got {betas!r}. Use for example (0.9, 0.999).")
    b1, b2 = (checks.real("betas", beta, low=0, high=1, high_open=True) for beta in betas)
    return b1, b2


def _divide_by_root(z: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return z / s.sqrt()

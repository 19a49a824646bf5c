"""Rules that own their update in place of a base optimizer: AdaSAM, LightSAM, SAM-SPS, SASSHA.

bSAM: the mean and the precision of a Gaussian over the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from hessprobe import checks
from hessprobe.estimators import diagonal
from hessprobe.operators import LinearOperator
from hessprobe.optim.engine import (
    At,
    Curvature,
    Displacement,
    EngineOptions,
    Evaluation,
    Rule,
    SharpnessAware,
    TensorList,
    Update,
)
from hessprobe.optim.engine.curvature import ParameterOperator
from hessprobe.optim.engine.randomness import normal_like
from hessprobe.optim.engine.ranks import MeanOverRanks, average_of_numbers
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
        prior_precision: >= 0; 25 to 40 in the paper, which ends below SGD in short runs without normalization.
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
        tensor([[ 0.8402, -1.9398]])
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
        prior_precision: float = 10.0,
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


class AdaSAM(SharpnessAware):
    """AdaSAM: the perturbed gradient through AMSGrad without bias correction.

    Squares, roots and maxima elementwise, m_0 = 0, v_0 = vhat_0 = eps_root^2:

        g_e = grad L(w + rho u(g)),    m <- b1 m + (1 - b1) g_e,    v <- b2 v + (1 - b2) g_e^2,
        vhat <- max(vhat, v),          w <- w - lr (m/sqrt(vhat) + wd w)

    It owns its update (it takes parameters, not a base optimizer); ``step()`` without a closure is a plain gradient
    step. Two gradients a step, three vectors of memory. The rule is the one restated in the public ``sam_sps``
    repository of other authors; the decoupled weight decay is ours and off by default.

    Args:
        params: parameters or parameter groups.
        rho: radius >= 0 or a schedule.
        lr: >= 0; 1e-3 in the paper.
        betas: (b1, b2) in [0, 1).
        eps_root: > 0; takes the place of an eps in the denominator.
        weight_decay: >= 0.
        **engine: see ``SharpnessAware``.

    References:
        Sun et al., AdaSAM: Boosting Sharpness-Aware Minimization with Adaptive Learning Rate and Momentum for Training
        Deep Neural Networks, Neural Networks 2024.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import AdaSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = AdaSAM([w], rho=0.2, lr=0.01)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.9684, -1.9684]])
    """

    vectors = ("first", "second", "largest")

    takes_sparse = False

    def __init__(
        self,
        params: ParamsT,
        rho: float | Schedule = 0.05,
        *,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps_root: float = 1e-8,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        decay = checks.real("weight_decay", weight_decay, low=0)
        base = torch.optim.SGD(params, lr=checks.real("lr", lr, low=0), weight_decay=decay)
        super().__init__(base, rho, **engine)
        self.betas = decay_rates(betas)
        self.eps_root = checks.real("eps_root", eps_root, low=0, low_open=True)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        there = yield At(self.ascent(here.gradient))
        slope, (b1, b2), least = there.gradient, self.betas, self.eps_root**2
        first = self.recall("first") or slope.zeros()
        second = self.recall("second") or slope.map(lambda g: torch.full_like(g, least))
        largest = self.recall("largest") or second
        first = (first * b1).add_(slope, alpha=1 - b1)
        second = (second * b2).add_(slope * slope, alpha=1 - b2)
        largest = largest.map(torch.maximum, second)
        for name, vector in (("first", first), ("second", second), ("largest", largest)):
            self.remember(name, vector)
        return first / largest.map(_root)


def _root(square: torch.Tensor) -> torch.Tensor:
    # In half precision eps_root^2 may be zero, and where no gradient ever came the average of squares is: 0/0 is not.
    return square.sqrt().clamp_min(torch.finfo(square.dtype).tiny)


_VECTORS: dict[str, tuple[str, ...]] = {"adagrad-norm": (), "adagrad": ("u", "v"), "adam": ("u", "v", "r", "m")}


class LightSAM(SharpnessAware):
    """LightSAM: both the ascent and the descent of SAM with step sizes that adapt to the gradients seen.

    It learns more slowly than SGD: on the digits 2 to 5 points below it after 6 epochs without normalization layers,
    level or above after 30.

    With s_t = grad L(w) and g_t = grad L(w + e), u_0 = v_0 = eps_root^2, squares and divisions elementwise in the last
    two:

        adagrad-norm:  u += norm(s)^2,               e = rho s/sqrt(u),    v += norm(g)^2,               d = g/sqrt(v)
        adagrad:       u += s^2,                     e = rho s/sqrt(u),    v += g^2,                     d = g/sqrt(v)
        adam:          u = b2 u + (1 - b2) s^2,      e = rho r/sqrt(u),    v = b2 v + (1 - b2) g^2,      d = m/sqrt(v)
                       r = b1 r + (1 - b1) s,                              m = b1 m + (1 - b1) g

    and w <- w - lr d. It owns its update (it takes parameters, not a base optimizer); ``step()`` without a closure is a
    plain gradient step. Two gradients a step; none, two or four vectors of memory. rho is no length here.

    The paper's text was not at hand: the three forms are as restated in the public ``sam_sps`` repository of other
    authors; a second independent account agrees on adagrad-norm.

    Args:
        params: parameters or parameter groups.
        rho: >= 0 or a schedule.
        lr: >= 0; None is 3 for ``"adagrad-norm"``, whose rate falls with all gradients seen, and 0.1 for the others.
        method: ``"adagrad-norm"``, ``"adagrad"`` or ``"adam"``.
        betas: (b1, b2) in [0, 1), for ``"adam"``.
        eps_root: > 0.
        **engine: see ``SharpnessAware``.

    References:
        Cheng et al., LightSAM: Parameter-Agnostic Sharpness-Aware Minimization, 2025.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import LightSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = LightSAM([w], rho=0.2, lr=0.1)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.9039, -1.9722]])
    """

    numbers: ClassVar[Mapping[str, float]] = MappingProxyType({"u": 0.0, "v": 0.0})

    usual_lr = 3.0

    def __init__(
        self,
        params: ParamsT,
        rho: float | Schedule = 0.05,
        *,
        lr: float | None = None,
        method: str = "adagrad-norm",
        betas: tuple[float, float] = (0.9, 0.999),
        eps_root: float = 1e-8,
        **engine: Unpack[EngineOptions],
    ) -> None:
        self.method = checks.one_of("method", method, tuple(_VECTORS))
        lr = (self.usual_lr if method == "adagrad-norm" else 0.1) if lr is None else lr
        self.vectors = _VECTORS[method]
        super().__init__(torch.optim.SGD(params, lr=checks.real("lr", lr, low=0)), rho, **engine)
        self.betas = decay_rates(betas)
        self.eps_root = checks.real("eps_root", eps_root, low=0, low_open=True)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        there = yield At(self._displacement(here.gradient))
        if self.method == "adagrad-norm":
            return there.gradient * self._inverse_norm("v", there.gradient)
        return self._scaled("v", "m", there.gradient)

    def _displacement(self, gradient: TensorList) -> Displacement:
        if self.method == "adagrad-norm":
            return self.displacement(gradient, self._inverse_norm("u", gradient))
        return self.displacement(self._scaled("u", "r", gradient))

    def _inverse_norm(self, name: str, gradient: TensorList) -> Tensor:
        total: Tensor = gradient.dot(gradient) + self.memory.number(name)
        self.memory.remember_number(name, total)
        return 1.0 / (total + self.eps_root**2).sqrt()

    def _scaled(self, squares: str, average: str, gradient: TensorList) -> TensorList:
        total = self.recall(squares) or gradient.map(lambda g: torch.full_like(g, self.eps_root**2))
        if self.method == "adagrad":
            total, numerator = total + gradient * gradient, gradient
        else:
            b1, b2 = self.betas
            total = (total * b2).add_(gradient * gradient, alpha=1 - b2)
            numerator = ((self.recall(average) or gradient.zeros()) * b1).add_(gradient, alpha=1 - b1)
            self.remember(average, numerator)
        self.remember(squares, total)
        return numerator / total.map(_root)


class SAMSPS(SharpnessAware):
    """SAM with stochastic Polyak step sizes: the loss itself says how far to go.

    It learns more slowly than SGD: on the digits 1 to 2 points below it after 6 epochs, level or above after 30.

        e = rho (1 - lam + lam/norm(g)) g,      g_e = grad L(w + e),
        gamma_t = clip((L(w + e) - lower - <g_e, e>)/norm(g_e)^2, 0, gamma_max),      w <- w - gamma_t (g_e + wd w)

    lam = 1 displaces as SAM, lam = 0 as USAM. It owns its update (it takes parameters, not a base optimizer), has no
    momentum, and ``lr`` of the groups plays no part; ``step()`` without a closure is a gradient step of length
    gamma_max. Two gradients a step; ``last.extra["step_size"]`` is gamma_t. The closure must return the loss unscaled.
    With lam = 1 and wd = 0, where the cap is reached, it is SAM on SGD with lr = gamma_max.

    Args:
        params: parameters or parameter groups.
        rho: >= 0 or a schedule; a length for lam = 1.
        lam: in [0, 1].
        lower: a lower bound of the loss on a batch; 0 for losses that are never negative.
        gamma_max: cap > 0 on the step size; 1 in the paper, at which the digits network ends a point lower.
        weight_decay: >= 0.
        **engine: see ``SharpnessAware``.

    References:
        Oikonomou and Loizou, Adaptive Sharpness-Aware Minimization with a Polyak-type Step Size: A Theory-Grounded
        Scheduler, arXiv 2606.01827; rule as in the authors' ``sam_sps`` package.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import SAMSPS
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = SAMSPS([w], rho=0.2, weight_decay=0.0)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.3678, -1.8173]])
    """

    takes_sparse = False

    def __init__(
        self,
        params: ParamsT,
        rho: float | Schedule = 0.1,
        *,
        lam: float = 1.0,
        lower: float = 0.0,
        gamma_max: float = 0.3,
        weight_decay: float = 5e-4,
        **engine: Unpack[EngineOptions],
    ) -> None:
        self.gamma_max = checks.real("gamma_max", gamma_max, low=0, low_open=True)
        decay = checks.real("weight_decay", weight_decay, low=0)
        super().__init__(torch.optim.SGD(params, lr=self.gamma_max, weight_decay=decay), rho, **engine)
        self.lam = checks.real("lam", lam, low=0, high=1)
        self.lower = checks.real("lower", lower)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        norm = self.perturbed(here.gradient).norm()
        displacement = self.displacement(here.gradient, 1 - self.lam + self.lam / (norm + self.eps))
        there = yield At(displacement)
        excess = there.loss - self.lower - there.gradient.dot(displacement.dense())
        return Update(there.gradient, lr=lambda slope: self._step_size(excess, slope))

    def _step_size(self, excess: Tensor, slope: TensorList) -> Tensor:
        square = slope.dot(slope)
        size = average_of_numbers(excess) / square.clamp_min(torch.finfo(square.dtype).tiny)
        self.last.extra["step_size"] = size = size.clamp(0.0, self.gamma_max)
        return size


class SASSHA(SharpnessAware):
    """SASSHA: a diagonal Newton method whose gradient and curvature are taken at SAM's displaced weights.

    With e = rho u(g), g_e = grad L(w + e), D = diag of the Hessian at w + e (at w with ``curvature_at="weights"``),
    estimated at steps 1, 1 + every, ...:

        m <- b1 m + (1 - b1) g_e,                         mhat = m/(1 - b1^t)
        h <- b2 h + (1 - b2) abs(D) at those steps,       hhat = h/(1 - b2^tau),     tau = the last of them
        w <- w - lr (mhat/(hhat^power + eps_denominator) + wd w)

    The correction takes tau, a number of steps, though h was updated only once every ``every`` steps: that is how the
    authors' code does it, and it makes hhat too small by up to that factor in the beginning. In one point that code
    differs: it puts the weights back before it differentiates a second time, so that its products mix weights at w with
    activations at w + e, the Hessian of neither; with the two in the right order it takes these very steps.

    D is Hutchinson's estimate with Rademacher probes, from ``hessprobe.estimators.diagonal``; the authors draw one
    probe, here it is at least two. ``step`` must be given ``loss=`` (forward only, with its graph). It owns its update
    (it takes parameters, not a base optimizer); ``step()`` without a closure is a plain gradient step. A step takes two
    gradients and n_probes/every Hessian-vector products (``last.products``). Two vectors of memory. M-SASSHA, the form
    with one gradient, is not included.

    Args:
        params: parameters or parameter groups.
        rho: radius >= 0 or a schedule; 0.1 to 0.3.
        lr: >= 0; 0.15 in the paper.
        betas: (b1, b2) in [0, 1).
        every: steps from one Hessian diagonal to the next, >= 1.
        n_probes: >= 2.
        power: of the curvature, in [0, 1]; 1/2 as in the paper.
        eps_denominator: > 0; at the paper's 1e-4 the digits network ends at chance or is not finite.
        curvature_at: ``"displaced"`` weights, w + e, as in the paper, or ``"weights"``, w.
        weight_decay: >= 0, decoupled.
        **engine: see ``SharpnessAware``; ``seed`` is that of the probes.

    References:
        Shin et al., SASSHA: Sharpness-aware Adaptive Second-order Optimization with Stable Hessian Approximation,
        ICML 2025.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import SASSHA
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = SASSHA([w], rho=0.2, lr=0.1)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure, loss=lambda: (a * w**2).sum() / 2)
        >>> w.data
        tensor([[ 0.8052, -1.8722]])
    """

    needs_loss = True
    vectors = ("moment", "curvature")

    def __init__(
        self,
        params: ParamsT,
        rho: float | Schedule = 0.1,
        *,
        lr: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        every: int = 10,
        n_probes: int = 2,
        power: float = 0.5,
        eps_denominator: float = 0.1,
        weight_decay: float = 0.0,
        curvature_at: str = "displaced",
        **engine: Unpack[EngineOptions],
    ) -> None:
        decay = checks.real("weight_decay", weight_decay, low=0)
        base = torch.optim.SGD(params, lr=checks.real("lr", lr, low=0), weight_decay=decay)
        super().__init__(base, rho, **engine)
        self.betas = decay_rates(betas)
        self.every = checks.positive_int("every", every)
        self.n_probes = checks.positive_int("n_probes", n_probes, minimum=2)
        self.power = checks.real("power", power, low=0, high=1)
        self.curvature_at = checks.one_of("curvature_at", curvature_at, ("displaced", "weights"))
        self.eps_denominator = checks.real("eps_denominator", eps_denominator, low=0, low_open=True)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        displacement = self.ascent(here.gradient)
        there = yield At(displacement)
        (b1, b2), since = self.betas, (self.t - 1) % self.every
        moment = ((self.recall("moment") or here.gradient.zeros()) * b1).add_(there.gradient, alpha=1 - b1)
        curvature = self.recall("curvature") or here.gradient.zeros()
        if since == 0:
            measured: Evaluation = yield self._diagonal_at(displacement if self.curvature_at == "displaced" else None)
            curvature = (curvature * b2).add_(measured.result, alpha=1 - b2)
            self.remember("curvature", curvature)
        self.remember("moment", moment)
        corrected = 1 - b2 ** (self.t - since)
        root = curvature.map(lambda h: (h / corrected).pow(self.power).add_(self.eps_denominator))
        return (moment * (1 / (1 - b1**self.t))) / root

    def _diagonal_at(self, displacement: Displacement | None) -> Curvature:
        source = self.generator()

        def measure(operator: LinearOperator) -> TensorList:
            estimate = diagonal(MeanOverRanks(self, operator), n_probes=self.n_probes, seed=source, method="hutchinson")
            values = estimate.values.abs().to(operator.dtype)
            parts = operator.split(values) if isinstance(operator, ParameterOperator) else [values]
            return TensorList(parts, self.fused())

        return Curvature(measure, displacement)

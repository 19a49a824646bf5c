"""SAM along gradients of earlier steps: AsyncSAM, VaSSO, Friendly SAM, Momentum SAM, SAMPa."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.optim.engine import Apply, At, Displacement, EngineOptions, Rule, SharpnessAware, TensorList, Update
from hessprobe.optim.schedules import Schedule


class AsyncSAM(SharpnessAware):
    """Asynchronous SAM: ascends along a gradient of the step before, so that the two gradients need not wait.

        base step with grad L_t(w_t + rho u(h)),        h from step t - 1

        ascent "clean":      h = grad L_{t-1}(w_{t-1}): two gradients a step, which could run in parallel
        ascent "descent":    h = the gradient that step t - 1 descended along: one gradient a step

    One vector of memory. The first step, which has no h, is the base's and costs one gradient. The paper uses the
    clean gradient one step old and computes it beside the descent, on a slower device and a smaller batch; here it
    comes from the step's own batch, one gradient after the other. "descent" is the cheap form that needs no second
    device; ``step`` then returns the loss at w + e.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        ascent: "clean" or "descent".
        **engine: see ``SharpnessAware``.

    References:
        Jo, Lim and Lee, Asynchronous Sharpness-Aware Minimization for Fast and Accurate Deep Learning, 2025.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import AsyncSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = AsyncSAM(torch.optim.SGD([w], lr=0.1), rho=0.2)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> first, second = opt.step(closure), opt.step(closure)
        >>> w.data
        tensor([[ 0.4331, -1.8018]])
    """

    vectors = ("past",)

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        ascent: str = "clean",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.source = checks.one_of("ascent", ascent, ("clean", "descent"))

    def rule(self) -> Rule:
        """See the class."""
        past = self.recall("past")
        if past is None or self.source == "clean":
            here = yield At()
            self.remember("past", here.gradient)
            if past is None:
                return here.gradient
        there = yield At(self.ascent(past))
        if self.source == "descent":
            self.remember("past", there.gradient)
        return there.gradient


class VaSSO(SharpnessAware):
    """Variance-suppressed sharpness-aware optimization: ascends along an average of gradients.

        d_t = (1 - theta) d_{t-1} + theta g_t,  d_0 = g_1,        base step with grad L(w + rho u(d_t))

    Two gradients a step, one vector of memory. theta = 1 is SAM.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule; 0.1 to 0.2 is usual.
        theta: in (0, 1]; the authors' code uses 0.9.
        **engine: see ``SharpnessAware``.

    References:
        Li and Giannakis, Enhancing Sharpness-Aware Optimization Through Variance Suppression, NeurIPS 2023.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import VaSSO
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = VaSSO(torch.optim.SGD([w], lr=0.1), rho=0.2, theta=0.9)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> first, second = opt.step(closure), opt.step(closure)
        >>> w.data
        tensor([[ 0.3958, -1.7978]])
    """

    vectors = ("direction",)

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.1,
        *,
        theta: float = 0.9,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.theta = checks.real("theta", theta, low=0, low_open=True, high=1)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        before = self.recall("direction")
        average = here.gradient if before is None else before * (1 - self.theta) + here.gradient * self.theta
        self.remember("direction", average)
        there = yield At(self.ascent(average))
        return there.gradient


class FriendlySAM(SharpnessAware):
    """Friendly SAM: ascends along what the batch gradient has beyond an average of gradients.

        d_t = g_t - sigma m_{t-1} (d_1 = g_1),    m_t = lam m_{t-1} + (1 - lam) g_t (m_1 = g_1),
        base step with grad L(w + rho u(d_t))

    The average used is that of the steps before, as in the authors' code. Two gradients a step, one vector of memory.
    sigma = 0 is SAM.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule; 0.2 on CIFAR-100.
        sigma: weight >= 0 of the average taken off.
        lam: in [0, 1), forgetting of the average; 0.6 to 0.95.
        **engine: see ``SharpnessAware``.

    References:
        Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import FriendlySAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = FriendlySAM(torch.optim.SGD([w], lr=0.1), rho=0.2, sigma=0.5)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> first, second = opt.step(closure), opt.step(closure)
        >>> w.data
        tensor([[ 0.4087, -1.7948]])
    """

    vectors = ("average",)

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.2,
        *,
        sigma: float = 1.0,
        lam: float = 0.9,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.sigma = checks.real("sigma", sigma, low=0)
        self.lam = checks.real("lam", lam, low=0, high=1, high_open=True)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        average = self.recall("average")
        if average is None:
            direction, latest = here.gradient, here.gradient
        else:
            direction = (average * -self.sigma).add_(here.gradient)
            latest = (average * self.lam).add_(here.gradient, alpha=1 - self.lam)
        self.remember("average", latest)
        there = yield At(self.ascent(direction))
        return there.gradient


class MomentumSAM(SharpnessAware):
    """Momentum SAM: takes its one gradient at a point displaced against the base optimizer's own momentum.

    With v the momentum buffer of SGD, or the first moment of Adam and AdamW, as the last step left it:

        e = -rho u(v)  (0 in the first step),        base step at w with grad L(w + e)

    The momentum points up the loss, as the gradients do, and w moves along -v: e looks ahead. **One** gradient a step
    and no memory beside the base's. The loss returned is that at w + e.

    A coupled weight decay (SGD, Adam) acts at the displaced weights, as in the authors' code: wd e is added to the
    gradient. A decoupled one (AdamW) acts at w. The authors' optimizers keep the live weights displaced between steps
    and need a swap for evaluation; here the displacement is made and undone within ``step``, so the weights are w
    whenever a step has ended.

    Args:
        base_optimizer: with momentum: SGD with ``momentum`` > 0, Adam, AdamW, or another that keeps ``momentum_buffer``
            or ``exp_avg``.
        rho: radius >= 0 or a schedule; 0.3 to 3 with SGD: the usual radius is far larger than SAM's.
        **engine: see ``SharpnessAware``.

    Raises:
        TypeError: the base has no momentum.

    References:
        Becker, Altrock, Risse, Momentum-SAM: Sharpness Aware Minimization without Computational Overhead, 2024.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import MomentumSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = MomentumSAM(torch.optim.SGD([w], lr=0.1, momentum=0.9), rho=0.2)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> first, second = opt.step(closure), opt.step(closure)
        >>> w.data
        tensor([[ 0.2769, -1.7182]])
    """

    def __init__(
        self, base_optimizer: torch.optim.Optimizer, rho: float | Schedule = 0.3, **engine: Unpack[EngineOptions]
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        for group in self.param_groups:
            _buffer_name(group, base_optimizer)

    def rule(self) -> Rule:
        """See the class."""
        momentum = self._momentum()
        if momentum is None:
            here = yield At()
            return here.gradient
        inverse = 1.0 / (self.perturbed(momentum).norm() + self.eps)
        displacement = self.displacement(momentum, -inverse)
        there = yield At(displacement)
        return self._with_decay(there.gradient, displacement)

    def _momentum(self) -> TensorList | None:
        names = [_buffer_name(group, self.base_optimizer) for _, group in self._layout]
        found = [self.state.get(p, {}).get(name) for p, name in zip(self.parameters(), names, strict=True)]
        if all(buffer is None for buffer in found):
            return None
        # Sparse gradients leave a sparse momentum.
        dense = [b.to_dense() if b is not None and b.layout is not torch.strided else b for b in found]
        buffers = [torch.zeros_like(p) if b is None else b for b, p in zip(dense, self.parameters(), strict=True)]
        return TensorList(buffers, self.fused())

    def _with_decay(self, gradient: TensorList, displacement: Displacement) -> TensorList:
        decays = [
            0.0 if group.get("decoupled_weight_decay", False) else float(group.get("weight_decay", 0.0))
            for _, group in self._layout
        ]
        if not any(decays):
            return gradient
        factors = [decay * factor for decay, factor in zip(decays, displacement.factors, strict=True)]
        return gradient + Displacement(displacement.direction, factors).dense()


def _buffer_name(group: dict[str, object], base: torch.optim.Optimizer) -> str:
    if "betas" in group:
        return "exp_avg"
    if not group.get("momentum", 0.0):
        raise TypeError(
            f"base_optimizer must have momentum; got {type(base).__name__} without. "
            "Use torch.optim.SGD(..., momentum=0.9) or AdamW."
        )
    return "momentum_buffer"


class SAMPa(SharpnessAware):
    """SAMPa: the ascent follows the gradient at an auxiliary point y, known since the step before.

        with h = grad L_A(y) of the step before, on its batch A:
        x~ = w + rho u(h),    y = w - lr h
        base step with (1 - lam) grad L_A(x~) + lam grad L_B(y),        and grad L_B(y) is the next h

    The gradient at x~ is that of the *previous* batch, on which its direction was found: an ascent along one batch says
    little of another. It is taken at the end of the previous ``step``, from the weights which that leads to and with
    its radius, so that no batch has to be kept; where that evaluation fails the step itself has gone through, and the
    next one starts afresh. Two gradients a step, in the first one (h is not known: the step is the base's) too; they
    could run in parallel, here they run one after the other. Two vectors of memory. The loss that ``step`` returns is
    the one at y (at w in the first step). The weights must not be changed between steps by anything but ``step``.

    convention "code": y = w - lr (h + weight_decay w + momentum b) where the base has a momentum buffer b, as in the
    authors' script for SGD; "paper": as above.

    Args:
        base_optimizer: see ``SharpnessAware``; its groups need ``lr``.
        rho: radius >= 0 or a schedule.
        lam: in [0, 1]; 0 is SAMPa without the gradient at y in its step.
        convention: "paper" or "code".
        **engine: see ``SharpnessAware``.

    References:
        Xie, Pethick and Cevher, SAMPa: Sharpness-aware Minimization Parallelized, NeurIPS 2024.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import SAMPa
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = SAMPa(torch.optim.SGD([w], lr=0.1), rho=0.2, lam=0.2)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> first, second = opt.step(closure), opt.step(closure)
        >>> w.data
        tensor([[ 0.4625, -1.8035]])
    """

    vectors = ("auxiliary", "ascended")

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.1,
        *,
        lam: float = 0.2,
        convention: str = "paper",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.lam = checks.real("lam", lam, low=0, high=1)
        self.convention = checks.one_of("convention", convention, ("paper", "code"))

    def rule(self) -> Rule:
        """See the class."""
        known, ascended = self.recall("auxiliary"), self.recall("ascended")
        if known is None or ascended is None:
            here = yield At()
            auxiliary = direction = here.gradient
        else:
            ahead = yield At(self._trial_step(known))
            auxiliary, direction = ahead.gradient, ascended.map(self._mixed, ahead.gradient)
        self.remember("auxiliary", auxiliary)
        self.forget("ascended")
        yield Apply(Update(direction))
        there = yield At(self.ascent(auxiliary))
        self.remember("ascended", there.gradient)
        return None

    def _mixed(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.lerp(first, second, self.lam)

    def _trial_step(self, known: TensorList) -> TensorList:
        groups = zip(*(self.group_values(name, 0.0) for name in ("lr", "weight_decay", "momentum")), strict=True)
        steps = []
        for slope, parameter, weight, (lr, decay, momentum) in zip(
            known.tensors, self.parameters(), self.weights.original().tensors, groups, strict=True
        ):
            buffer = self.state[parameter].get("momentum_buffer") if self.convention == "code" else None
            whole = slope if buffer is None else slope + weight * decay + buffer * momentum
            steps.append(whole * -float(lr))
        return TensorList(steps, known.foreach)

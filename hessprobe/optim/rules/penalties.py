"""SAM with a penalty beside it: surrogate gap, gradient norm, curvature along the ascent."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.optim.engine import At, EngineOptions, Rule, SharpnessAware, TensorList, Update
from hessprobe.optim.schedules import Schedule


class GSAM(SharpnessAware):
    """Surrogate-gap guided SAM: lowers the perturbed loss, and the gap to it along what that leaves free.

        g_p = grad L(w + rho u(g)),    g_perp = g - (<g, g_p>/norm(g_p)^2) g_p,    base step with g_p - alpha g_perp

    Two gradients a step. The paper lets the radius follow the learning rate: ``rho=LikeLr(rho_max, rho_min, lr_max)``.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        alpha: weight >= 0 of the gap; 0 is SAM.
        **engine: see ``SharpnessAware``.

    References:
        Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR 2022.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import GSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = GSAM(torch.optim.SGD([w], lr=0.1), rho=0.2, alpha=0.4)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6417, -1.9017]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        alpha: float = 0.4,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.alpha = checks.real("alpha", alpha, low=0)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        there = yield At(self.ascent(here.gradient))
        orthogonal = here.gradient - here.gradient.project(there.gradient)
        return orthogonal.mul_(-self.alpha).add_(there.gradient)


class SAGM(SharpnessAware):
    """Sharpness-aware gradient matching: lowers loss, perturbed loss and the angle between their gradients.

        g_p = grad L_B(w + (rho/norm(g) - alpha) g),        base step with (g + g_p)/2

    Two gradients a step.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        alpha: step back >= 0 along the gradient; in units of a learning rate.
        **engine: see ``SharpnessAware``.

    References:
        Wang et al., Sharpness-Aware Gradient Matching for Domain Generalization, CVPR 2023.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import SAGM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = SAGM(torch.optim.SGD([w], lr=0.1), rho=0.2, alpha=0.001)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6720, -1.8984]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        alpha: float = 0.001,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.alpha = checks.real("alpha", alpha, low=0)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        keep = self.group_values("perturb")
        movable = here.gradient if all(keep) else here.gradient.where(keep)
        there = yield At(self.ascent(movable).mapped(lambda factor: factor - self.alpha))
        return (here.gradient + there.gradient).mul_(0.5)


class WSAM(SharpnessAware):
    """Weighted SAM: sharpness as a regularizer of weight a = gamma/(1 - gamma).

    With g_t = grad L(w + rho u(g)):

        decoupled:  base step with g, then w <- w - lr a (g_t - g)
        coupled:    base step with (1 - a) g + a g_t

    ``clip_grad_norm`` bounds g and g_t, each by itself, as in the authors' code: a step of plain SGD is at most
    lr (1 + 2 a) clip_grad_norm long decoupled, and lr (|1 - a| + a) clip_grad_norm coupled.

    Two gradients a step. gamma = 1/2 coupled is SAM, gamma = 0 the base optimizer.

    Args:
        base_optimizer: see ``SharpnessAware``; its groups need ``lr``.
        rho: radius >= 0 or a schedule.
        gamma: in [0, 1); 0.8 to 0.95 is usual.
        decouple: keep the sharpness term out of the base's momentum and preconditioning.
        **engine: see ``SharpnessAware``.

    References:
        Yue et al., Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization Term, KDD 2023.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import WSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = WSAM(torch.optim.SGD([w], lr=0.1), rho=0.2, gamma=0.9)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.1877, -1.8715]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        gamma: float = 0.9,
        decouple: bool = True,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.gamma = checks.real("gamma", gamma, low=0, high=1, high_open=True)
        self.decouple = decouple

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        there = yield At(self.ascent(here.gradient))
        return lambda: self._update(here.gradient, there.gradient)

    def _update(self, first: TensorList, second: TensorList) -> Update:
        slope, alpha = self.clipped(first), self.gamma / (1 - self.gamma)
        sharpness = (self.clipped(second) - slope) * alpha
        if self.decouple:
            return Update(slope, decoupled=sharpness, is_clipped=True)
        return Update(slope + sharpness, is_clipped=True)


class PGN(SharpnessAware):
    """Penalizing the gradient norm (GNP): the gradient of L + lambda norm(grad L), by a finite difference.

        base step with (1 - alpha) g + alpha grad L_B(w + rho u(g)),        lambda = alpha rho

    Two gradients a step. alpha = 1 is SAM, alpha = 0 the base optimizer. With ``normalize=True`` the first term is
    (1 - alpha) u(g): the authors' code does so where its flag ``norm_perturbations`` is set, as it is by default,
    which differs from the formula of the paper (and makes the direction depend on the scale of the loss).

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 of the difference (r in the paper) or a schedule.
        alpha: in [0, 1].
        normalize: use u(g) in place of g in the first term.
        **engine: see ``SharpnessAware``.

    References:
        Zhao et al., Penalizing Gradient Norm for Efficiently Improving Generalization in Deep Learning, ICML 2022.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import PGN
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = PGN(torch.optim.SGD([w], lr=0.1), rho=0.2, alpha=0.8)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6545, -1.8975]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.1,
        *,
        alpha: float = 0.8,
        normalize: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.alpha, self.normalize = checks.real("alpha", alpha, low=0, high=1), normalize

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        there = yield At(self.ascent(here.gradient))
        start = here.gradient.unit(self.eps) if self.normalize else here.gradient

        def mixed(first: Tensor, second: Tensor) -> Tensor:
            return torch.lerp(first, second, self.alpha)

        return start.map(mixed, there.gradient)


class GAM(SharpnessAware):
    """Gradient-norm aware minimization, accelerated: first-order flatness, the largest gradient norm nearby.

        g_0 = grad L_B(w),                     g_1 = grad L_B(w + rho u(g_0))
        e = norm_rho u(g_1 - g_0)
        g_2 = grad L_B(w + e),                 g_3 = grad L_B(w + e + rho u(g_2))
        d = beta1 g_1 + (1 - beta1) g_3,       m = g_0 + abs(1 - beta0) g_2
        base step with d - gamma (m - proj_d m)

    Four gradients a step. beta1 = 1 and gamma = 0 is SAM. Settings of the authors: CIFAR-100 with ResNets as the
    defaults here; CIFAR-10 norm_rho 0.2, rho 0.03, beta0 0.1, beta1 0.1, gamma 0.05.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 of the differences, or a schedule.
        norm_rho: radius >= 0 of the ascent of the gradient norm, in every group that is perturbed.
        beta0, beta1: in [0, 1].
        gamma: weight >= 0 of what is orthogonal to d.
        **engine: see ``SharpnessAware``.

    References:
        Zhang et al., Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves Generalization, CVPR
        2023.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import GAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = GAM(torch.optim.SGD([w], lr=0.1), rho=0.02, norm_rho=0.2)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6703, -1.8996]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.02,
        *,
        norm_rho: float = 0.2,
        beta0: float = 0.5,
        beta1: float = 0.6,
        gamma: float = 0.03,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.norm_rho, self.gamma = checks.real("norm_rho", norm_rho, low=0), checks.real("gamma", gamma, low=0)
        self.beta0 = checks.real("beta0", beta0, low=0, high=1)
        self.beta1 = checks.real("beta1", beta1, low=0, high=1)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        near = yield At(self.ascent(here.gradient))
        steeper = self.ascent(near.gradient - here.gradient, radius=self.norm_rho).dense()
        steep = yield At(steeper)
        far = yield At(steeper + self.ascent(steep.gradient).dense())

        def mixed(first: Tensor, second: Tensor) -> Tensor:
            return torch.lerp(first, second, self.beta1)

        descent = far.gradient.map(mixed, near.gradient)
        mass = here.gradient + steep.gradient * (1 - self.beta0)
        return descent - (mass - mass.project(descent)).mul_(self.gamma)


class CFlat(SharpnessAware):
    """C-Flat: SAM plus lam times the sharpness gradient where the gradient norm is larger, for continual learning.

        g_0 = grad L_B(w),            g_1 = grad L_B(w + rho u(g_0))
        e = norm_rho u(g_1 - g_0)
        g_2 = grad L_B(w + e),        g_3 = grad L_B(w + e + rho u(g_2))
        base step with g_1 + lam (g_3 - g_2)

    Four gradients a step, at the points of ``GAM``. lam = 0 is SAM. The paper has one radius for both steps; the
    INFTY package fixes norm_rho = 1.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        lam: weight >= 0.
        norm_rho: radius >= 0 of the ascent of the gradient norm, None for rho.
        **engine: see ``SharpnessAware``.

    References:
        Bian et al., Make Continual Learning Stronger via C-Flat, NeurIPS 2024.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import CFlat
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = CFlat(torch.optim.SGD([w], lr=0.1), rho=0.2, lam=0.2)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6315, -1.8963]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.1,
        *,
        lam: float = 0.2,
        norm_rho: float | None = None,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.lam = checks.real("lam", lam, low=0)
        self.norm_rho = None if norm_rho is None else checks.real("norm_rho", norm_rho, low=0)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        near = yield At(self.ascent(here.gradient))
        steeper = self.ascent(near.gradient - here.gradient, radius=self.norm_rho).dense()
        steep = yield At(steeper)
        far = yield At(steeper + self.ascent(steep.gradient).dense())
        return (far.gradient - steep.gradient).mul_(self.lam).add_(near.gradient)


class CRSAM(SharpnessAware):
    """Curvature-regularized SAM: also lowers the curvature along the ascent direction, by finite differences.

        e = rho u(g),    g_+ = grad L_B(w + e),    g_- = grad L_B(w - e)
        base step with g_+ + gamma (g_+ + g_- - 2 g) + beta (g_+ - g_-)

    Three gradients a step. gamma = beta = 0 is SAM.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        gamma: weight >= 0 of the second difference (a trace of the Hessian along e).
        beta: weight >= 0 of the first difference.
        **engine: see ``SharpnessAware``.

    References:
        Wu et al., CR-SAM: Curvature Regularized Sharpness-Aware Minimization, AAAI 2024.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import CRSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = CRSAM(torch.optim.SGD([w], lr=0.1), rho=0.2, gamma=0.1)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6419, -1.8968]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.1,
        *,
        gamma: float = 0.1,
        beta: float = 0.01,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.gamma, self.beta = checks.real("gamma", gamma, low=0), checks.real("beta", beta, low=0)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        forward = self.ascent(here.gradient)
        up = yield At(forward)
        down = yield At(forward.mapped(lambda factor: -factor))
        bend = (up.gradient + down.gradient).add_(here.gradient, alpha=-2.0)
        slope = up.gradient - down.gradient
        return bend.mul_(self.gamma).add_(slope, alpha=self.beta).add_(up.gradient)

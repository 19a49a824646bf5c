"""Rules about the ascent step itself: SAM, and its relatives with another length, budget or number of steps."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.optim.engine import At, Displacement, EngineOptions, Rule, SharpnessAware, TensorList, Update
from hessprobe.optim.engine.gradients import laid_out_as
from hessprobe.optim.engine.tensors import Scalar, beside, whole
from hessprobe.optim.schedules import Schedule


class SAM(SharpnessAware):
    """Sharpness-aware minimization: the gradient at the end of an ascent step of length rho.

    With g = grad L_B(w) and u(v) = v/norm(v):

        e = rho u(g),        base step at w with grad L_B(w + e)

    Two gradients a step. With ``adaptive=True`` it is adaptive SAM as most packages have it, on all tensors alike:

        e = rho T^2 g/norm(T g),        T = diag(abs(w))

    (``ASAM(..., eta=0, exclude_bias=False)``; see that class for the paper's form).

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule; 0.05 to 0.2 is usual (vision transformers 0.1 to 0.2), and about 2 where
            adaptive.
        adaptive: see above.
        **engine: see ``SharpnessAware``.

    References:
        Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021.
        Kwon et al., ASAM, ICML 2021.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import SAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = SAM(torch.optim.SGD([w], lr=0.1), rho=0.2)
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
        adaptive: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.adaptive = adaptive

    def rule(self) -> Rule:
        """See the class."""
        if self.adaptive:
            there = yield At(self._stretched((yield At()).gradient))
            return there.gradient
        # No name is given to the first gradient: its memory is free again during the second pass.
        there = yield At(self.ascent((yield At()).gradient))
        return there.gradient

    def _stretched(self, gradient: TensorList) -> Displacement:
        scale = self.weights.original().map(torch.abs)
        scaled = gradient * scale
        return self.ascent(scaled * scale, self.perturbed(scaled).norm())


class USAM(SharpnessAware):
    """Unnormalized SAM: an ascent step of rho times the gradient, so that it shrinks where the gradient does.

        base step with grad L_B(w + rho g)

    Two gradients a step. Here rho is a step size, not a length: theory wants rho <= 1/L for an L-smooth loss, and the
    direction changes when the loss is multiplied by a constant. Arguments are those of ``SharpnessAware``. It is
    ``UnifiedSAM`` with lam = 0.

    References:
        Andriushchenko and Flammarion, Towards Understanding Sharpness-Aware Minimization, ICML 2022.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import USAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = USAM(torch.optim.SGD([w], lr=0.1), rho=0.2)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.5200, -1.8900]])
    """

    def rule(self) -> Rule:
        """See the class."""
        # No name is given to the first gradient: its memory is free again during the second pass.
        there = yield At(self.displacement((yield At()).gradient))
        return there.gradient


class UnifiedSAM(SharpnessAware):
    """Unified SAM: SAM and unnormalized SAM in one rule, with a constant or moving weight lam between them.

        e = rho (1 - lam_t + lam_t/norm(g)) g,        base step with grad L_B(w + e)

    Two gradients a step. lam = 1 is SAM, lam = 0 is USAM; "1/t" goes from SAM to USAM, "1-1/t" from USAM to SAM, with
    t = 1 at the first step. The published theorems are about constant lam. For their sampling schemes see
    ``hessprobe.optim.sampling``.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        lam: in [0, 1], or "1/t" or "1-1/t".
        **engine: see ``SharpnessAware``.

    References:
        Oikonomou and Loizou, Sharpness-Aware Minimization: General Analysis and Improved Rates, ICLR 2025.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import UnifiedSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = UnifiedSAM(torch.optim.SGD([w], lr=0.1), rho=0.2, lam=0.5)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.5815, -1.8934]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        lam: float | str = 0.5,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        if isinstance(lam, str):
            self.lam: float | str = checks.one_of("lam", lam, ("1/t", "1-1/t"))
        else:
            self.lam = checks.real("lam", lam, low=0, high=1)

    def rule(self) -> Rule:
        """See the class."""
        # No name is given to the first gradient: its memory is free again during the second pass.
        there = yield At(self._displacement((yield At()).gradient))
        return there.gradient

    def _displacement(self, gradient: TensorList) -> Displacement:
        lam, norm = self._weight(), self.perturbed(gradient).norm()
        return self.displacement(gradient, 1 - lam + lam / (norm + self.eps))

    def _weight(self) -> float:
        if isinstance(self.lam, float):
            return self.lam
        return 1 / self.t if self.lam == "1/t" else 1 - 1 / self.t


class StableSAM(SharpnessAware):
    """Stable SAM: SAM's direction with the length of the gradient at w.

        g_t = grad L_B(w + rho u(g)),        base step with (norm(g)/norm(g_t)) g_t

    or the same after USAM's ascent, w + rho g, with ``normalize=False``. The authors' code has both forms, and is
    followed by both; its instructions show the second. Two gradients a step; norms are over all parameters. Not Sparse
    SAM, which shares the name SSAM.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        normalize: ascend by rho along the gradient, rather than by rho times the gradient.
        **engine: see ``SharpnessAware``.

    References:
        Tan et al., Stabilizing Sharpness-Aware Minimization Through A Simple Renormalization Strategy, JMLR 2025.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import StableSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = StableSAM(torch.optim.SGD([w], lr=0.1), rho=0.2)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6962, -1.9122]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        normalize: bool = True,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.normalize = normalize

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        there = yield At(self.ascent(here.gradient) if self.normalize else self.displacement(here.gradient))
        length = there.gradient.norm()
        ratio = here.gradient.norm() / length.clamp_min(torch.finfo(length.dtype).tiny)
        return there.gradient * torch.where(length > 0, ratio, 0.0)


class LESAM(SharpnessAware):
    """Loss-equated SAM: the ascent is as long as it takes to raise the (linearized) loss by sigma, rho at most.

        e = min(sigma_t/norm(g), rho) u(g),        base step with grad L_B(w + e)

    Two gradients a step. A large sigma gives SAM. The formula is that of the authors' code. Its numbers differ from
    place to place: sigma 0.35 with rho at most 0.3 in the training script, without a bound in the instructions, 0.1
    and 0.05 in the class. The script raises sigma from 0 over the first 10 epochs and lowers it to 0 by a cosine over
    the last 40 of 200 (give a schedule). The defaults here are ours.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: greatest radius >= 0 or a schedule.
        sigma: rise of the loss >= 0, or a schedule (t, lr) -> sigma.
        **engine: see ``SharpnessAware``.

    References:
        Wang et al., Fix the Loss, Not the Radius: Rethinking the Adversarial Perturbation of Sharpness-Aware
        Minimization, ICML 2026.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import LESAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = LESAM(torch.optim.SGD([w], lr=0.1), rho=0.5, sigma=0.1)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6910, -1.8995]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.2,
        *,
        sigma: float | Schedule = 0.1,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.sigma = sigma if callable(sigma) else checks.real("sigma", sigma, low=0)

    def rule(self) -> Rule:
        """See the class."""
        # No name is given to the first gradient: its memory is free again during the second pass.
        there = yield At(self._displacement((yield At()).gradient))
        return there.gradient

    def _displacement(self, gradient: TensorList) -> Displacement:
        inverse = 1.0 / (self.perturbed(gradient).norm() + self.eps)
        bound = inverse.square() * self._rise()

        def capped(factor: Scalar) -> Scalar:
            if isinstance(factor, Tensor):
                return torch.minimum(factor, bound.to(factor))
            return min(factor, float(bound))

        return self.displacement(gradient, inverse).mapped(capped)

    def _rise(self) -> float:
        if not callable(self.sigma):
            return self.sigma
        return checks.real("sigma", self.sigma(self.t, float(self.param_groups[0].get("lr", 0.0))), low=0)


class Extragradient(SharpnessAware):
    """The extragradient method: the gradient after a trial step downhill, the descent twin of USAM.

        form "same":    z = w - rho grad L_B(w),          base step at w with grad L_B(z)
        form "past":    z_t = w_t - rho g_{t-1},          base step at w_t with g_t = grad L_B(z_t)

    Both gradients of "same" see the same batch: it is USAM with rho replaced by -rho, and costs two gradients a step.
    "past" goes on with the gradient of the step before (Popov), costs one, remembers one vector, and starts at z = w;
    the loss that ``step`` returns is the one at z.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: step size >= 0 of the trial step, or a schedule.
        form: "same" or "past".
        **engine: see ``SharpnessAware``.

    References:
        Korpelevich, The extragradient method for finding saddle points and other problems, Matecon 1976.
        Popov, A modification of the Arrow-Hurwicz method for search of saddle points, Mat. Zametki 1980.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import Extragradient
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = Extragradient(torch.optim.SGD([w], lr=0.1), rho=0.2)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.8800, -1.9100]])
    """

    vectors = ("past",)

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        form: str = "same",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.form = checks.one_of("form", form, ("same", "past"))

    def rule(self) -> Rule:
        """See the class."""
        if self.form == "same":
            there = yield At(self.displacement((yield At()).gradient, -1.0))
            return there.gradient
        past = self.recall("past")
        there = yield At(None if past is None else self.displacement(past, -1.0))
        self.remember("past", there.gradient)
        return there.gradient


class LookbehindSAM(SharpnessAware):
    """Lookbehind: k ascent steps, k descent steps with the gradients found on the way, then part of the way back.

        e_0 = 0,    e_i = e_{i-1} + rho u(grad L_B(w + e_{i-1})),    g_i = grad L_B(w + e_i),        i = 1, ..., k
        fast weights: k base steps in a row from w, with g_1, ..., g_k
        w <- w + alpha (fast - w)

    k + 1 gradients a step (the authors' script computes 2 k, half of them twice), k vectors of memory during the step.
    k = 1 with alpha = 1 is SAM. ``alpha="adaptive"`` takes (cos + 1)/2 for each tensor, cos between the first fast
    step and all of them, as the authors' code. The learning-rate schedule sees one step, the base's own step counter k.
    All k gradients are of the step's own batch. ``clip_grad_norm`` bounds each of them.

    A step is k base steps on one batch: for k above 2 the learning rate wants to be lower than SAM's by about that
    factor. The digits network (20 % wrong labels, batches of 32, momentum 0.9) ends at chance in most runs with lr 0.1
    and k = 5, and at 97.0 to 97.5 % with lr 0.02; the authors' loop written out by itself does the same.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 of each ascent step, or a schedule.
        k: number of ascent steps >= 1; 2 to 10 in the paper.
        alpha: in (0, 1], or "adaptive".
        **engine: see ``SharpnessAware``; ``sync="local"`` is not supported.

    References:
        Mordido et al., Lookbehind-SAM: k Steps Back, 1 Step Forward, ICML 2024.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import LookbehindSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = LookbehindSAM(torch.optim.SGD([w], lr=0.1), rho=0.2, k=2)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6143, -1.8954]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        k: int = 2,
        alpha: float | str = 0.5,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.k = checks.positive_int("k", k)
        self.is_adaptive = isinstance(alpha, str)
        if isinstance(alpha, str):
            checks.one_of("alpha", alpha, ("adaptive",))
            self.alpha = 1.0
        else:
            self.alpha = checks.real("alpha", alpha, low=0, low_open=True, high=1)
        if self.sync == "local":
            raise ValueError("sync must be 'global' for LookbehindSAM, which takes k base steps at once; got 'local'.")

    def rule(self) -> Rule:
        """See the class."""
        latest = yield At()
        found: list[TensorList] = []
        where: Displacement | TensorList | None = None
        for _ in range(self.k):
            further = self.ascent(latest.gradient)
            where = further if where is None else _together(where, further)
            latest = yield At(where)
            found.append(latest.gradient)
        if self.k == 1 and self.alpha == 1:
            return found[0]
        start = self.weights.original().clone()
        return Update(found[0], then=lambda: self._go_on(start, found[1:]))

    def _go_on(self, start: TensorList, gradients: list[TensorList]) -> None:
        parameters = self.parameters()
        first = [p.detach().clone() for p in parameters] if self.is_adaptive else None
        for gradient in gradients:
            for parameter, tensor in zip(parameters, gradient.tensors, strict=True):
                parameter.grad = None if parameter.grad is None else laid_out_as(tensor, parameter.grad)
            self.clip_gradients()
            self.base_optimizer.step()
        for index, (parameter, slow) in enumerate(zip(parameters, start.tensors, strict=True)):
            way = parameter.detach() - slow
            part = self.alpha if first is None else _agreement(whole(first[index] - slow), whole(way))
            parameter.copy_(slow + way * beside(part, way))


def _together(first: Displacement | TensorList, second: Displacement) -> TensorList:
    return (first if isinstance(first, TensorList) else first.dense()) + second.dense()


def _agreement(first: Tensor, total: Tensor) -> Tensor:
    cosine = torch.nn.functional.cosine_similarity(first.reshape(1, -1), total.reshape(1, -1))
    return (cosine.reshape(()) + 1) / 2

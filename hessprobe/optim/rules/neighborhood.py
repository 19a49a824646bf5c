"""SAM in neighborhoods of other shapes: adaptive, Fisher, preconditioned, gradient-centralized."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, Unpack

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.optim import selection
from hessprobe.optim.engine import At, Displacement, EngineOptions, Rule, SharpnessAware, TensorList
from hessprobe.optim.schedules import Schedule


class ASAM(SharpnessAware):
    """Adaptive SAM: the neighborhood is stretched by the size of each weight.

        T = diag(abs(w) + eta) on weights, T = I on biases
        e = rho T^2 g/norm(T g),        base step with grad L_B(w + e)

    Two gradients a step. With eta = 0 and ``exclude_bias=False`` the perturbed loss does not change under rescalings
    of the weights that leave the network's function as it is.

    What a bias is: the authors' code takes T = abs(w) + eta where "weight" is part of the parameter's name, which
    counts the scales of normalization layers in. With ``model=`` that is what happens here. Optimizers do not know
    names: without ``model`` weights are the tensors of two or more dimensions, so those scales are left out. Other
    packages use eta = 0 on all tensors (``eta=0, exclude_bias=False``), where a larger rho, about 2, is usual.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule; 0.5 in the paper.
        eta: >= 0, keeps small weights movable.
        exclude_bias: take T = 1 for biases.
        **engine: see ``SharpnessAware``.

    References:
        Kwon et al., ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks,
        ICML 2021.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import ASAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = ASAM(torch.optim.SGD([w], lr=0.1), rho=0.5, eta=0.01)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.5738, -1.8722]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.5,
        *,
        eta: float = 0.01,
        exclude_bias: bool = True,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.eta, self.exclude_bias = checks.real("eta", eta, low=0), exclude_bias

    def rule(self) -> Rule:
        """See the class."""
        # No name is given to the first gradient: its memory is free again during the second pass.
        there = yield At(self._displacement((yield At()).gradient))
        return there.gradient

    def _displacement(self, gradient: TensorList) -> Displacement:
        scale = self._scale()
        scaled = gradient * scale
        return self.ascent(scaled * scale, self.perturbed(scaled).norm())

    def _scale(self) -> TensorList:
        weights = self.weights.original()
        parameters = self.parameters()
        adaptive = selection.are_weights(parameters, self.model) if self.exclude_bias else [True] * len(parameters)
        pairs = zip(weights.tensors, adaptive, strict=True)
        scales = [w.abs().add_(self.eta) if chosen else torch.ones_like(w) for w, chosen in pairs]
        return TensorList(scales, weights.foreach)


class FisherSAM(SharpnessAware):
    """Fisher SAM: the neighborhood is an ellipsoid of the (diagonal, one-batch) Fisher information.

        F^{-1} = 1/(1 + eta g^2) by coordinate
        e = rho F^{-1} g/sqrt(g' F^{-1} g),        base step with grad L_B(w + e)

    Two gradients a step. eta = 0 is SAM. There is no code by the authors. Certain: the ellipsoid and the length, which
    follow from maximising a linear loss over it. Not certain: the form 1/(1 + eta g^2) of the inverse, which is that of
    two public implementations (by others) and agrees with them.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule (gamma in the paper).
        eta: weight >= 0 of the Fisher information beside the identity; 0.2 to 1 is usual.
        **engine: see ``SharpnessAware``.

    References:
        Kim et al., Fisher SAM: Information Geometry and Sharpness Aware Minimisation, ICML 2022.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import FisherSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = FisherSAM(torch.optim.SGD([w], lr=0.1), rho=0.2, eta=1.0)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6848, -1.8958]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.1,
        *,
        eta: float = 1.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.eta = checks.real("eta", eta, low=0)

    def rule(self) -> Rule:
        """See the class."""
        # No name is given to the first gradient: its memory is free again during the second pass.
        there = yield At(self._displacement((yield At()).gradient))
        return there.gradient

    def _displacement(self, gradient: TensorList) -> Displacement:
        natural = gradient.map(lambda g: g / (g.square() * self.eta + 1))
        return self.ascent(natural, self.perturbed(gradient).dot(self.perturbed(natural)).sqrt())


Diagonal: TypeAlias = Callable[[TensorList, TensorList], TensorList]


class PreSAM(SharpnessAware):
    """Preconditioned SAM: one preconditioner D on the neighborhood, another C on what is maximized in it.

        e = argmax of <C g, e> over norm(D^{-1} e) <= rho = rho D^2 C g/norm(D C g)        (D, C diagonal)
        base step with grad L_B(w + e)

    Two gradients a step. C = D = I is SAM; D = abs(w) is ASAM with eta = 0 on all tensors; D = (1 + g^2)^{-1/2} is
    Fisher SAM with eta = 1; C a mask of zeros and ones gives sparse SAM with the norm of what is kept. The closed form
    is derived from the constrained problem (norm(D^{-1} e) = rho exactly).

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        constraint: D: "identity", "weights" (abs(w)), "fisher", or a function of (weights, gradient), two
            ``TensorList``, that returns the diagonal, positive where it matters; a function at the top level of a
            module if the optimizer is to be pickled.
        objective: C: "identity" or such a function.
        **engine: see ``SharpnessAware``.

    References:
        Zhang, Li and Giannakis, Preconditioned Sharpness-Aware Minimization: Unifying Analysis and a Novel Learning
        Algorithm, ICASSP 2025.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import PreSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = PreSAM(torch.optim.SGD([w], lr=0.1), rho=0.2)
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
        constraint: str | Diagonal = "identity",
        objective: str | Diagonal = "identity",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.constraint = _named("constraint", constraint, ("identity", "weights", "fisher"))
        self.objective = _named("objective", objective, ("identity",))

    def rule(self) -> Rule:
        """See the class."""
        # No name is given to the first gradient: its memory is free again during the second pass.
        there = yield At(self._displacement((yield At()).gradient))
        return there.gradient

    def _displacement(self, gradient: TensorList) -> Displacement:
        weights = self.weights.original()
        aim = _times(self.objective, gradient, weights, gradient)
        inner = _times(self.constraint, aim, weights, gradient)
        return self.ascent(_times(self.constraint, inner, weights, gradient), self.perturbed(inner).norm())


def _named(name: str, value: str | Diagonal, known: tuple[str, ...]) -> str | Diagonal:
    return value if callable(value) else checks.one_of(name, value, known)


def _times(diagonal: str | Diagonal, vector: TensorList, weights: TensorList, gradient: TensorList) -> TensorList:
    if diagonal == "identity":
        return vector
    if diagonal == "weights":
        return vector * weights.map(torch.abs)
    if diagonal == "fisher":
        return vector * gradient.map(lambda g: (g.square() + 1).rsqrt())
    if not callable(diagonal):
        raise TypeError(f"a preconditioner must be a name or a function of (weights, gradient); got {diagonal!r}.")
    return vector * diagonal(weights, gradient)


class GCSAM(SharpnessAware):
    """Gradient-centralized SAM: takes the mean over the fan-in of every output unit off the gradient, then ascends.

        c(g): for tensors of two or more dimensions, g minus its mean over all dimensions but the first
        e = rho u(c(g)),        base step with grad L_B(w + e)

    Two gradients a step. One summary of the paper centers the gradient of the descent as well:
    ``centralize_descent=True``.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        centralize_descent: base step with c(grad L_B(w + e)).
        **engine: see ``SharpnessAware``.

    References:
        Hassan et al., GCSAM: Gradient Centralized Sharpness Aware Minimization, IEEE Access 2025.
        Yong et al., Gradient Centralization: A New Optimization Technique for Deep Neural Networks, ECCV 2020.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import GCSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = GCSAM(torch.optim.SGD([w], lr=0.1), rho=0.2)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6576, -1.8929]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        centralize_descent: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.centralize_descent = centralize_descent

    def rule(self) -> Rule:
        """See the class."""
        # No name is given to the first gradient: its memory is free again during the second pass.
        there = yield At(self.ascent((yield At()).gradient.map(_centered)))
        return there.gradient.map(_centered) if self.centralize_descent else there.gradient


def _centered(gradient: Tensor) -> Tensor:
    if gradient.ndim < 2:
        return gradient
    return gradient - gradient.mean(dim=tuple(range(1, gradient.ndim)), keepdim=True)

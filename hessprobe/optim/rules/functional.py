"""Functional-SAM: SAM without the path through the derivative of the loss."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.optim.engine import At, Displacement, EngineOptions, Rule, SharpnessAware, TensorList
from hessprobe.optim.engine.closures import ClosureKind
from hessprobe.optim.schedules import Schedule


class FunctionalSAM(SharpnessAware):
    """Functional-SAM: the Jacobian at the displaced weights, the loss's derivative at the outputs of the weights.

    With outputs F(w), their Jacobian J(w) and l' = dL/dF at F(w):

        e = rho u(g),        base step with J(w + e)' l'

    SAM pulls back dL/dF at F(w + e) in place of l'. To first order SAM adds H e to g, this H e less the Gauss-Newton
    part J' L'' J e; where the outputs are linear in w it is the base optimizer. Two gradients a step. ``step`` takes a
    closure that returns (outputs, loss) and does not call backward.

    Args:
        base_optimizer: see ``SharpnessAware``; Adam or AdamW for ``precondition``.
        rho: radius >= 0 or a schedule.
        precondition: ascend along P^-1 g with P = sqrt(v) + eps_P, v Adam's second moment before the step, corrected
            for its start at zero; plain g in the first step.
        length: with ``precondition``, what rho measures: ``"displacement"``: e = rho u(P^-1 g) has length rho;
            ``"gradient"``: e = rho P^-1 g/norm(g). The paper's own normalization could not be read.
        precondition_eps: eps_P > 0.
        **engine: see ``SharpnessAware``.

    Raises:
        TypeError: ``precondition`` with a base optimizer that keeps no second moment.

    References:
        Singh et al., Avoiding Spurious Sharpness Minimization Broadens Applicability of SAM, ICML 2025.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import FunctionalSAM
        >>> w = torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> opt = FunctionalSAM(torch.optim.SGD([w], lr=0.1), rho=0.2)
        >>> def closure():
        ...     opt.zero_grad()
        ...     outputs = torch.tanh(x @ w.T)
        ...     return outputs, (outputs - 1).square().mean()
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 1.0393, -1.9619]])
    """

    closure_kind: ClosureKind = "outputs"

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        precondition: bool = False,
        length: str = "displacement",
        precondition_eps: float = 1e-8,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.precondition = precondition
        self.length = checks.one_of("length", length, ("displacement", "gradient"))
        self.precondition_eps = checks.real("precondition_eps", precondition_eps, low=0, low_open=True)
        if precondition and "betas" not in base_optimizer.defaults:
            raise TypeError(
                "base_optimizer must keep a second moment for precondition=True; got "
                f"{type(base_optimizer).__name__}. Use Adam or AdamW, or precondition=False."
            )

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        there = yield At(self._displacement(here.gradient), cotangent=here.cotangent)
        return there.gradient

    def _displacement(self, gradient: TensorList) -> Displacement:
        if not self.precondition:
            return self.ascent(gradient)
        parts = zip(gradient.tensors, self.parameters(), self.group_values("betas"), strict=True)
        inverse = [self._scaled(g, self.state.get(p, {}), betas[1]) for g, p, betas in parts]
        norm = None if self.length == "displacement" else self.perturbed(gradient).norm()
        return self.ascent(TensorList(inverse, gradient.foreach), norm)

    def _scaled(self, gradient: Tensor, state: dict[str, Any], beta: float) -> Tensor:
        if "exp_avg_sq" not in state:
            return gradient
        corrected: Tensor = state["exp_avg_sq"] / (1 - beta ** float(state["step"]))
        return gradient / (corrected.sqrt() + self.precondition_eps)

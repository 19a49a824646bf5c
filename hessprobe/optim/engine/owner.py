"""What the parts of the engine use of the optimizer that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hessprobe.optim.engine.memory import Memory
from hessprobe.optim.engine.requests import Rule, StepReport
from hessprobe.optim.engine.tensors import TensorList
from hessprobe.optim.engine.weights import Weights


class Owner(Protocol):
    """The side of ``SharpnessAware`` that its parts see; each member is documented there."""

    base_optimizer: torch.optim.Optimizer
    model: nn.Module | None
    param_groups: list[dict[str, Any]]
    memory: Memory
    weights: Weights
    last: StepReport
    rng: str
    accumulate: str
    sync: str
    diagnostics: bool
    check_finite: bool | None
    eps: float
    rule_in_use: bool

    @property
    def closure_kind(self) -> Any:
        """Which closure a step takes."""
        ...

    @property
    def needs_loss(self) -> bool:
        """Whether a step must be given the loss too."""
        ...

    @property
    def takes_sparse(self) -> bool:
        """Whether the rule can use sparse gradients."""
        ...

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the vectors that the rule remembers."""
        ...

    @property
    def numbers(self) -> Mapping[str, Any]:
        """Names and first values of the numbers that the rule remembers."""
        ...

    @property
    def t(self) -> int:
        """Number of this step, from 1."""
        ...

    def rule(self) -> Rule:
        """Yield where to evaluate, return the gradient."""
        ...

    def parameters(self) -> list[Tensor]:
        """The trainable parameters."""
        ...

    def group_values(self, name: str, default: Any = None) -> list[Any]:
        """An entry of each tensor's parameter group."""
        ...

    def clipped(self, gradient: TensorList) -> TensorList:
        """The gradient with a norm of at most the bound of this step."""
        ...

    def prepare(self) -> None:
        """Bind the step to the present parameters, groups and radius."""
        ...

    def abandon(self) -> None:
        """Forget a step by hand that was begun."""
        ...

    def fused(self) -> bool:
        """Whether arithmetic is done on all tensors at once."""
        ...

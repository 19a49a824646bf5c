"""The gradients that a pass leaves in ``.grad``: taken out without a copy, and put back for the base optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hessprobe.optim.engine.tensors import TensorList


class Gradients:
    """``.grad`` of the parameters of a step.

    A parameter that no pass of the step reaches keeps ``.grad`` None, so that the base optimizer leaves it alone.
    """

    def __init__(self, parameters: Sequence[Tensor], foreach: bool) -> None:
        self._parameters, self._foreach = parameters, foreach
        self._reached = [False] * len(parameters)
        self._are_none = False
        self._raw: list[Tensor | None] = []

    def before_pass(self) -> None:
        """Have every ``.grad`` None; ``take`` or ``clear`` follows."""
        if not self._are_none:
            self.clear()
        # The gradient of the pass before is nobody's now, unless the rule has kept it.
        self._raw, self._are_none = [], False

    def clear(self) -> None:
        """Set every ``.grad`` to None."""
        self._raw = []
        for parameter in self._parameters:
            parameter.grad = None
        self._are_none = True

    def take(self, factor: float = 1.0) -> TensorList:
        """Return the gradients times ``factor`` and leave ``.grad`` None.

        Raises:
            ValueError: no parameter has a gradient.
            TypeError: a gradient is sparse or complex.
        """
        raws = [parameter.grad for parameter in self._parameters]
        if not any(raw is not None for raw in raws):
            raise ValueError(
                "closure must call backward on the loss; after it no parameter of the optimizer has a gradient. "
                "Call loss.backward() before 'return loss', and pass the optimizer the parameters of this model."
            )
        taken = TensorList(
            [
                raw
                # Views are DistributedDataParallel's buckets: the next backward writes over them.
                if raw is not None and raw.layout is torch.strided and raw._base is None and not raw.is_complex()
                else self._own(i, raw)
                for i, raw in enumerate(raws)
            ],
            self._foreach,
        )
        self._reached = [seen or raw is not None for seen, raw in zip(self._reached, raws, strict=True)]
        self.clear()
        self._raw = raws
        return taken if factor == 1.0 else taken * factor

    def give_back(self) -> None:
        """Undo ``take``: ``.grad`` is what the pass had left there."""
        for parameter, raw in zip(self._parameters, self._raw, strict=True):
            parameter.grad = raw
        self._are_none = False

    def spoil(self) -> None:
        """Leave an infinite gradient, so that a ``GradScaler`` refuses the step."""
        self.clear()
        self._parameters[0].grad = torch.full_like(self._parameters[0], torch.inf).detach()
        self._are_none = False

    def put(self, direction: TensorList) -> None:
        """Set ``.grad`` of every parameter that a pass has reached."""
        for parameter, tensor, reached in zip(self._parameters, direction.tensors, self._reached, strict=True):
            parameter.grad = tensor if reached else None
        self._are_none = False

    def _own(self, index: int, raw: Tensor | None) -> Tensor:
        if raw is None:
            return torch.zeros_like(self._parameters[index], memory_format=torch.preserve_format).detach()
        if raw.layout is not torch.strided or raw.is_complex():
            kind = "complex" if raw.is_complex() else "sparse"
            raise TypeError(
                f"gradients must be dense and real; that of parameter {index}, of shape {tuple(raw.shape)}, is {kind}. "
                "Use sparse=False in the embedding."
            )
        return raw.clone()

"""Several outputs of a model as one tensor, so that the loss has a second derivative in all of them together."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from hessprobe.errors import UnsupportedError


@dataclasses.dataclass(frozen=True)
class _Column:
    """Where a tensor lies: its shape for an example, or as it is where it belongs to the batch as a whole."""

    shape: torch.Size
    dtype: torch.dtype
    by_example: bool


class OutputForm:
    """How the outputs of a model become one tensor (B, C), and that again what the loss takes.

    One tensor stays as it is. Of a tuple, a dict, a named tuple or a dataclass, tensors (B, ...) become columns beside
    each other. What belongs to the batch as a whole, such as an auxiliary loss, becomes columns that are the same for
    every example and whose mean it is: J^T (d^2 l) J is that of all outputs together either way.

    How a model's outputs are built is seen at the first call of ``join`` and holds for all batches.
    """

    _columns: list[_Column] | None = None
    _build: Callable[[list[Tensor]], Any] | None = None

    def join(self, outputs: Any) -> Tensor:
        """Return one tensor.

        Args:
            outputs: of a batch of B examples; of several, the first tensor with dimensions has the examples in front.

        Raises:
            UnsupportedError: something that is no floating-point tensor, numbers of the whole batch alone, or outputs
                that are built in another way than those of another batch.
        """
        if isinstance(outputs, Tensor):
            return outputs
        leaves, build = _opened(outputs)
        bad = next((leaf for leaf in leaves if not isinstance(leaf, Tensor) or not leaf.is_floating_point()), None)
        if bad is not None or not leaves:
            got = "nothing" if not leaves else str(bad.dtype) if isinstance(bad, Tensor) else type(bad).__name__
            raise UnsupportedError(
                f"The Gauss-Newton matrix needs outputs that are floating-point tensors; the model returns a "
                f"{type(outputs).__name__} that holds {got}. Wrap the model in one that returns what the loss reads, "
                "or measure with operator='hessian'."
            )
        examples = next((len(leaf) for leaf in leaves if leaf.ndim > 0), 0)
        if examples == 0:
            raise UnsupportedError(
                f"The Gauss-Newton matrix needs outputs of the examples and a loss on them; the model returns a "
                f"{type(outputs).__name__} of numbers of the whole batch, its losses, of which it would be 0. Measure "
                "with operator='hessian', or let the model return its outputs."
            )
        columns = [_column(leaf, examples) for leaf in leaves]
        if self._columns is None:
            self._columns, self._build = columns, build
        if columns != self._columns:
            raise UnsupportedError(
                "The Gauss-Newton matrix needs outputs of one form; their shapes or kinds differ between batches. "
                "Measure with operator='hessian'."
            )
        flat = [
            (leaf if column.by_example else leaf[None].expand(examples, *leaf.shape)).reshape(examples, -1)
            for leaf, column in zip(leaves, columns, strict=True)
        ]
        return torch.cat(flat, 1)

    def part(self, joined: Tensor) -> Any:
        """Return the outputs that ``joined`` is made of, as the loss takes them."""
        if self._columns is None or self._build is None:
            return joined
        pieces = joined.split([column.shape.numel() for column in self._columns], 1)  # type: ignore[no-untyped-call]  # untyped in torch
        leaves = [
            (piece if column.by_example else piece.mean(0)).reshape(
                (-1, *column.shape) if column.by_example else column.shape
            )
            for piece, column in zip(pieces, self._columns, strict=True)
        ]
        return self._build([leaf.to(column.dtype) for leaf, column in zip(leaves, self._columns, strict=True)])


def _column(leaf: Tensor, examples: int) -> _Column:
    by_example = leaf.ndim > 0 and len(leaf) == examples
    return _Column(leaf.shape[1:] if by_example else leaf.shape, leaf.dtype, by_example)


def _opened(outputs: Any) -> tuple[list[Any], Callable[[list[Tensor]], Any]]:
    """Return the tensors of some outputs, and what builds such outputs of others; None stays where it is."""
    names: list[str] = []
    tree = outputs
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, Mapping):
        names = [each.name for each in dataclasses.fields(outputs)]
        tree = [getattr(outputs, name) for name in names]
    every, structure = tree_flatten(tree)
    held = [leaf is not None for leaf in every]

    def build(found: list[Tensor]) -> Any:
        left = iter(found)
        whole = tree_unflatten([next(left) if there else None for there in held], structure)
        if not names:
            return whole
        made = copy.copy(outputs)
        for name, value in zip(names, whole, strict=True):
            object.__setattr__(made, name, value)
        return made

    return [leaf for leaf in every if leaf is not None], build

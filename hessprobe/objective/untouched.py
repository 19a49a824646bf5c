"""Tensors that are referred to, not copied, and must stay as they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hessprobe.errors import DataError
from hessprobe.objective.batches import leaves


class KeptBatches:
    """The batches of a list, whose tensors are the same at every pass and may be edited between two.

    Of what a loader makes anew each time nothing is kept.
    """

    def __init__(self, data: Any) -> None:
        self._keeps = isinstance(data, list | tuple)
        self._stamps: list[tuple[int, Tensor, int]] = []

    def see(self, index: int, batch: Any) -> None:
        """Remember the state of batch ``index``."""
        if self._keeps:
            # A tensor of inference mode counts no edits.
            tensors = [leaf for leaf in leaves(batch) if not leaf.is_inference()]
            self._stamps += [(index, tensor, tensor._version) for tensor in tensors]

    def require_unchanged(self) -> None:
        """Refuse to go on after an edit.

        Raises:
            DataError: a tensor was written to since it was seen; names the batch.
        """
        for index, tensor, version in self._stamps:
            if tensor._version != version:
                raise DataError(
                    f"data must stay as they were when the risk was made; got batch {index} edited in place. "
                    "Make a new EmpiricalRisk, or edit a clone."
                )

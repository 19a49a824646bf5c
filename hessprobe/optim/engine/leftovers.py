"""Gradients that are there before a step: those that the last one left, and those that somebody has accumulated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from hessprobe.optim.engine.sharded import whole

# A backward pass renews or changes the gradients of all that it reaches: looking at some of them is enough.
_WATCHED = 8


class AccumulatedGradientsError(ValueError):
    """A step was refused because of gradients that are there: they stay unused."""


class Leftovers:
    """Tells gradients that a step has used from those that a backward pass after it has put there.

    Nothing is kept alive: a gradient that is set to None is freed.
    """

    def __init__(self) -> None:
        # None: nobody knows, as in a copy of an optimizer; whatever is there first counts as used.
        self._used: list[tuple[Tensor, TensorWeakRef, int]] | None = []

    def note(self, parameters: Sequence[Tensor]) -> None:
        """Count the present gradients as used."""
        found = [p for p in parameters if p.grad is not None]
        watched = found[:: max(1, len(found) // _WATCHED)]
        self._used = [(p, TensorWeakRef(p.grad), p.grad._version) for p in watched if p.grad is not None]

    def forget(self) -> None:
        """Know of nothing: the next gradients count as used."""
        self._used = None

    def are_fresh(self, parameters: Sequence[Tensor]) -> bool:
        """Return whether there are gradients that are neither used nor zero."""
        present = [p.grad for p in parameters if p.grad is not None]
        if not present or self._used is None or (self._used and all(map(_is_same, self._used))):
            return False
        with torch.no_grad():
            return any_nonzero(present)


class Accumulated:
    """Fresh gradients at the start of a step: refused, unless the first closure clears them as closures do.

    A step takes gradients at several points; those of an earlier backward are of one of them only, and would be lost.

    Args:
        parameters: p tensors, their ``.grad`` in place.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._found = [p.grad for p in parameters]
        self._watched = max((p for p in parameters if p.grad is not None), key=Tensor.numel)

    def mark(self) -> None:
        """Leave a gradient from which ``refuse_kept`` sees whether somebody has cleared it."""
        mark = torch.zeros_like(self._watched).detach()
        mark[(0,) * mark.ndim] = torch.nan
        self._watched.grad = mark

    def refuse_kept(self, name: str) -> None:
        """Refuse where what was there has been added to.

        Raises:
            AccumulatedGradientsError: the mark is still there; the gradients are put back as they were.
        """
        now = self._watched.grad
        if now is None or not bool(now.reshape(-1)[0].isnan()) or not bool(now.reshape(-1)[1:].isfinite().all()):
            return
        self.refuse(name)

    def refuse(self, name: str) -> None:
        """See ``refuse_kept``."""
        self.put_back()
        raise AccumulatedGradientsError(
            f"gradients must be empty when {name}.step() begins, as it takes its own at several points; got some from "
            "an earlier backward, which it would drop. To accumulate, give one closure for each micro-batch: "
            "opt.step([closure_1, closure_2]). Otherwise call opt.zero_grad() first."
        )

    def put_back(self) -> None:
        """Put the gradients back as they were found."""
        for parameter, gradient in zip(self._parameters, self._found, strict=True):
            parameter.grad = gradient


def any_nonzero(tensors: Sequence[Tensor]) -> bool:
    """Return whether an entry of some tensor is not zero; the answer is read once, not tensor by tensor."""
    found = [whole(tensor.any()) for tensor in tensors]
    return bool(torch.stack([one.to(found[0].device) for one in found]).any())


def _is_same(watched: tuple[Tensor, TensorWeakRef, int]) -> bool:
    parameter, reference, version = watched
    gradient = parameter.grad
    return gradient is not None and reference() is gradient and gradient._version == version

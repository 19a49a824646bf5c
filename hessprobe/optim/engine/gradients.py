"""The gradients that a pass leaves in ``.grad``: taken out without a copy, and put back for the base optimizer.

Gradients that are there before a step: those that the last one left, and those that somebody has accumulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from hessprobe.optim.engine.tensors import TensorList, any_sharded, whole


class Gradients:
    """``.grad`` of the parameters of a step.

    A parameter that no pass of the step reaches keeps ``.grad`` None, so that the base optimizer leaves it alone.
    Sparse gradients, of rows as embeddings have them, are made dense for the rule; where all those of a parameter in a
    step were sparse, the base is given a sparse one: the rows that a pass has reached, and those that the rule fills.
    """

    def __init__(self, parameters: Sequence[Tensor], foreach: bool, takes_sparse: bool = True) -> None:
        self._parameters, self._foreach, self._takes_sparse = parameters, foreach, takes_sparse
        self._reached = [False] * len(parameters)
        self._are_none = False
        self._raw: list[Tensor | None] = []
        # By the number of a parameter whose gradients have all been sparse: the rows that were reached.
        self._rows: dict[int, Tensor] = {}

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
            TypeError: a gradient is complex, or sparse in another layout than rows.
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
        for index, raw in enumerate(raws):
            if raw is not None and raw.layout is torch.strided:
                self._rows.pop(index, None)
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
        for index, rows in self._rows.items() if self._takes_sparse else ():
            self._parameters[index].grad = _sparse(direction.tensors[index], rows)
        self._are_none = False

    def _own(self, index: int, raw: Tensor | None) -> Tensor:
        parameter = self._parameters[index]
        if raw is None:
            return torch.zeros_like(parameter, memory_format=torch.preserve_format).detach()
        if raw.is_complex() or (raw.layout is not torch.strided and not _has_rows(raw)):
            kind = "complex" if raw.is_complex() else f"of layout {raw.layout}"
            raise TypeError(
                f"gradients must be dense or sparse in rows, and real; that of parameter {index}, of shape "
                f"{tuple(raw.shape)}, is {kind}. Use sparse=False in the embedding."
            )
        if raw.layout is torch.strided:
            return raw.clone()
        if index in self._rows or not self._reached[index]:
            reached = torch.zeros(len(parameter), dtype=torch.bool, device=raw.device)
            reached[raw._indices()[0]] = True
            self._rows[index] = reached | self._rows[index] if index in self._rows else reached
        return raw.to_dense()


def laid_out_as(gradient: Tensor, present: Tensor) -> Tensor:
    """Return a dense gradient as the one that the base has been given before it: sparse in rows where that is."""
    if present.layout is torch.strided:
        return gradient
    rows = torch.zeros(len(gradient), dtype=torch.bool, device=gradient.device)
    rows[present._indices()[0]] = True
    return _sparse(gradient, rows)


def _has_rows(gradient: Tensor) -> bool:
    return gradient.layout is torch.sparse_coo and gradient.sparse_dim() == 1


def _sparse(dense: Tensor, rows: Tensor) -> Tensor:
    filled = rows | (dense.reshape(len(dense), -1) != 0).any(1)
    index = filled.nonzero().reshape(1, -1)
    return torch.sparse_coo_tensor(index, dense[index[0]], dense.shape, is_coalesced=True, check_invariants=False)


# A backward pass renews or changes the gradients of all that it reaches: looking at some of them is enough.
_WATCHED = 8
# Of the optimizers that are alive.
_ALL: WeakSet[Leftovers] = WeakSet()


class AccumulatedGradientsError(ValueError):
    """A step was refused because of gradients that are there: they stay unused."""


class Leftovers:
    """Tells gradients that a step has used from those that a backward pass after it has put there.

    Nothing is kept alive: a gradient that is set to None is freed. What the passes of another optimizer's step leave in
    parameters that are not its own (two networks and one loss) is used up by that step.
    """

    def __init__(self) -> None:
        self._parameters: list[Tensor] | None = None
        self._is_sharded = False
        _ALL.add(self)
        # None: nobody knows, as in a copy of an optimizer; whatever is there first counts as used.
        self._used: list[tuple[Tensor, TensorWeakRef, int]] | None = []

    def note(self, parameters: Sequence[Tensor]) -> None:
        """Count the present gradients as used."""
        self._parameters = list(parameters)
        found = [p for p in parameters if p.grad is not None]
        self._is_sharded = any_sharded(self._parameters)
        watched = found[:: max(1, len(found) // _WATCHED)]
        self._used = [(p, TensorWeakRef(p.grad), p.grad._version) for p in watched if p.grad is not None]

    @contextmanager
    def noting(self, parameters: Callable[[], Sequence[Tensor]]) -> Iterator[None]:
        """Count the gradients that the body leaves as used, unless it was refused because of gradients.

        Args:
            parameters: returns those of this optimizer, once the body has run.
        """
        others = [(other, kept) for other in list(_ALL) if other is not self and (kept := other._kept()) is not None]
        refused = False
        try:
            yield
        except AccumulatedGradientsError:
            refused = True
            raise
        finally:
            if not refused:
                self.note(parameters())
            for other, kept in others:
                if not other._are_used():
                    other.note(kept)

    def _kept(self) -> list[Tensor] | None:
        """Return the parameters, None where somebody has accumulated gradients in them."""
        own = self._parameters
        # Of sharded ones it takes a collective to know, which ranks might not reach in one order.
        return None if own is None or self._is_sharded or (not self._are_used() and self.are_fresh(own)) else own

    def _are_used(self) -> bool:
        """Return whether the gradients that were watched are still those that a step has used."""
        # Asked of every other optimizer at every step: with 49 of them alive a step took 1.8 times as long.
        return bool(self._used) and all(map(_is_same, self._used or ()))

    def forget(self) -> None:
        """Know of nothing: the next gradients count as used."""
        self._used = None

    def are_fresh(self, parameters: Sequence[Tensor]) -> bool:
        """Return whether there are gradients that are neither used nor zero."""
        if self._used is None or self._are_used():
            return False
        present = [p.grad for p in parameters if p.grad is not None]
        if not present:
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
        if now is None or now.layout is not torch.strided:  # a sparse one is new: added to the mark it would be dense
            return
        if not bool(now.reshape(-1)[0].isnan()) or not bool(now.reshape(-1)[1:].isfinite().all()):
            return
        self.refuse(name)

    def refuse(self, name: str) -> None:
        """See ``refuse_kept``."""
        self.put_back()
        raise AccumulatedGradientsError(
            f"gradients must be empty when {name}.step() begins, as it takes its own at several points; got some from "
            "an earlier backward, which it would drop. To accumulate, give one closure for each micro-batch: "
            "opt.step([closure_1, closure_2]). Otherwise call opt.zero_grad() first. Trainers that accumulate: see "
            "hessprobe.optim.integrations."
        )

    def put_back(self) -> None:
        """Put the gradients back as they were found."""
        for parameter, gradient in zip(self._parameters, self._found, strict=True):
            parameter.grad = gradient


def any_nonzero(tensors: Sequence[Tensor]) -> bool:
    """Return whether an entry of some tensor is not zero; the answer is read once, not tensor by tensor."""
    found = [whole((tensor if tensor.layout is torch.strided else tensor._values()).any()) for tensor in tensors]
    return bool(torch.stack([one.to(found[0].device) for one in found]).any())


def _is_same(watched: tuple[Tensor, TensorWeakRef, int]) -> bool:
    parameter, reference, version = watched
    gradient = parameter.grad
    return gradient is not None and reference() is gradient and gradient._version == version

"""Vectors in parameter space as one tensor a parameter: what optimizers compute with, on the device, without copies.

Parameters that ``fully_shard`` has spread over ranks: full tensors from them, and their like from full tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether ``tensor`` is a DTensor."""
    if not torch.distributed.is_available() or type(tensor) in (Tensor, torch.nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def any_sharded(tensors: Sequence[Tensor]) -> bool:
    """Return whether some of the tensors are."""
    return any(map(is_sharded, tensors))


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor, on every rank; a collective where it is sharded."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]  # DTensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the dot product of two tensors of one layout, whole, on every rank."""
    return whole((a * b).sum())


def beside(factor: float | Tensor, tensor: Tensor) -> float | Tensor:
    """Return a number, the same on every rank, that ``tensor`` can be multiplied by."""
    if not isinstance(factor, Tensor) or not is_sharded(tensor) or is_sharded(factor):
        return factor
    from torch.distributed.tensor import DTensor, Replicate

    mesh = tensor.device_mesh  # type: ignore[attr-defined]  # DTensor
    return DTensor.from_local(factor, mesh, [Replicate()] * mesh.ndim, run_check=False)


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """Return ``full``, the same on every rank, laid out over the ranks as ``like`` is; nothing is sent."""
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    spec: DTensor = like  # type: ignore[assignment]
    return distribute_tensor(full, spec.device_mesh, spec.placements, src_data_rank=None)


Scalar = float | Tensor

# Below this mean size a call per tensor costs more than its arithmetic, and one fused call for all of them wins; above
# it, on a CPU, the fused call's temporaries cost more than the calls it saves.
_SMALL = 16_384
# Below this one, on a CPU, putting the tensors one after the other costs less than a sum for each.
_TINY = 512


class TensorList:
    """A vector of R^d, stored as one tensor for each of p parameters; arithmetic never changes its operands.

    The names that end in ``_`` work in place. Scalars are floats or 0-dimensional tensors; a dot product or a norm
    stays on the device, in float32 for half types and in the dtype of the tensors otherwise: nothing waits for a GPU.

    Attributes:
        tensors: p tensors.
        foreach: use torch's fused ``_foreach`` calls rather than one call a tensor.
    """

    __slots__ = ("foreach", "tensors")

    def __init__(self, tensors: Sequence[Tensor], foreach: bool = False) -> None:
        self.tensors = list(tensors)
        self.foreach = foreach

    def __len__(self) -> int:
        return len(self.tensors)

    def __add__(self, other: TensorList) -> TensorList:
        if self.foreach:
            return self._like(torch._foreach_add(self.tensors, other.tensors))
        return self._like([a + b for a, b in zip(self.tensors, other.tensors, strict=True)])

    def __sub__(self, other: TensorList) -> TensorList:
        return self.minus(other)

    def minus(self, other: TensorList) -> TensorList:
        """Return the difference (``-`` by a name that ``torch.compile`` can follow)."""
        if self.foreach:
            return self._like(torch._foreach_sub(self.tensors, other.tensors))
        return self._like([a - b for a, b in zip(self.tensors, other.tensors, strict=True)])

    def __mul__(self, factor: Scalar | TensorList) -> TensorList:
        return self.map(torch.mul, factor) if isinstance(factor, TensorList) else self.times(factor)

    def times(self, factor: Scalar) -> TensorList:
        """Return ``factor`` times this vector (``*`` by a name that ``torch.compile`` can follow)."""
        if self.foreach:
            return self._like(torch._foreach_mul(self.tensors, factor))
        return self._like([(a * beside(factor, a)).to(a.dtype) for a in self.tensors])

    __rmul__ = __mul__

    def __neg__(self) -> TensorList:
        return self * -1.0

    def __truediv__(self, divisor: TensorList) -> TensorList:
        return self.map(torch.div, divisor)

    def add_(self, other: TensorList, alpha: Scalar = 1.0) -> TensorList:
        """Add ``alpha`` times ``other`` in place; return self."""
        if isinstance(alpha, Tensor) and not _is_cheap_to_read(alpha):
            other, alpha = other.times(alpha), 1.0
        number = float(alpha)
        if self.foreach:
            torch._foreach_add_(self.tensors, other.tensors, alpha=number)
        else:
            for a, b in zip(self.tensors, other.tensors, strict=True):
                a.add_(b, alpha=number)
        return self

    def mul_(self, factor: Scalar) -> TensorList:
        """Multiply in place; return self."""
        if self.foreach:
            torch._foreach_mul_(self.tensors, factor)
        else:
            for a in self.tensors:
                a.mul_(beside(factor, a))
        return self

    def copy_(self, other: TensorList) -> TensorList:
        """Take the values of ``other``, in place; return self."""
        if self.foreach:
            torch._foreach_copy_(self.tensors, other.tensors)
        else:
            for a, b in zip(self.tensors, other.tensors, strict=True):
                a.copy_(b)
        return self

    def clone(self) -> TensorList:
        """Return a copy that shares no memory."""
        return self._like([a.clone() for a in self.tensors])

    def zeros(self) -> TensorList:
        """Return the zero vector of the same shapes."""
        return self._like([torch.zeros_like(a) for a in self.tensors])

    def map(self, function: Callable[..., Tensor], *others: TensorList) -> TensorList:
        """Return ``function`` of each tensor with its partners in ``others``."""
        return self._like([function(*parts) for parts in zip(self.tensors, *(o.tensors for o in others), strict=True)])

    def map_whole(self, function: Callable[..., Tensor], *others: TensorList) -> TensorList:
        """As ``map``, for a function that looks at a tensor as a whole: sharded ones are gathered for it."""

        def one(*parts: Tensor) -> Tensor:
            return part_of(function(*map(whole, parts)), parts[0])

        return self.map(one, *others)

    def where(self, keep: Sequence[bool]) -> TensorList:
        """Return this vector with the tensors set to zero whose ``keep`` is False."""
        return self._like([a if k else torch.zeros_like(a) for a, k in zip(self.tensors, keep, strict=True)])

    def dot(self, other: TensorList) -> Tensor:
        """Return the dot product, 0-dimensional."""
        if self._is_tiny() and other._is_tiny():
            return torch.dot(self._joined(), other._joined())
        return _total([_dot(_wide(a), _wide(b)) for a, b in zip(self.tensors, other.tensors, strict=True)])

    def norm(self) -> Tensor:
        """Return the Euclidean norm over all parameters together, 0-dimensional."""
        total: Tensor = torch.linalg.vector_norm(self._joined() if self._is_tiny() else self.tensor_norms())
        return total

    def tensor_norms(self) -> Tensor:
        """Return the Euclidean norm of every tensor, shape (p,)."""
        if not self.tensors:  # no group is perturbed
            return torch.zeros(0)
        if self.foreach:
            norms = list(torch._foreach_norm([_wide(a) for a in self.tensors]))
        else:
            norms = [whole(torch.linalg.vector_norm(_wide(a))) for a in self.tensors]
        return _stacked(norms)

    def unit(self, eps: float = 1e-12) -> TensorList:
        """Return u(v) = v / (norm(v) + eps); the zero vector stays zero."""
        return self.times(1.0 / (self.norm() + eps))

    def project(self, onto: TensorList) -> TensorList:
        """Return (<self, onto> / norm(onto)^2) onto; zero where ``onto`` is zero."""
        square = onto.dot(onto)
        share = self.dot(onto) / square.clamp_min(torch.finfo(square.dtype).tiny)
        return onto.times(torch.where(square > 0, share, 0.0))

    def _is_tiny(self) -> bool:
        if not self.foreach or not self.tensors or torch.compiler.is_compiling():
            return False
        if self.tensors[0].device.type != "cpu" or sum(map(Tensor.numel, self.tensors)) > _TINY * len(self.tensors):
            return False
        return len({t.dtype for t in self.tensors}) == 1 and len({t.device for t in self.tensors}) == 1

    def _joined(self) -> Tensor:
        return _wide(torch._C._nn.flatten_dense_tensors(self.tensors))

    def _like(self, tensors: Sequence[Tensor]) -> TensorList:
        return TensorList(tensors, self.foreach)


def prefers_foreach(tensors: Sequence[Tensor]) -> bool:
    """Return whether fused calls are expected to be faster for tensors of these sizes on their device."""
    if not tensors or any_sharded(tensors):
        return False
    if tensors[0].device.type == "cuda":
        return True
    return sum(map(Tensor.numel, tensors)) < _SMALL * len(tensors)


def read_on_cpu(factor: Scalar) -> Scalar:
    """Return a number in place of a tensor of one on a CPU, where it is faster and the same to the last bit."""
    if isinstance(factor, Tensor) and factor.device.type == "cpu" and not torch.compiler.is_compiling():
        return float(factor)
    return factor


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return dot(a, b) if is_sharded(a) else torch.dot(a.reshape(-1), b.reshape(-1))


def _total(parts: list[Tensor]) -> Tensor:
    return _stacked(parts).sum() if parts else torch.zeros(())


def _stacked(scalars: list[Tensor]) -> Tensor:
    device = scalars[0].device
    return torch.stack([s if s.device == device else s.to(device) for s in scalars])


def _is_cheap_to_read(scalar: Tensor) -> bool:
    # Reading a number off a GPU waits for it, and inside torch.compile it would break the graph.
    return scalar.device.type == "cpu" and not torch.compiler.is_compiling()

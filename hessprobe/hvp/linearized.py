"""Forward over reverse with everything that does not depend on the probe kept from one product to the next.

The derivative of the gradient is recorded once for each batch shape (``tracing``), its primal part run once a batch,
and each product runs the tangent part only: about 2 gradients of arithmetic, the floor for an exact product, with no
graph to walk. Residuals take several times the memory of a gradient's activations; a pool keeps them while a budget
lasts.

References:
    Pearlmutter (1994), "Fast exact multiplication by the Hessian"; Radul et al. (2022), "You only linearize once".

Batch normalisation with fixed statistics, rewritten so that curvature products skip its elementwise passes.

In evaluation mode BN(conv(x, W)) = conv(x, s W) + t with s = gamma / sqrt(var + eps), t = beta - s mean: the same
function of (W, gamma, beta), so the same Hessian to rounding, but the normalisation acts on the small weight tensor
instead of on every activation. Applied while a product is traced; the unused convolution is dropped with dead code.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.overrides import TorchFunctionMode

from hessprobe.errors import UnsupportedError
from hessprobe.hvp.engines import DoubleBackward, LossFunction, Product, device_clock, fresh_gradient, storage_bytes
from hessprobe.hvp.known import RECORDINGS, kind_of
from hessprobe.hvp.tracing import LinearFunction, LinearProgram, trace_linear
from hessprobe.objective.base import BatchLoss, SecondOrderLosses
from hessprobe.vectors import distance, row_dots

_CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d}


class _Convolution(NamedTuple):
    output: Tensor  # held, so that its id stays its own
    version: int
    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class FoldBatchNorm(TorchFunctionMode):
    """Within this context, evaluation-mode batch normalisation is folded into the convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, _Convolution] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Intercept convolutions (remembered) and batch normalisations (rewritten)."""
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS:
            output = func(*args, **kwargs)
            self._made[id(output)] = _Convolution(output, output._version, func, args, kwargs)
            return output
        if func is F.batch_norm:
            folded = self._fold(*args, **kwargs)
            if folded is not None:
                return folded
        return func(*args, **kwargs)

    def _fold(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:
        if training or running_mean is None or running_var is None:
            return None
        scale = torch.rsqrt(running_var + eps)
        scale = scale if weight is None else scale * weight
        offset = -running_mean * scale
        offset = offset if bias is None else offset + bias
        made = self._made.get(id(input))
        if made is None or made.version != input._version:
            channels = (1, -1) + (1,) * (input.dim() - 2)
            return input * scale.view(channels) + offset.view(channels)
        return _scaled_convolution(made.function, scale, offset, *made.args, **made.kwargs)


def _scaled_convolution(
    function: Callable[..., Tensor],
    scale: Tensor,
    offset: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *settings: Any,
    **named: Any,
) -> Tensor:
    offset = offset if bias is None else offset + bias * scale
    return function(input, weight * scale.view((-1,) + (1,) * (weight.dim() - 1)), offset, *settings, **named)


# How far the recorded gradient may lie from a fresh one, relative; beyond it the batch goes to the fallback, which
# costs time, never correctness.
_TOLERANCE = {torch.float64: 1e-6}

# Blocks that are shared out to both ways before one is chosen, and the rows of each that go to a way, at most; how many
# of the last times count, and how many blocks are timed before a choice is final.
_TRIALS, _TRIAL_ROWS, _RECENT, _SETTLED = 2, 4, 3, 16

# What a first recording in a process imports, and what one takes for each operation of the gradient, in seconds (one
# core of 2023; three networks within a factor of 2).
_IMPORTS, _A_NODE = 1.3, 4e-3


def recording_seconds(nodes: int) -> float:
    """Return about how long it takes to record a gradient whose graph has so many nodes, without its arithmetic."""
    return _IMPORTS * ("torch._dynamo" not in sys.modules) + _A_NODE * nodes


class Linearized:
    """Engine ``linearized``; see the module. Recordings serve all batches of a shape, and all risks of a kind.

    Args:
        map_of: maps a batch loss to the function (v, theta) -> (outputs, gradient) to record; by default the Hessian's,
            with outputs (H v,). With outputs (G v, a, b), <a, b> is the quadratic form of G.
        fallback: engine for batches whose shapes were seen once only, or on which the recording does not hold.
    """

    name = "linearized"
    is_exact = True
    keeps = True
    setup_seconds = 2.0  # the tracer is imported, the first batch recorded

    def __init__(
        self,
        map_of: Callable[[LossFunction], LinearFunction] | None = None,
        fallback: Callable[[LossFunction, Tensor], Product] | None = None,
    ) -> None:
        self._map_of = map_of or _hessian_map
        self._fallback = fallback or DoubleBackward()
        self._programs: dict[object, Recording | None] = {}
        self._kind: Hashable = None

    def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
        """Return the product of one batch.

        Raises:
            UnsupportedError: nothing of this kind of batch can be recorded.
        """
        tensors = loss.tensors() if isinstance(loss, BatchLoss) else []
        if not tensors:
            raise UnsupportedError("The linearized engine needs batches whose tensors it can exchange.")
        key = (_signature(loss), tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors))
        constants = loss.constants() if isinstance(loss, BatchLoss) else []
        inputs = [*tensors, *constants]
        first = not self._programs
        shared = self._shared(loss, key, constants) if key not in self._programs else None
        known = self._programs.get(key) or (None if shared is None else RECORDINGS.get(shared))
        if not first and known is None and key not in self._programs:
            # Recording takes seconds: a shape earns it when it comes a second time.
            self._programs[key] = None
            return self._fallback(loss, theta)
        try:
            residuals = (
                None if known is None or known is self._programs.get(key) else _fitting(known, loss, theta, inputs)
            )
            if residuals is None:
                known = self._programs.get(key) or self._record(loss, theta, tensors, constants)
                self._programs[key] = known
                residuals = _residuals(known.program, loss, theta, inputs)
                if shared is not None:
                    RECORDINGS.put(shared, known)
            self._programs[key] = known
        except UnsupportedError:
            if first:
                raise
            return self._fallback(loss, theta)
        ignored = {tensor.untyped_storage().data_ptr() for tensor in (theta, *constants)}
        return _product(known.program, residuals, storage_bytes(residuals, ignored), known.blocks)  # type: ignore[union-attr]  # recorded above

    def _shared(self, loss: LossFunction, key: object, constants: list[Tensor]) -> Hashable:
        """Return what the process knows a recording by, None where it serves this risk alone."""
        makes = loss.makes() if isinstance(loss, BatchLoss) else None
        if makes is None:
            return None
        # One risk, one kind: it is looked at once.
        self._kind = self._kind or kind_of(*makes)
        return self._kind, key, self._map_of, tuple((t.shape, t.dtype, t.device) for t in constants)

    def _record(self, loss: LossFunction, theta: Tensor, tensors: list[Tensor], constants: list[Tensor]) -> Recording:
        count = len(tensors)

        def function(vector: Tensor, at: Tensor, *inputs: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
            bound = loss
            if isinstance(loss, BatchLoss):
                batch, others = list(inputs[:count]), list(inputs[count:])
                bound = loss.rebind(batch, others) if others else loss.rebind(batch)
            with FoldBatchNorm():
                return self._map_of(bound)(vector, at)

        program = trace_linear(function, theta, [*tensors, *constants])
        return Recording(program, tuple(Blocks() for _ in program.tangents))


def _fitting(known: Recording, loss: LossFunction, theta: Tensor, inputs: list[Tensor]) -> list[Tensor] | None:
    """Return the residuals of another risk's recording, None where it does not hold for this one."""
    try:
        return _residuals(known.program, loss, theta, inputs)
    except UnsupportedError:
        return None


def _residuals(program: LinearProgram, loss: LossFunction, theta: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Run the primal program on a batch and check its gradient.

    Raises:
        UnsupportedError: it does not fit the batch (it holds a count of tokens or routes), or gives another gradient.
    """
    try:
        with torch.no_grad():
            check, *residuals = program.primal(theta, *tensors)
    except (RuntimeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UnsupportedError(f"The recording does not fit a batch: {str(error).splitlines()[0]}") from error
    if not _agree(check, fresh_gradient(loss, theta)):
        raise UnsupportedError("The recorded gradient differs from the model's own.")
    return residuals


def _signature(loss: LossFunction) -> Hashable:
    return loss.signature if isinstance(loss, BatchLoss) else ()


def _hessian_map(loss: LossFunction) -> LinearFunction:
    def function(vector: Tensor, theta: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        with SecondOrderLosses():
            gradient, column = jvp(grad(loss), (theta,), (vector,))  # type: ignore[misc]  # two values without has_aux
        return (column,), gradient

    return function


class Blocks:
    """How blocks of vectors are taken: together, under ``vmap``, or one after the other.

    Together is faster where a single vector leaves the machine idle, slower where the tangents of many leave the cache
    or a convolution becomes a grouped one. The first blocks are shared out to both ways and timed; no work is done
    twice for it. Whole blocks are larger than those of the trial and may leave the cache where these did not, so that
    together is timed for some blocks more, and given up where it turns out slower.
    """

    def __init__(self) -> None:
        self._singly: list[float] = []
        self._together: list[float] = []

    @property
    def together(self) -> bool | None:
        """Whether together is faster; None while that is not known."""
        return min(self._together[-_RECENT:]) < min(self._singly) if len(self._together) >= _TRIALS else None

    def apply(self, singly: Callable[[Tensor], Tensor], jointly: Callable[[Tensor], Tensor], V: Tensor) -> Tensor:
        """Return the product of the rows of ``V`` (k, d)."""
        half = min(len(V) // 2, _TRIAL_ROWS)
        if len(V) == 1 or self.together is False or (self.together is None and half < 2):
            return singly(V)
        if self.together:
            return _timed(jointly, V, self._together) if len(self._together) < _SETTLED else jointly(V)
        first = _timed(singly, V[:half], self._singly)
        second = _timed(jointly, V[half : 2 * half], self._together)
        return torch.cat([first, second, *([] if len(V) == 2 * half else [singly(V[2 * half :])])])


@dataclass(frozen=True)
class Recording:
    """A recorded product of one batch shape, and how its blocks are taken: of each of its outputs."""

    program: LinearProgram
    blocks: tuple[Blocks, ...]


def _timed(way: Callable[[Tensor], Tensor], V: Tensor, seconds: list[float]) -> Tensor:
    start = device_clock(V.device)
    result = way(V)
    seconds.append((device_clock(V.device) - start) / len(V))
    return result


def _product(program: LinearProgram, residuals: list[Tensor], nbytes: int, blocks: Sequence[Blocks]) -> Product:
    def runner(
        tangent: Callable[..., Tensor], batchable: Callable[..., Tensor], blocks: Blocks
    ) -> Callable[[Tensor], Tensor]:
        def singly(V: Tensor) -> Tensor:
            rows = [tangent(vector, *residuals) for vector in V]
            return rows[0][None] if len(rows) == 1 else torch.stack(rows)

        def jointly(V: Tensor) -> Tensor:
            results: Tensor = vmap(lambda vector: batchable(vector, *residuals))(V)
            return results

        def apply(V: Tensor) -> Tensor:
            with torch.no_grad():
                return blocks.apply(singly, jointly, V)

        return apply

    def add(V: Tensor, total: Tensor, weight: float) -> None:
        if len(V) > 1 and blocks[0].together is not False:
            total.add_(product(V), alpha=weight)
            return
        with torch.no_grad():
            for vector, row in zip(V, total, strict=True):
                program.accumulate(vector, row, weight, *residuals)  # type: ignore[misc]  # asked for below

    product, *parts = map(runner, program.tangents, program.batchable, blocks)
    added = None if program.accumulate is None else add
    if not parts:
        return Product(product, nbytes, add=added)

    def forms(V: Tensor) -> Tensor:
        left, right = (part(V).flatten(1) for part in parts)
        return row_dots(left, right)

    return Product(product, nbytes, forms, added)


def _agree(recorded: Tensor, fresh: Tensor) -> bool:
    tolerance = _TOLERANCE.get(fresh.dtype, 1e-3)
    size = math.sqrt(row_dots(fresh[None], fresh[None]))
    # A gradient of zero says nothing about the recording.
    return size > 0 and distance(recorded[None], fresh[None]) <= tolerance * size

"""The mean loss of a model whose parameters are spread over ranks (FSDP2, tensor parallelism), and its gradient.

Such a model can be differentiated once: what gathers its parameters and scatters their gradients has no derivative. Its
curvature is taken by central differences of the gradient, whose error is reported with every number.

Parameters, gradients and activations stay spread as they are. The vectors of a measurement are whole on every rank: a
point is written into the parts that the ranks hold, and of a gradient the parts are gathered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hessprobe.errors import DataError, NonFiniteError, UnsupportedError, about
from hessprobe.objective import base, checking, modes
from hessprobe.objective import batches as data_tools
from hessprobe.objective.base import BatchLoss, LossRule, Objective
from hessprobe.objective.empirical import EmpiricalRisk
from hessprobe.vectors import ParameterLayout

_ONCE = "A model whose parameters are spread over ranks can be differentiated only once. Leave engine out."


class ShardedRisk(Objective):
    """L(theta) = sum_b loss_sum_b(theta) / sum_b weight_b of a model with ``DTensor`` parameters, as ``EmpiricalRisk``.

    All ranks of the model's mesh make it of the same data and ask for the same numbers in the same order; each holds
    the same results, those of the model that is not sharded within the error that they carry. Under ``fully_shard``
    each rank evaluates its part of every batch where the loss is one of torch's means (else the whole batch); under
    tensor parallelism alone all evaluate the same. Leaving an evaluation, parameters, gradients, buffers, modes and
    random states are bit for bit as they were.

    Args:
        module: after ``fully_shard`` or ``parallelize_module``, over a mesh of one dimension; not compiled, without a
            mixed-precision policy.
        loss: ``(outputs, targets) -> scalar``, as for ``EmpiricalRisk``.
        data: re-iterable of ``(inputs, targets)``: all of the data, on every rank. A ``DataLoader`` with a
            ``DistributedSampler`` is read without it.
        weighting: as for ``EmpiricalRisk``.

    Attributes:
        theta: (d,) copy of all parameters that require grad, whole on every rank.
        n_examples: in all batches.

    Raises:
        TypeError, ValueError: what is no module or loss, or data that can be read only once.
        DataError: no data, or one rank's share of them.
        NonFiniteError: nan or inf in a parameter.
        UnsupportedError: no ``DTensor`` among the parameters, FSDP1, a mesh of several dimensions, or mixed precision.

    Examples:
        ``fully_shard(model); risk = ShardedRisk(model, CrossEntropyLoss(), batches); hp.measure("trace", risk)``
    """

    differentiable_once = True

    def __init__(
        self, module: nn.Module, loss: Callable[[Any, Any], Any], data: Any, *, weighting: str = "auto"
    ) -> None:
        if not isinstance(module, nn.Module) or not callable(loss):
            raise TypeError(
                f"module and loss must be a torch.nn.Module and a function; got {type(module).__name__} and "
                f"{type(loss).__name__}. Pass what the training has."
            )
        data_tools.require_reiterable(data)
        self.module = module
        self._members = [member for member in module.modules() if hasattr(member, "_get_fsdp_state")]
        self._averages = bool(self._members)
        self._reshard()
        mesh = _mesh_of(module)
        self.spread_over = mesh.get_group()
        data, _ = checking.whole_data(data, self.spread_over)
        checking.require_whole_data(data)
        self._rank, self._count = dist.get_rank(self.spread_over), dist.get_world_size(self.spread_over)
        self._chosen = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.layout = ParameterLayout.of(self._chosen)
        self.theta = self.layout.join(_whole(p.detach()) for p in self._chosen.values()).clone()
        if not bool(torch.isfinite(self.theta).all()):
            raise NonFiniteError("Parameters must be finite; got nan or inf among them. Load weights that are.")
        self.dim, self.dtype, self.device = self.layout.dim, self.theta.dtype, self.theta.device
        self._rule = base.loss_rule(loss, weighting)
        self._loss, self._data, self._active = loss, data, False
        with self.evaluating():
            self._sizes, self._examples = self._measure()
        self.n_terms, self.n_examples = sum(size > 0 for size in self._sizes), sum(self._examples)
        self.n_units = sum(self._sizes)
        self.caveats = (f"parameters spread over {self._count} ranks: products by differences of gradients",)

    def agreed(self, decide: Callable[[], Any]) -> Any:
        """Return what the first rank decides, on all of the mesh."""
        found = [decide() if self._rank == 0 else None]
        dist.broadcast_object_list(found, group_src=0, group=self.spread_over)
        return found[0]

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a context in which losses may be evaluated; on leaving it, everything is as it was before."""
        return nullcontext() if self._active else self._enter()

    @contextmanager
    def _enter(self) -> Iterator[None]:
        roots = [m for m in (self.module, self._loss) if isinstance(m, nn.Module)]
        held = [(p, _local(p).detach().clone(), p.grad) for p in self.module.parameters()]
        generators = data_tools.generators_of(self._data)
        with modes.evaluation(roots, device=self.device, generators=generators):
            self._active = True
            try:
                yield
            finally:
                self._active = False
                with torch.no_grad():
                    for parameter, before, gradient in held:
                        _local(parameter).copy_(before)
                        parameter.grad = gradient

    def terms(self) -> Iterator[ShardedBatch]:
        """Yield the batches that have weight, in the order of the data.

        Raises:
            DataError: their number has changed.
        """
        count = 0
        for index, batch in enumerate(self._data):
            count += 1
            if index < len(self._sizes) and self._sizes[index] > 0:
                inputs, targets = data_tools.split_batch(
                    data_tools.to_device(data_tools.as_tensors(batch), self.device)
                )
                weight = self._sizes[index] / self.n_units
                yield ShardedBatch(self, inputs, targets, self._examples[index], self._sizes[index], weight)
        if count != len(self._sizes):
            raise DataError(f"data must be the same at every pass; got {count} batches after {len(self._sizes)}.")

    def _measure(self) -> tuple[list[float], list[int]]:
        sizes, examples = [], []
        for batch in self._data:
            inputs, targets = data_tools.split_batch(data_tools.as_tensors(batch))
            examples.append(data_tools.rows(targets, inputs))
            sizes.append(self._rule.size(targets, examples[-1]))
        if not sum(sizes) > 0:
            raise DataError("data must hold targets that are counted; got none. Check the data and the labels.")
        return sizes, examples

    def part(self, examples: int, rank: int | None = None) -> tuple[int, int] | None:
        """Return the examples ``(start, stop)`` that a rank evaluates of a batch; None where it takes all.

        Args:
            examples: of the batch.
            rank: this one by default.
        """
        if not self._averages or not self._rule.known or examples < self._count:
            return None
        own = self._rank if rank is None else rank
        return examples * own // self._count, examples * (own + 1) // self._count

    @property
    def shares(self) -> list[list[int]]:
        """How many examples every rank evaluates of each batch."""
        edges = [[self.part(n, rank) or (0, n) for rank in range(self._count)] for n in self._examples]
        return [[stop - start for start, stop in own] for own in edges]

    def put(self, theta: Tensor) -> None:
        """Write ``theta`` (d,) into the parts of the parameters that this rank holds."""
        with torch.no_grad():
            for name, piece in self.layout.split(theta.detach()).items():
                parameter = self._chosen[name]
                _local(parameter).copy_(piece[_place(parameter)])

    def value(self, batch: ShardedBatch, theta: Tensor, *, slope: bool) -> tuple[Tensor, Tensor | None]:
        """Return the mean loss of a batch, and its gradient (d,) where asked for; the same on all ranks."""
        try:
            return self._value(batch, theta, slope)
        finally:
            self._reshard()

    def _reshard(self) -> None:
        """Let go of whole parameters that FSDP has kept for the next pass: they are those of another point then."""
        for member in self._members:
            member.reshard()  # type: ignore[operator]  # an FSDPModule

    def _value(self, batch: ShardedBatch, theta: Tensor, slope: bool) -> tuple[Tensor, Tensor | None]:
        self.put(theta)
        share, inputs, targets, size = batch.own(self.part(batch.examples), self._count, self._rule)
        with torch.enable_grad() if slope else torch.no_grad():
            for parameter in self.module.parameters():
                parameter.grad = None
            outputs = base.logits_of(self.module(*inputs[0], **inputs[1]))
            loss = self._rule.mean(outputs, targets, size) * share
            if slope:
                # FSDP takes the mean of the ranks' gradients.
                torch.autograd.backward(loss * (self._count if self._averages else 1))
        total = loss.detach().clone()
        if self._averages:
            dist.all_reduce(total, group=self.spread_over)
        return total, self._gathered() if slope else None

    def _gathered(self) -> Tensor:
        pieces = []
        for parameter in self._chosen.values():
            gradient = parameter.grad
            if gradient is None:
                pieces.append(torch.zeros(parameter.shape, dtype=self.dtype, device=self.device))
                continue
            whole = _whole(gradient)
            if self._averages and not _is_spread(parameter):
                # Of a parameter that FSDP leaves alone, each rank has the gradient of its own part.
                dist.all_reduce(whole, group=self.spread_over)
                whole /= self._count
            pieces.append(whole)
            parameter.grad = None
        return self.layout.join(pieces)


@dataclass(frozen=True)
class ShardedBatch(BatchLoss):
    """The mean loss over a batch; differentiable once.

    Attributes:
        risk: whose batch it is.
        inputs, targets: on this rank's device, all examples.
        examples: how many.
        size, weight: as of every batch loss.
    """

    risk: ShardedRisk
    inputs: Any
    targets: Any
    examples: int
    size: float
    weight: float

    def __call__(self, theta: Tensor) -> Tensor:
        """Return the mean loss, a scalar, at ``theta`` (d,).

        Raises:
            UnsupportedError: inside a transform of ``torch.func``, which would differentiate it more than once.
        """
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise UnsupportedError(_ONCE)
        with self.risk.evaluating():
            slope = torch.is_grad_enabled() and theta.requires_grad
            found: Tensor = _Once.apply(theta, self, slope)  # type: ignore[no-untyped-call]  # untyped in torch
            return found

    def own(
        self, part: tuple[int, int] | None, count: int, rule: LossRule
    ) -> tuple[float, tuple[tuple[Any, ...], dict[str, Any]], Any, float]:
        """Return this rank's share of the loss, arguments of the model, targets, and the size of these."""
        inputs, targets, size, share = self.inputs, self.targets, self.size, 1.0
        if part is not None:
            inputs, targets = (data_tools.cut(each, *part, self.examples) for each in (inputs, targets))
            size = rule.size(targets, part[1] - part[0])
            share = size / self.size
        elif self.risk._averages:
            share = 1 / count
        if isinstance(inputs, dict):
            return share, ((), inputs), targets, size
        several = isinstance(inputs, list | tuple) and not hasattr(inputs, "_fields")
        return share, (tuple(inputs) if several else (inputs,), {}), targets, size


class _Once(torch.autograd.Function):
    """The loss of a batch with the gradient that was computed beside it."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, batch: ShardedBatch, slope: bool) -> Tensor:
        ctx.save_for_backward(theta)
        value, ctx.slope = batch.risk.value(batch, theta, slope=slope)
        return value

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        gradient: Tensor = _NoMore.apply(ctx.slope * factor, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return gradient, None, None


class _NoMore(torch.autograd.Function):
    """A gradient that says what it lacks where it is differentiated, in place of passing for a constant."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, theta: Tensor) -> Tensor:  # it depends on theta
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> Any:
        raise UnsupportedError(_ONCE)


def spread(risk: EmpiricalRisk) -> ShardedRisk:
    """Spread the weights of a risk over all ranks by ``fully_shard`` (FSDP2), and return the risk of what lies there.

    All ranks of the default process group make it together, of the same risk. What stands in a ``ModuleList`` or a
    ``Sequential`` is gathered one after the other during a pass, the rest of the model at once. The module of the risk
    is changed and does not go back; parameters that the risk leaves out are frozen.

    Args:
        risk: of a model, a loss on its outputs, and batches.

    Raises:
        UnsupportedError: a loss that the model or a ``forward`` computes, BatchNorm other than by running statistics,
            or parameters that FSDP2 does not take.
    """
    from torch.distributed.fsdp import fully_shard

    if risk._loss is None or risk._forward is not None:
        raise UnsupportedError(
            "a model that computes its own loss cannot be spread over ranks; measure it with whole weights on every "
            "rank, or give a loss on its outputs."
        )
    if risk.batchnorm != "eval":
        raise UnsupportedError(
            about(
                "batchnorm",
                f"must be 'eval' where weights are spread over ranks; got {risk.batchnorm!r}. Leave it out.",
            )
        )
    module, chosen = risk.module, set(risk.layout.names)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in chosen)
    mesh = dist.device_mesh.init_device_mesh(risk.device.type, (dist.get_world_size(),))
    try:
        for part in (*_repeated(module), module):
            fully_shard(part, mesh=mesh)
    except ValueError as error:
        raise UnsupportedError(f"weights cannot be spread over ranks: {error}") from error
    return ShardedRisk(module, risk._loss, risk._data, weighting=risk.weighting)


def _repeated(module: nn.Module) -> list[nn.Module]:
    """Return the outermost parts of a model that stand in a row and share no parameter with the rest of it."""

    def uses(of: nn.Module) -> Counter[int]:
        return Counter(id(parameter) for _, parameter in of.named_parameters(remove_duplicate=False))

    everywhere, found = uses(module), dict[nn.Module, None]()

    def walk(parent: nn.Module) -> None:
        for child in parent.children():
            own = uses(child)
            stands = isinstance(parent, nn.ModuleList | nn.Sequential)
            callable_ = not isinstance(child, nn.ModuleList | nn.ModuleDict)
            if stands and callable_ and own and all(everywhere[key] == count for key, count in own.items()):
                found[child] = None
            else:
                walk(child)

    walk(module)
    return list(found)


def _is_spread(tensor: Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _local(tensor: Tensor) -> Tensor:
    found: Tensor = tensor._local_tensor if _is_spread(tensor) else tensor  # type: ignore[attr-defined]  # of a DTensor
    return found


def _whole(tensor: Tensor) -> Tensor:
    found: Tensor = tensor.full_tensor() if _is_spread(tensor) else tensor  # type: ignore[attr-defined]  # of a DTensor
    return found


def _place(parameter: Tensor) -> tuple[slice, ...]:
    """Return where the part that this rank holds lies in the whole tensor."""
    if not _is_spread(parameter):
        return (slice(None),) * parameter.ndim
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    of: Any = parameter
    shape, start = compute_local_shape_and_global_offset(of.shape, of.device_mesh, of.placements)
    return tuple(slice(first, first + length) for first, length in zip(start, shape, strict=True))


def _mesh_of(module: nn.Module) -> Any:
    """Return the mesh of the module's parameters.

    Raises:
        UnsupportedError: see ``ShardedRisk``.
    """
    for name, member in module.named_modules():
        if type(member).__name__ == "FullyShardedDataParallel":
            raise UnsupportedError(
                f"module must be sharded by fully_shard (FSDP2); got FullyShardedDataParallel at {name or 'the top'}. "
                "Apply torch.distributed.fsdp.fully_shard to the plain module instead."
            )
        state = member._get_fsdp_state() if hasattr(member, "_get_fsdp_state") else None
        policy = getattr(state, "_mp_policy", None)
        if policy is not None and (policy.param_dtype is not None or policy.reduce_dtype is not None):
            raise UnsupportedError(
                f"module must compute in the dtype of its parameters; got an mp_policy at {name or 'the top'}: "
                "a difference of gradients would be rounding. Apply fully_shard without mp_policy to measure."
            )
    parameters: Any = [p for p in module.parameters() if _is_spread(p)]
    meshes: set[Any] = {parameter.device_mesh for parameter in parameters}
    if not meshes:
        raise UnsupportedError("module must have parameters that are DTensors; got none. Use EmpiricalRisk for it.")
    mesh = meshes.pop()
    if meshes or mesh.ndim != 1:
        raise UnsupportedError("module must lie on one mesh of one dimension; got more. Shard it over one to measure.")
    return mesh

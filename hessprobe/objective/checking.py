"""What is asked of a risk once, on its first batch: that it can be evaluated, and that loss and gradient agree.

- models and data that are spread over ranks: what one rank holds is not what is to be measured;
- which module is to blame for a loss that differs between two calls, or that is not finite;
- batches cut into groups of examples, so that a few large batches still say how much the data decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from hessprobe.errors import DataError, HessprobeError, NondeterministicLossError, UnsupportedError
from hessprobe.objective import base
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.objective.batches import EmpiricalBatch, content_hash, leaves, require_dtype, wants_graph
from hessprobe.vectors import ParameterLayout

# Rounding that differs between two calls (atomic additions on a GPU) stays below this many units in the last place.
_ROUNDING = 100

_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)


@dataclass(frozen=True)
class Observation:
    """One call of one module: its dotted name, itself, its mode, hashes of inputs and outputs, and finiteness."""

    name: str
    module: nn.Module
    training: bool
    inputs: str
    outputs: str
    finite: bool


class CallWatch(TorchFunctionMode):
    """Notes which of torch's functions were called inside that behave otherwise in training, or need their own memory.

    Attributes:
        attention: whether ``scaled_dot_product_attention`` was.
        dropped: how often a dropout function was called with a rate above 0 that it did not apply.
        pairs: whether ``view_as_complex`` was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.dropped, self.pairs = False, 0, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``TorchFunctionMode``."""
        kwargs = kwargs or {}
        # multi_head_attention_forward hides its inner calls from the mode; it is fused unless it returns weights.
        if func is F.scaled_dot_product_attention or (
            func is F.multi_head_attention_forward and not kwargs.get("need_weights", True)
        ):
            self.attention = True
        self.pairs |= func is torch.view_as_complex
        if func in _DROPOUTS:
            given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
            self.dropped += not given.get("training", True) and given.get("p", 0.5) > 0
        return func(*args, **kwargs)


def require_same(first: Tensor, second: Tensor, module: nn.Module, run: Callable[[], object]) -> None:
    """Refuse a loss whose two values on the same parameters and batch differ by more than rounding.

    Args:
        first: value of one call, a finite scalar.
        second: value of another.
        module: the model.
        run: evaluates the loss once more; called twice, and only where the values differ.

    Raises:
        NondeterministicLossError: names the first module, in execution order, whose output differs although its
            inputs agree.
    """
    gap = abs(float(first) - float(second))
    if gap <= _ROUNDING * torch.finfo(first.dtype).eps * max(abs(float(first)), abs(float(second))):
        return
    culprit = _first_difference(observe(module, run), observe(module, run))
    who = "the loss function itself" if culprit is None else describe_call(culprit)
    raise NondeterministicLossError(
        f"loss must be the same at every call; got {float(first):.9g} and {float(second):.9g} on the same parameters "
        f"and batch. The first to differ is {who}: switch its randomness off in evaluation mode.",
        module="" if culprit is None else culprit.name,
    )


def _plain(buffer: Tensor) -> Tensor:
    """Return a buffer as numbers that can be compared: without nan, and written out where it is sparse."""
    return (buffer if buffer.layout == torch.strided else buffer.to_dense()).nan_to_num()


def written_buffers(module: nn.Module, buffers: dict[str, Tensor], before: dict[str, Tensor]) -> tuple[str, ...]:
    """Return the names of integer buffers (counters) that forward has written, and put their values back.

    A model that writes floating-point buffers in evaluation mode (BatchNorm put in train mode by forward) is refused.

    Args:
        module: the model.
        buffers: the private copies that it was evaluated with.
        before: copies of them from before.

    Raises:
        NondeterministicLossError: names the module that owns the first such buffer.
    """
    # Values, not version counters: torch's batch_norm writes its statistics without counting.
    written = [name for name, old in before.items() if not torch.equal(_plain(old), _plain(buffers[name]))]
    for name in written:
        if buffers[name].is_floating_point():
            owner = name.rpartition(".")[0]
            kind = type(module.get_submodule(owner)).__name__
            raise NondeterministicLossError(
                f"forward must not write buffers in evaluation mode; got a new {name!r} from {owner or 'the model'} "
                f"({kind}). Something sets it to train mode inside forward, or it has no evaluation mode.",
                module=owner,
            )
        buffers[name].copy_(before[name])
    return tuple(written)


def first_nonfinite(module: nn.Module, run: Callable[[], object]) -> str:
    """Return a description of the first module, in execution order, with a nan or infinite output.

    It is ``"the loss function itself"`` where all modules give finite outputs.
    """
    bad = next((call for call in observe(module, run) if not call.finite), None)
    return "the loss function itself" if bad is None else describe_call(bad, with_mode=False)


def observe(module: nn.Module, run: Callable[[], object]) -> list[Observation]:
    """Return the calls of all submodules while ``run()`` evaluates, in the order in which they end."""
    calls: list[Observation] = []
    with _hooks(module, calls), torch.no_grad():
        run()
    return calls


@contextmanager
def _hooks(module: nn.Module, calls: list[Observation]) -> Iterator[None]:
    def hook_of(name: str) -> Callable[..., None]:
        def hook(member: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
            finite = all(bool(torch.isfinite(leaf).all()) for leaf in leaves(outputs) if leaf.is_floating_point())
            calls.append(
                Observation(name, member, member.training, content_hash((args, kwargs)), content_hash(outputs), finite)
            )

        return hook

    handles = []
    try:
        for name, member in module.named_modules():
            handles.append(member.register_forward_hook(hook_of(name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def describe_call(call: Observation, *, with_mode: bool = True) -> str:
    """Return for example ``encoder.dropout (Dropout, p=0.1, in train mode because of its own forward)``."""
    details = [type(call.module).__name__]
    # Children would put their whole tree here; only a leaf's own settings help.
    if not any(True for _ in call.module.children()) and call.module.extra_repr():
        details.append(call.module.extra_repr().removesuffix(", inplace=False"))
    if with_mode:
        cause = "in train mode because of its own forward" if call.training else "random in evaluation mode"
        details.append(cause)
    return f"{call.name or 'the model itself'} ({', '.join(details)})"


def _first_difference(one: Sequence[Observation], two: Sequence[Observation]) -> Observation | None:
    for left, right in zip(one, two, strict=False):
        if left.name != right.name:
            return _enclosing(left, right, one)
        if left.inputs == right.inputs and left.outputs != right.outputs:
            return left
    return one[-1] if len(one) != len(two) and one else None


def _enclosing(left: Observation, right: Observation, calls: Sequence[Observation]) -> Observation:
    ours, theirs = left.name.split("."), right.name.split(".")
    shared = 0
    while shared < min(len(ours), len(theirs)) and ours[shared] == theirs[shared]:
        shared += 1
    # The calls took different paths, so the module that chose between them holds both.
    holders = [".".join(ours[:end]) for end in range(shared, 0, -1)] + [""]
    return next((call for holder in holders for call in calls if call.name == holder), left)


def failing_module(module: nn.Module, run: Callable[[], object], kind: type[Exception]) -> str:
    """Return which part of the model is being called when ``run()`` raises, e.g. ``0 (Linear, in_features=3, ...)``.

    Args:
        module: the model.
        run: raises an error of type ``kind`` once more.
        kind: of the error.
    """
    open_calls: list[tuple[str, nn.Module]] = []
    handles = []
    try:
        for name, member in module.named_modules():

            def enter(member: nn.Module, _: Any, name: str = name) -> None:
                open_calls.append((name, member))

            handles.append(member.register_forward_pre_hook(enter))
            handles.append(member.register_forward_hook(lambda *_: open_calls.pop() and None))
        with torch.no_grad():
            run()
    except kind:
        if open_calls:
            name, member = open_calls[-1]
            return describe_call(Observation(name, member, False, "", "", True), with_mode=False)
    finally:
        for handle in handles:
            handle.remove()
    return "the model"


# What a model or a loss raises for data that do not fit it.
MISFITS = (RuntimeError, ValueError, IndexError, TypeError)


def first_loss(term: BatchLoss, theta: Tensor, module: nn.Module) -> Tensor:
    """Return the loss of a batch at ``theta`` (d,); what does not fit is said in one sentence.

    Args:
        term: the batch.
        theta: where.
        module: the model, for the name of its part that fails.

    Raises:
        TypeError, ValueError: inputs that do not fit the model, or outputs and targets that do not fit the loss.
    """
    if not isinstance(term, EmpiricalBatch):
        return term(theta)
    with fitting(term.inputs, theta.dtype, module, lambda: term.model.on(theta, term.inputs)):
        outputs = base.logits_of(term.model.on(theta, term.inputs))
    base.require_matching(term.rule, outputs, term.targets)
    try:
        term.rule.function(outputs, term.targets)
    except (*MISFITS, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if wants_graph(error):
            # A penalty on the gradient by the inputs: outputs that are computed with the loss have what it needs.
            return term(theta)
        raise base.mismatch(term.rule, outputs, term.targets, error) from error
    return term.rule.mean(outputs, term.targets, term.size)


@contextmanager
def fitting(inputs: Any, dtype: torch.dtype, module: nn.Module, run: Callable[[], object]) -> Iterator[None]:
    """Turn what the model raises on ``inputs`` inside into one sentence with their shapes.

    Args:
        inputs: of the batch.
        dtype: of the parameters.
        module: the model.
        run: does once more what failed.

    Raises:
        TypeError: inputs of another dtype than the parameters.
        ValueError: inputs that the model cannot take; names the module that failed.
    """
    try:
        yield
    except MISFITS as error:
        if isinstance(error, torch.OutOfMemoryError | HessprobeError):
            raise
        require_dtype(inputs, dtype, error)
        shapes = ", ".join(f"{tuple(leaf.shape)} {leaf.dtype}" for leaf in leaves(inputs)) or type(inputs).__name__
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = failing_module(module, run, type(error))
        raise ValueError(
            f"inputs must fit the model; got {shapes}, and {where} failed: {reason.rstrip('.')}. "
            f"{_remedy(inputs, dtype, reason)}{base.HOW_A_LIST_IS_PASSED if _is_list(inputs) else ''}"
        ) from error


def reads_parameters(term: BatchLoss, theta: Tensor, module: nn.Module) -> bool:
    """Return whether the graph of a loss at ``theta`` reaches the parameters that the module itself holds."""
    own = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        value = term(theta.detach().clone().requires_grad_())
    if not value.requires_grad or not own:
        return False
    try:
        found = torch.autograd.grad(value, own, allow_unused=True)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False  # engines say what has no derivative
    return any(gradient is not None for gradient in found)


def read_where_held(term: BatchLoss, theta: Tensor, module: nn.Module) -> bool:
    """Return whether the loss looks at the model's parameters itself, so that it must see those of theta.

    ``lambda o, t: cross_entropy(o, t) + sum(p.square().sum() for p in net.parameters())`` asks the module for its
    parameters at every call, and gets those that it holds meanwhile.

    Raises:
        UnsupportedError: it kept the tensors themselves, which nothing can be put in the place of.
    """
    if not reads_parameters(term, theta, module):
        return False
    held = replace(term, reads_parameters=True) if isinstance(term, EmpiricalBatch) else None
    if held is not None and not reads_parameters(held, theta, module):
        return True
    raise UnsupportedError(
        "The loss reads parameters of the model that it has kept as tensors (as in ps = list(net.parameters())): they "
        "would stay as they are while the model moves, and their part of the curvature would be missing. Ask the model "
        "for them inside the loss, or inside forward (module.parameters())."
    )


def require_seen(term: BatchLoss, theta: Tensor) -> None:
    """Refuse a loss whose value follows the model's parameters without a gradient, as by ``p.data`` or ``.item()``.

    The loss at a point aside, computed while the module holds that point, is compared with the loss computed while the
    module holds its own parameters: two forward passes of the batch.

    Raises:
        UnsupportedError: they differ.
    """
    if not isinstance(term, EmpiricalBatch) or term.reads_parameters:
        return
    aside = theta + _steps(theta)
    with torch.no_grad():
        here, there = float(term(aside)), float(replace(term, reads_parameters=True)(aside))
    if abs(here - there) > 1e3 * torch.finfo(theta.dtype).eps * abs(here):
        raise UnsupportedError(
            f"The loss moves with the model's parameters by a way that has no gradient (from {here:.6g} to "
            f"{there:.6g} aside of them): it reads .data, .detach(), .item() or NumPy values of them. Read the "
            "parameters themselves, or take the constant before."
        )


def kinked(term: BatchLoss, theta: Tensor) -> str:
    """Return a sentence where the loss has a kink at theta itself, so that it has no Hessian there; else ``""``.

    (L(theta + s v) + L(theta - s v) - 2 L(theta)) / s falls in proportion to s where L is smooth, and tends to the
    jump of its slope where theta lies on a kink: an absolute error of 0, a ReLU of zero bias on zero inputs. In
    float64 only: rounding hides it elsewhere. Five forward passes of the batch.
    """
    if theta.dtype != torch.float64:
        return ""
    v = _steps(theta).sign() * (theta.abs() + theta.square().mean().sqrt() + 1e-3)
    v = torch.where(v == 0, theta.square().mean().sqrt() + 1e-3, v)
    wide = 1e-4
    with torch.no_grad():
        level = float(term(theta))

        def jump(step: float) -> float:
            return (float(term(theta + step * v)) + float(term(theta - step * v)) - 2 * level) / step

        jumps = [jump(wide), jump(wide / 16)]
    noise = 1e3 * torch.finfo(theta.dtype).eps * abs(level) * 16 / wide
    if not abs(jumps[1]) > max(noise, 0.5 * abs(jumps[0])):
        return ""
    return (
        f"the loss has a kink at these parameters (its slope jumps by {abs(jumps[1]):.3g} along a random direction): "
        "it has no Hessian there, and the number is that of one side"
    )


def require_connected(term: BatchLoss, theta: Tensor, layout: ParameterLayout) -> None:
    """Refuse a loss whose gradient is cut off somewhere between the parameters and its value.

    Args:
        term: the batch.
        theta: (d,) where.
        layout: the parameters in theta.

    Raises:
        ValueError: the loss has no gradient although the outputs have one.
        UnsupportedError: a parameter without a gradient moves the loss.
    """
    with torch.enable_grad():
        leaf = theta.clone().requires_grad_()
        value = term(leaf)
        if isinstance(term, EmpiricalBatch) and not value.requires_grad:
            outputs = tree_leaves(term.model.on(leaf, term.inputs))
            if any(isinstance(output, Tensor) and output.requires_grad for output in outputs):
                raise ValueError(
                    "loss must be differentiable in the outputs; got a tensor without a gradient from "
                    f"{term.rule.name}. Compute it with torch operations, without .item(), float() or .detach()."
                )
        gradient = _gradient(value, leaf)
    if gradient is not None:
        _require_moved(term, theta, layout, gradient)


def _is_list(inputs: Any) -> bool:
    return isinstance(inputs, list | tuple) and not hasattr(inputs, "_fields")


def _remedy(inputs: Any, dtype: torch.dtype, reason: str) -> str:
    if "index out of range" in reason:
        return "Check that every index is below the size of its table."
    if not base.about_dtype(reason):
        return "Check the shapes and their order in data."
    if any(leaf.is_floating_point() for leaf in leaves(inputs)):
        return "Check the dtypes in data: indices of an embedding are integers (.long())."
    return f"Convert the inputs to the dtype of the parameters, {dtype}, e.g. with .float() for float32."


def _gradient(value: Tensor, leaf: Tensor) -> Tensor | None:
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    try:
        return torch.autograd.grad(value, leaf, materialize_grads=True)[0]
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return None  # engines say what has no derivative; the loss alone can still be evaluated


def _require_moved(term: BatchLoss, theta: Tensor, layout: ParameterLayout, gradient: Tensor) -> None:
    """Move the parameters whose gradient is zero by a small part of themselves, there and back.

    A loss that does not use them stays, at a stationary point it moves both ways alike; one that goes up on one side
    and down on the other has a slope there that backward did not see.
    """
    dead = [name for name, slope in layout.split(gradient).items() if not bool(slope.any())]
    if not dead:
        return
    steps = {name: step for name, step in layout.split(_steps(theta)).items() if name in dead}

    def moves(names: list[str]) -> bool:
        still = layout.split(torch.zeros_like(theta))
        step = layout.join(steps[name] if name in names else value for name, value in still.items())
        with torch.no_grad():
            here, ahead, behind = (float(term(theta + sign * step)) for sign in (0.0, 1.0, -1.0))
        rise, fall = ahead - here, here - behind
        noise = 100 * torch.finfo(theta.dtype).eps * abs(here)
        return rise * fall > 0 and min(abs(rise), abs(fall)) > max(noise, 0.3 * max(abs(rise), abs(fall)))

    if not moves(dead):
        return
    name = next((name for name in dead if moves([name])), dead[0])
    raise UnsupportedError(
        f"Parameter {name!r} moves the loss but has no gradient: forward cuts it off (torch.no_grad, .detach(), .data, "
        ".item() or NumPy). Remove the cut, or leave the parameter out with params=."
    )


def _steps(theta: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    signs = 2 * torch.randint(2, theta.shape, generator=generator, dtype=torch.int8) - 1
    return theta * signs.to(theta) * (1e-4 if theta.dtype == torch.float64 else 1e-2)


_WHOLE = (
    "Gather its state (torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True), load "
    "it into the same model without sharding, and measure that"
)
# Of accelerate: loaders that hand every process its own batches.
_SHARDS = ("DataLoaderShard", "DataLoaderDispatcher", "BatchSamplerShard", "IterableDatasetShard")


def require_whole_module(module: nn.Module) -> None:
    """Refuse a module whose parameters are spread over ranks, before anything in it is touched.

    Asked by name, as the classes take a second to import and nobody has them who has not imported them.

    Raises:
        UnsupportedError: FSDP1, FSDP2 or tensor parallelism; names the module or parameter.
    """
    for name, member in module.named_modules():
        if type(member).__name__ == "FullyShardedDataParallel":
            raise UnsupportedError(
                f"module must hold whole parameters; got FullyShardedDataParallel at {name or 'the top'}. {_WHOLE}."
            )
    spread = [
        f"the distributed tensor {name!r} (fully_shard or tensor parallelism)"
        for name, parameter in module.named_parameters()
        if type(parameter).__name__ == "DTensor" or type(parameter.data).__name__ == "DTensor"
    ]
    # Between a forward pass and the next backward one FSDP2 keeps whole parameters in place of its own.
    spread += [
        f"fully_shard at {name or 'the top'}"
        for name, member in module.named_modules()
        if hasattr(member, "_get_fsdp_state")
    ]
    if spread:
        raise UnsupportedError(
            f"module must hold whole parameters; got {spread[0]}. Measure it as it is with "
            "hessprobe.objective.sharded.ShardedRisk(module, loss, data), by differences of gradients; or "
            f"{_WHOLE[0].lower()}{_WHOLE[1:]}."
        )


def whole_data(data: Any, group: Any) -> tuple[Any, Any]:
    """Return a loader of all examples in the place of one of a rank's share, and the group that shares products.

    Args:
        data: as for ``EmpiricalRisk``.
        group: likewise.

    Raises:
        TypeError: ``group`` is something else.
    """
    if isinstance(group, str):
        if group != "auto":
            raise TypeError(f"group must be a process group, None or 'auto'; got {group!r}. Pass dist.group.WORLD.")
        sampler = _distributed_sampler(data)
        if sampler is None or not dist.is_available() or not dist.is_initialized():
            return data, None
        group = dist.group.WORLD if dist.get_world_size() == sampler.num_replicas else None
    if group is None or _distributed_sampler(data) is None:
        return data, group
    size = data.batch_size or getattr(data.batch_sampler, "batch_size", None) or 1
    extra = {"num_workers": data.num_workers, "persistent_workers": data.persistent_workers}
    return DataLoader(data.dataset, size, collate_fn=data.collate_fn, pin_memory=data.pin_memory, **extra), group


def require_same_on_ranks(group: Any, *tensors: Tensor) -> None:
    """Refuse a model that is another on some rank of ``group``; nothing is asked where that is None.

    Raises:
        ValueError: on all ranks; names those that differ from the first.
    """
    if group is None:
        return
    own = content_hash([tensor.detach() for tensor in tensors])
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, own, group=group)
    others = [rank for rank, each in enumerate(found) if each != found[0]]
    if others:
        raise ValueError(
            f"module must be the same on all ranks of group; got other weights or buffers than on rank 0 on rank "
            f"{', '.join(map(str, others))}. Load the same checkpoint on all, or wrap it in DistributedDataParallel."
        )


def _distributed_sampler(data: Any) -> DistributedSampler[Any] | None:
    """Return the sampler that gives a loader one rank's share; None where there is none."""
    batch_sampler = getattr(data, "batch_sampler", None) if isinstance(data, DataLoader) else None
    samplers = (getattr(data, "sampler", None), getattr(batch_sampler, "sampler", None))
    return next((s for s in samplers if isinstance(s, DistributedSampler) and s.num_replicas > 1), None)


def require_whole_data(data: Any) -> None:
    """Refuse a loader that gives this rank its share of the data alone.

    Raises:
        DataError: the risk would be that of the share, another on every rank.
    """
    batch_sampler = getattr(data, "batch_sampler", None) if isinstance(data, DataLoader) else None
    sampler = _distributed_sampler(data)
    if sampler is not None:
        raise DataError(
            f"data must be all of the data; got the share of rank {sampler.rank} of {sampler.num_replicas} "
            "(DistributedSampler). Pass a DataLoader of the whole set without it, or group=dist.group.WORLD on all of "
            "them."
        )
    for part in (data, batch_sampler, getattr(data, "dataset", None)):
        if type(part).__name__ in _SHARDS and _processes(part) > 1:
            raise DataError(
                f"data must be all of the data; got the share of one process ({type(part).__name__}). "
                "Pass a DataLoader that was not prepared."
            )


def _processes(part: Any) -> int:
    state = getattr(part, "state", part)
    return int(getattr(state, "num_processes", 1))


class GroupedObjective(Objective):
    """The same objective as a sum over groups of neighbouring examples of its batches.

    Args:
        risk: the objective.
        edges: of every batch with weight, where its groups begin and end; ``()`` for a batch that stays whole.
        passes: forward passes over the data that it took to see that the groups add up.
    """

    def __init__(self, risk: Objective, edges: tuple[tuple[tuple[int, int], ...], ...], passes: float = 0.0) -> None:
        self._risk, self.edges, self.passes = risk, edges, passes
        self.dim, self.dtype, self.device = risk.dim, risk.dtype, risk.device
        self.group = risk.group
        self.theta, self.layout, self.caveats = risk.theta, risk.layout, risk.caveats
        self.n_terms = sum(max(len(own), 1) for own in edges)

    def evaluating(self) -> AbstractContextManager[None]:
        """Return the context of the risk."""
        return self._risk.evaluating()

    def require_finite_loss(self, theta: Tensor | None = None) -> None:
        """See that of the risk."""
        self._risk.require_finite_loss(theta)

    def terms(self) -> Iterator[BatchLoss]:
        """Yield the groups, in the order of the data."""
        for batch, edges in zip(self._risk.terms(), self.edges, strict=True):
            yield from (batch.slice(start, stop) for start, stop in edges) if edges else (batch,)


def by_groups(risk: Objective, count: int) -> GroupedObjective | None:
    """Return the objective as a sum over about ``count`` groups of examples; None where it has no finer ones.

    A batch of weight w becomes ceil(count * w) groups of examples as equal as can be, at most one an example, so that
    there are ``count`` groups or somewhat more wherever there are as many examples. The data are read once, and what is
    cut is evaluated twice, of losses that are known to be means over examples (``LossRule.known``) one batch alone.

    None where there are ``count`` batches already; where no batch can be cut (a loss computed by a user's ``forward``,
    BatchNorm by the statistics of the batch); and where the losses of the groups of a batch do not add up to its own,
    as of examples that see each other (contrastive losses): such batches are one draw each.

    Args:
        risk: the objective.
        count: groups >= 2.
    """
    if risk.n_terms >= count:
        return None
    edges: list[tuple[tuple[int, int], ...]] = []
    passes = 0.0
    with risk.evaluating(), torch.no_grad():
        for batch in risk.terms():
            own = _edges(batch, _pieces(batch, count))
            known = any(edges) and getattr(getattr(batch, "rule", None), "known", False)
            if own and not known:
                if not _adds_up(batch, own, risk.theta):
                    return None
                passes += 2 / risk.n_terms
            edges.append(own)
    return GroupedObjective(risk, tuple(edges), passes) if any(edges) else None


def passes_to_cut(risk: Objective, batch: BatchLoss, count: int) -> float:
    """Return about how many forward passes over the data ``by_groups`` takes, from the first ``batch`` of the risk."""
    if risk.n_terms >= count or not _edges(batch, _pieces(batch, count)):
        return 0.0
    return 2 / risk.n_terms if getattr(getattr(batch, "rule", None), "known", False) else 2.0


def parts_of(batch: BatchLoss, pieces: int, theta: Tensor) -> tuple[tuple[int, int], ...]:
    """Return the examples ``(start, stop)`` of up to ``pieces`` parts whose losses have the batch's as their mean.

    None where there are no two such parts: the examples see each other, or the batch has no slices.
    """
    with torch.no_grad():
        own = _edges(batch, min(int(getattr(batch, "examples", 1)), pieces))
        return own if own and _adds_up(batch, own, theta) else ()


def _pieces(batch: BatchLoss, count: int) -> int:
    # A weight of 1/16 up to rounding is one group, not two.
    return min(int(getattr(batch, "examples", 1)), math.ceil(count * batch.weight - 1e-9))


def _edges(batch: BatchLoss, pieces: int) -> tuple[tuple[int, int], ...]:
    """Return the groups of a batch that have weight; none where it stays whole."""
    if pieces < 2:
        return ()
    examples = int(getattr(batch, "examples", 1))
    ends = [round(examples * number / pieces) for number in range(pieces + 1)]
    try:
        groups = [(start, stop, batch.slice(start, stop).size) for start, stop in pairwise(ends)]
    except (UnsupportedError, *MISFITS) as error:
        # Sparse inputs have no slices.
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return ()
    counted = tuple((start, stop) for start, stop, size in groups if size > 0)
    return counted if len(counted) > 1 else ()


def _adds_up(batch: BatchLoss, edges: tuple[tuple[int, int], ...], theta: Tensor) -> bool:
    """Return whether the losses of the groups have the loss of the batch as their mean."""
    together = float(batch(theta))
    groups = [batch.slice(start, stop) for start, stop in edges]
    try:
        losses = [float(group(theta)) for group in groups]
    except MISFITS as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False  # a loss made for one number of examples
    shares = [group.weight / batch.weight for group in groups]
    apart = math.fsum(share * loss for share, loss in zip(shares, losses, strict=True))
    size = math.fsum(share * abs(loss) for share, loss in zip(shares, losses, strict=True))
    whole = abs(math.fsum(shares) - 1) < 1e-6
    return whole and abs(together - apart) <= torch.finfo(theta.dtype).eps ** 0.5 * (abs(together) + size)

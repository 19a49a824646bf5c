"""Which module is to blame: for a loss that differs between two calls, or that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hessprobe.errors import NondeterministicLossError
from hessprobe.objective.batches import content_hash, leaves

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
    """Notes which of torch's functions were called inside that behave otherwise in training.

    Attributes:
        attention: whether ``scaled_dot_product_attention`` was.
        dropped: how often a dropout function was called with a rate above 0 that it did not apply.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.dropped = False, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``TorchFunctionMode``."""
        kwargs = kwargs or {}
        # multi_head_attention_forward hides its inner calls from the mode; it is fused unless it returns weights.
        if func is F.scaled_dot_product_attention or (
            func is F.multi_head_attention_forward and not kwargs.get("need_weights", True)
        ):
            self.attention = True
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

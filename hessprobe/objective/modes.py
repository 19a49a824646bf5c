"""The state of module and process while a loss is evaluated, its exact return, and what of it a record tells.

- modes, random states, kernels and precision switches (``evaluation``);
- activation checkpointing, switched off. ``torch.utils.checkpoint`` runs a part of the model a second time, during
  backward. By then the parameters that the loss was evaluated at have left the module, so that the second run uses the
  module's own: the gradient is missing (``use_reentrant=True``), or right only at those. Inside, the part is simply
  called; values are the same, memory is that of a model without checkpointing;
- other threads of the process: nothing of theirs is rewound, nothing wrong is read;
- which parameters theta is made of: chosen by glob, regex, predicate, submodule or identity;
- what a risk changed to be measurable, in sentences for records.
"""

from __future__ import annotations

import random
import re
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils import checkpoint

from hessprobe import checks
from hessprobe.errors import NonFiniteError, UnsupportedError, about
from hessprobe.objective.base import LossRule
from hessprobe.objective.checking import CallWatch


@contextmanager
def no_checkpointing(seen: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Call checkpointed functions directly inside.

    Args:
        seen: called whenever one would have been checkpointed.
    """

    class Direct:
        """Stands for torch's autograd function of re-entrant checkpointing."""

        @staticmethod
        def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
            seen()
            return function(*args)

    def nothing(*_: Any, **__: Any) -> Iterator[None]:
        seen()
        yield

    substitutes = {"CheckpointFunction": Direct, "_checkpoint_without_reentrant_generator": nothing}
    # Both names are torch's own affair; a version without one of them has no such checkpointing to switch off.
    saved = {name: vars(checkpoint)[name] for name in substitutes if name in vars(checkpoint)}
    vars(checkpoint).update({name: substitutes[name] for name in saved})
    try:
        yield
    finally:
        vars(checkpoint).update(saved)


_GUARD = -1  # torch numbers its hooks from 0

_lock = threading.Lock()
_owners: dict[int, tuple[int, int]] = {}


@contextmanager
def owned(roots: Sequence[nn.Module]) -> Iterator[None]:
    """Let this thread alone evaluate modules inside; a call of a root from another thread raises there.

    Use it inside what puts the modules' tables back, as it leaves a hook on the roots. Modules that hold no tensor
    (most losses) can be shared by threads.

    Args:
        roots: what is called; their submodules are this thread's as well.

    Raises:
        UnsupportedError: another thread measures one of them.
    """
    here = threading.get_ident()
    roots = [root for root in roots if next(chain(root.parameters(), root.buffers()), None) is not None]
    members = list({id(member): member for root in roots for member in root.modules()}.values())
    with _lock:
        for member in members:
            if _owners.get(id(member), (here, 0))[0] != here:
                raise UnsupportedError(_busy(member))
        for member in members:
            _owners[id(member)] = (here, _owners.get(id(member), (here, 0))[1] + 1)
    try:
        for root in roots:
            if "_forward_pre_hooks" in root.__dict__:
                hooks = OrderedDict(root.__dict__["_forward_pre_hooks"])
                hooks[_GUARD] = _refuse_others(here)
                root.__dict__["_forward_pre_hooks"] = hooks
        yield
    finally:
        with _lock:
            for member in members:
                thread, depth = _owners.pop(id(member))
                if depth > 1:
                    _owners[id(member)] = (thread, depth - 1)


@contextmanager
def random_state(device: torch.device, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Put the random states of torch (CPU and ``device``), NumPy and Python back on leaving.

    Where the process has other threads, the states that all of them share stay as they are: what advanced them may be
    the draws of another thread, which would be repeated. Daemon threads do not count: those of notebooks and progress
    bars wait for input and time, and draw nothing.

    Args:
        device: where the parameters lie.
        generators: further ones, of the measuring thread alone.
    """
    alone = _alone()
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    own = [(generator, generator.get_state()) for generator in generators]
    try:
        yield
    finally:
        if alone and _alone():
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002 - the global state is put back, never drawn from
            torch.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, device)
        for generator, state in own:
            generator.set_state(state)


def _alone() -> bool:
    here = threading.current_thread()
    return all(thread is here or thread.daemon for thread in threading.enumerate())


def _refuse_others(owner: int) -> Any:
    def check(module: nn.Module, _: Any) -> None:
        if threading.get_ident() != owner:
            raise UnsupportedError(_busy(module))

    return check


def _busy(module: nn.Module) -> str:
    return (
        f"{type(module).__name__} must not be used while another thread measures it, as it holds other weights for the "
        "time being. Wait for that thread, or measure a copy.deepcopy of the module."
    )


BATCHNORM = ("eval", "batch", "recalibrate")

RUNNING = ("running_mean", "running_var")


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel`` wrappers."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif is_compiled(module):
            module = module._modules["_orig_mod"]  # type: ignore[assignment]  # compile wrappers always hold a module
        else:
            return module


def is_compiled(module: nn.Module) -> bool:
    """Return whether ``module`` is the wrapper that ``torch.compile(module)`` makes."""
    return isinstance(module._modules.get("_orig_mod"), nn.Module)


def require_pure(module: nn.Module) -> None:
    """Refuse embeddings that rewrite their own weights in forward.

    Raises:
        UnsupportedError: names the first embedding with ``max_norm``.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.max_norm is not None:
            raise UnsupportedError(
                f"Embedding {name or 'itself'!r} has max_norm={layer.max_norm}, which rewrites its weights in forward. "
                "Set max_norm=None after the weights have been renormalised once."
            )


def batchnorms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch normalisation layers of ``module`` by dotted name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}


def uses_batch_statistics(module: nn.Module, batchnorm: str) -> bool:
    """Return whether the examples of a batch see each other: some BatchNorm normalises by the batch it is given."""
    layers = batchnorms(module).values()
    return any(batchnorm == "batch" or layer.running_mean is None for layer in layers)


@contextmanager
def evaluation(
    modules: Sequence[nn.Module],
    *,
    device: torch.device,
    batchnorm: str = "eval",
    tf32: bool = False,
    generators: Sequence[torch.Generator] = (),
    on_checkpoint: Callable[[], object] = lambda: None,
) -> Iterator[None]:
    """Evaluate losses inside; on leaving, also by an exception, everything is bit-identical to what it was.

    Inside: evaluation mode, attention by the math kernel (the fused kernels have no second derivative), recurrent
    networks without cuDNN (its kernels have no gradient in evaluation mode), no fused transformer path, embeddings with
    their true gradient (no ``padding_idx``), compiled parts run eagerly, no activation checkpointing, no ambient
    autocast, TF32 and reduced-precision CPU products off unless ``tf32``.
    Restored: attributes, modes, buffer and parameter tables of every submodule, the torch (CPU and CUDA), NumPy and
    Python random states, ``generators``, and the precision, attention, cuDNN and fast-path switches. Of other threads
    see ``hessprobe.objective.modes``.

    Args:
        modules: roots whose submodules are touched (the model, and a loss that is a module).
        device: where the parameters lie.
        batchnorm: ``"batch"`` takes the running statistics away for the duration; others leave them.
        tf32: use TF32 for float32 products on CUDA.
        generators: of the data loader.
        on_checkpoint: called where the model would have checkpointed a part of itself.

    Raises:
        UnsupportedError: another thread measures one of the modules.
    """
    members = list({id(m): m for root in modules for m in root.modules()}.values())
    with ExitStack() as stack:
        stack.enter_context(random_state(device, generators))
        stack.enter_context(_module_state(members))
        stack.enter_context(owned(modules))
        stack.enter_context(precision(tf32))
        stack.enter_context(_attention())
        stack.enter_context(_recurrence(members))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(no_checkpointing(on_checkpoint))
        # Nothing has been compiled, be it a function inside forward, before the compiler was imported (2 s).
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for member in members:
            # Module.__setattr__ is slow and calls user code; the table itself is what is put back.
            member.__dict__["training"] = False
            if member.__dict__.get("_compiled_call_impl") is not None:
                member.__dict__["_compiled_call_impl"] = None
            if isinstance(member, nn.Embedding | nn.EmbeddingBag):
                _give_true_gradient(member)
            if batchnorm == "batch" and isinstance(member, _BatchNorm):
                for name in RUNNING:
                    member._buffers[name] = None
        yield


def _give_true_gradient(layer: nn.Module) -> None:
    # padding_idx and scale_grad_by_freq replace the gradient by something that is not the gradient of the loss; its
    # derivative is not symmetric, so that two engines disagree. The loss itself knows nothing of them, except that a
    # bag leaves the padding out of its sum; classes with a forward of their own may read the attribute too.
    if type(layer).forward is nn.Embedding.forward:
        layer.__dict__["padding_idx"] = None
    layer.__dict__["scale_grad_by_freq"] = False
    layer.__dict__["sparse"] = False


@contextmanager
def _module_state(members: Sequence[nn.Module]) -> Iterator[None]:
    tables = [(m.__dict__, dict(m.__dict__)) for m in members]
    tables += [(table, dict(table)) for m in members for table in (m._parameters, m._buffers, m._modules)]
    try:
        yield
    finally:
        for table, saved in tables:
            _restore(table, saved)


def _restore(table: dict[str, Any], saved: dict[str, Any]) -> None:
    same = len(table) == len(saved) and all(table.get(key, table) is value for key, value in saved.items())
    if not same or list(table) != list(saved):
        table.clear()
        table.update(saved)


@contextmanager
def _attention() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _recurrence(members: Sequence[nn.Module]) -> Iterator[None]:
    # The recurrent kernels of cuDNN have no gradient in evaluation mode, and never a second derivative.
    before = torch.backends.cudnn.enabled
    if any(isinstance(member, nn.RNNBase) for member in members):
        torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


@contextmanager
def precision(tf32: bool = False) -> Iterator[None]:
    """Compute float32 products in full precision inside (or in TF32 on CUDA); put every switch back on leaving.

    Torch has an old and a new set of switches and refuses to read the old ones where the two disagree. Both are
    therefore set and put back together: the old ones first, because setting them overwrites the new.
    """
    cuda, cpu = torch.backends.cuda, torch.backends.mkldnn
    accelerated = [cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]  # type: ignore[attr-defined]  # untyped
    leaves = [*accelerated, cpu.matmul, cpu.conv, cpu.rnn]  # type: ignore[attr-defined]  # untyped module properties
    saved = [leaf.fp32_precision for leaf in leaves]
    legacy = _legacy_precision()
    wanted = ["tf32" if tf32 and leaf in accelerated else "ieee" for leaf in leaves]
    _set_precision(leaves, wanted, ("high" if tf32 else "highest", tf32), legacy)
    try:
        yield
    finally:
        _set_precision(leaves, saved, legacy, legacy)


def _legacy_precision() -> tuple[str | None, bool | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            matmul: str | None = torch.get_float32_matmul_precision()
        except RuntimeError:
            matmul = None
        try:
            cudnn: bool | None = torch.backends.cudnn.allow_tf32
        except RuntimeError:
            cudnn = None
    return matmul, cudnn


def _set_precision(
    leaves: Sequence[Any],
    values: Sequence[str],
    legacy: tuple[str | None, bool | None],
    readable: tuple[str | None, bool | None],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if readable[0] is not None and legacy[0] is not None:
            torch.set_float32_matmul_precision(legacy[0])
        if readable[1] is not None and legacy[1] is not None:
            torch.backends.cudnn.allow_tf32 = legacy[1]
    for leaf, value in zip(leaves, values, strict=True):
        if leaf.fp32_precision != value:
            leaf.fp32_precision = value


def recalibrate(module: nn.Module, batches: Iterable[tuple[int, Callable[[], object]]]) -> None:
    """Average the running statistics of all BatchNorm layers anew over data. Use inside ``evaluation``.

    The average is cumulative and weighted by examples. A layer sees what the layers before it give in batch mode.

    Args:
        module: the model.
        batches: yields ``(examples, run)`` for each batch; ``run()`` evaluates the model with the buffers to be
            written, which are private copies.
    """
    layers = [layer for layer in batchnorms(module).values() if layer.running_mean is not None]
    saved = [(layer, layer.momentum) for layer in layers]
    seen = 0
    try:
        for examples, run in batches:
            seen += examples
            # The first batch has momentum 1, so nothing is left of the old statistics.
            for layer in layers:
                layer.training, layer.momentum = True, examples / seen
            run()
    finally:
        for layer, momentum in saved:
            layer.training, layer.momentum = False, momentum


# Modules that a sentence names.
_NAMED = 3

_STATISTICS = {"eval": "with its running statistics", "batch": "with the statistics of each batch"}


@dataclass
class Noted:
    """What has been seen of an evaluation.

    Attributes:
        switched: names of the modules of each kind that were in train mode, and are not while the loss is evaluated.
        functional: forward calls a dropout function, in a model that was in train mode, and it drops nothing.
        attention: the fused kernels of attention were switched off.
        checkpointed: activation checkpointing was switched off.
    """

    switched: dict[str, list[str]]
    functional: bool = False
    attention: bool = False
    checkpointed: bool = False

    def see_checkpoint(self) -> None:
        """Note that the model would have checkpointed a part of itself."""
        self.checkpointed = True

    def modes(self) -> Iterator[str]:
        """Yield what was in train mode and was measured in evaluation mode: the number is not that of training."""
        if self.switched:
            counted = " and ".join(f"{len(names)} {kind}" for kind, names in self.switched.items())
            names = [name for members in self.switched.values() for name in members]
            listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
            one = len(names) == 1
            yield f"{counted} {'module' if one else 'modules'} in train mode measured in evaluation mode ({listed})"
        if self.functional:
            yield "dropout called in forward of a model in train mode measured in evaluation mode"

    def sentences(self, module: nn.Module, batchnorm: str) -> Iterator[str]:
        """Yield what was changed in ``module`` to have a second derivative, and how BatchNorm was measured."""
        if self.attention:
            yield "attention switched to the math kernel (the fused kernels have no second derivative)"
        if self.checkpointed:
            yield "activation checkpointing off (it would differentiate at the module's own parameters)"
        if batchnorms(module):
            yield f"BatchNorm {_STATISTICS.get(batchnorm, 'recalibrated on these data, then held fixed')}"
        if any(getattr(layer, "padding_idx", None) is not None for layer in module.modules()):
            yield "rows of padding_idx have their true gradient (torch replaces it by zero)"


def train_modes(module: nn.Module, batchnorm: str) -> dict[str, list[str]]:
    """Return the names of modules that behave otherwise in train mode, in which they are, than they will be measured.

    Args:
        module: the model.
        batchnorm: how BatchNorm is measured; ``"batch"`` is its train mode.
    """
    found: dict[str, list[str]] = {"Dropout": [], "BatchNorm": []}
    for name, member in module.named_modules():
        if not member.training:
            continue
        if _drops(member):
            found["Dropout"].append(name or "the model itself")
        elif isinstance(member, _BatchNorm) and batchnorm != "batch":
            found["BatchNorm"].append(name or "the model itself")
    return {kind: names for kind, names in found.items() if names}


@contextmanager
def functional_dropout(module: nn.Module, watch: CallWatch) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether dropout was called inside by something else than a dropout module.

    Args:
        module: the model.
        watch: sees the calls.
    """
    by_modules = [0]

    def count(member: nn.Module, _: object) -> None:
        by_modules[0] += _drops(member)

    handles = [m.register_forward_pre_hook(count) for m in module.modules() if isinstance(m, _DropoutNd)]
    try:
        yield lambda: watch.dropped > by_modules[0]
    finally:
        for handle in handles:
            handle.remove()


def own_parameters(loss: object, module: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters of a loss that are none of the model's."""
    if not isinstance(loss, nn.Module):
        return []
    known = {id(parameter) for parameter in module.parameters()}
    return [p for p in loss.parameters() if p.requires_grad and id(p) not in known]


def held_by_the_loss(loss: object, module: nn.Module) -> tuple[str, ...]:
    """Return the sentence on trainable parameters that the loss holds and the model does not.

    Args:
        loss: as it was passed.
        module: the model.
    """
    count = sum(parameter.numel() for parameter in own_parameters(loss, module))
    return (
        ()
        if count == 0
        else (f"the loss {type(loss).__name__} has {count} trainable parameters of its own, which are held constant",)
    )


def unreduced(rule: LossRule | None, n_examples: int, n_units: float) -> tuple[str, ...]:
    """Return the sentence on a loss that torch would not have averaged; none where it is a mean.

    Args:
        rule: of the loss, None where the model or ``forward`` computes it.
        n_examples: number of examples.
        n_units: what the loss is divided by.
    """
    if rule is None or rule.reduction == "mean":
        return ()
    whole = rule.reduction == "none" and rule.elementwise
    units = "all elements" if whole else "examples" if n_units == n_examples else "counted targets"
    said = f"{rule.name}(reduction={rule.reduction!r}) is measured as the mean over {units}"
    if rule.reduction == "sum":
        said += f": the loss and the Hessian of the sum are {n_units:.12g} times as large"
    return (said,)


def _drops(member: nn.Module) -> bool:
    # Attention and recurrent networks drop by a number of their own; stochastic depth is a class of other libraries.
    rates = [member.p] if isinstance(member, _DropoutNd) else [getattr(member, "dropout", 0)]
    if type(member).__name__ in ("DropPath", "StochasticDepth", "DropBlock2d"):
        rates += [getattr(member, name, 0) for name in ("drop_prob", "p")]
    return any(isinstance(rate, Real) and float(rate) > 0 for rate in rates)


def select_parameters(module: nn.Module, params: Any = None) -> dict[str, nn.Parameter]:
    """Return the chosen trainable parameters by name, in the module's order; a tied parameter comes once.

    Those of one precision: float32 goes with complex64, float64 with complex128.

    Args:
        module: owner of the parameters.
        params: None (all that require grad); a glob or a list of globs over dotted names, where ``"*"`` also crosses
            dots and the name of a submodule stands for all in it; a compiled regular expression (``search``);
            a predicate ``(name, parameter) -> bool``; a submodule; parameters; or a list that mixes these.
            Frozen parameters (``requires_grad=False``) are always left out.

    Raises:
        TypeError: ``params`` of another kind, or dtypes that differ.
        ValueError: nothing trainable is chosen, or devices differ, or a lazy or meta parameter.
    """
    named = dict(module.named_parameters())
    aliases = _aliases(module)
    chosen = set(named) if params is None else _matches(params, named, aliases)
    trainable = {name: p for name, p in named.items() if name in chosen and p.requires_grad}
    if not trainable:
        raise ValueError(_nothing(module, params, chosen, named))
    _require_uniform(trainable)
    return trainable


def require_finite(module: nn.Module) -> None:
    """Refuse nan and infinite parameters, and nan in buffers (an infinity there may be a mask).

    Raises:
        NonFiniteError: with the name of the first such tensor and how many entries are bad.
        UnsupportedError: a parameter made in inference mode, which has no gradient; or this is called inside it.
    """
    if torch.is_inference_mode_enabled():
        raise UnsupportedError(
            "Curvature must be measured outside torch.inference_mode, where nothing has a gradient. Leave it first."
        )
    kinds = (("parameter", module.named_parameters()), ("buffer", module.named_buffers()))
    for kind, tensors in kinds:
        for name, tensor in tensors:
            if tensor.is_inference() and kind == "parameter":
                raise UnsupportedError(
                    f"parameter {name!r} must be made outside torch.inference_mode, where tensors have no gradient. "
                    "Make or load the model outside, or pass copy.deepcopy of it."
                )
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            if tensor.element_size() == 1:
                # Nothing is computed in the eight-bit types, not even whether they are finite.
                tensor = tensor.float()
            nans = int(torch.isnan(tensor).sum())
            infinite = int(torch.isinf(tensor).sum()) if kind == "parameter" else 0
            if nans or infinite:
                raise NonFiniteError(
                    f"{kind} {name!r} must be finite; got {nans} nan and {infinite} inf of {tensor.numel()} entries. "
                    "Check how the model was trained and saved."
                )


def _aliases(module: nn.Module) -> dict[int, list[str]]:
    aliases: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    return aliases


def _matches(params: Any, named: dict[str, nn.Parameter], aliases: dict[int, list[str]]) -> set[str]:
    if isinstance(params, str | re.Pattern):
        found = {n for n, p in named.items() if any(_fits(params, alias) for alias in aliases[id(p)])}
        if not found:
            raise ValueError(_unmatched(params, named))
        return found
    if isinstance(params, Tensor | nn.Module):
        members = [params] if isinstance(params, Tensor) else list(params.parameters())
        found = {name for name, p in named.items() if any(p is member for member in members)}
        if not found or (isinstance(params, Tensor) and len(found) != 1):
            raise ValueError(
                about(
                    "params",
                    f"must belong to the module; got a {type(params).__name__} that does not. "
                    "Pass parts of the same model object.",
                )
            )
        return found
    if callable(params):
        return {name for name, p in named.items() if params(name, p)}
    if isinstance(params, Iterable):
        return set().union(*(_matches(item, named, aliases) for item in params))
    raise TypeError(
        about(
            "params",
            f"must be None, a glob, a regex, a predicate, a module or a list of these; got {type(params).__name__}. "
            "Pass for example params='layer1.*'.",
        )
    )


def _fits(pattern: str | re.Pattern[str], name: str) -> bool:
    if isinstance(pattern, re.Pattern):
        return pattern.search(name) is not None
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def _unmatched(pattern: str | re.Pattern[str], named: dict[str, nn.Parameter]) -> str:
    text = pattern if isinstance(pattern, str) else pattern.pattern
    prefixes = {".".join(n.split(".")[:end]) for n in named for end in range(1, n.count(".") + 2)}
    first = ", ".join(list(named)[:4])
    return about(
        "params",
        f"must match a parameter; got {text!r}, which matches none of {len(named)} ({first}, ...)."
        f"{checks.nearest(text.rstrip('.*'), sorted(prefixes))}",
    )


def _nothing(module: nn.Module, params: Any, chosen: set[str], named: dict[str, nn.Parameter]) -> str:
    if params is not None and chosen:
        names = ", ".join(sorted(chosen)[:4])
        return about(
            "params",
            f"must match a trainable parameter; got {_shown(params)}, which matches only frozen ones ({names}). "
            "Call requires_grad_(True) on them first.",
        )
    if params is not None:
        return about("params", f"must match a trainable parameter; got {_shown(params)}, which matches none. Widen it.")
    return (
        f"module must have a trainable parameter; got {type(module).__name__} with {len(named)} parameters, "
        f"{'all frozen' if named else 'none at all'}. Call module.requires_grad_(True) first."
    )


def _shown(params: Any) -> str:
    return repr(params) if isinstance(params, str | re.Pattern) else f"a {type(params).__name__}"


def _require_uniform(chosen: dict[str, nn.Parameter]) -> None:
    first_name, first = next(iter(chosen.items()))
    for name, parameter in chosen.items():
        if is_lazy(parameter) or parameter.device.type == "meta":
            kind = "lazy" if is_lazy(parameter) else "meta"
            raise ValueError(
                f"parameter {name!r} must hold values; got a {kind} tensor. Load the weights, or run one batch, first."
            )
        if parameter.dtype.to_real() != first.dtype.to_real():
            raise TypeError(
                about(
                    "params",
                    f"must share one precision; got {first.dtype} ({first_name!r}) and {parameter.dtype} "
                    f"({name!r}). Convert with module.float() or module.double(), or choose fewer with params=.",
                )
            )
        if parameter.device != first.device:
            raise ValueError(
                about(
                    "params",
                    f"must be on one device; got {first.device} ({first_name!r}) and {parameter.device} ({name!r}). "
                    "Move the module with module.to(device), or choose fewer with params=.",
                )
            )

"""What is asked of a risk once, on its first batch: that it can be evaluated, and that its loss and gradient agree.

Models and data that are spread over ranks: what one rank holds is not what is to be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from hessprobe.errors import DataError, HessprobeError, UnsupportedError
from hessprobe.objective import determinism, model_loss, weighting
from hessprobe.objective.base import BatchLoss
from hessprobe.objective.batches import leaves, require_dtype
from hessprobe.objective.terms import EmpiricalBatch, wants_graph
from hessprobe.vectors import ParameterLayout

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
        outputs = model_loss.logits_of(term.model.on(theta, term.inputs))
    weighting.require_matching(term.rule, outputs, term.targets)
    try:
        term.rule.function(outputs, term.targets)
    except (*MISFITS, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if wants_graph(error):
            # A penalty on the gradient by the inputs: outputs that are computed with the loss have what it needs.
            return term(theta)
        raise weighting.mismatch(term.rule, outputs, term.targets, error) from error
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
        where = determinism.failing_module(module, run, type(error))
        raise ValueError(
            f"inputs must fit the model; got {shapes}, and {where} failed: {reason.rstrip('.')}. "
            f"{_remedy(inputs, dtype, reason)}"
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


def _remedy(inputs: Any, dtype: torch.dtype, reason: str) -> str:
    if "index out of range" in reason:
        return "Check that every index is below the size of its table."
    if not weighting.about_dtype(reason):
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
    for name, parameter in module.named_parameters():
        if type(parameter).__name__ == "DTensor" or type(parameter.data).__name__ == "DTensor":
            raise UnsupportedError(
                f"module must hold whole parameters; got the distributed tensor {name!r} (fully_shard or tensor "
                f"parallelism). {_WHOLE}."
            )


def require_whole_data(data: Any) -> None:
    """Refuse a loader that gives this rank its share of the data alone.

    Raises:
        DataError: the risk would be that of the share, another on every rank.
    """
    batch_sampler = getattr(data, "batch_sampler", None) if isinstance(data, DataLoader) else None
    samplers = (getattr(data, "sampler", None), getattr(batch_sampler, "sampler", None))
    for sampler in samplers:
        if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
            raise DataError(
                f"data must be all of the data; got the share of rank {sampler.rank} of {sampler.num_replicas} "
                "(DistributedSampler). Pass a DataLoader of the whole set without it."
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

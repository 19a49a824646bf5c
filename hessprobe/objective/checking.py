"""What is asked of a risk once, on its first batch: that it can be evaluated, and that its loss and gradient agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hessprobe.errors import HessprobeError, UnsupportedError
from hessprobe.objective import determinism, model_loss, weighting
from hessprobe.objective.base import BatchLoss
from hessprobe.objective.batches import leaves, require_dtype
from hessprobe.objective.terms import EmpiricalBatch, wants_graph
from hessprobe.vectors import ParameterLayout

# What a model or a loss raises for data that do not fit it.
_MISFITS = (RuntimeError, ValueError, IndexError, TypeError)


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
    except _MISFITS as error:
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
    except _MISFITS as error:
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


def unlike_a_mean(term: BatchLoss, theta: Tensor) -> str:
    """Refuse a loss of unknown make that is no mean over the batch's examples where it is known what it is instead.

    The loss of the whole batch is compared with those of its halves: a sum would weight batches by their size once
    more, and a mean over targets that are not ignored must be told so.

    Returns:
        A sentence for every number measured on it, where the loss is something else (its examples see each other, or
        have weights); else ``""``.

    Raises:
        ValueError: with the three values.
    """
    if not isinstance(term, EmpiricalBatch) or term.rule.known or term.examples < 2 or not term.separable:
        return ""
    middle = term.examples // 2
    parts = term.slice(0, middle), term.slice(middle, term.examples)
    if not all(part.size > 0 for part in parts):
        return ""
    try:
        with torch.no_grad():
            whole, one, other = (float(batch(theta)) for batch in (term, *parts))
    except _MISFITS as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return ""  # a loss for batches of one size only
    # A half of ignored targets alone has no loss: 0/0.
    scale = abs(one) + abs(other) if math.isfinite(one + other) else abs(whole)
    mean = (parts[0].size * one + parts[1].size * other) / term.size
    rounding = torch.finfo(theta.dtype).eps ** 0.5 * scale
    if abs(whole - one - other) <= rounding and abs(whole - mean) > 0.01 * scale:
        raise ValueError(
            f"loss must be a mean over the batch; got {term.rule.name}, which sums: the first batch has {whole:.6g} "
            f"and its halves have {one:.6g} and {other:.6g}. Divide by the number of examples, or pass "
            "weighting='examples' to have it weighted as if it were a mean."
        )
    if abs(whole - mean) <= rounding:
        return ""
    told = f"the first batch has {whole:.6g}, its halves have {one:.6g} and {other:.6g}"
    left_out = _left_out(parts, (whole, one, other), rounding)
    if left_out is not None:
        raise ValueError(
            f"loss must be a mean over the batch's {term.rule.unit}; got {term.rule.name}, which leaves out targets of "
            f"{left_out}: {told}. Pass torch.nn.CrossEntropyLoss(ignore_index={left_out}) itself, which is weighted by "
            "the targets that count, or weighting='examples' to have every batch weighted by its size."
        )
    return (
        f"the loss {term.rule.name} of a batch is not the mean of its parts ({told}): the number is that of these "
        "batches, and others would give another"
    )


def _left_out(parts: Sequence[EmpiricalBatch], losses: tuple[float, float, float], rounding: float) -> int | None:
    """Return the target value whose absence explains the loss of a batch from those of its halves, or None."""
    whole, one, other = losses
    targets = [part.targets for part in parts]
    if not all(isinstance(t, Tensor) and not t.is_floating_point() for t in targets):
        return None
    # What is ignored stands outside the classes: below 0 or above them. Small batches leave more than one explanation.
    found = torch.unique(torch.cat([t.flatten() for t in targets])).tolist()
    for value in sorted(found, key=lambda label: (label >= 0, -label)):
        counts = [float((t != value).sum()) for t in targets]
        total = sum(counts)
        if 0 < total < sum(t.numel() for t in targets):
            mean = sum(count * loss for count, loss in zip(counts, (one, other), strict=True) if count) / total
            if abs(whole - mean) <= rounding:
                return int(value)
    return None


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

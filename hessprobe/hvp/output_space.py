"""The loss as a function of the model outputs: its Hessian there, block by block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from hessprobe.errors import UnsupportedError
from hessprobe.hvp.verification import runs_custom_functions
from hessprobe.objective.base import BatchLoss

# Outputs per example up to which the loss Hessian of an example is written out.
MAX_OUTPUTS = 256
# Outputs of a batch up to which the loss Hessian of all of them is.
_WRITTEN_OUT = 1024


def loss_hessians(batch: BatchLoss, outputs: Tensor) -> Tensor | None:
    """Return d^2 l / df_s df_s of every example s, shape (B, C, C), C outputs an example.

    Where the loss is separable over examples, one product with the direction e_c of *every* example at once gives
    column c of all blocks. None where C is large, or where the loss is not separable (a ranking or contrastive loss):
    then the blocks do not act as d^2 l does on a random direction.
    """
    if outputs.dim() < 2 or outputs[0].numel() > MAX_OUTPUTS:
        return None
    count = outputs[0].numel()
    directions = torch.eye(count, dtype=outputs.dtype, device=outputs.device)

    def column(direction: Tensor) -> Tensor:
        tangent = direction.view(outputs.shape[1:]).expand_as(outputs)
        bent: Tensor = jvp(grad(batch.loss_of_outputs), (outputs,), (tangent,))[1]
        return bent.reshape(outputs.shape[0], count)

    columns: Tensor = vmap(column)(directions)
    blocks = columns.permute(1, 2, 0)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    bent = jvp(grad(batch.loss_of_outputs), (outputs,), (probe,))[1].reshape(outputs.shape[0], count)
    return blocks if agree(torch.einsum("sij,sj->si", blocks, probe.flatten(1)), bent) else None


def agree(one: Tensor, other: Tensor) -> bool:
    """Return whether two ways to the same tensor differ by rounding only."""
    tolerance = 1e-8 if other.dtype == torch.float64 else 1e-3
    return float((one - other).double().norm()) <= tolerance * float(other.double().norm()) + 1e-300


def square_roots(blocks: Tensor) -> Tensor:
    """Return L (B, C, C) with L L^T = blocks, positive semidefinite up to rounding, computed in fp64."""
    values, vectors = torch.linalg.eigh(blocks.double())
    roots: Tensor = vectors * values.clamp_min(0).sqrt()[:, None, :]
    return roots


def require_convex(batch: BatchLoss, theta: Tensor) -> None:
    """Check on one batch that the loss is convex in the outputs.

    Raises:
        UnsupportedError: it is not, or there are no outputs; says whether one example's loss is not, or only that of
            examples together.
    """
    with torch.no_grad():
        outputs = batch.outputs(theta).detach()
    if outputs.dim() == 0:
        raise UnsupportedError(
            "The Gauss-Newton matrix needs outputs of the examples and a loss on them; the model returns a scalar, its "
            "loss, of which it would be 0. Measure with operator='hessian', or let the model return its outputs."
        )
    with differentiating_twice():
        _require_own_bend(batch, outputs)
        blocks = loss_hessians(batch, outputs)
        smallest, scale = _extremes(batch, outputs, blocks)
    if smallest >= -1e3 * torch.finfo(outputs.dtype).eps * scale:
        return
    single = "a likelihood with its variance or scale among the outputs, as GaussianNLLLoss; a focal or a robust loss"
    if blocks is not None:
        why = f"of one example by itself ({single})"
    elif outputs.dim() > 1 and outputs[0].numel() <= MAX_OUTPUTS:
        why = "of examples that see each other (a contrastive or ranking loss)"
    else:
        why = f"({single}; or a loss that compares examples)"
    raise UnsupportedError(
        f"The Gauss-Newton matrix needs a loss that is convex in the model's outputs; the second derivative there "
        f"has an eigenvalue of {smallest:.3g} {why}, and the matrix would not be positive semidefinite. The Hessian of "
        "such a loss is right: measure with operator='hessian'."
    )


def convex_on(batches: Iterable[BatchLoss], theta: Tensor) -> bool:
    """Return whether the loss is convex in the outputs of all ``batches``."""
    try:
        for batch in batches:
            require_convex(batch, theta)
    except UnsupportedError:
        return False
    return True


@contextmanager
def differentiating_twice() -> Iterator[None]:
    """Turn what torch raises inside, where the loss is differentiated twice in the outputs, into one sentence.

    Raises:
        UnsupportedError: the loss lacks a derivative.
    """
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError | UnsupportedError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedError(f"The loss has no second derivative in the model's outputs: {reason}") from error


def _require_own_bend(batch: BatchLoss, outputs: Tensor) -> None:
    """Refuse a loss whose custom Function has another second derivative than the slope of its gradient."""
    point = outputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        if not runs_custom_functions(batch.loss_of_outputs(point)):
            return

    def slope(at: Tensor) -> Tensor:
        leaf = at.detach().clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(batch.loss_of_outputs(leaf), leaf)[0]

    generator = torch.Generator().manual_seed(3)
    v = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    bent = jvp(grad(batch.loss_of_outputs), (outputs,), (v,))[1]
    step = 1e-4 if outputs.dtype == torch.float64 else 1e-2
    told = (slope(outputs + step * v) - slope(outputs - step * v)) / (2 * step)
    if float((told - bent).norm()) > 0.05 * float(told.norm()):
        raise UnsupportedError(
            "The Gauss-Newton matrix needs the second derivative of the loss in the outputs, and a custom "
            "torch.autograd.Function in the loss gives another than the slope of its gradient. Write its backward with "
            "differentiable operations."
        )


def _extremes(batch: BatchLoss, outputs: Tensor, blocks: Tensor | None) -> tuple[float, float]:
    """Return the smallest curvature seen and the scale of all of them: eigenvalues, or forms of random directions."""
    if blocks is not None:
        values = torch.linalg.eigvalsh(blocks.double())
        return float(values.min()), float(values.abs().max())
    if outputs.numel() <= _WRITTEN_OUT:
        # Examples that see each other: random directions hardly meet the few that a contrastive loss bends down.
        units = torch.eye(outputs.numel(), dtype=outputs.dtype, device=outputs.device)
        columns = [jvp(grad(batch.loss_of_outputs), (outputs,), (u.view_as(outputs),))[1].flatten() for u in units]
        values = torch.linalg.eigvalsh(torch.stack(columns).double())
        return float(values.min()), float(values.abs().max())
    generator = torch.Generator().manual_seed(0)
    forms = []
    for _ in range(4):
        direction = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
        bent = jvp(grad(batch.loss_of_outputs), (outputs,), (direction,))[1]
        forms.append(float((bent.double() * direction.double()).sum()))
    return min(forms), max(abs(form) for form in forms)

"""The loss as a function of the model outputs: its Hessian there, block by block."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from hessprobe.errors import UnsupportedError
from hessprobe.objective.base import BatchLoss

# Outputs per example up to which the loss Hessian of an example is written out.
MAX_OUTPUTS = 256


def loss_hessians(batch: BatchLoss, outputs: Tensor) -> Tensor | None:
    """Return d^2 l / df_s df_s of every example s, shape (B, C, C), C outputs an example; None where C is large.

    The mean loss over the batch is separable over examples, so that one product with the direction e_c of *every*
    example at once gives column c of all blocks.
    """
    count = outputs[0].numel()
    if outputs.dim() < 2 or count > MAX_OUTPUTS:
        return None
    directions = torch.eye(count, dtype=outputs.dtype, device=outputs.device)

    def column(direction: Tensor) -> Tensor:
        tangent = direction.view(outputs.shape[1:]).expand_as(outputs)
        bent: Tensor = jvp(grad(batch.loss_of_outputs), (outputs,), (tangent,))[1]
        return bent.reshape(outputs.shape[0], count)

    blocks: Tensor = vmap(column)(directions)
    return blocks.permute(1, 2, 0)


def square_roots(blocks: Tensor) -> Tensor:
    """Return L (B, C, C) with L L^T = blocks, positive semidefinite up to rounding, computed in fp64."""
    values, vectors = torch.linalg.eigh(blocks.double())
    roots: Tensor = vectors * values.clamp_min(0).sqrt()[:, None, :]
    return roots


def require_convex(batch: BatchLoss, theta: Tensor) -> None:
    """Check on one batch that the loss is convex in the outputs.

    Raises:
        UnsupportedError: it is not, or there are no outputs.
    """
    with torch.no_grad():
        outputs = batch.outputs(theta).detach()
    smallest, scale = _extremes(batch, outputs)
    if smallest < -1e3 * torch.finfo(outputs.dtype).eps * scale:
        raise UnsupportedError(
            f"The Gauss-Newton matrix needs a loss that is convex in the model's outputs; its second derivative there "
            f"reaches {smallest:.3g}. Measure with operator='hessian', or move the non-convex part into the model."
        )


def _extremes(batch: BatchLoss, outputs: Tensor) -> tuple[float, float]:
    """Return the smallest curvature seen and the scale of all of them: eigenvalues, or forms of random directions."""
    blocks = loss_hessians(batch, outputs)
    if blocks is not None:
        values = torch.linalg.eigvalsh(blocks.double())
        return float(values.min()), float(values.abs().max())
    generator = torch.Generator().manual_seed(0)
    forms = []
    for _ in range(4):
        direction = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
        bent = jvp(grad(batch.loss_of_outputs), (outputs,), (direction,))[1]
        forms.append(float((bent.double() * direction.double()).sum()))
    return min(forms), max(abs(form) for form in forms)

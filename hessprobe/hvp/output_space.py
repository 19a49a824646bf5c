"""The loss as a function of the model outputs: its Hessian there, block by block.

The trace of one batch's Gauss-Newton matrix from random directions in output space, with an error.

With L_i L_i^T = d^2 l / df_i df_i for every example i and independent random signs s_i over its outputs,

    tr G_b = sum_i tr(L_i^T J_i J_i^T L_i) = E sum_i |g_i|^2,        g_i = J_i^T L_i s_i.

One backward pass gives all g_i; whether their squares are summed, or the square of their sum is taken, decides the
variance. Write K = L^T J J^T L for the Gram matrix over all outputs of the batch, blocks K_ij between examples:

    Var sum_i |g_i|^2 = 2 sum_i |offdiag K_ii|_F^2,        Var |sum_i g_i|^2 = 2 |offdiag K|_F^2,

both for Rademacher signs and both unbiased, as s_i and s_j are independent. The second exceeds the first by
2 sum_{i != j} |K_ij|_F^2, and since |K|_F = |G_b|_F it is no better than w^T G_b w with a probe w in parameter space,
which needs no backward pass at all. The first is what makes the trace of G cheaper than its probes, and it is what is
computed: squares of per-example gradients. Examples that are independent also give their variances separately, so
that two draws over a batch of B examples have about B degrees of freedom.

L is never formed where the loss is a cross-entropy: with p = softmax(f) and c the weight of a unit (0 where its target
is ignored),

    d^2 l = c (diag p - p p^T) = L L^T,        L = sqrt(c) (diag sqrt(p) - p sqrt(p)^T),

which costs one vector of the size of the outputs. Other losses need their blocks, up to 256 outputs an example.

References:
    Hutchinson (1990); Dangel, Kunstner, Hennig (2020), "BackPACK" (square roots of the loss Hessian).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from hessprobe.errors import UnsupportedError
from hessprobe.hvp.engines import pulled_back, require_differentiable
from hessprobe.hvp.example_norms import Ways, example_squares, held_bytes, summed_squares
from hessprobe.hvp.verification import runs_custom_functions
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.objective.batches import EmpiricalBatch
from hessprobe.operators.base import SampledTrace
from hessprobe.vectors import ProbeStream, room_for_vectors

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

    bend = bending(batch, outputs)
    columns = [bend(unit.view(outputs.shape[1:]).expand_as(outputs)) for unit in directions]
    blocks = torch.stack([column.reshape(outputs.shape[0], count) for column in columns], dim=2)
    probe = _probe(outputs)
    bent = bend(probe).reshape(outputs.shape[0], count)
    return blocks if agree(torch.einsum("sij,sj->si", blocks, probe.flatten(1)), bent) else None


def bending(batch: BatchLoss, outputs: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the product of d^2 l / df^2 at these outputs with directions of their shape, the gradient's graph kept.

    Differentiated backwards twice: ``torch.func.grad`` loads torch's compiler, most of a second, at its first use.
    """
    with torch.enable_grad():
        point = outputs.detach().clone().requires_grad_()
        loss = batch.loss_of_outputs(point)
        # A factor that requires a gradient, or a function that is differentiable once passes for a linear one.
        one = torch.ones_like(loss, requires_grad=True)
        (slope,) = (
            torch.autograd.grad(loss * one, point, create_graph=True, materialize_grads=True)
            if loss.requires_grad
            else (torch.zeros_like(outputs),)
        )
    try:
        require_differentiable(slope)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"The loss has no second derivative in the model's outputs: {str(error)[0].lower()}{str(error)[1:]}"
        ) from error

    def bend(direction: Tensor) -> Tensor:
        if not slope.requires_grad:
            return torch.zeros_like(direction)
        with torch.enable_grad():
            return pulled_back(slope.reshape(-1), point, direction.reshape(-1))

    return bend


def agree(one: Tensor, other: Tensor) -> bool:
    """Return whether two ways to the same tensor differ by rounding only."""
    tolerance = 1e-8 if other.dtype == torch.float64 else 1e-3
    return float((one - other).double().norm()) <= tolerance * float(other.double().norm()) + 1e-300


def square_roots(blocks: Tensor) -> Tensor:
    """Return L (B, C, C) with L L^T = blocks, positive semidefinite up to rounding, computed in fp64."""
    values, vectors = torch.linalg.eigh(blocks.double())
    roots: Tensor = vectors * values.clamp_min(0).sqrt()[:, None, :]
    return roots


def require_convex(batch: BatchLoss, theta: Tensor) -> float:
    """Check on one batch that the loss is convex in the outputs.

    Returns:
        The largest curvature that was seen in the outputs, 0 for a loss that is linear in them.

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
        return scale
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
    """Refuse a loss whose custom Function has another second derivative than the slope of its gradient, unasked."""
    if batch.through_logits:
        return
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
    bent = bending(batch, outputs)(v)
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
        bend = bending(batch, outputs)
        columns = [bend(unit.view_as(outputs)).flatten() for unit in units]
        values = torch.linalg.eigvalsh(torch.stack(columns).double())
        return float(values.min()), float(values.abs().max())
    generator = torch.Generator().manual_seed(0)
    forms, bend = [], bending(batch, outputs)
    for _ in range(4):
        direction = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
        bent = bend(direction)
        forms.append(float((bent.double() * direction.double()).sum()))
    return min(forms), max(abs(form) for form in forms)


Root = Callable[[Tensor], Tensor]


def sampled_trace(
    risk: Objective, draws: range, seed: int, ways: Sequence[Ways] = ()
) -> tuple[SampledTrace, list[Ways]] | None:
    """Return tr G of a risk from random output directions; use inside its ``evaluating()`` context.

    The weighted sum over batches and examples of the means over draws; variances are estimated example by example and
    pooled (Welch-Satterthwaite). In units of 6 a product, a batch costs two forward passes of 1 and each draw a
    backward pass and the norms of at most 2; the check costs 4 more.

    Args:
        risk: the objective.
        draws: indices of the random directions, at least two.
        seed: of their stream.
        ways: to the per-example gradients of each batch, of an earlier call for this risk; else found and checked.

    Returns:
        The trace and the ways; None where the square root of the loss Hessian is not known, there is no batching rule
        for single examples, or examples see each other.
    """
    value = variance = spread = units = 0.0
    used: list[Ways] = []
    for index, batch in enumerate(risk.terms()):
        found = sampled_squares(batch, risk.theta, draws, seed, index, ways[index] if ways else None)
        if found is None:
            return None
        squares, own = found
        used.append(own)
        units += (2 + 2 * len(draws) + (0 if ways else 4)) / risk.n_terms
        parts = squares.var(0) * (batch.weight**2 / len(draws))
        value += batch.weight * float(squares.mean(0).sum())
        variance += float(parts.sum())
        spread += float(parts.square().sum()) / (len(draws) - 1)
    df = variance**2 / spread if spread > 0 else math.inf
    return SampledTrace(value, math.sqrt(variance), df, units / 6), used


def sampled_squares(
    batch: BatchLoss, theta: Tensor, draws: range, seed: int, term: int, ways: Ways | None = None
) -> tuple[Tensor, Ways] | None:
    """Return |g_i|^2 of every example i of one batch for each draw, fp64 (draws, B), the sum over i estimating tr G_b.

    Args:
        batch: an ``EmpiricalBatch`` whose examples do not see each other, else nothing is known per example.
        theta: (d,).
        draws: indices of the random directions; each index is one fixed direction of the stream ``"output"``.
        seed: of that stream.
        term: of that stream; the position of the batch.
        ways: see ``example_squares``.
    """
    if not isinstance(batch, EmpiricalBatch) or not batch.separable:
        return None
    with torch.no_grad():
        outputs = batch.outputs(theta).detach()
    root = _root(batch, outputs)
    if root is None or len(outputs) != batch.examples:
        return None
    stream = ProbeStream(outputs.numel(), seed, "rademacher", outputs.dtype, outputs.device, "output")
    directions = (root(stream.probe(draw, term).view_as(outputs)) for draw in draws)
    return example_squares(batch, theta, directions, ways)


def exact_squares(batch: BatchLoss, theta: Tensor) -> tuple[Tensor, dict[str, float]] | None:
    """Return tr G of every example of one batch, fp64 (B,), and the part of every parameter tensor of their sum.

    sum_c |J_i^T L_i e_c|^2 over the C outputs of an example: C backward passes over the batch, gradients never formed.
    None where the square root of the loss Hessian is not known, examples see each other, or a parameter is none of a
    layer or module of its own.
    """
    if not isinstance(batch, EmpiricalBatch) or not batch.separable:
        return None
    pieces = _pieces(batch, theta)
    return _in_pieces(batch, theta, pieces) if pieces > 1 else _together(batch, theta)


def _together(batch: EmpiricalBatch, theta: Tensor) -> tuple[Tensor, dict[str, float]] | None:
    with torch.no_grad():
        outputs = batch.outputs(theta).detach()
    root = _root(batch, outputs) if outputs.dim() > 1 else None
    if root is None or len(outputs) != batch.examples:
        return None
    count = outputs[0].numel()

    def column(index: int) -> Tensor:
        unit = torch.zeros(count, dtype=outputs.dtype, device=outputs.device)
        unit[index] = 1.0
        return root(unit.view(outputs.shape[1:]).expand_as(outputs))

    return summed_squares(batch, theta, (column(index) for index in range(count)))


def _pieces(batch: EmpiricalBatch, theta: Tensor) -> int:
    """Return in how many parts a batch is taken so that they fit an eighth of what vectors may take."""
    limit = room_for_vectors()
    if limit is None or batch.examples == 1:
        return 1
    return min(batch.examples, -(-batch.examples * held_bytes(batch, theta) * 8 // limit))


def _in_pieces(batch: EmpiricalBatch, theta: Tensor, pieces: int) -> tuple[Tensor, dict[str, float]] | None:
    squares, names = [], dict[str, float]()
    edges = [round(batch.examples * piece / pieces) for piece in range(pieces + 1)]
    for start, stop in pairwise(edges):
        part = batch.slice(start, stop)
        if not part.size:
            squares.append(torch.zeros(stop - start, dtype=torch.float64, device=theta.device))
            continue
        found = _together(part, theta)
        if found is None:
            return None
        # The mean over a part weighs its examples more than the mean over the batch.
        share = part.weight / batch.weight
        squares.append(share * found[0])
        for name, value in found[1].items():
            names[name] = names.get(name, 0.0) + share * value
    return torch.cat(squares), names


def _root(batch: EmpiricalBatch, outputs: Tensor) -> Root | None:
    """Return s -> L s on tensors of the shape of the outputs, checked against the loss; None where L is not known."""
    for dim in dict.fromkeys((1, outputs.dim() - 1)) if outputs.dim() > 1 else ():
        root = _softmax_root(batch, outputs, dim)
        if root is not None:
            return root
    blocks = loss_hessians(batch, outputs)
    if blocks is None:
        return _elementwise_root(batch, outputs)
    roots = square_roots(blocks).to(outputs.dtype)

    def dense(signs: Tensor) -> Tensor:
        return torch.einsum("sij,sj->si", roots, signs.flatten(1)).view_as(signs)

    return dense


def _elementwise_root(batch: EmpiricalBatch, outputs: Tensor) -> Root | None:
    """Return the root for a loss that is a sum over outputs, such as a squared error; else None."""
    bend, probe = bending(batch, outputs), _probe(outputs)
    bends, seen = bend(torch.ones_like(outputs)), bend(probe)
    if not agree(bends * probe, seen) or not bool((bends >= 0).all()):
        return None
    scale = bends.sqrt()
    return lambda signs: scale * signs


def _probe(outputs: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)


def _softmax_root(batch: EmpiricalBatch, outputs: Tensor, dim: int) -> Root | None:
    """Return the root for a cross-entropy over ``dim``, whatever its weights, or None where the loss is another.

    The weight of a unit depends on its target alone, so it is read off the loss Hessian at outputs of 0, where all
    shares are 1/C and nothing cancels; whether the loss is a cross-entropy is then seen from its Hessian at the outputs
    themselves.
    """
    count = outputs.shape[dim]
    if count < 2:
        return None
    flat = torch.zeros_like(outputs)
    ramp = torch.linspace(-1, 1, count, dtype=torch.float64).to(outputs)
    ramp = ramp.view([-1 if axis == dim else 1 for axis in range(outputs.dim())]).expand_as(outputs)
    bent = bending(batch, flat)(ramp)
    form = (ramp.double() * bent.double()).sum(dim, keepdim=True)
    weights = form / ramp.double().square().mean(dim, keepdim=True)
    if not bool((weights >= 0).all()):
        return None
    shares = outputs.double().softmax(dim)

    def bend(tangent: Tensor) -> Tensor:
        mean = (shares * tangent.double()).sum(dim, keepdim=True)
        bent: Tensor = weights * shares * (tangent.double() - mean)
        return bent

    probe = _probe(outputs)
    seen = bending(batch, outputs)(probe)
    if not agree(bend(probe).to(seen.dtype), seen):
        return None
    scale, root_shares = weights.sqrt(), shares.sqrt()

    def root(signs: Tensor) -> Tensor:
        overlap = (root_shares * signs.double()).sum(dim, keepdim=True)
        mixed: Tensor = scale * (root_shares * signs.double() - shares * overlap)
        return mixed.to(signs.dtype)

    return root

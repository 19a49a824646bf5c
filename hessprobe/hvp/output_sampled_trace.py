r"""The trace of one batch's Gauss-Newton matrix from random directions in output space, with an error.

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
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import grad, jvp

from hessprobe.hvp.example_norms import Ways, example_squares
from hessprobe.hvp.output_space import agree, loss_hessians, square_roots
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.objective.terms import EmpiricalBatch
from hessprobe.operators.sampled import SampledTrace
from hessprobe.probes import ProbeStream

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
    bends = jvp(grad(batch.loss_of_outputs), (outputs,), (torch.ones_like(outputs),))[1]
    probe = _probe(outputs)
    seen = jvp(grad(batch.loss_of_outputs), (outputs,), (probe,))[1]
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
    bent = jvp(grad(batch.loss_of_outputs), (flat,), (ramp,))[1]
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
    seen = jvp(grad(batch.loss_of_outputs), (outputs,), (probe,))[1]
    if not agree(bend(probe).to(seen.dtype), seen):
        return None
    scale, root_shares = weights.sqrt(), shares.sqrt()

    def root(signs: Tensor) -> Tensor:
        overlap = (root_shares * signs.double()).sum(dim, keepdim=True)
        mixed: Tensor = scale * (root_shares * signs.double() - shares * overlap)
        return mixed.to(signs.dtype)

    return root

"""Where the Hessian and the Gauss-Newton matrix have one trace: networks that are piecewise linear layer by layer.

With outputs f and loss l, H = G + F, F = sum_i (d l / d f_i) d^2 f_i. Where the outputs are, near theta, linear in the
parameters of every single layer (linear and convolutional layers, ReLU, pooling, normalisation by stored statistics,
residual connections), the blocks of d^2 f_i within a layer are 0, so that H and G have the same diagonal and the same
trace: a theorem, whatever the data and the loss. Nothing of it is assumed: second derivatives inside every layer are
computed, and must be exactly 0.

References:
    Botev, Ritter, Barber (2017), "Practical Gauss-Newton optimisation for deep learning" (piecewise linear transfer
    functions: the blocks of H and of G on the diagonal are equal).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessprobe.errors import UnsupportedError
from hessprobe.hvp.engines import pulled_back
from hessprobe.objective.base import Objective
from hessprobe.objective.batches import EmpiricalBatch
from hessprobe.vectors import room_for_vectors

if TYPE_CHECKING:
    from hessprobe.operators.base import LinearOperator

# Examples of a batch on which every layer is looked at, and what they are divided by: layers cost a pass each.
_EXAMPLES, _PASSES = 16, 512
# How many of them at a time where memory is limited.
_TOGETHER = 2
# Forms of both matrices that are compared, in all.
_COMPARED = 4
_SAME = {torch.float64: 1e-8}


def linear_in_layers(risk: Objective) -> bool:
    """Return whether the outputs are linear in every layer's parameters, and the loss a function of them alone.

    Second derivatives of the outputs inside every layer are looked at on some examples of the first and of the last
    batch: little beside a gradient over the data, so that others learn soon that there is nothing for them.
    """
    layers = _layers(risk)
    for index, batch in enumerate(risk.terms()):
        if not isinstance(batch, EmpiricalBatch) or not batch.separable or batch.reads_parameters or batch.model.pairs:
            return False
        if index in (0, risk.n_terms - 1) and not _is_linear_inside(batch, risk.theta, layers):
            return False
    return True


def check_cost(n_terms: int) -> float:
    """Return the cost of both checks in products: forms of both matrices, and a pass over few examples."""
    return 1.5 * _probes(n_terms) + 0.5


def _probes(n_terms: int) -> int:
    return max(1, -(-_COMPARED // n_terms))


def _layers(risk: Objective) -> list[list[slice]]:
    """Return where the parameters of each module lie."""
    found: dict[str, list[slice]] = {}
    for name, where in risk.layout.slices.items():
        found.setdefault(name.rpartition(".")[0], []).append(where)
    return list(found.values())


def _inside(vector: Tensor, layer: list[slice]) -> Tensor:
    """Return the vector with zeros outside a layer."""
    kept = torch.zeros_like(vector)
    for where in layer:
        kept[where] = vector[where]
    return kept


def _is_linear_inside(batch: EmpiricalBatch, theta: Tensor, layers: list[list[slice]]) -> bool:
    """Return whether w^T (d^2 (u . f)) w is exactly 0 for a random u and a random w inside every layer."""
    examples = min(batch.examples, max(2, min(_EXAMPLES, _PASSES // len(layers))))
    # What is recorded of many is more than a limit of memory leaves to one product.
    together = examples if room_for_vectors() is None else _TOGETHER
    pieces = range(0, examples, together)
    return all(_piece_is_linear(batch, (at, min(at + together, examples)), theta, layers) for at in pieces)


def _piece_is_linear(batch: EmpiricalBatch, where: tuple[int, int], theta: Tensor, layers: list[list[slice]]) -> bool:
    try:
        part = batch.slice(*where)
        with torch.enable_grad():
            leaf = theta.detach().clone().requires_grad_()
            outputs = part.outputs(leaf)
            combined = torch.dot(outputs.reshape(-1), _normal((outputs.numel(),), outputs))
            (pulled,) = torch.autograd.grad(combined, leaf, create_graph=True, materialize_grads=True)
        if not pulled.requires_grad:
            return True
        w = _normal((1, theta.numel()), theta)[0]
        for layer in layers:
            inside = _inside(w, layer)
            bent = pulled_back(pulled, leaf, inside)
            if any(bool(bent[entries].any()) for entries in layer):
                return False
    except (UnsupportedError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False
    return True


def forms_agree(risk: Objective, matrix: LinearOperator, near: LinearOperator) -> bool:
    """Return whether G is the Gauss-Newton matrix of this Hessian H, as seen on all data.

    On every batch v^T H v must be v^T G v to rounding for a random v inside one layer, each in its turn: the loss has
    the Hessian in the outputs that G was made of, and no example takes another way through the network.

    Args:
        risk: the objective.
        matrix: its Hessian H, whose products are checked.
        near: its Gauss-Newton matrix G.
    """
    layers, probes = _layers(risk), _probes(matrix.n_terms)
    W = _normal((probes, matrix.dim), torch.empty(0, dtype=matrix.dtype, device=matrix.device))
    tolerance = _SAME.get(matrix.dtype, 1e-3)
    for index, ((_, H), (_, G)) in enumerate(zip(matrix.terms(), near.terms(), strict=True)):
        rows = [_inside(row, layers[(index * probes + k) % len(layers)]) for k, row in enumerate(W)]
        V = torch.stack(rows)
        own, other = H.quadratic_forms(V), G.quadratic_forms(V)
        if bool(((own - other).abs() > tolerance * other.abs()).any()):
            return False
    return True


def _normal(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return random numbers that no stream of probes shares."""
    generator = torch.Generator().manual_seed(4)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)

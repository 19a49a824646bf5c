"""The whole matrix by d products: when that is the cheaper way to a sketch, and the sketch it gives.

Sampling never needs more products than the matrix has columns: d products with unit vectors give every entry, its
eigenvalues in fp64 answer every later question, and the probe error is 0. The rule of ``method="auto"``: the whole
matrix is taken where sampling would take as many products, ``budget.exact_pays``, provided that the
matrix is small enough (``fits``). It is asked

* before any product, of the least that the sweep can take or, where its chains are as long as they need to be, of what
  is expected of it;
* while a pilot runs, whose chains end once the smallest run with chains that long takes d products, or once they
  converge so slowly that it will, and while a fixed number of chains grow until their quadrature is good enough, which
  end at d products;
* after the pilot, of the run it asks for.

What was made in vain is therefore at most d products (d/2 by a pilot with probes on the sphere).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hessprobe.errors import NonFiniteError
from hessprobe.estimators import budget
from hessprobe.estimators.groups import group_count, grouped_terms, without_chains
from hessprobe.estimators.sketch import SpectralSketch
from hessprobe.estimators.xtrace import block_rows, blocks_of
from hessprobe.operators import LinearOperator

# Largest matrix that "auto" takes: 128 MiB, whose eigenvalues take some 10 s on one core, with eigenvectors (several
# terms) a minute: less than as many products with a network and the orthogonalisation of their chains.
LARGEST = 4096
# Matrices of this size that are held at a time, besides one a group of batches.
_HELD = 4


def fits(A: LinearOperator, memory: int) -> bool:
    """True where ``method="auto"`` may take all of A: d <= 4,096, and the fp64 matrices fit in ``memory`` bytes."""
    held = _HELD + max(group_count(A, A.dim), 1)
    return A.dim <= LARGEST and held * A.dim**2 * 8 <= memory


def whole_sketch(A: LinearOperator, lower: float | None, callback: budget.Callback | None = None) -> SpectralSketch:
    """Return the sketch of a matrix all of whose eigenvalues are known, from d products with unit vectors.

    Args:
        A: symmetric operator.
        lower: a known lower bound of the spectrum, or None.
        callback: told of progress after each block of products.

    Raises:
        NonFiniteError: a product is nan or infinite.
    """
    groups = group_count(A, A.dim)
    parts, weights = _parts(A, groups, callback)
    matrix = parts.sum(0)
    matrix = (matrix + matrix.T) / 2
    if groups:
        values, vectors = torch.linalg.eigh(matrix)
        # v_i^T A_g v_i, what batches do to eigenvalue i.
        forms = torch.stack([(vectors * (part @ vectors)).sum(0) for part in parts]).cpu()
        influence = forms / weights[:, None]
    else:
        values, influence = torch.linalg.eigvalsh(matrix), torch.zeros(0, A.dim, dtype=torch.float64)
    return without_chains(A, lower, values.cpu(), torch.zeros(A.dim, dtype=torch.float64), weights, influence)


def whole_matrix(A: LinearOperator, callback: budget.Callback | None = None) -> Tensor:
    """Return all of A, symmetric, fp64 (d, d), from d products with unit vectors; see ``whole_sketch``."""
    matrix = _parts(A, 0, callback)[0][0]
    return (matrix + matrix.T) / 2


def _parts(A: LinearOperator, groups: int, callback: budget.Callback | None) -> tuple[Tensor, Tensor]:
    """Return the sum of w_b A_b of each group (at least one), fp64 (G, d, d), and the weights of the groups."""
    d = A.dim
    parts = torch.zeros(max(groups, 1), d, d, dtype=torch.float64, device=A.device)
    weights = torch.zeros(groups, dtype=torch.float64)
    done = 0.0
    for group, weight, term in grouped_terms(A, groups):
        for start, stop in blocks_of(d, block_rows(d)):
            units = torch.zeros(stop - start, d, dtype=A.dtype, device=A.device)
            units.diagonal(start).fill_(1.0)
            parts[group, start:stop] += weight * term.matvecs(units).double()
            done += (stop - start) / A.n_terms
            if callback is not None:
                callback(budget.Progress(done, float(d), math.nan, math.inf))
        weights[group : group + 1] += weight
    if not bool(torch.isfinite(parts).all()):
        raise NonFiniteError(
            "products with the operator must be finite; got nan or inf. "
            "Check parameters, data and loss, or use a wider dtype."
        )
    return parts, weights

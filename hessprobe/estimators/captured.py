r"""What deflating a pilot's own products would leave, told from these products alone.

The products Z = A W of a pilot span what a random sketch sees of the range of A. Their k leading singular vectors V
cost no product, are independent of every later probe, and may therefore be deflated without bias at k products. What
they would leave is known beforehand by leaving one probe out: with V_i made of all products but z_i and
P_i = I - V_i^T V_i,

    r_ik = ||P_i A w_i||^2,        E r_ik = E ||P_i A||_F^2 >= E ||P_i A P_i||_F^2,

as w_i is independent of V_i. The mean over i is an unbiased estimate, for a sketch of one probe fewer, of what bounds
the part that is left to sample. Everything comes from the Gram matrix of the products.

References:
    Halko, Martinsson, Tropp (2011), "Finding structure with randomness".
    Epperly, Tropp, Webber (2024), "XTrace" (leaving one probe out).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hessprobe.vectors import combine, gram, orthonormal_rows

# Directions of this share of the largest one, relative and squared, are rounding.
_FLOOR = 64 * torch.finfo(torch.float64).eps


def remainders(products: Tensor) -> Tensor:
    """Return r_ik, fp64 (m, m) on the CPU: row i for the probe left out, column k for k deflated directions, k < m.

    Args:
        products: (m, d) rows A w_i, m >= 2.
    """
    G = gram(products, products).cpu()
    m = len(G)
    kept = torch.stack([torch.cat([torch.arange(i), torch.arange(i + 1, m)]) for i in range(m)])
    values, vectors = torch.linalg.eigh(G[kept[:, :, None], kept[:, None, :]])
    # Largest first; what is rounding takes nothing out.
    values, vectors = values.flip(-1), vectors.flip(-1)
    usable = values > _FLOOR * values[:, :1].clamp_min(torch.finfo(torch.float64).tiny)
    along = (vectors.mT @ G[torch.arange(m)[:, None], kept][:, :, None])[:, :, 0]
    taken = torch.where(usable, along.square() / torch.where(usable, values, 1.0), 0.0).cumsum(-1)
    left = G.diagonal()[:, None] - torch.cat([torch.zeros(m, 1, dtype=torch.float64), taken], dim=1)
    return left.clamp_min(0.0)


def leading(products: Tensor, count: int) -> Tensor:
    """Return the ``count`` leading directions of the rows of ``products`` (m, d), orthonormal, in their dtype.

    Fewer where the products span fewer.
    """
    values, vectors = torch.linalg.eigh(gram(products, products))
    floor = _FLOOR * float(values[-1])
    usable = int((values > max(floor, 0.0)).sum())
    columns = vectors.flip(-1)[:, : min(count, usable)]
    return orthonormal_rows(combine(columns.T, products))

"""Dense float64 oracles: matrices with chosen eigenvalues."""

from __future__ import annotations

import torch
from torch import Tensor

SPECTRA = ("outliers", "flat", "indefinite", "decaying")


def eigenvalues(kind: str, dim: int = 200) -> Tensor:
    """Return the eigenvalues of a named spectrum, fp64 (dim,), ascending."""
    generator = torch.Generator().manual_seed(7)
    bulk = torch.randn(dim, generator=generator, dtype=torch.float64)
    if kind == "outliers":
        values = 0.15 * bulk
        values[:10] = torch.tensor([50, 40, 30, 25, 20, 15, 10, 8, -2, -3], dtype=torch.float64)
    elif kind == "flat":
        values = 1.0 + 0.3 * bulk.clamp(-2.5, 2.5)
    elif kind == "indefinite":
        values = bulk
    elif kind == "decaying":
        values = 10.0 * torch.arange(1, dim + 1, dtype=torch.float64) ** -1.5
    else:
        raise ValueError(kind)
    return values.sort().values


def symmetric(values: Tensor, seed: int = 3) -> Tensor:
    """Return Q diag(values) Q^T for a random orthogonal Q, exactly symmetric."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)).Q
    matrix = (basis * values.to(torch.float64)) @ basis.T
    return (matrix + matrix.T) / 2

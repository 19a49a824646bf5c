"""A matrix with everything that the trials ask of it; made once for some twenty seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hessprobe.validation.bases import rotated
from hessprobe.validation.drawn import Drawn, draw
from hessprobe.validation.matrices import Hidden, leading
from hessprobe.validation.spectra import Array, Source, log_uniform

# Large enough for XTrace with 64 probes to sample, small enough for thousands of runs a minute.
_DIMS = (130, 180)
_SMALL_DIMS = (30, 60)


@dataclass(frozen=True, eq=False)
class Problem:
    """A drawn matrix A, its relatives, and numbers drawn with it.

    Attributes:
        drawn: A.
        seed: of what is drawn besides.
    """

    drawn: Drawn
    seed: int

    @classmethod
    def drawn_for(cls, family: str, seed: int) -> Problem:
        """Return the problem of a family and a seed."""
        return cls(draw(seed, family, dims=_DIMS), seed)

    @classmethod
    def small(cls, family: str, seed: int) -> Problem:
        """Return one of 30 to 60 dimensions, for many batches."""
        return cls(draw(seed, family, dims=_SMALL_DIMS), seed)

    def source(self, *parts: int) -> Source:
        """Return a random source of the problem, one for each tuple of integers >= 0."""
        return np.random.default_rng([self.seed, 1 + len(parts), *parts, *self.drawn.family.encode()])

    @property
    def size(self) -> float:
        """sum_i |lambda_i|."""
        return self.drawn.size

    @cached_property
    def plain(self) -> Hidden:
        """A as an operator of one term."""
        return self.drawn.operator()

    @cached_property
    def terms(self) -> Hidden:
        """A as a sum over batches."""
        return self.drawn.in_terms()

    @cached_property
    def with_surrogate(self) -> Hidden:
        """A as a sum over batches with a surrogate that knows its diagonal."""
        return self.drawn.in_terms(surrogate=True)

    @cached_property
    def neighbour(self) -> Drawn:
        """A + E."""
        return self.drawn.neighbour()

    @cached_property
    def neighbour_operator(self) -> Hidden:
        """A + E as an operator."""
        return self.neighbour.operator()

    @cached_property
    def absolute(self) -> Drawn:
        """|A|."""
        return self.drawn.absolute()

    @cached_property
    def absolute_operator(self) -> Hidden:
        """|A| as an operator that is known to be positive semidefinite."""
        return self.absolute.operator(psd=True)

    @cached_property
    def directions(self) -> Tensor:
        """Five leading eigenvectors of A, blurred: what a search that stopped early would have found."""
        return leading(self.plain.total, 5, blur=0.1)

    @cached_property
    def shift(self) -> float:
        """A damping for log-determinants: 0.1 % to 30 % of the largest |eigenvalue|, drawn."""
        return log_uniform(self.source(0), 1e-3, 0.3) * float(np.abs(self.drawn.values).max())

    @cached_property
    def steps(self) -> int:
        """Lanczos steps, 6 to 24, drawn."""
        return int(self.source(1).integers(6, 25))

    @cached_property
    def points(self) -> Array:
        """Three points between distinct eigenvalues of A, ascending, or as many as there are."""
        values = self.drawn.values
        reach = float(values[-1] - values[0])
        apart = np.flatnonzero(np.diff(values) > 1e-6 * reach)
        chosen = np.sort(self.source(2).permutation(apart)[:3])
        inner = (values[chosen] + values[chosen + 1]) / 2
        outer = [values[0] - 0.1 * reach, values[-1] + 0.1 * reach]
        return inner if len(inner) >= 2 else np.sort(np.concatenate([inner, outer]))

    @cached_property
    def _data_directions(self) -> Array:
        """Three symmetric matrices along which batches differ, of 3 % to 30 % of the norm of A each."""
        source = self.source(3)
        made = []
        for _ in range(3):
            basis = rotated(source, self.drawn.dim)[:, :3]
            change = (basis * source.standard_normal(3)) @ basis.T
            made.append(change * (log_uniform(source, 0.03, 0.3) * self.drawn.norm / np.linalg.norm(change)))
        return np.stack(made)

    def batches(self, count: int, run: int) -> Hidden:
        """Return the mean of ``count`` batches A + sum_j x_bj U_j with normal x: a sample of data with mean A."""
        draws = self.source(4, count, run).standard_normal((count, 3))
        changes = np.einsum("bj,jkl->bkl", draws, self._data_directions)
        return Hidden(torch.from_numpy(self.drawn.matrix + changes), blocks=self.drawn.blocks)


def gapped(gap: float, seed: int, *, bottom: bool = False) -> Problem:
    """Return a diagonal matrix whose first eigenvalue has a given relative gap to the next, one to three equal ones.

    A Lanczos run from a normal vector knows nothing of the eigenvectors, so that a diagonal matrix is any matrix.

    Args:
        gap: (lambda_1 - lambda_2) / lambda_1.
        seed: of size, bulk and scale.
        bottom: turn it round: the gap is at the smallest eigenvalue.
    """
    source = np.random.default_rng([seed, math.floor(1e9 * gap), int(bottom)])
    dim, next_ones = int(source.integers(100, 301)), int(source.integers(1, 4))
    bulk = np.linspace(source.uniform(-0.5, 0.0), source.uniform(0.3, 0.9), dim - 1 - next_ones)
    values = np.concatenate([[1.0], np.full(next_ones, 1 - gap), bulk]) * log_uniform(source, 1e-3, 1e3)
    return Problem(Drawn(f"gap {gap:g}", "axes", seed, np.diag(-values if bottom else values), {}), seed)

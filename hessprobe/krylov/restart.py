"""Thick-restart Lanczos, one product at a time: the engine below ``eigsh``."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessprobe.errors import NonFiniteError
from hessprobe.krylov.lanczos import orthogonalise_, random_row
from hessprobe.operators import LinearOperator
from hessprobe.vectors import ProbeStream, Slice, combine, combine_, room_for_vectors, row_dots

Floats = NDArray[np.float64]

# A remainder below this many roundings of the operator's scale is made of rounding errors.
_BREAKDOWN = 10.0
_NOISE_CAP = 1e-3

# Entries up to which a single-precision basis is held in fp64: 256 MB.
_WIDE = 1 << 25

# How many deviations the noise is measured from, and the median of |z| for a standard normal z.
_DEVIATIONS = 512
_NORMAL_MEDIAN = 0.6745


@dataclass(frozen=True)
class Ritz:
    """Eigenpairs of the projected matrix T.

    Attributes:
        values: (m,), descending.
        mixing: (m, m), column i the coefficients of Ritz vector i in the basis.
        residuals: (m,), ||A y_i - theta_i y_i|| = beta |last coefficient| as the recurrence gives them.
    """

    values: Floats
    mixing: Floats
    residuals: Floats


@dataclass(frozen=True)
class Kept:
    """The Ritz vectors that a restart has kept: y_i with A y_i = theta_i y_i + c_i q, q the row that follows them.

    Attributes:
        values: theta_i.
        couplings: c_i.
    """

    values: tuple[float, ...]
    couplings: tuple[float, ...]


@dataclass
class ThickRestart:
    """A Krylov basis that grows by one product a step and shrinks at restarts to chosen Ritz vectors.

    With m = ``size`` rows Q processed, A Q^T = Q^T T + beta q e_m^T holds on the complement of ``locked``, where T is
    tridiagonal at first and an arrow followed by a tridiagonal matrix after a restart. On breakdown (beta = 0, an
    invariant subspace) the basis goes on with a fresh random row, so that it can grow up to the full space.

    Where ranks make the products together, each holds its part of every row (``held``); a row is put together for its
    product alone. Coefficients are summed over ranks, and T, of which every decision is made, is the same on all.

    Attributes:
        A: the operator.
        capacity: most rows processed between two restarts.
        stream: source of random rows; ``next_index`` is the first unused one.
        locked: (l, d) orthonormal rows, or their part; it works with P A P, P the projection on their complement.
        scale: largest ||A q|| or |theta| seen, a lower bound on the spectral norm.
        size: rows processed so far, m.
        beta: norm of the last remainder; 0 after a breakdown.
        alphas, betas: coefficients of the recurrence up to the first breakdown, for ``certificates``.
        restarts: what was kept between them, by the number of coefficients before it.
        pristine: no restart yet.
        noise: norm of the error of one product, as measured so far.
        held: the part of every row that this process holds.

    References:
        Wu, Simon (2000), "Thick-restart Lanczos method for large symmetric eigenvalue problems".
    """

    A: LinearOperator
    capacity: int
    stream: ProbeStream
    next_index: int
    locked: Tensor
    scale: float = 0.0
    size: int = 0
    beta: float = 0.0
    alphas: list[float] = field(default_factory=list)
    betas: list[float] = field(default_factory=list)
    restarts: dict[int, Kept] = field(default_factory=dict)
    pristine: bool = True
    noise: float = 0.0
    _deviations: deque[float] = field(default_factory=lambda: deque(maxlen=_DEVIATIONS))
    _largest_deviation: float = 0.0

    def __post_init__(self) -> None:
        self.held = Slice(self.A.dim, self.A.ranks)
        rows, width = self.capacity + 1, self.held.width
        # Every step multiplies by the whole basis in fp64 several times over: converting it each time is dearer than
        # the arithmetic. The entries are those of the operator's dtype either way.
        room = room_for_vectors()
        fits = room is None or 8 * rows * width + self.A.dtype.itemsize * self.held.beside <= room
        wide = rows * width <= _WIDE and self.A.dtype == torch.float32 and fits
        dtype = torch.float64 if wide else self.A.dtype
        own = self.held.entries
        self.basis = torch.empty(rows, own.stop - own.start, dtype=dtype, device=self.A.device)
        self.T: Floats = np.zeros((rows, rows))
        self._has_next = False

    def begin(self, row: Tensor | None = None) -> None:
        """Set the first basis row: a unit ``row`` (1, d), whole, orthogonal to ``locked``, or a random one."""
        self.basis[0] = self._random() if row is None else self.held.of(row)[0]
        self._has_next = True

    @property
    def space(self) -> int:
        """Dimension of the complement of the locked rows."""
        return self.A.dim - len(self.locked)

    @property
    def exhausted(self) -> bool:
        """The basis spans the whole complement: every Ritz pair is an eigenpair."""
        return self.size >= self.space

    @property
    def bounding_betas(self) -> list[float]:
        """The off-diagonal numbers of the recurrence, for bounds on the spectrum.

        A remainder that was taken for rounding is not 0: eigenvectors may hide in it up to the noise of the products.
        """
        return [*self.betas[:-1], self.betas[-1] or self.floor or math.ulp(0.0)]

    @property
    def full(self) -> bool:
        """No room for another product before a restart."""
        return self.size >= self.capacity

    def _noise(self) -> float:
        """Return the norm of the error of one product, as the coefficients that symmetry makes known betray it.

        In exact arithmetic q_i . A q_j is known beforehand for every earlier row i. With errors f_i, f_j of the two
        products it deviates by q_i . f_j - q_j . f_i. The median of the latest |deviations| gives the error in a
        typical direction, sigma = median / 0.6745 = |f| sqrt(2 / d); directions in which it is larger than that
        (eigenvectors that live on few coordinates) are seen themselves: the largest norm of the deviations of one
        product.
        """
        if not self._deviations:
            return 0.0
        typical = float(np.median(self._deviations)) / _NORMAL_MEDIAN
        return max(typical * math.sqrt(self.A.dim / 2), self._largest_deviation)

    @property
    def floor(self) -> float:
        """Residual norm below which nothing can be told from rounding errors; at most a thousandth of the scale.

        Errors of earlier products, of restarts and of the last product add up, hence more than one ``noise``.
        The cap keeps an operator that is not symmetric, whose deviations are no noise, from passing for converged.
        """
        return min(4 * self.noise + 4 * torch.finfo(self.A.dtype).eps * self.scale, _NOISE_CAP * self.scale)

    def step(self) -> None:
        """Multiply the next basis row by A, orthogonalise, and extend T: one product, one transfer to the host.

        Raises:
            NonFiniteError: the product holds nan or inf.
        """
        j = self.size
        if not self._has_next:
            self.basis[j] = self._random()
        # The next row is made in its place: one vector less is alive, and what A hands out stays as it is.
        rest = self.basis[j + 1 : j + 2]
        rest.copy_(self.held.of(self.A.matvecs(self.held.whole(self.basis[j : j + 1].to(self.A.dtype)))))
        _, coefficients = orthogonalise_(rest, (self.locked, self.basis[: j + 1]), self.held)
        numbers = torch.cat([coefficients, self.held.summed(row_dots(rest, rest))]).cpu().numpy()
        if not bool(np.isfinite(numbers).all()):
            raise NonFiniteError(
                f"A v must be finite; got nan or inf in a product with a unit vector of dimension {self.A.dim}. "
                "Check parameters, data and loss for nan, inf and overflow in low precision."
            )
        self._record(numbers[:-1], math.sqrt(float(numbers[-1])))
        if self.beta > 0:
            rest.div_(self.beta)
            if self.basis.dtype != self.A.dtype:
                rest.copy_(rest.to(self.A.dtype))

    def _record(self, coefficients: Floats, beta: float) -> None:
        j = self.size
        deviations = coefficients[:j] - self.T[:j, j]
        self._deviations.extend(np.abs(deviations).tolist())
        self._largest_deviation = max(self._largest_deviation, float(np.linalg.norm(deviations)))
        self.noise = self._noise()
        alpha = float(coefficients[j])
        self.scale = max(self.scale, math.hypot(float(np.linalg.norm(coefficients)), beta))
        if beta <= max(_BREAKDOWN * torch.finfo(self.A.dtype).eps * self.scale, self.floor):
            beta = 0.0
        self.T[j, j] = alpha
        self.T[j, j + 1] = self.T[j + 1, j] = beta
        if not self._broken:
            self.alphas.append(alpha)
            self.betas.append(beta)
        self.beta, self.size, self._has_next = beta, j + 1, beta > 0

    @property
    def _broken(self) -> bool:
        """Whether the rows no longer come from the start alone."""
        return bool(self.betas) and self.betas[-1] == 0

    def ritz(self) -> Ritz:
        """Return the eigenpairs of T."""
        # Not by NumPy: the threads of its BLAS keep spinning after every call and slow torch's down several-fold.
        ascending, columns = torch.linalg.eigh(torch.from_numpy(self.T[: self.size, : self.size]))
        pairs = self.held.first(torch.cat([ascending[None], columns]).flip(1), self.A.device).cpu().numpy()
        values, mixing = pairs[0], pairs[1:]
        self.scale = max(self.scale, abs(float(values[0])), abs(float(values[-1])))
        return Ritz(values, mixing, self.beta * np.abs(mixing[-1]))

    def vectors(self, ritz: Ritz, chosen: NDArray[Any]) -> Tensor:
        """Return the chosen Ritz vectors as rows (k, d), their part."""
        mixing = torch.from_numpy(ritz.mixing[:, chosen].T.copy()).to(self.basis.device)
        return combine(mixing, self.basis[: self.size]).to(self.A.dtype)

    def restart(self, ritz: Ritz, kept: NDArray[Any]) -> None:
        """Shrink the basis to the kept Ritz vectors and the last remainder; products are never repeated."""
        count = len(kept)
        mixing = torch.from_numpy(ritz.mixing[:, kept].T.copy()).to(self.basis.device)
        combine_(mixing, self.basis[: self.size], self.A.dtype)
        self.T[:] = 0.0
        self.T[range(count), range(count)] = ritz.values[kept]
        if self._has_next:
            self.basis[count] = self.basis[self.size]
            coupling = self.beta * ritz.mixing[-1, kept]
            if not self._broken:
                self.restarts[len(self.alphas)] = Kept(tuple(ritz.values[kept].tolist()), tuple(coupling.tolist()))
            self.T[:count, count] = self.T[count, :count] = coupling
        self.size, self.pristine = count, False

    def release(self) -> None:
        """Let go of the basis: no further step, and no vectors; what is known of the spectrum stays."""
        self.basis = self.basis[:0].clone()

    def _random(self) -> Tensor:
        self.next_index += 1
        return random_row(self.stream, self.next_index - 1, (self.locked, self.basis[: self.size]), self.held)[0]

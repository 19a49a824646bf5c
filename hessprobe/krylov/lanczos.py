"""Lanczos tridiagonalisation of several independent chains in lock-step.

Orthogonality of long rows, with fp64 dot products whatever their dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import NonFiniteError
from hessprobe.operators import aslinearoperator
from hessprobe.vectors import ProbeStream, Slice, row_dots

# Basis vectors are stored in slabs of this many steps: a sweep that ends early has not paid for its longest length.
_SLAB = 32
_COLUMNS = 4096
# A residual below this many units of rounding of the operator's own scale is noise: the subspace is invariant.
_BREAKDOWN = 16.0


@dataclass(frozen=True, eq=False)
class LanczosRun:
    """Tridiagonal matrices T_c = Q_c A Q_c^T of p chains, and their bases where kept.

    Chain c fulfils A Q_c^T = Q_c^T T_c + beta_c[l-1] r_c e_l^T with l = ``lengths[c]`` and a unit vector r_c. A chain
    that reached an invariant subspace is shorter than the others and has ``betas[c, l-1] == 0``: its T is exact.

    Attributes:
        norms: (p,) norms of the starts; a zero start has length 0.
        alphas: (p, m) diagonals, entries beyond a chain's length are 0.
        betas: (p, m) off-diagonals; ``betas[c, j]`` couples steps j and j + 1, the last is the residual norm.
        lengths: (p,) integers <= m.
        slabs: the bases as (p, <=32, d) pieces in the operator's dtype, empty where they were not kept. Where ranks
            make the products together, this one's part of them.
        held: which part that is; None for whole vectors.

    ``norms``, ``alphas``, ``betas`` are fp64 on the CPU.
    """

    norms: Tensor
    alphas: Tensor
    betas: Tensor
    lengths: Tensor
    slabs: tuple[Tensor, ...] = ()
    held: Slice | None = None

    @property
    def basis(self) -> Tensor | None:
        """The bases in one piece (p, m, d), a copy; rows beyond a chain's length are 0. None where not kept.

        Where ranks hold parts of them all ranks ask for it together.
        """
        if not self.slabs:
            return None
        own = torch.cat(self.slabs, dim=1)[:, : self.alphas.shape[1]]
        return own if self.held is None else self.held.whole(own.flatten(0, 1)).view(own.shape[0], own.shape[1], -1)

    @property
    def starts(self) -> Tensor:
        """The first vector of every chain (p, d), whole; where ranks hold parts of them all ask for it together."""
        first = self.slabs[0][:, 0].contiguous()
        return first if self.held is None else self.held.whole(first)

    def coefficients(self, X: Tensor) -> Tensor:
        """Return Q_c x_c for one row x_c a chain: (p, d) -> fp64 (p, m) on the CPU.

        Where ranks hold parts of the bases all of them ask for it together, with whole rows.

        Raises:
            ValueError: the bases were not kept.
        """
        if not self.slabs:
            raise ValueError("basis must be kept for coefficients; got none. Run lanczos with keep_basis=True.")
        held = self.held or Slice(X.shape[1])
        columns = held.summed(torch.cat([_dots(slab, held.of(X)) for slab in self.slabs], dim=1))
        return columns[:, : self.alphas.shape[1]].cpu()


def lanczos(
    A: Any,
    V: Tensor,
    steps: int,
    *,
    reorthogonalize: bool | str = True,
    keep_basis: bool | None = None,
    monitor: Callable[[LanczosRun], bool] | None = None,
) -> LanczosRun:
    """Tridiagonalise A on the Krylov spaces of several starts.

    Recurrence: beta_j q_{j+1} = A q_j - alpha_j q_j - beta_{j-1} q_{j-1}, with alpha_j = q_j^T A q_j. One product with
    a block of p rows is made a step (a block costs less than p single products); a finished chain leaves the block.
    Where ranks make the products together, each holds its part of every basis vector; dot products are summed over
    them, and the vectors of a step are put together for their product alone.

    Args:
        A: a symmetric operator, or what ``aslinearoperator`` takes.
        V: (p, d) starts, one a row, of the operator's dtype and device; need not be normalised or independent.
        steps: m >= 1; cut to d.
        reorthogonalize: True or ``"full"`` makes every vector orthogonal to all before it by two Gram-Schmidt passes
            with dots summed in fp64, which keeps p * m * d numbers in memory. False keeps three vectors a chain;
            rounding then repeats converged eigenvalues ("ghosts"): quadrature weights split, their sums stay.
        keep_basis: hand out the bases; by default where they exist anyway.
        monitor: called after each step with the run so far (without bases); True ends the sweep.

    Raises:
        TypeError, ValueError: bad arguments.
        NonFiniteError: a start or a product is nan or infinite.

    References:
        Lanczos (1950); Paige (1972); Simon (1984); Giraud, Langou, Rozloznik (2005) on "twice is enough".
    """
    A = aslinearoperator(A)
    steps = min(checks.positive_int("steps", steps), A.dim)
    full = _wants_reorthogonalization(reorthogonalize)
    keep = full if keep_basis is None else keep_basis
    if V.ndim != 2 or V.shape[1] != A.dim:
        raise ValueError(
            f"V must have shape (p, {A.dim}), one start a row; got {tuple(V.shape)}. Pass v as v[None, :]."
        )
    state = _Sweep(V, Slice(A.dim, A.ranks), steps, keep=full or keep)
    while state.step < steps:
        state.advance(A, full)
        if not bool(state.live.any()) or (monitor is not None and monitor(state.run(basis=False))):
            break
    return state.run(basis=keep)


def _wants_reorthogonalization(value: bool | str) -> bool:
    if isinstance(value, bool):
        return value
    checks.one_of("reorthogonalize", value, ["full"])
    return True


class _Sweep:
    """The state of all chains between two steps."""

    def __init__(self, V: Tensor, held: Slice, steps: int, *, keep: bool) -> None:
        V, self.held = held.of(V), held
        self.norms = held.summed(row_dots(V, V)).sqrt()
        if not bool(torch.isfinite(self.norms).all()):
            raise NonFiniteError("V must be finite; got nan or inf in a start. Check how it was made.")
        count = V.shape[0]
        self.live = self.norms > 0
        self.current = V / torch.where(self.live, self.norms, 1.0).to(V.dtype)[:, None]
        self.previous = torch.zeros_like(V)
        self.alphas = torch.zeros(count, steps, dtype=torch.float64, device=V.device)
        self.betas = torch.zeros_like(self.alphas)
        self.lengths = torch.zeros(count, dtype=torch.long, device=V.device)
        self.scale = torch.zeros_like(self.norms)
        self.step, self.steps, self.keep = 0, steps, keep
        self.slabs: list[Tensor] = []

    def advance(self, A: Any, full: bool) -> None:
        """Make one step of every live chain."""
        j, q = self.step, self.current
        if self.keep:
            self._store(q)
        product = self._product(A)
        alpha, squares = self.held.summed(torch.stack([row_dots(q, product), row_dots(product, product)]))
        self.scale = torch.maximum(self.scale, squares.sqrt())
        if not bool(torch.isfinite(self.scale).all()):
            raise NonFiniteError(f"A must give finite products; got nan or inf at Lanczos step {j + 1}.")
        residual = product - alpha.to(q.dtype)[:, None] * q
        if j:
            residual = residual - self.betas[:, j - 1].to(q.dtype)[:, None] * self.previous
        if full:
            residual = self._orthogonal(self._orthogonal(residual))
        beta = self.held.summed(row_dots(residual, residual)).sqrt()
        self.alphas[:, j] = alpha
        self.lengths += self.live
        self.live = self.live & (beta > _BREAKDOWN * torch.finfo(q.dtype).eps * self.scale)
        self.betas[:, j] = torch.where(self.live, beta, 0.0)
        inverse = torch.where(self.live, 1.0 / torch.where(self.live, beta, 1.0), 0.0)
        self.previous, self.current = q, residual * inverse.to(q.dtype)[:, None]
        self.step += 1

    def run(self, *, basis: bool) -> LanczosRun:
        """Return what stands so far."""
        done = slice(0, self.step)
        return LanczosRun(
            self.norms.cpu(),
            self.alphas[:, done].cpu(),
            self.betas[:, done].cpu(),
            self.lengths.cpu(),
            tuple(self._filled()) if basis else (),
            self.held if basis and self.held.ranks is not None else None,
        )

    def _product(self, A: Any) -> Tensor:
        if bool(self.live.all()):
            product: Tensor = self.held.of(A.matvecs(self.held.whole(self.current)))
            return product
        product = torch.zeros_like(self.current)
        product[self.live] = self.held.of(A.matvecs(self.held.whole(self.current[self.live])))
        return product

    def _store(self, q: Tensor) -> None:
        if self.step % _SLAB == 0:
            width = min(_SLAB, self.steps - self.step)
            self.slabs.append(torch.zeros(q.shape[0], width, q.shape[1], dtype=q.dtype, device=q.device))
        self.slabs[-1][:, self.step % _SLAB] = q

    def _filled(self) -> Iterator[Tensor]:
        for index, slab in enumerate(self.slabs):
            yield slab[:, : self.step - index * _SLAB]

    def _orthogonal(self, residual: Tensor) -> Tensor:
        for index, slab in enumerate(self.slabs):
            used = slab[:, : self.step + 1 - index * _SLAB]
            coefficients = self.held.summed(_dots(used, residual))
            residual = residual - torch.bmm(coefficients.to(residual.dtype)[:, None, :], used)[:, 0]
        return residual


def _dots(slab: Tensor, rows: Tensor) -> Tensor:
    """Return the dot products of every chain's basis with its own row, fp64: (p, s, d), (p, d) -> (p, s).

    Single precision is multiplied as it is, a few thousand columns at a time, and summed in fp64: the error of a dot
    product stays near that of the entries, far below what a Lanczos basis needs (semiorthogonality, sqrt(eps); Simon
    1984), at a tenth of the time that fp64 copies of the bases would take.
    """
    if slab.dtype == torch.float64:
        return torch.bmm(slab, rows[:, :, None])[:, :, 0]
    total = torch.zeros(slab.shape[:2], dtype=torch.float64, device=slab.device)
    for start in range(0, slab.shape[2], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        total += torch.bmm(slab[:, :, columns].float(), rows[:, columns].float()[:, :, None])[:, :, 0]
    return total


# fp64 copies of the basis are made this many elements at a time: what a processor's cache holds, and on an accelerator
# enough to keep it busy.
_CPU_CHUNK, _DEVICE_CHUNK = 1 << 18, 1 << 24


def orthogonalise(row: Tensor, bases: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return ``row`` minus its projection on the span of orthonormal rows, and the coefficients of the projection.

    Classical Gram-Schmidt, twice: after the second pass the remainder is orthogonal to working precision unless
    it is itself made of rounding errors, which the caller sees from its norm.

    Args:
        row: (1, d).
        bases: blocks of rows (m_i, d), all of them together orthonormal; blocks may be empty.

    Returns:
        The remainder (1, d) and, for each block, fp64 coefficients (m_i,) with row = remainder + sum_i c_i B_i.

    References:
        Giraud, Langou, Rozloznik, van den Eshof (2005), "Rounding error analysis of the classical Gram-Schmidt
        orthogonalization process".
    """
    rest = row.clone()
    return rest, orthogonalise_(rest, bases)


def orthogonalise_(row: Tensor, bases: Sequence[Tensor], held: Slice | None = None) -> list[Tensor]:
    """Do as ``orthogonalise`` in the memory of ``row`` (1, d), and return the coefficients.

    Sums are fp64, of pieces of the row. What is left after each pass is rounded to its dtype, an error relative to what
    is left, as the last rounding would be anyhow.

    Args:
        row: (1, d), or the part of it that this process holds.
        bases: likewise.
        held: which part; ranks that hold the others call this together, and each pass adds up over them once.
    """
    sizes = [len(basis) for basis in bases]

    def summed(totals: list[Tensor]) -> list[Tensor]:
        return totals if held is None else list(torch.split(held.summed(torch.cat(totals)), sizes))

    first = summed(_sweep(row, bases, None))
    second = summed(_sweep(row, bases, first))
    _sweep(row, bases, second, last=True)
    return [one + two for one, two in zip(first, second, strict=True)]


def _sweep(
    rest: Tensor, bases: Sequence[Tensor], coefficients: Sequence[Tensor] | None, *, last: bool = False
) -> list[Tensor]:
    """Subtract combinations of the bases from ``rest`` (1, d) in place and return the coefficients of what is left.

    After the ``last`` sweep nobody asks for them, and zeros are returned.
    One reading of the bases serves both: for low-precision rows, the conversion to fp64 is most of the work.
    """
    totals = [torch.zeros(len(basis), dtype=torch.float64, device=rest.device) for basis in bases]
    elements = _CPU_CHUNK if rest.device.type == "cpu" else _DEVICE_CHUNK
    width = max(elements // max(sum(len(basis) for basis in bases), 1), 256)
    for start in range(0, rest.shape[1], width):
        piece = rest[:, start : start + width].double()
        blocks = [basis[:, start : start + width].double() for basis in bases]
        if coefficients is not None:
            for factors, block in zip(coefficients, blocks, strict=True):
                piece.sub_(factors[None] @ block)
            rest[:, start : start + width] = piece
        if last:
            continue
        piece = rest[:, start : start + width].double()
        for total, block in zip(totals, blocks, strict=True):
            total.add_(block @ piece[0])
    return totals


def normalised(row: Tensor) -> Tensor:
    """Return ``row`` (1, d) divided by its norm, which must not be 0."""
    return row / row_dots(row, row).sqrt().to(row.dtype)


def _normalise_(row: Tensor, held: Slice) -> None:
    row.div_(held.summed(row_dots(row, row)).sqrt().to(row.dtype))


def random_row(stream: ProbeStream, index: int, bases: Sequence[Tensor] = (), held: Slice | None = None) -> Tensor:
    """Return a unit row (1, d), uniform on the sphere of the orthogonal complement of all ``bases``.

    Args:
        stream: of law ``"gaussian"`` (rotation-invariant, hence uniform after projection and scaling).
        index: which probe of the stream.
        bases: blocks of orthonormal rows that together span less than the whole space.
        held: the part of the bases that this process has, and of the row that is returned; all of both by default.
    """
    held = Slice(stream.dim) if held is None else held
    row = stream.probe(index)[None]
    if held.ranks is not None:
        row = held.of(row).clone()
    _normalise_(row, held)
    # Near full dimension little is left after the projection; projecting the scaled remainder again restores accuracy.
    for _ in range(2):
        if sum(len(basis) for basis in bases):
            orthogonalise_(row, bases, held)
        _normalise_(row, held)
    return row

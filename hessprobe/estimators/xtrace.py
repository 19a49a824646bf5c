"""XTrace: a trace estimator in which every probe serves both to sketch the range and to estimate the remainder.

With Omega = [w_1 .. w_N], Y = A Omega = Q R and Q_i an orthonormal basis of the range of Y without column i,

    t_i = tr(Q_i^T A Q_i) + w_i^T (I - Q_i Q_i^T) A (I - Q_i Q_i^T) w_i,        estimate = mean t_i.

Column i can be taken out of Q cheaply: Q_i Q_i^T = Q (I - s_i s_i^T) Q^T with s_i the normalised i-th column of R^{-T},
since R^{-T} e_i is orthogonal to every other column of R. With H = Q^T A Q, the N x N matrix W = Q^T Omega and
x_i = (I - s_i s_i^T) W e_i,

    t_i = tr H - s_i^T H s_i + w_i^T y_i - 2 x_i^T R e_i + x_i^T H x_i,

so that 2N products and N x N matrices give everything. The probe part is rescaled by (d - N + 1) / ||(I - Q_i Q_i^T)
w_i||^2, which takes out the part of A that is a multiple of I; exactly unbiased for "gaussian" and "sphere" probes,
whose direction is independent of their length, and up to O(1/d) for Rademacher probes.

**Error.** Given the sketches, t_i has the variance that the law of w_i leaves in a quadratic form of R_i = (I - Q_i
Q_i^T) A (I - Q_i Q_i^T), known from the products R_i w_i far better than from the spread of the t_i (``law``). As the
rescaling takes out multiples of I, this is the variance for R_i - c I, with c the mean of w_i^T R_i w_i / ||(I - Q_i
Q_i^T) w_i||^2; on the sphere and for Gaussian probes c is that of each i.

The t_i share the sketch. Were they independent, B = var(t_i) / N would be the variance of the mean. It is too small: of
interactions between two probes, which are seen in t_i *and* t_j, it counts half (on flat and on decaying spectra the
true standard error is up to 1.5 times sqrt(B)). The jackknife J over whole probes (the estimate made anew without probe
j) counts them twice. With L the linear and P the pair part of the variance, B = L + P/2 and J = L + 2P where both
probes of a pair weigh alike, and B = L + P = V where their weights are unrelated; V = L + P thus lies between B and B +
(J - B)/3. The law's variance over N is multiplied by 1 + (J/B - 1)/4, at most 2; where N is more than 0.15 d three and
more probes interact, and at most 2 up to 4 at N = d/2. With N - 1 degrees of freedom this is an estimate, not a bound:
nominal 95 % intervals covered 95 to 100 % with 8 and 16 probes over 300 seeds and 23 spectra of d = 100, localised
eigenvectors among them, and 92 to 100 % with 24 to 48, at 0.9 to 2 times the width of a known variance; with B in
place of the law's variance they covered 84 to 98 % and 78 to 99 %.

References:
    Epperly, Tropp, Webber (2024), "XTrace: Making the most of every sample in stochastic trace estimation".

Deflation: known directions are treated exactly, probes see only their complement.

For orthonormal rows V (k, d), P = I - V^T V and T = V A V^T,

    A = P A P + V^T (V A) + (V A)^T V - V^T T V,

so that trace, diagonal and Frobenius norm split into a part known from the k products A v_i and the same functional of
P A P. The split is exact for *any* orthonormal V; how good the vectors are decides the variance that is left, never
the bias. V must be independent of the probes that are used on the complement.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import ndtr
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import NonFiniteError
from hessprobe.estimators.law import contrasts, with_prior
from hessprobe.operators import LinearOperator
from hessprobe.vectors import (
    ProbeStream,
    combine,
    entries_within,
    gram,
    orthonormal_rows,
    room_for_vectors,
    row_dots,
)

# Elements of one block of probes, and of a table of sampled coordinates.
_BLOCK = 1 << 23
_TABLE = 1 << 24
_COORDINATES = 65536
# Numbers that the position of a coordinate takes as much room as, with what is at hand while one is taken.
_WITH_INDEX = 5
# Single-precision rows alive for each probe of a block.
_ALIVE = 16


@dataclass(frozen=True)
class Deflation:
    """The products of an operator with k orthonormal directions, and what follows from them.

    Attributes:
        basis: V (k, d), orthonormal rows.
        image: rows A v_i (k, d).
        weights: (B,) weights of the operator's terms.
        term_traces: (B,) tr(V A_b V^T).
        term_overlaps: (B,) <A, A_b> - <P A P, P A_b P>, the deflated part of the inner product.
        matvecs: products it took: k.
        term_compressed: (B, k, k) matrices V A_b V^T, or None where they would fill more than 128 MB.
    """

    basis: Tensor
    image: Tensor
    weights: Tensor
    term_traces: Tensor
    term_overlaps: Tensor
    matvecs: float
    term_compressed: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of directions k."""
        return self.basis.shape[0]

    @property
    def compressed(self) -> Tensor:
        """T = V A V^T, fp64 (k, k)."""
        return gram(self.basis, self.image)

    @property
    def trace(self) -> float:
        """Return tr A - tr(P A P) = tr T."""
        return float(row_dots(self.basis, self.image).sum())

    @property
    def squared_norm(self) -> float:
        """Return ||A||_F^2 - ||P A P||_F^2 = 2 ||A V^T||_F^2 - ||T||_F^2."""
        images = float(row_dots(self.image, self.image).sum())
        return 2 * images - float(self.compressed.square().sum())

    def project(self, V: Tensor) -> Tensor:
        """Return P v for every row v of ``V`` (m, d)."""
        return project(self.basis, V)

    def diagonal(self) -> Tensor:
        """Return the diagonal of A - P A P, fp64 (d,)."""
        inner = combine(self.compressed, self.basis)
        total = torch.zeros(self.basis.shape[1], dtype=torch.float64, device=self.basis.device)
        for direction, image, mixed in zip(self.basis, self.image, inner, strict=True):
            total += direction.double() * (2 * image.double() - mixed.double())
        return total


def project(basis: Tensor | None, V: Tensor) -> Tensor:
    """Return the rows of ``V`` (m, d) without their components along ``basis`` (k, d); ``V`` itself for None."""
    return V if basis is None else V - combine(gram(V, basis), basis)


def block_rows(dim: int) -> int:
    """Return how many probes of ``dim`` entries are multiplied at once: at most 64, and 8 M entries.

    Fewer where memory is limited: each has its product, their fp64 entries and what these are summed from beside it.
    """
    rows, room = min(64, _BLOCK // dim), room_for_vectors()
    return max(1, rows if room is None else min(rows, room // (_ALIVE * 4 * dim)))


def sketch_fits(A: LinearOperator, count: int) -> bool:
    """Return whether the memory that vectors may take holds a sketch of ``count`` directions while it is made.

    Probes, products, the basis and its images, with fp64 copies of one of them, which are factored.
    """
    room = room_for_vectors()
    return room is None or count * A.dim * (4 * A.dtype.itemsize + 3 * 8) <= room


def basis_of(deflate: Any, A: LinearOperator) -> Tensor | None:
    """Return orthonormal rows spanning what the caller gave, in the operator's dtype; None for None or no vectors.

    Args:
        deflate: None, vectors (k, d) one a row, a pair ``(vectors, values)`` (values are not needed and not used), a
            ``Deflation``, or anything with ``.vectors`` (k, d).
        A: the operator they will deflate.

    Raises:
        TypeError: none of these.
        ValueError: wrong shape, more rows than columns, or entries that are not finite.
    """
    if isinstance(deflate, Deflation):
        return deflate.basis
    rows = deflate[0] if isinstance(deflate, tuple) and deflate else getattr(deflate, "vectors", deflate)
    if rows is None:
        return None
    if not isinstance(rows, Tensor):
        raise TypeError(
            f"deflate must be None, vectors (k, d), or have .vectors; got {type(deflate).__name__}. "
            "Pass eigenvectors as rows."
        )
    if rows.ndim != 2 or rows.shape[1] != A.dim or rows.shape[0] > A.dim:
        raise ValueError(
            f"deflate must have shape (k, {A.dim}) with k <= {A.dim}; got {tuple(rows.shape)}. One vector a row."
        )
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("deflate must be finite; got nan or inf. Check how the vectors were made.")
    return orthonormal_rows(rows.to(device=A.device, dtype=A.dtype)) if rows.shape[0] else None


def deflation(A: LinearOperator, vectors: Any, *, seed: int = 0, parts: LinearOperator | None = None) -> Deflation:
    """Multiply ``A`` by given directions once, so that several estimators can deflate them without repeating it.

    Args:
        A: symmetric operator.
        vectors: as ``basis_of`` takes them, at least one; need not be eigenvectors, must not depend on the probes.
        seed: of the coordinate sample behind ``term_overlaps`` (exact where d <= 65,536).
        parts: the same matrix as a sum over other terms, see ``LinearOperator.grouped``, for the data error; A itself
            where None.

    Raises:
        TypeError, ValueError: see ``basis_of``; also no vectors at all.
    """
    basis = basis_of(vectors, A)
    if basis is None:
        raise ValueError("vectors must be at least one; got none. Leave deflation out instead.")
    parts = A if parts is None else parts
    sample = CoordinateSample.plan(parts, basis.shape[0], checks.resolve_seed(seed))
    image = torch.zeros_like(basis)
    weights, compressed, kept = [], [], []
    for weight, term in parts.terms():
        part = multiply(term, basis)
        image.add_(part, alpha=weight)
        weights.append(weight)
        compressed.append(gram(basis, part))
        if parts.n_terms > 1:
            kept.append(sample.take(part))
        # The next one is made without it.
        del part, term
    T = gram(basis, image)
    residual = project(basis, image)
    overlaps = [float((T * T_b).sum()) for T_b in compressed]
    for index, part in enumerate(kept):
        overlaps[index] += 2 * float(sample.dots(sample.take(residual), part).sum())
    return Deflation(
        basis=basis,
        image=image,
        weights=torch.tensor(weights, dtype=torch.float64),
        term_traces=torch.tensor([float(T_b.trace()) for T_b in compressed], dtype=torch.float64),
        term_overlaps=torch.tensor(overlaps, dtype=torch.float64),
        matvecs=float(basis.shape[0]),
        term_compressed=torch.stack(compressed) if len(weights) * len(basis) ** 2 <= _TABLE else None,
    )


@dataclass(frozen=True)
class CoordinateSample:
    """An equidistant sample of coordinates with a random offset a row, for unbiased dot products in little memory.

    Row r keeps coordinates offset_r, offset_r + stride, ...; each coordinate is kept with probability 1/stride, so
    stride times the dot product over kept coordinates is unbiased. All coordinates are kept where stride is 1.

    Attributes:
        index: (rows, width) coordinates.
        mask: (rows, width) 0 where a row has run past the end.
        stride: distance between kept coordinates.
    """

    index: Tensor
    mask: Tensor
    stride: int

    @classmethod
    def plan(cls, A: LinearOperator, rows: int, seed: int, first: int = 0) -> CoordinateSample:
        """Return a sample for ``rows`` rows and all terms of ``A``: 65,536 coordinates a row, 16 M numbers in all.

        Fewer where memory is limited: an eighth of what vectors may take, with the positions.
        """
        keep = max(64, min(_COORDINATES, entries_within(_TABLE) // max(rows * (A.n_terms + _WITH_INDEX), 1)))
        stride = next_prime(-(-A.dim // keep)) if A.dim > keep else 1
        stride = min(stride, A.dim)
        uniform = [_uniform(seed, first + row) for row in range(rows)]
        offsets = torch.tensor([min(int(u * stride), stride - 1) for u in uniform], dtype=torch.long)
        index = (offsets[:, None] + stride * torch.arange(-(-A.dim // stride))).to(A.device)
        mask = index < A.dim
        return cls(index.clamp(max=A.dim - 1), mask, stride)

    def take(self, rows: Tensor) -> Tensor:
        """Return the kept coordinates of each row, (rows, width)."""
        return torch.where(self.mask, rows.gather(1, self.index), torch.zeros((), dtype=rows.dtype, device=rows.device))

    def dots(self, left: Tensor, right: Tensor) -> Tensor:
        """Return unbiased estimates of the dot products of rows from kept coordinates, fp64 (rows,)."""
        return row_dots(left, right) * self.stride


def next_prime(value: int) -> int:
    """Return the smallest prime >= ``value``; a prime stride does not beat with the row length of a weight matrix."""
    candidate = max(value, 2)
    while any(candidate % factor == 0 for factor in range(2, math.isqrt(candidate) + 1)):
        candidate += 1
    return candidate


def blocks_of(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` of consecutive blocks of at most ``size`` out of ``count``."""
    for start in range(0, count, size):
        yield start, min(start + size, count)


def _uniform(seed: int, index: int) -> float:
    normal = ProbeStream(1, seed=seed, law="gaussian", stream="subset").probe(index)
    return float(ndtr(float(normal)))


# Numbers in one batch of left-out sketches; largest variance factor of samples that share one.
_BATCH = 1 << 22
_SHARED = 2.0
# Share of all directions from which on the sketch is so large that more than two probes interact.
_LARGE = 0.15


@dataclass(frozen=True)
class Exchange:
    """The sketch of an operator from which every probe can be left out.

    Vectors are rows: ``basis`` is Q^T. All but ``probes`` are fp64 or of the operator's dtype, as noted.

    Attributes:
        probes: (N, d) rows w_i.
        basis: (r, d) orthonormal rows spanning the products, operator's dtype; r = N unless the products are
            linearly dependent.
        images: (r, d) rows A q_j.
        factor: R, fp64 (N, N) upper triangular, or None where r < N.
        leftover: Frobenius norm of the part of Y outside the basis, 0 where r = N.
        inside: (N, d) rows P w_i where the operator is P A P, None for w_i themselves.
        dim: dimension of the space that P leaves, d where there is no P.
    """

    probes: Tensor
    basis: Tensor
    images: Tensor
    factor: Tensor | None
    leftover: float
    inside: Tensor | None = None
    dim: int = 0

    @property
    def rows(self) -> Tensor:
        """(N, d) rows w_i, or P w_i."""
        return self.probes if self.inside is None else self.inside

    @property
    def compressed(self) -> Tensor:
        """H = Q^T A Q, symmetrised, fp64 (r, r)."""
        H = gram(self.basis, self.images)
        return (H + H.T) / 2

    def triangle(self, count: int) -> Tensor:
        """Return R of the first ``count`` products."""
        if self.factor is None:
            raise ValueError("factor must exist to leave a probe out; got None. Use the exact branch.")
        return self.factor[:count, :count]


def exchange(A: LinearOperator, count: int, seed: int, law: str, within: Tensor | None = None) -> Exchange:
    """Draw ``count`` shared probes, multiply, factor, multiply again: 2 ``count`` products at most.

    Args:
        A: symmetric operator.
        count: N >= 2, at most d.
        seed: of the probes.
        law: of the probes.
        within: orthonormal rows (k, d): the sketch is of P A P, P the projector off them. They must not depend on the
            probes.

    Raises:
        NonFiniteError: a product is nan or infinite.
    """
    probes = ProbeStream(A.dim, seed, law, A.dtype, A.device, "probe").block(0, count)
    inside = None if within is None else project(within, probes)
    products = project(within, multiply(A, probes if inside is None else inside))
    if not bool(torch.isfinite(products).all()):
        raise NonFiniteError(
            "products with the operator must be finite; got nan or inf. "
            "Check parameters, data and loss, or use a wider dtype."
        )
    basis, factor, leftover = _factor(products)
    images = project(within, multiply(A, basis))
    left = A.dim - (0 if within is None else len(within))
    return Exchange(probes, basis, images, factor, leftover, inside, left)


def sketch_of(probes: Tensor, products: Tensor, basis: Tensor, images: Tensor) -> Exchange:
    """Return the sketch of products that have been made, linearly independent; see ``remainder_squares``."""
    return Exchange(probes, basis, images, gram(basis, products), 0.0, dim=probes.shape[1])


def remainder_squares(probes: Tensor, products: Tensor, basis: Tensor, images: Tensor) -> Tensor:
    """Return ||P_i A P_i w_i||^2, fp64 (m,) on the CPU, P_i the projector off all products but A w_i.

    Args:
        probes: (m, d) rows w_i.
        products: (m, d) rows A w_i, linearly independent.
        basis: (m, d) orthonormal rows that span the products.
        images: (m, d) products of A with ``basis``.
    """
    sketch = sketch_of(probes, products, basis, images)
    small = Small.of(sketch, len(probes))
    total = torch.zeros(len(probes), dtype=torch.float64, device=probes.device)
    for rest, _ in _remainder_rows(sketch, small, torch.zeros_like(total)):
        total += rest.square().sum(1)
    return total.cpu()


def multiply(A: LinearOperator, rows: Tensor) -> Tensor:
    """Return the products with all rows, made in blocks of bounded size."""
    size = block_rows(A.dim)
    if len(rows) <= size:
        return A.matvecs(rows) if len(rows) else rows
    products = torch.empty_like(rows)
    for start, stop in blocks_of(len(rows), size):
        products[start:stop] = A.matvecs(rows[start:stop])
    return products


@dataclass(frozen=True)
class Small:
    """The small matrices of a sketch, or of a batch of them: F with Y = Q F, H, W and the squared norms of probes.

    Attributes:
        F: (..., N, N) invertible; column i holds the coordinates of y_i.
        H: (..., N, N) Q^T A Q.
        W: (..., N, N) column i holds those of w_i.
        squares: (..., N) squared norms of w_i.
        dim: d.
    """

    F: Tensor
    H: Tensor
    W: Tensor
    squares: Tensor
    dim: int

    @classmethod
    def of(cls, sketch: Exchange, count: int) -> Small:
        """Return those of the sketch by the first ``count`` probes; a longer sketch serves every shorter one.

        Q of the first columns of Y are the first columns of Q, so that no product is made anew.
        """
        rows = sketch.rows[:count]
        W = gram(sketch.basis[:count], rows)
        return cls(sketch.triangle(count), sketch.compressed[:count, :count], W, row_dots(rows, rows), sketch.dim)

    def left_out(self) -> tuple[Tensor, Tensor]:
        """Return S, normalised columns s_i, and X, columns x_i of coordinates of Q_i Q_i^T w_i, (..., N, N) each."""
        S = _directions(self.F)
        return S, self.W - S * (S * self.W).sum(-2, keepdim=True)

    def remainders(self) -> tuple[Tensor, Tensor]:
        """Return w_i^T R_i w_i and ||(I - Q_i Q_i^T) w_i||^2, fp64 (..., N) each."""
        _, X = self.left_out()
        forms = ((self.W - 2 * X) * self.F).sum(-2) + (X * (self.H @ X)).sum(-2)
        # The length is not below rounding: 2N < d leaves at least N of d dimensions outside the sketch.
        return forms, self.squares - X.square().sum(-2)

    def samples(self) -> Tensor:
        """Return t_1 .. t_N, fp64 (..., N)."""
        S, _ = self.left_out()
        fixed = self.H.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) - (S * (self.H @ S)).sum(-2)
        forms, lengths = self.remainders()
        return fixed + forms * (self.dim - self.F.shape[-1] + 1) / lengths

    def without(self, start: int, stop: int) -> Small:
        """Return the batch of sketches without probe j, for j in start .. stop - 1."""
        count = self.F.shape[-1]
        columns = _directions(self.F).T[start:stop, :, None]
        eye = torch.eye(count, dtype=self.F.dtype, device=self.F.device).expand(stop - start, count, count)
        U = torch.linalg.qr(torch.cat([columns, eye], dim=2)).Q[:, :, 1:]
        order = torch.arange(count - 1, device=self.F.device)
        others = torch.stack([order + (order >= j) for j in range(start, stop)])
        F, W = (U.mT @ full.T[others].mT for full in (self.F, self.W))
        return Small(F, U.mT @ self.H @ U, W, self.squares[others], self.dim)


def _directions(F: Tensor) -> Tensor:
    """Return the normalised columns s_i of F^-T, (..., N, N)."""
    inverse: Tensor = torch.linalg.inv(F).mT
    lengths: Tensor = torch.linalg.vector_norm(inverse, dim=-2, keepdim=True)
    return inverse / lengths


def exchange_error(sketch: Exchange, count: int, law: str) -> tuple[float, float]:
    """Return value and standard error of the mean of the first ``count`` samples, see the module."""
    small = Small.of(sketch, count)
    samples = small.samples()
    value, between = float(samples.mean()), float(samples.var()) / count
    variance = 2 * float(_squares(sketch, small, law).mean())
    if between == 0.0 or count < 3:
        return value, math.sqrt(variance / count)
    size = max(1, _BATCH // count**2)
    left = torch.cat([small.without(a, b).samples().mean(-1) for a, b in blocks_of(count, size)])
    jackknife = float(left.var()) * (count - 1) ** 2 / count
    most = _SHARED + 2 * max((count / small.dim - _LARGE) / (0.5 - _LARGE), 0.0)
    shared = min(1 + max(jackknife / between - 1, 0.0) / 4, most)
    return value, math.sqrt(shared * variance / count)


def remainder_std(sketch: Exchange, count: int, law: str) -> float:
    """Return the standard deviation of one remainder, without the probe of its own, by the law of the probes."""
    return math.sqrt(2 * float(_squares(sketch, Small.of(sketch, count), law).mean()))


def _squares(sketch: Exchange, small: Small, law: str) -> Tensor:
    """Return the numbers h whose mean is half the variance of a remainder by the law of the probes, see ``law``."""
    count = small.F.shape[-1]
    forms, lengths = small.remainders()
    quotients = forms / lengths
    if law == "rademacher":
        quotients = quotients.mean().expand(count)
    total = torch.zeros(count - 1 if law == "rademacher" else count, dtype=torch.float64, device=forms.device)
    for rest, w in _remainder_rows(sketch, small, quotients):
        rows = contrasts(w * rest) if law == "rademacher" else rest
        total += rows.square().sum(1)
    return total


def _remainder_rows(sketch: Exchange, small: Small, multiples: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (R_i - c_i P_i) w_i and w_i, fp64 (N, columns) each, block of columns by block; c_i in ``multiples``."""
    count = small.F.shape[-1]
    S, X = small.left_out()
    # R_i w_i has the coordinates F - Q_i^T (A P_i w_i) in the basis, less X of the images; P_i = I - Q_i Q_i^T.
    inner = small.F - small.H @ X
    inner = small.F - inner + S * (S * inner).sum(0)
    parts = (sketch.basis, sketch.images, sketch.rows, sketch.probes)
    for start, stop in blocks_of(sketch.probes.shape[1], max(1, _BATCH // count)):
        Q, Z, inside, w = (rows[:count, start:stop].double() for rows in parts)
        yield inner.T @ Q - X.T @ Z - multiples[:, None] * (inside - X.T @ Q), w


def exchange_trace(sketch: Exchange, law: str) -> tuple[float, float, float]:
    """Return value, standard error and solver error of the trace.

    Where the N products are linearly dependent they span the range of A (with probability one), and tr H is the trace
    up to the part of Y that was cut as rounding: by Cauchy-Schwarz at most sqrt(d / N) times its Frobenius norm.
    """
    count, dim = sketch.probes.shape
    if sketch.factor is None:
        return float(sketch.compressed.trace()), 0.0, math.sqrt(dim / count) * sketch.leftover
    return (*exchange_error(sketch, count, law), 0.0)


def exchange_diagonal(sketch: Exchange) -> tuple[Tensor, Tensor]:
    """Return the diagonal and its standard errors, fp64 (d,) each (XDiag).

    diag A = diag(Q_i Q_i^T A) + E w_i * (I - Q_i Q_i^T) A w_i for w_i independent of Q_i, and because y_i = Q R e_i
    the last vector is Q s_i (s_i^T R e_i). Averaged over i; unbiased. The samples share the sketch: their variance over
    N is too small by a factor between 1 and 2 (see the module), for which 2 is taken, so that intervals are up to 1.4
    times as wide as they need be. To the N - 1 degrees of freedom of an entry comes one from the average of all.
    """
    basis, images = sketch.basis, sketch.images
    dim = basis.shape[1]
    values = torch.empty(dim, dtype=torch.float64, device=basis.device)
    errors = torch.zeros_like(values)
    count = sketch.probes.shape[0]
    S = None if sketch.factor is None else _directions(sketch.factor)
    width = max(1, (1 << 22) // max(count, 1))
    for start, stop in blocks_of(dim, width):
        Q, Z = basis[:, start:stop].double(), images[:, start:stop].double()
        fixed = (Q * Z).sum(0)
        if S is None or sketch.factor is None:
            values[start:stop] = fixed
            continue
        rest = (S * sketch.factor).sum(0)[:, None] * sketch.probes[:, start:stop].double()
        taken = S.T @ Q
        samples = fixed + taken * (rest - S.T @ Z)
        values[start:stop] = samples.mean(0)
        errors[start:stop] = samples.var(0)
    return values, (with_prior(errors, count) * (_SHARED / count)).sqrt()


def _factor(products: Tensor) -> tuple[Tensor, Tensor | None, float]:
    """Return orthonormal rows, R (None if the products are dependent) and what lies outside the rows."""
    Q, R = torch.linalg.qr(products.double().T, mode="reduced")
    left, singular, _ = torch.linalg.svd(R)
    largest = float(singular[0])
    floor = 8 * torch.finfo(products.dtype).eps * math.sqrt(products.shape[0]) * largest
    rank = int((singular > floor).sum())
    if rank == products.shape[0]:
        return Q.T.to(products.dtype).contiguous(), R, 0.0
    kept = (Q @ left[:, :rank]).T.to(products.dtype).contiguous()
    return kept, None, float(singular[rank:].norm())

"""Named parameters as one flat vector, and fp64 dot products on vectors of any dtype.

Random probes from a counter-based stream.

Probe ``i`` of term ``t`` under seed ``s`` is one fixed vector: it does not depend on how many probes are drawn at
once, on the device, or on the number of processes. All laws satisfy E[v v^T] = I.

References:
    Salmon, Moraes, Dror, Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3" (the Philox generator).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import MemoryBudgetError, about

# fp64 copies of low-precision blocks are made this many elements at a time: on a CPU so few that they stay in cache,
# and that three of them are little beside one vector of a large model.
_CHUNK, _DEVICE_CHUNK = 1 << 18, 1 << 22


# Bytes that vectors may take beside the products; None where nobody has set a limit.
_vectors: ContextVar[int | None] = ContextVar("vectors", default=None)


@contextmanager
def vectors_within(nbytes: int | None) -> Iterator[None]:
    """Let probe blocks, bases and what is made of them take at most ``nbytes`` at a time inside the block.

    None sets no limit. Whoever holds many vectors asks ``rows_within`` how many fit.
    """
    token = _vectors.set(nbytes)
    try:
        yield
    finally:
        _vectors.reset(token)


def room_for_vectors() -> int | None:
    """Return the bytes that vectors may take here, None without a limit."""
    return _vectors.get()


def entries_within(most: int) -> int:
    """Return how many fp32 entries a piece of work may hold: ``most``, or an eighth of what vectors may take."""
    limit = _vectors.get()
    return most if limit is None else max(1, min(most, limit // 32))


def rows_within(dim: int, itemsize: int, wanted: int, *, least: int = 1, copies: float = 1.0, beside: int = 0) -> int:
    """Return how many of the ``wanted`` rows of ``dim`` entries fit the memory that vectors may take.

    Args:
        dim: d.
        itemsize: bytes of an entry.
        wanted: rows that would be held without a limit.
        least: rows without which the work cannot be done.
        copies: rows alive for each of them while they are worked on.
        beside: bytes of other vectors that are alive at the same time.

    Raises:
        MemoryBudgetError: not even ``least`` fit; the message says what would.
    """
    limit = _vectors.get()
    if limit is None:
        return wanted
    fit = int((limit - beside) / (copies * dim * itemsize))
    if fit < least:
        needed = math.ceil((least * copies * dim * itemsize + beside) / 1e6)
        more = math.ceil(2.01 * needed - 2 * limit / 1e6)
        raise MemoryBudgetError(
            about(
                "memory",
                f"must leave {needed} MB to {least} vectors of {dim} entries; got {limit / 1e6:.0f} MB, half of the "
                f"limit. Give {more} MB more, or measure fewer parameters (params).",
            )
        )
    return min(wanted, fit)


class Sharing(Protocol):
    """Ranks that make products together, all of them with the same vectors in the same order.

    Attributes:
        rank: of this process, from 0.
        count: how many there are.
    """

    @property
    def rank(self) -> int: ...  # noqa: D102  # above

    @property
    def count(self) -> int: ...  # noqa: D102  # above

    def summed(self, part: Tensor) -> Tensor:
        """Return the sum of every rank's ``part``, to the last bit the same on all; in place, one all-reduce."""
        ...

    def gather(self, part: Tensor, whole: Tensor) -> None:
        """Write every rank's ``part`` (n,) into ``whole`` (count * n,) on all of them, one after the other."""
        ...

    def first(self, tensor: Tensor) -> Tensor:
        """Return the first rank's ``tensor`` on all of them, in place."""
        ...


@dataclass(frozen=True)
class Slice:
    """The entries of vectors that this process holds where several hold their parts of them: all of them else.

    Rank r of N has the entries from r n on, n = ceil(d / N): the last ranks of all may have fewer, or none. What is
    made of whole vectors by every rank alone, in the same way, is the same on all of them; what is made of parts is,
    once it has been summed. A decision that all have to take alike (to stop, to restart) may rest on both.

    Attributes:
        dim: d, entries of a whole vector.
        ranks: who hold the parts; None where this process holds whole vectors.
    """

    dim: int
    ranks: Sharing | None = None

    @property
    def _longest(self) -> int:
        return self.dim if self.ranks is None else -(-self.dim // self.ranks.count)

    @property
    def entries(self) -> slice:
        """Which entries this process holds."""
        start = 0 if self.ranks is None else self.ranks.rank * self._longest
        return slice(min(start, self.dim), min(start + self._longest, self.dim))

    @property
    def width(self) -> int:
        """How many these are at most, on any rank: what all of them plan by."""
        return self._longest

    @property
    def beside(self) -> int:
        """Entries of the whole vector that is put together for a product."""
        return 0 if self.ranks is None else self.dim

    def of(self, rows: Tensor) -> Tensor:
        """Return this process's part of whole rows (k, d), as a view."""
        return rows if self.ranks is None else rows[:, self.entries]

    def whole(self, rows: Tensor) -> Tensor:
        """Return the whole rows (k, d) of which ``rows`` (k, n) are this process's parts: one call of all a row."""
        if self.ranks is None:
            return rows
        length, count = self._longest, len(rows)
        # Each row is gathered with what stands beyond its end, which the next one overwrites.
        flat = rows.new_empty(max(count - 1, 0) * self.dim + self.ranks.count * length)
        for index, row in enumerate(rows):
            part = row if len(row) == length else torch.cat([row, row.new_zeros(length - len(row))])
            start = index * self.dim
            self.ranks.gather(part.contiguous(), flat[start : start + self.ranks.count * length])
        return flat[: count * self.dim].view(count, self.dim)

    def summed(self, part: Tensor) -> Tensor:
        """Return the sum of what the parts give: of dot products."""
        return part if self.ranks is None else self.ranks.summed(part)

    def first(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Return the first rank's ``tensor``: another machine may turn an eigenvector around.

        Args:
            tensor: of any device.
            device: where ranks exchange tensors, which the result is on; without ranks it stays where it is.
        """
        return tensor if self.ranks is None else self.ranks.first(tensor.to(device))


@dataclass(frozen=True)
class ParameterLayout:
    """Where each named tensor lies in the flat vector theta, in order.

    Attributes:
        names: dotted parameter names, unique.
        shapes: one shape a name.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> ParameterLayout:
        """Return the layout of named tensors in their own order."""
        return cls(tuple(tensors), tuple(tensor.shape for tensor in tensors.values()))

    def of_names(self, names: Iterable[str]) -> ParameterLayout:
        """Return the layout of some of the tensors alone, in the order of ``names``."""
        chosen, shapes = tuple(names), dict(zip(self.names, self.shapes, strict=True))
        return ParameterLayout(chosen, tuple(shapes[name] for name in chosen))

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each tensor."""
        return [shape.numel() for shape in self.shapes]

    @property
    def dim(self) -> int:
        """Total number of entries d."""
        return sum(self.sizes)

    @property
    def slices(self) -> dict[str, slice]:
        """Position of each named tensor in the flat vector."""
        slices, start = {}, 0
        for name, size in zip(self.names, self.sizes, strict=True):
            slices[name] = slice(start, start + size)
            start += size
        return slices

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """Return named views of the flat vector ``theta`` (d,), differentiable."""
        pieces = torch.split(theta, self.sizes)
        return {name: piece.view(shape) for name, piece, shape in zip(self.names, pieces, self.shapes, strict=True)}

    def join(self, tensors: Iterable[Tensor]) -> Tensor:
        """Return the flat vector (d,) of tensors given in layout order."""
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def flatten(self, vector: Tensor | Mapping[str, Tensor] | Sequence[Tensor]) -> Tensor:
        """Return a vector as one flat tensor (d,).

        Args:
            vector: flat already (d,); or tensors of the parameters' shapes, by name in any order or as a list in
                theirs.

        Raises:
            TypeError: none of these.
            ValueError: a name or a tensor too many or too few, or another shape; the message names it.

        Examples:
            >>> import torch
            >>> layout = ParameterLayout.of({"weight": torch.zeros(1, 2), "bias": torch.zeros(1)})
            >>> flat = layout.flatten({"bias": torch.tensor([3.0]), "weight": torch.tensor([[1.0, 2.0]])})
            >>> flat
            tensor([1., 2., 3.])
            >>> layout.unflatten(flat)
            {'weight': tensor([[1., 2.]]), 'bias': tensor([3.])}
        """
        if isinstance(vector, Tensor):
            if vector.shape != (self.dim,):
                raise ValueError(
                    f"vector must have shape ({self.dim},); got {tuple(vector.shape)}. One entry a parameter."
                )
            return vector
        if isinstance(vector, Mapping):
            for name in vector:
                if name not in self.names:
                    raise ValueError(f"vector must name parameters; got {name!r}. It may have {', '.join(self.names)}.")
            missing = [name for name in self.names if name not in vector]
            if missing:
                raise ValueError(f"vector must hold every parameter; got none for {missing[0]!r}. Pass zeros for it.")
            parts = [vector[name] for name in self.names]
        elif isinstance(vector, list | tuple):
            parts = list(vector)
        else:
            raise TypeError(f"vector must be a tensor, a dict or a list of tensors; got {type(vector).__name__}.")
        if len(parts) != len(self.names):
            raise ValueError(f"vector must hold {len(self.names)} tensors, one a parameter; got {len(parts)}.")
        for name, shape, part in zip(self.names, self.shapes, parts, strict=True):
            if not isinstance(part, Tensor) or part.shape != shape:
                got = f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
                raise ValueError(f"vector must have a tensor of shape {tuple(shape)} for {name!r}; got {got}.")
        return self.join(parts)

    def unflatten(self, flat: Tensor, like: object = None) -> Any:
        """Return the flat vector ``flat`` (d,) as views of the parameters' shapes.

        Args:
            flat: (d,).
            like: what ``flatten`` was given: the result is then a tensor, a dict, a list or a tuple as that is. A
                dict by name by default.
        """
        if isinstance(like, Tensor):
            return flat
        named = self.split(flat)
        if isinstance(like, list | tuple):
            return tuple(named.values()) if isinstance(like, tuple) else list(named.values())
        return named


def require_same(layouts: Sequence[ParameterLayout], names: Sequence[str]) -> None:
    """Refuse checkpoints of different architectures.

    Args:
        layouts: of the parameters, one a checkpoint.
        names: of the checkpoints, for the message.

    Raises:
        ValueError: names the first tensor that differs, and how.
    """
    first = dict(zip(layouts[0].names, layouts[0].shapes, strict=True))
    for layout, name in zip(layouts[1:], names[1:], strict=True):
        other = dict(zip(layout.names, layout.shapes, strict=True))
        for tensor in dict.fromkeys((*first, *other)):
            if first.get(tensor) != other.get(tensor):
                raise ValueError(
                    f"checkpoints must have the same architecture; got tensor {tensor!r} {_shape(first.get(tensor))} "
                    f"in {names[0]} and {_shape(other.get(tensor))} in {name}. Pass checkpoints of one model."
                )


def row_dots(left: Tensor, right: Tensor) -> Tensor:
    """Return the fp64 dot products of matching rows: (k, d), (k, d) -> (k,)."""
    total = torch.zeros(left.shape[0], dtype=torch.float64, device=left.device)
    for columns in _columns(left):
        total += (left[:, columns].double() * right[:, columns].double()).sum(1)
    return total


def distance(left: Tensor, right: Tensor) -> float:
    """Return ||left - right|| of all entries, fp64, without a copy of either: shapes alike, (k, d)."""
    total = 0.0
    for columns in _columns(left):
        total += float((left[:, columns].double() - right[:, columns].double()).square().sum())
    return math.sqrt(total)


def all_finite(rows: Tensor) -> bool:
    """Return whether no entry of (k, d) is nan or infinite, without a copy of them."""
    # A nan or an infinity leaves no sum finite, and a sum takes a twentieth of the time that a look at each entry does;
    # one of finite entries may overflow.
    for columns in _columns(rows):
        piece = rows[:, columns]
        if not math.isfinite(float(piece.sum())) and not bool(torch.isfinite(piece).all()):
            return False
    return True


def gram(left: Tensor, right: Tensor) -> Tensor:
    """Return the fp64 matrix of all dot products: (j, d), (k, d) -> (j, k)."""
    if left.dtype == torch.float64:
        return left @ right.to(torch.float64).T
    total = torch.zeros(left.shape[0], right.shape[0], dtype=torch.float64, device=left.device)
    for columns in _columns(left):
        total += left[:, columns].double() @ right[:, columns].double().T
    return total


def combine(coefficients: Tensor, rows: Tensor) -> Tensor:
    """Return linear combinations of rows, summed in fp64: (j, k), (k, d) -> (j, d) in the dtype of ``rows``."""
    if rows.dtype == torch.float64:
        return coefficients.to(torch.float64) @ rows
    mixed = torch.empty(coefficients.shape[0], rows.shape[1], dtype=rows.dtype, device=rows.device)
    for columns in _columns(rows):
        mixed[:, columns] = (coefficients.double() @ rows[:, columns].double()).to(rows.dtype)
    return mixed


def combine_(coefficients: Tensor, rows: Tensor, dtype: torch.dtype) -> None:
    """Write linear combinations of rows over the first of them, as ``combine`` makes them: (j, k), (k, d), j <= k.

    Args:
        coefficients: (j, k).
        rows: (k, d).
        dtype: that results are rounded to, where ``rows`` are wider.
    """
    for columns in _columns(rows):
        mixed = coefficients.double() @ rows[:, columns].double()
        rows[: len(coefficients), columns] = mixed.to(dtype).to(rows.dtype)


def orthonormal_rows(rows: Tensor) -> Tensor:
    """Return an orthonormal basis of the span of ``rows`` (k, d) as rows, by fp64 QR; k <= d."""
    basis: Tensor = torch.linalg.qr(rows.double().T, mode="reduced").Q
    return basis.T.to(rows.dtype).contiguous()


def _columns(rows: Tensor) -> Iterator[slice]:
    chunk = _CHUNK if rows.device.type == "cpu" else _DEVICE_CHUNK
    width = max(chunk // max(rows.shape[0], 1), 1)
    for start in range(0, rows.shape[1], width):
        yield slice(start, min(start + width, rows.shape[1]))


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else f"of shape {tuple(shape)}"


LAWS = ("rademacher", "gaussian", "sphere")

# Streams that must never share a probe: an estimator that uses vectors from one stream to deflate an operator needs
# its own probes to be independent of them.
STREAMS = {
    "probe": 0,
    "start": 1,
    "sketch": 2,
    "pilot": 3,
    "label": 4,
    "frobenius": 5,
    "density": 6,
    "subset": 7,
    "output": 8,
    "universal": 9,
    "sharpness": 10,
    "groups": 11,
}

_BITS = torch.arange(8, dtype=torch.uint8)


def random_source(seed: int, stream: str, index: int, term: int = 0) -> np.random.Generator:
    """Return the generator behind draw ``index`` of term ``term`` of a stream: always at the same state.

    Args:
        seed: integer >= 0.
        stream: a name in ``STREAMS``.
        index: >= 0.
        term: >= 0.
    """
    # Philox counts up in the lowest word while it generates, so the upper words address the draw.
    counter = [0, index, term, STREAMS[stream]]
    return np.random.Generator(np.random.Philox(key=np.array([seed, 0], dtype=np.uint64), counter=counter))


@dataclass(frozen=True)
class ProbeStream:
    """A reproducible sequence of random probes of one dimension.

    Attributes:
        dim: length d of a probe.
        seed: integer >= 0.
        law: ``"rademacher"`` (entries -1, +1), ``"gaussian"`` (standard normal) or ``"sphere"`` (uniform on the
            sphere of radius sqrt(d)).
        dtype, device: of the tensors handed out; the values agree over dtypes to rounding and over devices exactly.
        stream: a name in ``STREAMS``; two streams of one seed are independent.
    """

    dim: int
    seed: int = 0
    law: str = "rademacher"
    dtype: torch.dtype = torch.float64
    device: torch.device | str = "cpu"
    stream: str = "probe"

    def __post_init__(self) -> None:
        checks.one_of("law", self.law, LAWS)
        checks.one_of("stream", self.stream, STREAMS)
        checks.positive_int("dim", self.dim)
        checks.positive_int("seed", self.seed, minimum=0)

    def probe(self, index: int, term: int = 0) -> Tensor:
        """Return probe ``index`` (>= 0) of term ``term`` (>= 0), shape (d,)."""
        return self.block(index, index + 1, term)[0]

    def block(self, start: int, stop: int, term: int = 0) -> Tensor:
        """Return probes ``start .. stop - 1`` of one term as rows, shape (stop - start, d)."""
        sources = [random_source(self.seed, self.stream, index, term) for index in range(start, stop)]
        if self.law == "rademacher":
            return self._signs(sources)
        rows = torch.empty(len(sources), self.dim, dtype=self.dtype, device=self.device)
        for row, source in zip(rows, sources, strict=True):
            if self.law == "gaussian":
                # A piece at a time: the same numbers, without all of them in fp64.
                for piece in row.split(_CHUNK):
                    piece.copy_(torch.from_numpy(source.standard_normal(len(piece))))
                continue
            normal = torch.from_numpy(source.standard_normal(self.dim))
            normal *= math.sqrt(self.dim) / normal.norm()
            row.copy_(normal)
        return rows

    def blocks(self, count: int, size: int) -> Iterator[Tensor]:
        """Yield the first ``count`` probes of term 0 in blocks of at most ``size`` rows."""
        for start in range(0, count, size):
            yield self.block(start, min(start + size, count))

    def _signs(self, sources: list[np.random.Generator]) -> Tensor:
        # One bit a sign, from the lowest of each byte on; a device receives d/8 bytes a probe and unpacks them there.
        size = (self.dim + 7) // 8
        packed = np.frombuffer(bytearray().join(source.bytes(size) for source in sources), dtype=np.uint8)
        packed = packed.reshape(len(sources), size)
        if torch.device(self.device).type == "cpu":
            bits = torch.from_numpy(np.unpackbits(packed, axis=1, count=self.dim, bitorder="little"))
        else:
            bits = _unpacked(torch.from_numpy(packed).to(self.device))[:, : self.dim]
        return bits.to(self.dtype).mul_(2).sub_(1)


def _unpacked(packed: Tensor) -> Tensor:
    """Return the bits of uint8 (rows, n) as (rows, 8 n) of 0 and 1, the lowest of each byte first."""
    return ((packed[..., None] >> _BITS.to(packed.device)) & 1).flatten(1)


# Numbers that a row of products is folded to for differences: a prime, which does not beat with the rows of a weight.
FOLDED = 251


def fold(rows: Tensor) -> Tensor:
    """Return fp64 rows (k, d) folded to (k, m), m = min(d, 251), on the CPU: dot products are kept in the mean.

    Every coordinate is added, with a random sign, to one of m sums, the same for all rows of a length: the squared norm
    of a folded row has a relative standard deviation of about sqrt(2 / m). Rows of up to m entries stay as they are.
    """
    dim = rows.shape[1]
    folded = torch.zeros(len(rows), min(dim, FOLDED), dtype=torch.float64, device=rows.device)
    fold_into(folded, rows, slice(0, dim), dim)
    return folded.cpu()


def fold_into(folded: Tensor, rows: Tensor, where: slice, dim: int) -> None:
    """Add columns of rows to what they are folded to.

    Args:
        folded: fp64 (k, m), m = min(d, 251).
        rows: (k, w), the columns ``where`` of rows (k, d).
        where: of them, beginning at a multiple of 251.
        dim: d.
    """
    if dim <= FOLDED:
        folded[:, where] += rows
        return
    signed = rows * _signs(dim, rows.device)[where]
    whole = rows.shape[1] // FOLDED * FOLDED
    folded += signed[:, :whole].reshape(len(rows), -1, FOLDED).sum(1)
    folded[:, : rows.shape[1] - whole] += signed[:, whole:]


@lru_cache(maxsize=1)
def _signs(dim: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(dim)
    return (2 * torch.randint(2, (dim,), generator=generator, dtype=torch.int8) - 1).to(device)

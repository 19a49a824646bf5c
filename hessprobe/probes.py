"""Random probes from a counter-based stream.

Probe ``i`` of term ``t`` under seed ``s`` is one fixed vector: it does not depend on how many probes are drawn at
once, on the device, or on the number of processes. All laws satisfy E[v v^T] = I.

References:
    Salmon, Moraes, Dror, Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3" (the Philox generator).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hessprobe import checks

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
            normal = torch.from_numpy(source.standard_normal(self.dim))
            if self.law == "sphere":
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

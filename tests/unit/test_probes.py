"""Probes are fixed by (seed, stream, law, index, term) alone and have the moments of their law."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hessprobe.vectors import LAWS, STREAMS, ProbeStream, _unpacked


@given(st.sampled_from(LAWS), st.integers(1, 40), st.integers(0, 2**63 - 1), st.integers(0, 5), st.integers(1, 6))
def test_block_size_does_not_matter(law: str, dim: int, seed: int, start: int, count: int) -> None:
    stream = ProbeStream(dim, seed, law)
    block = stream.block(start, start + count, term=2)
    assert torch.equal(block, torch.stack([stream.probe(start + i, term=2) for i in range(count)]))


@pytest.mark.parametrize("law", LAWS)
def test_second_moments_are_the_identity(law: str) -> None:
    probes = ProbeStream(6, 1, law).block(0, 40_000)
    moment = probes.T @ probes / len(probes)
    torch.testing.assert_close(moment, torch.eye(6, dtype=torch.float64), atol=0.03, rtol=0)
    assert float(probes.mean(0).abs().max()) < 0.025


def test_signs_are_unpacked_on_a_device_as_they_are_here() -> None:
    packed = torch.arange(256, dtype=torch.uint8).reshape(8, 32)
    expected = np.unpackbits(packed.numpy(), axis=1, bitorder="little")
    assert torch.equal(_unpacked(packed), torch.from_numpy(expected))


def test_laws() -> None:
    signs = ProbeStream(1000, 0).probe(0)
    assert set(signs.tolist()) == {-1.0, 1.0}
    sphere = ProbeStream(1000, 0, "sphere").probe(0)
    assert float(sphere.square().sum()) == pytest.approx(1000)


def test_seeds_terms_and_streams_differ() -> None:
    made = [
        ProbeStream(64, seed, stream=name).probe(i, t)
        for seed in (0, 1)
        for name in STREAMS
        for i in (0, 1)
        for t in (0, 1)
    ]
    assert len({tuple(probe.tolist()) for probe in made}) == len(made)


def test_dtypes_agree() -> None:
    for law in LAWS:
        single = ProbeStream(33, 5, law, dtype=torch.float32).probe(3)
        torch.testing.assert_close(single.double(), ProbeStream(33, 5, law).probe(3), rtol=1e-6, atol=1e-7)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"law must be one of .*; got 'gausian'\. Did you mean 'gaussian'\?"):
        ProbeStream(3, 0, "gausian")
    with pytest.raises(ValueError, match="dim must be an integer >= 1; got 0"):
        ProbeStream(0)
    with pytest.raises(ValueError, match="seed must be an integer >= 0; got -1"):
        ProbeStream(3, -1)

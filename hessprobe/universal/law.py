"""The error of a plug-in from the law of t: what samples of this size do where the spectrum is known.

For u ~ N(0, I), or uniform on the sphere, t = c u^T H u is a sum of independent chi-square variables, or a ratio of
such sums, weighted by the eigenvalues: its law follows from a spectrum alone. Third and fourth cumulants, and means of
exp(-t), have errors that few draws carry, so that a sample does not tell its own error; samples made from the law do,
without a product. *Asymptotic* in the number of simulated draws and as good as the spectrum; holds for any number of
draws n.

References:
    Efron, Tibshirani (1993), "An Introduction to the Bootstrap", chapter 6.5 (the parametric bootstrap).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hessprobe.errors import NumericalWarning
from hessprobe.estimators.sketch import SpectralSketch
from hessprobe.estimators.sweep import spectral_sketch
from hessprobe.krylov import eigsh
from hessprobe.krylov.quadrature import gauss
from hessprobe.operators import LinearOperator
from hessprobe.universal.definition import Measure
from hessprobe.universal.plugin import support
from hessprobe.universal.spectra import Spectrum

# Laws of u whose t is given by the spectrum.
LAWS = ("gaussian", "sphere")
# Draws of t from which samples are drawn, samples, groups of the jackknife of each, and draws made at a time.
_POOL, _SAMPLES, _GROUPS, _CHUNK = 160_000, 4_000, 32, 4_000
# Share of Tr H^2 that taking two neighbours of the spectrum together may cost.
_MERGE_LOSS = 1e-5
# Entries of psi that are drawn together.
_ENTRIES = 1 << 20
# The sweep for a spectrum: leading eigenvectors and the products of their search, chains and steps.
_DEFLATED, _SEARCH, _CHAINS, _STEPS = 8, 96, 8, 16
# Fewer effective draws than this of the pool do not stand for the law.
_CARRIED = 30.0
_LEVEL, _NORMAL = 0.95, 1.959964


def law_error(
    measure: Measure, spectrum: Spectrum, draws: int, *, correct_bias: bool, mass: float = 1.0, seed: int = 0
) -> float | None:
    """Return the error of S from ``draws`` draws: 1 / 1.96 of the distance from S that 95 % of samples keep.

    Args:
        measure: phi, psi and mu.
        spectrum: of H, with weights >= 0 that need not be whole numbers.
        draws: n of the sample.
        correct_bias: as in ``evaluate``.
        mass: of mu.
        seed: of the simulation.

    Returns:
        The error, or None where the law of t is not given by the spectrum, phi is not defined on 1 % of the samples, or
        few of all simulated draws carry the mean of psi: then nobody knows.
    """
    if measure.mu.name not in LAWS or draws < 2:
        return None
    source = np.random.default_rng([seed, draws])
    psi = measure.samples(measure.c * measure.mu.scale**2 * _forms(spectrum, measure.mu.name, source))
    if support(psi) < _CARRIED:
        return None
    truth = measure.value(mass * psi.mean(0))[0]
    together, found = max(_ENTRIES // (draws * psi.shape[1]), 1), []
    for start in range(0, _SAMPLES, together):
        rows = source.integers(0, _POOL, (min(together, _SAMPLES - start), draws))
        found.append(_plug_in(measure, psi[torch.from_numpy(rows)], mass, correct_bias))
    sizes = (torch.cat(found) - truth).abs()
    sizes = sizes[torch.isfinite(sizes)]
    if len(sizes) < 0.99 * _SAMPLES:
        return None
    return float(torch.quantile(sizes, _LEVEL)) / _NORMAL


def sketched(sketch: SpectralSketch, chains: Sequence[int] | None = None) -> Spectrum:
    """Return the eigenvalues and nodes of a sketch with their multiplicities, of the chains given or of all."""
    used = [index for index in chains or range(sketch.n_probes) if int(sketch.lengths[index])]
    values, weights = [sketch.theta], [torch.ones_like(sketch.theta)]
    for index in used:
        rule = gauss(*sketch.chain(index))
        values.append(rule.nodes)
        weights.append(rule.weights * float(sketch.norms[index]) ** 2 / len(used))
    return Spectrum(torch.cat(values), torch.cat(weights))


def spectrum_of(A: LinearOperator, seed: int) -> tuple[Spectrum, float]:
    """Return a spectrum of A that tells the error of a measure, and the products it took."""
    if A.dim <= _SEARCH + _CHAINS * _STEPS:
        sketch = spectral_sketch(A, method="exact")
        return sketched(sketch), sketch.matvecs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)  # inexact vectors cost little here
        pairs = eigsh(A, _DEFLATED, "magnitude", tol=1e-2, rtol=None, seed=seed, verify=False, max_matvecs=_SEARCH)
    sketch = spectral_sketch(
        A, n_probes=_CHAINS, steps=_STEPS, deflate=pairs, seed=seed, data_error=False, method="slq"
    )
    return sketched(sketch), sketch.matvecs + pairs.matvecs


def _forms(spectrum: Spectrum, law: str, source: np.random.Generator) -> Tensor:
    """Return u^T H u of ``_POOL`` draws of u at scale 1."""
    values, weights = _merged(spectrum)
    halves, parts = weights / 2, []
    for _ in range(0, _POOL, _CHUNK):
        squares = 2 * source.standard_gamma(halves, size=(_CHUNK, len(halves)))
        sums = squares @ values
        parts.append(sums / squares.sum(1) if law == "sphere" else sums)
    return torch.from_numpy(np.concatenate(parts))


def _merged(spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray]:
    """Return values and weights with neighbours taken together where that costs next to nothing of Tr H^2."""
    used = spectrum.weights > 0
    order = spectrum.values[used].argsort()
    nodes = list(zip(spectrum.values[used][order].tolist(), spectrum.weights[used][order].tolist(), strict=True))
    most = _MERGE_LOSS * spectrum.power_sum(2)
    merged: list[tuple[float, float]] = []
    for value, weight in nodes:
        if merged:
            near, size = merged[-1]
            total = size + weight
            if size * weight / total * (value - near) ** 2 <= most:
                merged[-1] = ((near * size + value * weight) / total, total)
                continue
        merged.append((value, weight))
    values, weights = zip(*merged, strict=True)
    return np.array(values), np.array(weights)


def _plug_in(measure: Measure, psi: Tensor, mass: float, correct_bias: bool) -> Tensor:
    """Return phi(mass * mean psi) of samples (s, n, m), less the jackknife bias from few groups of nearly one size."""
    n = psi.shape[1]
    mean = psi.mean(1)
    if not correct_bias:
        return measure.values(mass * mean)
    parts = torch.tensor_split(psi - mean[:, None], min(n, _GROUPS), dim=1)
    sizes = torch.tensor([part.shape[1] for part in parts], dtype=torch.float64)
    sums = torch.stack([part.sum(1) for part in parts], dim=1)
    rest = mean[:, None] - sums / (n - sizes)[:, None]
    means = torch.cat([mean[:, None], rest], dim=1)
    values = measure.values(mass * means.flatten(0, 1)).reshape(means.shape[:2])
    bias = ((1 - sizes / n) * (values[:, 1:] - values[:, :1])).sum(1)
    return values[:, 0] - bias

"""Intervals of eigenvalues: the theorem on the complement, and what they hold over spectra drawn by seed."""

from __future__ import annotations

import importlib
import math
import warnings

import pytest
import torch
from oracles import symmetric
from scipy import optimize, stats
from torch import Tensor

from hessprobe.errors import NumericalWarning
from hessprobe.krylov import eigsh, verification
from hessprobe.krylov.certificates import SpectrumBounds, bounds_of, intervals
from hessprobe.krylov.restart import ThickRestart
from hessprobe.operators import DenseOperator
from hessprobe.vectors import ProbeStream

F64 = torch.float64
# The function of the same name hides the module.
eigensolver = importlib.import_module("hessprobe.krylov.eigsh")


@pytest.mark.parametrize("seed", range(40))
def test_the_complement_and_the_coupling_bound_every_eigenvalue(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    d, k = 12, 4
    matrix = torch.diag(torch.randn(d, generator=generator, dtype=F64))
    tilt = torch.randn(d, d, generator=generator, dtype=F64) * 10 ** (-3 * float(torch.rand(1, generator=generator)))
    matrix = matrix + (tilt + tilt.T) * 0.1
    order = torch.linalg.eigh(matrix).eigenvectors.flip(1)
    loose = order[:, :k] + 0.1 * torch.randn(d, k, generator=generator, dtype=F64)
    basis = torch.linalg.qr(loose, mode="complete").Q
    values, mixing = torch.linalg.eigh(basis[:, :k].T @ matrix @ basis[:, :k])
    vectors = (basis[:, :k] @ mixing).flip(1)
    values = values.flip(0)
    coupling = float((matrix @ vectors - vectors * values).norm())
    rest = torch.linalg.eigvalsh(basis[:, k:].T @ matrix @ basis[:, k:])
    truth = torch.linalg.eigvalsh(matrix).flip(0)
    none = SpectrumBounds(None, None)
    bounds = SpectrumBounds(float(rest[0]), float(rest[-1]))
    found = intervals(values, torch.ones(k, dtype=torch.bool), none, bounds, coupling, 0.0)
    assert torch.all((found.low <= truth[:k] + 1e-12) & (truth[:k] <= found.high + 1e-12))
    # Where the coupling and the gap are those of a 2 x 2 matrix nothing is given away.
    pair = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=F64)
    tight = intervals(pair[:1, 0], torch.ones(1, dtype=torch.bool), none, SpectrumBounds(1.0, 1.0), 0.3, 0.0)
    assert float(tight.high[0]) == pytest.approx(float(torch.linalg.eigvalsh(pair)[-1]), rel=1e-12)
    mirrored = intervals(-values.flip(0), torch.zeros(k, dtype=torch.bool), none, _mirror(bounds), coupling, 0.0)
    torch.testing.assert_close(mirrored.low, -found.high.flip(0))


def _mirror(bounds: SpectrumBounds) -> SpectrumBounds:
    return SpectrumBounds(-bounds.upper, -bounds.lower)


def spectrum(seed: int) -> tuple[Tensor, float]:
    """A bulk and a top, whose second eigenvalue is a gap of 10 % to 1e-6 below the first; either sign, any scale."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=generator))

    d = int(uniform(50, 400))
    gap, shift, scale = 10 ** uniform(-6, -1), uniform(-1, 1), 10 ** uniform(-3, 3)
    kind = int(uniform(0, 4))
    i = torch.arange(1, d - 1, dtype=F64)
    bulk = (
        torch.linspace(-0.5, 0.9, d - 2, dtype=F64),
        0.9 * i ** -uniform(0.3, 3),
        0.8 * torch.rand(d - 2, generator=generator, dtype=F64),
        0.95 * torch.exp(-i / uniform(2, 40)),
    )[kind]
    return scale * (torch.cat([torch.tensor([1.0, 1.0 - gap], dtype=F64), bulk]) + shift), scale


def holds(seed: int) -> tuple[bool, bool]:
    """Whether every interval of one drawn run holds its eigenvalue, and whether the headline one is narrow."""
    values, scale = spectrum(seed)
    truth = values.sort(descending=True).values
    which = ("largest", "smallest", "both")[seed % 3]
    matrix = symmetric(values, seed) if seed % 2 else torch.diag(values)
    k = 1 + seed // 3 % 3
    start = None
    if seed % 5 == 0:  # the second eigenvector: the random part alone can find the first
        start = torch.linalg.eigh(matrix).eigenvectors[:, -2:-1].T.contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)  # inner eigenvalues without gaps are known less well
        pairs = eigsh(matrix, k, which, seed=seed, start=start)
    wanted = {"largest": truth[:k], "smallest": truth[-k:], "both": torch.cat([truth[:k], truth[-k:]])}[which]
    slack = 1e-12 * scale
    inside = (pairs.intervals.low <= wanted + slack) & (wanted <= pairs.intervals.high + slack)
    size = float(truth.abs().max())
    ends = [0] if which == "largest" else [-1] if which == "smallest" else [0, -1]
    narrow = all(float(pairs.errors[i]) <= 0.0102 * max(abs(float(pairs.values[i])), 0.01 * size) for i in ends)
    return bool(inside.all()), narrow


def test_intervals_hold_over_spectra_drawn_by_seed() -> None:
    runs = [holds(seed) for seed in range(150)]
    # At most 0.75 misses are expected; five or more have probability 1e-3.
    assert sum(not inside for inside, _ in runs) <= 4
    assert all(narrow for _, narrow in runs)


def test_an_interval_holds_the_eigenvalue_that_the_start_hardly_sees() -> None:
    head = torch.tensor([1.0, 0.99], dtype=F64)
    matrix = torch.diag(torch.cat([head, torch.linspace(0, 0.5, 198, dtype=F64)]))
    for seed in (23, *range(20)):
        low, high = eigsh(matrix, 1, "largest", seed=seed).estimate(0).interval()
        assert low <= 1.0 <= high <= 1.011


def test_the_whole_matrix_is_taken_where_a_search_would_take_longer() -> None:
    values = torch.exp(-torch.arange(400, dtype=F64) / 8)
    pairs = eigsh(torch.diag(values), 3, "both", tol=1e-8)
    truth = torch.cat([values[:3], values[-3:]])
    assert pairs.matvecs <= 406
    assert torch.all((pairs.intervals.low <= truth) & (truth <= pairs.intervals.high))
    assert bool(pairs.converged.all())


def test_a_narrower_bracket_costs_more_products_and_none_may_be_asked_for() -> None:
    matrix = torch.diag(torch.linspace(-1, 1, 2000, dtype=F64))
    loose, usual, tight = (eigsh(matrix, 1, "largest", tol=0.05, rtol=rtol, seed=1) for rtol in (None, 0.05, 0.005))
    assert loose.matvecs < usual.matvecs < tight.matvecs
    # Half as many for the spread of the spectrum being 2: ln(1.648 sqrt(d) / delta) / (2 sqrt(rtol / 2)).
    assert tight.matvecs < 1.2 * math.log(1.648 * math.sqrt(2000) / 0.005) / (2 * math.sqrt(0.005 / 2))
    assert float(usual.errors[0]) <= 0.0501
    assert float(tight.errors[0]) <= 0.00501
    assert loose.estimate(0).kind == "bracket"
    low, high = loose.estimate(0).interval()
    assert low <= 1.0 <= high


def test_a_bracket_misses_as_often_as_it_says() -> None:
    # At delta = 1/2 the median start is just enough.
    runs, missed = 600, 0
    for seed in range(runs):
        entries = torch.randn(60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        pairs = eigsh(torch.diag(entries), 1, "largest", seed=seed, rtol=None, confidence=0.5)
        if not pairs.exact:
            missed += float(pairs.intervals.high[0]) < float(entries.max())
    assert abs(missed - runs / 2) < 3 * (runs / 4) ** 0.5


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_solves_its_equation_in_a_run_that_has_not_converged(seed: int) -> None:
    # sum_k p_k(x)^2 = 1 / c^2, the p_k orthonormal: by the recurrence written out, c by quantiles of the Beta law.
    values, _ = spectrum(seed)
    delta = (0.005, 0.2)[seed % 2]
    A = DenseOperator(torch.diag(values))
    nothing = torch.empty(0, A.dim, dtype=F64)
    engine = ThickRestart(A, 30, ProbeStream(A.dim, seed, "gaussian", F64, A.device, "start"), 0, nothing)
    engine.begin()
    for _ in range(4 + seed % 5):
        engine.step()
    wanted = 1 / stats.beta.ppf(delta, 0.5, (A.dim - 1) / 2)

    def excess(x: float) -> float:
        before, now, total, beta = 0.0, 1.0, 1.0, 0.0
        for alpha, after in zip(engine.alphas, engine.betas, strict=True):
            before, now, beta = now, ((x - alpha) * now - beta * before) / after, after
            total += now**2
        return total - wanted

    ritz, width = engine.ritz().values, float(values.max() - values.min())
    found = bounds_of(engine, delta, 1.0, lower=True, upper=True)
    high = optimize.brentq(excess, float(ritz[0]), float(ritz[0]) + 1e3 * width, xtol=1e-14 * width)
    low = optimize.brentq(excess, float(ritz[-1]) - 1e3 * width, float(ritz[-1]), xtol=1e-14 * width)
    arms = (found.upper - float(ritz[0]), float(ritz[-1]) - found.lower)
    assert arms == pytest.approx((high - float(ritz[0]), float(ritz[-1]) - low), rel=1e-6)


@pytest.mark.parametrize(("k", "which", "ends"), [(9, "largest", 1), (9, "smallest", 1), (4, "both", 2)])
def test_what_all_rounds_may_fail_with_is_no_more_than_delta(
    k: int, which: str, ends: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[float] = []
    mains: list[float] = []
    original, first = verification._round, eigensolver.bounds_of
    monkeypatch.setattr(verification, "_round", lambda *given: (rounds.append(given[4]), original(*given))[1])
    monkeypatch.setattr(
        eigensolver, "bounds_of", lambda *given, **more: (mains.append(given[1]), first(*given, **more))[1]
    )
    values = torch.cat([torch.full((9,), 5.0), torch.full((9,), -5.0), torch.linspace(-1, 1, 182)]).double()
    eigsh(symmetric(values), k, which, confidence=0.99)
    assert len(rounds) >= 2 * (which != "both") + 1
    assert len(set(rounds)) == len(rounds)
    assert ends * (sum(mains) + sum(rounds)) <= 0.01 * (1 + 1e-12)

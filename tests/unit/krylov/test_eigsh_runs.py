"""How a run of eigsh goes: warm starts, seeds, progress, interrupts, arguments, what it prints."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from oracles import eigenvalues, symmetric
from torch import Tensor

from hessprobe.errors import NumericalWarning
from hessprobe.krylov import Progress, eigsh
from hessprobe.operators import DenseOperator

F64 = torch.float64


def test_a_warm_start_saves_products_and_changes_no_answer() -> None:
    for kind, saved in (("flat", 10), ("indefinite", 4)):
        matrix = symmetric(eigenvalues(kind))
        change = symmetric(torch.randn(200, generator=torch.Generator().manual_seed(2), dtype=F64), 9)
        near = matrix + 1e-4 * change
        start = eigsh(matrix, which="largest", tol=1e-6).vectors
        cold = eigsh(near, which="largest", tol=1e-6)
        warm = eigsh(near, which="largest", tol=1e-6, start=start)
        assert warm.matvecs <= cold.matvecs - saved
        assert warm.flags == ("warm-start",)
        np.testing.assert_allclose(warm.values, cold.values, rtol=1e-8)
        assert float(torch.linalg.eigvalsh(near)[-1]) <= warm.bounds.upper


def test_a_warm_start_on_another_eigenvector_still_finds_the_largest() -> None:
    spectrum = eigenvalues("outliers")
    matrix = symmetric(spectrum)
    second = torch.linalg.eigh(matrix).eigenvectors[:, [-2]].T
    for seed in range(10):
        pairs = eigsh(matrix, which="largest", start=second, seed=seed)
        assert float(pairs.values[0]) == pytest.approx(50.0, rel=1e-3)


def test_a_warm_start_takes_noise_that_no_earlier_run_of_the_seed_has_used() -> None:
    matrix = symmetric(eigenvalues("flat"))
    firsts: list[Tensor] = []

    class Recorded(DenseOperator):
        def _matvecs(self, V: Tensor) -> Tensor:
            firsts.append(V[0].clone())
            return super()._matvecs(V)

    guesses = torch.eye(200, dtype=F64)[:2]
    noise = []
    for start in (None, guesses[:1], guesses[1:]):
        firsts.clear()
        eigsh(Recorded(matrix), which="largest", start=start)
        row = firsts[0]
        row[:2] = 0.0
        noise.append(row / row.norm())
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(float(noise[i] @ noise[j])) < 4 / math.sqrt(200)


def test_same_seed_same_bits_and_other_seed_same_values() -> None:
    matrix = symmetric(eigenvalues("outliers"))
    first, again, other = (eigsh(matrix, 2, seed=seed, tol=1e-8) for seed in (4, 4, 5))
    assert torch.equal(first.vectors, again.vectors)
    assert not torch.equal(first.vectors, other.vectors)
    np.testing.assert_allclose(first.values, other.values, rtol=1e-12)
    drawn = eigsh(matrix, 2, seed=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(drawn.values, first.values, rtol=1e-3)


def test_progress_reports_every_product_and_an_interrupt_passes_through() -> None:
    matrix, seen = symmetric(eigenvalues("indefinite")), []
    pairs = eigsh(matrix, 2, callback=seen.append)
    assert [p.matvecs for p in seen] == list(range(1, len(seen) + 1))
    assert len(seen) == pairs.matvecs - 4
    assert {p.phase for p in seen} == {"search", "verify"}
    last = [p for p in seen if p.phase == "search"][-1]
    assert last.converged == last.wanted == 4
    assert last.largest == pytest.approx(float(pairs.values[0]), rel=1e-4)
    assert last.smallest == pytest.approx(float(pairs.values[-1]), rel=1e-4)

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if progress.matvecs == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        eigsh(matrix, 2, callback=stop)
    assert seen[-1].matvecs == 7
    assert seen[-1].largest <= float(pairs.values[0])


def test_an_operator_that_is_not_symmetric_does_not_pass_for_converged() -> None:
    class Skewed(DenseOperator):
        def _matvecs(self, V: Tensor) -> Tensor:
            return super()._matvecs(V) + 0.5 * V.roll(1, dims=1)

    with pytest.warns(NumericalWarning, match="did not converge"):
        pairs = eigsh(Skewed(symmetric(eigenvalues("flat", 50))), max_matvecs=80)
    assert not bool(pairs.converged.all())


def test_arguments_are_refused_with_their_names() -> None:
    matrix = torch.eye(4, dtype=F64)
    cases = [
        ({"k": 5}, "k must be an integer <= 4; got 5"),
        ({"k": 0}, "k must be an integer >= 1; got 0"),
        ({"which": "lowest"}, "which must be one of both, largest, smallest, magnitude; got 'lowest'"),
        ({"tol": 0.0}, r"tol must be a number in \(0, 1\); got 0.0"),
        ({"tol": math.nan}, r"tol must be a number in \(0, 1\); got nan"),
        ({"confidence": 1.0}, r"confidence must be a number in \(0, 1\); got 1.0"),
        ({"max_matvecs": 3}, "max_matvecs must be an integer >= 4; got 3. 2 pairs need a product each"),
        ({"basis_size": 2}, "basis_size must be an integer >= 4; got 2"),
        ({"seed": -1}, "seed must be an integer >= 0; got -1"),
        ({"start": torch.ones(4)}, r"start must be a tensor of shape \(j, 4\) with 1 <= j <= 4; got \(4,\)"),
        ({"start": torch.zeros(1, 4)}, "start must be finite with no zero row"),
        ({"start": [[1, 0, 0, 0]]}, "start must be a tensor of shape .*; got list"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            eigsh(matrix, **arguments)
    assert dataclasses.is_dataclass(eigsh(matrix))


def test_eigenpairs_print_one_line() -> None:
    shown = repr(eigsh(torch.diag(torch.arange(1.0, 31.0, dtype=F64)), 3))
    assert shown.startswith("Eigenpairs(6 of 30: 30, 29, 28, ..., 1; largest residual")
    assert "\n" not in shown
    assert "tensor" not in shown

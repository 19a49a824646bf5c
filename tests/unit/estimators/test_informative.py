"""The flag of an interval that says nothing: when it comes, when it goes, and what it advises."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from oracles import symmetric

from hessprobe.errors import NumericalWarning
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators.diagonal import is_uninformative
from hessprobe.estimators.spectral import SpectralFunction
from hessprobe.estimators.sweep import spectral_sketch
from hessprobe.operators import DenseOperator


def _estimate(value: float, half: float, low: float, high: float) -> Estimate:
    return Estimate(value, ErrorParts(solver=half), support=(low, high))


@pytest.mark.parametrize(
    ("value", "half", "support", "says_nothing"),
    [
        (300.0, 300.0, (0.0, 532.0), True),
        (300.0, 299.0, (0.0, 532.0), False),
        (1.0, 1.5, (0.0, 532.0), True),
        (531.0, 5.0, (0.0, 532.0), False),
        (2.0, 2.5, (0.0, math.inf), True),
        (-20.0, 15.0, (-30.0, math.inf), True),
        (-20.0, 5.0, (-30.0, math.inf), False),
        (0.1, 5.0, (-math.inf, math.inf), False),
        (0.0, 0.0, (0.0, 9.0), False),
        (-6.0, 1e-7, (-6.0, math.inf), False),
    ],
)
def test_what_says_nothing(value: float, half: float, support: tuple[float, float], says_nothing: bool) -> None:
    assert is_uninformative(_estimate(value, half, *support)) is says_nothing


def test_a_share_is_judged_by_the_whole() -> None:
    assert not is_uninformative(_estimate(0.01, 0.02, 0.0, 1.0), share=True)
    assert is_uninformative(_estimate(0.5, 0.6, 0.0, 1.0), share=True)


def test_too_few_steps_are_flagged_and_warned_of() -> None:
    bulk = 1e-3 * torch.randn(570, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.cat([torch.logspace(-1, 1.7, 30, dtype=torch.float64), bulk])
    A = DenseOperator(symmetric(values))
    short = spectral_sketch(A, n_probes=8, steps=12)
    with pytest.warns(NumericalWarning, match=r"moment-of-bulk is not known .* Raise steps= or"):
        estimate = short.evaluate(SpectralFunction(lambda x: 1 / (1 + 1e6 * x**2), "moment-of-bulk"), support=(0, 600))
    assert estimate.interval() == (0.0, 600.0)
    assert {"uninformative", "solver-limited"} <= set(estimate.flags)
    # Where there is a bracket it says that little is known, and how much.
    assert "solver-limited" in short.effective_dimension(shift=1e-3).flags
    assert not {"uninformative", "solver-limited"} & set(short.effective_dimension(shift=20.0).flags)
    exact = spectral_sketch(A, method="exact").effective_dimension(shift=1e-3)
    assert (exact.flags, exact.half_width()) == ((), 0.0)


def test_too_few_probes_are_flagged_and_warned_of() -> None:
    values = torch.zeros(200, dtype=torch.float64)
    values[0] = 50.0
    sketch = spectral_sketch(DenseOperator(symmetric(values), psd=True), n_probes=2, steps=4, method="slq")
    with pytest.warns(NumericalWarning, match=r"not known from 2 chains: .* Raise n_probes=, or give a tolerance"):
        assert "uninformative" in sketch.schatten_norm(2).flags


def test_a_sweep_does_not_warn_of_what_it_has_not_finished() -> None:
    # After the 8 and 12 steps of the first looks the answer says nothing.
    bulk = 1e-3 * torch.randn(570, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A = DenseOperator(symmetric(torch.cat([torch.logspace(-1, 1.7, 30, dtype=torch.float64), bulk])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sketch = spectral_sketch(A, method="slq", rtol=0.1, target=lambda s: s.effective_dimension(shift=1e-3))
        assert sketch.effective_dimension(shift=1e-3).flags == ()

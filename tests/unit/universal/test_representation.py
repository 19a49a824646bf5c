"""Functions of the eigenvalues represented by Gaussian integrals: exact, by Monte Carlo, and with few nodes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from oracles import symmetric
from torch import Tensor

from hessprobe.errors import NumericalWarning
from hessprobe.universal import represent, represent_sum
from hessprobe.universal.representation import chebyshev_nodes


def spread(dim: int) -> Tensor:
    return torch.linspace(0.97, -0.68, dim, dtype=torch.float64)


# Errors and condition numbers expected of exact integrals, by dimension; the errors are allowed a factor of 20.
EXPECTED = {2: (2e-16, 10), 3: (2e-15, 100), 5: (6e-13, 1e3), 8: (3e-11, 1e4), 12: (2e-7, 1e6)}


@pytest.mark.parametrize("dim", list(EXPECTED))
def test_every_eigenvalue_from_exact_integrals(dim: int) -> None:
    values = spread(dim)
    matrix = symmetric(values)
    error, condition = EXPECTED[dim]
    for i in range(dim):
        representation = represent(lambda e, i=i: e[i], dim)
        found = representation.evaluate(matrix)
        assert abs(found.value - float(values[i])) < 20 * error
        assert abs(found.value - float(values[i])) <= found.errors.solver
        assert representation.condition < condition
        assert found.kind == "exact"


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda e: e[0],
    "min": lambda e: e[-1],
    "condition": lambda e: e.abs().max() / e.abs().min(),
    "entropy": lambda e: -(torch.softmax(e, 0) * torch.log_softmax(e, 0)).sum(),
    "non-smooth": lambda e: (e - 0.1).abs().sum() + e.clamp_min(0).max(),
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_functions_at_any_scale(name: str, scale: float) -> None:
    values = torch.tensor([0.9, 0.5, 0.2, -0.4], dtype=torch.float64) * scale
    f = FUNCTIONS[name]
    found = represent(f, 4, scale=scale).evaluate(symmetric(values))
    assert found.value == pytest.approx(float(f(values)), rel=1e-9)


@pytest.mark.parametrize(
    "values",
    [[0.9] * 6, [0.0] * 6, [-0.7] * 6, [0.9, 0.9, 0.1, 0.1, 0.1, -0.3], [0.5, 0.5, 0.5, -0.5, -0.5, -0.5],
     [0.8, 0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.2, -0.2, -1.0, -1.0]],
)  # fmt: skip
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_equal_eigenvalues_are_found_as_they_are(values: list[float], scale: float) -> None:
    """Rounding e spreads a k-fold root over e^(1/k): .907 for .9 six times over, until its center is taken."""
    truth = torch.tensor(values, dtype=torch.float64) * scale
    for name, f in {**FUNCTIONS, **{f"order {i}": lambda e, i=i: e[i] for i in range(6)}}.items():
        if name == "condition" and not bool(truth.all()):
            continue
        found = represent(f, 6, scale=scale).evaluate(symmetric(truth))
        assert found.value == pytest.approx(float(f(truth)), rel=1e-8, abs=1e-8 * scale), name
        assert abs(found.value - float(f(truth))) <= found.errors.solver <= 1e-8 * scale, name
        assert (found.kind, found.flags) == ("exact", ())


def test_intervals_hold_the_value_whatever_the_gaps() -> None:
    """Gaps from 1e-14 to 0.1 in random places: merged or not, the error stated is one."""
    generator = torch.Generator().manual_seed(0)
    wide = 0
    for case in range(120):
        dim = 2 + case % 7
        gaps = 10 ** (-14 + 13 * torch.rand(dim, generator=generator, dtype=torch.float64))
        truth = (0.9 - gaps.cumsum(0)).sort(descending=True).values
        for i in (0, dim // 2, dim - 1):
            found = represent(lambda e, i=i: e[i], dim).evaluate(symmetric(truth, seed=case))
            # The eigenvalues of the matrix in float64 are themselves off by some 1e-16.
            assert abs(found.value - float(truth[i])) <= found.errors.solver + 2e-15
            wide += "ill-conditioned" in found.flags
            assert (found.kind == "exact") == (found.flags == ())
            assert found.errors.solver < 0.2
    assert 0 < wide < 120


@pytest.mark.filterwarnings("ignore::hessprobe.errors.NumericalWarning")
@pytest.mark.parametrize("level", [0.5, 0.0])
@pytest.mark.parametrize("dim", [2, 3])
def test_sampled_directions_leave_equal_eigenvalues_indistinct_and_say_so(level: float, dim: int) -> None:
    representation = represent(lambda e: e[0], dim, "monte-carlo", scale=2.0)
    held = said = 0
    seeds = 16 if level else 1
    for seed in range(seeds):
        found = representation.evaluate(level * torch.eye(dim).double(), n_probes=600, seed=seed)
        low, high = found.interval()
        held += low <= level <= high
        said += "indistinct-eigenvalues" in found.flags
    assert held >= 0.9 * seeds
    assert said == seeds
    if dim == 2:
        apart = representation.evaluate(symmetric(torch.tensor([1.5, -1.0])), n_probes=4000, seed=1)
        assert "indistinct-eigenvalues" not in apart.flags


def test_integrals_are_those_of_the_gaussian() -> None:
    matrix = symmetric(torch.tensor([0.9, -0.6], dtype=torch.float64))
    representation = represent(lambda e: e[0], 2)
    identity = torch.eye(2, dtype=torch.float64)
    truth = torch.stack([torch.det(identity + s * matrix) ** -0.5 for s in representation.nodes])
    assert torch.allclose(representation.integrals(matrix), truth, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dim", [2, 3])
def test_monte_carlo_with_an_honest_error(dim: int) -> None:
    values = spread(dim)
    generator = torch.Generator().manual_seed(1)
    matrix = symmetric(values)
    z = torch.randn(500_000, dim, generator=generator, dtype=torch.float64)
    t = 0.5 * ((z @ matrix) * z).sum(1)
    from hessprobe.universal.plugin import plug_in

    for i in range(dim):
        measure = represent(lambda e, i=i: e[i], dim, mode="monte-carlo").measure
        found = plug_in(measure, measure.samples(t))
        assert abs(found.value - float(values[i])) < 4 * found.std_error < 0.1


def test_monte_carlo_mode_evaluates_from_directions() -> None:
    matrix = symmetric(spread(2))
    # A node at -0.8 / ||H|| makes exp(0.8 t / ||H||), whose mean exists and whose variance does not.
    with pytest.warns(NumericalWarning, match="few of the 4000 draws carry the mean of psi"):
        found = represent(lambda e: e[0], 2, "monte-carlo").evaluate(matrix, n_probes=4000, seed=1)
    assert (found.matvecs, found.kind) == (4000, "estimate")
    assert abs(found.value - 0.97) < 4 * found.std_error < 0.4
    assert found.details["condition"] == pytest.approx(1.77, abs=0.01)


def test_fewer_nodes_than_dimensions_are_exact_up_to_that_rank() -> None:
    low_rank = torch.tensor([0.9, -0.3, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    representation = represent(lambda e: e[0] - e[-1], 6, m=2)
    assert representation.error_bound is None
    assert representation.evaluate(symmetric(low_rank)).value == pytest.approx(1.2, rel=1e-12)
    assert representation.evaluate(symmetric(low_rank)).kind == "estimate"
    full = torch.tensor([0.9, 0.5, 0.4, -0.3, -0.4, -0.6], dtype=torch.float64)
    assert abs(representation.evaluate(symmetric(full)).value - 1.5) > 0.05


def test_more_nodes_than_dimensions_by_least_squares() -> None:
    values = spread(3)
    found = represent(lambda e: e[1], 3, m=8).evaluate(symmetric(values))
    assert found.value == pytest.approx(float(values[1]), abs=1e-12)


@pytest.mark.parametrize(("m", "bound"), [(4, 0.25), (8, 1e-3), (12, 1e-6)])
def test_sums_of_smooth_functions_need_few_nodes(m: int, bound: float) -> None:
    values = torch.cat([torch.linspace(-0.2, 0.2, 45), torch.tensor([1.0, 0.9, 0.5, 0.4, -0.9])]).double()
    representation = represent_sum(torch.exp, 50, m=m)
    found = representation.evaluate(symmetric(values))
    gap = abs(found.value - float(values.exp().sum()))
    assert representation.error_bound is not None
    assert gap <= representation.error_bound < bound
    assert gap <= found.errors.solver


def test_sums_of_kinked_functions_converge_slowly_and_say_so() -> None:
    bounds = [represent_sum(torch.abs, 50, m=m).error_bound for m in (4, 8, 16)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] is not None
    assert bounds[-1] > 1.0
    one_sided = represent_sum(torch.sqrt, 50, m=8, low=0.0)
    both = represent_sum(lambda x: x.clamp_min(0).sqrt(), 50, m=8)
    assert one_sided.error_bound is not None
    assert both.error_bound is not None
    assert one_sided.error_bound < both.error_bound


def test_a_fit_that_is_exact_at_zero_gives_a_spectrum_of_zeros_its_sum() -> None:
    values = torch.cat([torch.zeros(200), torch.tensor([1.0, 0.6, -0.3])]).double()
    free, fixed = (represent_sum(torch.abs, 203, m=6, exact_at_zero=flag) for flag in (False, True))
    gaps = [abs(one.evaluate(symmetric(values)).value - 1.9) for one in (free, fixed)]
    assert gaps[1] < 0.1 * gaps[0]
    assert fixed.error_bound is not None
    assert gaps[1] <= fixed.error_bound
    zero = torch.zeros(203, 203, dtype=torch.float64)
    shifted = represent_sum(lambda x: (x - 0.5).abs(), 203, m=6, exact_at_zero=True)
    assert shifted.evaluate(zero).value == pytest.approx(203 * 0.5, rel=1e-12)


def test_nodes_are_distinct_and_never_zero() -> None:
    for count in range(1, 14):
        nodes = chebyshev_nodes(count)
        assert len(nodes.unique()) == count
        assert float(nodes.abs().min()) > 0.01
        assert float(nodes.abs().max()) < 0.8


@pytest.mark.parametrize(
    ("work", "kind", "message"),
    [
        (lambda: represent(1.0, 3), TypeError, "f must be a function of the eigenvalues; got float"),
        (lambda: represent(lambda e: e, 3), TypeError, r"f must return one number, a tensor, .* got \(3,\)"),
        (lambda: represent(lambda e: e[0], 0), ValueError, "d must be an integer >= 1; got 0"),
        (lambda: represent(lambda e: e[0], 3, "mc"), ValueError, "mode must be one of exact, monte-carlo; got 'mc'"),
        (lambda: represent(lambda e: e[0], 3, scale=0), ValueError, "scale must be a finite number > 0"),
        (lambda: represent_sum(torch.log, 3), ValueError, "f must be finite on"),
        (
            lambda: represent_sum(torch.log, 3, low=0.1, exact_at_zero=True),
            ValueError,
            "low must be <= 0 where exact_at_zero; got 0.1",
        ),
        (lambda: represent_sum(lambda x: x.sum(), 3), TypeError, "f must map a tensor elementwise"),
        (
            lambda: represent(lambda e: e[0], 2).evaluate(torch.eye(3).double()),
            ValueError,
            r"H must have shape \(2, 2\); got \(3, 3\)",
        ),
        (
            lambda: represent(lambda e: e[0], 2).evaluate(2 * torch.eye(2).double()),
            ValueError,
            "H must have a norm of at most scale = 1; got 2",
        ),
    ],
)
def test_refusals(work: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        work()


@pytest.mark.parametrize("values", [[0.97, 0.1, -0.68], [0.5, 0.5, -0.2], [0.3, 0.3, 0.3]])
def test_phi_is_differentiable(values: list[float]) -> None:
    """Of equal eigenvalues only the mean moves in proportion."""
    matrix = symmetric(torch.tensor(values, dtype=torch.float64))
    equal = values.count(values[0])
    representation = represent(lambda e: e[:equal].mean(), 3)
    y = representation.integrals(matrix)
    _, slope = representation.measure.value(y)
    step = 1e-6 * y[1]
    up, down = y.clone(), y.clone()
    up[1] += step
    down[1] -= step
    secant = (representation.measure.value(up)[0] - representation.measure.value(down)[0]) / (2 * step)
    assert float(slope[1]) == pytest.approx(float(secant), rel=1e-5)
    assert math.isfinite(float(slope.norm()))

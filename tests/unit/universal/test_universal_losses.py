"""R_rho from losses alone: orders in rho, on and off the minimum, extrapolation, rounding, and what is refused."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterator

import nets
import numpy as np
import pytest
import torch
from torch import Tensor

from hessprobe.errors import NonFiniteError, NumericalWarning
from hessprobe.objective.analytic import AnalyticTerm, Quadratic
from hessprobe.objective.base import Objective
from hessprobe.universal import Measure, Point, catalogue, evaluate_from_losses, samplers
from hessprobe.universal.losses import richardson_weights
from hessprobe.vectors import ParameterLayout

GAUSS = samplers.gaussian()


def loss(theta: Tensor) -> Tensor:
    """The test function with the zero-loss manifold y = 0."""
    x, y = theta[0], theta[1]
    bend = 0.5 * torch.exp(0.3 * x) * y**2 * (1 + 0.2 * torch.sin(x + y))
    return bend + (x * y) ** 2 / 4 + 0.5 * (y + 0.2 * y**2) ** 2


class Function(Objective):
    """A function of two or more numbers as an objective."""

    def __init__(self, function: Callable[[Tensor], Tensor], theta: list[float], dtype: torch.dtype = torch.float64):
        self.function, self.theta = function, torch.tensor(theta, dtype=dtype)
        self.dim, self.dtype, self.device = len(theta), dtype, self.theta.device
        self.layout = ParameterLayout(("x",), (self.theta.shape,))

    def terms(self) -> Iterator[AnalyticTerm]:
        yield AnalyticTerm(self.function)


def gauss_hermite(order: int = 60) -> tuple[Tensor, Tensor]:
    x, w = np.polynomial.hermite_e.hermegauss(order)
    nodes = np.stack([axis.reshape(-1) for axis in np.meshgrid(x, x, indexing="ij")], 1)
    return torch.from_numpy(nodes), torch.from_numpy(np.outer(w, w).reshape(-1) / w.sum() ** 2)


NODES, WEIGHTS = gauss_hermite()


def moments_of_t(theta: list[float], rho: float, antithetic: bool) -> tuple[float, float, float]:
    """Return E t, Var t and E exp(-t) over N(0, I) by quadrature, with t as the library makes it from losses."""
    from hessprobe.universal.losses import _Lines

    lines = _Lines(Function(loss, theta), catalogue.trace().measure, Point(2), 0, antithetic, None)
    signs = (1.0, -1.0) if antithetic else (1.0,)
    t = lines._changes(NODES, rho, signs) / rho**2
    mean = float(WEIGHTS @ t)
    return mean, float(WEIGHTS @ (t - mean) ** 2), float(WEIGHTS @ torch.exp(-t))


def curvature(theta: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradient, Hessian and gradient of its trace."""
    point = torch.tensor(theta, dtype=torch.float64)
    hessian = torch.func.hessian(loss)
    return torch.func.grad(loss)(point), hessian(point), torch.func.grad(lambda p: hessian(p).trace())(point)


RADII = (0.2, 0.1, 0.05)


def test_orders_on_the_manifold() -> None:
    _, H, _ = curvature([0.4, 0.0])
    trace, frob = float(H.trace()), float((H**2).sum())
    assert (trace, frob) == (pytest.approx(2.2953, abs=6e-5), pytest.approx(5.2685, abs=6e-5))
    found = [moments_of_t([0.4, 0.0], rho, antithetic=False) for rho in RADII]
    trace_errors = [abs(mean - trace / 2) for mean, _, _ in found]
    frob_errors = [abs(variance - frob / 2) for _, variance, _ in found]
    assert trace_errors == pytest.approx([1.12e-2, 2.81e-3, 7.0e-4], rel=0.02)
    assert frob_errors == pytest.approx([0.1315, 0.0334, 0.0084], rel=0.02)
    for errors in (trace_errors, frob_errors):
        for wide, narrow in itertools.pairwise(errors):
            assert wide / narrow == pytest.approx(4.0, abs=0.2)


def test_plain_variance_off_the_manifold() -> None:
    g, H, slope = curvature([0.4, 0.3])
    F2 = float((H**2).sum())
    assert (float(g.norm()), F2) == (pytest.approx(0.7709, abs=6e-5), pytest.approx(8.1778, abs=6e-5))
    gaps = []
    for rho, measured, formula in zip(
        (0.2, 0.1, 0.05), (20.628, 65.148, 243.442), (20.551, 65.128, 243.437), strict=True
    ):
        _, variance, _ = moments_of_t([0.4, 0.3], rho, antithetic=False)
        predicted = float(g @ g) / rho**2 + F2 / 2 + float(g @ slope)
        assert (variance, predicted) == (pytest.approx(measured, abs=6e-4), pytest.approx(formula, abs=6e-4))
        gaps.append(variance - predicted)
    assert gaps[0] / gaps[1] == pytest.approx(4.0, abs=0.2)
    assert gaps[1] / gaps[2] == pytest.approx(4.0, abs=0.2)


def test_antithetic_pairs_converge_off_the_manifold() -> None:
    _, H, _ = curvature([0.4, 0.3])
    F2, det = float((H**2).sum()), float(torch.det(torch.eye(2) + H))
    found = [moments_of_t([0.4, 0.3], rho, antithetic=True) for rho in (0.1, 0.05, 0.025)]
    # The variance of a pair at radius rho holds half of the squared third-order and other even terms only.
    frob_errors = [abs(variance - F2 / 2) for _, variance, _ in found]
    det_errors = [abs(mean**-2 - det) for _, _, mean in found]
    assert frob_errors[0] / frob_errors[1] == pytest.approx(4.0, abs=0.3)
    assert frob_errors[1] / frob_errors[2] == pytest.approx(4.0, abs=0.2)
    assert det_errors[1] / det_errors[2] == pytest.approx(4.0, abs=0.2)
    assert sorted((frob_errors[0], det_errors[0])) == pytest.approx([3.6e-3, 5.0e-3], rel=0.1)


@pytest.mark.parametrize("name", ["trace", "frob", "logdet"])
def test_richardson_raises_the_order(name: str) -> None:
    """With the same directions, errors fall by 4, 16 and 64 a halving for one, two and three radii."""
    from hessprobe.universal import evaluate

    entry = {"trace": catalogue.trace, "frob": catalogue.frob, "logdet": lambda: catalogue.logdet(1.0)}[name]()
    risk = Function(loss, [0.4, 0.3])
    _, H, _ = curvature([0.4, 0.3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        truth = evaluate(entry.measure, H, n_probes=200, seed=1, correct_bias=False).value
        for levels, factor, start in ((1, 4, 0.08), (2, 16, 0.08), (3, 64, 0.16)):
            how = {"levels": levels, "n_probes": 200, "seed": 1}
            wide = evaluate_from_losses(entry.measure, risk, start, **how)
            narrow = evaluate_from_losses(entry.measure, risk, start / 2, **how)
            ratio = (wide.value - truth) / (narrow.value - truth)
            assert ratio == pytest.approx(factor, rel=0.25), levels
            if levels > 1:
                assert abs(wide.value - truth) < wide.errors.solver
    assert (wide.details["levels"], len(wide.details["by_radius"])) == (3, 3)


def test_richardson_weights() -> None:
    assert richardson_weights([0.1]) == [1.0]
    assert richardson_weights([0.1, 0.05]) == pytest.approx([-1 / 3, 4 / 3])
    three = richardson_weights([0.4, 0.2, 0.1])
    assert sum(three) == pytest.approx(1.0)
    assert sum(w * r**4 for w, r in zip(three, (0.4, 0.2, 0.1), strict=True)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.filterwarnings("ignore::hessprobe.errors.NumericalWarning")
def test_a_quadratic_is_exact_at_any_radius() -> None:
    from hessprobe.universal import evaluate

    H = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)
    risk = Quadratic(H, terms=3)
    for entry in (catalogue.trace(), catalogue.frob(), catalogue.soft_max(4)):
        exact = evaluate(entry.measure, risk, n_probes=120, seed=2, correct_bias=True)
        for rho in (0.01, 1.0, 10.0):
            found = evaluate_from_losses(entry.measure, risk, rho, n_probes=120, seed=2, correct_bias=True)
            assert found.value == pytest.approx(exact.value, rel=1e-8)
            assert found.std_error == pytest.approx(exact.std_error, rel=1e-7)
            assert found.matvecs == 0


def test_plain_form_holds_the_gradient_and_antithetic_does_not() -> None:
    H = torch.eye(2, dtype=torch.float64)
    risk = Quadratic(H, theta=torch.tensor([3.0, 4.0]).double())
    variance = Measure(lambda s: s[1] - s[0] ** 2, lambda t: torch.stack([t, t**2], -1), GAUSS)
    plain = evaluate_from_losses(variance, risk, 0.5, antithetic=False, n_probes=4000, correct_bias=True)
    truth = 25 / 0.5**2 + 1.0
    assert abs(plain.value - truth) < 4 * plain.std_error < 0.12 * truth
    pair = evaluate_from_losses(variance, risk, 0.5, n_probes=4000, correct_bias=True)
    assert abs(pair.value - 1.0) < 4 * pair.std_error < 0.25


def test_losses_and_vmap_are_counted() -> None:
    risk = nets.mlp((6, 5, 3)).risk()
    entry = catalogue.trace()
    vmapped = evaluate_from_losses(entry.measure, risk, 0.01, n_probes=10, levels=2)
    # Once here, 8 for the rounding, 16 to see that differences are resolved, 10 draws at two radii both ways.
    assert vmapped.details["losses"] == 1 + 8 + 16 + 40
    looped = evaluate_from_losses(entry.measure, risk, 0.01, n_probes=10, levels=2, vectorize=False)
    assert (vmapped.details["vectorized"], looped.details["vectorized"]) == (True, False)
    assert vmapped.value == pytest.approx(looped.value, rel=1e-6)


def test_what_vmap_cannot_do_is_evaluated_point_by_point() -> None:
    def branching(theta: Tensor) -> Tensor:
        return (theta**2).sum() if float(theta[0]) > 0 else 2 * (theta**2).sum()

    risk = Function(branching, [1.0, 1.0])
    found = evaluate_from_losses(catalogue.trace().measure, risk, 0.01, n_probes=200)
    assert not found.details["vectorized"]
    assert abs(found.value - 4.0) < 4 * found.std_error


def test_the_module_is_left_alone() -> None:
    case = nets.mlp((6, 5, 3))
    risk = case.risk()
    before = copy.deepcopy(risk.module.state_dict())
    state = torch.get_rng_state()
    evaluate_from_losses(catalogue.frob().measure, risk, 0.05, n_probes=20, correct_bias=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in risk.module.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_radius_that_drowns_names_the_smallest_that_does_not(dtype: torch.dtype) -> None:
    risk = Function(lambda theta: 1.0 + loss(theta), [0.4, 0.3], dtype)
    measure = catalogue.trace().measure
    tiny = 1e-12 if dtype == torch.float64 else 1e-6
    with pytest.raises(ValueError, match=rf"rho must be >= \S+ for {str(dtype)[6:]} .* drown in the rounding") as found:
        evaluate_from_losses(measure, risk, tiny)
    assert ("fewer levels, float64, or products" in str(found.value)) == (dtype == torch.float32)
    named = float(str(found.value).split(">= ")[1].split(" ")[0])
    estimate = evaluate_from_losses(measure, risk, 1.05 * named, n_probes=400)
    _, H, _ = curvature([0.4, 0.3])
    # At the radius that is named differences are good to a per cent or two.
    assert estimate.value == pytest.approx(float(H.trace()), abs=4 * estimate.std_error + 0.1)
    with pytest.raises(ValueError, match="drown"):
        evaluate_from_losses(measure, risk, named / 4, n_probes=10)
    with pytest.raises(ValueError, match="fewer levels"):
        evaluate_from_losses(measure, risk, 2 * named, levels=4, n_probes=10)


def test_a_linear_loss_has_no_usable_radius() -> None:
    risk = Function(lambda theta: theta.sum() * 0 + 1.0, [0.4, 0.3])
    with pytest.raises(ValueError, match=r"rho must be such that losses differ; got 0\.1, .* flat or linear"):
        evaluate_from_losses(catalogue.trace().measure, risk, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": 0.0}, "rho must be a number in .0, 1e.06.; got 0.0"),
        ({"rho": math.nan}, "rho must be a number in .0, 1e.06.; got nan"),
        ({"levels": 0}, "levels must be an integer >= 1; got 0"),
        ({"n_probes": 1}, "n_probes must be an integer >= 2; got 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], message: str) -> None:
    how = {"rho": 0.1, **arguments}
    with pytest.raises(ValueError, match=message):
        evaluate_from_losses(catalogue.frob().measure, Function(loss, [0.4, 0.3]), **how)  # type: ignore[arg-type]  # on purpose


def test_a_loss_that_overflows_is_named() -> None:
    risk = Function(lambda theta: torch.exp(torch.exp(theta.sum())), [0.0, 0.0])
    with pytest.raises(NonFiniteError, match="losses must be finite at radius rho; got inf at rho = 20"):
        evaluate_from_losses(catalogue.trace().measure, risk, 20.0, n_probes=50)


def test_losses_need_an_objective() -> None:
    with pytest.raises(TypeError, match="risk must be an objective"):
        evaluate_from_losses(catalogue.trace().measure, torch.eye(3), 0.1)  # type: ignore[arg-type]  # on purpose

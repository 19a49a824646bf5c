"""Solves against dense float64 ones: both methods, forms of b, precision, refusals, influence functions."""

from __future__ import annotations

import nets
import numpy as np
import pytest
import torch
from oracles import eigenvalues, symmetric

import hessprobe as hp
from hessprobe.errors import NonFiniteError, NumericalWarning, UnsupportedError
from hessprobe.krylov.solve import _improved
from hessprobe.operators import DenseOperator

F64 = torch.float64


def _rows(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", ["cg", "minres"])
@pytest.mark.parametrize("kind", ["flat", "decaying"])
def test_definite_systems_are_solved_to_the_residual_asked(kind: str, method: str) -> None:
    A, b = symmetric(eigenvalues(kind, 60)), _rows(3, 60)
    found = hp.solve(A, b, shift=0.01, rtol=1e-10, method=method)
    system = A + 0.01 * torch.eye(60, dtype=F64)
    assert torch.allclose(found.x, torch.linalg.solve(system, b.T).T, rtol=1e-7, atol=1e-8)
    true = (b - found.x @ system).norm(dim=1)
    assert torch.allclose(found.residuals, true, rtol=1e-2, atol=1e-13)
    assert torch.allclose(found.relative, found.residuals / b.norm(dim=1), rtol=1e-14)
    assert bool(found.converged.all())
    assert bool((true <= 1e-10 * b.norm(dim=1)).all())
    assert found.flags == ()


def test_minres_solves_where_conjugate_gradients_refuse_and_their_shift_does() -> None:
    A, b = symmetric(eigenvalues("indefinite", 60)), _rows(1, 60)[0]
    found = hp.solve(A, b, rtol=1e-9, method="minres")
    assert torch.allclose(found.x, torch.linalg.solve(A, b), rtol=1e-6, atol=1e-7)
    least = float(torch.linalg.eigvalsh(A)[0])
    for shift in (0.0, -0.9 * least):
        with pytest.raises(ValueError, match="shift must make A") as refused:
            hp.solve(A, b, shift=shift)
        named = float(str(refused.value).split("Pass shift=")[1].split()[0])
        assert -least < named < -1.3 * least
        assert bool(hp.solve(A, b, shift=named).converged.all())


def test_minres_residuals_are_the_least_over_the_krylov_space() -> None:
    A, b = symmetric(eigenvalues("indefinite", 30)), _rows(1, 30)[0]
    for steps in (1, 4, 9):
        with pytest.warns(NumericalWarning, match="did not reach"):
            found = hp.solve(A, b, rtol=1e-12, max_matvecs=steps + 1, method="minres")
        powers = [b]
        for _ in range(steps):
            powers.append(A @ powers[-1] / (A @ powers[-1]).norm())
        space = torch.linalg.qr(torch.stack(powers[:-1], 1)).Q
        least = (b - A @ space @ torch.linalg.lstsq(A @ space, b).solution).norm()
        assert float(found.residuals[0]) == pytest.approx(float(least), rel=1e-8)
        assert found.matvecs == steps + 1
        assert found.flags == ("not-converged",)


def test_conjugate_gradients_end_after_as_many_steps_as_distinct_eigenvalues() -> None:
    A = torch.diag(torch.tensor([1.0, 1.0, 2.0, 2.0, 5.0], dtype=F64))
    found = hp.solve(A, torch.ones(5, dtype=F64), rtol=1e-12)
    assert found.matvecs == 3 + 1
    assert torch.allclose(found.x, 1 / A.diagonal(), rtol=1e-12)


def test_right_hand_sides_that_are_done_cost_no_more_products() -> None:
    A = torch.diag(torch.arange(1.0, 41.0, dtype=F64))
    b = torch.stack([torch.eye(40, dtype=F64)[3], torch.zeros(40, dtype=F64), torch.ones(40, dtype=F64)])
    found = hp.solve(A, b, rtol=1e-10)
    alone = hp.solve(A, b[2], rtol=1e-10)
    assert found.matvecs == alone.matvecs + 2
    assert found.relative[1] == 0
    assert not bool(found.x[1].any())


def test_single_precision_is_refined_to_the_residual_or_said_to_miss_it() -> None:
    A = symmetric(torch.logspace(-3, 0, 80, dtype=F64)).float()
    b = _rows(2, 80).float()
    found = hp.solve(A, b, rtol=1e-4)
    true = (b.double() - found.x.double() @ A.double()).norm(dim=1) / b.double().norm(dim=1)
    assert bool((true <= 1.01e-4).all())
    assert bool(found.converged.all())
    with pytest.warns(NumericalWarning):
        missed = hp.solve(A, b, rtol=1e-9)
    true = (b.double() - missed.x.double() @ A.double()).norm(dim=1) / b.double().norm(dim=1)
    assert not bool(missed.converged.any())
    assert bool((missed.relative > 0.3 * true).all())
    assert float(true.max()) < 1e-4
    # A run that gains nothing ends, long before its products are spent.
    assert missed.matvecs < 1500


def test_a_singular_semidefinite_matrix_is_solved_in_its_range_and_said_elsewhere() -> None:
    A = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=F64))
    assert torch.allclose(hp.solve(A, torch.tensor([2.0, 1.0, 0.0], dtype=F64)).x, torch.tensor([1.0, 1, 0], dtype=F64))
    with pytest.warns(NumericalWarning):
        found = hp.solve(A, torch.ones(3, dtype=F64))
    assert not bool(found.converged[0])
    assert float(found.residuals[0]) < 3**0.5 + 1e-12


def test_a_known_semidefinite_matrix_bounds_the_error() -> None:
    risk = nets.mlp().risk()
    G, b = hp.GaussNewton(risk), _rows(2, risk.dim)
    found = hp.solve(G, b, shift=1e-3, rtol=1e-4)
    exact = torch.linalg.solve(G.to_dense() + 1e-3 * torch.eye(G.dim, dtype=F64), b.T).T
    errors = (found.x - exact).norm(dim=1)
    assert found.error_bounds is not None
    assert bool((errors <= found.error_bounds * (1 + 1e-9)).all())
    assert bool((errors >= found.error_bounds * 1e-4).all())
    assert hp.solve(G.to_dense(), b, shift=1e-3).error_bounds is None


def test_the_solution_comes_in_the_form_of_b() -> None:
    risk = nets.mlp().risk()
    G, flat = hp.GaussNewton(risk), _rows(1, risk.dim)[0]
    plain = hp.solve(G, flat, shift=0.1)
    named = hp.solve(G, risk.layout.unflatten(flat), shift=0.1)
    assert named.x.keys() == risk.layout.split(flat).keys()
    assert torch.equal(risk.layout.flatten(named.x), plain.x)
    assert plain.x.shape == flat.shape
    array = hp.solve(G.to_dense().numpy(), flat.numpy(), shift=0.1)
    assert isinstance(array.x, np.ndarray)
    assert np.allclose(array.x, plain.x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"shift": float("nan")}, ValueError, "shift must be"),
        ({"rtol": 0.0}, ValueError, "rtol must be"),
        ({"max_matvecs": 0}, ValueError, "max_matvecs must be"),
        ({"method": "gmres"}, ValueError, "method must be one of cg, minres"),
        ({"b": torch.full((3,), float("inf"), dtype=F64)}, NonFiniteError, "b must be finite"),
        ({"b": torch.ones(4, dtype=F64)}, ValueError, "x must have shape"),
        ({"b": torch.ones(0, 3, dtype=F64)}, ValueError, "b must hold"),
        ({"b": torch.ones(3, dtype=torch.long)}, ValueError, r"of torch.int64\. Pass for example"),
    ],
)
def test_arguments_out_of_range_are_refused(change: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        hp.solve(torch.eye(3, dtype=F64), **{"b": torch.ones(3, dtype=F64), **change})


def test_a_matrix_of_drawn_labels_is_refused() -> None:
    risk = nets.mlp().risk()
    with pytest.raises(UnsupportedError, match="drawn labels"):
        hp.solve(hp.Fisher(risk, kind="mc", n_draws=2), torch.ones(risk.dim, dtype=F64), shift=1.0)


def test_influence_is_the_derivative_of_the_refitted_test_loss() -> None:
    # Ridge regression, refitted in closed form with one example's weight moved: no network library in between.
    X, y = _rows(20, 4), _rows(1, 20, 1)[0]
    test_x, test_y = _rows(1, 4, 2)[0], 0.3

    def test_loss(weight_of_seventh: float) -> tuple[float, torch.Tensor]:
        w = torch.full((20,), 1 / 20, dtype=F64)
        w[7] += weight_of_seventh
        theta = torch.linalg.solve(2 * (X.T * w) @ X + 0.1 * torch.eye(4, dtype=F64), 2 * (X.T * w) @ y)
        return float((test_x @ theta - test_y) ** 2), theta

    (up, _), (down, _), (_, theta) = test_loss(1e-5), test_loss(-1e-5), test_loss(0.0)
    model = torch.nn.Linear(4, 1, bias=False).double()
    model.weight.data.copy_(theta)
    risk = hp.EmpiricalRisk(model, torch.nn.MSELoss(), [(X, y[:, None])])
    test = hp.EmpiricalRisk(model, torch.nn.MSELoss(), [(test_x[None], torch.tensor([[test_y]], dtype=F64))])
    solved = hp.solve(hp.Hessian(risk), test.gradient(), shift=0.1, rtol=1e-12)
    own = 2 * (X[7] @ theta - y[7]) * X[7]
    assert float(-own @ solved.x) == pytest.approx((up - down) / 2e-5, rel=1e-6)


def test_rounding_of_a_singular_matrix_is_not_taken_for_negative_curvature() -> None:
    values = torch.zeros(80, dtype=F64)
    values[:10] = torch.logspace(-1, 1, 10, dtype=F64)
    A = symmetric(values).float()
    assert float(torch.linalg.eigvalsh(A.double())[0]) < 0
    with pytest.warns(NumericalWarning, match="did not reach"):
        found = hp.solve(A, _rows(2, 80).float(), max_matvecs=100)
    assert bool((found.relative <= 1).all())


@pytest.mark.parametrize(("share", "most", "expected"), [(0.9, 100, 1e-4), (0.9, 6, 1e-3), (0.4, 100, 0.6)])
def test_runs_begin_again_from_the_true_residual_while_they_gain(share: float, most: int, expected: float) -> None:
    b, asked = _rows(2, 5), []

    def run(apply: object, rows: torch.Tensor, goals: torch.Tensor, left: torch.Tensor) -> tuple[torch.Tensor, ...]:
        asked.append(left.tolist())
        return share * rows / 3, torch.ones_like(left)

    x, norms = _improved(lambda V: 3 * V, b, 1e-4 * 1.001, most, run)
    assert torch.allclose(norms, expected * b.norm(dim=1), rtol=1e-9)
    assert torch.allclose(x, b * (1 - expected) / 3, rtol=1e-9)
    # One step and one residual a run; a product is kept back for the residual.
    assert asked == [[most - 1 - 2 * i] * 2 for i in range(len(asked))]


def test_a_matrix_known_to_be_semidefinite_is_never_refused() -> None:
    A = DenseOperator(torch.diag(torch.tensor([1.0, -1e-6], dtype=F64)), psd=True)
    with pytest.warns(NumericalWarning):
        assert not bool(hp.solve(A, torch.ones(2, dtype=F64), max_matvecs=9).converged[0])


@pytest.mark.parametrize("method", ["cg", "minres"])
@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1.0, 1e200])
def test_the_size_of_the_right_hand_side_changes_nothing(method: str, scale: float) -> None:
    A = torch.diag(torch.tensor([2.0, 1.0, 4.0], dtype=F64))
    b = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=F64)
    b[:2] *= scale
    found = hp.solve(hp.aslinearoperator(A, psd=True), b, shift=1.0, rtol=1e-8, method=method)
    expected = b / torch.tensor([3.0, 2.0, 5.0], dtype=F64)
    assert bool(found.converged.all())
    assert bool(((found.x - expected).abs() <= 1e-7 * expected.abs()).all())
    assert float(found.residuals[0]) <= 1e-8 * 4 * scale
    assert torch.equal(found.error_bounds, found.residuals)


def test_products_of_a_small_gradient_do_not_vanish_in_single_precision() -> None:
    A, b = 1e-15 * torch.diag(torch.tensor([1.0, 2.0])), torch.tensor([1e-32, 1e-32])
    assert torch.allclose(hp.solve(A, b, rtol=1e-4).x / 1e-17, torch.tensor([1.0, 0.5]), rtol=1e-3)

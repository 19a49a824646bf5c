"""Every engine on every network gives the Hessian; every Gauss-Newton engine the Gauss-Newton matrix."""

from __future__ import annotations

import nets
import pytest
import torch
from torch import Tensor

from hessprobe.hvp import ENGINES, GaussNewton, Hessian
from hessprobe.hvp.gauss_newton import ENGINES as GAUSS_NEWTON_ENGINES
from hessprobe.objective import EmpiricalRisk

PRECISION = {"finite_difference": 1e-7}


@pytest.fixture(scope="module", params=list(nets.CASES))
def case(request: pytest.FixtureRequest) -> tuple[EmpiricalRisk, Tensor, Tensor]:
    risk = nets.CASES[request.param]().risk()
    return risk, nets.full_hessian(risk), nets.full_gauss_newton(risk)


def _error(product: Tensor, matrix: Tensor, V: Tensor) -> float:
    expected = V @ matrix
    return float((product - expected).norm() / expected.norm())


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_hessian(case: tuple[EmpiricalRisk, Tensor, Tensor], engine: str, rows: int) -> None:
    risk, hessian, _ = case
    V = torch.randn(rows, risk.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    H = Hessian(risk, engine=engine)
    assert _error(H.matvecs(V), hessian, V) < PRECISION.get(engine, 1e-12)
    assert _error(H.matvecs(2 * V), hessian, 2 * V) < PRECISION.get(engine, 1e-12)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("engine", ["auto", *GAUSS_NEWTON_ENGINES])
def test_gauss_newton(case: tuple[EmpiricalRisk, Tensor, Tensor], engine: str, rows: int) -> None:
    risk, _, matrix = case
    V = torch.randn(rows, risk.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    G = GaussNewton(risk, engine=engine)
    assert _error(G.matvecs(V), matrix, V) < 1e-12
    torch.testing.assert_close(G.quadratic_forms(V), (V @ matrix * V).sum(1), rtol=1e-12, atol=0)


def test_terms_add_up(case: tuple[EmpiricalRisk, Tensor, Tensor]) -> None:
    risk, hessian, matrix = case
    V = torch.randn(2, risk.dim, dtype=torch.float64)
    for A, expected in ((Hessian(risk), hessian), (GaussNewton(risk), matrix)):
        total = sum(weight * term.matvecs(V) for weight, term in A.terms())
        assert _error(total, expected, V) < 1e-12
        forms = sum(weight * term.quadratic_forms(V) for weight, term in A.terms())
        torch.testing.assert_close(forms, (V @ expected * V).sum(1), rtol=1e-10, atol=1e-14)


def test_exact_diagonal(case: tuple[EmpiricalRisk, Tensor, Tensor]) -> None:
    risk, _, matrix = case
    known = GaussNewton(risk).exact_diagonal()
    assert known is not None
    torch.testing.assert_close(known[0], matrix.diagonal(), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", list(nets.CASES))
def test_float32_agrees_with_float64(name: str) -> None:
    case = nets.CASES[name]()
    hessian = nets.full_hessian(case.risk())
    case.module.float()
    data = [tuple(t.float() if t.is_floating_point() else t for t in batch) for batch in case.data]
    risk = EmpiricalRisk(case.module, case.loss, data)
    V = torch.randn(1, risk.dim, generator=torch.Generator().manual_seed(0))
    for engine in ("linearized", "double_backward"):
        assert _error(Hessian(risk, engine=engine).matvecs(V).double(), hessian, V.double()) < 1e-5

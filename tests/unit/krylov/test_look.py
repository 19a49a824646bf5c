"""A first look at lambda_max: within its residual, from fewer products than a bracket takes, begun on a part."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hessprobe as hp
from hessprobe.errors import NumericalWarning
from hessprobe.krylov.leading import leading
from hessprobe.operators import Counted, aslinearoperator

_DIM = 8 * 16 + 16 + 16 * 4 + 4


def drawn(seed: int) -> torch.Tensor:
    """Return a symmetric matrix of one of four families, its eigenvectors drawn as well."""
    generator = torch.Generator().manual_seed(seed)
    d = 120
    bulk = {
        0: torch.arange(1, d + 1).double().pow(-1.5),
        1: torch.randn(d, generator=generator).double(),
        2: torch.cat([torch.tensor([9.0, 8.9, 5.0]), torch.rand(d - 3, generator=generator)]).double(),
        3: torch.cat([torch.tensor([-20.0, 6.0]), torch.randn(d - 2, generator=generator)]).double(),
    }[seed % 4]
    Q = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    return Q * bulk @ Q.T


@pytest.mark.parametrize("seed", range(40))
def test_some_eigenvalue_lies_within_the_residual_and_none_above_is_claimed_to_be_excluded(seed):
    A = drawn(seed)
    values = torch.linalg.eigvalsh(A)
    found = hp.lambda_max(A, rtol=0.05, certified=False, seed=seed)
    residual = found.details["residual"]
    assert residual <= 0.05 * max(abs(found.value), 0.01 * float(values.abs().max()))
    assert float((values - found.value).abs().min()) <= residual * (1 + 1e-9)
    assert found.value <= float(values[-1]) * (1 + 1e-12) + 1e-12
    assert found.kind == "lower bound"
    assert found.flags == ("uncertified",)
    assert found.std_error == 0.0
    # What makes it worth asking for.
    assert found.matvecs < hp.lambda_max(A, rtol=0.05, seed=seed).matvecs


@pytest.mark.parametrize("seed", range(8))
def test_value_and_residual_are_those_of_a_true_product(seed):
    A = drawn(seed)
    found = hp.lambda_max(A, rtol=0.05, certified=False, seed=seed)
    pairs = hp.eigsh(A, 1, "largest", tol=0.05, rtol=None, seed=seed)
    (y,) = pairs.vectors
    assert found.value == pytest.approx(float(y @ A @ y), rel=1e-9)
    assert found.details["residual"] == pytest.approx(float((A @ y - found.value * y).norm()), rel=1e-6)
    assert found.matvecs == pairs.matvecs - 1  # the product that confirms it


def test_the_largest_is_found_where_it_stands_apart():
    for seed in range(2, 42, 4):
        A = drawn(seed)
        assert hp.lambda_max(A, rtol=0.01, certified=False, seed=seed).value == pytest.approx(9.0, rel=0.015)


def _risk(batches: int, kept: int | None = None) -> hp.EmpiricalRisk:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    data = [(torch.randn(12, 8).double(), torch.randint(4, (12,))) for _ in range(batches)]
    return hp.EmpiricalRisk(model, nn.functional.cross_entropy, data[:kept])


def test_the_part_is_the_mean_of_the_first_terms_and_counts_as_what_it_is():
    H = Counted(hp.Hessian(_risk(17)))
    V = torch.randn(3, H.dim, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(leading(H).matvecs(V), hp.Hessian(_risk(17, kept=2)).matvecs(V))
    assert H.matvec_count == pytest.approx(3 * 2 / 17)


def test_terms_from_eight_on_are_looked_at_in_part_first():
    few, many = (hp.lambda_max(hp.Hessian(_risk(n)), rtol=0.05, certified=False) for n in (7, 16))
    assert (few.method, many.method) == ("lanczos", "lanczos from a part")
    assert few.matvecs == int(few.matvecs)
    assert many.matvecs != int(many.matvecs)  # eighths of products
    truth = float(torch.linalg.eigvalsh(hp.Hessian(_risk(16)).matvecs(torch.eye(_DIM).double()))[-1])
    assert many.value == pytest.approx(truth, rel=0.05)
    assert leading(aslinearoperator(torch.eye(3))) is None


def test_a_search_that_finds_the_whole_space_is_exact():
    found = hp.lambda_max(torch.diag(torch.tensor([3.0, 1.0]).double()), rtol=1e-9, certified=False)
    assert (found.kind, found.flags) == ("exact", ())
    assert found.value == pytest.approx(3.0)


def test_a_look_that_runs_out_of_products_says_so():
    A = torch.diag(torch.linspace(0.99, 1.0, 400).double())
    with pytest.warns(NumericalWarning, match="did not converge"):
        found = hp.lambda_max(A, rtol=1e-6, certified=False, max_matvecs=5)
    assert found.flags == ("uncertified", "not-converged")


@pytest.mark.parametrize("rtol", [0.0, 1.0, -0.1, float("nan")])
def test_a_tolerance_outside_its_range_is_refused(rtol):
    with pytest.raises(ValueError, match="rtol"):
        hp.lambda_max(torch.eye(4), rtol=rtol, certified=False)

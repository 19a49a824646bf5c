"""What the (phi, psi, mu) family and the curvature rules reduce to, on both bases and two groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts.optim_rows.harness import BASES, flat_weights, make_module, parameter_groups, step
from contracts.optim_rows.problem import is_close
from torch import Tensor

from hessprobe.optim import SAM, XSAM, DetSAM, EigenCorrectedSAM, EigenSAM, FrobSAM, TraceSAM, UniversalSAM

both_bases = pytest.mark.parametrize("base", ["sgd", "adamw"])
STEPS = 8


def path(kind: Any, base: str, rho: float = 0.1, **arguments: Any) -> list[Tensor]:
    module = make_module()
    optimizer = kind(BASES[base](parameter_groups(module, rho, True)), **arguments)
    weights = []
    for t in range(1, STEPS + 1):
        step(optimizer, module, t)
        weights.append(flat_weights(module))
    return weights


def difference(a: list[Tensor], b: list[Tensor]) -> float:
    return max(is_close(x, y) for x, y in zip(a, b, strict=True))


@both_bases
def test_xsam_with_alpha_1_is_sam_to_the_last_bit(base: str):
    pairs = zip(path(XSAM, base, alpha=1.0), path(SAM, base), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@both_bases
def test_eigen_sam_with_alpha_0_is_sam(base: str):
    assert difference(path(EigenSAM, base, alpha=0.0), path(SAM, base)) < 1e-12
    assert difference(path(EigenSAM, base, alpha=0.2), path(SAM, base)) > 1e-5


@both_bases
def test_x_sam_with_alpha_0_is_sam(base: str):
    plain = path(EigenCorrectedSAM, base, alpha=0.0, normalize=False)
    assert all(torch.equal(a, b) for a, b in zip(plain, path(SAM, base), strict=True))


@both_bases
def test_lam_0_is_the_base_optimizer(base: str):
    expected = path(SAM, base, rho=0.0)
    for kind in (TraceSAM, FrobSAM, DetSAM, UniversalSAM):
        assert all(torch.equal(a, b) for a, b in zip(path(kind, base, lam=0.0), expected, strict=True)), kind


@both_bases
def test_universal_sam_is_trace_sam_by_default(base: str):
    assert difference(path(UniversalSAM, base, lam=0.7, n=3), path(TraceSAM, base, lam=0.7, n=3)) < 1e-12


def both_powers(t: Tensor) -> Tensor:
    return torch.stack([t, t * t])


def second_cumulant(s: Tensor) -> Tensor:
    return s[1] - s[0] ** 2


@both_bases
@pytest.mark.parametrize("n", [2, 5])
def test_frobenius_weights_of_paper_and_code_are_n_to_2_n_minus_1(base: str, n: int):
    lam = 0.01
    code = path(FrobSAM, base, lam=lam, n=n, limit=None)
    scaled = n / (2 * (n - 1)) * lam
    assert difference(path(FrobSAM, base, lam=scaled, n=n, convention="paper", limit=None), code) < 1e-12
    generic = path(UniversalSAM, base, lam=scaled, n=n, antithetic=False, phi=second_cumulant, psi=both_powers)
    assert difference(generic, code) < 1e-10
    if n == 2:
        assert scaled == lam


def half_exponential(t: Tensor) -> Tensor:
    return torch.exp(-t / 2)


def inverse_square(s: Tensor) -> Tensor:
    return 1 / s**2


def minus_twice_log(s: Tensor) -> Tensor:
    return -2 * torch.log(s)


@both_bases
def test_det_sam_is_its_universal_form(base: str):
    common = {"lam": 0.5, "n": 4, "width": 0.2}
    for log, phi in ((False, inverse_square), (True, minus_twice_log)):
        det = path(DetSAM, base, log=log, **common)
        universal = path(UniversalSAM, base, phi=phi, psi=half_exponential, mu="cube", **common)
        assert difference(det, universal) < 1e-12


def exponential(t: Tensor) -> Tensor:
    return torch.exp(t)


@both_bases
def test_with_one_direction_det_sam_is_an_exponential_and_no_determinant(base: str):
    det = path(DetSAM, base, lam=0.5, n=1, width=0.2, log=False)
    assert difference(det, path(UniversalSAM, base, lam=0.5, psi=exponential, mu="cube", width=0.2)) < 1e-12


@both_bases
def test_antithetic_directions_of_a_cube_and_its_mirror_agree(base: str):
    mirrored = path(UniversalSAM, base, mu=mirrored_normal, antithetic=True, n=2)
    assert difference(mirrored, path(UniversalSAM, base, antithetic=True, n=2)) < 1e-12


def mirrored_normal(parameters: Any, generator: torch.Generator) -> list[Tensor]:
    return [-torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

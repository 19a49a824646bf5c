"""Estimators on the Hessians of networks, by their stochastic paths, against the dense Hessian and SciPy."""

from __future__ import annotations

import nets
import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from stats import assert_agrees
from torch import Tensor

import hessprobe as hp

NETS = ("mlp", "cnn", "attention")


@pytest.fixture(scope="module", params=NETS)
def net(request: pytest.FixtureRequest) -> tuple[hp.Hessian, Tensor]:
    risk = nets.CASES[request.param]().risk()
    return hp.Hessian(risk, engine="double_backward"), nets.full_hessian(risk)


def test_eigenpairs(net: tuple[hp.Hessian, Tensor]) -> None:
    H, matrix = net
    values = torch.linalg.eigvalsh(matrix)
    pairs = hp.eigsh(H, k=2, which="both", tol=1e-7)
    torch.testing.assert_close(pairs.values[:2], values.flip(0)[:2], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(pairs.values[-2:], values.flip(0)[-2:], rtol=1e-8, atol=1e-10)
    theirs = scipy.sparse.linalg.eigsh(H.to_scipy(), k=2, which="LA", return_eigenvectors=False)
    np.testing.assert_allclose(pairs.values[:2].numpy(), np.sort(theirs)[::-1], rtol=1e-8)
    assert pairs.bounds.lower <= float(values[0])
    assert pairs.bounds.upper >= float(values[-1])


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_trace(net: tuple[hp.Hessian, Tensor], method: str) -> None:
    H, matrix = net
    truth = float(matrix.trace())
    control = "auto" if method == "hutchinson" else False
    estimate = hp.trace(H, n_probes=64, method=method, seed=1, control_variate=control)
    assert_agrees(estimate, truth, 0.8 * abs(truth))


def test_exact_trace_and_diagonal(net: tuple[hp.Hessian, Tensor]) -> None:
    H, matrix = net
    assert hp.trace(H, method="exact").value == pytest.approx(float(matrix.trace()), rel=1e-10)
    torch.testing.assert_close(hp.diagonal(H, method="exact").values, matrix.diagonal(), rtol=1e-9, atol=1e-13)


def test_frobenius_norm(net: tuple[hp.Hessian, Tensor]) -> None:
    H, matrix = net
    truth = float(matrix.norm())
    leading = hp.eigsh(H, k=4, which="magnitude", tol=0.1, verify=False)
    assert_agrees(hp.frobenius_norm(H, n_probes=24, deflate=leading, seed=2), truth, 0.3 * truth)


def test_log_determinants(net: tuple[hp.Hessian, Tensor]) -> None:
    H, matrix = net
    values = torch.linalg.eigvalsh(matrix)
    smooth = float((values**2 + 0.05**2).log().sum() / 2)
    assert_agrees(hp.logdet(H, eps=0.05, method="slq", n_probes=24, seed=3), smooth, 0.1 * abs(smooth))
    G = hp.GaussNewton(H.risk, engine="double_backward")
    damped = float((torch.linalg.eigvalsh(nets.full_gauss_newton(H.risk)) + 0.05).log().sum())
    estimate = hp.logdet(G, shift=0.05, method="slq", n_probes=24, seed=3)
    assert_agrees(estimate, damped, 0.1 * abs(damped))
    assert estimate.details["quadrature"] in ("bracket", "exact")


def test_density_band_holds_the_distribution(net: tuple[hp.Hessian, Tensor]) -> None:
    H, matrix = net
    density = hp.spectral_density(H, method="slq", n_probes=8, steps=24, seed=4)
    low, high = density.band(0.999)
    cdf = (torch.linalg.eigvalsh(matrix)[None] <= density.grid[:, None]).double().mean(1)
    inside = (low - 1e-9 <= cdf) & (cdf <= high + 1e-9)
    assert float(inside.double().mean()) > 0.99

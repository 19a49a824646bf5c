"""The largest eigenvalue of every batch, against the dense Hessians of the batches."""

from __future__ import annotations

import nets
import pytest
import torch

import hessprobe as hp
from hessprobe.errors import UnsupportedError


def test_every_batch_has_the_eigenvalue_of_its_own_hessian() -> None:
    case = nets.mlp((8, 4, 6, 8, 2))
    risk = case.risk()
    found = hp.measure("lambda-max", risk, per_batch=True, rtol=0.001, engine="double_backward")
    arrays = found.details["arrays"]
    dense = [nets.full_hessian(nets.Case(case.module, [batch], case.loss).risk()) for batch in case.data]
    exact = torch.stack([torch.linalg.eigvalsh(H)[-1] for H in dense])
    assert torch.allclose(arrays["batch_eigenvalues"], exact, rtol=1e-4, atol=0)
    assert bool(((arrays["batch_eigenvalues"] - exact).abs() <= arrays["batch_eigenvalue_errors"] + 1e-10).all())
    assert torch.allclose(arrays["batch_weights"], torch.tensor([8, 4, 6, 8, 2], dtype=torch.float64) / 28)
    # Sorted positions 0.2, 1, 2, 3, 3.8 of five values.
    a = exact.sort().values
    order = [a[0] + 0.2 * (a[1] - a[0]), a[1], a[2], a[3], a[3] + 0.8 * (a[4] - a[3])]
    assert torch.allclose(arrays["batch_quantiles"], torch.stack(order), rtol=1e-4)
    assert arrays["batch_levels"].tolist() == [0.05, 0.25, 0.5, 0.75, 0.95]
    assert float(arrays["batch_weights"] @ arrays["batch_eigenvalues"]) > float(found)
    spread = float(exact.std()) / 5**0.5
    assert f"of 5 batches: median {float(a[2]):.3g}"[:-1] in found.details["notes"][0]
    assert f"with standard error {spread:.2g}" in found.details["notes"][0]
    alone = hp.measure("lambda-max", risk, rtol=0.001, engine="double_backward")
    assert float(found) == float(alone)
    assert found.matvecs > alone.matvecs
    assert "batch_eigenvalues" not in alone.details["arrays"]


def test_of_other_matrices_too() -> None:
    case = nets.mlp((8, 8))
    risk = case.risk()
    how = {"per_batch": True, "rtol": 0.001, "engine": "double_backward"}
    found = hp.measure(["lambda-max", "adaptive-lambda-max"], risk, operator="ggn", **how)
    scale = risk.theta.abs()
    for name, C in (("lambda-max", torch.ones_like(scale)), ("adaptive-lambda-max", scale)):
        values = found[name].details["arrays"]["batch_eigenvalues"]
        for value, batch in zip(values.tolist(), case.data, strict=True):
            G = hp.GaussNewton(nets.Case(case.module, [batch], case.loss).risk()).to_dense()
            assert value == pytest.approx(float(torch.linalg.eigvalsh(C[:, None] * G * C)[-1]), rel=1e-4)


def test_one_batch_has_no_distribution() -> None:
    with pytest.raises(UnsupportedError, match="at least two batches"):
        hp.measure("lambda-max", nets.mlp((8,)).risk(), per_batch=True)

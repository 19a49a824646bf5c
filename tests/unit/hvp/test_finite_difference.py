"""The step follows the length of the vector and the scale of the parameters."""

from __future__ import annotations

import nets
import torch

from hessprobe.hvp import Hessian


def test_the_error_does_not_depend_on_the_length_of_the_vector() -> None:
    risk = nets.mlp().risk()
    hessian = nets.full_hessian(risk)
    v = torch.randn(1, risk.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    H = Hessian(risk, engine="finite_difference")
    for scale in (1e-6, 1.0, risk.dim**0.5, 1e6):
        expected = scale * v @ hessian
        assert float((H.matvecs(scale * v) - expected).norm() / expected.norm()) < 1e-8
    assert float(H.matvecs(0 * v).norm()) == 0.0

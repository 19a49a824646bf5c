"""The check of a product against the loss lets a trained network through, whatever its dtype."""

from __future__ import annotations

import nets
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprobe.errors import UnsupportedError
from hessprobe.hvp.engines import DoubleBackward, LossFunction, Product
from hessprobe.hvp.verification import require_own_gradient, require_symmetric
from hessprobe.objective import EmpiricalRisk


@pytest.mark.parametrize("steps", [5, 300])
def test_an_interpolating_network_with_kinks_passes(steps: int) -> None:
    """At a small loss a step of 1 % leaves the quadratic region: what is missed there shrinks with the step."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(300, 20), torch.randint(5, (300,))
    net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
    for dtype in (torch.float32, torch.float64):
        risk = EmpiricalRisk(net.to(dtype), F.cross_entropy, [(inputs.to(dtype), labels)])
        (batch,) = risk.terms()
        with risk.evaluating():
            require_own_gradient(batch, risk.theta)
            require_symmetric(DoubleBackward()(batch, risk.theta), risk.theta)


def test_kinks_that_agree_at_two_steps_by_accident_are_no_cut() -> None:
    """A piecewise linear loss whose slope misses 5 % at both steps, as a trained ReLU network's did; not between.

    Nor where it misses 5 % at all of them, as beside a kink that is closer than the finest: aside it does not.
    """
    places = torch.tensor([0.0, 1e-6, 6.25e-6, 2.5e-5, 1e-4], dtype=torch.float64)

    def loss(ratio: float) -> LossFunction:
        values = places * torch.tensor([1.0, 1.0, 0.95, ratio, 0.95], dtype=torch.float64)

        def piecewise(theta: Tensor) -> Tensor:
            x = theta[0] - 1
            k = int(torch.searchsorted(places, x.detach().abs(), right=True).clamp(1, 4))
            slope = (values[k] - values[k - 1]) / (places[k] - places[k - 1])
            return 1 + x.sign() * values[k - 1] + slope * (x - x.sign() * places[k - 1])

        return piecewise

    theta = torch.ones(1, dtype=torch.float64)
    for ratio in (1.1, 0.95):
        require_own_gradient(loss(ratio), theta)

    calls: list[bool] = []

    def cut(theta: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return loss(0.95)(theta) + 0.1 * (theta[0].detach() - 1)

    with pytest.raises(UnsupportedError, match="is not its slope"):
        require_own_gradient(cut, theta)
    # What the docstring says that it costs: gradients, evaluations.
    assert (calls.count(True), calls.count(False)) == (3, 27)


def test_a_product_that_is_not_symmetric_is_refused() -> None:
    risk = nets.mlp().risk()
    hessian = nets.full_hessian(risk)
    skew = torch.randn(risk.dim, risk.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    skew = (skew - skew.T) * hessian.norm() / (skew - skew.T).norm()

    def product(share: float) -> Product:
        def apply(V: Tensor) -> Tensor:
            return V @ (hessian + share * skew).T

        return Product(apply)

    require_symmetric(product(0.0), risk.theta)
    with pytest.raises(UnsupportedError, match=r"not symmetric on the first batch: u.\(Hv\) = .* and v.\(Hu\)"):
        require_symmetric(product(1e-4), risk.theta)

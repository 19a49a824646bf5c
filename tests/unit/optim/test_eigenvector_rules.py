"""Eigen-SAM and X-SAM: when the eigenvector is found, what it costs, what it is good for."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hessprobe.optim import EigenCorrectedSAM, EigenSAM

BOTH = pytest.mark.parametrize("kind", [EigenSAM, EigenCorrectedSAM])


class Bowl:
    """L(w) = w'Hw/2 + sum w^4/40 with chosen eigenvalues in d = 60 dimensions."""

    def __init__(self, d: int = 60) -> None:
        source = torch.Generator().manual_seed(5)
        basis = torch.linalg.qr(torch.randn(d, d, generator=source, dtype=torch.float64))[0]
        self.H = basis @ torch.diag(torch.logspace(1, -2, d, dtype=torch.float64)) @ basis.T
        self.w = nn.Parameter(torch.randn(d, generator=source, dtype=torch.float64))

    def loss(self) -> Tensor:
        return self.w @ self.H @ self.w / 2 + self.w.pow(4).sum() / 40

    def closure(self) -> Tensor:
        self.w.grad = None
        value = self.loss()
        value.backward()
        return value

    def step(self, optimizer: Any) -> None:
        optimizer.step(self.closure, loss=self.loss)


def sgd(bowl: Bowl, lr: float = 0.01) -> torch.optim.Optimizer:
    return torch.optim.SGD([bowl.w], lr=lr)


@BOTH
def test_products_are_spent_every_k_steps_and_fewer_once_warm(kind: Any):
    bowl = Bowl()
    optimizer = kind(sgd(bowl), 0.05, every=3, tol=1e-3)
    products = []
    for _ in range(7):
        bowl.step(optimizer)
        assert optimizer.last.evaluations == 2
        products.append(optimizer.last.products)
        assert ("eigenvalue" in optimizer.last.extra) == (optimizer.last.products > 0)
    assert [i for i, spent in enumerate(products) if spent] == [0, 3, 6]
    assert products[3] < products[0]
    exact = float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(lambda w: w @ bowl.H @ w / 2, bowl.w))[-1])
    assert optimizer.last.extra["eigenvalue"] > exact


def test_the_remembered_vector_is_the_top_eigenvector_and_resumes():
    bowl = Bowl()
    optimizer = EigenSAM(sgd(bowl), 0.05, every=100, tol=1e-6)
    hessian = bowl.H + torch.diag(0.3 * bowl.w.detach() ** 2)
    bowl.step(optimizer)
    v = optimizer.state[bowl.w]["sam_eigenvector"]
    top = torch.linalg.eigh(hessian)[1][:, -1]
    assert abs(float(v @ top)) > 1 - 1e-9
    assert float(optimizer.last.extra["eigen_residual"]) < 1e-5
    stream = io.BytesIO()
    torch.save((optimizer.state_dict(), bowl.w), stream)
    stream.seek(0)
    saved, w = torch.load(stream, weights_only=False)
    other = Bowl()
    with torch.no_grad():
        other.w.copy_(w)
    resumed = EigenSAM(sgd(other), 0.05, every=100, tol=1e-6)
    resumed.load_state_dict(saved)
    other.step(resumed)
    bowl.step(optimizer)
    assert resumed.last.products == 0
    assert torch.equal(other.w, bowl.w)


@BOTH
def test_the_sign_of_the_eigenvector_does_not_matter(kind: Any):
    ends = []
    for sign in (1.0, -1.0):
        bowl = Bowl()
        optimizer = kind(sgd(bowl), 0.2, alpha=0.7)
        bowl.step(optimizer)
        optimizer.state[bowl.w]["sam_eigenvector"] *= sign
        bowl.step(optimizer)
        ends.append(bowl.w.detach().clone())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-13, atol=1e-14)


def test_eigen_sam_ascends_further_along_the_top_eigenvector_and_is_not_made_length_rho():
    lengths, along = {}, {}
    for alpha in (0.0, 0.5):
        bowl = Bowl()
        seen: list[Tensor] = []
        optimizer = EigenSAM(sgd(bowl, lr=0.0), 0.1, alpha=alpha, tol=1e-6)
        bowl.w.register_hook(lambda _, bowl=bowl, seen=seen: seen.append(bowl.w.detach().clone()))
        bowl.step(optimizer)
        moved = seen[-1] - bowl.w.detach()
        lengths[alpha] = float(moved.norm())
        along[alpha] = abs(float(moved @ optimizer.state[bowl.w]["sam_eigenvector"]))
    assert lengths[0.0] == pytest.approx(0.1)
    # e/rho = h + alpha s (v - <h, v> h), two orthogonal parts, for h of length 1.
    cosine = along[0.0] / 0.1
    assert lengths[0.5] == pytest.approx(0.1 * (1 + 0.25 * (1 - cosine**2)) ** 0.5)
    assert along[0.5] == pytest.approx(0.1 * (cosine + 0.5 * (1 - cosine**2)))


def test_x_sam_with_alpha_1_has_no_component_along_the_eigenvector():
    bowl = Bowl()
    optimizer = EigenCorrectedSAM(sgd(bowl, lr=0.0), 0.1, alpha=1.0, normalize=False)
    bowl.step(optimizer)
    assert bowl.w.grad is not None
    v = optimizer.state[bowl.w]["sam_eigenvector"]
    assert abs(float(bowl.w.grad @ v)) < 1e-12 * abs(float(optimizer.last.extra["along_eigenvector"])) + 1e-13


@BOTH
def test_groups_that_are_not_perturbed_have_no_part_in_the_eigenvector(kind: Any):
    bowl, still = Bowl(), nn.Parameter(torch.tensor([0.5], dtype=torch.float64))

    def loss() -> Tensor:
        return bowl.loss() + 500 * still.square().sum()

    def closure() -> Tensor:
        bowl.w.grad = still.grad = None
        value = loss()
        value.backward()
        return value

    groups = [{"params": [bowl.w]}, {"params": [still], "perturb": False}]
    optimizer = kind(torch.optim.SGD(groups, lr=0.0), 0.1, tol=1e-6)
    optimizer.step(closure, loss=loss)
    assert torch.equal(optimizer.state[still]["sam_eigenvector"], torch.zeros(1, dtype=torch.float64))
    assert float(optimizer.last.extra["eigenvalue"]) < 100


def test_power_steps_find_the_largest_magnitude_and_largest_is_algebraic():
    w = nn.Parameter(torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64))
    curvatures = torch.tensor([2.0, -7.0, 1.0], dtype=torch.float64)

    def loss() -> Tensor:
        return (curvatures * w * w).sum() / 2

    for which, value in (("largest", 2.0), ("magnitude", -7.0)):
        optimizer = EigenSAM(torch.optim.SGD([w], lr=0.0), which=which)
        optimizer.zero_grad()
        optimizer.step(loss=loss)
        assert float(optimizer.last.extra["eigenvalue"]) == pytest.approx(value)


def test_few_products_give_a_usable_vector_without_a_warning():
    bowl = Bowl()
    optimizer = EigenSAM(sgd(bowl), tol=1e-9, max_matvecs=4)
    bowl.step(optimizer)
    assert optimizer.last.products == 4
    assert float(optimizer.last.extra["eigen_residual"]) > 1e-3


@BOTH
def test_needs_the_loss(kind: Any):
    bowl = Bowl()
    with pytest.raises(ValueError, match=rf"{kind.__name__} must be given loss=.*got None"):
        kind(sgd(bowl)).step(bowl.closure)


@BOTH
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -0.1}, "alpha must be"),
        ({"every": 0}, "every must be an integer >= 1; got 0"),
        ({"which": "smallest"}, "which must be one of largest, magnitude; got 'smallest'"),
        ({"tol": 1.0}, r"tol must be a number in \(0, 1\); got 1\.0"),
        ({"max_matvecs": 1}, "max_matvecs must be an integer >= 2; got 1"),
    ],
)
def test_arguments_out_of_range(kind: Any, arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        kind(sgd(Bowl()), **arguments)


def test_x_sam_takes_alpha_up_to_2():
    with pytest.raises(ValueError, match=r"alpha must be a number in \[0, 2\]; got 2\.5"):
        EigenCorrectedSAM(sgd(Bowl()), alpha=2.5)

"""The Fisher matrices against outer products of per-example gradients, and the mean of the sampled one."""

from __future__ import annotations

import nets
import pytest
import torch
from torch import Tensor, nn

from hessprobe.errors import UnsupportedError
from hessprobe.hvp import Fisher, GaussNewton
from hessprobe.objective import EmpiricalRisk


def _example_gradients(risk: EmpiricalRisk) -> Tensor:
    rows = []
    with risk.evaluating():
        for term in risk.terms():
            for example in range(term.examples):
                one = term.slice(example, example + 1)
                theta = risk.theta.clone().requires_grad_()
                rows.append(torch.autograd.grad(one(theta), theta)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["mlp", "regression", "cnn"])
def test_empirical_is_the_mean_outer_product_of_example_gradients(name: str) -> None:
    risk = nets.CASES[name]().risk()
    gradients = _example_gradients(risk)
    expected = gradients.T @ gradients / len(gradients)
    torch.testing.assert_close(Fisher(risk, kind="empirical").dense(), expected, rtol=1e-10, atol=1e-14)


def test_empirical_counts_tokens_as_examples() -> None:
    case = nets.attention()
    risk = case.risk()
    rows = []
    with risk.evaluating():
        for inputs, targets in case.data:
            theta = risk.theta.clone().requires_grad_()
            outputs = next(iter(risk.terms())).outputs_of(theta, inputs)
            losses = nn.functional.cross_entropy(outputs, targets, reduction="none").flatten()
            keep = (targets != -100).flatten()
            rows += [torch.autograd.grad(one, theta, retain_graph=True)[0] for one in losses[keep]]
    gradients = torch.stack(rows)
    expected = gradients.T @ gradients / len(gradients)
    torch.testing.assert_close(Fisher(risk, kind="empirical").dense(), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["mlp", "regression", "attention"])
def test_the_sampled_fisher_is_the_gauss_newton_matrix_on_average(name: str) -> None:
    risk = nets.CASES[name]().risk()
    expected = nets.full_gauss_newton(risk)
    # Sixteen vectors at once: a draw costs little more, and the forms of one draw are only weakly correlated.
    V = torch.randn(16, risk.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    truth = float(((V @ expected) * V).sum())
    fishers = [Fisher(risk, seed=seed, engine="double_backward") for seed in range(80)]
    draws = torch.tensor([float(F.quadratic_forms(V).sum()) for F in fishers])
    error = float(draws.std() / len(draws) ** 0.5)
    assert abs(float(draws.mean()) - truth) < 4 * error
    assert 4 * error < 0.2 * truth


def test_draws_are_the_same_for_every_product_and_differ_with_the_seed() -> None:
    risk = nets.mlp().risk()
    F = Fisher(risk, seed=1, memory=1000, engine="forward_over_reverse")
    V = torch.randn(1, risk.dim, dtype=torch.float64)
    assert torch.equal(F.matvecs(V), F.matvecs(V))
    assert not torch.equal(Fisher(risk, seed=2).matvecs(V), F.matvecs(V))


def test_it_is_positive_semidefinite() -> None:
    F = Fisher(nets.mlp().risk())
    assert F.psd
    assert float(torch.linalg.eigvalsh(F.dense()).min()) > -1e-14


def test_a_loss_that_is_not_convex_in_the_outputs_is_refused() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(4, 3).double(), torch.randn(4, 2).double())]
    risk = EmpiricalRisk(nn.Linear(3, 2).double(), lambda outputs, targets: outputs.sin().mean(), data)
    with pytest.raises(UnsupportedError, match="convex in the model's outputs"):
        GaussNewton(risk)

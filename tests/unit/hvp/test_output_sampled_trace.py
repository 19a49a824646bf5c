"""The output-sampled Gauss-Newton trace: its root, its variance, its coverage, its cost, and where it is refused."""

from __future__ import annotations

import math

import nets
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprobe as hp
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators.task import block_diagonal
from hessprobe.hvp import GaussNewton
from hessprobe.hvp.output_space import _root
from hessprobe.objective import EmpiricalRisk
from hessprobe.operators import BlockDiagonal, Counted

LOSSES = {
    "plain": nn.CrossEntropyLoss(),
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)),
    "smoothed labels": nn.CrossEntropyLoss(label_smoothing=0.1),
    "ignored label": nn.CrossEntropyLoss(ignore_index=1),
    "squared error": nn.MSELoss(),
    "squares of many outputs": nn.MSELoss(),
    "coupled": lambda f, y: (f.exp().sum(1).log() ** 2).mean() + 0 * y.sum(),
}


def risk_of(name: str, examples: int = 6) -> EmpiricalRisk:
    torch.manual_seed(0)
    outputs = 300 if "many" in name else 3
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, outputs)).double()
    x = torch.randn(examples, 4, dtype=torch.float64)
    target = torch.randn(examples, outputs).double() if "square" in name else torch.randint(3, (examples,))
    return EmpiricalRisk(net, LOSSES[name], [(x, target)])


@pytest.mark.parametrize("name", list(LOSSES))
def test_the_root_squares_to_the_loss_hessian(name: str) -> None:
    (batch,) = risk_of(name).terms()
    outputs = batch.outputs(risk_of(name).theta).detach()
    root = _root(batch, outputs)
    assert root is not None
    size = outputs.numel()
    if size > 100:
        return
    L = torch.stack([root(unit.view_as(outputs)).flatten() for unit in torch.eye(size, dtype=torch.float64)], dim=1)
    inner = torch.autograd.functional.hessian(batch.loss_of_outputs, outputs).reshape(size, size)
    torch.testing.assert_close(L @ L.T, inner, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", ["mlp", "regression", "cnn", "attention", "odd"])
def test_unbiased_with_the_variance_of_the_formula(name: str) -> None:
    risk = nets.CASES[name]().risk()
    truth = float(nets.full_gauss_newton(risk).trace())
    found = GaussNewton(risk, engine="double_backward").sampled_trace(range(400), seed=1)
    assert found is not None
    assert abs(found.value - truth) < 4 * found.std_error < 0.15 * truth
    variance = 0.0
    with risk.evaluating():
        for batch in risk.terms():
            outputs = batch.outputs(risk.theta).detach()
            count, each = len(outputs), outputs[0].numel()
            root = _root(batch, outputs)
            assert root is not None
            units = torch.eye(count * each, dtype=torch.float64)
            L = torch.stack([root(unit.view_as(outputs)).flatten() for unit in units], dim=1)
            J = torch.autograd.functional.jacobian(batch.outputs, risk.theta).reshape(-1, risk.dim)
            K = (L.T @ J @ J.T @ L).view(count, each, count, each)
            for i in range(count):
                own = K[i, :, i]
                variance += batch.weight**2 * 2 * float(own.square().sum() - own.diagonal().square().sum())
    assert found.std_error == pytest.approx(math.sqrt(variance / 400), rel=0.1)


def test_two_draws_cover() -> None:
    risk = nets.mlp((24, 24, 24)).risk()
    G = GaussNewton(risk, engine="double_backward")
    truth = float(nets.full_gauss_newton(risk).trace())
    hits = 0
    for k in range(200):
        found = G.sampled_trace(range(3 * k, 3 * k + 3), seed=2)
        assert found is not None
        hits += abs(found.value - truth) <= Estimate(0.0, ErrorParts(found.std_error), df=found.df).half_width()
    assert 0.92 <= hits / 200 <= 0.98


def test_draws_in_groups_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    risk = nets.attention().risk()
    whole = GaussNewton(risk, engine="double_backward").sampled_trace(range(6), seed=3)
    monkeypatch.setattr("hessprobe.hvp.example_norms._TOGETHER", 2)
    parts = GaussNewton(risk, engine="double_backward").sampled_trace(range(6), seed=3)
    assert whole is not None
    assert parts is not None
    assert parts.value == pytest.approx(whole.value, rel=1e-12)
    assert parts.std_error == pytest.approx(whole.std_error, rel=1e-9)
    assert whole.cost == parts.cost == pytest.approx((2 + 12 + 4) / 6)


def test_products_are_counted_and_blocks_share_the_trace() -> None:
    counted = Counted(GaussNewton(nets.mlp().risk(), engine="double_backward"))
    first = counted.sampled_trace(range(2))
    assert first is not None
    assert counted.matvec_count == pytest.approx(first.cost)
    inside = BlockDiagonal(counted, [slice(0, 20), slice(20, counted.dim)]).sampled_trace(range(2))
    assert inside is not None
    assert inside.value == first.value
    assert inside.cost == pytest.approx(first.cost - 4 / 6)  # the check is made once


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(x))
        return hidden - hidden.mean(0)


def test_examples_that_see_each_other_are_refused() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(6, 4).double(), torch.randint(3, (6,))
    assert GaussNewton(EmpiricalRisk(Centred().double(), F.cross_entropy, [(x, y)])).sampled_trace(range(2)) is None


class Tokens(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed, self.inner = nn.Embedding(vocabulary, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        return self.head(hidden + torch.tanh(self.inner(hidden)))


def language_model() -> EmpiricalRisk:
    torch.manual_seed(0)
    net = Tokens(400).double()
    data = [(torch.randint(400, (8, 6)), torch.randint(400, (8, 6))) for _ in range(4)]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    # Near a minimum the Gauss-Newton matrix is most of the Hessian, and worth subtracting.
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        torch.stack([loss(net(x), y) for x, y in data]).mean().backward()
        optimizer.step()
    return EmpiricalRisk(net, loss, data)


def test_hutchinson_takes_it_where_there_is_no_exact_diagonal() -> None:
    H = hp.Hessian(language_model(), engine="double_backward")
    assert H.surrogate is not None
    assert math.isinf(H.surrogate.exact_diagonal_cost())
    reference = hp.trace(H, n_probes=200, method="hutchinson", control_variate=False, seed=5)
    sampled = hp.trace(H, rtol=0.02, method="hutchinson", seed=5)
    plain = hp.trace(H, rtol=0.02, method="hutchinson", control_variate=False, seed=5)
    assert sampled.method == "hutchinson+surrogate-sampled"
    assert "tolerance-missed" not in sampled.flags
    assert sampled.matvecs < 0.8 * plain.matvecs
    # The spectrum decays: auto has a cheaper way.
    assert hp.trace(H, rtol=0.02, seed=5).matvecs < 0.5 * sampled.matvecs
    error = math.hypot(sampled.std_error, reference.std_error)
    assert abs(sampled.value - reference.value) < 4 * error < 0.07 * reference.value
    # The error of the sampled trace is part of the error of the answer.
    assert sampled.std_error > sampled.details["surrogate_trace_std_error"] > 0


def test_auto_prefers_a_cheap_exact_diagonal() -> None:
    H = hp.Hessian(nets.mlp((24, 24, 24, 24), nn.ReLU).risk(), engine="double_backward")
    assert "sampled" not in hp.trace(H, rtol=0.02, method="hutchinson").method


def test_insisted_on_it_covers_and_is_refused_without_a_way() -> None:
    risk = nets.mlp((24, 24, 24)).risk()
    H = hp.Hessian(risk, engine="double_backward")
    truth = float(nets.full_hessian(risk).trace())
    found = [
        hp.trace(H, n_probes=6, method="hutchinson", control_variate="sampled", seed=seed, law="gaussian")
        for seed in range(100)
    ]
    scores = torch.tensor([(e.value - truth) / e.std_error for e in found])
    assert 0.6 < float(scores.square().mean()) < 1.7
    assert abs(float(scores.mean())) < 4 / math.sqrt(100)
    message = "surrogate of sampled trace; got 'sampled'"
    with pytest.raises(ValueError, match=message):
        hp.trace(torch.eye(30).double(), n_probes=4, method="hutchinson", control_variate="sampled")
    with pytest.raises(ValueError, match=message):
        hp.trace(torch.eye(30).double(), rtol=0.1, method="hutchinson", control_variate="sampled")


def test_the_error_of_the_sampled_trace_is_the_error_of_the_answer_where_nothing_else_is_left() -> None:
    # Inside the blocks of a piecewise linear network H - G has a trace of 0 without spread: all error is that of tr G.
    risk = nets.mlp((24, 24, 24, 24), nn.ReLU).risk()
    inside = block_diagonal(hp.Hessian(risk, engine="double_backward"))
    truth = float(nets.full_hessian(risk).trace())
    hits = 0
    for seed in range(100):
        found = hp.trace(inside, n_probes=2, method="hutchinson", control_variate="sampled", seed=seed)
        assert found.std_error == pytest.approx(found.details["surrogate_trace_std_error"], rel=1e-9)
        low, high = found.interval()
        hits += low <= truth <= high
    # A binomial of mean 95 out of 100 is below 89 with probability 0.01.
    assert hits >= 89


def test_insisting_on_the_exact_trace_works_with_a_tolerance() -> None:
    H = hp.Hessian(nets.mlp((24, 24, 24, 24)).risk(), engine="double_backward")
    found = hp.trace(H, rtol=0.5, method="hutchinson", control_variate=True)
    assert found.method == "hutchinson+surrogate"

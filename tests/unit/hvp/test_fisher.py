"""The Fisher matrices against sums over all labels of outer products of gradients, and the mean of the sampled one."""

from __future__ import annotations

import functools
from collections.abc import Callable

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hessprobe as hp
from hessprobe.errors import NumericalWarning, UnsupportedError
from hessprobe.hvp import Fisher, GaussNewton, Hessian
from hessprobe.objective import EmpiricalRisk
from hessprobe.operators import Block, BlockDiagonal, Combination, Congruence, Deflated, Reordered, Shifted
from hessprobe.sharpness import fisher_rao_norm


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
    torch.testing.assert_close(Fisher(risk, kind="empirical").to_dense(), expected, rtol=1e-10, atol=1e-14)


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
    torch.testing.assert_close(Fisher(risk, kind="empirical").to_dense(), expected, rtol=1e-10, atol=1e-14)


# Losses with the law of a target that they are the negative log-likelihood of: targets to sum over, their log-density.
ONE_HOT = [torch.tensor(c) for c in range(3)]
BITS = [torch.tensor([a, b, c]).double() for a in (0, 1) for b in (0, 1) for c in (0, 1)]
COUNTS = [torch.tensor([a, 0, 0]).double() for a in range(40)]
softmax, sigmoid, soft_plus = nn.LogSoftmax(1), nn.Sigmoid(), nn.Softplus()
poisson = functools.partial(F.poisson_nll_loss, log_input=False, eps=1e-30)


def _categorical(outputs: Tensor, label: Tensor) -> Tensor:
    return outputs.log_softmax(-1)[label]


LIKELIHOODS: dict[str, tuple[nn.Module, Callable, list[Tensor], Callable]] = {
    "scores": (nn.Identity(), nn.CrossEntropyLoss(), ONE_HOT, _categorical),
    "log-probabilities": (softmax, nn.NLLLoss(), ONE_HOT, lambda f, y: f[y]),
    "summed log-probabilities": (softmax, functools.partial(F.nll_loss, reduction="sum"), ONE_HOT, lambda f, y: f[y]),
    "ignored": (softmax, nn.NLLLoss(ignore_index=2), ONE_HOT, lambda f, y: f[y]),
    # A mean over three outputs is the log-likelihood of all three, divided by 3.
    "bits": (nn.Identity(), nn.BCEWithLogitsLoss(), BITS, lambda f, y: -F.binary_cross_entropy_with_logits(
        f, y, reduction="sum")),
    "probabilities": (sigmoid, nn.BCELoss(), BITS, lambda f, y: -F.binary_cross_entropy(f, y, reduction="sum")),
    "probabilities in a partial": (sigmoid, functools.partial(F.binary_cross_entropy, reduction="mean"), BITS,
                                   lambda f, y: -F.binary_cross_entropy(f, y, reduction="sum")),
    "log rates": (nn.Identity(), nn.PoissonNLLLoss(), COUNTS, lambda f, y: (y * f - f.exp() - (y + 1).lgamma())[0]),
    "rates": (soft_plus, poisson, COUNTS, lambda f, y: (y * f.log() - f - (y + 1).lgamma())[0]),
}  # fmt: skip


def _likelihood_risk(name: str) -> tuple[EmpiricalRisk, list[Tensor], Callable, float]:
    last, loss, targets, density = LIKELIHOODS[name]
    width = 1 if targets is COUNTS else 3
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, width), last).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    data = []
    for n in (5, 5, 3):
        x = torch.randn(n, 4, generator=generator).double()
        labels = torch.randint(3, (n,), generator=generator)
        counts = torch.randint(4, (n, width), generator=generator).double()
        y = labels if targets is ONE_HOT else counts if width == 1 else (counts > 1).double()
        data.append((x, y))
    return EmpiricalRisk(module, loss, data), targets, density, 1.0 if targets is ONE_HOT else 1 / width


@pytest.mark.parametrize("name", list(LIKELIHOODS))
def test_the_exact_fisher_is_the_sum_over_all_labels(name: str) -> None:
    """sum_y p(y|x) grad log p(y|x) (grad log p(y|x))^T, the label of the data nowhere in it."""
    risk, targets, density, share = _likelihood_risk(name)
    total, count = torch.zeros(risk.dim, risk.dim, dtype=torch.float64), 0
    for batch in risk.terms():
        for example in range(batch.examples):
            if name == "ignored" and int(batch.targets[example]) == 2:
                continue
            count += 1
            theta = risk.theta.clone().requires_grad_()
            outputs = batch.outputs(theta)[example]
            for y in targets:
                log = density(outputs, y if y.ndim == 0 else y[: len(outputs)])
                (slope,) = torch.autograd.grad(log, theta, retain_graph=True)
                total += share * log.detach().exp() * torch.outer(slope, slope)
    expected = total / count
    fisher = Fisher(risk)
    torch.testing.assert_close(fisher.to_dense(), expected, rtol=1e-9, atol=1e-13 * float(expected.abs().max()))
    assert fisher.psd
    assert float(expected.trace()) > 0.01
    estimate = hp.measure("trace", risk, operator="fisher", seed=3)
    low, high = estimate.interval(0.9999)
    # The second derivative of torch's binary cross-entropy is off by some 1e-12.
    assert low - 1e-9 <= float(expected.trace()) <= high + 1e-9
    assert high - low < 0.2 * high
    assert any("Fisher matrix of the likelihood" in note for note in estimate.details["notes"]) == (
        "probabilities" in name or name in ("ignored", "rates")
    )
    norm = fisher_rao_norm(risk, kind="model")
    assert norm.value == pytest.approx(float(risk.theta @ expected @ risk.theta) ** 0.5, rel=1e-9)


@pytest.mark.parametrize("name", ["log-probabilities", "probabilities", "rates"])
def test_the_sampled_fisher_of_other_likelihoods(name: str) -> None:
    risk = _likelihood_risk(name)[0]
    exact = float(Fisher(risk).to_dense().trace())
    with pytest.warns(NumericalWarning, match="one draw of labels, an error that nothing tells"):
        draws = torch.tensor([float(Fisher(risk, kind="mc", seed=s, engine="double_backward").to_dense().trace())
                              for s in range(40)])  # fmt: skip
    error = float(draws.std()) / 40**0.5
    assert abs(float(draws.mean()) - exact) < 4 * error < 0.7 * exact


def _own_nll(outputs: Tensor, labels: Tensor) -> Tensor:
    return -outputs.gather(1, labels[:, None]).mean()


def _own_binary(outputs: Tensor, targets: Tensor) -> Tensor:
    return -(targets * outputs.log() + (1 - targets) * (1 - outputs).log()).mean()


def test_what_is_no_known_likelihood_is_refused() -> None:
    risk = _likelihood_risk("log-probabilities")[0]
    unscaled = EmpiricalRisk(risk.module[:-1], nn.NLLLoss(), list(_data(risk)))
    with pytest.raises(UnsupportedError, match=r"needs outputs that are log-probabilities; .* End the model in"):
        Fisher(unscaled)
    own = EmpiricalRisk(risk.module, _own_nll, list(_data(risk)))
    with pytest.raises(UnsupportedError, match="_own_nll is linear in the outputs, whose second derivative of 0"):
        Fisher(own)
    bits = _likelihood_risk("probabilities")[0]
    with pytest.raises(UnsupportedError, match="derivative of _own_binary in the outputs depends on the targets"):
        Fisher(EmpiricalRisk(bits.module, _own_binary, list(_data(bits))))
    scores = _likelihood_risk("scores")[0]
    plain = EmpiricalRisk(scores.module, lambda f, y: F.cross_entropy(f, y), list(_data(scores)))
    torch.testing.assert_close(Fisher(plain).to_dense(), Fisher(scores).to_dense())


def _data(risk: EmpiricalRisk) -> list[tuple[Tensor, Tensor]]:
    return [(batch.inputs, batch.targets) for batch in risk.terms()]


@pytest.mark.filterwarnings("ignore:Fisher.kind=:hessprobe.errors.NumericalWarning")
@pytest.mark.parametrize("name", ["mlp", "regression", "attention"])
def test_the_sampled_fisher_is_the_gauss_newton_matrix_on_average(name: str) -> None:
    risk = nets.CASES[name]().risk()
    expected = nets.full_gauss_newton(risk)
    # Sixteen vectors at once: a draw costs little more, and the forms of one draw are only weakly correlated.
    V = torch.randn(16, risk.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    truth = float(((V @ expected) * V).sum())
    fishers = [Fisher(risk, kind="mc", seed=seed, engine="double_backward") for seed in range(80)]
    draws = torch.tensor([float(fisher.quadratic_forms(V).sum()) for fisher in fishers])
    error = float(draws.std() / len(draws) ** 0.5)
    assert abs(float(draws.mean()) - truth) < 4 * error
    assert 4 * error < 0.2 * truth


@pytest.mark.filterwarnings("ignore:Fisher.kind=:hessprobe.errors.NumericalWarning")
def test_draws_are_the_same_for_every_product_and_differ_with_the_seed() -> None:
    risk = nets.mlp().risk()
    fisher = Fisher(risk, kind="mc", seed=1, memory=1000, engine="forward_over_reverse")
    V = torch.randn(1, risk.dim, dtype=torch.float64)
    assert torch.equal(fisher.matvecs(V), fisher.matvecs(V))
    assert not torch.equal(Fisher(risk, kind="mc", seed=2).matvecs(V), fisher.matvecs(V))


def test_it_is_positive_semidefinite() -> None:
    fisher = Fisher(nets.mlp().risk())
    assert fisher.psd
    assert float(torch.linalg.eigvalsh(fisher.to_dense()).min()) > -1e-14


def test_a_loss_that_is_not_convex_in_the_outputs_is_refused() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(4, 3).double(), torch.randn(4, 2).double())]
    risk = EmpiricalRisk(nn.Linear(3, 2).double(), lambda outputs, targets: outputs.sin().mean(), data)
    with pytest.raises(UnsupportedError, match="convex in the model's outputs"):
        GaussNewton(risk)


def test_the_interval_of_a_sampled_trace_holds_the_exact_one() -> None:
    risk = nets.CASES["regression"]().risk()
    truth = float(nets.full_gauss_newton(risk).trace())
    found = [
        hp.trace(Fisher(risk, kind="mc", n_draws=5, seed=seed, engine="double_backward"), method="exact")
        for seed in range(40)
    ]
    # 38 are expected to; with errors of half the size, a level of .76, so many do with probability 0.06.
    assert sum(low <= truth <= high for low, high in (e.interval(0.95) for e in found)) >= 35
    assert {estimate.df for estimate in found} == {4}
    assert {estimate.samples for estimate in found} == {5}
    assert max(e.std_error for e in found) < 0.3 * truth


def test_the_matrix_of_several_draws_is_their_mean() -> None:
    for case in ("mlp", "regression", "attention"):
        fisher = Fisher(nets.CASES[case]().risk(), kind="mc", n_draws=3, seed=4)
        singles = torch.stack([draw.to_dense() for draw in fisher.draws])
        torch.testing.assert_close(fisher.to_dense(), singles.mean(0), rtol=1e-10, atol=1e-13)
        assert not torch.allclose(singles[0], singles[1])
        mean = hp.trace(fisher, method="exact")
        assert mean.value == pytest.approx(float(fisher.to_dense().trace()), rel=1e-10)
        assert mean.std_error == pytest.approx(float(singles.diagonal(dim1=1, dim2=2).sum(1).std()) / 3**0.5, rel=1e-9)


def test_numbers_of_drawn_labels_without_an_error_are_refused() -> None:
    risk = nets.mlp().risk()
    with pytest.warns(NumericalWarning, match="one draw of labels"):
        single = Fisher(risk, kind="mc")
    fisher = Fisher(risk, kind="mc", n_draws=4)
    with pytest.raises(UnsupportedError, match="n_draws of at least 2"):
        hp.trace(single)
    some = next(iter(fisher.blocks.values()))
    basis = torch.eye(risk.dim, dtype=torch.float64)[:2]
    scale = torch.ones(risk.dim, dtype=torch.float64)
    made = [fisher, single, Combination([fisher, Hessian(risk)], [1.0, -1.0]), Shifted(fisher, 0.1)]
    made += [Block(fisher, some), Deflated(fisher, basis), Congruence(fisher, scale)]
    made += [BlockDiagonal(fisher, list(fisher.blocks.values())), Reordered(fisher, torch.arange(risk.dim))]
    for A in made:
        assert len(A.draws) == (1 if A is single else 4)
        for number in (hp.frobenius_norm, hp.eigsh, hp.diagonal, hp.spectral_density):
            with pytest.raises(UnsupportedError, match="matrix made of drawn labels"):
                number(A)
    with pytest.raises(UnsupportedError, match="matrix made of drawn labels"):
        hp.logdet(fisher, shift=1.0)
    difference = hp.trace(made[2], n_probes=16, seed=0)
    assert difference.samples == 4
    assert difference.interval(0.999)[0] < float(made[2].to_dense().trace()) < difference.interval(0.999)[1]
    with pytest.raises(ValueError, match="n_draws must be"):
        Fisher(risk, kind="mc", n_draws=0)

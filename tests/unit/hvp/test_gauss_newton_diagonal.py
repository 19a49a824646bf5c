"""The exact diagonal is exact, or it is not given: models and losses that break its assumptions."""

from __future__ import annotations

from collections.abc import Callable

import nets
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hessprobe as hp
from hessprobe.errors import MemoryBudgetError
from hessprobe.hvp import GaussNewton, gauss_newton
from hessprobe.hvp.gauss_newton import _linear_layers
from hessprobe.hvp.output_space import loss_hessians, square_roots
from hessprobe.objective import EmpiricalBatch, EmpiricalRisk


class Tokens(nn.Module):
    """A linear layer on (B * T, in) rows: rows are not examples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 5), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x.flatten(0, 1))).view(len(x), -1))


class Tied(nn.Module):
    """The encoder's weight is used a second time outside its module."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.enc(x)), self.enc.weight.t())


class Centred(nn.Module):
    """Examples see each other through the mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(x))
        return self.head(hidden - hidden.mean(0))


class Auxiliary(nn.Module):
    """A head that is computed and thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head, self.other = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(x))
        self.other(hidden)
        return self.head(hidden)


def _ranking(outputs: Tensor, targets: Tensor) -> Tensor:
    scores = outputs[:, 0]
    return F.softplus(scores[None] - scores[:, None])[torch.triu(torch.ones(6, 6), 1) > 0].mean() + 0 * targets.sum()


def _inplace() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))


X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], Tensor, Tensor, bool]] = {
    "in-place activation": (_inplace, F.cross_entropy, X, LABELS, True),
    "auxiliary head": (Auxiliary, F.cross_entropy, X, LABELS, True),
    "rows are tokens": (Tokens, F.cross_entropy, X.view(3, 2, 4), LABELS[:3], True),
    "tied outside": (Tied, nn.MSELoss(), X, X, True),
    "examples see each other": (Centred, F.cross_entropy, X, LABELS, False),
    "loss is not separable": (lambda: nn.Linear(4, 1), _ranking, X, LABELS, False),
}


@pytest.mark.parametrize("name", list(CASES))
def test_exact_or_not_given(name: str) -> None:
    make, loss, inputs, targets, given = CASES[name]
    torch.manual_seed(1)
    risk = EmpiricalRisk(make().double(), loss, [(inputs, targets)])
    G = GaussNewton(risk, engine="double_backward")
    known = G.exact_diagonal()
    assert (known is not None) == given
    if known is not None:
        torch.testing.assert_close(known[0], nets.full_gauss_newton(risk).diagonal(), rtol=1e-9, atol=1e-13)
    truth = float(nets.full_hessian(risk).trace())
    estimate = hp.trace(hp.Hessian(risk, engine="double_backward"), rtol=0.05, seed=2)
    assert abs(estimate.value - truth) < 5 * estimate.errors.probe + estimate.errors.solver + 1e-12


def test_cutting_a_batch_whose_examples_see_each_other_is_refused() -> None:
    torch.manual_seed(1)
    risk = EmpiricalRisk(Centred().double(), F.cross_entropy, [(X, LABELS)])
    H = hp.Hessian(risk, engine="double_backward", memory=600)
    with pytest.raises(MemoryBudgetError, match="examples see each other"):
        H.matvecs(torch.ones(1, risk.dim, dtype=torch.float64))


def test_a_pass_inside_a_pass_sees_every_batch() -> None:
    risk = nets.mlp((8, 8, 8, 8)).risk()
    expected = nets.full_hessian(risk)
    V = torch.randn(1, risk.dim, dtype=torch.float64)
    H = hp.Hessian(risk, engine="double_backward")
    total = torch.zeros_like(V)
    for weight, term in H.terms():
        torch.testing.assert_close(H.matvecs(V), V @ expected)
        total += weight * term.matvecs(V)
    torch.testing.assert_close(total, V @ expected)


def test_a_copy_that_the_model_writes_into_stays_a_copy() -> None:
    class Copying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.tanh(self.inner(x))
            changed = hidden.to(hidden.dtype, copy=True)
            changed.mul_(hidden.sum(1, keepdim=True))
            return self.head(hidden + changed)

    torch.manual_seed(1)
    risk = EmpiricalRisk(Copying().double(), F.cross_entropy, [(X, LABELS), (X.flip(0), LABELS)])
    V = torch.randn(2, risk.dim, dtype=torch.float64)
    for rows in (V, V[:1]):
        product = hp.Hessian(risk, engine="linearized").matvecs(rows)
        torch.testing.assert_close(product, rows @ nets.full_hessian(risk), rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Fisher.kind=:hessprobe.errors.NumericalWarning")
def test_fisher_with_a_pad_label_among_the_classes() -> None:
    torch.manual_seed(0)
    targets = torch.tensor([[1, 2, 0, 0], [2, 1, 1, 0]])
    net = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 3)).double()
    plain = EmpiricalRisk(nn.Sequential(net, Transposed()), nn.CrossEntropyLoss(ignore_index=0), [(targets, targets)])
    truth = float(nets.full_gauss_newton(plain).trace())
    assert float(hp.Fisher(plain).to_dense().trace()) == pytest.approx(truth, rel=1e-12)
    draws = torch.tensor(
        [float(hp.Fisher(plain, kind="mc", seed=s, engine="double_backward").to_dense().trace()) for s in range(100)]
    )
    error = float(draws.std()) / 10
    assert abs(float(draws.mean()) - truth) < 4 * error < 0.4 * truth


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def test_single_precision_near_an_interpolating_minimum() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    data = [(X, net(X).argmax(1))]
    with torch.no_grad():
        net[2].weight.mul_(60)
        net[2].bias.mul_(60)
    truth = nets.full_hessian(EmpiricalRisk(net, nn.CrossEntropyLoss(), data))
    risk = EmpiricalRisk(net.float(), nn.CrossEntropyLoss(), [(X.float(), data[0][1])])
    V = torch.randn(1, risk.dim, dtype=torch.float64)
    for engine in ("linearized", "double_backward"):
        product = hp.Hessian(risk, engine=engine).matvecs(V.float()).double()
        assert float((product - V @ truth).norm() / (V @ truth).norm()) < 1e-3


def _many_outputs(parameters: int) -> EmpiricalRisk:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * parameters, 40)).double()
    inputs = torch.randn(5, 1, parameters + 2, dtype=torch.float64)
    return EmpiricalRisk(net, F.cross_entropy, [(inputs, torch.randint(40, (5,)))])


@pytest.mark.parametrize("gradients", [1, 3, 60])
def test_no_more_gradients_are_held_than_the_memory_allows(gradients: int) -> None:
    risk = _many_outputs(20)
    batch = next(iter(risk.terms()))
    budget = max(2 * gradients * risk.theta.nbytes, 4 * 8 * 5 * 40 * 40)
    seen: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: object = None) -> object:
            result = func(*args, **(kwargs or {}))  # type: ignore[operator]
            seen.extend(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
            return result

    with risk.evaluating(), Sizes():
        diagonal = gauss_newton._example_gradients(
            batch, risk.theta, _roots(batch, risk), budget=2 * gradients * risk.theta.nbytes
        )
    assert diagonal is not None
    torch.testing.assert_close(diagonal, nets.full_gauss_newton(risk).diagonal(), rtol=1e-9, atol=1e-13)
    # The gradients and their squares; a few forward values are smaller than one gradient.
    assert max(seen) <= max(gradients, 5) * risk.dim
    whole = GaussNewton(risk, engine="double_backward", memory=budget).exact_diagonal()
    assert whole is not None
    torch.testing.assert_close(whole[0], diagonal)


def _roots(batch: EmpiricalBatch, risk: EmpiricalRisk) -> Tensor:
    blocks = loss_hessians(batch, batch.outputs(risk.theta).detach())
    assert blocks is not None
    return square_roots(blocks)


def test_loss_hessians_beyond_the_memory_are_not_made() -> None:
    risk = _many_outputs(2)
    # The batch of five is taken one example at a time.
    assert GaussNewton(risk, engine="double_backward", memory=4 * 8 * 40 * 40 - 1).exact_diagonal() is None
    assert GaussNewton(risk, engine="double_backward", memory=4 * 8 * 40 * 40).exact_diagonal() is not None


def test_the_cost_is_the_number_of_passes() -> None:
    """A softmax over C classes: C - 1 backward passes, two backward and four forward passes beside them."""
    for classes in (2, 5):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(8, classes)).double()
        risk = EmpiricalRisk(net, F.cross_entropy, [(torch.randn(7, 1, 6).double(), torch.randint(classes, (7,)))])
        counts = {"forward": 0.0, "backward": 0.0}

        class Convolutions(TorchDispatchMode):
            def __torch_dispatch__(
                self, func: object, types: object, args: tuple = (), kwargs: object = None, counts: dict = counts
            ) -> object:
                name = str(func)
                if name.startswith("aten.convolution"):
                    # A block of directions is folded into the examples of one call.
                    kind = "backward" if "backward" in name else "forward"
                    # Seven examples, one after the other.
                    counts[kind] += args[0].numel() / (7 * 8) if kind == "backward" else args[0].shape[0] / 7
                return func(*args, **(kwargs or {}))  # type: ignore[operator]

        with risk.evaluating():
            G = GaussNewton(risk, engine="double_backward")
            with Convolutions():
                known = G.exact_diagonal()
        assert known is not None
        # Two more forward passes show that the losses of single examples add up.
        assert known[1] == pytest.approx((2 * classes + 8 + 2) / 6)
        assert counts["backward"] == pytest.approx(classes - 1 + 2)
        assert counts["forward"] == pytest.approx(4 + 2)


def test_an_activation_in_place_does_not_cost_the_fast_path() -> None:
    torch.manual_seed(1)
    risk = EmpiricalRisk(_inplace().double(), F.cross_entropy, [(X, LABELS)])
    (batch,) = risk.terms()
    blocks = loss_hessians(batch, batch.outputs(risk.theta).detach())
    assert blocks is not None
    # Without a copy of each layer's output the layers do not add up, and the slow path hides it.
    assert _linear_layers(batch, risk.theta, square_roots(blocks)) is not None

"""What was once silently wrong is refused in a sentence, or right; and what is legitimate is let through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hessprobe.errors import UnsupportedError
from hessprobe.hvp import ENGINES, Hessian
from hessprobe.objective import EmpiricalRisk

G = torch.Generator().manual_seed(0)
X = torch.randn(8, 4, dtype=torch.float64, generator=G)
Y = torch.randint(3, (8,), generator=G)
T = torch.randn(8, 3, dtype=torch.float64, generator=G)


def _net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def _sum(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="sum")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("loss", [_sum, lambda f, y: _sum(f, y) / 32, nn.KLDivLoss(reduction="sum")])
def test_a_sum_over_the_batch_is_refused(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    targets = torch.full((8, 3), 1 / 3, dtype=dtype) if isinstance(loss, nn.KLDivLoss) else Y
    data = [(X.to(dtype), targets)]
    with pytest.raises(
        ValueError, match=r"mean over the batch; got .*, which sums: .*two parts .*weighting='examples'"
    ):
        EmpiricalRisk(_net(dtype), loss, data)
    assert EmpiricalRisk(_net(dtype), loss, data, weighting="examples").n_units == 8
    assert EmpiricalRisk(_net(dtype), loss, data, check=False).n_units == 8


def _ranking(outputs: Tensor, targets: Tensor) -> Tensor:
    scores = outputs[:, 0]
    return F.softplus(scores[None] - scores[:, None]).mean() + 0 * targets.sum()


@pytest.mark.parametrize(
    "loss",
    [
        lambda f, y: F.cross_entropy(f, y),
        lambda f, y: F.cross_entropy(f, y, weight=torch.tensor([1.0, 5.0, 0.1]).double()),
        _ranking,
        lambda f, y: 0 * f.sum(),
        lambda f, y: F.cross_entropy(f.view(8, 3), y),
    ],
    ids=["mean", "class weights", "examples see each other", "zero", "one size only"],
)
def test_other_losses_are_no_sums(loss: Callable[..., Tensor]) -> None:
    assert EmpiricalRisk(_net(), loss, [(X, Y)]).n_units == 8


class Cut(nn.Module):
    """A hidden layer that some operation cuts off from the loss."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                hidden = self.first(x)
        elif self.how == "detach":
            hidden = self.first(x).detach()
        elif self.how == "data":
            hidden = F.linear(x, self.first.weight.data, self.first.bias)
        else:
            hidden = self.first(x)
        scale = self.scale.item() if self.how == "item" else self.scale
        return self.last(scale * torch.tanh(hidden))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("how", "name"),
    [("no_grad", "first.weight"), ("detach", "first.weight"), ("data", "first.weight"), ("item", "scale")],
)
def test_parameters_cut_off_from_the_loss_are_named(how: str, name: str, dtype: torch.dtype) -> None:
    data = [(X.to(dtype), Y)]
    with pytest.raises(
        UnsupportedError, match=f"'{name}' moves the loss but has no gradient.*leave .* out with params="
    ):
        EmpiricalRisk(Cut(how).to(dtype), F.cross_entropy, data)
    EmpiricalRisk(Cut("not").to(dtype), F.cross_entropy, data)
    # Left out, it is a constant, and the curvature in the rest is right.
    EmpiricalRisk(Cut(how).to(dtype), F.cross_entropy, data, params="last.*")


def _stationary() -> EmpiricalRisk:
    net = _net()
    with torch.no_grad():
        return EmpiricalRisk(net, nn.MSELoss(), [(X, net(X))])


def _absolute() -> EmpiricalRisk:
    net = _net()
    with torch.no_grad():
        return EmpiricalRisk(net, nn.L1Loss(), [(X, net(X))])


def _zero_head() -> EmpiricalRisk:
    net = _net()
    nn.init.zeros_(net[2].weight)
    return EmpiricalRisk(net, F.cross_entropy, [(X, Y)])


def _dead() -> EmpiricalRisk:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    nn.init.constant_(net[0].bias, -30.0)
    return EmpiricalRisk(net, F.cross_entropy, [(X, Y)])


def _unused() -> EmpiricalRisk:
    return nets.odd().risk()


@pytest.mark.parametrize("make", [_stationary, _absolute, _zero_head, _dead, _unused])
def test_a_gradient_that_is_truly_zero_is_no_cut(make: Callable[[], EmpiricalRisk]) -> None:
    assert make().dim > 0


class HalfCut(nn.Module):
    """Every parameter has a gradient, but not the whole of it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        if self.how == "detach":
            hidden = hidden * hidden.detach()
        elif self.how == "no_grad":
            with torch.no_grad():
                norm = hidden.norm(dim=1, keepdim=True)
            hidden = hidden / norm
        elif self.how == "item":
            hidden = hidden / hidden.std().item()
        elif self.how == "straight-through":
            hidden = hidden + (torch.round(4 * hidden) / 4 - hidden).detach()
        return self.last(hidden)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("how", ["detach", "no_grad", "item", "straight-through"])
def test_a_derivative_that_is_cut_in_part_is_refused(how: str, dtype: torch.dtype) -> None:
    risk = EmpiricalRisk(HalfCut(how).to(dtype), F.cross_entropy, [(X.to(dtype), Y)])
    V = torch.ones(1, risk.dim, dtype=dtype)
    with pytest.raises(
        UnsupportedError, match=r"gradient of the loss is not its slope .*the gradient says.*straight-through"
    ):
        Hessian(risk).matvecs(V)
    with pytest.raises(UnsupportedError, match="not its slope"):
        next(iter(Hessian(risk, engine="double_backward").terms()))
    whole = EmpiricalRisk(HalfCut("not").to(dtype), F.cross_entropy, [(X.to(dtype), Y)])
    assert Hessian(whole).matvecs(V).isfinite().all()


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.reentrant = reentrant

    def _inner(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self._inner(x) if self.reentrant is None else checkpoint(self._inner, x, use_reentrant=self.reentrant)
        return self.last(hidden)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_checkpointed_parts_are_differentiated_where_the_loss_was_taken(reentrant: bool, engine: str) -> None:
    data = [(X, Y), (X.flip(0), Y)]
    plain = EmpiricalRisk(Checkpointed(None).double(), F.cross_entropy, data)
    module = Checkpointed(reentrant).double()
    risk = EmpiricalRisk(module, F.cross_entropy, data)
    elsewhere = risk.theta + 0.3
    torch.testing.assert_close(risk.gradient(elsewhere), plain.gradient(elsewhere), rtol=1e-12, atol=1e-14)
    V = torch.randn(2, risk.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = V @ nets.full_hessian(plain)
    torch.testing.assert_close(Hessian(risk, engine=engine).matvecs(V), expected, rtol=1e-7, atol=1e-9)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert "activation checkpointing off (it would differentiate at the module's own parameters)" in risk.notes
    assert not [note for note in plain.notes if "checkpointing" in note]
    # Outside it checkpoints as before.
    F.cross_entropy(module(X.clone().requires_grad_()), Y).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def _double(x: Tensor) -> Tensor:
    return 2 * torch.tanh(x)


class Compiled(nn.Module):
    """A function compiled by a backend that gets the values wrong."""

    def __init__(self, backend: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.inner = torch.compile(_double, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.first(x)))


@pytest.mark.parametrize("engine", ["auto", "linearized", "double_backward", "forward_over_reverse"])
def test_compiled_functions_inside_the_module_run_eagerly(engine: str) -> None:
    calls = []

    def backend(graph: Any, examples: Any) -> Callable[..., Any]:
        calls.append(1)
        return lambda *args: tuple(3 * out for out in graph.forward(*args))

    module = Compiled(backend).double()
    risk = EmpiricalRisk(module, F.cross_entropy, [(X, Y)])
    V = torch.randn(2, risk.dim, dtype=torch.float64)
    product = Hessian(risk, engine=engine).matvecs(V)
    assert not calls
    module.inner = _double
    expected = V @ nets.full_hessian(EmpiricalRisk(module, F.cross_entropy, [(X, Y)]))
    torch.testing.assert_close(product, expected, rtol=1e-10, atol=1e-13)


def test_inputs_that_do_not_fit_the_model_are_said_with_their_shapes() -> None:
    message = r"got \(8, 2\) torch.float64, and 0 \(Linear, in_features=4.* failed: .*8x2 and 4x5.*Check the shapes"
    with pytest.raises(ValueError, match=message) as caught:
        EmpiricalRisk(_net(), F.cross_entropy, [(X[:, :2], Y)])
    assert isinstance(caught.value.__cause__, RuntimeError)
    embedding = nn.Sequential(nn.Embedding(3, 4), nn.Flatten(), nn.Linear(8, 3)).double()
    with pytest.raises(ValueError, match=r"\(2, 2\) torch.int64, and 0 \(Embedding.* failed: index out of range"):
        EmpiricalRisk(embedding, F.cross_entropy, [(torch.tensor([[0, 7], [1, 1]]), Y[:2])])
    with pytest.raises(ValueError, match=r"the model itself \(Sequential\) failed: .*positional argument"):
        EmpiricalRisk(_net(), F.cross_entropy, [((X, X), Y)])
    with pytest.raises(ValueError, match=r"inputs must fit the model; got \(8, 2\)"):
        EmpiricalRisk(Named(), F.cross_entropy, [{"x": X[:, :2], "labels": Y}])


def test_the_fix_is_that_of_the_cause() -> None:
    with pytest.raises(ValueError, match=r"labels are 0 to 4, and the model has outputs for 3 classes, 0 to 2: numb"):
        EmpiricalRisk(_net(), F.cross_entropy, [(X[:2], torch.tensor([0, 4]))])
    with pytest.raises(ValueError, match=r"must have the same dtype.*Convert the inputs to the dtype .*torch.float64"):
        EmpiricalRisk(_net(), F.cross_entropy, [(X.long(), Y)])
    with pytest.raises(ValueError, match=r"Convert the targets: class labels to int64"):
        EmpiricalRisk(_net(), F.cross_entropy, [(X, Y.int())])


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = _net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_numpy_batches_are_those_of_tensors() -> None:
    plain = EmpiricalRisk(_net(), F.cross_entropy, [(X[:5], Y[:5]), (X[5:], Y[5:])])
    arrays = [(X[:5].numpy(), Y[:5].numpy()), (X[5:].numpy(), Y[5:].numpy())]
    arrays[0][0].flags.writeable = False
    risk = EmpiricalRisk(_net(), F.cross_entropy, arrays)
    assert torch.equal(risk.loss(), plain.loss())
    assert risk.fingerprint() == plain.fingerprint()
    named = EmpiricalRisk(Named(), F.cross_entropy, [{"x": a, "labels": b} for a, b in arrays])
    assert torch.equal(named.loss(), plain.loss())
    with pytest.raises(TypeError, match=r"dtype of the parameters, torch.float32; got torch.float64. Convert one"):
        EmpiricalRisk(_net(torch.float32), F.cross_entropy, arrays)
    with pytest.raises(TypeError, match="arrays in data must hold numbers; got dtype <U1"):
        EmpiricalRisk(_net(), F.cross_entropy, [(np.array(["a", "b"]), Y[:2])])

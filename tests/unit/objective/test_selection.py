from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprobe.errors import NonFiniteError
from hessprobe.objective import EmpiricalRisk, select_parameters


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(6, 4)
        self.layer1 = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.unused = nn.Linear(3, 2)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer1(self.embed(tokens)))


DATA = [(torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 3, 5]))]
LAYER1 = ["layer1.0.weight", "layer1.0.bias", "layer1.2.weight", "layer1.2.bias"]


def test_every_way_to_choose() -> None:
    model = Tied()
    ways = {
        "glob over names": "layer1.*",
        "name of a module": "layer1",
        "list of globs": ["layer1.0", "layer1.2.*"],
        "regex": re.compile(r"^layer1\."),
        "predicate": lambda name, p: name.startswith("layer1"),
        "module": model.layer1,
        "parameters": list(model.layer1.parameters()),
        "iterator": model.layer1.parameters(),
        "mixed": [model.layer1[0], "layer1.2.weight", model.layer1[2].bias],
    }
    for name, params in ways.items():
        assert list(select_parameters(model, params)) == LAYER1, name
    assert list(select_parameters(model, "*.bias")) == ["layer1.0.bias", "layer1.2.bias", "unused.bias"]


def test_tied_parameters_count_once_and_answer_to_both_names() -> None:
    model = Tied()
    names = list(select_parameters(model))
    assert names == ["embed.weight", *LAYER1, "unused.weight", "unused.bias"]
    assert list(select_parameters(model, "head")) == ["embed.weight"]
    risk = EmpiricalRisk(model, F.cross_entropy, DATA)
    F.cross_entropy(model(DATA[0][0]), DATA[0][1]).backward()
    expected = model.embed.weight.grad.flatten()
    torch.testing.assert_close(risk.gradient()[risk.layout.slices["embed.weight"]], expected, rtol=1e-12, atol=1e-15)


def test_unused_parameters_have_exactly_zero_rows() -> None:
    risk = EmpiricalRisk(Tied(), F.cross_entropy, DATA)
    (term,) = risk.terms()
    hessian = torch.func.hessian(term)(risk.theta)
    unused = [risk.layout.slices[name] for name in ("unused.weight", "unused.bias")]
    for part in unused:
        assert not hessian[part].any()
        assert not hessian[:, part].any()
    assert bool(hessian[risk.layout.slices["layer1.0.weight"]].any())


def test_frozen_parameters_are_left_out() -> None:
    model = Tied()
    model.layer1.requires_grad_(False)
    assert list(select_parameters(model)) == ["embed.weight", "unused.weight", "unused.bias"]
    assert list(select_parameters(model, "*.bias")) == ["unused.bias"]
    with pytest.raises(
        ValueError, match=r"params must match a trainable parameter; got 'layer1', which matches only frozen"
    ):
        select_parameters(model, "layer1")


def test_messages() -> None:
    model = Tied()
    with pytest.raises(ValueError, match=r"params must match a parameter; got 'layr1\.\*', .* Did you mean 'layer1'\?"):
        select_parameters(model, "layr1.*")
    with pytest.raises(ValueError, match="params must match a parameter; got 'nowhere'"):
        select_parameters(model, ["layer1", "nowhere"])
    with pytest.raises(ValueError, match="params must match a trainable parameter; got a function, which matches none"):
        select_parameters(model, lambda name, p: False)
    with pytest.raises(ValueError, match="params must belong to the module; got a Linear that does not"):
        select_parameters(model, nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"params must be None, a glob, .*; got int"):
        select_parameters(model, 3)
    with pytest.raises(
        ValueError, match="module must have a trainable parameter; got Tanh with 0 parameters, none at all"
    ):
        select_parameters(nn.Tanh())
    with pytest.raises(ValueError, match="got Linear with 2 parameters, all frozen"):
        select_parameters(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match="parameter 'weight' must hold values; got a meta tensor"):
        select_parameters(nn.Linear(2, 2, device="meta"))


def test_mixed_dtypes_are_refused_with_both_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(TypeError, match=r"got torch.float32 \('0.weight'\) and torch.float64 \('1.weight'\)"):
        select_parameters(model)
    assert list(select_parameters(model, "1")) == ["1.weight", "1.bias"]


def test_nan_and_inf_are_named() -> None:
    model = Tied()
    with torch.no_grad():
        model.layer1[2].weight[0, :2] = torch.tensor([float("nan"), float("inf")])
    with pytest.raises(NonFiniteError, match=r"parameter 'layer1.2.weight' must be finite; got 1 nan and 1 inf of 16"):
        EmpiricalRisk(model, F.cross_entropy, DATA)
    norm = nn.BatchNorm1d(2)
    norm.running_var[0] = float("nan")
    with pytest.raises(NonFiniteError, match="buffer 'running_var' must be finite; got 1 nan"):
        EmpiricalRisk(norm, F.mse_loss, [(torch.ones(3, 2), torch.ones(3, 2))])


class Narrow(nn.Module):
    """A layer whose other weights are frozen in eight bits, and widened where they are used."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.own = nn.Linear(2, 2)
        kept = torch.tensor([[first, 1.0], [0.5, -2.0]]).to(torch.float8_e4m3fn)
        self.kept = nn.Parameter(kept, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own(x) @ self.kept.float()


def test_weights_frozen_in_eight_bits_are_looked_at_as_others_are() -> None:
    data = [(torch.ones(3, 2), torch.ones(3, 2))]
    assert EmpiricalRisk(Narrow(1.0), F.mse_loss, data).dim == 6
    with pytest.raises(NonFiniteError, match="parameter 'kept' must be finite; got 1 nan and 0 inf of 4"):
        EmpiricalRisk(Narrow(float("nan")), F.mse_loss, data)


def test_complex_parameters_are_coordinates_by_their_parts() -> None:
    module = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1, bias=False, dtype=torch.complex64))
    risk = EmpiricalRisk(
        module, None, [torch.ones(3, 2)], forward=lambda m, x: (m[1](m[0](x).to(torch.complex64)).abs().sum(), len(x))
    )
    weight = module[1].weight.detach()
    assert risk.layout.shapes[-1] == (1, 1, 2)
    assert risk.theta[-2:].tolist() == [float(weight.real), float(weight.imag)]
    assert risk.theta.dtype == torch.float32
    assert "complex 1.weight by real and imaginary parts" in risk.notes
    mixed = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1, dtype=torch.complex128))
    with pytest.raises(TypeError, match=r"must share one precision; got torch.float32 .* and torch.complex128"):
        EmpiricalRisk(mixed, nn.MSELoss(), [(torch.ones(3, 2), torch.ones(3, 1))])

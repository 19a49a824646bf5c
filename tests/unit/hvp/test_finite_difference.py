"""The step follows each direction's own bend and the rounding of the gradient; kinks are no curvature."""

from __future__ import annotations

import copy

import nets
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprobe as hp
from hessprobe.hvp import Hessian
from hessprobe.hvp.differences import FiniteDifference


def test_the_error_does_not_depend_on_the_length_of_the_vector() -> None:
    risk = nets.mlp().risk()
    hessian = nets.full_hessian(risk)
    v = torch.randn(1, risk.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    H = Hessian(risk, engine="finite_difference")
    for scale in (1e-6, 1.0, risk.dim**0.5, 1e6):
        expected = scale * v @ hessian
        assert float((H.matvecs(scale * v) - expected).norm() / expected.norm()) < 1e-8
    assert float(H.matvecs(0 * v).norm()) == 0.0


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.head = nn.LayerNorm(6), nn.Linear(6, 18), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return self.head((x + torch.softmax(q @ k.transpose(-1, -2), -1) @ v).mean(1))


def mlp(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 3))


def problem(module: nn.Module, *inputs: int, n: int = 24) -> tuple[hp.EmpiricalRisk, hp.EmpiricalRisk]:
    """The same risk, given in float32, in both precisions."""
    generator = torch.Generator().manual_seed(7)
    x, y = torch.randn(n, *inputs, generator=generator), torch.randint(3, (n,), generator=generator)
    fine = copy.deepcopy(module).double()
    loss = nn.CrossEntropyLoss()
    return hp.EmpiricalRisk(module.float(), loss, [(x, y)]), hp.EmpiricalRisk(fine, loss, [(x.double(), y)])


def directions(hessian: Tensor) -> Tensor:
    """Random signs, two coordinates of a row that is not 0, and the largest eigenvector; all of length 1."""
    d = len(hessian)
    signs = torch.randint(2, (1, d), generator=torch.Generator().manual_seed(5)) * 2.0 - 1
    lengths = hessian.norm(dim=1)
    units = torch.eye(d)[[int(lengths.argmax()), int(lengths.argsort()[d // 2])]]
    top = torch.linalg.eigh(hessian)[1][:, -1:].T.float()
    return torch.cat([signs / d**0.5, units, top])


def errors(single: hp.EmpiricalRisk, fine: hp.EmpiricalRisk) -> Tensor:
    hessian = Hessian(fine, engine="double_backward").matvecs(torch.eye(fine.dim, dtype=torch.float64))
    V = directions(hessian)
    expected = V.double() @ hessian
    made = Hessian(single, engine="finite_difference").matvecs(V.to(single.dtype)).double()
    return (made - expected).norm(dim=1) / expected.norm(dim=1)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("make", "scale", "allowed"),
    [
        # A step of eps^(1/3) (1 + ||theta||), whatever the direction, is off by 2e-4, 1, 3, 13, 1 and 3e-4 at most.
        (lambda: mlp(nn.Tanh), 1.0, 4e-4),
        (lambda: mlp(nn.Tanh), 30.0, 2e-2),
        (lambda: mlp(nn.ReLU), 1.0, 4e-4),
        (lambda: mlp(nn.ReLU), 100.0, 1e-3),
        (Attention, 3.0, 1e-2),
        (lambda: mlp(nn.GELU), 0.1, 1e-3),
    ],
    ids=["tanh", "large tanh", "ReLU", "large ReLU", "large attention", "small GELU"],
)
def test_float32_products_of_every_kind_of_network(make, scale: float, allowed: float, seed: int) -> None:
    torch.manual_seed(seed)
    module = make()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale)
    found = errors(*problem(module, *((5, 6) if isinstance(module, Attention) else (6,))))
    assert float(found.max()) < allowed, found


class Of(nn.Module):
    """A network whose hidden layer is any function of its values."""

    def __init__(self, bent) -> None:
        super().__init__()
        self.first, self.last, self.bent = nn.Linear(6, 16), nn.Linear(16, 3), bent

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bent(self.first(x))
        return self.last(torch.tanh(hidden.flatten(1)[:, :16] if hidden.shape[-1] == 16 else F.pad(hidden, (0, 8))))


KINKED = {
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu in place, by position": lambda x: F.relu(x, True),
    "module": nn.ReLU(),
    "torch.relu": torch.relu,
    "method": lambda x: x.relu(),
    "what is written into counts": lambda x: (torch.relu_(x), x)[1],
    "relu6": F.relu6,
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "leaky module in place": nn.LeakyReLU(0.3, inplace=True),
    "hardtanh": lambda x: F.hardtanh(x, -0.4, 0.3),
    "threshold": nn.Threshold(0.1, 0.5),
    "abs": torch.abs,
    "operator": abs,
    "clamp": lambda x: x.clamp(-0.2, 0.7),
    "clamp by name": lambda x: x.clamp(min=0.1),
    "clamp_min in place": lambda x: x.clamp_min_(0.1),
    "max_pool1d": lambda x: F.max_pool1d(x, 2),
    "max_pool2d": lambda x: nn.MaxPool2d(2, stride=1, padding=1)(x.view(-1, 1, 4, 4)).flatten(1)[:, :16],
    "adaptive": lambda x: nn.AdaptiveMaxPool1d(8)(x),
    "two of them": lambda x: F.relu(x.abs() - 0.3),
}


@pytest.mark.parametrize("name", list(KINKED))
def test_no_kink_is_taken_for_curvature(name: str) -> None:
    torch.manual_seed(3)
    found = errors(*problem(Of(KINKED[name]), 6))
    assert float(found.max()) < 1e-3, found


def test_what_keeps_its_kinks_says_by_how_much_it_is_off() -> None:
    torch.manual_seed(3)
    single, fine = problem(mlp(nn.PReLU), 6, n=4000)
    assert float(errors(single, fine).max()) > 0.05
    told = Hessian(single, engine="finite_difference").product_error()
    assert told is not None
    assert told.relative > 0.05


def counted(risk: hp.EmpiricalRisk, vector: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """How many gradients are made before the first product, and for one."""
    from hessprobe.hvp import differences

    calls, real = [], differences.fresh_gradient

    def gradient(loss, theta):
        calls.append(1)
        return real(loss, theta)

    monkeypatch.setattr(differences, "fresh_gradient", gradient)
    (batch,) = risk.terms()
    with risk.evaluating():
        product = FiniteDifference()(batch, risk.theta)
        before = len(calls)
        product(vector[None])
    return before, len(calls) - before


def test_a_random_direction_takes_two_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    single, _ = problem(mlp(nn.Tanh), 6)
    vector = torch.randint(2, (single.dim,)) * 2.0 - 1
    assert counted(single, vector, monkeypatch) == (5, 2)


def test_a_direction_without_curvature_is_zero_and_soon_known(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 3), nn.Threshold(1e9, 0.0), nn.Linear(3, 3))
    single, _ = problem(module, 6)
    vector = torch.zeros(single.dim)
    vector[0] = 1.0
    before, made = counted(single, vector, monkeypatch)
    assert before <= 7
    assert made <= 12
    assert float(Hessian(single, engine="finite_difference").matvecs(vector[None]).norm()) == 0.0


def test_a_step_out_of_the_domain_is_made_shorter() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.large = nn.Parameter(torch.full((1, 1), 1e-4)), nn.Parameter(torch.full((1, 1), 1e3))

        def forward(self, x: Tensor) -> Tensor:
            # Below a weight of 0 the logarithm is nan.
            return x * self.weight.log() + 0 * self.large

    module = Root().double()
    x, y = torch.ones(4, 1).double(), torch.zeros(4, 1).double()
    risk = hp.EmpiricalRisk(module, nn.MSELoss(), [(x, y)])
    v = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    expected = Hessian(risk, engine="double_backward").matvecs(v)
    found = Hessian(risk, engine="finite_difference").matvecs(v)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)

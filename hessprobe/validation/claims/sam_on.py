"""SAM-ON: what it displaces, and what that does on noisy digits (Mueller et al., 2023)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from hessprobe.hvp import Hessian
from hessprobe.krylov import eigsh
from hessprobe.objective import EmpiricalRisk
from hessprobe.optim import SAM, SAMON
from hessprobe.training.datasets import load_dataset
from hessprobe.training.models import MLP
from hessprobe.validation.claim import Claim, Finding, Part, below, near, seen
from hessprobe.validation.dynamics import mean_and_error

_SOURCE = "Mueller et al. (2023)"
_ROUNDING = 1e-13


def ascent() -> Finding:
    """One step on networks with LayerNorm and BatchNorm: where each tensor is in the second pass, and the step."""
    cases = [(norm, no_norm) for norm in ("layer", "batch") for no_norm in (False, True)]
    return Finding(tuple(part for case in cases for part in _one_step(*case)))


def _one_step(norm: str, no_norm: bool) -> list[Part]:
    (model, closure), rho = _small(norm), 0.3
    optimizer = SAMON(torch.optim.SGD(model.parameters(), lr=1.0), rho=rho, model=model, no_norm=no_norm)
    chosen = _flat([torch.full_like(p, float(_owned(model, p) != no_norm)) for p in model.parameters()])
    places: list[Tensor] = []
    slopes: list[Tensor] = []

    def run() -> Tensor:
        model.zero_grad()
        loss = closure()
        torch.autograd.backward(loss)
        places.append(_flat([p.detach() for p in model.parameters()]))
        slopes.append(_flat([_gradient(p) for p in model.parameters()]))
        return loss

    optimizer.step(run)
    moved, step = places[1] - places[0], places[0] - _flat([p.detach() for p in model.parameters()])
    g = slopes[0] * chosen
    # The optimizer adds its eps to the norm.
    slack = _ROUNDING + optimizer.eps / float(g.norm())
    name = f"{norm} norm, {'all but' if no_norm else 'only'} its parameters"
    return [
        near(f"{name}: largest displacement of others", 0.0, float((moved * (1 - chosen)).abs().max()), 0.0),
        below(f"{name}: e against rho g_S/||g_S||", slack, _gap(moved, rho * g / g.norm())),
        below(f"{name}: step against the whole gradient at w + e", _ROUNDING, _gap(step, slopes[1])),
        seen(f"{name}: share of all parameters", float(chosen.mean())),
    ]


def _small(norm: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    source = torch.Generator().manual_seed(0)
    model = _drawn(MLP(6, (8, 8), 3, "tanh", norm).double(), 0)
    inputs = torch.randn(32, 6, generator=source, dtype=torch.float64)
    labels = torch.randint(3, (32,), generator=source)
    return model, lambda: nn.functional.cross_entropy(model(inputs), labels)


def _drawn(model: nn.Module, seed: int) -> nn.Module:
    """Return the model with weights N(0, 2/fan-in) from a generator of their own, and zero biases."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (one for one in model.modules() if isinstance(one, nn.Linear)):
            drawn = torch.randn(layer.weight.shape, generator=source, dtype=torch.float64)
            layer.weight.copy_(drawn * (2 / layer.in_features) ** 0.5)
            layer.bias.zero_()
    return model


def _owned(model: nn.Module, parameter: Tensor) -> bool:
    norms = [layer for layer in model.modules() if isinstance(layer, nn.LayerNorm | nn.BatchNorm1d)]
    return any(parameter is one for layer in norms for one in layer.parameters())


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise ArithmeticError("every parameter must have a gradient here, and one has not.")
    return parameter.grad.clone()


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@dataclass(frozen=True)
class _Data:
    """Digits to train on, some labels wrong, and to test on."""

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


def training(seeds: int, epochs: int) -> Finding:
    """Test accuracy and lambda_max after training on a few digits, one label of five wrong."""
    data = _digits()
    makes: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
        "SGD": _sgd,
        "SAM": lambda model: SAM(_sgd(model), rho=0.1, model=model),
        "SAM-ON": lambda model: SAMON(_sgd(model), rho=0.5, model=model),
        "no-norm": lambda model: SAMON(_sgd(model), rho=0.1, model=model, no_norm=True),
    }
    found = {
        name: np.array([_train(make, data, seed, epochs) for seed in range(seeds)]) for name, make in makes.items()
    }
    parts: list[Part] = []
    for index, what in enumerate(("test accuracy", "lambda_max")):
        mean, error = mean_and_error(found["SGD"][:, index])
        parts.append(seen(f"{what}, SGD", float(mean), float(error)))
        for name in list(makes)[1:]:
            # Runs of one seed share start and order of the examples.
            mean, error = mean_and_error(found[name][:, index] - found["SGD"][:, index])
            parts.append(seen(f"{what}, {name} less SGD", float(mean), float(error)))
    return Finding(tuple(parts))


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def _digits() -> _Data:
    data = load_dataset("digits", part=0.25, label_noise=0.2, seed=0)
    return _Data(*data.split("train"), *data.split("test"))


def _train(
    make: Callable[[nn.Module], torch.optim.Optimizer], data: _Data, seed: int, epochs: int
) -> tuple[float, float]:
    model = _drawn(MLP(64, (64, 64), 10, "relu", "batch"), seed)
    optimizer, order = make(model), torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(data.labels), generator=order), 60):

            def closure(batch: Tensor = batch) -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(data.inputs[batch]), data.labels[batch])
                torch.autograd.backward(loss)
                return loss

            optimizer.step(closure)  # type: ignore[arg-type]  # returns the loss as a tensor
    model.eval()
    with torch.no_grad():
        accuracy = float((model(data.test_inputs).argmax(1) == data.test_labels).double().mean())
    risk = EmpiricalRisk(copy.deepcopy(model), nn.CrossEntropyLoss(), [(data.inputs, data.labels)])
    return accuracy, float(eigsh(Hessian(risk), 1, "largest", tol=0.01, seed=0).values[0])


CLAIMS = (
    Claim(
        "sam-on/ascent",
        "SAM-ON displaces the parameters of normalization layers by rho g_S/||g_S|| and nothing else, and steps along "
        "the whole gradient there.",
        f"{_SOURCE}",
        ascent,
    ),
    Claim(
        "sam-on/training",
        "How accuracy and lambda_max change where only normalization layers, or all but them, are displaced.",
        f"the comparison of {_SOURCE}, here on 64-64-64-10 networks and a quarter of the digits",
        partial(training, 4, 10),
        partial(training, 16, 20),
    ),
)

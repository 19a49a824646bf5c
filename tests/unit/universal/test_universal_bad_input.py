"""Every bad input of the (phi, psi, mu) measures, of sharpness and of transforms; the module stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hessprobe.errors import NonFiniteError, UnsupportedError
from hessprobe.invariance import check_invariance
from hessprobe.measures import MeasureSettings, measure_all
from hessprobe.objective import EmpiricalRisk
from hessprobe.sharpness import ascent_direction, average_direction, worst_direction
from hessprobe.universal import Measure, evaluate, evaluate_from_losses, samplers

GAUSS = samplers.gaussian()


def first(s: Tensor) -> Tensor:
    return s[0]


def same(t: Tensor) -> Tensor:
    return t


def risk_of(dtype: torch.dtype = torch.float64) -> EmpiricalRisk:
    """BatchNorm and dropout in train mode, a frozen layer, a gradient from before: all that could be left changed."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 3), nn.GELU(), nn.Linear(3, 3)
    ).to(dtype)
    net[1].running_var.uniform_(0.5, 2.0)
    net[4].requires_grad_(False)
    net.train()
    net[0].weight.grad = torch.full_like(net[0].weight, 7.0)
    x, y = torch.randn(12, 4, dtype=dtype), torch.randint(3, (12,))
    return EmpiricalRisk(net, nn.CrossEntropyLoss(), [(x, y)])


def measured(name: str, **settings: object) -> Callable[[EmpiricalRisk], object]:
    return lambda risk: list(measure_all([name], risk, MeasureSettings(**settings)))  # type: ignore[arg-type]


def evaluated(phi: Callable[[Tensor], object], psi: Callable[[Tensor], object], n: int = 20) -> Callable[..., object]:
    return lambda risk: evaluate(Measure(phi, psi, GAUSS), risk, n_probes=n)  # type: ignore[arg-type]


def transformed(kind: str) -> Callable[[EmpiricalRisk], object]:
    return lambda risk: list(check_invariance(risk, ["trace"], [kind]))


BAD: dict[str, tuple[Callable[[EmpiricalRisk], object], type[Exception], str]] = {
    "psi of another length": (evaluated(first, lambda t: t[:3]), ValueError, r"psi must return shape \(20,\)"),
    "psi stacked first": (evaluated(first, lambda t: torch.stack([t, t**2])), ValueError, "last dimension"),
    "phi of two numbers": (
        evaluated(lambda s: s.expand(2), same),
        ValueError,
        "phi must return one number; got",
    ),
    "phi of no tensor": (evaluated(lambda s: 1.0, same), TypeError, "phi must return a tensor; got float"),
    "infinite expectation": (evaluated(first, lambda t: torch.exp(1e6 * t)), NonFiniteError, "E psi must be finite"),
    "phi outside its domain": (evaluated(lambda s: torch.log(-(s[0] ** 2)), same), NonFiniteError, r"phi\(s\) must be"),
    "one draw": (evaluated(first, same, n=1), ValueError, r"n_probes must be an integer >= 2; got 1\. .*not biased"),
    "too few for a cumulant": (
        measured("universal:tr4", n_probes=3),
        ValueError,
        r"n_probes must be an integer >= 4; got 3\. tr4 needs that many",
    ),
    "tiny rho, losses": (
        lambda risk: evaluate_from_losses(Measure(first, same, GAUSS), risk, 1e-10, n_probes=4),
        ValueError,
        r"rho must be >= \S+ for float64 at its smallest; got 1e-10, .*drown in the rounding of float64",
    ),
    "tiny radius, measure": (
        measured("universal:frob", n_probes=8, radius=1e-10),
        ValueError,
        r"radius / 2, the smaller of the two in use, must be >= \S+ for float64 at its smallest; got 5e-11",
    ),
    "tiny rho, worst": (
        lambda risk: worst_direction(risk, 1e-17),
        ValueError,
        r"rho must be at least about \S+ in",
    ),
    "tiny rho, ascent": (lambda risk: ascent_direction(risk, 1e-17), ValueError, r"rho must be at least about \S+ in "),
    "tiny rho, average": (
        lambda risk: average_direction(risk, 1e-12, n_probes=4),
        ValueError,
        r"rho must be at least about \S+ in float64; got 1e-12, where the rise of a loss of \S+ drowns",
    ),
    "huge rho": (
        lambda risk: evaluate_from_losses(Measure(first, same, GAUSS), risk, 1e200, n_probes=4),
        ValueError,
        r"rho must be a number in \(0, 1e\+06\]; got 1e\+200",
    ),
    "huge rho, worst": (
        lambda risk: worst_direction(risk, 1e200),
        ValueError,
        r"rho must be a number in \(0, 1e\+06\]",
    ),
    "a determinant that diverges": (
        measured("universal:logdet", n_probes=16, shift=1e-3),
        ValueError,
        r"shift must be above -lambda_min for universal:logdet, .*; got 0.001, and an eigenvalue of at most -",
    ),
    "a Lebesgue determinant of many parameters": (
        measured("universal:lebesgue-det", n_probes=16),
        ValueError,
        "must have at most 8 parameters",
    ),
    "an exponent that overflows": (
        measured("universal:log-exp", n_probes=16, shift=1e-6),
        NonFiniteError,
        r"E psi must be finite; .*For universal:log-exp that is a shift above 1e-06",
    ),
    "losses for the Gauss-Newton matrix": (
        measured("universal:trace", n_probes=16, radius=0.1, operator="ggn"),
        ValueError,
        "Losses know the Hessian only",
    ),
    "no attention": (transformed("qk-rescaling"), UnsupportedError, "got a network without such layers"),
    "an activation": (transformed("unit-rescaling"), UnsupportedError, "GELU 5 is not positively homogeneous"),
    "two activations": (transformed("layer-rescaling"), UnsupportedError, "Tanh 2 is not positively homogeneous"),
}


def state_of(module: nn.Module) -> dict[str, object]:
    tensors = {f"state {name}": tensor.clone() for name, tensor in module.state_dict().items()}
    grads = {f"grad {name}": None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    flags = {f"flags {name}": p.requires_grad for name, p in module.named_parameters()}
    modes = {f"mode {name}": member.training for name, member in module.named_modules()}
    return {**tensors, **grads, **flags, **modes, "random": torch.get_rng_state()}


@pytest.mark.parametrize("case", list(BAD))
@pytest.mark.filterwarnings("ignore::hessprobe.errors.NumericalWarning")
def test_bad_input_is_explained_and_the_module_is_left_alone(case: str) -> None:
    call, kind, message = BAD[case]
    risk = risk_of()
    before, hooks = copy.deepcopy(state_of(risk.module)), dict(risk.module._forward_hooks)
    with pytest.raises(kind, match=message):
        call(risk)
    after = state_of(risk.module)
    assert before.keys() == after.keys()
    for name, value in before.items():
        same_value = torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        assert same_value, name
    assert risk.module._forward_hooks == hooks


def test_lebesgue_determinant_needs_a_positive_definite_matrix() -> None:
    risk = EmpiricalRisk(
        nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh()).double(),
        nn.CrossEntropyLoss(),
        [(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0, 1, 0, 1, 1]))],
    )
    with pytest.raises(ValueError, match="universal:lebesgue-det must have a positive definite matrix; got an"):
        measured("universal:lebesgue-det", n_probes=16)(risk)

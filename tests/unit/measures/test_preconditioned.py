"""Curvature in the coordinates of Adam: P against its steps, the threshold against Adam itself, every way to state."""

from __future__ import annotations

import nets
import pytest
import torch
from stats import assert_agrees
from torch import Tensor

import hessprobe as hp
from hessprobe.errors import UnsupportedError
from hessprobe.objective.preconditioner import of_optimizer, of_state
from hessprobe.training import DataSpec, Recipe
from hessprobe.training.datasets import load_dataset
from hessprobe.training.loop import train
from hessprobe.training.models import build_model, complete_arguments

F64 = torch.float64


def _trained(
    kind: type = torch.optim.Adam, steps: int = 5, **options: object
) -> tuple[nets.Case, torch.optim.Optimizer]:
    case = nets.mlp()
    optimizer = kind(case.module.parameters(), **{"lr": 0.01, **options})
    for _ in range(steps):
        for x, y in case.data:
            optimizer.zero_grad()
            case.loss(case.module(x), y).backward()
            optimizer.step()
    return case, optimizer


def _displaced(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> Tensor:
    before = torch.cat([p.detach().reshape(-1).clone() for p in parameters])
    optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in parameters]) - before


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"betas": (0.5, 0.9), "eps": 1e-3}])
def test_the_preconditioner_is_what_adam_divides_its_momentum_by(options: dict[str, object]) -> None:
    case, optimizer = _trained(**options)
    parameters = list(case.module.parameters())
    P = of_optimizer(optimizer, case.module, case.risk().layout)
    assert P is not None
    # A step whose gradient leaves v, but for its decay, where it is: g^2 = v, or v_max for AMSGrad.
    for p in parameters:
        p.grad = optimizer.state[p]["exp_avg_sq"].sqrt()
    momentum = torch.cat([optimizer.state[p]["exp_avg"].reshape(-1) for p in parameters])
    steps = int(optimizer.state[parameters[0]]["step"])
    moved = _displaced(optimizer, parameters)
    group = optimizer.param_groups[0]
    beta_1, beta_2 = group["betas"]
    momentum = beta_1 * momentum + (1 - beta_1) * torch.cat([p.grad.reshape(-1) for p in parameters])
    # The corrections of the bias are those of one step later.
    denominator = (1 / P.scale**2 / (1 - beta_1**steps) - group["eps"]) * (
        (1 - beta_2**steps) / (1 - beta_2 ** (steps + 1))
    ) ** 0.5
    expected = -group["lr"] * momentum / (1 - beta_1 ** (steps + 1)) / (denominator + group["eps"])
    assert torch.allclose(moved, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("kind", "beta_1", "decay"),
    [
        (torch.optim.Adam, 0.0, 0.0),
        (torch.optim.Adam, 0.9, 0.0),
        (torch.optim.AdamW, 0.9, 0.0),
        (torch.optim.AdamW, 0.6, 2.0),
    ],
)
@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_adam_is_stable_on_a_quadratic_up_to_the_threshold(
    kind: type, beta_1: float, decay: float, factor: float
) -> None:
    variance = torch.tensor([4.0, 0.25, 1.0], dtype=F64)
    x = torch.nn.Parameter(torch.ones(3, dtype=F64))
    optimizer = kind([x], lr=0.05, betas=(beta_1, 0.999), weight_decay=decay)
    module = torch.nn.Module()
    module.x = x

    def frozen() -> None:
        # P held fixed, the corrections of the bias long past.
        optimizer.state[x].update(exp_avg_sq=variance / 0.999, step=torch.tensor(1e6))

    x.grad = torch.zeros_like(x)
    optimizer.step()
    optimizer.state[x].update(exp_avg_sq=variance.clone(), step=torch.tensor(1e6))
    P = of_optimizer(optimizer, module, hp.vectors.ParameterLayout.of({"x": x}))
    assert P is not None
    assert P.threshold is not None
    assert torch.allclose(P.scale, variance**-0.25, rtol=1e-7)
    curvature = torch.linalg.qr(torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(0))).Q
    curvature = curvature @ torch.diag(torch.tensor([1.0, 0.6, 0.3], dtype=F64)) @ curvature.T
    H = curvature * (factor * P.threshold) / P.scale[:, None] / P.scale
    assert float(torch.linalg.eigvalsh(H * P.scale[:, None] * P.scale)[-1]) == pytest.approx(factor * P.threshold)
    for _ in range(4000):
        frozen()
        # The gradient's own square is kept out of v by the step itself: v <- 0.999 v + 0.001 g^2 with g^2 taken off.
        x.grad = H @ x.detach()
        optimizer.state[x]["exp_avg_sq"] -= 0.001 / 0.999 * x.grad.square()
        optimizer.step()
        if float(x.detach().norm()) > 1e6:
            break
    size = float(x.detach().norm())
    assert (size < 1e-6) if factor < 1 else (size > 10)


def _dense(risk: hp.EmpiricalRisk, scale: Tensor) -> Tensor:
    H = nets.full_hessian(risk)
    return torch.linalg.eigvalsh(scale[:, None] * H * scale)


def test_the_measure_is_the_largest_eigenvalue_of_the_dense_matrix_and_tells_the_threshold() -> None:
    case, optimizer = _trained(torch.optim.AdamW, weight_decay=0.1)
    risk = case.risk()
    scale = 1 / torch.cat(
        [
            ((1 - 0.9**20) * ((optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**20)).sqrt() + 1e-8)).sqrt().reshape(-1)
            for p in case.module.parameters()
        ]
    )
    found = hp.measure("preconditioned-lambda-max", risk, optimizer=optimizer, per_layer=True)
    values = _dense(risk, scale)
    assert_agrees(found, float(values[-1]), 0.05 * float(values[-1]))
    threshold = 3.8 / (0.1 * 0.01) * (1 - 0.01 * 0.1 / 2)
    assert float(found.details["arrays"]["threshold"]) == pytest.approx(threshold, rel=1e-12)
    assert f"stable up to {threshold:.5g}" in found.details["notes"][0]
    for name, where in risk.layout.slices.items():
        block = nets.full_hessian(risk)[where, where] * scale[where, None] * scale[where]
        assert float(found.layers[name]) == pytest.approx(float(torch.linalg.eigvalsh(block)[-1]), rel=0.02)
    # Frozen at its making: training on does not move what was measured.
    assert risk.preconditioner is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_decay": 0.1}, "part of its gradient"),
        ({"lr": 0.0}, "the learning rate is 0"),
    ],
)
def test_without_a_threshold_the_reason_is_said(change: dict[str, object], words: str) -> None:
    case, optimizer = _trained(**change)
    found = hp.measure("preconditioned-lambda-max", case.risk(), optimizer=optimizer)
    assert words in found.details["notes"][0]
    assert "threshold" not in found.details["arrays"]


def test_groups_that_differ_and_a_step_of_sam_have_no_threshold() -> None:
    case = nets.mlp()
    first, *others = case.module.parameters()
    optimizer = torch.optim.Adam([{"params": [first], "lr": 0.1}, {"params": others}], lr=0.01)
    wrapped = hp.optim.SAM(torch.optim.Adam(case.module.parameters()), rho=0.05)
    for each in (optimizer, wrapped):

        def closure(each: torch.optim.Optimizer = each) -> Tensor:
            each.zero_grad()
            loss = case.loss(case.module(case.data[0][0]), case.data[0][1])
            loss.backward()
            return loss

        each.step(closure)
    layout = case.risk().layout
    differing, ascent = of_optimizer(optimizer, case.module, layout), of_optimizer(wrapped, case.module, layout)
    assert differing is not None
    assert "groups of the optimizer differ" in differing.reason
    assert ascent is not None
    assert ascent.threshold is None
    assert "sharpness-aware" in ascent.reason


@pytest.mark.parametrize("optimizer", [None, "sgd", "new"])
def test_without_a_state_of_adam_it_is_refused(optimizer: str | None) -> None:
    case = nets.mlp()
    given = {"sgd": torch.optim.SGD, "new": torch.optim.Adam}.get(optimizer or "")
    more = {} if given is None else {"optimizer": given(case.module.parameters(), lr=0.1)}
    with pytest.raises(UnsupportedError, match="needs the state of Adam"):
        hp.measure("preconditioned-lambda-max", case.risk(), **more)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim"):
        hp.measure("trace", case.risk(), optimizer=3)


def test_parameters_that_adam_has_not_moved_are_fixed() -> None:
    case = nets.odd()
    optimizer = torch.optim.Adam(case.module.parameters(), lr=0.01)
    case.loss(case.module(case.data[0][0]), case.data[0][1]).backward()
    optimizer.step()
    risk = case.risk()
    found = hp.measure("preconditioned-lambda-max", risk, optimizer=optimizer)
    P = of_optimizer(optimizer, case.module, risk.layout)
    assert P is not None
    assert int((P.scale == 0).sum()) == 2
    assert not bool(P.scale[risk.layout.slices["unused"]].any())
    assert "2 parameters that Adam has not moved" in found.details["notes"][1]
    assert float(found) == pytest.approx(float(_dense(risk, P.scale)[-1]), rel=0.02)


def test_some_parameters_alone_take_their_part_of_p() -> None:
    case, optimizer = _trained()
    whole, part = case.risk(), case.risk(params="2.*")
    P, Q = (of_optimizer(optimizer, case.module, each.layout) for each in (whole, part))
    assert P is not None
    assert Q is not None
    assert torch.equal(Q.scale, P.scale[-part.dim :])


@pytest.mark.parametrize("kind", [torch.optim.NAdam, torch.optim.RAdam, torch.optim.SGD])
def test_states_of_other_optimizers_are_not_read_as_adam(kind: type) -> None:
    case, optimizer = _trained(kind)
    names = [name for name, _ in case.module.named_parameters()]
    assert of_state(optimizer.state_dict(), names, case.risk().layout) is None


@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_a_checkpoint_holds_the_state_of_the_parameters_in_the_order_of_its_groups(
    decay: str, tmp_path: object
) -> None:
    data = load_dataset("digits")
    arguments = complete_arguments("mlp", {"hidden": [4]}, data.implied_arguments)
    recipe = Recipe(
        optimizer="adamw", base="adamw", lr=0.01, epochs=1, weight_decay=0.1, decay=decay, schedule="constant"
    )
    trained = train(build_model("mlp", arguments, 0), data, recipe)
    spec = DataSpec("digits", "vector", data.sha256)
    path = hp.save_checkpoint(
        tmp_path / "adam.pt", model=trained.model, model_name="mlp", model_arguments=arguments, data=spec,
        recipe=recipe, optimizer=trained.optimizer, metrics={},
    )  # fmt: skip
    risk = hp.load_checkpoint(path).risk(examples=50)
    expected = of_optimizer(trained.optimizer, trained.model, risk.layout)
    assert risk.preconditioner is not None
    assert expected is not None
    assert torch.equal(risk.preconditioner.scale, expected.scale)
    assert risk.preconditioner.threshold == expected.threshold == pytest.approx(3.8 / 0.001 * (1 - 0.0005))


def test_the_tracker_tells_value_and_threshold_at_every_step() -> None:
    case, optimizer = _trained(steps=1)
    tracker = hp.SharpnessTracker(
        case.module, case.loss, case.data, measures=["preconditioned-lambda-max"], optimizer=optimizer
    )
    point = tracker.step(4)
    assert point is not None
    P = of_optimizer(optimizer, case.module, case.risk().layout)
    assert P is not None
    assert point.edge.preconditioned == P.threshold == pytest.approx(3800.0)
    exact = float(_dense(case.risk(), P.scale)[-1])
    assert point.values["preconditioned-lambda-max"] == pytest.approx(exact, rel=0.05)
    assert tracker.rows()[0]["threshold_preconditioned"] == P.threshold


def test_before_the_first_step_a_track_leaves_it_out() -> None:
    case = nets.mlp()
    optimizer = torch.optim.Adam(case.module.parameters(), lr=0.01)
    how = {"measures": ["preconditioned-lambda-max"], "optimizer": optimizer}
    tracker = hp.SharpnessTracker(case.module, case.loss, case.data, **how)
    point = tracker.step(0)
    assert point is not None
    assert list(point.values) == ["lambda-max"]
    with pytest.raises(UnsupportedError, match="needs the state of Adam"):
        tracker.step(1)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_real_and_imaginary_parts_are_moved_as_two_parameters(amsgrad: bool) -> None:
    class Moduli(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts = torch.linspace(-1, 1, 6, dtype=F64), torch.linspace(2, 1, 6, dtype=F64)
            self.w = torch.nn.Parameter(torch.complex(*parts).view(3, 2))
            self.b = torch.nn.Parameter(torch.zeros(2, dtype=F64))

        def forward(self, x: Tensor) -> Tensor:
            return (x.cdouble() @ self.w).abs() + self.b

    module = Moduli()
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(7, width, dtype=F64, generator=generator) for width in (3, 2))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01, eps=1e-4, amsgrad=amsgrad)
    for scale in (1.0, 2.0, 0.1):
        optimizer.zero_grad()
        (scale * torch.nn.functional.mse_loss(module(x), y)).backward()
        optimizer.step()
    risk = hp.EmpiricalRisk(module, torch.nn.MSELoss(), [(x, y)])
    states = [optimizer.state[p]["max_exp_avg_sq" if amsgrad else "exp_avg_sq"] for p in module.parameters()]
    v = torch.cat([(torch.view_as_real(s) if s.is_complex() else s).reshape(-1) for s in states])
    P = (1 - 0.9**3) * ((v / (1 - 0.999**3)).sqrt() + 1e-4)
    dense = hp.Hessian(risk).to_dense() / P.sqrt() / P.sqrt()[:, None]
    found = hp.measure("preconditioned-lambda-max", risk, optimizer=optimizer, rtol=1e-6)
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-5)

"""Thresholds: against the spectral radius of the step itself, real optimizers on quadratics, and SAM's own bounce."""

from __future__ import annotations

import math

import pytest
import torch

from hessprobe.optim import SAM, USAM, UnifiedSAM
from hessprobe.optim.rules.neighborhood import ASAM
from hessprobe.tracking.stability import StepRule, edge, rule_of_optimizer, rule_of_recipe


def growth(rule, a, steps=200):
    """Return |x_n| / |x_0| of torch's own optimizer on a x^2 / 2, for a linear ascent (rho multiplies the gradient)."""
    x = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    base = torch.optim.SGD([x], lr=rule.lr, momentum=rule.momentum, dampening=rule.dampening, nesterov=rule.nesterov,
                           weight_decay=rule.weight_decay)  # fmt: skip
    optimizer = USAM(base, rho=rule.rho)

    def closure():
        optimizer.zero_grad()
        loss = a * x.square().sum() / 2
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return float(x.detach().abs())


@pytest.mark.parametrize(
    "rule",
    [
        StepRule(0.1),
        StepRule(0.1, momentum=0.9),
        StepRule(0.05, momentum=0.5, dampening=0.3),
        StepRule(0.1, momentum=0.9, nesterov=True),
        StepRule(0.1, momentum=0.8, weight_decay=3.0),
        StepRule(0.1, rho=0.07, normalized=0.0),
        StepRule(0.1, momentum=0.9, weight_decay=2.0, rho=0.2, normalized=0.0),
    ],
)
def test_real_steps_are_stable_just_below_the_threshold_and_not_just_above(rule):
    top = rule.sharpness_aware(1.0) if rule.rho else rule.plain
    assert growth(rule, 0.98 * top) < 1.0
    assert growth(rule, 1.02 * top) > 10.0


def test_the_known_cases():
    assert StepRule(0.1).plain == pytest.approx(20)
    assert StepRule(0.1, momentum=0.9).plain == pytest.approx(38)
    assert StepRule(0.1, momentum=0.9, nesterov=True).plain == pytest.approx(38 / 2.8)
    # SAM without momentum: (|g| / 2 rho) (sqrt(1 + 8 rho / (lr |g|)) - 1).
    norm, rho, lr = 0.3, 0.05, 0.1
    assert StepRule(lr, rho=rho).sharpness_aware(norm) == pytest.approx(
        norm / (2 * rho) * (math.sqrt(1 + 8 * rho / (lr * norm)) - 1)
    )
    # USAM: a (1 + rho a) = 2 / lr.
    a = StepRule(lr, rho=rho, normalized=0.0).sharpness_aware(norm)
    assert a * (1 + rho * a) == pytest.approx(2 / lr)


@pytest.mark.parametrize(("lr", "rho"), [(0.1, 0.1), (0.19, 0.05), (0.05, 1.0)])
def test_sam_bounces_exactly_on_its_own_threshold(lr, rho):
    # Real SAM on a quadratic with eigenvalues 5, 3, 2, 1, 0.5, 0.2 ends bouncing along the first, at the length where
    # the factor of a step is -1.
    values = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.2], dtype=torch.float64)
    x = torch.nn.Parameter(torch.ones(6, dtype=torch.float64))
    optimizer = SAM(torch.optim.SGD([x], lr=lr), rho=rho)

    def closure():
        optimizer.zero_grad()
        loss = (values * x.square()).sum() / 2
        loss.backward()
        return loss

    for _ in range(900):
        optimizer.step(closure)
    norm = float((values * x).detach().norm())
    assert float(x.detach().norm()) == pytest.approx(lr * rho * 5 / (2 - lr * 5), rel=1e-6)
    assert StepRule(lr, rho=rho).sharpness_aware(norm) == pytest.approx(5, rel=1e-6)


def test_limits_of_the_ascent():
    rule = StepRule(0.1, rho=0.05)
    assert rule.sharpness_aware(1e9) == pytest.approx(rule.plain, rel=1e-6)
    assert rule.sharpness_aware(0.0) == 0.0
    assert StepRule(0.1).sharpness_aware(1.0) is None
    mixed = StepRule(0.1, rho=0.05, normalized=0.5)
    ends = [StepRule(0.1, rho=0.05, normalized=lam).sharpness_aware(0.2) for lam in (1.0, 0.0)]
    assert ends[0] < mixed.sharpness_aware(0.2) < ends[1]
    # Decay alone already makes the step unstable: no curvature is.
    assert StepRule(0.1, weight_decay=30.0).plain == 0.0


def test_rules_of_optimizers():
    parameters = [torch.nn.Parameter(torch.ones(2))]
    sgd = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True)
    assert rule_of_optimizer(sgd) == StepRule(0.1, 0.9, 0.0, True, 1e-2)
    assert rule_of_optimizer(sgd, 0.3).lr == 0.3
    plain = torch.optim.SGD(parameters, lr=0.1)
    assert rule_of_optimizer(SAM(plain, rho=0.2)) == StepRule(0.1, rho=0.2, normalized=1.0)
    assert rule_of_optimizer(USAM(plain, rho=0.2)) == StepRule(0.1, rho=0.2, normalized=0.0)
    assert rule_of_optimizer(UnifiedSAM(plain, rho=0.2, lam=0.3)) == StepRule(0.1, rho=0.2, normalized=0.3)
    assert rule_of_optimizer(UnifiedSAM(plain, rho=0.2, lam="1/t")).normalized == 1.0
    assert "no threshold is known for ASAM" in rule_of_optimizer(ASAM(plain))
    assert "AdamW scales its steps" in rule_of_optimizer(torch.optim.AdamW(parameters))
    assert rule_of_optimizer(torch.optim.SGD(parameters, lr=0.0)) == "the learning rate is 0"
    groups = [{"params": parameters}, {"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.5}]
    assert "groups" in rule_of_optimizer(torch.optim.SGD(groups, lr=0.1))


def test_rules_of_recipes():
    sgd = {"optimizer": "sgd", "base": "sgd", "momentum": 0.9, "weight_decay": 1e-3, "rho": None}
    assert rule_of_recipe(sgd, 0.1, None, 7) == StepRule(0.1, momentum=0.9, weight_decay=1e-3)
    sam = {**sgd, "optimizer": "sam", "rho": 0.05}
    assert rule_of_recipe(sam, 0.1, None, 7).rho == 0.05
    assert rule_of_recipe(sam, 0.1, 0.02, 7) == StepRule(0.1, momentum=0.9, weight_decay=1e-3, rho=0.02)
    unified = {**sam, "optimizer": "unified-sam", "optimizer_args": {"lam": "1-1/t"}}
    assert rule_of_recipe(unified, 0.1, None, 4).normalized == 0.75
    assert rule_of_recipe({}, 0.1, None, 0) == StepRule(0.1)
    assert rule_of_recipe(sgd, None, None, 0) == "the learning rate is not known"
    assert rule_of_recipe(sgd, 0.0, None, 0) == "the learning rate is 0"
    assert "adamw scales" in rule_of_recipe({**sgd, "optimizer": "adamw", "base": "adamw"}, 0.1, None, 0)
    assert "gsam" in rule_of_recipe({**sam, "optimizer": "gsam"}, 0.1, None, 0)


def test_edges_say_why_there_is_none():
    assert edge("the learning rate is 0", 1.0).reason == "the learning rate is 0"
    found = edge(StepRule(0.1, momentum=0.9, rho=0.05), 1.0)
    assert (found.plain, found.formula, found.reason) == (pytest.approx(38), "2(1+β)/lr", "")
    assert found.sharpness_aware < found.plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, "lr must be a finite number > 0; got 0.0."),
        ({"lr": math.nan}, "lr must be a finite number > 0; got nan."),
        ({"lr": 0.1, "momentum": 1.0}, "momentum must be a number in [0, 1); got 1.0."),
        ({"lr": 0.1, "rho": -0.1}, "rho must be a finite number >= 0; got -0.1."),
        ({"lr": 0.1, "normalized": 2}, "normalized must be a number in [0, 1]; got 2."),
    ],
)
def test_values_outside_their_ranges(arguments, message):
    with pytest.raises(ValueError, match=r".*") as caught:
        StepRule(**arguments)
    assert message in str(caught.value)

"""hessprobe's optimizers in the cases of the conformance table; one row a case, in the table."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from hessprobe.benchmarks.conformance import RULES, SAM_CASES, SAM_QUANTITIES, Tool, check
from hessprobe.benchmarks.conformance.sam_tools import SAM_TOOLS
from hessprobe.benchmarks.conformance.training import BASES, Training, drive, start

BY_NAME = {case.name: case for case in SAM_CASES}
OWN = SAM_TOOLS["hessprobe"][1]()


@pytest.mark.parametrize("name", list(BY_NAME))
def test_case(name):
    verdict = check(BY_NAME[name], OWN)
    assert verdict.status == "right", verdict


def test_the_table_is_well_formed():
    assert len(BY_NAME) == len(SAM_CASES)
    assert {case.quantity for case in SAM_CASES} == set(SAM_QUANTITIES) == set(OWN.answers)
    assert all(case.rule in RULES and case.truth is not None and case.must_hold.endswith(".") for case in SAM_CASES)


def with_radius(factor):
    def answers(quantity):
        return lambda given: OWN.answers[quantity](dataclasses.replace(given, rho=factor * given.rho))

    return Tool("other radius", "0", {quantity: answers(quantity) for quantity in SAM_QUANTITIES})


def plain_sgd(given: Training) -> torch.Tensor:
    def make(module, given):
        return BASES[given.base](given.grouped(module), **given.options)

    return drive(given, make, lambda optimizer, closure: optimizer.step(closure))


# No matter what the radius is: the number of gradients, where a step ends that goes nowhere, radii that groups name.
ANY_RADIUS = {
    "sam-stationary",
    "sam-displacement-removed",
    "sam-displacement-bfloat16",
    "sam-gradients",
    "looksam-gradients",
    "sam-group-radii",
}


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in ANY_RADIUS])
def test_a_radius_that_is_two_percent_off_is_wrong(name):
    assert check(BY_NAME[name], with_radius(1.02)).status == "wrong"


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in ANY_RADIUS - {"sam-group-radii"}])
def test_the_base_optimizer_alone_is_wrong(name):
    assert check(BY_NAME[name], Tool("sgd", "0", dict.fromkeys(SAM_QUANTITIES, plain_sgd))).status == "wrong"


def stepping(change):
    """SAM by hand around the base optimizer, with ``change`` as its own habit."""

    class Made:
        def __init__(self, module, given):
            self.base = BASES[given.base](given.grouped(module), **given.options)
            self.rho, self.parameters = given.rho, [p for p in module.parameters() if p.requires_grad]

        def step(self, closure):
            loss = closure()
            kept = [p.detach().clone() for p in self.parameters]
            moved = [p for p in self.parameters if p.grad is not None]
            norm = torch.stack([p.grad.double().norm() for p in moved]).norm()
            aside = [self.rho * p.grad / norm.to(p.dtype) for p in moved]
            with torch.no_grad():
                for p, e in zip(moved, aside, strict=True):
                    p.add_(e)
            closure()
            with torch.no_grad():
                if change == "subtract":
                    for p, e in zip(moved, aside, strict=True):
                        p.sub_(e)
                elif change != "stay":
                    for p, old in zip(self.parameters, kept, strict=True):
                        p.copy_(old)
            if change == "third":
                closure()
            self.base.step()
            return None if change == "silent" else loss.detach()

    def answer(given):
        return drive(given, Made, lambda optimizer, closure: optimizer.step(closure))

    return Tool("by hand", "0", dict.fromkeys(("sam", "sam-torch-closure"), answer))


@pytest.mark.parametrize(
    ("change", "name", "status"),
    [
        ("", "sam-in-double", "right"),
        ("", "sam-displacement-bfloat16", "right"),
        ("", "torch-closure-loss", "right"),
        ("", "sam-stationary", "wrong"),
        ("", "sam-batchnorm", "wrong"),
        ("stay", "sam-first-step", "wrong"),
        ("subtract", "sam-displacement-removed", "wrong"),
        ("subtract", "sam-displacement-bfloat16", "wrong"),
        ("third", "sam-gradients", "wrong"),
        ("silent", "torch-closure-loss", "refused"),
    ],
)
def test_habits(change, name, status):
    assert check(BY_NAME[name], stepping(change)).status == status


@pytest.mark.parametrize(("name", "part"), [("sam-resume", "saved_at"), ("sam-pickle", "pickled_at")])
def test_a_run_that_forgets_its_momentum_is_wrong(name, part):
    given = BY_NAME[name].build()
    assert getattr(given, part) == 6

    def forgetful(given):
        first = dataclasses.replace(given, batches=given.batches[:6], **{part: None})
        path = OWN.answers["sam"](first)
        module, place = copy.deepcopy(given.module), 0
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(path[-1][place : place + p.numel()].view_as(p))
                place += p.numel()
        rest = dataclasses.replace(given, module=module, batches=given.batches[6:], **{part: None})
        return torch.cat([path, OWN.answers["sam"](rest)])

    assert check(BY_NAME[name], Tool("forgetful", "0", {"sam": forgetful})).status == "wrong"


def test_the_training_itself_is_left_alone():
    given = BY_NAME["sam-momentum-decay"].build()
    before = start(given).clone()
    OWN.answers["sam"](given)
    assert torch.equal(start(given), before)

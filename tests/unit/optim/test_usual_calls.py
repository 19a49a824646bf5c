"""What users of other packages write: ``adaptive=True``, one call for base and rule, the length of an epoch."""

from __future__ import annotations

import pytest
import torch
from contracts.optim_rows.harness import flat_weights, make_module, points_of_step, step
from contracts.optim_rows.problem import Flat

from hessprobe.optim import ASAM, SAM, SAMSPS
from hessprobe.training import Recipe
from hessprobe.training.building import build_optimizer
from hessprobe.training.models import build_model


def test_adaptive_sam_stretches_every_tensor_by_its_size():
    module, other = make_module(), make_module()
    optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.7, adaptive=True)
    here, there = points_of_step(optimizer, module, 1)
    flat = Flat(torch.zeros_like(here), torch.zeros_like(here), torch.zeros_like(here))
    g = flat.grad(here)
    expected = 0.7 * here**2 * g / (here.abs() * g).norm()
    torch.testing.assert_close(there - here, expected, rtol=1e-11, atol=1e-13)
    step(ASAM(torch.optim.SGD(other.parameters(), lr=0.1), rho=0.7, eta=0.0, exclude_bias=False), other, 1)
    torch.testing.assert_close(flat_weights(module), flat_weights(other), rtol=1e-13, atol=0)


def test_one_call_makes_base_and_rule():
    module, other = make_module(), make_module()
    one = SAM.from_params(module.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9, rho=0.3, seed=4)
    two = SAM(torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9), rho=0.3, seed=4)
    assert (type(one), one.seed, one.param_groups[0]["momentum"]) == (SAM, 4, 0.9)
    for t in (1, 2, 3):
        step(one, module, t)
        step(two, other, t)
    assert torch.equal(flat_weights(module), flat_weights(other))


def test_one_call_says_what_does_not_fit():
    module = make_module()
    with pytest.raises(TypeError, match=r"SAMSPS must be given parameters alone.*Write SAMSPS\(model.parameters"):
        SAMSPS.from_params(module.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(TypeError, match="rhoo"):
        SAM.from_params(module.parameters(), torch.optim.SGD, lr=0.1, rhoo=0.1)


def test_xsam_is_told_the_length_of_an_epoch():
    model = build_model("mlp", {"in_features": 64}, seed=0)
    recipe = Recipe(optimizer="xsam", batch_size=32)
    assert build_optimizer(recipe, model, steps=900, examples=1_433).steps_per_epoch == 45
    given = Recipe(optimizer="xsam", batch_size=32, optimizer_args={"steps_per_epoch": 7})
    assert build_optimizer(given, model, steps=900, examples=1_433).steps_per_epoch == 7

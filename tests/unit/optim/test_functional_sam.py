"""Functional-SAM: what it leaves out of SAM, and its preconditioned form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts.optim_rows.harness import BASES, flat_weights, make_module, parameter_groups, step
from contracts.optim_rows.problem import Flat, FlatAdamW, batch, is_close, unit
from torch import Tensor, nn
from torch.func import hessian

from hessprobe.optim import SAM, FunctionalSAM


def gradient(kind: Any, module: nn.Module, rho: float) -> Tensor:
    optimizer = kind(torch.optim.SGD(module.parameters(), lr=0.0), rho)
    optimizer.zero_grad()
    step(optimizer, module, 1)
    return torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])


def test_leaves_the_gauss_newton_part_out_of_what_sam_adds():
    module = make_module()
    w = flat_weights(module)
    flat = Flat(torch.zeros_like(w), torch.zeros_like(w), torch.zeros_like(w))
    g, H = flat.grad(w), flat.hessian(w)
    J = torch.autograd.functional.jacobian(flat.outputs, w).reshape(-1, len(w))
    y = batch(1)[1]
    curvature = hessian(lambda z: nn.functional.cross_entropy(z.view(-1, 3), y))(flat.outputs(w).reshape(-1))
    G = J.T @ curvature @ J
    errors: dict[Any, list[float]] = {SAM: [], FunctionalSAM: []}
    for rho in (1e-3, 1e-4):
        for kind, matrix in ((SAM, H), (FunctionalSAM, H - G)):
            change = (gradient(kind, module, rho) - g) / rho
            limit = matrix @ unit(g)
            errors[kind].append(float((change - limit).norm() / limit.norm()))
    for large, small in errors.values():
        assert small < 0.01
        assert large / small == pytest.approx(10, rel=0.1)  # first order in rho
    assert float((G @ unit(g)).norm()) > 0.1 * float((H @ unit(g)).norm())


def test_is_the_base_optimizer_where_the_outputs_are_linear_in_the_weights():
    torch.manual_seed(1)
    paths = []
    for kind, rho in ((FunctionalSAM, 0.5), (FunctionalSAM, 0.0)):
        module = nn.Sequential(nn.Linear(5, 3)).double()
        with torch.no_grad():
            for p in module.parameters():
                p.fill_(0.3)
        optimizer = kind(torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), rho)
        for t in range(1, 6):
            step(optimizer, module, t)
        paths.append(flat_weights(module))
    assert is_close(*paths) < 1e-14


@pytest.mark.parametrize("length", ["displacement", "gradient"])
def test_preconditioned_form_follows_its_formula(length: str):
    module, rho, adam = make_module(), 0.02, FlatAdamW((0.9, 0.999), 1e-8)
    groups = parameter_groups(module, rho, True)
    optimizer = FunctionalSAM(BASES["adamw"](groups), rho, precondition=True, length=length, precondition_eps=1e-3)
    sizes = [(g, p.numel()) for g in groups for p in g["params"]]
    radius, lr = (
        torch.cat([torch.full((n,), g.get(name, default), dtype=torch.float64) for g, n in sizes])
        for name, default in (("rho", rho), ("lr", 0.02))
    )
    w = flat_weights(module)
    flat = Flat(radius, lr, torch.full_like(w, 0.01))
    for t in range(1, 9):
        flat.t = t
        g = flat.grad(w)
        p = torch.ones_like(w) if t == 1 else (adam.v / (1 - 0.999**adam.t)).sqrt() + 1e-3
        e = unit(g / p) if length == "displacement" else g / p / g.norm()
        w = adam.step(w, flat.pull_back(w + radius * e, flat.cotangent(w)), lr, flat.weight_decay)
        step(optimizer, module, t)
        assert is_close(flat_weights(module), w) < 1e-11, f"step {t}"


def test_refuses_a_base_without_second_moment():
    with pytest.raises(TypeError, match="base_optimizer must keep a second moment for precondition=True; got SGD"):
        FunctionalSAM(torch.optim.SGD(make_module().parameters(), lr=0.1), precondition=True)


def test_refuses_a_closure_that_calls_backward():
    module = make_module()
    optimizer = FunctionalSAM(torch.optim.SGD(module.parameters(), lr=0.1))

    def closure() -> Tensor:
        loss = module(batch(1)[0]).sum()
        loss.backward()
        return loss

    with pytest.raises(TypeError, match=r"closure must return \(outputs, loss\), two tensors; got Tensor"):
        optimizer.step(closure)


def test_length_is_one_of_two():
    with pytest.raises(ValueError, match="length must be one of displacement, gradient; got 'norm'"):
        FunctionalSAM(torch.optim.SGD(make_module().parameters(), lr=0.1), length="norm")

"""Truths by plain torch on the module itself: loops over batches, autograd on its own parameters, dense matrices."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessprobe.benchmarks.conformance.case import Batch, Problem

F64 = torch.float64


def hvp(problem: Problem) -> Tensor:
    """Return H v by two backward passes through the whole loss, in fp64."""
    module, batches = _prepared(problem)
    parameters, rows = _parameters(module), []
    with sdpa_kernel(SDPBackend.MATH):
        slopes = torch.autograd.grad(_total(problem, module, batches), parameters, create_graph=True, allow_unused=True)
        slope = _flat(slopes, parameters)
        for v in problem.vectors.double():
            found = torch.autograd.grad(slope @ v, parameters, retain_graph=True, allow_unused=True)
            rows.append(_flat(found, parameters))
    return torch.stack(rows).detach()


def hvp_by_differences(problem: Problem) -> Tensor:
    """Return H v by central differences of gradients in fp64, extrapolated from two steps: error about 1e-9."""
    module, batches = _prepared(problem, private=True)
    parameters = _parameters(module)
    start = _flat([p.detach() for p in parameters], parameters)

    def gradient(step: Tensor) -> Tensor:
        _move(parameters, start + step)
        return _flat(torch.autograd.grad(_total(problem, module, batches), parameters), parameters)

    rows = []
    for v in problem.vectors.double():
        h = 1e-3 / float(v.norm())
        wide, near = ((gradient(s * v) - gradient(-s * v)) / (2 * s) for s in (2 * h, h))
        rows.append((4 * near - wide) / 3)
    return torch.stack(rows)


def ggn(problem: Problem) -> Tensor:
    """Return G v from Jacobians of the outputs and Hessians of the loss, example by example."""
    module, batches = _prepared(problem)
    parameters, V = _parameters(module), problem.vectors.double()
    count = sum(problem.units(targets) for _, targets in batches)
    result = torch.zeros_like(V)
    for inputs, targets in batches:
        for x, y in zip(inputs, targets, strict=True):
            outputs = module(x[None])[0]
            slopes = [torch.autograd.grad(one, parameters, retain_graph=True) for one in outputs]
            J = torch.stack([_flat(slope, parameters) for slope in slopes])

            def loss(o: Tensor, y: Tensor = y) -> Tensor:
                return problem.loss(o[None], y[None])

            bend = torch.autograd.functional.hessian(loss, outputs.detach())  # type: ignore[no-untyped-call]  # untyped in torch
            result += V @ J.T @ bend @ J / count
    return result.detach()


def hessian(problem: Problem) -> Tensor:
    """Return the whole matrix (d, d)."""
    dim = problem.vectors.shape[1]
    matrix = hvp(replace(problem, vectors=torch.eye(dim, dtype=F64)))
    return (matrix + matrix.T) / 2


def ends(problem: Problem) -> Tensor:
    """Return the k largest and k smallest eigenvalues, descending."""
    values = torch.linalg.eigvalsh(hessian(problem)).flip(0)
    return torch.cat([values[: problem.k], values[-problem.k :]])


def lambda_max(problem: Problem) -> Tensor:
    """Return the largest eigenvalue (1,)."""
    values: Tensor = torch.linalg.eigvalsh(hessian(problem))
    return values[-1:]


def worst(problem: Problem) -> Tensor:
    """Return rho^2 lambda_max / 2, by which a quadratic loss rises at most from its minimum."""
    return lambda_max(problem) * problem.rho**2 / 2


def on_grid(problem: Problem, points: Tensor) -> Tensor:
    """Return each loss over what it is at the displacement that its point names, and 1 if (0, 0) is a point, else 0."""
    module, batches = _prepared(problem, private=True)
    parameters, losses = _parameters(module), []
    start = _flat([p.detach() for p in parameters], parameters)
    for x, y, _ in points.double().tolist():
        _move(parameters, start + x * problem.vectors[0] + y * problem.vectors[1])
        losses.append(_total(problem, module, batches).detach())
    center = (points[:, :2] == 0).all(1).any().double()
    return torch.cat([points[:, 2].double() / torch.stack(losses), center[None]])


def moments_of(_: Problem, density: Tensor) -> Tensor:
    """Return sum of weights, mean and mean square of a density."""
    nodes, weights = density.double().T
    return torch.stack([weights.sum(), weights @ nodes, weights @ nodes**2])


def moments(problem: Problem) -> Tensor:
    """Return the same of the eigenvalues."""
    values = torch.linalg.eigvalsh(hessian(problem))
    return torch.stack([torch.ones((), dtype=F64), values.mean(), values.square().mean()])


def covered(problem: Problem, intervals: Tensor) -> Tensor:
    """Return the share of intervals that hold the trace."""
    truth = hessian(problem).trace()
    return ((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).double().mean()


def _prepared(problem: Problem, *, private: bool = False) -> tuple[nn.Module, list[Batch]]:
    """Return the module in evaluation mode and the data, all fp64.

    The module is a copy where it is in another state or ``private``; else itself, as a loss may read its parameters.
    """
    module = problem.module
    same = all(p.dtype == F64 for p in module.parameters()) and not any(part.training for part in module.modules())
    if private or not same:
        module = copy.deepcopy(module).to(F64).eval()
    return module, [(x.double() if x.is_floating_point() else x, y) for x, y in problem.batches]


def _total(problem: Problem, module: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Return the mean loss over all examples, or tokens."""
    count = sum(problem.units(targets) for _, targets in batches)
    parts = [problem.units(targets) / count * problem.loss(module(inputs), targets) for inputs, targets in batches]
    return torch.stack(parts).sum()


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _flat(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    filled = [torch.zeros_like(p) if t is None else t for t, p in zip(tensors, like, strict=True)]
    return torch.cat([t.reshape(-1) for t in filled])


def _move(parameters: Sequence[nn.Parameter], theta: Tensor) -> None:
    place = 0
    with torch.no_grad():
        for p in parameters:
            p.copy_(theta[place : place + p.numel()].view_as(p))
            place += p.numel()

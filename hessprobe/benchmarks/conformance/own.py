"""hessprobe as one of the tools."""

from __future__ import annotations

from importlib import metadata

import torch
from torch import Tensor

from hessprobe.benchmarks.conformance.case import Problem, Tool
from hessprobe.estimators import spectral_density, trace
from hessprobe.hvp import GaussNewton, Hessian
from hessprobe.krylov import eigsh
from hessprobe.landscape import Plane, axis, evaluate, random_plane
from hessprobe.objective import EmpiricalRisk
from hessprobe.sharpness import worst_direction


def _risk(problem: Problem) -> EmpiricalRisk:
    return EmpiricalRisk(problem.module, problem.loss, problem.batches)


def _hessian(problem: Problem, engine: str = "auto") -> Hessian:
    return Hessian(_risk(problem), engine=engine, memory=problem.memory)


def _hvp(problem: Problem) -> Tensor:
    return _hessian(problem).matvecs(problem.vectors)


def _hvp_differences(problem: Problem) -> Tensor:
    return _hessian(problem, "finite_difference").matvecs(problem.vectors)


def _ggn(problem: Problem) -> Tensor:
    return GaussNewton(_risk(problem), memory=problem.memory).matvecs(problem.vectors)


def _lambda_max(problem: Problem) -> Tensor:
    return eigsh(_hessian(problem), 1, "largest", tol=1e-6, seed=problem.seed).values


def _ends(problem: Problem) -> Tensor:
    return eigsh(_hessian(problem), problem.k, "both", tol=1e-6, seed=problem.seed).values


def _trace(problem: Problem) -> Tensor:
    found = trace(_hessian(problem), n_probes=problem.n_probes, method="hutchinson", seed=problem.seed)
    return torch.tensor([found.value], dtype=torch.float64)


def _trace_to_tolerance(problem: Problem) -> Tensor:
    A = _hessian(problem)
    found = [trace(A, rtol=problem.rtol, seed=seed).value for seed in range(problem.runs)]
    return torch.tensor(found, dtype=torch.float64)


def _trace_intervals(problem: Problem) -> Tensor:
    A, count = _hessian(problem), problem.n_probes
    found = [trace(A, n_probes=count, method="hutchinson", seed=seed).interval() for seed in range(problem.runs)]
    return torch.tensor(found, dtype=torch.float64)


def _density(problem: Problem) -> Tensor:
    A = _hessian(problem)
    found = spectral_density(A, n_probes=problem.n_probes, steps=min(A.dim, 40), method="slq", seed=problem.seed)
    return torch.stack([found.nodes, found.weights], dim=1)


def _grid(problem: Problem) -> Tensor:
    risk = _risk(problem)
    plane = Plane(risk.theta, problem.vectors[:2], ("u", "w"), "random")
    axes = (axis(5, -1.0, 1.0), axis(4, -0.5, 1.0))
    values = torch.from_numpy(evaluate(risk, plane, axes).values["loss"])
    x, y = torch.meshgrid(*(torch.from_numpy(each) for each in axes), indexing="ij")
    return torch.stack([x.flatten(), y.flatten(), values.flatten()], dim=1)


def _default_plane(problem: Problem) -> Tensor:
    risk = _risk(problem)
    return torch.from_numpy(evaluate(risk, random_plane(risk), (axis(5, -1.0, 1.0),) * 2).values["loss"]).flatten()


def _worst(problem: Problem) -> Tensor:
    (found,) = worst_direction(_risk(problem), problem.rho, restarts=3, seed=problem.seed)
    return torch.tensor([found.value], dtype=torch.float64)


HESSPROBE = Tool(
    "hessprobe",
    metadata.version("hessprobe"),
    {
        "hvp": _hvp,
        "hvp-differences": _hvp_differences,
        "ggn": _ggn,
        "lambda-max": _lambda_max,
        "ends": _ends,
        "trace": _trace,
        "trace-to-tolerance": _trace_to_tolerance,
        "trace-intervals": _trace_intervals,
        "density": _density,
        "grid": _grid,
        "default-plane": _default_plane,
        "worst-sharpness": _worst,
    },
)

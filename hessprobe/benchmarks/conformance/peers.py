"""Other packages as tools: a few lines for each, as its own page uses it.

Each adapter gives the package what its documentation asks for (a criterion module where it wants one, double precision
as torch's default where it draws vectors in the default) and every benefit that its options offer: as many Lanczos
steps as it takes to converge, a tighter tolerance, Student's quantile on its standard error. Nothing of a package is
imported before its tool is opened.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from hessprobe.benchmarks.conformance.case import Problem, Tool

F64 = torch.float64
_STEPS = 40


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _curvlinops() -> Tool:
    """curvlinops, as in its examples of products, eigenvalues, traces and spectral densities."""
    import curvlinops
    from curvlinops.papyan2020traces.spectrum import fast_lanczos
    from scipy.sparse.linalg import eigsh

    class Criterion(nn.Module):
        """It reads the reduction of a module."""

        reduction = "mean"

        def __init__(self, loss: Any) -> None:
            super().__init__()
            self.loss = loss

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            found: Tensor = self.loss(outputs, targets)
            return found

    def operator(problem: Problem, kind: Any = curvlinops.HessianLinearOperator) -> Any:
        loss = problem.loss if isinstance(problem.loss, nn.Module) else Criterion(problem.loss)
        return kind(problem.module, loss, _parameters(problem.module), problem.batches)

    def product(problem: Problem, kind: Any = curvlinops.HessianLinearOperator) -> Tensor:
        found: Tensor = operator(problem, kind) @ problem.vectors.T
        return found.T

    def eigenvalues(problem: Problem, k: int, which: str) -> Tensor:
        A = operator(problem).to_scipy()
        # ARPACK draws it anew at every call otherwise.
        start = torch.randn(A.shape[0], generator=torch.Generator().manual_seed(problem.seed), dtype=F64).numpy()
        values, _ = eigsh(A, k=k, which=which, v0=start)
        return torch.from_numpy(values).flip(0)

    def trace(problem: Problem) -> Tensor:
        found: Tensor = curvlinops.hutchinson_trace(operator(problem), num_matvecs=problem.n_probes)
        return found[None]

    def density(problem: Problem) -> Tensor:
        # The quadrature under lanczos_approximate_spectrum, before it is smoothed for a picture.
        A, runs = operator(problem), problem.n_probes
        found = [fast_lanczos(A, min(A.shape[0], _STEPS)) for _ in range(runs)]
        nodes = [torch.stack([values, vectors[0] ** 2 / runs], dim=1) for values, vectors in found]
        return torch.cat(nodes)

    return _tool(
        "curvlinops-for-pytorch",
        {
            "hvp": product,
            "ggn": lambda problem: product(problem, curvlinops.GGNLinearOperator),
            "lambda-max": lambda problem: eigenvalues(problem, 1, "LA"),
            "ends": lambda problem: torch.cat([eigenvalues(problem, problem.k, which) for which in ("LA", "SA")]),
            "trace": trace,
            "density": density,
        },
    )


def _eigenthings() -> Tool:
    """hessian-eigenthings, as in its README; Lanczos with more steps until it says that it has converged."""
    import hessian_eigenthings as he
    from hessian_eigenthings.loss_fns import supervised_forward, supervised_loss_of_output
    from scipy.stats import t as student

    def operator(problem: Problem, **options: Any) -> Any:
        return he.HessianOperator(problem.module, problem.batches, he.supervised_loss(problem.loss), **options)

    def products(A: Any, problem: Problem) -> Tensor:
        return torch.stack([A.matvec(v) for v in problem.vectors])

    def ggn(problem: Problem) -> Tensor:
        loss = supervised_loss_of_output(problem.loss)
        return products(he.GGNOperator(problem.module, problem.batches, supervised_forward, loss), problem)

    def eigenvalues(problem: Problem, k: int, which: str) -> Tensor:
        A = operator(problem)
        steps = min(max(2 * k, 10), A.size)
        while True:
            options = {"k": k, "max_iter": steps, "reorthogonalize": True, "which": which, "tol": 1e-6}
            found = he.lanczos(A, seed=problem.seed, **options)
            if bool(found.converged.all()) or steps == A.size:
                values: Tensor = found.eigenvalues.sort(descending=True).values
                return values
            steps = min(2 * steps, A.size)

    def trace(problem: Problem) -> Tensor:
        found = he.trace(operator(problem), num_matvecs=problem.n_probes, method="hutchinson", seed=problem.seed)
        return torch.tensor([found.estimate], dtype=F64)

    def intervals(problem: Problem) -> Tensor:
        A, n = operator(problem), problem.n_probes
        runs = [he.trace(A, num_matvecs=n, method="hutchinson", seed=seed) for seed in range(problem.runs)]
        middle = torch.tensor([run.estimate for run in runs], dtype=F64)
        half = student.ppf(0.975, n - 1) * torch.tensor([run.stderr for run in runs], dtype=F64)
        return torch.stack([middle - half, middle + half], dim=1)

    def density(problem: Problem) -> Tensor:
        A = operator(problem)
        steps = min(A.size, _STEPS)
        found = he.spectral_density(A, num_runs=problem.n_probes, lanczos_steps=steps, seed=problem.seed)
        nodes, weights = found.raw_eigenvalues.flatten(), found.raw_weights.flatten() / problem.n_probes
        return torch.stack([nodes, weights], dim=1)[~nodes.isnan()]

    return _tool(
        "hessian-eigenthings",
        {
            "hvp": lambda problem: products(operator(problem), problem),
            "hvp-differences": lambda problem: products(operator(problem, method="finite_difference"), problem),
            "ggn": ggn,
            "lambda-max": lambda problem: eigenvalues(problem, 1, "LA"),
            "ends": lambda problem: torch.cat([eigenvalues(problem, problem.k, which) for which in ("LA", "SA")]),
            "trace": trace,
            "trace-intervals": intervals,
            "density": density,
        },
    )


def _pyhessian() -> Tool:
    """PyHessian, over a loader; its vectors have torch's default type, which is set to that of the parameters."""
    from pyhessian import hessian

    @contextlib.contextmanager
    def opened(problem: Problem) -> Iterator[Any]:
        before = torch.get_default_dtype()
        torch.set_default_dtype(next(problem.module.parameters()).dtype)
        try:
            yield hessian(problem.module, problem.loss, dataloader=problem.batches, cuda=False)
        finally:
            torch.set_default_dtype(before)

    def product(problem: Problem) -> Tensor:
        parameters = _parameters(problem.module)
        sizes, rows = [p.numel() for p in parameters], []
        with opened(problem) as comp:
            for v in problem.vectors:
                parts = [part.view_as(p) for part, p in zip(v.split(sizes), parameters, strict=True)]
                _, found = comp.dataloader_hv_product(parts)
                rows.append(torch.cat([part.flatten() for part in found]))
        return torch.stack(rows)

    def lambda_max(problem: Problem) -> Tensor:
        with opened(problem) as comp:
            values, _ = comp.eigenvalues(maxIter=3000, tol=1e-10, top_n=1)
        return torch.tensor(values, dtype=F64)

    def trace(problem: Problem) -> Tensor:
        with opened(problem) as comp:
            samples = comp.trace(maxIter=problem.n_probes, tol=0.0)
        return torch.tensor([sum(samples) / len(samples)], dtype=F64)

    def trace_to_tolerance(problem: Problem) -> Tensor:
        found = []
        for seed in range(problem.runs):
            torch.manual_seed(seed)
            with opened(problem) as comp:
                samples = comp.trace(maxIter=10_000, tol=problem.rtol)
            found.append(sum(samples) / len(samples))
        return torch.tensor(found, dtype=F64)

    def density(problem: Problem) -> Tensor:
        with opened(problem) as comp:
            size = sum(p.numel() for p in comp.params)
            nodes, weights = comp.density(iter=min(size, _STEPS), n_v=problem.n_probes)
        flat = [torch.as_tensor(each, dtype=F64).flatten() for each in (nodes, weights)]
        return torch.stack([flat[0], flat[1] / problem.n_probes], dim=1)

    return _tool(
        "PyHessian",
        {
            "hvp": product,
            "lambda-max": lambda_max,
            "trace": trace,
            "trace-to-tolerance": trace_to_tolerance,
            "density": density,
        },
    )


def _loss_landscapes() -> Tool:
    """loss-landscapes: a plane through given models, and the random plane of its README."""
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    def metric(problem: Problem) -> Any:
        inputs, targets = (torch.cat(each) for each in zip(*problem.batches, strict=True))
        return Loss(problem.loss, inputs, targets)

    def moved(problem: Problem, v: Tensor) -> nn.Module:
        module, place = copy.deepcopy(problem.module), 0
        with torch.no_grad():
            for p in module.parameters():
                p.add_(v[place : place + p.numel()].view_as(p))
                place += p.numel()
        return module

    def grid(problem: Problem) -> Tensor:
        # "From the start point up to the maximum distance in both directions", in `steps` steps, read as the first
        # point at the start. Read as the last at the end, every second row is still off by a step.
        steps = 5
        models = (problem.module, moved(problem, problem.vectors[0]), moved(problem, problem.vectors[1]))
        values = loss_landscapes.planar_interpolation(*models, metric(problem), steps, deepcopy_model=True)
        x, y = torch.meshgrid(*(torch.arange(steps, dtype=F64) / steps,) * 2, indexing="ij")
        return torch.stack([x.flatten(), y.flatten(), torch.from_numpy(values).flatten()], dim=1)

    def default_plane(problem: Problem) -> Tensor:
        found = loss_landscapes.random_plane(problem.module, metric(problem), normalization="filter")
        return torch.from_numpy(found).flatten()

    return _tool("loss-landscapes", {"grid": grid, "default-plane": default_plane})


def _tool(distribution: str, answers: dict[str, Callable[[Problem], Tensor]]) -> Tool:
    return Tool(distribution.removesuffix("-for-pytorch"), metadata.version(distribution), answers)


# Name in the table -> (distribution, what opens it); ImportError where it is not installed.
PEERS: dict[str, tuple[str, Callable[[], Tool]]] = {
    "curvlinops": ("curvlinops-for-pytorch", _curvlinops),
    "hessian-eigenthings": ("hessian-eigenthings", _eigenthings),
    "PyHessian": ("PyHessian", _pyhessian),
    "loss-landscapes": ("loss-landscapes", _loss_landscapes),
}

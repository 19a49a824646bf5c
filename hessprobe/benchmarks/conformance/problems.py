"""Small problems of the cases: networks, losses and data, the same whenever they are built.

Batches are of one size but where this is the case: one defect shall not show in every row.
Truths by plain torch on the module itself: loops over batches, autograd on its own parameters, dense matrices.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessprobe.benchmarks.conformance.case import Batch, Problem

F64 = torch.float64
_IGNORED = -100


def _source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _drawn(make: Callable[[], nn.Module], seed: int = 0, dtype: torch.dtype = F64) -> nn.Module:
    """Return the module, its parameters drawn from a generator of their own: modules use the global one."""
    with torch.random.fork_rng(devices=[]):
        module = make().to(dtype).eval()
    source = _source(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 1 / math.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else 0.3
            parameter.copy_(scale * torch.randn(parameter.shape, generator=source, dtype=F64))
    return module


def _vectors(module: nn.Module, count: int = 3, *, signs: bool = False) -> Tensor:
    parameters = [p for p in module.parameters() if p.requires_grad]
    shape, dtype = (count, sum(p.numel() for p in parameters)), parameters[0].dtype
    if signs:
        return (torch.randint(2, shape, generator=_source(7)) * 2 - 1).to(dtype)
    return torch.randn(shape, generator=_source(7), dtype=F64).to(dtype)


def _examples(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    source = _source(1)
    return [(torch.randn(n, 4, generator=source, dtype=F64), torch.randint(3, (n,), generator=source)) for n in sizes]


def classifier(
    sizes: tuple[int, ...] = (32, 32),
    middle: Callable[[], nn.Module] = nn.Identity,
    *,
    width: int = 5,
    scale: float = 1.0,
    **more: Any,
) -> Problem:
    """A tanh network with ``scale`` times the cross-entropy, on batches of the given sizes.

    Args:
        sizes: of the batches.
        middle: makes a layer between activation and head.
        width: of the hidden layer.
        scale: of the loss.
        more: fields of the problem.
    """
    module = _drawn(lambda: nn.Sequential(nn.Linear(4, width), nn.Tanh(), middle(), nn.Linear(width, 3)))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return scale * F.cross_entropy(outputs, targets)

    return Problem(module, loss, _examples(*sizes), **{"vectors": _vectors(module), **more})


def regression() -> Problem:
    """A loss that is neither cross-entropy nor a mean of the outputs."""
    module = _drawn(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)), seed=3)
    batches = [(x, x.pow(2).sum(1, keepdim=True)) for x, _ in _examples(8, 8)]
    return Problem(module, lambda o, t: (o - t).abs().pow(3).mean(), batches, _vectors(module))


class _Tokens(nn.Module):
    """Embedding, scaled-dot-product attention or a layer in its place, and logits (B, C, T)."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self.embed, self.mix, self.head, self.attention = (
            nn.Embedding(6, 8),
            nn.Linear(8, 24),
            nn.Linear(8, 6),
            attention,
        )

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        if self.attention:
            q, k, v = self.mix(hidden).view(*hidden.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            hidden = hidden + mixed.transpose(1, 2).flatten(2)
        else:
            hidden = torch.tanh(self.mix(hidden)).view(*hidden.shape[:2], 3, 8).sum(2)
        logits: Tensor = self.head(hidden).transpose(1, 2)
        return logits


def tokens(*, attention: bool = False, ignored: int = _IGNORED, hidden: bool = False) -> Problem:
    """Sequences whose ends are padding, differently many in each batch; the loss is a mean over the other tokens.

    Args:
        attention: mix tokens by attention, and pad none.
        ignored: label of padding.
        hidden: give the loss as a function that does not show what it ignores.
    """
    module, source = _drawn(lambda: _Tokens(attention), seed=5), _source(6)
    batches = []
    for lengths in ((6,) * 4,) * 2 if attention else ((6, 2, 1, 5), (3, 3, 6, 1), (1, 2, 2, 1)):
        targets = torch.randint(5, (len(lengths), 6), generator=source)
        for row, length in zip(targets, lengths, strict=True):
            row[length:] = ignored
        batches.append((torch.randint(6, targets.shape, generator=source), targets))
    shown = nn.CrossEntropyLoss(ignore_index=ignored)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = shown(outputs, targets)
        return value

    def counted(targets: Tensor) -> int:
        return int((targets != ignored).sum())

    return Problem(module, loss if hidden else shown, batches, _vectors(module), units=counted)


class _Odd(nn.Module):
    """Two layers, and what is to be odd about them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        if kind == "shared":
            self.second.weight = self.first.weight
        elif kind == "frozen":
            self.first.requires_grad_(False)
        else:
            self.unused = nn.Parameter(torch.ones(2))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.second(torch.tanh(self.first(inputs)))
        return outputs


def odd(kind: str) -> Problem:
    """A parameter that nothing uses, a frozen layer, or a weight that two layers share."""
    module = _drawn(lambda: _Odd(kind), seed=4)
    return Problem(module, F.cross_entropy, _examples(6, 6), _vectors(module))


def _batchnorm() -> nn.Module:
    norm = nn.BatchNorm1d(5)
    norm.running_mean, norm.running_var = torch.full((5,), 0.5), torch.full((5,), 1.5)
    return norm


def batchnorm(*, training: bool) -> Problem:
    """BatchNorm with statistics of its own, in either mode."""
    problem = classifier((8, 8), _batchnorm)
    problem.module.train(training)
    return problem


def dropout() -> Problem:
    """Dropout that is switched on."""
    problem = classifier((8, 8), nn.Dropout)
    problem.module.train()
    return problem


def wide() -> Problem:
    """280,660 parameters in float32 and a vector of signs, whose length is 530."""
    made = lambda: nn.Sequential(nn.Linear(400, 560), nn.Tanh(), nn.Linear(560, 100))  # noqa: E731
    module = _drawn(made, dtype=torch.float32)
    data = [(torch.randn(16, 400, generator=_source(2)), torch.randint(100, (16,), generator=_source(3)))]
    return Problem(module, F.cross_entropy, data, _vectors(module, 1, signs=True))


class _Quadratic(nn.Module):
    """Outputs theta^T A theta / 2 for every example."""

    def __init__(self, matrix: Tensor, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta)
        self.matrix = nn.Buffer(matrix)

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.theta @ self.matrix @ self.theta / 2).expand(len(inputs))


def quadratic(values: Tensor, *, minimum: bool = False, **more: Any) -> Problem:
    """A loss whose Hessian has the given eigenvalues in a random basis.

    Args:
        values: eigenvalues (d,), fp64.
        minimum: put theta at 0, where the gradient vanishes.
        more: fields of the problem.
    """
    d = len(values)
    basis, _ = torch.linalg.qr(torch.randn(d, d, generator=_source(8), dtype=F64))
    matrix = (basis * values) @ basis.T
    theta = torch.zeros(d, dtype=F64) if minimum else torch.randn(d, generator=_source(9), dtype=F64)
    module = _Quadratic((matrix + matrix.T) / 2, theta).eval()
    batches = [(torch.zeros(4, 1, dtype=F64), torch.zeros(4, dtype=F64))]
    return Problem(module, lambda outputs, _: outputs.mean(), batches, _vectors(module), **more)


def penalised() -> Problem:
    """A loss that reads the parameters of the model itself."""
    problem = classifier((6, 6))
    module = problem.module

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        squares = torch.stack([p.square().sum() for p in module.parameters()])
        return F.cross_entropy(outputs, targets) + 0.5 * squares.sum()

    problem.loss = loss
    return problem


class SavedGradient(torch.autograd.Function):
    """A cross-entropy that makes its gradient in forward, as fused kernels do."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss."""
        ctx.save_for_backward((logits.softmax(1) - F.one_hot(targets, logits.shape[1])) / len(logits))
        return F.cross_entropy(logits, targets)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        """Return what forward has saved."""
        return slope * ctx.saved_tensors[0], None


def _fused(outputs: Tensor, targets: Tensor) -> Tensor:
    loss: Tensor = SavedGradient.apply(outputs, targets)  # type: ignore[no-untyped-call]  # untyped in torch
    return loss


def saved_gradient() -> Problem:
    """A fused loss, which autograd differentiates a second time as if its gradient were linear."""
    problem = classifier((6, 6))
    problem.loss = _fused
    return problem


def many_probes() -> Problem:
    """256 vectors, a batch whose activations take 0.25 MiB a vector, and 4 MiB for products."""
    problem = classifier((512,), width=64, memory=4 << 20)
    problem.vectors = _vectors(problem.module, 256)
    return problem


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


def hvp_by_loss_differences(problem: Problem) -> Tensor:
    """Return H v from values of the loss alone, in fp64: error about 1e-6. No gradient is asked for anything."""
    module, batches = _prepared(problem, private=False)
    parameters, d = _parameters(module), problem.vectors.shape[1]
    start, eye, h = _flat([p.detach().clone() for p in parameters], parameters), torch.eye(d, dtype=F64), 1e-3

    def value(step: Tensor) -> Tensor:
        _move(parameters, start + step)
        return _total(problem, module, batches).detach()

    rows = []
    for v in problem.vectors.double():
        u = v / v.norm()
        mixed = [value(h * (u + e)) - value(h * (u - e)) - value(h * (e - u)) + value(-h * (u + e)) for e in eye]
        rows.append(v.norm() * torch.stack(mixed) / (4 * h * h))
    _move(parameters, start)
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
    """Return 1 + how far a loss is off at most of what it is at its point; and 1 if (0, 0) is a point, else 0."""
    module, batches = _prepared(problem, private=True)
    parameters, losses = _parameters(module), []
    start = _flat([p.detach() for p in parameters], parameters)
    for x, y, _ in points.double().tolist():
        _move(parameters, start + x * problem.vectors[0] + y * problem.vectors[1])
        losses.append(_total(problem, module, batches).detach())
    center = (points[:, :2] == 0).all(1).any().double()
    off = (points[:, 2].double() / torch.stack(losses) - 1).abs().amax()
    return torch.stack([1 + off, center])


def moments_of(_: Problem, density: Tensor) -> Tensor:
    """Return sum of weights, mean and mean square of a density."""
    nodes, weights = density.double().T
    return torch.stack([weights.sum(), weights @ nodes, weights @ nodes**2])


def moments(problem: Problem) -> Tensor:
    """Return the same of the eigenvalues."""
    values = torch.linalg.eigvalsh(hessian(problem))
    return torch.stack([torch.ones((), dtype=F64), values.mean(), values.square().mean()])


def within_tolerance(problem: Problem, found: Tensor) -> Tensor:
    """Return the share of estimates of the trace that are as near as was asked for."""
    truth = hessian(problem).trace()
    return ((found - truth).abs() <= problem.rtol * truth.abs()).double().mean()


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

"""Time of a SAM step beyond its two gradients: this package, the plain way, and pytorch_optimizer, side by side."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprobe.benchmarks.ratios import quartiles
from hessprobe.optim import SAM
from hessprobe.training.models import build_model

# (number of tensors, shape): many small ones to few large ones.
SHAPES: dict[str, tuple[int, tuple[int, ...]]] = {
    "1000 x (32)": (1000, (32,)),
    "300 x (128, 64)": (300, (128, 64)),
    "40 x (512, 512)": (40, (512, 512)),
    "12 x (1024, 1024)": (12, (1024, 1024)),
}
NETWORK = "ResNet-20, batch 128"

Closure = Callable[[], Tensor]
Step = Callable[[Closure], object]


@dataclass(frozen=True)
class StepTiming:
    """One contestant on one case.

    Attributes:
        case: shapes of the parameters, or the network.
        contestant: which SAM, or the base optimizer.
        milliseconds: median time of a step; for shapes the gradients are given, so it is the optimizer's own time.
        ratio: median over rounds of that time over the fastest peer's of the same round (shapes), or over the time of
            two gradients and the base step (network).
        low, high: quartiles of the ratio; None for one round.
        rounds: interleaved rounds.
    """

    case: str
    contestant: str
    milliseconds: float
    ratio: float
    low: float | None
    high: float | None
    rounds: int

    def row(self) -> dict[str, object]:
        """Return the figures as a flat dict."""
        return asdict(self)


def time_shapes(name: str, *, rounds: int = 15) -> list[StepTiming]:
    """Time steps on parameters of given shapes; every closure costs the same: it sets ``.grad`` to fresh copies.

    Args:
        name: in ``SHAPES``.
        rounds: interleaved rounds, >= 1, after two that are not counted.
    """
    count, shape = SHAPES[name]
    works, names = [], []
    for contestant, make in _contestants().items():
        parameters = [nn.Parameter(torch.randn(shape)) for _ in range(count)]
        gradients = [torch.randn(shape) for _ in range(count)]
        works.append(_bound(make(parameters), _given(parameters, gradients)))
        names.append(contestant)
    seconds = _rounds(works, rounds)
    peers = [i for i, contestant in enumerate(names) if contestant in ("davda54 style", "pytorch_optimizer")]
    best = [min(seconds[i][r] for i in peers) for r in range(rounds)]
    return [_timing(name, who, own, best) for who, own in zip(names, seconds, strict=True)]


def time_network(*, rounds: int = 9) -> list[StepTiming]:
    """Time whole SAM steps of ResNet-20 against two gradients and a base step, taken apart."""
    names, works = [], []
    for contestant, make in {"two gradients + SGD": _two_gradients, **_contestants()}.items():
        if contestant == "SGD":
            continue
        module = build_model("resnet", {}, seed=0).train()
        works.append(_bound(make(list(module.parameters())), _training(module)))
        names.append(contestant)
    seconds = _rounds(works, rounds)
    return [_timing(NETWORK, who, own, seconds[0]) for who, own in zip(names, seconds, strict=True)]


def _contestants() -> dict[str, Callable[[list[nn.Parameter]], Step]]:
    known: dict[str, Callable[[list[nn.Parameter]], Step]] = {
        "SGD": lambda parameters: _sgd(parameters).step,
        "hessprobe": lambda parameters: SAM(_sgd(parameters), rho=0.05).step,
        "davda54 style": _plain_sam,
    }
    if importlib.util.find_spec("pytorch_optimizer") is not None:
        known["pytorch_optimizer"] = _pytorch_optimizer
    return known


def _sgd(parameters: Sequence[nn.Parameter]) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


def _two_gradients(parameters: list[nn.Parameter]) -> Step:
    base = _sgd(parameters)

    def step(closure: Closure) -> None:
        closure()
        closure()
        base.step()

    return step


def _plain_sam(parameters: list[nn.Parameter]) -> Step:
    """Return SAM as most users write it: norms stacked, e added out of place, the old tensors kept and put back."""
    base = _sgd(parameters)

    def step(closure: Closure) -> None:
        closure()
        with torch.no_grad():
            norm = torch.norm(torch.stack([p.grad.norm(p=2) for p in parameters if p.grad is not None]), p=2)
            scale = 0.05 / (norm + 1e-12)
            before = []
            for p in parameters:
                before.append(p.data.clone())
                if p.grad is not None:
                    p.add_(p.grad * scale)
        base.zero_grad()
        closure()
        for p, old in zip(parameters, before, strict=True):
            p.data = old
        base.step()

    return step


def _pytorch_optimizer(parameters: list[nn.Parameter]) -> Step:
    peer: Any = importlib.import_module("pytorch_optimizer").SAM(
        parameters, torch.optim.SGD, rho=0.05, lr=1e-3, momentum=0.9
    )

    def step(closure: Closure) -> None:
        # Its step(closure) perturbs with stale gradients where the closure zeroes them: its phases are called instead.
        closure()
        peer.first_step(zero_grad=True)
        closure()
        peer.second_step(zero_grad=False)

    return step


def _bound(step: Step, closure: Closure) -> Callable[[], object]:
    return lambda: step(closure)


def _given(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> Closure:
    loss = torch.ones(())

    def closure() -> Tensor:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        return loss

    return closure


def _training(module: nn.Module) -> Closure:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 3, 32, 32, generator=generator)
    y = torch.randint(10, (128,), generator=generator)

    def closure() -> Tensor:
        module.zero_grad()
        loss = F.cross_entropy(module(x), y)
        torch.autograd.backward(loss)
        return loss

    return closure


def _rounds(works: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    seconds: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 2):
        for work, times in zip(works, seconds, strict=True):
            start = time.perf_counter()
            work()
            if number > 1:
                times.append(time.perf_counter() - start)
    return seconds


def _timing(case: str, contestant: str, own: Sequence[float], reference: Sequence[float]) -> StepTiming:
    ratios = [a / b for a, b in zip(own, reference, strict=True)]
    low, high = quartiles(ratios)
    return StepTiming(
        case=case,
        contestant=contestant,
        milliseconds=1e3 * statistics.median(own),
        ratio=statistics.median(ratios),
        low=low,
        high=high,
        rounds=len(ratios),
    )

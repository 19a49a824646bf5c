"""Time of a Hessian-vector product in units of a gradient, over a loader, for every engine side by side.

One run visits all contestants in turn, round after round, so that a machine that slows down slows all of them; a
contestant's figure is the median over rounds of its time divided by the time of the gradient *of the same round*.
The gradient is what a training step does: the module called as it is, its mean loss, ``torch.autograd.grad``, over
all batches. A product is one call of the operator, over all batches, with what an engine keeps already kept.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.func import grad, linearize

from hessprobe.benchmarks.cases import Case
from hessprobe.benchmarks.ratios import quartiles
from hessprobe.hvp import ENGINES, Hessian
from hessprobe.objective import EmpiricalBatch, EmpiricalRisk

# Enough for ``auto`` to prefer what pays over a measurement, not over one product.
_EXPECTED_MATVECS = 200

Work = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """One contestant's figure.

    Attributes:
        case: network.
        contestant: engine, ``"auto"``, or a reference.
        vectors: vectors in one call.
        ratio: median time of one vector's product over the time of a gradient.
        low, high: quartiles of that ratio over the rounds; None for one round.
        milliseconds: median time of one vector's product.
        gradient_milliseconds: median time of the gradient.
        rounds: number of rounds.
        prepare_seconds: time before the first product.
        relative_error: against the first contestant, on one vector.
        note: what ``auto`` chose.
    """

    case: str
    contestant: str
    vectors: int
    ratio: float
    low: float | None
    high: float | None
    milliseconds: float
    gradient_milliseconds: float
    rounds: int
    prepare_seconds: float
    relative_error: float
    note: str = ""

    def row(self) -> dict[str, object]:
        """Return the figures as a flat dict."""
        return asdict(self)


@dataclass(frozen=True)
class _Contestant:
    name: str
    product: Callable[[Tensor], Tensor]
    prepare_seconds: float
    note: str = ""


def time_products(
    case: Case,
    *,
    vectors: tuple[int, ...] = (1, 8),
    rounds: int = 9,
    device: torch.device | str = "cpu",
    report: Callable[[str], None] = lambda line: None,
) -> list[Timing]:
    """Time every engine, ``auto`` and the references on one case.

    Args:
        case: the network.
        vectors: block sizes.
        rounds: interleaved rounds for one vector, >= 1, after one that is not counted; blocks, which take as many times
            longer as they have vectors, get a third of them, but 3 where ``rounds`` allows.
        device: where.
        report: told what is being done.
    """
    place = torch.device(device)
    risk = case.risk(place)
    contestants = []
    for name, make in _makers(risk):
        report(f"{case.name}: preparing {name}")
        contestants.append(_prepared(name, make, risk))
    generator = torch.Generator().manual_seed(1)
    blocks = [torch.randn(k, risk.dim, generator=generator).to(place) for k in vectors]
    expected = contestants[0].product(blocks[0][:1])
    timings = []
    for block in blocks:
        works: list[Work] = [gradient_pass(case, risk)]
        works += [lambda c=c, V=block: c.product(V) for c in contestants]  # type: ignore[misc]  # bound now
        names = ["gradient", *(each.name for each in contestants)]

        count = rounds if len(block) == 1 else min(rounds, max(3, rounds // 3))

        def visited(
            number: int, position: int, k: int = len(block), names: list[str] = names, count: int = count
        ) -> None:
            report(f"{case.name}, {k} at once, round {number} of {count}: {names[position]}")

        seconds = _rounds(works, count, place, visited)
        for contestant, own in zip(contestants, seconds[1:], strict=True):
            off = contestant.product(blocks[0][:1]) - expected
            error = float(off.norm() / expected.norm())
            timings.append(_timing(case, contestant, len(block), own, seconds[0], error))
    return timings


def gradient_pass(case: Case, risk: EmpiricalRisk) -> Work:
    """Return the reference work: loss and gradient of every batch by the module itself."""
    module, parameters = risk.module, list(risk.module.parameters())
    data = [(batch.inputs, batch.targets) for batch in risk.terms() if isinstance(batch, EmpiricalBatch)]

    def work() -> None:
        for inputs, targets in data:
            torch.autograd.grad(case.loss(module(inputs), targets), parameters)

    return work


def _makers(risk: EmpiricalRisk) -> Iterator[tuple[str, Callable[[], tuple[Callable[[Tensor], Tensor], str]]]]:
    for engine in ("auto", *ENGINES):
        yield engine, lambda engine=engine: _operator(risk, engine)  # type: ignore[misc]  # bound now
    yield "torch.func.linearize", lambda: (_linearize_reference(risk), "")
    yield "new graph each product", lambda: (_fresh_reference(risk), "")


def _operator(risk: EmpiricalRisk, engine: str) -> tuple[Callable[[Tensor], Tensor], str]:
    H = Hessian(risk, engine=engine, expected_matvecs=_EXPECTED_MATVECS)
    H.matvecs(torch.ones(1, risk.dim, device=risk.device))
    return H.matvecs, H.engine_note if engine == "auto" else ""


def _linearize_reference(risk: EmpiricalRisk) -> Callable[[Tensor], Tensor]:
    """Return what a user would write with torch alone: the gradient of each batch linearized, its residuals kept."""
    with risk.evaluating(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maps = [(batch.weight, linearize(grad(batch), risk.theta)[1]) for batch in risk.terms()]

    def product(V: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([sum(weight * one(v) for weight, one in maps) for v in V])

    return product


def _fresh_reference(risk: EmpiricalRisk) -> Callable[[Tensor], Tensor]:
    """Return the common way over a loader: forward, gradient and its derivative anew for every batch and vector."""

    def one(vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        with risk.evaluating():
            for batch in risk.terms():
                theta = risk.theta.clone().requires_grad_()
                (slope,) = torch.autograd.grad(batch(theta), theta, create_graph=True)
                (column,) = torch.autograd.grad(slope, theta, vector)
                total.add_(column, alpha=batch.weight)
        return total

    return lambda V: torch.stack([one(v) for v in V])


def _prepared(
    name: str, make: Callable[[], tuple[Callable[[Tensor], Tensor], str]], risk: EmpiricalRisk
) -> _Contestant:
    start = _clock(risk.device)
    product, note = make()
    return _Contestant(name, product, _clock(risk.device) - start, note)


def _rounds(
    works: list[Work], rounds: int, device: torch.device, visited: Callable[[int, int], None]
) -> list[list[float]]:
    seconds: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for position, (work, times) in enumerate(zip(works, seconds, strict=True)):
            visited(number, position)
            start = _clock(device)
            work()
            if number:
                times.append(_clock(device) - start)
    return seconds


def _timing(
    case: Case, contestant: _Contestant, vectors: int, own: list[float], gradient: list[float], error: float
) -> Timing:
    ratios = [a / vectors / b for a, b in zip(own, gradient, strict=True)]
    low, high = quartiles(ratios)
    return Timing(
        case=case.name,
        contestant=contestant.name,
        vectors=vectors,
        ratio=statistics.median(ratios),
        low=low,
        high=high,
        milliseconds=1e3 * statistics.median(own) / vectors,
        gradient_milliseconds=1e3 * statistics.median(gradient),
        rounds=len(ratios),
        prepare_seconds=contestant.prepare_seconds,
        relative_error=error,
        note=contestant.note,
    )


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

"""Products of a cross-entropy over a large vocabulary: logits written out, and in chunks of tokens.

Times are of the CPU, of one thread, in gradients of the loss written out, the least of several rounds in which both
ways take turns. A first product includes the loss and its gradient, a further one neither. Memory is the peak of the
resident set of a process of its own above its start, during one first product.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hessprobe.benchmarks.memory import held_memory
from hessprobe.benchmarks.processes import Outcome, run_apart
from hessprobe.hvp.engines import DoubleBackward, Engine, LossFunction, fresh_gradient
from hessprobe.hvp.gauss_newton import JacobianGraph
from hessprobe.objective import EmpiricalRisk, causal_lm_forward, linear_cross_entropy

WAYS = ("written out", "in chunks")
_ROUNDS = 3


@dataclass(frozen=True)
class Head:
    """A language model or the head of one, with random tokens.

    Attributes:
        title: for tables.
        tokens: their number.
        width: of hidden states.
        size: of the vocabulary.
        layers: of a GPT-2 below the head; None for hidden states that are parameters themselves.
    """

    title: str
    tokens: int
    width: int
    size: int
    layers: int | None = None

    @property
    def matrices(self) -> tuple[str, ...]:
        """Those whose products are made: of a head by itself, whose curvature is all in the loss, the Hessian."""
        return ("hessian",) if self.layers is None else ("hessian", "ggn")

    def loss(self, way: str) -> tuple[LossFunction, Tensor]:
        """Return the mean loss as a function of the parameters, and these."""
        source = torch.Generator().manual_seed(0)
        if self.layers is None:
            theta = torch.randn((self.tokens + self.size) * self.width, generator=source) * 0.1
            targets = torch.randint(self.size, (self.tokens,), generator=source)

            def of_head(at: Tensor) -> Tensor:
                hidden, weight = at.view(-1, self.width).split([self.tokens, self.size])  # type: ignore[no-untyped-call]  # untyped in torch
                if way == WAYS[0]:
                    return F.cross_entropy(hidden @ weight.T, targets)
                return linear_cross_entropy(hidden, weight, targets) / self.tokens

            return of_head, theta
        from transformers import GPT2Config, GPT2LMHeadModel

        length = 32
        shape: dict[str, Any] = {"vocab_size": self.size, "n_positions": length, "n_embd": self.width}
        shape |= {"n_layer": self.layers, "n_head": 4, "bos_token_id": None, "eos_token_id": None}
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            model: torch.nn.Module = GPT2LMHeadModel(GPT2Config(**shape))
            model.train(False)
        ids = torch.randint(self.size, (self.tokens // length, length), generator=source)
        forward = None if way == WAYS[0] else causal_lm_forward()
        risk = EmpiricalRisk(model, None, [{"input_ids": ids, "labels": ids}], forward=forward, check=False)
        return next(iter(risk.terms())), risk.theta


CASES = {
    "head-64": Head("head, 1,024 tokens, 64 wide, 50,000 words", 1024, 64, 50_000),
    "head-768": Head("head, 512 tokens, 768 wide, 50,000 words", 512, 768, 50_000),
    "gpt2": Head("GPT-2 of 2 layers, 1,024 tokens, 64 wide, 50,000 words", 1024, 64, 50_000, layers=2),
}


@dataclass(frozen=True)
class Taken:
    """What the products of one matrix took, one way.

    Attributes:
        case: name in ``CASES``.
        matrix: ``"hessian"`` or ``"ggn"``.
        way: one of ``WAYS``.
        gradient, first, further: time of each, in gradients of the loss written out.
        gradient_seconds: time of one of those.
        peak: bytes of a first product; None where the system does not tell.
        relative_error: of the product, against that written out.
    """

    case: str
    matrix: str
    way: str
    gradient: float
    first: float
    further: float
    gradient_seconds: float
    peak: int | None
    relative_error: float

    def row(self) -> dict[str, object]:
        """Return the figures as a flat dict."""
        return asdict(self)


def _engine(matrix: str) -> Engine:
    return DoubleBackward() if matrix == "hessian" else JacobianGraph()


def _direction(theta: Tensor) -> Tensor:
    return torch.randn(1, len(theta), generator=torch.Generator().manual_seed(1))


def peak_of(name: str, matrix: str, way: str) -> int | None:
    """Return the peak of a first product in this process."""
    torch.set_num_threads(1)
    loss, theta = CASES[name].loss(way)
    vector = _direction(theta)
    # What torch imports at a first derivative of a derivative, and none of what they hold.
    DoubleBackward()(lambda at: (at**3).sum(), theta[:2])(vector[:, :2])
    with held_memory() as held:
        _engine(matrix)(loss, theta)(vector)
    return held.peak


def times_of(name: str, matrix: str) -> list[dict[str, Any]]:
    """Return the seconds of gradient, first and further product of both ways, by turns, and the error of each."""
    torch.set_num_threads(1)
    made = [CASES[name].loss(way) for way in WAYS]
    vector = _direction(made[0][1])
    found: list[dict[str, Any]] = [{"gradient": [], "first": [], "further": []} for _ in WAYS]
    for _ in range(_ROUNDS):
        for (loss, theta), times in zip(made, found, strict=True):
            times["gradient"].append(_seconds(lambda loss=loss, theta=theta: fresh_gradient(loss, theta)))  # type: ignore[misc]  # bound now
            kept: list[Any] = []
            make = _engine(matrix)

            def first(make: Engine = make, loss: LossFunction = loss, theta: Tensor = theta, kept: Any = kept) -> None:
                kept.append(make(loss, theta))
                kept.append(kept[0](vector))

            times["first"].append(_seconds(first))
            times["further"].append(_seconds(lambda kept=kept: kept[0](vector)))  # type: ignore[misc]  # bound now
            times["product"] = kept[1]
    exact = found[0]["product"]
    for times in found:
        times["error"] = float((times.pop("product") - exact).norm() / exact.norm())
    return found


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measured(name: str, matrix: str, way: str | None) -> Any:
    """Return ``peak_of`` a way, or ``times_of`` both."""
    return times_of(name, matrix) if way is None else peak_of(name, matrix, way)


def tasks(names: Sequence[str]) -> Iterator[tuple[str, str, str | None]]:
    """Yield what is measured, one process each: first the times of both ways, then the memory of each."""
    for name in names:
        for matrix in CASES[name].matrices:
            yield from ((name, matrix, way) for way in (None, *WAYS))


def follow(names: Sequence[str], finished: Callable[[Taken], None], report: Callable[[str], None]) -> None:
    """Measure both ways in each case.

    Args:
        names: in ``CASES``.
        finished: told of each row.
        report: told what has been done, and of a process that ended without an answer.
    """
    times: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def done(outcome: Outcome) -> None:
        name, matrix, way = outcome.task
        report(f"{name}: {matrix} {way or 'times'} {outcome.failure}".rstrip())
        if outcome.failure:
            return
        if way is None:
            times[name, matrix] = outcome.result
            return
        if (name, matrix) not in times:
            return
        own, unit = times[name, matrix][WAYS.index(way)], min(times[name, matrix][0]["gradient"])
        ratios = {kind: min(own[kind]) / unit for kind in ("gradient", "first", "further")}
        finished(
            Taken(name, matrix, way, **ratios, gradient_seconds=unit, peak=outcome.result, relative_error=own["error"])
        )

    run_apart(measured, list(tasks(names)), jobs=1, finished=done)

"""The suite ``growth``: how the time of a measurement grows, over two decades of examples, parameters and probes.

The time of a fixed number of products is told at five sizes, a half-decade apart, and fitted by c n^e, least squares of
logarithms. Below about a millisecond a batch the time of Python is most of it, so that the smallest sizes are not that
small; where memory runs out of cache the exponent may exceed 1 by a little.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hessprobe.estimators import frobenius_norm, trace
from hessprobe.hvp import Hessian
from hessprobe.krylov import lanczos
from hessprobe.objective import EmpiricalRisk
from hessprobe.operators import LinearOperator
from hessprobe.training.datasets import batches

# Rows of a batch, and what is held while something else grows.
_BATCH, _EXAMPLES, _WIDTH, _PROBES = 256, 1024, 128, 8
_SEED = 0


@dataclass(frozen=True)
class Grown:
    """The time of a question at one size.

    Attributes:
        question: what was measured.
        grows: ``"examples"``, ``"parameters"`` or ``"probes"``.
        size: how many.
        seconds: of processor time of this process, the least of three.
    """

    question: str
    grows: str
    size: int
    seconds: float

    def row(self) -> dict[str, Any]:
        """Return the figures as a flat dict."""
        return asdict(self)


def risk_of(examples: int, width: int) -> EmpiricalRisk:
    """Return the risk of a network of about width^2 parameters, on so many examples of noise."""
    generator = torch.Generator().manual_seed(_SEED)
    torch.manual_seed(_SEED)
    module = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))
    inputs = torch.randn(examples, width, generator=generator)
    labels = torch.randint(10, (examples,), generator=generator)
    return EmpiricalRisk(module, F.cross_entropy, batches(inputs, labels, _BATCH))


def _chain(A: LinearOperator, probes: int, seed: int) -> Any:  # noqa: ARG001  # one signature
    return lanczos(A, torch.randn(1, A.dim, generator=torch.Generator().manual_seed(seed)), 8)


# A fixed number of products each, so that the spectrum does not matter.
QUESTIONS: dict[str, Callable[[LinearOperator, int, int], Any]] = {
    "trace": lambda A, probes, seed: trace(A, n_probes=probes, seed=seed, method="hutchinson", data_error=False),
    "Frobenius norm": lambda A, probes, seed: frobenius_norm(A, n_probes=probes, seed=seed, data_error=False),
    "eight steps of Lanczos": _chain,
}
# Half-decades: of examples, widths (parameters are their squares), probes.
SIZES: dict[str, tuple[int, ...]] = {
    "examples": (256, 816, 2560, 8096, 25_600),
    "parameters": (100, 178, 316, 562, 1000),
    "probes": (4, 13, 40, 126, 400),
}


def measure(
    finished: Callable[[Grown], None],
    *,
    sizes: dict[str, tuple[int, ...]] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Time every question at every size, and hand on each time as it comes.

    Args:
        finished: told of every time.
        sizes: what grows and how; two decades of each by default.
        report: told what is being done.
    """
    for grows, steps in (SIZES if sizes is None else sizes).items():
        for step in steps:
            risk = risk_of(step if grows == "examples" else _EXAMPLES, step if grows == "parameters" else _WIDTH)
            probes = step if grows == "probes" else _PROBES
            for question, ask in QUESTIONS.items():
                if grows == "probes" and ask is _chain:
                    continue
                report(f"{question}, {step:,} {grows}")
                # The engine is chosen, and what it prepares is made, before.
                A = Hessian(risk, engine="double_backward")
                ask(A, probes, 0)
                times = []
                for seed in range(1, 4):
                    began = time.process_time()
                    ask(A, probes, seed)
                    times.append(time.process_time() - began)
                finished(Grown(question, grows, risk.dim if grows == "parameters" else step, min(times)))


def exponent(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return the exponent of c n^e through the times of rows, and its standard error."""
    x = torch.tensor([math.log(row["size"]) for row in rows], dtype=torch.float64)
    y = torch.tensor([math.log(row["seconds"]) for row in rows], dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    left = float((y - slope * x).square().sum()) / max(len(rows) - 2, 1)
    return slope, math.sqrt(left / float(x @ x))


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Return the exponents and the times as a Markdown table."""
    lines = ["| question | grows | from | to | seconds | exponent |", "|---|---|---:|---:|---:|---:|"]
    for question, grows in dict.fromkeys((row["question"], row["grows"]) for row in rows):
        own = [row for row in rows if (row["question"], row["grows"]) == (question, grows)]
        slope, error = exponent(own) if len(own) > 2 else (math.nan, math.nan)  # a line and a residual
        lines.append(
            f"| {question} | {grows} | {own[0]['size']:,} | {own[-1]['size']:,} | {own[0]['seconds']:.3g} to "
            f"{own[-1]['seconds']:.3g} | {slope:.2f} ± {error:.2f} |"
        )
    lines += [
        "",
        "A fixed number of products (8 probes, or 8 steps), double backward, after a first run. What stands still: "
        f"{_EXAMPLES:,} examples in batches of {_BATCH}, {_WIDTH} wide. Processor time of one process.",
    ]
    return "\n".join(lines) + "\n"

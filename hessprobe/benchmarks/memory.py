"""Memory that a measurement takes beside network and data, without a limit and with some, each in its own process.

The peak is that of the resident set above what the process held when the measurement began: network, data and the
libraries, those included that the first derivative of a derivative imports.
"""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from hessprobe.benchmarks import cases
from hessprobe.benchmarks.processes import Outcome, run_apart
from hessprobe.errors import MemoryBudgetError
from hessprobe.estimate import Estimate
from hessprobe.hvp import Hessian
from hessprobe.hvp.pool import give_back_free, shares, status_bytes, within
from hessprobe.krylov import Eigenpairs, eigsh
from hessprobe.measures.registry import measure
from hessprobe.objective import EmpiricalRisk

MB = 10**6
# Modules that torch imports at the first derivative of a derivative, and the first recording: 70 MB, once a process.
_LIBRARIES = ("torch._dynamo", "torch.fx.experimental.proxy_tensor", "sympy", "scipy.special")


@dataclass
class Held:
    """What a block has taken above what the process held when it began.

    Attributes:
        start: bytes held before.
        peak: the largest number of bytes above them; None where the system does not tell (elsewhere than on Linux).
    """

    start: int = 0
    peak: int | None = None


@contextmanager
def held_memory() -> Iterator[Held]:
    """Follow the resident set of the process through a block, of a CPU: its peak is set back at the beginning.

    What the allocator holds unused is given back first, so that it is not taken for room.
    """
    give_back_free()
    held = Held(status_bytes("VmRSS"))
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        yield held
        return
    yield held
    held.peak = status_bytes("VmHWM") - held.start


@dataclass(frozen=True)
class Setting:
    """A network with its data, and what is measured of it within which limits.

    Attributes:
        title: for tables.
        case: the network; its batches are ``batches`` of its own.
        batches: how many.
        measures: of it.
        limits: bytes; None for no limit.
        options: of every measurement.
        tol: where it is given, ``eigsh`` looks for the largest eigenvalue to this relative residual, in a bracket of
            30 %: few products of a network of which each takes many seconds.
    """

    title: str
    case: cases.Case
    batches: int
    measures: tuple[str, ...]
    limits: tuple[int | None, ...]
    options: tuple[tuple[str, Any], ...] = ()
    tol: float | None = None

    def risk(self) -> EmpiricalRisk:
        """Return the risk, made of ``batches`` batches."""
        generator = torch.Generator().manual_seed(0)
        data = [self.case.batch(generator) for _ in range(self.batches)]
        return EmpiricalRisk(self.case.build().eval(), self.case.loss, data)


_GROUP = ("lambda-max", "frob", "trace")
_QUICK = (("rtol", 0.1),)
_ONCE = (("rtol", 0.1), ("data_error", False))


def _gpt(name: str, layers: int, width: int, heads: int) -> cases.Case:
    model = cases.model_of("gpt", vocab_size=8192, context=16, layers=layers, d_model=width, n_heads=heads)
    return cases.Case(name, name, model, cases.tokens(2, 16, 8192), cases.token_loss)


SETTINGS = {
    "mlp": Setting(
        "MLP 784-512-512-10, 2,048 images", cases.CASES["mlp"], 8, _GROUP, (None, 200 * MB, 100 * MB, 75 * MB), _QUICK
    ),
    "resnet20": Setting(
        "ResNet-20, 64 images of 32 x 32",
        cases.CASES["resnet20"],
        2,
        ("lambda-max", "frob"),
        (None, 500 * MB, 200 * MB),
        _QUICK,
    ),
    "gpt": Setting(
        "GPT of 4 layers, 32 sequences of 64", cases.CASES["gpt"], 2, _GROUP, (None, 300 * MB, 150 * MB), _QUICK
    ),
    "digits": Setting(
        "digits MLP 64-128-64-10, 1,797 images",
        cases.Case(
            "digits",
            "digits",
            cases.model_of("mlp", in_features=64, hidden=[128, 64]),
            cases.images(599, (64,)),
            F.cross_entropy,
        ),
        3,
        _GROUP,
        (None, 100 * MB, 50 * MB),
        _QUICK,
    ),
    "gpt-50m": Setting("GPT, 4 sequences of 16", _gpt("gpt-50m", 9, 640, 10), 2, ("lambda-max",), (None,), _ONCE),
    "gpt-200m": Setting(
        "GPT, 2 sequences of 16", _gpt("gpt-200m", 15, 1024, 16), 1, ("lambda-max",), (11_000 * MB,), tol=0.05
    ),
}
# Those that take minutes are measured where they are asked for.
USUAL = ("mlp", "resnet20", "gpt", "digits")


@dataclass(frozen=True)
class Used:
    """What one measurement took.

    Attributes:
        case: name in ``SETTINGS``.
        measure: what was measured.
        limit: bytes it was given, or None.
        parameters: their number.
        peak: bytes above the start of the process; None where it was refused.
        vectors: the same in units of the parameters.
        seconds: of the measurement.
        products: that it made.
        value: what it found.
        interval: of the value.
        refused: the sentence, where the limit is too small.
    """

    case: str
    measure: str
    limit: int | None
    parameters: int
    peak: int | None = None
    vectors: float | None = None
    seconds: float | None = None
    products: float | None = None
    value: float | None = None
    interval: tuple[float, float] | None = None
    refused: str = ""

    def row(self) -> dict[str, object]:
        """Return the figures as a flat dict."""
        return asdict(self)


def _measured(setting: Setting, what: str, risk: EmpiricalRisk, limit: int | None) -> Estimate:
    if setting.tol is None:
        found: Estimate = measure(what, risk, memory=limit, **dict(setting.options))
        return found
    share = shares(limit, risk.dim, risk.dtype.itemsize)
    with within(limit, share):
        H = Hessian(risk, memory=share.products)
        pairs: Eigenpairs = eigsh(H, 1, "largest", tol=setting.tol, rtol=0.3, data_error=False)
        return pairs.estimate(0)


def use(name: str, what: str, limit: int | None) -> Used:
    """Measure in this process, and return what it took."""
    for library in _LIBRARIES:
        importlib.import_module(library)
    setting = SETTINGS[name]
    risk = setting.risk()
    size = risk.dim * risk.theta.element_size()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with held_memory() as held:
                started = time.perf_counter()
                found = _measured(setting, what, risk, limit)
                spent = time.perf_counter() - started
        except MemoryBudgetError as error:
            return Used(name, what, limit, risk.dim, refused=str(error))
    peak = held.peak
    return Used(
        case=name,
        measure=what,
        limit=limit,
        parameters=risk.dim,
        peak=peak,
        vectors=None if peak is None else peak / size,
        seconds=spent,
        products=found.matvecs,
        value=found.value,
        interval=found.interval(),
    )


def tasks(names: Sequence[str]) -> Iterator[tuple[str, str, int | None]]:
    """Yield what is measured of the networks, one process each."""
    for name in names:
        setting = SETTINGS[name]
        yield from ((name, what, limit) for what in setting.measures for limit in setting.limits)


def follow(task: tuple[str, str, int | None], report: Callable[[str], None]) -> list[Used]:
    """Return the one measurement of a task, made in a process of its own.

    Args:
        task: of ``tasks``.
        report: told what has been done, and of a process that ended without an answer.
    """
    found: list[Used] = []

    def done(outcome: Outcome) -> None:
        name, what, limit = outcome.task
        report(f"{name}: {what} within {limit or 'no limit'} {outcome.failure}".rstrip())
        found.append(outcome.result or Used(name, what, limit, 0, refused=f"the process {outcome.failure}"))

    give_back_free()
    run_apart(use, [task], jobs=1, finished=done)
    return found

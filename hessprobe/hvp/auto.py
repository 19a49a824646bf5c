"""Choosing an engine by trying: time the candidates in turn on the first batch, keep the fastest that fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hessprobe.errors import HessprobeError, MemoryBudgetError, UnsupportedError
from hessprobe.hvp.engines import Engine, LossFunction, Product, device_clock
from hessprobe.hvp.pool import Chunked, out_of_memory
from hessprobe.vectors import room_for_vectors

# Products over which the cost of building one is spread when engines are compared: a Lanczos run and a few probes.
EXPECTED_MATVECS = 60

# Rows of a block, and how often one is looked at: an engine may try two ways at the first two.
_BLOCK, _BLOCK_LOOKS = 8, 4

# Rounds of timing: at least and at most; between them until the share of the job that a choice may cost is spent.
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 12
_SHARE = 0.03

# A candidate this many times slower than the best is not timed a third time.
_HOPELESS = 1.6

# Closer than this, timing cannot tell engines apart, and the one with fewer operations is taken.
_TIE = 1.1

# Bytes that a limit must leave to products for a recording to be thought of: the modules of the tracer, and values of
# many small operations that a program holds; vectors as long as the parameters among them.
_RECORDER, _RECORDED = 1 << 28, 8

# What an engine meets when a model lacks a derivative rule; anything else is a bug that must surface.
UNSUPPORTED = (UnsupportedError, RuntimeError, TypeError, IndexError, AssertionError)

Clock = Callable[[], float]


@dataclass(frozen=True)
class Choice:
    """What ``choose`` decided, and why.

    Attributes:
        engine: the engine to use, within the memory budget.
        seconds: time of a product with one vector on the first batch, by engine name.
        reasons: why the other engines were not taken, by name.
    """

    engine: Engine
    seconds: Mapping[str, float]
    reasons: Mapping[str, str]

    def __str__(self) -> str:
        others = "; ".join(f"{name}: {reason}" for name, reason in self.reasons.items())
        return self.engine.name + (f" ({others})" if others else "")


@dataclass(frozen=True)
class _Job:
    """What an engine is wanted for; times are those of one batch, all batches being alike."""

    loss: LossFunction
    theta: Tensor
    budget: int
    n_terms: int
    expected: int
    clock: Clock

    @property
    def alone(self) -> int:
        """Products that come one by one (Lanczos); the others come in blocks (probes)."""
        return min(self.expected, EXPECTED_MATVECS)

    @property
    def blocks(self) -> float:
        return (self.expected - self.alone) / _BLOCK

    def seconds_of(self, work: Callable[[], object]) -> float:
        start = self.clock()
        work()
        return self.clock() - start


@dataclass
class _Candidate:
    name: str
    engine: Engine
    nbytes: int
    build: float
    product: Product | None = field(repr=False)
    singles: list[float] = field(default_factory=list)
    blocks: list[float] = field(default_factory=list)

    def take_times(self, job: _Job) -> None:
        """Time one product as a pass over the data makes it, and a block where blocks will come."""
        product = self.engine(job.loss, job.theta) if self.product is None else self.product
        for rows, times in ((1, self.singles), (_BLOCK, self.blocks)):
            # A block takes as long as several products: a few looks are enough.
            if rows == 1 or (job.blocks and self.singles[1:] and len(self.blocks) < _BLOCK_LOOKS):
                V = torch.ones(rows, job.theta.numel(), dtype=job.theta.dtype, device=job.theta.device)
                total = torch.zeros_like(V)
                times.append(job.seconds_of(lambda total=total, V=V: product.add_to(total, V, 1.0)))  # type: ignore[misc]  # bound now

    def seconds(self, job: _Job) -> float:
        """Return the least time seen of the whole job for one batch; noise only ever adds."""
        unkept = max(0.0, 1 - job.budget / (self.nbytes * job.n_terms)) if self.nbytes and self.engine.keeps else 0.0
        together = job.blocks * (min(self.blocks) if self.blocks else _BLOCK * min(self.singles))
        return self.build * (1 + unkept * (job.alone + job.blocks)) + job.alone * min(self.singles) + together


def choose(
    engines: Mapping[str, Callable[[], Engine]],
    loss: LossFunction,
    theta: Tensor,
    budget: int,
    n_terms: int = 1,
    expected_matvecs: int = EXPECTED_MATVECS,
    clock: Clock | None = None,
) -> Choice:
    """Return the engine with the least time for ``expected_matvecs`` products over ``n_terms`` batches.

    The first ``EXPECTED_MATVECS`` are taken to come one by one (Lanczos), the others in blocks (probes).

    Candidates are timed in turn, round after round, and compared by their least times, so that a machine that is busy
    for a moment slows no single one. Timing takes about 3 % of the expected job, and at least three rounds. An
    engine whose preparation alone takes longer than the whole job with another is not tried. Exact engines come first;
    an inexact one is taken only where no exact one works. An engine whose kept bytes exceed ``budget`` is charged the
    time of building products anew at every pass, and is out where a batch does not fit and cannot be cut.

    Args:
        engines: by name, in the order of their operations a product, fewest first: within 10 % the first is taken.
        loss: of the first batch.
        theta: (d,) where.
        budget: bytes that products may keep.
        n_terms: number of batches.
        expected_matvecs: number of products with all of them.
        clock: seconds; by default the time of the device's completed work.

    Raises:
        UnsupportedError: no engine works; the message carries every reason.
        MemoryBudgetError: those exact engines that work do not fit.
    """
    job = _Job(loss, theta, budget, n_terms, expected_matvecs, clock or (lambda: device_clock(theta.device)))
    reasons: dict[str, str] = {}
    candidates = _prepare(engines, job, reasons)
    _race(candidates, job)
    costs = {c.name: c.seconds(job) for c in candidates}
    least = min(costs.values())
    best = min((c for c in candidates if costs[c.name] <= _TIE * least), key=lambda c: list(engines).index(c.name))
    for name, cost in costs.items():
        if name != best.name:
            ratio = cost / costs[best.name] if costs[best.name] else 1.0
            tie = f"within 10 % of {best.name}, which has fewer operations"
            reasons[name] = f"slower: {ratio:.2g} x the time of {best.name}" if ratio > 1 else tie
    return Choice(best.engine, {c.name: min(c.singles) for c in candidates}, reasons)


def no_recorder(budget: int, theta: Tensor) -> bool:
    """Return whether memory is limited to less than a recording may take, of the network and whatever the network."""
    return room_for_vectors() is not None and budget < _RECORDER + _RECORDED * theta.nbytes


def _prepare(engines: Mapping[str, Callable[[], Engine]], job: _Job, reasons: dict[str, str]) -> list[_Candidate]:
    """Build and time once what works and fits; say in ``reasons`` why the rest does not.

    Raises:
        UnsupportedError, MemoryBudgetError: nothing is left.
    """
    candidates: list[_Candidate] = []
    too_large: MemoryBudgetError | None = None
    made = {name: Chunked(factory(), job.budget) for name, factory in engines.items()}
    for name, engine in sorted(made.items(), key=lambda item: (not item[1].is_exact, item[1].setup_seconds)):
        if not engine.is_exact and (candidates or too_large):
            reasons[name] = "not exact"
            continue
        whole = job.n_terms * min((c.seconds(job) for c in candidates), default=float("inf"))
        if engine.setup_seconds and whole < engine.setup_seconds:
            reasons[name] = f"not worth recording: {candidates[0].name} does the whole job in {whole:.2g} s"
            continue
        if engine.setup_seconds and candidates and no_recorder(job.budget, job.theta):
            reasons[name] = "not recorded: memory is limited"
            continue
        try:
            candidates.append(_candidate(name, engine, job))
        except MemoryBudgetError as error:
            too_large, reasons[name] = error, f"too large: {error}"
        except UNSUPPORTED as error:
            if is_final(error):
                raise
            reasons[name] = f"unsupported: {first_line(error)[:160]}"
        if sum(c.nbytes for c in candidates) > job.budget:
            for candidate in candidates:
                candidate.product = None
    if candidates:
        return candidates
    if too_large is not None:
        raise MemoryBudgetError(f"No engine fits the memory. {'; '.join(reasons.values())}") from too_large
    raise UnsupportedError("No engine can differentiate this model twice. " + "; ".join(reasons.values()))


def _candidate(name: str, engine: Engine, job: _Job) -> _Candidate:
    build = job.seconds_of(lambda: engine(job.loss, job.theta)) if engine.setup_seconds else 0.0
    # Where something is prepared once for all batches (a recording), the second building shows the cost of one.
    start = job.clock()
    product = engine(job.loss, job.theta)
    build = job.clock() - start
    candidate = _Candidate(name, engine, product.nbytes, build, product)
    product(torch.ones(1, job.theta.numel(), dtype=job.theta.dtype, device=job.theta.device))
    candidate.take_times(job)
    return candidate


def _race(candidates: list[_Candidate], job: _Job) -> None:
    """Time the candidates in turn until the share of the job that may be spent on it is over."""
    allowed = _SHARE * job.n_terms * min(c.seconds(job) for c in candidates)
    start = job.clock()
    for number in range(1, _MOST_ROUNDS):
        least = min(c.seconds(job) for c in candidates)
        running = [c for c in candidates if number == 1 or c.seconds(job) <= _HOPELESS * least]
        fewest = _FEWEST_ROUNDS + bool(job.blocks)
        if len(running) < 2 or (number >= fewest and job.clock() - start > allowed):
            return
        for candidate in running:
            candidate.take_times(job)


def first_line(error: Exception) -> str:
    """Return the first line of a message, without the stop at its end; the kind of the error where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def is_final(error: Exception) -> bool:
    """Return whether no other engine can mend it: complaints about the data or the loss, a device without memory."""
    mended = isinstance(error, UnsupportedError | MemoryBudgetError)
    return out_of_memory(error) or (isinstance(error, HessprobeError) and not mended)

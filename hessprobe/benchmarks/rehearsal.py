"""What a measurement will take, told by making it on one batch of its data.

A run over B batches makes about as many products as one over a single batch, whose spectrum is like theirs, and every
product passes over all of them. With n_k products of kind k of t_k seconds each, in a rehearsal of T seconds,

    predicted seconds = T + sum_k n_k t_k (1 / w - 1),    w the weight of the batch that was rehearsed;

what is not a product (bases, probes, the choice of an engine) is paid once. What products keep of that batch is kept of
the others too, as far as the memory for products goes:

    predicted peak = peak of the rehearsal + min((B - 1) kept, room left to products).

Where N ranks share the work, seconds and bytes are those of one of them: it makes and keeps the products of at most
ceil(B / N) batches of a pass. Of what is linear every batch is cut between them, the rehearsed one too.

Where the number of products is fixed beforehand the time is one number. Where a tolerance or a search decides, it
depends on the spectrum of all data, and a range is given, with the least and the most of what networks of 4 and 20
batches gave to one of them: ``SEARCHED`` products of those rehearsed; ``SAMPLED`` of a trace to a tolerance, which one
batch hardly tells, as every batch has probes of its own. Of many batches the spread between them is the error of the
data, which costs nothing; it is then not rehearsed.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

from hessprobe.benchmarks.memory import held_memory
from hessprobe.estimate import GROUPS, Estimate
from hessprobe.hvp.engines import unwritten
from hessprobe.hvp.pool import available_bytes, current, on_this_machine
from hessprobe.measures import MeasureSettings, Progress, measure_all
from hessprobe.measures.context import make_operator
from hessprobe.objective import Objective
from hessprobe.objective.base import BatchLoss

SEARCHED, SAMPLED = (0.6, 2.2), (0.1, 1.2)
# Methods whose products follow from the number of probes, whatever the spectrum.
_FIXED = ("hutchinson", "hutch++", "xtrace", "exact")
_EXPECTED = 60
# Measures of which every batch has probes of its own, and the widest tolerance that is rehearsed.
_LINEAR, _WIDEST = ("trace", "adaptive-trace"), 0.9


class FirstBatch(Objective):
    """The mean loss over the first batch of a risk, at the same parameters.

    Attributes:
        share: weight of that batch in the risk.
    """

    def __init__(self, risk: Objective) -> None:
        self._risk = risk
        self.dim, self.dtype, self.device, self.theta = risk.dim, risk.dtype, risk.device, risk.theta
        self.layout, self.caveats, self.n_terms = risk.layout, risk.caveats, 1
        with risk.evaluating():
            self.share = next(iter(risk.terms())).weight

    def evaluating(self) -> AbstractContextManager[None]:
        """Return that of the risk."""
        return self._risk.evaluating()

    def terms(self) -> Iterator[BatchLoss]:
        """Yield the first batch alone, of weight 1."""
        yield replace(next(iter(self._risk.terms())), weight=1.0)  # type: ignore[type-var]  # batches are dataclasses


@dataclass(frozen=True)
class Foreseen:
    """What one measure will take.

    Attributes:
        measure: its name.
        products: how many the rehearsal made.
        fixed: whether that number is the same whatever the spectrum.
        seconds: predicted.
        low, high: the same with the fewest and the most products; both ``seconds`` where they are fixed.
    """

    measure: str
    products: float
    fixed: bool
    seconds: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """What a measurement will take.

    Attributes:
        measures: one each, in the order of the measurement.
        seconds, low, high: of all of them.
        gradient_seconds: of one gradient over all data.
        peak: bytes beside network, data and libraries; None where the system does not tell.
        kept: bytes of it that products keep of all batches.
        limit: bytes of ``--memory``, None without.
        available: bytes that are free now.
        batches: of the data.
        rehearsed: share of the data that was gone through.
        rehearsal_seconds: what that took.
        ranks: processes that share the work; seconds and bytes are those of one of them.
    """

    measures: tuple[Foreseen, ...]
    seconds: float
    low: float
    high: float
    gradient_seconds: float | None
    peak: int | None
    kept: int
    limit: int | None
    available: int
    batches: int
    rehearsed: float
    rehearsal_seconds: float
    ranks: int = 1

    @property
    def advice(self) -> str:
        """What fits, and which option makes it fit, in a sentence."""
        if self.peak is None:
            return "the system does not tell the memory of a process; --memory SIZE bounds it"
        room = self.available if self.limit is None else self.limit
        where = "of --memory" if self.limit is not None else "free here" if self.ranks == 1 else "free to a rank here"
        if self.peak <= room:
            return f"it fits the {_size(room)} {where}"
        if self.limit is None:
            return f"more than the {_size(room)} {where}: --memory {room * 8 // 10 // 10**6}M cuts it to fit"
        more = math.ceil(self.peak / 10**6)
        return f"more than the {_size(room)} {where}: give --memory {more}M, or a smaller --batch-size"

    def row(self) -> dict[str, Any]:
        """Return the figures as a dict."""
        return {**asdict(self), "advice": self.advice}


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 10**9 else f"{nbytes / 1e6:.0f} MB"


def rehearse(names: Sequence[str], risk: Objective, settings: MeasureSettings) -> Forecast:
    """Return what ``measure_all`` will take, having made it on the first batch; nothing of that is written down.

    Args:
        names: of measures.
        risk: the objective.
        settings: of the measurement.

    Raises:
        MemoryBudgetError: the limit does not hold a measurement of one batch.
        HessprobeError: what the measurement itself would raise.
    """
    part = FirstBatch(risk)
    settings = replace(settings, data_error=settings.data_error and risk.n_terms < GROUPS)
    ranks = current(risk)
    count = 1 if ranks is None else ranks.count
    # Of a pass a rank has at most so many batches; the rehearsed one is the first rank's.
    own = math.ceil(risk.n_terms / count)
    cut, dealt = 1 / part.share - 1, max(own / (part.share * risk.n_terms) - 1, 0.0)
    found: list[Foreseen] = []
    # Every batch has probes of its own for what is linear: a pass over B of them has 1/B of the variance of one.
    wider = replace(settings, rtol=min(settings.rtol * math.sqrt(1 / part.share), _WIDEST))
    linear = [name for name in names if name in _LINEAR]
    with unwritten(), held_memory() as held:
        started = last = time.perf_counter()
        operator = make_operator(part, settings, _EXPECTED)
        others = [name for name in names if name not in linear]
        for group, asked, more in ((others, settings, dealt), (linear, wider, cut)):
            for result in measure_all(group, part, asked, _unheard, operator=operator) if group else ():
                now = time.perf_counter()
                found.append(_foreseen(result.measure, result.estimate, asked, operator, now - last, more))
                last = now
        spent = time.perf_counter() - started
    source = getattr(getattr(operator, "hessian", operator), "_source", None)
    kept = 0 if source is None else source.budget.total - source.budget.room
    rest = 0 if source is None else min(kept * (own - 1), source.budget.room)
    gradient = getattr(operator, "gradient_seconds", None)
    return Forecast(
        measures=tuple(found),
        seconds=sum(each.seconds for each in found),
        low=sum(each.low for each in found),
        high=sum(each.high for each in found),
        gradient_seconds=None if gradient is None else gradient / part.share,
        peak=None if held.peak is None else held.peak + rest,
        kept=kept + rest,
        limit=settings.memory,
        available=available_bytes(risk.device) // on_this_machine(),
        batches=risk.n_terms,
        rehearsed=part.share,
        rehearsal_seconds=spent,
        ranks=count,
    )


def _unheard(event: Progress) -> None:
    """Tell nobody."""


def _foreseen(
    name: str, estimate: Estimate, settings: MeasureSettings, operator: Any, spent: float, more: float
) -> Foreseen:
    times = getattr(operator, "seconds", {})
    passes = sum(count * times.get(kind, 0.0) for kind, count in (estimate.made or {}).items())
    # What is counted twice, or was made in a block, cannot have taken longer than all of it.
    passes = min(passes, spent)
    kind = re.split(r"[:+]", estimate.method)[0]
    fixed = estimate.kind == "exact" or (settings.n_probes is not None and kind in _FIXED)
    whole = spent + passes * more
    factors = (1.0, 1.0) if fixed else SAMPLED if name in _LINEAR else SEARCHED
    low, high = (spent * factor + passes * factor * more for factor in factors)
    return Foreseen(name, estimate.matvecs, fixed, whole, low, high)

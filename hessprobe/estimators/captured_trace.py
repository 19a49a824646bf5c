"""Traces with a pilot's own products deflated: by Hutchinson's estimator on what they leave, or by XTrace on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators import budget
from hessprobe.estimators.budget import Way, leading, remainders
from hessprobe.estimators.hutchinson import FEWEST_SAMPLES, Plan, hutchinson, passes_wanted
from hessprobe.estimators.task import Known, Task, known_parts
from hessprobe.estimators.xtrace import (
    Deflation,
    Exchange,
    deflation,
    exchange,
    exchange_error,
    exchange_trace,
    multiply,
    remainder_std,
    sketch_fits,
    sketch_of,
)
from hessprobe.vectors import ProbeStream, gram

# Products of a pilot that is made for its directions alone, and the least that other ways must take for it, or for the
# products of all its directions, to be made.
SKETCHED, SKETCH_PAYS = 8, 64
# Fewest probes of an XTrace, and the share of its variance beyond that of independent samples.
_FEWEST, _SHARED = 8, 1.3
# Fastest fall of a remainder with the size of the sketch that is believed, as a power.
_FASTEST = 1.5
# Slower than this the remainder does not fall. What is still to be done, over the cost of doubling the sketch, from
# which on that is tried: where the remainder has fallen last, and where it may once more has been captured.
_FLAT, _WORTH, _WORTH_A_LOOK = 0.1, 2, 16
# Share of the last rate that a sketch is trusted to keep when it grows.
_KEPT = 0.6
# Share of the squares that all directions may leave where the spectrum decays; directions that are deflated for safety;
# share of another way's products that a way with fewer directions must come down to.
_DECAYS, _SPARE, _CLEARLY = 0.9, 3, 0.8
# Share of a rival's products that doubling a sketch once may take.
_RISKED = 0.25
# Bytes of fp64 rows that an XTrace may hold.
_MEMORY = 1 << 29


def pilot_products(task: Task) -> tuple[Tensor, Tensor]:
    """Return eight probes of the pilot and their products with A."""
    A = task.operator
    probes = ProbeStream(A.dim, task.seed, task.law, A.dtype, A.device, "pilot").block(0, min(SKETCHED, A.dim))
    return probes, multiply(A, probes)


def captured_way(task: Task, kept: tuple[Tensor, Tensor], value: float, rival: float) -> Way[Estimate] | None:
    """Return the cheapest way with directions of a pilot deflated; None where none promises to beat a rival.

    Where few directions do, as one-sided remainders tell (``captured``), these are deflated and Hutchinson's estimator
    does the rest. Where the pilot decays otherwise, all its directions are multiplied; what then is left on both sides,
    and how fast it falls, decides between Hutchinson's estimator and XTrace on the complement, whose sketch thereby
    grows from the pilot's. No probe of the pilot enters the answer, only its directions.

    Args:
        task: without deflation and without a surrogate that must be used.
        kept: probes and products (m, d) of the pilot.
        value: of the trace, as the pilot saw it.
        rival: products of the best way known.
    """
    probes, products = kept
    m = len(probes)
    if task.basis is not None or task.control or m < 4:
        return None
    left = remainders(products).mean(0)
    plans = [(k, _passes(task, math.sqrt(2 * float(left[k])), m, value)) for k in range(1, m)]
    least = min(k + n for k, n in plans)
    if least <= min(_CLEARLY * rival, 2.0 * m):
        k, n = max((k, n) for k, n in plans if k + n <= least + _SPARE)
        why = f"{k} directions of the pilot leave {n} probes"
        return Way(k + n, lambda: _deflated(task, leading(products, k), n), why)
    basis = leading(products, m)
    decays = len(basis) == m and float(left[-1]) < _DECAYS * float(left[0])
    if not decays or min(rival, task.operator.dim) <= SKETCH_PAYS:
        return None
    return _grown(task, _first(task, probes, products, basis), rival)


def _passes(task: Task, std: float, m: int, value: float) -> int:
    return passes_wanted(task, (value, std / math.sqrt(m), m - 1.0), m, value)


def _deflated(task: Task, basis: Tensor, passes: int) -> Estimate:
    inner = replace(task, basis=basis, given=None)
    return hutchinson(inner, Plan(passes, 1.0, inner, known_parts(inner, controlled=False), {}))


@dataclass(frozen=True)
class _Sketch:
    """Directions that are deflated, and what they leave.

    Attributes:
        deflated: the directions with their products.
        value: of the trace, as the last probes saw it.
        std: standard deviation of one quadratic form of what is left, known to ``m`` - 1 degrees of freedom.
        rate: power of the size of the sketch by which ``std`` falls.
        m: probes behind ``std``.
    """

    deflated: Deflation
    value: float
    std: float
    rate: float
    m: int

    @property
    def size(self) -> int:
        return self.deflated.size


def _first(task: Task, probes: Tensor, products: Tensor, basis: Tensor) -> _Sketch:
    m, deflated = len(probes), deflation(task.operator, basis, seed=task.seed)
    sketch = sketch_of(probes, products, deflated.basis, deflated.image)
    std, coarse = (remainder_std(sketch, count, task.law) for count in (m, m // 2))
    return _Sketch(deflated, exchange_error(sketch, m, task.law)[0], std, _rate(coarse, std), m)


def _rate(before: float, after: float) -> float:
    """Return the power of the size by which a standard deviation has fallen while the sketch was doubled."""
    return min(max(math.log2(before / after), 0.0), _FASTEST) if after > 0 else 0.0


def _doubled(task: Task, sketch: _Sketch) -> _Sketch | None:
    """Return the sketch with as many directions more, from other probes; None where these find less than they are."""
    A, m = task.operator, sketch.size
    known = sketch.deflated
    probes = ProbeStream(A.dim, task.seed, task.law, A.dtype, A.device, "pilot").block(m, 2 * m)
    inside = known.project(probes)
    products = known.project(multiply(A, inside))
    basis = leading(products, m)
    if len(basis) < m:
        return None
    more = deflation(A, basis, seed=task.seed)
    images = known.project(more.image)
    grown = Exchange(probes, basis, images, gram(basis, products), 0.0, inside, A.dim - m)
    std, value = remainder_std(grown, m, task.law), known.trace + exchange_error(grown, m, task.law)[0]
    both = replace(
        known,
        basis=torch.cat([known.basis, basis]),
        image=torch.cat([known.image, more.image]),
        term_traces=known.term_traces + more.term_traces,
        # Not sums over directions; what asks for them finds none.
        term_overlaps=known.term_overlaps[:0],
        term_compressed=None,
        matvecs=known.matvecs + more.matvecs,
    )
    return _Sketch(both, value, std, _rate(sketch.std, std), m)


def _grown(task: Task, sketch: _Sketch, rival: float) -> Way[Estimate]:
    """Return the cheaper of Hutchinson's estimator and XTrace on what a sketch leaves that is doubled while that pays.

    It pays where XTrace would more than double it by itself: its size is then a guess from how the remainder fell last.
    Doubling ends where it takes a share of what the ``rival`` way would: it may find nothing.
    """
    passes, count = _sizes(task, sketch)
    while count > sketch.size:
        least = min(passes, 2 * count, task.operator.dim) / (2 * sketch.size)
        worth = least > (_WORTH if sketch.rate > _FLAT else _WORTH_A_LOOK)
        worth = worth and sketch_fits(task.operator, 2 * sketch.size)
        larger = _doubled(task, sketch) if worth and 2 * sketch.size <= _RISKED * rival else None
        if larger is None:
            break
        sketch = larger
        passes, count = _sizes(task, sketch)
    dim, deflated = task.operator.dim, sketch.deflated
    inner = replace(task, basis=deflated.basis, given=deflated)
    fits = 16 * count * dim <= _MEMORY and sketch_fits(task.operator, count + sketch.size)
    if passes <= 2 * count or 2 * count >= dim or not fits:
        plan = Plan(passes, 1.0, inner, Known(deflated), {})
        why = f"{sketch.size} directions of the pilot leave {passes} probes"
        return Way(passes, lambda: hutchinson(inner, plan), why)
    why = f"the spectrum decays: XTrace needs about {2 * count} products, Hutchinson {passes}"
    return Way(2.0 * count, lambda: _settled(task, count, deflated), why)


def _sizes(task: Task, sketch: _Sketch) -> tuple[int, int]:
    """Return the probes of Hutchinson's estimator, and of XTrace, on what a sketch leaves."""
    cautious = budget.upper_std(sketch.std, sketch.m - 1) * math.sqrt(_SHARED)
    count = budget.smallest_count(
        lambda n: cautious * (sketch.size / (sketch.size + n)) ** (_KEPT * sketch.rate) / math.sqrt(n),
        lambda n: n - 1.0,
        task.goal.target(sketch.value),
        task.goal.confidence,
        minimum=_FEWEST,
        maximum=task.goal.max_probes,
    )
    return _passes(task, sketch.std, sketch.m, sketch.value), count


def _settled(task: Task, count: int, deflated: Deflation | None) -> Estimate:
    return budget.settled(exchanged(task, count, deflated), task.goal, count, count)


def grown_exchange(task: Task) -> Estimate:
    """Return an XTrace of the size that a pilot of eight products asks for, grown from the pilot's sketch.

    Of an operator of so small a rank that the pilot spans its range, one without a pilot's directions, which is exact.
    """
    probes, products = pilot_products(task)
    basis = leading(products, len(products))
    if len(basis) < len(products):
        return exchanged(task, len(products))
    sketch = _first(task, probes, products, basis)
    return _settled(task, _sizes(task, sketch)[1], sketch.deflated)


def exchanged(task: Task, count: int, deflated: Deflation | None = None) -> Estimate:
    """Return the estimate of XTrace with ``count`` probes, on the complement of deflated directions where given."""
    within = None if deflated is None else deflated.basis
    sketch = exchange(task.operator, count, task.seed, task.law, within)
    value, error, solver = exchange_trace(sketch, task.law)
    value += 0.0 if deflated is None else deflated.trace
    if task.callback is not None:
        task.callback(budget.Progress(2 * count, 2 * count, value, error))
    dependent = sketch.factor is None
    return Estimate(
        value=value,
        errors=ErrorParts(probe=error, solver=solver),
        df=math.inf if dependent else count - 1,
        samples=0 if dependent else count,
        method="xtrace" + ("" if deflated is None else "+deflation"),
        kind="exact" if dependent else "estimate",
        flags=("few-probes",) if not dependent and count < FEWEST_SAMPLES else (),
        details={"rank": sketch.basis.shape[0] + (0 if deflated is None else deflated.size)},
    )

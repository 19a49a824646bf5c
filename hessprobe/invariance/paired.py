"""Traces and norms before and after a transform from common probes, as many as a verdict needs.

With probes w_i, f_i = w_i^T A w_i and s_i = ||A w_i||^2, a measure is a function g of the means of (f, s), so that
trace and norm share their products. To first order g moves by the mean of grad g . (x_i - mean x), x = (f, s): these
are the samples that ``estimators.difference`` subtracts probe by probe. Where A' = A they leave rounding, whatever the
error of g itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hessprobe.errors import NonFiniteError
from hessprobe.estimate import ErrorParts, Estimate, Influence, student_quantile
from hessprobe.estimators.budget import joint_df, required_samples, upper_std
from hessprobe.estimators.xtrace import block_rows
from hessprobe.operators import LinearOperator
from hessprobe.vectors import ProbeStream, row_dots

# Probes of the pilot, which enter no answer, and the most that a tolerance may ask for.
PILOT, MOST = 4, 2048
# Products between two reports of progress.
_GROUP = 8

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class _Function:
    """g(mean f, mean s) and its gradient."""

    value: Callable[[float, float], float]
    slope: Callable[[float, float], tuple[float, float]]


def _root_slope(f: float, s: float) -> tuple[float, float]:
    del f
    return 0.0, 0.5 / math.sqrt(s) if s > 0 else 0.0


_TRACE = _Function(lambda f, s: f, lambda f, s: (1.0, 0.0))
_NORM = _Function(lambda f, s: math.sqrt(max(s, 0.0)), _root_slope)
# What is measured with common probes: the function, and whether of diag|w| H diag|w|.
PAIRED: dict[str, tuple[_Function, bool]] = {
    "trace": (_TRACE, False),
    "frob": (_NORM, False),
    "adaptive-trace": (_TRACE, True),
    "adaptive-frob": (_NORM, True),
}


class Probed:
    """Forms and squares (f_i, s_i) of the probes of one operator, computed when first asked for.

    Args:
        A: the operator.
        seed: integer >= 0.
        limit: at most so many probes will be wanted. Where A has no more rows, unit vectors take their place, and
            means are exact.
        report: told how many of how many products are done.
    """

    def __init__(self, A: LinearOperator, seed: int, limit: int, report: Report = lambda done, total: None) -> None:
        self._A, self._report = A, report
        self._stream = ProbeStream(A.dim, seed, "rademacher", A.dtype, A.device)
        self.exact = A.dim <= limit
        self._known = torch.zeros(0, 2, dtype=torch.float64)
        self.seconds = 0.0

    @property
    def matvecs(self) -> int:
        """Products so far."""
        return len(self._known)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return (f_i, s_i) of probes ``start .. stop - 1``, fp64 (stop - start, 2); of all rows where exact.

        Raises:
            NonFiniteError: a product is nan or infinite.
        """
        began = time.perf_counter()
        wanted = self._A.dim if self.exact else stop
        while self.matvecs < wanted:
            done = self.matvecs
            rows = min(block_rows(self._A.dim), _GROUP, wanted - done)
            V = self._probes(done, done + rows)
            products = self._A.matvecs(V)
            found = torch.stack([row_dots(V, products), row_dots(products, products)], 1).cpu()
            if not bool(torch.isfinite(found).all()):
                raise NonFiniteError("products must be finite; got nan or inf. Check the weights and the data.")
            self._known = torch.cat([self._known, found])
            self._report(self.matvecs, wanted)
        self.seconds += time.perf_counter() - began
        return self._known * self._A.dim if self.exact else self._known[start:stop]

    def _probes(self, start: int, stop: int) -> Tensor:
        if not self.exact:
            return self._stream.block(start, stop)
        units = torch.zeros(stop - start, self._A.dim, dtype=self._A.dtype, device=self._A.device)
        units[torch.arange(stop - start), torch.arange(start, stop)] = 1.0
        return units


def estimate(name: str, probed: Probed, count: int) -> Estimate:
    """Return one of ``PAIRED`` from ``count`` >= 2 probes after the pilot.

    Args:
        name: of ``PAIRED``.
        probed: of the operator that belongs to it.
        count: probes.
    """
    function = PAIRED[name][0]
    rows = probed.rows(PILOT, PILOT + count)
    exact, samples = probed.exact, _influence(function, rows)
    return Estimate(
        _value(function, rows),
        ErrorParts(probe=0.0 if exact else float(samples.std()) / math.sqrt(count)),
        df=math.inf if exact else count - 1,
        matvecs=float(probed.matvecs),
        samples=0 if exact else count,
        method="exact" if exact else "common probes",
        kind="exact" if exact else "estimate",
        support=(0.0, math.inf) if function is _NORM else (-math.inf, math.inf),
        seconds=probed.seconds,
        influence=None if exact else Influence({"common": samples[None]}),
    )


def estimate_after(name: str, before: Probed, after: Probed, all_probes: int, count: int) -> Estimate:
    """Return one of ``PAIRED`` after a transform: directly, or as value before plus change.

    The value before may rest on more probes than were spent on the change; where little has changed they tell more of
    the value after than its own probes do.

    Args:
        name: of ``PAIRED``.
        before: of the operator before the transform.
        after: of that after it, in the same coordinates.
        all_probes: probes behind the value before.
        count: probes of both, 2 <= count <= all_probes.
    """
    direct = estimate(name, after, count)
    if before.exact or count == all_probes:
        return direct
    function = PAIRED[name][0]
    here, there = (probed.rows(PILOT, PILOT + count) for probed in (before, after))
    everything = before.rows(PILOT, PILOT + all_probes)
    old, new = _influence(function, here), _influence(function, there)
    # By what the same probes say of all three: a few of them may all be near the mean by chance.
    if not float((new - old).norm()) < min(float(old.norm()), float(new.norm())):
        return direct
    changes = (new - old) / count
    known = _influence(function, everything) / all_probes
    shares = known.clone()
    shares[:count] += changes
    error = math.sqrt(float(shares.square().sum()) * count / (count - 1))
    df = joint_df((float(known.norm()), all_probes - 1.0), (float(changes.norm()), count - 1.0))
    value = _value(function, everything) + _value(function, there) - _value(function, here)
    method = "common probes, value before + change"
    return direct.with_(value=value, errors=ErrorParts(probe=error), df=df, method=method, influence=None)


def probes_for_tolerance(names: list[str], probed: Probed, rtol: float, confidence: float) -> int:
    """Return how many probes bring the relative half-width of every measure below ``rtol``, at most ``MOST``.

    Args:
        names: of ``PAIRED``, all of one operator.
        probed: of that operator; its pilot is used.
        rtol: in (0, 1).
        confidence: level of the intervals.
    """
    rows, wanted = probed.rows(0, PILOT), PILOT
    for name in names:
        function = PAIRED[name][0]
        spread = upper_std(float(_influence(function, rows).std()), PILOT - 1)
        target = rtol * abs(_value(function, rows))
        wanted = max(wanted, MOST if spread and not target else required_samples(spread, target, confidence))
    return min(wanted, MOST)


def probes_for_verdict(
    names: list[str], before: Probed, after: Probed, most: int, resolution: float, level: float
) -> int:
    """Return how many common probes decide whether measures change, as a pilot tells: 4 .. ``most``.

    Enough that the quantile times the error is at most ``resolution`` of the value, or half the change.

    Args:
        names: of ``PAIRED``, all of one operator.
        before: of the operator before the transform.
        after: of that after it, in the same coordinates.
        most: probes at hand, >= 2; with fewer than twice a pilot all are taken.
        resolution: relative, > 0.
        level: of the quantile.
    """
    if before.exact or most < 2 * PILOT:
        return most
    here, there = before.rows(0, PILOT), after.rows(0, PILOT)
    count = PILOT
    for name in names:
        function = PAIRED[name][0]
        spread = float((_influence(function, there) - _influence(function, here)).std())
        old, new = _value(function, here), _value(function, there)
        target = max(resolution * max(abs(old), abs(new)), abs(new - old) / 2)
        cautious = upper_std(spread, PILOT - 1)
        while count < most and student_quantile(level, count - 1) * cautious / math.sqrt(count) > target:
            count += 1
    return count


def _value(function: _Function, rows: Tensor) -> float:
    return function.value(*rows.mean(0).tolist())


def _influence(function: _Function, rows: Tensor) -> Tensor:
    """Return the first-order effect of each probe on the value, times their number; (n,)."""
    mean = rows.mean(0)
    slope = torch.tensor(function.slope(*mean.tolist()), dtype=torch.float64)
    return (rows - mean) @ slope

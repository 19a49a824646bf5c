"""The check: every transform on a copy of the network, its outputs compared, every measure before and after.

All measures of one network, before or after a transform, from shared operators and shared probes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import HessprobeError, UnsupportedError
from hessprobe.estimate import Estimate
from hessprobe.estimators.budget import Progress
from hessprobe.hvp import Hessian
from hessprobe.invariance import paired
from hessprobe.invariance.actions import Site, State
from hessprobe.invariance.attention import Skip
from hessprobe.invariance.names import (
    DEFAULT_STRENGTHS,
    INVARIANT,
    MEASURES,
    NOT_MEASURED,
    TRANSFORMS,
    UNDECIDED,
    default_measures,
)
from hessprobe.invariance.paired import PAIRED, Probed, estimate, estimate_after, probes_for_verdict
from hessprobe.invariance.run import Runner
from hessprobe.invariance.sites import Found, find_sites
from hessprobe.invariance.verdict import LEVEL, RESOLUTION, Compared, Theory, compare, expected
from hessprobe.measures.context import MeasureSettings, make_operator
from hessprobe.measures.registry import judged, measure_all
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.copying import risk_of
from hessprobe.operators import Congruence, LinearOperator, Reordered

Report = Callable[[Progress], None]
Values = dict[str, Estimate | HessprobeError]

# Measures after a transform that share no probes with those before draw from other streams: independent errors.
_AFTER = 7919


class Measured:
    """The measures of one network.

    Args:
        names: of ``MEASURES``.
        risk: the network, loss and data.
        settings: how; its seed is that of the probes before and after alike.
        order: (d,) entry of the network before that each entry of theta was, None where none has moved.
        report: told of progress.
    """

    def __init__(
        self,
        names: Sequence[str],
        risk: EmpiricalRisk,
        settings: MeasureSettings,
        *,
        order: Tensor | None = None,
        report: Report = lambda event: None,
    ) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._risk, self._settings, self._order, self._report = risk, settings, order, report
        self._A = make_operator(risk, settings)
        self._limit = settings.n_probes or paired.MOST
        self.probed = {adaptive: self._probed(adaptive) for adaptive in (False, True) if self.paired(adaptive)}
        self._counts: dict[bool, int] = {}

    @property
    def engine(self) -> str:
        """The engine of the products, which the next network uses without timing all of them again."""
        return self._A.engine.name if isinstance(self._A, Hessian) else self._settings.engine

    def paired(self, adaptive: bool) -> list[str]:
        """Return the wanted measures that share probes, of H or of diag|w| H diag|w|."""
        return [name for name in self.names if name in PAIRED and PAIRED[name][1] is adaptive]

    def count(self, adaptive: bool) -> int:
        """Return how many probes the values before a transform rest on."""
        if adaptive not in self._counts:
            how = self._settings
            self._counts[adaptive] = how.n_probes or paired.probes_for_tolerance(
                self.paired(adaptive), self.probed[adaptive], how.rtol, how.confidence
            )
        return self._counts[adaptive]

    def others(self, *, after: bool = False) -> Values:
        """Return the measures that share no probes; one that does not exist here as the error that says so.

        Args:
            after: draw from other streams than before.
        """
        settings = replace(self._settings, seed=self._settings.seed + _AFTER) if after else self._settings
        names = [name for name in self.names if name not in PAIRED]
        found: Values = {}
        if names:
            for one in measure_all(
                names, self._risk, settings, self._report, operator=self._A, missing=found.__setitem__
            ):
                found[one.measure] = one.estimate
        return found

    def values(self) -> Values:
        """Return every measure in the order asked for."""
        found = self.others()
        for adaptive, probed in self.probed.items():
            count = self.count(adaptive)
            found.update({name: paired.estimate(name, probed, count) for name in self.paired(adaptive)})
        return {name: found[name] for name in self.names}

    def _probed(self, adaptive: bool) -> Probed:
        A: LinearOperator = Congruence(self._A, self._risk.theta.abs()) if adaptive else self._A
        stage = "common probes, adaptive" if adaptive else "common probes"
        pulled = A if self._order is None else Reordered(A, self._order)
        return Probed(
            pulled,
            self._settings.seed,
            self._limit,
            lambda done, total: self._report(Progress(float(done), float(total), stage=stage)),
        )


# Curvature amplifies the rounding that the outputs show.
_AMPLIFIED = 10.0


@dataclass(frozen=True, eq=False)
class Applied:
    """A transform at all its sites with one strength.

    Attributes:
        kind: name in ``TRANSFORMS``.
        strength: s; None for a permutation.
        sites: where it acts.
        distance: max |f - f'| / max |f| over the outputs on all data.
        with_old_eps: the same where the eps of the layers does not follow; None where no eps does.
        tolerance: what of that counts as rounding.
        factors: (d,) fp64, the factor of each parameter in theta.
        order: (d,) the entry of theta before that each entry is; None where none has moved.
    """

    kind: str
    strength: float | None
    sites: tuple[Site, ...]
    distance: float
    tolerance: float
    factors: Tensor
    with_old_eps: float | None = None
    order: Tensor | None = None

    @property
    def preserved(self) -> bool:
        """Whether the outputs stay."""
        return self.distance <= self.tolerance

    @property
    def log_volume(self) -> float:
        """The logarithm of det D, by which the transform stretches volumes in theta."""
        return float(self.factors.log().sum())


@dataclass(frozen=True, eq=False)
class Line:
    """One measure under one transform.

    Attributes:
        applied: the transform.
        measure: its name.
        before, after: the two numbers, None where there is none.
        compared: their comparison, or None.
        theory: what was expected, or None.
        note: why there is no comparison, or none that decides.
    """

    applied: Applied
    measure: str
    before: Estimate | None = None
    after: Estimate | None = None
    compared: Compared | None = None
    theory: Theory | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """See ``compare``; ``"not measured"`` where there is no comparison.

        A measure that must change, and does not by more than its sampling error, is undecided: no sample is evidence
        against a theorem.
        """
        if self.compared is None:
            return NOT_MEASURED
        must_change = self.theory is not None and self.theory.invariant is False
        hidden = must_change and self.compared.verdict == INVARIANT and self.compared.error > self.compared.bound
        return UNDECIDED if hidden else self.compared.verdict

    @property
    def surprising(self) -> bool:
        """Whether the measurement contradicts the theory: what must stay changes, or not by what was predicted."""
        return self.compared is not None and self.theory is not None and self.compared.contradicts(self.theory)

    @property
    def reason(self) -> str:
        """Why the verdict is what it is, in one clause."""
        return self.note or ("" if self.theory is None else self.theory.reason)


def check_invariance(
    risk: EmpiricalRisk,
    measures: Sequence[str] | None = None,
    transforms: Sequence[str] | None = None,
    strengths: Sequence[float] = DEFAULT_STRENGTHS,
    settings: MeasureSettings | None = None,
    *,
    resolution: float = RESOLUTION,
    found: Found | None = None,
    report: Report = lambda event: None,
) -> Iterator[Line]:
    """Yield a line for every transform, strength and measure.

    Args:
        risk: what is measured; its module is never changed.
        measures: names of ``MEASURES``; by default ``default_measures`` of a network of this size.
        transforms: names of ``TRANSFORMS``; by default those that act somewhere.
        strengths: factors s > 0 other than 1.
        settings: how to measure, the seed of the transforms included.
        resolution: see ``compare``, in (0, 1).
        found: of ``find_sites(risk)``, where it is known.
        report: told of progress.

    Raises:
        TypeError: a risk that is no ``EmpiricalRisk``, or a strength that is no number.
        ValueError: an unknown name, or a strength or resolution outside its range.
        UnsupportedError: a transform that acts nowhere in this network; says why.
    """
    how = settings or MeasureSettings()
    _require(risk, measures or (), transforms, strengths, resolution)
    places = find_sites(risk) if found is None else found
    kinds = _kinds(places, transforms)
    names = default_measures(risk.dim) if measures is None else measures
    before = Measured(names, risk, how, report=report)
    check = _Check(before, before.values(), how, resolution, report)
    runner = Runner.of(risk)
    for kind in kinds:
        for strength in strengths if TRANSFORMS[kind].scaled else (None,):
            yield from _lines(runner, places.of(kind), strength, check)


def apply(runner: Runner, sites: Sequence[Site], strength: float | None, seed: int) -> tuple[Applied, State]:
    """Return a transform at sites of one kind, and the state of the network after it.

    Args:
        runner: of the network.
        sites: at least one, all of one kind.
        strength: s; None for a permutation.
        seed: of random factors and orders.
    """
    state = runner.state()
    ones = {name: torch.ones_like(tensor, dtype=torch.float64) for name, tensor in state.items()}
    places = {**ones, **_places(runner)}
    moved, factors = state, ones
    scale = 1.0 if strength is None else strength
    for turn, site in enumerate(sites):
        for_state, for_ones = (torch.Generator().manual_seed((seed + 1) * 1000 + turn) for _ in range(2))
        moved = site.move(moved, scale, for_state, turn)
        if TRANSFORMS[site.kind].scaled:
            factors = site.move(factors, scale, for_ones, turn)
        else:
            places = site.move(places, scale, for_ones, turn)
    layout, kind = runner.risk.layout, sites[0].kind
    D = layout.join(factors[name] for name in layout.names)
    order = None if TRANSFORMS[kind].scaled else layout.join(places[name] for name in layout.names).long()
    distance = runner.distance(state, moved)
    old_eps = runner.distance(state, runner.eps_of(state, moved)) if kind == "norm-scale" else None
    return Applied(kind, strength, tuple(sites), distance, runner.tolerance, D, old_eps, order), moved


@dataclass(frozen=True)
class _Check:
    """What all transforms are compared with, and how.

    Attributes:
        before: the network before.
        values: its measures.
        settings, resolution, report: of ``check_invariance``.
    """

    before: Measured
    values: Values
    settings: MeasureSettings
    resolution: float
    report: Report


def _places(runner: Runner) -> State:
    """Return for every parameter in theta the numbers of its entries in theta."""
    risk = runner.risk
    numbers = torch.arange(risk.dim, dtype=torch.float64, device=risk.device)
    return dict(risk.layout.split(numbers))


def _lines(runner: Runner, sites: Sequence[Site], strength: float | None, check: _Check) -> Iterator[Line]:
    applied, state = apply(runner, sites, strength, check.settings.seed)
    names = check.before.names
    if not applied.preserved:
        note = f"the outputs move by {applied.distance:.1e} of the largest, more than {applied.tolerance:.0e}"
        yield from (Line(applied, name, note=note) for name in names)
        return
    title = applied.kind if strength is None else f"{applied.kind} {strength:g}"

    def renamed(event: Progress) -> None:
        check.report(replace(event, stage=f"{title}: {event.stage}"))

    moved = risk_of(runner.risk, runner.written(state))
    settings = replace(check.settings, engine=check.before.engine)
    after = Measured(names, moved, settings, order=applied.order, report=renamed)
    values, common = _after(check, after)
    for name in names:
        yield _line(applied, name, (check.values[name], values[name]), common.get(name), check)


def _after(check: _Check, after: Measured) -> tuple[Values, dict[str, tuple[Estimate, Estimate]]]:
    """Return the measures after a transform, and for those that share probes both sides from the same ones."""
    values, common = after.others(after=True), {}
    for adaptive, probed in after.probed.items():
        names, before, most = after.paired(adaptive), check.before.probed[adaptive], check.before.count(adaptive)
        # A tolerance is asked of the values after a transform as of those before.
        sized = check.settings.n_probes is None
        count = most if sized else probes_for_verdict(names, before, probed, most, check.resolution, LEVEL)
        for name in names:
            values[name] = estimate_after(name, before, probed, most, count)
            common[name] = (estimate(name, before, count), estimate(name, probed, count))
    return values, common


def _line(
    applied: Applied,
    name: str,
    both: tuple[Estimate | HessprobeError, Estimate | HessprobeError],
    common: tuple[Estimate, Estimate] | None,
    check: _Check,
) -> Line:
    before, after = both
    for one in both:
        if isinstance(one, HessprobeError):
            return Line(applied, name, note=one.args[0])
    if not isinstance(before, Estimate) or not isinstance(after, Estimate):
        return Line(applied, name)
    before, after = judged(before, check.settings), judged(after, check.settings)
    rounding = _AMPLIFIED * applied.tolerance
    compared = compare(name, before, after, rounding=rounding, resolution=check.resolution, common=common)
    theory = expected(name, applied.kind, applied.factors, before)
    ranks = [one.details.get("rank") for one in (before, after)]
    note = "" if ranks[0] == ranks[1] else f"{ranks[0]} eigenvalues are above rounding before, {ranks[1]} after"
    return Line(applied, name, before, after, compared, theory, note)


def _require(
    risk: EmpiricalRisk,
    measures: Sequence[str],
    transforms: Sequence[str] | None,
    strengths: Sequence[float],
    resolution: float,
) -> None:
    if not isinstance(risk, EmpiricalRisk):
        raise TypeError(
            f"risk must be an EmpiricalRisk; got {type(risk).__name__}. A transform needs the module: "
            "pass EmpiricalRisk(model, loss, data)."
        )
    for name in measures:
        checks.one_of("measure", name, MEASURES)
    for name in transforms or ():
        checks.one_of("transform", name, TRANSFORMS)
    for strength in strengths:
        checks.real("strength", strength, low=0, low_open=True)
        if strength == 1:
            raise ValueError("strength must be another number than 1; got 1. It would change nothing: pass e.g. 2.")
    checks.real("resolution", resolution, low=0, high=1, low_open=True, high_open=True)


def _kinds(found: Found, transforms: Sequence[str] | None) -> tuple[str, ...]:
    if transforms is None:
        if not found.kinds:
            raise UnsupportedError(_nowhere("no transform", found.skips))
        return tuple(name for name in TRANSFORMS if name in found.kinds)
    for name in transforms:
        if name not in found.kinds:
            raise UnsupportedError(_nowhere(name, tuple(skip for skip in found.skips if skip.kind == name)))
    return tuple(dict.fromkeys(transforms))


def _nowhere(what: str, skips: Sequence[Skip]) -> str:
    reasons = "; ".join(f"at {skip.where}: {skip.reason}" for skip in skips[:3])
    found = f"got {reasons}" if reasons else "got a network without such layers"
    return f"transform must act somewhere in this network, but {what} does; {found}. Choose another transform."

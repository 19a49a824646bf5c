"""What a measurement is asked for, what it hands back, and what several measures of one operator share.

Shared work is computed when first asked for, and only once.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor

from hessprobe import checks, estimators, krylov
from hessprobe.errors import NumericalWarning
from hessprobe.estimate import GROUPS, Estimate
from hessprobe.estimators import budget
from hessprobe.estimators.budget import Progress
from hessprobe.estimators.diagonal import without_error
from hessprobe.estimators.spectral_density import HALF_WIDTH, chains_for, resolves
from hessprobe.estimators.whole import LARGEST
from hessprobe.hvp import Fisher, FunctionalPart, GaussNewton, Hessian
from hessprobe.hvp.pool import shares
from hessprobe.hvp.verification import ProductError
from hessprobe.measures.grouping import by_group
from hessprobe.measures.table import GROUPINGS, TABLE
from hessprobe.objective.base import Objective
from hessprobe.objective.preconditioner import Preconditioner
from hessprobe.operators import Block, LinearOperator
from hessprobe.vectors import orthonormal_rows

OPERATORS = ("hessian", "ggn", "fisher", "functional")

# Damping where none is given, in units of the eigenvalues; the record says so.
DEFAULT_SHIFT = 1e-3

_BRACKET, _DELTA = 1e-3, 0.005


@dataclass(frozen=True)
class MeasureSettings:
    """How to measure.

    Attributes:
        operator: ``"hessian"``, ``"ggn"``, ``"fisher"`` or ``"functional"``, the Hessian less ``"ggn"``.
        rtol: the half-width of each interval at ``confidence`` is at most rtol * |value|; ignored with ``n_probes``.
        n_probes: fixed number of probes instead, >= 2, or None.
        seed: integer >= 0.
        per_layer: also one value for every parameter tensor (lambda-max, trace, frob).
        group: also one value for every ``"module"``, ``"layer"`` or attention ``"head"`` instead, see
            ``measures.grouping``; None for parameter tensors. It sets ``per_layer``.
        engine: of the products, see ``hvp.Hessian``.
        memory: bytes that all of it may take above what the process holds already, or None; see ``hvp.pool.shares``.
        confidence: level of the intervals.
        k: eigenpairs an end that are found together with the extreme ones.
        shift: damping of logdet and effective-dimension, > 0, in units of the eigenvalues; 1e-3 where None. Of
            universal:logdet and universal:det the power of two from twice the Frobenius norm on, where None.
        radius: measure universal:* from losses alone at this radius (and half of it), > 0; by products where None.
        data_error: tell the error that comes from the data being a sample; False saves what that takes.
        per_batch: also the largest eigenvalue of every batch (lambda-max and those like it), see
            ``measures.minibatches``.

    Raises:
        TypeError, ValueError: a value outside its range.

    Examples:
        >>> import hessprobe as hp
        >>> settings = hp.MeasureSettings(operator="ggn", rtol=0.05)
        >>> settings.operator, settings.rtol, settings.damping
        ('ggn', 0.05, 0.001)
    """

    operator: str = "hessian"
    rtol: float = 0.01
    n_probes: int | None = None
    seed: int = 0
    per_layer: bool = False
    engine: str = "auto"
    memory: int | None = None
    confidence: float = 0.95
    k: int = 1
    shift: float | None = None
    radius: float | None = None
    data_error: bool = True
    group: str | None = None
    per_batch: bool = False

    def __post_init__(self) -> None:
        checks.one_of("operator", self.operator, OPERATORS)
        checks.real("rtol", self.rtol, low=0, high=1, low_open=True, high_open=True)
        if self.n_probes is not None:
            checks.positive_int("n_probes", self.n_probes, minimum=2, hint="One sample has no standard error.")
        checks.resolve_seed(self.seed)
        checks.real("confidence", self.confidence, low=0, high=1, low_open=True, high_open=True)
        checks.positive_int("k", self.k)
        if self.shift is not None:
            checks.real("shift", self.shift, low=0, low_open=True)
        if self.radius is not None:
            checks.real("radius", self.radius, low=0, low_open=True)
        if self.group is not None:
            checks.one_of("group", self.group, GROUPINGS)
            object.__setattr__(self, "per_layer", True)
        if not isinstance(self.data_error, bool):
            raise TypeError(f"data_error must be True or False; got {self.data_error!r}. False leaves it out.")

    @property
    def bracket_rtol(self) -> float:
        """Relative width of an eigenvalue's bracket: ``rtol``, or one per mille where the probes are fixed."""
        return self.rtol if self.n_probes is None else _BRACKET

    @property
    def bracket_delta(self) -> float:
        """Probability that a bracket fails, so that a difference of two reaches ``confidence`` as well."""
        return min(_DELTA, (1 - self.confidence) / 2)

    @property
    def damping(self) -> float:
        """The shift in use."""
        return DEFAULT_SHIFT if self.shift is None else self.shift


def settings_of(owner: str, others: Iterable[str] = (), **given: Any) -> MeasureSettings:
    """Return the settings that ``owner`` was given as keywords.

    Args:
        owner: the function or class, for the message.
        others: further arguments that it has.
        given: fields of ``MeasureSettings``.

    Raises:
        TypeError, ValueError: an unknown field (the message names the nearest), or a value outside its range.
    """
    known = [each.name for each in fields(MeasureSettings)]
    for name in given:
        if name not in known:
            raise TypeError(checks.no_argument(owner, name, dict.fromkeys((*others, *known))))
    return MeasureSettings(**given)


@dataclass(frozen=True)
class Result:
    """One measured number: what the function of a measure returns that has more to say than an estimate, then named.

    Attributes:
        estimate: value, error, cost.
        layers: value by parameter tensor, or None.
        arrays: further results by name.
        notes: what a reader should know, in words.
        measure: registered name.
        operator: see ``MeasureSettings``.
        unit: of the value.
        engine: how products were made, and why not otherwise.
    """

    estimate: Estimate
    layers: dict[str, Estimate] | None = None
    arrays: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    measure: str = ""
    operator: str = ""
    unit: str = ""
    engine: str = ""


Work = TypeVar("Work")
Report = Callable[[Progress], None]

# Eigenvalues are cheap to polish once found: the relative residual asked for, whatever the tolerance of the rest.
_EIGEN_TOL = 1e-3
# Directions treated exactly by what samples the rest; rough eigenvectors do, as no estimator is biased by them.
_DEFLATED, _DEFLATED_SWEEP = 16, 96
_ROUGH_TOL = 0.05
# Products for the smallest eigenvalue of a positive semidefinite matrix, which rarely stands apart.
_SMALLEST = 200
# Products that the search may make for each of them.
_SEARCH = 10
# What a sweep of Lanczos chains spends, and other measures.
_SWEEP_PRODUCTS, _FEW_PRODUCTS = 400, 60
# The least that a sweep for a tolerance is expected to take: chains, those of its pilot among them, and their steps.
_SWEEP_CHAINS, _SWEEP_STEPS = 16, 64
# Chains beyond which a density is not measured as far as its band asks for: below 3,600 parameters.
_BAND_CHAINS = 4


@dataclass(frozen=True)
class Start:
    """What the measurement of a neighboring point passes on, to start the next one from.

    Attributes:
        eigenvectors: (k, d) of the extreme eigenvalues, or None.
        directions: (j, d) rough leading eigenvectors, or None.
        engines: names of the engines of the operator and of its surrogate, where they have been chosen.
    """

    eigenvectors: Tensor | None = None
    directions: Tensor | None = None
    engines: tuple[str, str] = ("auto", "auto")


class Context:
    """One operator at one point, and the computations that measures draw on.

    Args:
        risk: the objective.
        settings: how to measure.
        names: all measures that will be asked for; what they need together is planned from it.
        report: told of progress.
        start: left by a neighboring point of the same data; fewer products are needed from there, and the values are
            the same within their errors.
        operator: the operator of these settings, where it is made already.
        preconditioner: of the optimizer; that of the risk by default.

    Attributes:
        shares: of the limit of memory.

    Raises:
        MemoryBudgetError: the limit does not hold a few vectors.
    """

    def __init__(
        self,
        risk: Objective,
        settings: MeasureSettings,
        names: Iterable[str],
        report: Report,
        start: Start | None = None,
        operator: LinearOperator | None = None,
        preconditioner: Preconditioner | None = None,
    ) -> None:
        self.risk, self.settings = risk, settings
        self._preconditioner = preconditioner
        self.names = frozenset(names)
        self.needs = frozenset(need for name in self.names for need in TABLE[name].needs)
        self.shares = shares(settings.memory, risk.dim, risk.dtype.itemsize)
        self._work: dict[Callable[[Context], Any], Any] = {}
        self._report = report
        self._start = start or Start()
        self._shared_seconds = 0.0
        expected = _SWEEP_PRODUCTS if "sweep" in self.needs else _FEW_PRODUCTS
        if operator is None:
            operator = make_operator(risk, settings, expected, self._start.engines)
        self.A: LinearOperator = operator
        # A with the groups of the settings as its blocks, else parameter tensors.
        self.by_group = operator if settings.group is None else by_group(operator, risk, settings.group)

    @cached_property
    def eigenpairs(self) -> krylov.Eigenpairs:
        """Extreme eigenpairs: both ends in one run where the bottom one is wanted."""
        both = "both ends" in self.needs and not self.A.psd
        k = min(self.settings.k, self.A.dim)

        def progress(state: krylov.Progress) -> None:
            self._report(Progress(state.matvecs, None, state.largest, state.largest_residual, stage="eigenvalues"))

        which, start = "both" if both else "largest", self._start.eigenvectors
        pairs = self.bracketed(self.A, which, k, start=start, callback=progress)
        self._report(Progress(pairs.matvecs, pairs.matvecs, float(pairs.values[0]), stage="eigenvalues"))
        return pairs

    def bracketed(self, A: LinearOperator, which: str, k: int = 1, **more: Any) -> krylov.Eigenpairs:
        """Return extreme eigenpairs with brackets of the width and the level that the settings ask for."""
        settings = self.settings
        return krylov.eigsh(
            A,
            k,
            which,
            tol=_EIGEN_TOL,
            rtol=settings.bracket_rtol,
            confidence=1 - settings.bracket_delta,
            seed=settings.seed,
            data_error=settings.data_error,
            **more,
        )

    @property
    def preconditioner(self) -> Preconditioner | None:
        """Of the optimizer; that of the risk by default."""
        return self._preconditioner or self.risk.preconditioner

    @cached_property
    def smallest(self) -> Estimate:
        """lambda_min; of a positive semidefinite operator the run of its own it needs."""
        if not self.A.psd:
            return self.eigenpairs.estimate(-1)
        pairs = self.bracketed(self.A, "smallest", max_matvecs=_SMALLEST)
        estimate = pairs.estimate(0)
        return estimate.with_(support=(0.0, math.inf))

    @cached_property
    def layer_eigenvalues(self) -> dict[str, Estimate]:
        """Largest eigenvalue of the block of each tensor or group; none exceeds that of the whole (Cauchy)."""
        A, found = self.by_group, {}
        blocks = A.blocks
        for index, (name, where) in enumerate(blocks.items()):

            def progress(state: krylov.Progress, index: int = index) -> None:
                told = (index, len(blocks), state.largest, state.largest_residual)
                self._report(Progress(*told, stage="layers' eigenvalues"))

            pairs = self.bracketed(Block(A, where), "largest", callback=progress)
            found[name] = pairs.estimate(0)
        self._report(Progress(len(blocks), len(blocks), stage="layers' eigenvalues"))
        return found

    def product_error(self, estimate: Estimate) -> ProductError | None:
        """Return what finite differences are off by in an estimate; None where products are exact.

        Measured once, and once more on every coordinate where the estimate is made of all.
        """
        hessian = self.A if isinstance(self.A, Hessian) else getattr(self.A, "hessian", None)
        if not isinstance(hessian, Hessian):
            return None
        every = self.takes_whole or estimate.kind == "exact" or "exact" in estimate.method
        if every not in self._product_errors:
            found = hessian.product_error(self.settings.seed, every_coordinate=every)
            self._product_errors[every] = found
        return self._product_errors[every]

    @cached_property
    def _product_errors(self) -> dict[bool, ProductError | None]:
        return {}

    @cached_property
    def takes_whole(self) -> bool:
        """True where a sweep is wanted and d products, which answer exactly, are no more than one is expected to take.

        That is the search for leading directions where there is one, their products, and the smallest run.
        """
        start, chains = self._start.directions, self.settings.n_probes or _SWEEP_CHAINS
        found = 0
        if self.settings.n_probes is not None or start is not None:
            found = len(start) if start is not None else (_SEARCH + 1) * self._directions_wanted
        expected = found + chains * _SWEEP_STEPS
        return "sweep" in self.needs and self.A.dim <= LARGEST and budget.exact_pays(self.A.dim, expected)

    @property
    def _norm_of_sketch(self) -> bool:
        return self.takes_whole and not self.settings.per_layer

    @property
    def _directions_wanted(self) -> int:
        return min(_DEFLATED_SWEEP if "sweep" in self.needs else _DEFLATED, self.A.dim // 8)

    @cached_property
    def directions(self) -> estimators.Deflation | None:
        """Rough leading eigenvectors with their products; they carry most of the variance of what samples the rest."""
        started = time.perf_counter()
        found = self._rough_directions()
        self._shared_seconds = time.perf_counter() - started
        return found

    def _rough_directions(self) -> estimators.Deflation | None:
        if self.takes_whole:
            return None
        if self._start.directions is not None:
            return estimators.deflation(self.A, self._start.directions, seed=self.settings.seed, parts=self._parts)
        count = self._directions_wanted
        if count == 0:
            return None
        with warnings.catch_warnings():
            # That some have not converged is of no consequence here.
            warnings.simplefilter("ignore", NumericalWarning)
            pairs = krylov.eigsh(
                self.A,
                count,
                "magnitude",
                tol=_ROUGH_TOL,
                rtol=None,
                seed=self.settings.seed,
                verify=False,
                max_matvecs=_SEARCH * count,
                data_error=False,
            )
        self._report(Progress(pairs.matvecs, pairs.matvecs, stage="leading directions"))
        found = estimators.deflation(self.A, pairs.vectors, seed=self.settings.seed, parts=self._parts)
        return replace(found, matvecs=found.matvecs + pairs.matvecs)

    @property
    def _parts(self) -> LinearOperator:
        return self.A.grouped(GROUPS) if self.settings.data_error else self.A

    @property
    def left(self) -> Start:
        """What has been found, for the next point to begin from.

        Directions V are passed on as A V, which is known: subspace iteration along the points, for no products at all.
        No estimator is biased by directions that are off, it only needs more probes.
        """
        pairs, found = self.__dict__.get("eigenpairs"), self.__dict__.get("directions")
        return Start(
            None if pairs is None else pairs.vectors,
            None if found is None else orthonormal_rows(found.image),
            getattr(self.A, "engines", ("auto", "auto")),
        )

    @property
    def matvecs(self) -> float:
        """Products behind everything found so far, each counted once."""
        known = self.__dict__
        # Of an indefinite matrix both ends come from one run.
        of_sketch = self._norm_of_sketch and "diagonal" not in self.needs
        of_trace = () if of_sketch else ("trace",)
        own = ("eigenpairs", *of_trace, "directions", *(("smallest",) if self.A.psd else ()))
        # Directions are None where none are worth their search.
        parts = [known[name].matvecs for name in own if known.get(name) is not None]
        sampled = ("sketch",) if self._norm_of_sketch else ("frobenius", "sketch")
        shared = self._shared if "directions" in known else 0.0
        parts += [known[name].matvecs - shared for name in sampled if name in known]
        parts += [getattr(work, "matvecs", 0.0) for work in self._work.values()]
        return float(sum(parts))

    @cached_property
    def trace(self) -> Estimate:
        """The trace, with its blocks; of a matrix that is written out for a sweep anyhow its sum of eigenvalues.

        Unless every diagonal entry is wanted, which eigenvalues do not tell.
        """
        if self._norm_of_sketch and "diagonal" not in self.needs:
            return self.sketch.trace()
        return estimators.trace(
            self.by_group,
            seed=self.settings.seed,
            confidence=self.settings.confidence,
            per_block=self.settings.per_layer,
            data_error=self.settings.data_error,
            callback=self._progress("trace"),
            **self._size(),
        )

    @cached_property
    def frobenius(self) -> Estimate:
        """||A||_F with its blocks; rough eigenvectors are deflated where they are there. Of a known spectrum its norm.

        With a tolerance a pilot finds by itself what to deflate, for a tenth of what a search for eigenvectors takes.
        """
        if self._norm_of_sketch:
            return self.sketch.frobenius_norm()
        # Directions are those of A, whose entries may be in another order.
        found = self.directions if self._has_directions and self.by_group is self.A else None
        estimate = estimators.frobenius_norm(
            self.by_group,
            seed=self.settings.seed,
            confidence=self.settings.confidence,
            deflate=found,
            data_error=self.settings.data_error,
            callback=self._progress("frob"),
            **self._size(),
        )
        if found is None:
            return estimate
        return estimate.with_(matvecs=estimate.matvecs + found.matvecs, seconds=estimate.seconds + self._shared_seconds)

    @cached_property
    def sketch(self) -> estimators.SpectralSketch:
        """The sweep behind logdet, density and effective dimension, of the size that its tolerance asks for.

        A search for eigenvectors, ten products for each, comes first only where the number of chains is fixed.
        """
        found = self.directions if self._has_directions else None
        sketch = estimators.spectral_sketch(
            self.A,
            deflate=found,
            seed=self.settings.seed,
            method="exact" if self.takes_whole else "auto",
            confidence=self.settings.confidence,
            target=self._sketch_target(),
            data_error=self.settings.data_error,
            callback=self._progress("spectrum"),
            **self._sweep_size(),
        )
        if found is None:
            return sketch
        return replace(sketch, matvecs=sketch.matvecs + found.matvecs, seconds=sketch.seconds + self._shared_seconds)

    @property
    def _has_directions(self) -> bool:
        """Whether leading directions are wanted anyhow, or known from a neighboring point."""
        asked = self.settings.n_probes is not None
        return asked or "directions" in self.__dict__ or self._start.directions is not None

    @property
    def _shared(self) -> float:
        """Products behind the directions; every number that rests on them counts them, and their seconds."""
        return 0.0 if self.directions is None else self.directions.matvecs

    def shared(self, make: Callable[[Context], Work]) -> Work:
        """Return what ``make`` computes from this context, once for all measures that ask for it.

        Where it has ``matvecs``, those count among the products of the context.
        """
        if make not in self._work:
            self._work[make] = make(self)
        found: Work = self._work[make]
        return found

    def beside(self, A: LinearOperator, title: str) -> Context:
        """Return a context of another matrix at the same point, with the same settings but for ``k``, which is 1.

        Args:
            A: the matrix.
            title: of its stages.
        """

        def report(event: Progress) -> None:
            self._report(replace(event, stage=f"{title} {event.stage}"))

        return Context(self.risk, replace(self.settings, k=1), (), report, operator=A)

    @property
    def engine_note(self) -> str:
        """How products are made, in words."""
        return str(getattr(self.A, "engine_note", ""))

    def advance(self, stage: str, state: Progress) -> None:
        """Report the progress of an estimator as that of a stage."""
        self._progress(stage)(state)

    def diagonal(self) -> estimators.DiagonalEstimate:
        """Every diagonal entry: what an exact trace is the sum of, else by probes inside layers if these served it."""
        known = self.trace.details.get("diagonal") if self.by_group is self.A else None
        if known is not None:
            return without_error(known, "exact")
        size: dict[str, Any] = {"rtol": self.settings.rtol, "confidence": self.settings.confidence}
        return estimators.diagonal(
            self.A,
            seed=self.settings.seed,
            blockwise="+blocks" in self.trace.method,
            callback=self._progress("diagonal"),
            **(size if self.settings.n_probes is None else {"n_probes": self.settings.n_probes}),
        )

    def logdet(self, sketch: estimators.SpectralSketch) -> Estimate:
        """The log-determinant that exists for this operator."""
        shift = self.settings.damping
        return sketch.logdet(shift=shift) if self.A.psd else sketch.smoothed_logdet(eps=shift)

    def _sketch_target(self) -> Callable[[estimators.SpectralSketch], Estimate] | None:
        if "effective-dimension" in self.names:
            return lambda sketch: sketch.effective_dimension(shift=self.settings.damping)
        return self.logdet if "logdet" in self.names else None

    def _size(self) -> dict[str, Any]:
        if self.settings.n_probes is not None:
            return {"n_probes": self.settings.n_probes}
        # A ratio of squares doubles the relative errors of both.
        return {"rtol": self.settings.rtol / (3 if "ratio" in self.needs else 1)}

    def _sweep_size(self) -> dict[str, Any]:
        if self.settings.n_probes is not None:
            return {"n_probes": self.settings.n_probes}
        if self._sketch_target() is not None:
            return {"rtol": self.settings.rtol}
        level = self.settings.confidence
        count = chains_for(self.A.dim, HALF_WIDTH, level)
        if count > _BAND_CHAINS:
            # Of few eigenvalues the band would take nearly the whole matrix; what is reached is told as it is.
            return {"n_probes": max(_BAND_CHAINS, math.ceil((2 / HALF_WIDTH) ** 2 / (2 * self.A.dim)))}
        return {"n_probes": count, "enough": resolves(HALF_WIDTH, count, level, None)}

    def _progress(self, stage: str) -> Callable[[Progress], None]:
        return lambda state: self._report(replace(state, stage=stage))


def make_operator(
    risk: Objective,
    settings: MeasureSettings,
    expected_matvecs: int = _FEW_PRODUCTS,
    engines: tuple[str, str] = ("auto", "auto"),
) -> Hessian | GaussNewton | FunctionalPart:
    """Return the operator that the settings name; ``engines`` replace the ``"auto"`` of it and of its surrogate."""
    how: dict[str, Any] = {
        "engine": engines[0] if settings.engine == "auto" else settings.engine,
        "memory": shares(settings.memory, risk.dim, risk.dtype.itemsize).products,
        "expected_matvecs": expected_matvecs,
    }
    if settings.operator == "hessian":
        return Hessian(risk, **how, surrogate_engine=engines[1])
    if settings.operator == "ggn":
        return GaussNewton(risk, **how)
    if settings.operator == "functional":
        return FunctionalPart(risk, **how)
    return Fisher(risk, **how)


def quietly(work: Callable[[], Estimate]) -> tuple[Estimate, tuple[str, ...]]:
    """Run ``work`` and return its result with the sentences of its numerical warnings instead of raising them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimate = work()
    notes = []
    for warning in caught:
        if issubclass(warning.category, NumericalWarning):
            notes.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return estimate, tuple(dict.fromkeys(notes))

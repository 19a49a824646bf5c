"""The measures themselves: a name, and what it asks of a session."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import torch
from torch import Tensor

from hessprobe import checks, estimators
from hessprobe.errors import about
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators.density import fine_grid
from hessprobe.estimators.hutchinson import ROUNDING
from hessprobe.hvp import FunctionalPart, GaussNewton, Hessian
from hessprobe.hvp.verification import ProductError
from hessprobe.measures import distribution
from hessprobe.measures.names import NAMES, UNIVERSAL
from hessprobe.measures.session import Report, Session, quietly
from hessprobe.measures.settings import Event, MeasureSettings, Result, settings_of
from hessprobe.objective.base import Objective, require_objective
from hessprobe.progress import Show, progress_bars


@dataclass(frozen=True)
class _Answer:
    estimate: Estimate
    layers: dict[str, Estimate] | None = None
    arrays: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _lambda_max(session: Session) -> _Answer:
    pairs = session.eigenpairs
    layers = session.layer_eigenvalues if session.settings.per_layer else None
    return _Answer(pairs.estimate(0), layers=layers, arrays=_spectrum(session))


def _lambda_min(session: Session) -> _Answer:
    return _Answer(session.smallest, arrays={} if session.A.psd else _spectrum(session))


def _spectrum(session: Session) -> dict[str, Tensor]:
    pairs = session.eigenpairs
    errors = torch.maximum(pairs.errors, ROUNDING * torch.finfo(session.A.dtype).eps * pairs.values.abs())
    return {"eigenvalues": pairs.values, "residuals": pairs.residuals, "eigenvalue_errors": errors}


def _spectral_norm(session: Session) -> _Answer:
    top = session.eigenpairs.estimate(0)
    if session.A.psd:
        return _Answer(top, arrays=_spectrum(session))
    bottom = session.eigenpairs.estimate(-1).scaled(-1.0)
    first, second = (top, bottom) if top.value >= bottom.value else (bottom, top)
    # The larger of two numbers lies between the larger of their lower and the larger of their upper ends.
    ends = [one.bracket for one in (first, second) if one.bracket is not None]
    bracket = (max(low for low, _ in ends), max(high for _, high in ends)) if len(ends) == 2 else None
    arm = first.errors.solver if bracket is None else max(first.value - bracket[0], bracket[1] - first.value)
    whole = first.with_(bracket=bracket, errors=replace(first.errors, solver=arm), support=(0.0, float("inf")))
    return _Answer(whole, arrays=_spectrum(session))


def _trace(session: Session) -> _Answer:
    return _Answer(session.trace, layers=_layers(session, session.trace))


def _frob(session: Session) -> _Answer:
    squares = _layers(session, session.frobenius)
    if squares is None or session.frobenius.value == 0:
        return _Answer(session.frobenius, layers=squares)
    whole = session.frobenius.value**2
    shares = {name: one.scaled(1 / whole) for name, one in squares.items()}
    return _Answer(session.frobenius, layers=shares, notes=("layers: share of the squared norm, ||A[layer, :]||^2",))


def _logdet(session: Session) -> _Answer:
    shift = session.settings.damping
    form = f"log det(A + {shift:g} I)" if session.A.psd else f"1/2 log det(A^2 + {shift:g}^2 I)"
    return _Answer(_from_sketch(session, "logdet", session.logdet(session.sketch)), notes=(form,))


def _effective_dimension(session: Session) -> _Answer:
    shift = session.settings.damping
    estimate = session.sketch.effective_dimension(shift=shift)
    return _Answer(_from_sketch(session, "effective-dimension", estimate), notes=(f"damping {shift:g}",))


def _density(session: Session) -> _Answer:
    density = session.sketch.density(grid=fine_grid(session.sketch))
    level, sure = session.settings.confidence, 1 - session.settings.bracket_delta
    arrays = distribution.curve(density, level)
    arrays |= distribution.quantiles(density, level) | distribution.shares(density, level)
    median = _from_sketch(session, "density", distribution.median(density, sure))
    return _Answer(median, arrays=arrays, notes=distribution.sentences(arrays, level))


def _diagonal(session: Session) -> _Answer:
    entries = session.diagonal()
    mean = session.trace.scaled(1 / session.A.dim)
    mean = mean.with_(matvecs=mean.matvecs + entries.matvecs, seconds=mean.seconds + entries.seconds)
    return _Answer(mean, arrays={"diagonal": entries.values, "diagonal_std_error": entries.std_error})


def _effective_rank(session: Session) -> _Answer:
    return _Answer(estimators.effective_rank(session.trace, session.frobenius))


def _universal(name: str) -> Callable[[Session], _Answer]:
    def measured(session: Session) -> _Answer:
        found = session.universal.answer(name)
        return _Answer(found.estimate, arrays=found.arrays, notes=found.notes)

    return measured


def _from_sketch(session: Session, name: str, estimate: Estimate) -> Estimate:
    # That a tolerance was missed is said of the one measure for which the size of the sweep was chosen.
    judged = next(each for each in _JUDGED if each in session.names) == name
    flags = tuple(dict.fromkeys((*estimate.flags, *(session.sketch.flags if judged else ()))))
    return estimate.with_(matvecs=session.sketch.matvecs, seconds=session.sketch.seconds, flags=flags)


# What is said of the probes, and with it of every layer.
_OF_THE_PROBES = ("few-probes", "heavy-tailed")


def _layers(session: Session, estimate: Estimate) -> dict[str, Estimate] | None:
    if not session.settings.per_layer:
        return None
    blocks: dict[str, dict[str, Any]] = estimate.details.get("blocks", {})
    return {
        name: Estimate(
            block["value"],
            ErrorParts(probe=block["std_error"]),
            df=block.get("df", estimate.df),
            samples=estimate.samples,
            method=estimate.method,
            flags=tuple(flag for flag in estimate.flags if flag in _OF_THE_PROBES),
        )
        for name, block in blocks.items()
    }


_MEASURES: dict[str, Callable[[Session], _Answer]] = {
    "lambda-max": _lambda_max,
    "lambda-min": _lambda_min,
    "spectral-norm": _spectral_norm,
    "trace": _trace,
    "frob": _frob,
    "logdet": _logdet,
    "density": _density,
    "diagonal": _diagonal,
    "effective-rank": _effective_rank,
    "effective-dimension": _effective_dimension,
    **{name: _universal(name) for name in UNIVERSAL},
}
# Eigenpairs first: their vectors then serve the others.
_ORDER = ("lambda-max", "lambda-min", "spectral-norm")
# What shares the sweep; the first of them that is wanted decides its size.
_JUDGED = ("effective-dimension", "logdet", "density")


def measure_all(
    names: Sequence[str],
    risk: Objective,
    settings: MeasureSettings,
    report: Report = lambda event: None,
    *,
    operator: Hessian | GaussNewton | FunctionalPart | None = None,
) -> Iterator[Result]:
    """Yield one result a name, sharing products between them; results come as they are ready, eigenvalues first.

    Args:
        names: registered names.
        risk: the objective.
        settings: how to measure.
        report: told of progress.
        operator: that of these settings, where it is made already.

    Raises:
        TypeError: ``risk`` is no objective.
        ValueError: unknown name, or k > d.
        UnsupportedError, NonFiniteError, MemoryBudgetError: see the operators.
    """
    for name in names:
        checks.one_of("measure", name, (*NAMES, *UNIVERSAL))
    require_objective("risk", risk)
    if settings.k > risk.dim:
        raise ValueError(
            about("k", f"must be at most the number of parameters, {risk.dim}; got {settings.k}. Ask for fewer.")
        )
    yield from results(Session(risk, settings, names, report, operator=operator), names)


def results(session: Session, names: Sequence[str]) -> Iterator[Result]:
    """Yield one result a name out of a session made for them; see ``measure_all``."""
    wanted = dict.fromkeys(names)
    for name in [*(n for n in _ORDER if n in wanted), *(n for n in wanted if n not in _ORDER)]:
        yield _result(session, name)


@overload
def measure(name: str, risk: Objective, *, progress: Show = False, **settings: Any) -> Estimate: ...
@overload
def measure(
    name: Sequence[str], risk: Objective, *, progress: Show = False, **settings: Any
) -> dict[str, Estimate]: ...
def measure(
    name: str | Sequence[str], risk: Objective, *, progress: Show = False, **settings: Any
) -> Estimate | dict[str, Estimate]:
    """Return one registered measure of a risk, or several that share their products.

    Args:
        name: in ``NAMES`` or ``UNIVERSAL`` of ``hessprobe.measures``, e.g. ``"trace"``; or several, e.g.
            ``["lambda-max", "trace", "frob"]``, whose estimates come by name. Each then counts all the products that
            it rests on, so that shared ones stand in more than one.
        risk: the objective.
        progress: draw bars: True, False, or ``"auto"`` for on a terminal and in a notebook.
        settings: the fields of ``MeasureSettings``, where each is told in full:

            operator: ``"hessian"`` (default), ``"ggn"``, ``"fisher"`` or ``"functional"``.
            rtol: half-width of the interval relative to the value, in (0, 1); 0.01.
            n_probes: fixed number of probes in place of ``rtol``, >= 2; None.
            seed: of the probes, >= 0; 0.
            per_layer: also one value for every parameter tensor, in ``Estimate.layers``; False.
            engine: of the products, see ``Hessian``; ``"auto"``.
            memory: bytes that products may keep; None for half of what is free.
            confidence: level of the interval, in (0, 1); 0.95.
            k: eigenpairs an end that are found with the extreme ones, >= 1; 1.
            shift: damping of logdet and effective-dimension, > 0; None for 1e-3.
            radius: of universal:* from losses alone, > 0; None for products.
            data_error: tell the error that comes from the data being a sample, ``errors.data``; True.

    Returns:
        The estimate, or a dict of them in the order of ``name``. ``details`` has ``measure``, ``operator``, ``unit``,
        ``notes`` for a reader, ``arrays`` (eigenvalues, a density, a diagonal) and ``layers``.

    Raises:
        TypeError, ValueError: unknown name or setting (the message names the nearest), or one outside its range.

    Examples:
        >>> import torch, hessprobe as hp
        >>> model = torch.nn.Linear(2, 1).double()
        >>> data = [(torch.tensor([[1.0, 2.0], [3.0, 0.0]]).double(), torch.zeros(2, 1).double())]
        >>> risk = hp.EmpiricalRisk(model, torch.nn.MSELoss(), data)
        >>> trace = hp.measure("trace", risk, per_layer=True)
        >>> print(trace)
        16 (exact, 3 products, exact)
        >>> f"{trace:.3f}", float(trace.layers["weight"])
        ('16.000', 14.0)
    """
    names, made = [name] if isinstance(name, str) else list(name), settings_of("measure", ("progress",), **settings)
    found = {}
    with progress_bars(progress) as update:

        def report(event: Event) -> None:
            update(event.stage, event.done, event.total, "" if event.value is None else f"{event.value:.4g}")

        for result in measure_all(names, risk, made, report):
            found[result.measure] = _answered(result)
    return found[name] if isinstance(name, str) else {each: found[each] for each in names}


def _answered(result: Result) -> Estimate:
    said: dict[str, Any] = {"measure": result.measure, "operator": result.operator, "unit": result.unit}
    said |= {"arrays": result.arrays, "notes": result.notes}
    said |= {} if result.layers is None else {"layers": result.layers}
    return result.estimate.with_(details={**result.estimate.details, **said})


def _with_rounding(session: Session, estimate: Estimate) -> Estimate:
    """Return the estimate with at least the rounding of sums in the dtype of the products in its solver part."""
    floor = ROUNDING * torch.finfo(session.A.dtype).eps * abs(estimate.value)
    if estimate.errors.solver >= floor:
        return estimate
    return estimate.with_(errors=replace(estimate.errors, solver=floor))


def _with_product_error(session: Session, name: str, estimate: Estimate) -> Estimate:
    """Return the estimate with what finite differences are off by in its solver part, and in its bracket."""
    found = session.product_error(estimate)
    flagged = estimate.with_(flags=(*estimate.flags, "finite-differences"))
    if found is None:
        return flagged
    size = found.relative * abs(estimate.value)
    more = {**dict.fromkeys((*_ORDER, "frob"), found.norm), "trace": found.trace}.get(name, size)
    more = found.trace / session.A.dim if name == "diagonal" else more
    more = _of_effective_rank(found, estimate.value, session.A.dim) if name == "effective-rank" else more
    bracket = None if estimate.bracket is None else (estimate.bracket[0] - more, estimate.bracket[1] + more)
    errors = replace(estimate.errors, solver=estimate.errors.solver + more)
    return flagged.with_(errors=errors, bracket=bracket)


def _of_effective_rank(found: ProductError, value: float, d: int) -> float:
    """Return what r = (tr A)^2 / ||A||_F^2, between 0 and d, is off by where trace and norm are off by ``found``."""
    if not (value > 0 and found.norm > 0):
        return float(d) if found.norm > 0 else 0.0
    # |tr A| = sqrt(r) ||A||_F; both errors are relative. Beyond 1 a norm or a trace may be 0.
    of_norm, of_trace = found.relative, found.relative * found.trace / (found.norm * math.sqrt(value))
    most = value * ((1 + of_trace) / (1 - of_norm)) ** 2 if of_norm < 1 else math.inf
    least = value * (max(1 - of_trace, 0.0) / (1 + of_norm)) ** 2
    return max(min(most, float(d)) - value, value - least)


def judged(estimate: Estimate, settings: MeasureSettings) -> Estimate:
    """Return the estimate, flagged where a tolerance was asked for and the interval is wider."""
    # The search for an eigenvalue says itself where its bracket is wide, in units that suit a value near 0.
    if settings.n_probes is not None or "tolerance-missed" in estimate.flags or estimate.kind == "bracket":
        return estimate
    if estimate.half_width(settings.confidence) <= 1.001 * settings.rtol * abs(estimate.value):
        return estimate
    return estimate.with_(flags=(*estimate.flags, "tolerance-missed"))


def _result(session: Session, name: str) -> Result:
    answer: list[_Answer] = []

    def work() -> Estimate:
        answer.append(_MEASURES[name](session))
        return answer[0].estimate

    estimate, warned = quietly(work)
    found = answer[0]
    own = session.A.notes if isinstance(session.A, GaussNewton) else ()
    notes, layers = (*found.notes, *own, *session.risk.caveats, *warned), found.layers
    if not session.A.is_exact:
        estimate = _with_product_error(session, name, estimate)
        layers = layers and {key: _with_product_error(session, name, layer) for key, layer in layers.items()}
    estimate = _with_rounding(session, estimate)
    if not session.settings.data_error:
        estimate = estimate.without_data()
        layers = layers and {key: layer.without_data() for key, layer in layers.items()}
    if name != "density":
        estimate = judged(estimate, session.settings)
    return Result(
        measure=name,
        operator=session.settings.operator,
        estimate=estimate,
        unit=(NAMES | UNIVERSAL)[name].unit,
        layers=layers,
        arrays=found.arrays,
        notes=notes,
        engine=session.A.engine_note,
    )

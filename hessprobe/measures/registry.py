"""Measuring by name: one context for all that is asked for, and what every number is checked for.

The functions of the measures: what each asks of a context.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from hessprobe import checks, estimators
from hessprobe.errors import UnsupportedError, about
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators.budget import Progress
from hessprobe.estimators.density import fine_grid
from hessprobe.estimators.hutchinson import ROUNDING
from hessprobe.hvp import FunctionalPart, GaussNewton, Hessian
from hessprobe.hvp.pool import within
from hessprobe.hvp.verification import ProductError
from hessprobe.measures import distribution, minibatches
from hessprobe.measures.context import Context, MeasureSettings, Report, Result, quietly, settings_of
from hessprobe.measures.table import DENSE_LIMIT, TABLE, function_of
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.base import Objective, require_objective
from hessprobe.objective.preconditioner import Preconditioner, of_optimizer
from hessprobe.operators import BlockDiagonal, Congruence, LinearOperator
from hessprobe.progress import Show, progress_bars

# Told the name of a measure that does not exist here, and why.
Missing = Callable[[str, UnsupportedError], None]
# What not every checkpoint has.
_MAY_BE_MISSING = frozenset({"matrix", "optimizer"})


def measure_all(
    names: Sequence[str],
    risk: Objective,
    settings: MeasureSettings,
    report: Report = lambda event: None,
    *,
    operator: Hessian | GaussNewton | FunctionalPart | None = None,
    missing: Missing | None = None,
    preconditioner: Preconditioner | None = None,
) -> Iterator[Result]:
    """Yield one result a name, sharing products between them; results come as they are ready, eigenvalues first.

    Args:
        names: of ``TABLE``.
        risk: the objective.
        settings: how to measure.
        report: told of progress.
        operator: that of these settings, where it is made already.
        missing: told of a measure that needs the whole matrix, or the state of an optimizer, and does not exist for
            this one, and why; None raises the error.
        preconditioner: of the optimizer; that of the risk by default.

    Raises:
        TypeError: ``risk`` is no objective.
        ValueError: unknown name, or k > d.
        UnsupportedError, NonFiniteError, MemoryBudgetError: see the operators.
    """
    for name in names:
        checks.one_of("measure", name, TABLE)
    require_objective("risk", risk)
    if settings.k > risk.dim:
        raise ValueError(
            about("k", f"must be at most the number of parameters, {risk.dim}; got {settings.k}. Ask for fewer.")
        )
    context = Context(risk, settings, names, report, operator=operator, preconditioner=preconditioner)
    yield from results(context, names, missing)


def results(context: Context, names: Sequence[str], missing: Missing | None = None) -> Iterator[Result]:
    """Yield one result a name out of a context made for them; see ``measure_all``."""
    wanted = dict.fromkeys(names)
    first = [name for name, entry in TABLE.items() if name in wanted and entry.of_eigenpairs]
    for name in dict.fromkeys((*first, *wanted)):
        try:
            found = _result(context, name)
        except UnsupportedError as error:
            if missing is None or not _MAY_BE_MISSING & frozenset(TABLE[name].needs):
                raise
            missing(name, error)
        else:
            yield found


@overload
def measure(
    name: str, risk: Objective, *, optimizer: Optimizer | None = None, progress: Show = False, **settings: Any
) -> Estimate: ...
@overload
def measure(
    name: Sequence[str], risk: Objective, *, optimizer: Optimizer | None = None, progress: Show = False, **settings: Any
) -> dict[str, Estimate]: ...
def measure(
    name: str | Sequence[str],
    risk: Objective,
    *,
    optimizer: Optimizer | None = None,
    progress: Show = False,
    **settings: Any,
) -> Estimate | dict[str, Estimate]:
    """Return one registered measure of a risk, or several that share their products.

    Args:
        name: in ``hessprobe.measures.TABLE``, e.g. ``"trace"``; or several, e.g. ``["lambda-max", "trace", "frob"]``,
            whose estimates come by name. Each then counts all the products that it rests on, so that shared ones stand
            in more than one.
        risk: the objective.
        optimizer: that has trained the model of ``risk``, for ``preconditioned-lambda-max``: Adam or AdamW, also inside
            a sharpness-aware one.
        progress: draw bars: True, False, or ``"auto"`` for on a terminal and in a notebook.
        settings: the fields of ``MeasureSettings``, where each is told in full:

            operator: ``"hessian"`` (default), ``"ggn"``, ``"fisher"`` or ``"functional"``.
            rtol: half-width of the interval relative to the value, in (0, 1); 0.01.
            n_probes: fixed number of probes in place of ``rtol``, >= 2; None.
            seed: of the probes, >= 0; 0.
            per_layer: also one value for every parameter tensor, in ``Estimate.layers``; False.
            engine: of the products, see ``Hessian``; ``"auto"``.
            memory: bytes that products, probes and bases may take in all; None for what is fastest.
            confidence: level of the interval, in (0, 1); 0.95.
            k: eigenpairs an end that are found with the extreme ones, >= 1; 1.
            shift: damping of logdet and effective-dimension, > 0; None for 1e-3.
            radius: of universal:* from losses alone, > 0; None for products.
            data_error: tell the error that comes from the data being a sample, ``errors.data``; True.
            group: as ``per_layer``, one value for every ``"module"``, ``"layer"`` or attention ``"head"``; None.
            per_batch: also the largest eigenvalue of every batch and its distribution, in ``details["arrays"]``; False.

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
    names = [name] if isinstance(name, str) else list(name)
    if not names:
        raise ValueError(about("measure", f"must name something; got {name!r}. Pass for example 'trace'."))
    made = settings_of("measure", ("optimizer", "progress"), **settings)
    found, P = {}, None
    if optimizer is not None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(about("optimizer", f"must be a torch.optim.Optimizer; got {type(optimizer).__name__}."))
        if isinstance(risk, EmpiricalRisk):
            P = of_optimizer(optimizer, risk.module, risk.layout)
    with progress_bars(progress) as update:

        def report(event: Progress) -> None:
            update(event.stage, event.done, event.total, "" if event.value is None else f"{event.value:.4g}")

        for result in measure_all(names, risk, made, report, preconditioner=P):
            found[result.measure] = _answered(result)
    return found[name] if isinstance(name, str) else {each: found[each] for each in names}


def _answered(result: Result) -> Estimate:
    said: dict[str, Any] = {"measure": result.measure, "operator": result.operator, "unit": result.unit}
    said |= {"arrays": result.arrays, "notes": result.notes}
    said |= {} if result.layers is None else {"layers": result.layers}
    return result.estimate.with_(details={**result.estimate.details, **said})


def _with_rounding(context: Context, estimate: Estimate) -> Estimate:
    """Return the estimate with at least the rounding of sums in the dtype of the products in its solver part."""
    floor = ROUNDING * torch.finfo(context.A.dtype).eps * abs(estimate.value)
    if estimate.errors.solver >= floor:
        return estimate
    return estimate.with_(errors=replace(estimate.errors, solver=floor))


def _with_product_error(context: Context, name: str, estimate: Estimate) -> Estimate:
    """Return the estimate with what finite differences are off by in its solver part, and in its bracket."""
    found = context.product_error(estimate)
    flagged = estimate.with_(flags=(*estimate.flags, "finite-differences"))
    if found is None:
        return flagged
    more = _off_by(context, name, estimate.value, found)
    bracket = None if estimate.bracket is None else (estimate.bracket[0] - more, estimate.bracket[1] + more)
    errors = replace(estimate.errors, solver=estimate.errors.solver + more)
    return flagged.with_(errors=errors, bracket=bracket)


def _off_by(context: Context, name: str, value: float, found: ProductError) -> float:
    """Return what a measure is off by where the products are off by ``found``."""
    if TABLE[name].of_eigenpairs or name in ("frob", "block-frob"):
        return found.norm
    if name == "trace":
        return found.trace
    if name == "diagonal":
        return found.trace / context.A.dim
    if name == "effective-rank":
        return _of_effective_rank(found, value, context.A.dim)
    if "optimizer" in TABLE[name].needs and context.preconditioner is not None:
        return found.norm * float(context.preconditioner.scale.square().max())
    if "adaptive" in TABLE[name].needs:
        # ||C E C||_F <= max c^2 ||E||_F, and |Tr C E C| <= ||c^2|| ||E||_F.
        squares = context.risk.theta.double().square()
        return found.norm * float(squares.norm() if name == "adaptive-trace" else squares.max())
    return found.relative * abs(value)


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


def _made(context: Context) -> dict[str, float]:
    """Return the products made so far by kind, where the operator tells them apart."""
    made: dict[str, float] = getattr(context.A, "made", {})
    return made


def _result(context: Context, name: str) -> Result:
    entry, answers = TABLE[name], []

    def work() -> Estimate:
        answers.append(_answer(name, function_of(entry)(context)))
        return answers[0].estimate

    before = dict(_made(context))
    with within(context.settings.memory, context.shares):
        estimate, warned = quietly(work)
    made = {kind: count - before.get(kind, 0.0) for kind, count in _made(context).items()}
    estimate = estimate.with_(
        gradient_seconds=getattr(context.A, "gradient_seconds", None),
        made={kind: count for kind, count in made.items() if count > 0},
    )
    found = answers[0]
    of_operator = context.A.notes if isinstance(context.A, GaussNewton) else ()
    notes, layers = (*found.notes, *of_operator, *context.risk.caveats, *warned), found.layers
    if not context.A.is_exact:
        estimate = _with_product_error(context, name, estimate)
        layers = layers and {key: _with_product_error(context, name, layer) for key, layer in layers.items()}
    estimate = _with_rounding(context, estimate)
    layers = layers and {key: _with_rounding(context, layer) for key, layer in layers.items()}
    if not context.settings.data_error:
        estimate = estimate.without_data()
        layers = layers and {key: layer.without_data() for key, layer in layers.items()}
    if name != "density":
        estimate = judged(estimate, context.settings)
    return Result(
        measure=name,
        operator=context.settings.operator,
        estimate=estimate,
        unit=entry.unit,
        layers=layers,
        arrays=found.arrays,
        notes=notes,
        engine=context.engine_note,
    )


def _answer(name: str, found: object) -> Result:
    if isinstance(found, Result):
        return found
    if isinstance(found, Estimate):
        return Result(found)
    raise TypeError(
        f"the function of {name!r} must return an Estimate or a Result; got {type(found).__name__}. A number comes "
        "with its error: Estimate(value, ErrorParts(probe=...)), or kind='exact'."
    )


def lambda_max(context: Context) -> Result:
    """lambda_1."""
    pairs = context.eigenpairs
    layers = context.layer_eigenvalues if context.settings.per_layer else None
    found = Result(pairs.estimate(0), layers=layers, arrays=_spectrum(context))
    if not context.settings.per_batch:
        return found
    batches = context.shared(minibatches.per_batch)
    cost = {"matvecs": pairs.matvecs + batches.matvecs, "seconds": found.estimate.seconds + batches.seconds}
    arrays = {**found.arrays, **batches.arrays}
    return replace(found, estimate=found.estimate.with_(**cost), arrays=arrays, notes=(batches.sentence,))


def lambda_min(context: Context) -> Result:
    """lambda_d."""
    return Result(context.smallest, arrays={} if context.A.psd else _spectrum(context))


def _spectrum(context: Context) -> dict[str, Tensor]:
    pairs = context.eigenpairs
    errors = torch.maximum(pairs.errors, ROUNDING * torch.finfo(context.A.dtype).eps * pairs.values.abs())
    return {"eigenvalues": pairs.values, "residuals": pairs.residuals, "eigenvalue_errors": errors}


def spectral_norm(context: Context) -> Result:
    """Largest |lambda_i|."""
    top = context.eigenpairs.estimate(0)
    if context.A.psd:
        return Result(top, arrays=_spectrum(context))
    bottom = context.eigenpairs.estimate(-1).scaled(-1.0)
    first, second = (top, bottom) if top.value >= bottom.value else (bottom, top)
    # The larger of two numbers lies between the larger of their lower and the larger of their upper ends.
    ends = [one.bracket for one in (first, second) if one.bracket is not None]
    bracket = (max(low for low, _ in ends), max(high for _, high in ends)) if len(ends) == 2 else None
    arm = first.errors.solver if bracket is None else max(first.value - bracket[0], bracket[1] - first.value)
    larger = first.with_(bracket=bracket, errors=replace(first.errors, solver=arm), support=(0.0, float("inf")))
    return Result(larger, arrays=_spectrum(context))


def trace(context: Context) -> Result:
    """Tr A."""
    return Result(context.trace, layers=_layers(context, context.trace))


def frob(context: Context) -> Result:
    """||A||_F, with the shares of layers in its square."""
    squares = _layers(context, context.frobenius)
    if squares is None or context.frobenius.value == 0:
        return Result(context.frobenius, layers=squares)
    square = context.frobenius.value**2
    shares = {name: one.scaled(1 / square) for name, one in squares.items()}
    return Result(context.frobenius, layers=shares, notes=("layers: share of the squared norm, ||A[layer, :]||^2",))


def block_frob(context: Context) -> Result:
    """Norm of the block diagonal, sum_g ||A_gg||_F^2 under a root, with the norm of each block."""
    beside = context.shared(_block_diagonal)
    squares = _layers(beside, beside.frobenius)
    return Result(beside.frobenius, layers=squares and {name: _root(one) for name, one in squares.items()})


def _block_diagonal(context: Context) -> Context:
    A = context.by_group
    return context.beside(BlockDiagonal(A, list(A.blocks.values())), "block diagonal")


def _root(square: Estimate) -> Estimate:
    """Return a norm as the root of its square, with the unequal arms of a norm from few probes."""
    value = max(square.value, 0.0) ** 0.5
    slope = 0.5 / value if value else 0.0
    errors = ErrorParts(probe=slope * square.errors.probe)
    return square.with_(value=value, errors=errors, known_square=0.0, support=(0.0, float("inf")))


def logdet(context: Context) -> Result:
    """The log-determinant of A + s I, or the smoothed one of an indefinite matrix."""
    shift = context.settings.damping
    form = f"log det(A + {shift:g} I)" if context.A.psd else f"1/2 log det(A^2 + {shift:g}^2 I)"
    return Result(_from_sketch(context, "logdet", context.logdet(context.sketch)), notes=(form,))


def effective_dimension(context: Context) -> Result:
    """Sum of l / (l + s), or of l^2 / (l^2 + s^2) of an indefinite matrix."""
    shift = context.settings.damping
    estimate = context.sketch.effective_dimension(shift=shift)
    return Result(_from_sketch(context, "effective-dimension", estimate), notes=(f"damping {shift:g}",))


def density(context: Context) -> Result:
    """The median eigenvalue, with the distribution."""
    density = context.sketch.density(grid=fine_grid(context.sketch))
    level, sure = context.settings.confidence, 1 - context.settings.bracket_delta
    arrays = distribution.curve(density, level)
    arrays |= distribution.quantiles(density, level) | distribution.shares(density, level)
    median = _from_sketch(context, "density", distribution.median(density, sure))
    return Result(median, arrays=arrays, notes=distribution.sentences(arrays, level))


def diagonal(context: Context) -> Result:
    """Tr A / d, with every entry."""
    entries = context.diagonal()
    mean = context.trace.scaled(1 / context.A.dim)
    mean = mean.with_(matvecs=mean.matvecs + entries.matvecs, seconds=mean.seconds + entries.seconds)
    return Result(mean, arrays={"diagonal": entries.values, "diagonal_std_error": entries.std_error})


def effective_rank(context: Context) -> Result:
    """(Tr A)^2 / ||A||_F^2."""
    return Result(estimators.effective_rank(context.trace, context.frobenius))


def adaptive_lambda_max(context: Context) -> Result:
    """lambda_1(C A C) with C = diag|w|."""
    return lambda_max(context.shared(_adaptive))


def adaptive_trace(context: Context) -> Result:
    """Tr C A C."""
    return trace(context.shared(_adaptive))


def adaptive_frob(context: Context) -> Result:
    """||C A C||_F."""
    return frob(context.shared(_adaptive))


def _adaptive(context: Context) -> Context:
    return context.beside(Congruence(context.A, context.risk.theta.abs()), "adaptive")


def preconditioned_lambda_max(context: Context) -> Result:
    """lambda_1(P^-1/2 A P^-1/2), with the threshold of Adam's step."""
    P = context.preconditioner
    if P is None:
        raise UnsupportedError(
            "preconditioned-lambda-max needs the state of Adam or AdamW after a step; got none. Measure a checkpoint "
            "that holds it, as those of 'hessprobe train --optimizer adamw' do, or pass the optimizer to hp.measure."
        )
    found = lambda_max(context.shared(_preconditioned))
    unmoved = int((P.scale == 0).sum())
    said = f"no threshold of stability: {P.reason}"
    if P.threshold is not None:
        side = "below" if found.estimate.value <= P.threshold else "above"
        said = f"Adam's step is stable up to {P.threshold:.5g} = {P.formula}; the value is {side} it"
        found.arrays["threshold"] = torch.tensor([P.threshold], dtype=torch.float64)
    more = (f"{unmoved} parameters that Adam has not moved count as fixed",) if unmoved else ()
    return replace(found, notes=(said, *more, *found.notes))


def _preconditioned(context: Context) -> Context:
    P = context.preconditioner
    scale = torch.ones_like(context.risk.theta) if P is None else P.scale
    return context.beside(Congruence(context.A, scale.to(context.A.device)), "preconditioned")


def pseudo_logdet(context: Context) -> Result:
    """Sum of log |lambda_i| over the eigenvalues that are not zero."""
    return Result(context.shared(_log_pseudo_determinant))


def _log_pseudo_determinant(context: Context) -> Estimate:
    return log_pseudo_determinant(context.A)


def _from_sketch(context: Context, name: str, estimate: Estimate) -> Estimate:
    # That a tolerance was missed is said of the one measure for which the size of the sweep was chosen.
    judged = next(each for each in _JUDGED if each in context.names) == name
    flags = tuple(dict.fromkeys((*estimate.flags, *(context.sketch.flags if judged else ()))))
    return estimate.with_(matvecs=context.sketch.matvecs, seconds=context.sketch.seconds, flags=flags)


# What shares the sweep; the first of them that is wanted decides its size.
_JUDGED = ("effective-dimension", "logdet", "density")
# Eigenvalues below so many units of rounding of the largest count as zero; those near it are known so badly.
_ZERO = 30.0
# What is said of the probes, and with it of every layer.
_OF_THE_PROBES = ("few-probes", "heavy-tailed")


def _layers(context: Context, estimate: Estimate) -> dict[str, Estimate] | None:
    if not context.settings.per_layer:
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


def log_pseudo_determinant(A: LinearOperator) -> Estimate:
    """Return sum_i log |lambda_i| over the eigenvalues that are not zero to rounding, from the whole matrix.

    For D diagonal and H' = D^-1 H D^-1 with range basis U (d, r) of H:
    pdet H' = pdet H * det(U^T D^-2 U), which is det D^-2 where H has full rank. A network's Hessian rarely has: inputs
    that are always zero and the shift of all logits are null directions. ``details`` holds ``"rank"`` and ``"range"``,
    U as a tensor.

    Args:
        A: symmetric, of at most ``DENSE_LIMIT`` rows.

    Returns:
        Estimate in nats. The solver part is sum_i min(1, e / |lambda_i|), e the rounding of the products.

    Raises:
        UnsupportedError: A is larger, or zero.

    References:
        Horn, Johnson (2013), "Matrix analysis", section 0.8.4: complementary minors, behind det(U^T D^-2 U).
    """
    began = time.perf_counter()
    if A.dim > DENSE_LIMIT:
        raise UnsupportedError(
            f"pseudo-logdet needs the whole matrix, of at most {DENSE_LIMIT} parameters; got {A.dim}. "
            "Choose fewer with params=."
        )
    dense = A.to_dense().double()
    values, vectors = torch.linalg.eigh((dense + dense.T) / 2)
    size = float(values.abs().max())
    if size == 0:
        raise UnsupportedError("pseudo-logdet needs an eigenvalue that is not zero; got the zero matrix.")
    rounding = _ZERO * torch.finfo(A.dtype).eps * size
    kept = values.abs() > rounding
    solver = float((rounding / _ZERO / values[kept].abs()).clamp_max(1.0).sum())
    return Estimate(
        float(values[kept].abs().log().sum()),
        ErrorParts(solver=solver),
        matvecs=float(A.dim),
        method="dense",
        seconds=time.perf_counter() - began,
        details={"rank": int(kept.sum()), "range": vectors[:, kept]},
    )

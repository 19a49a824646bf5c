"""Making a spectral sketch: probes, chains in lock-step, deflation, batch influences, and the size of the sample."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import MemoryBudgetError, NumericalWarning, about
from hessprobe.estimate import GROUPS, Estimate, student_quantile
from hessprobe.estimators import budget
from hessprobe.estimators.groups import deflated_part, influences
from hessprobe.estimators.levels import Sizes, best_sizes, short_steps
from hessprobe.estimators.sketch import KNOWN, SpectralSketch
from hessprobe.estimators.whole import fits, whole_sketch
from hessprobe.estimators.xtrace import Deflation, basis_of
from hessprobe.krylov.lanczos import LanczosRun, lanczos
from hessprobe.krylov.quadrature import gauss
from hessprobe.operators import Counted, Deflated, LinearOperator, settled
from hessprobe.vectors import LAWS, ProbeStream, Slice, combine, gram, room_for_vectors, row_dots

Target = Callable[[SpectralSketch], Estimate]
Enough = Callable[[SpectralSketch], bool]

# For probes on the sphere the law of one probe follows from the spectrum, which few chains know well.
_PILOT_PROBES, _MINIMUM_PROBES = 4, 8
_DEFAULT_PROBES = 8
_DEFAULT_STEPS = 64
_MAX_STEPS = 256
# The quadrature error may be this share of the probe error, or of the tolerance, before a sweep ends by itself.
_SOLVER_SHARE, _TOLERANCE_SHARE = 0.1, 0.2
# The tolerance may be filled to this share by a bracket and by the probes of the smallest run.
_BRACKET_SHARE = 0.8
_FIRST_CHECK, _CHECK_EVERY = 8, 4
# Where the probes of few chains begin in their stream: not among those of a run that a pilot asks for.
_APART = 1 << 20
# Brackets of further chains may be so many times as wide as that of the first.
_MARGIN = 1.25
# Rows of a chain alive beside its basis: start, two vectors, a product, and what is left of it before and after.
_BESIDE = 8


def spectral_sketch(
    A: Any,
    *,
    n_probes: int | None = None,
    steps: int | None = None,
    deflate: Any = None,
    seed: int | torch.Generator = 0,
    law: str = "sphere",
    method: str = "auto",
    target: Target | None = None,
    enough: Enough | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    confidence: float = 0.95,
    max_probes: int = 1024,
    lower: float | None = None,
    data_error: bool = True,
    reorthogonalize: bool = True,
    memory: int = 2 << 30,
    callback: budget.Callback | None = None,
) -> SpectralSketch:
    """Sweep Lanczos chains over random probes once; answer questions about the spectrum ever after.

    Products: probes x steps, one more a probe for the data error (operators of several terms only), one a deflated
    vector, and those of the pilot where a tolerance is given.

    Args:
        A: symmetric operator, or what ``aslinearoperator`` takes.
        n_probes: number of chains, >= 2; 8 where neither this nor a tolerance is given.
        steps: Lanczos steps >= 2; by default 64, or with ``target`` as many (at most 256) as bring its quadrature error
            under a tenth of its probe error (a fifth of the tolerance, or what probes leave of it) or its rate asks.
        deflate: orthonormal directions to treat exactly: vectors (k, d), anything with ``.vectors`` (eigenpairs), or a
            ``Deflation`` of A, whose products are not repeated.
            They must not depend on the probes; they need not be exact, what is missing is in the solver error.
        seed: integer or generator.
        law: ``"sphere"`` (default: projected probes are scaled back to one length, so that a constant f has no
            variance; still unbiased because the law is rotation-invariant), ``"gaussian"`` or ``"rademacher"``.
        method: ``"slq"``; ``"exact"``: d products give the whole matrix and exact answers; ``"auto"``: exact where
            sampling would take as many products, within a tenth, d <= 4,096, and the matrices fit ``memory``. That is
            known before any product, or a pilot tells, whose products (at most d) are then lost; see ``whole``.
        target: the question that ``steps`` and the tolerances refer to; by default the Frobenius norm.
        enough: told the chains so far, says when they have steps enough, of 256 at most or what ``memory`` holds, in
            place of ``target`` (``n_probes`` given, ``steps`` not). It must ask only for what holds of every number of
            steps, such as bounds, and nothing of how the probes came out.
        rtol: the half-width of the ``confidence`` interval of ``target`` shall be at most max(atol, rtol |value|). A
            pilot of 4 chains of its own (8 for other laws than the sphere) decides the number of chains, >= 8, and
            whether more, shorter ones shall carry a polynomial part of f (see ``levels``); then comes one run of that
            size.
        atol: see ``rtol``.
        confidence: level of that interval.
        max_probes: cap on the chains a tolerance may ask for.
        lower: a lower bound of the spectrum; 0 is taken for an operator that is positive semidefinite.
        data_error: keep batch influences.
        reorthogonalize: False keeps no bases: 3 vectors a chain, no data error, slower convergence.
        memory: bytes for the bases of the chains that run together, or for the whole matrix where ``"auto"`` takes it.
        callback: called after each Lanczos step, or block of products with the whole matrix, with ``budget.Progress``
            about the target.

    Returns:
        The sketch.

    Raises:
        TypeError, ValueError: bad arguments.
        MemoryBudgetError: one chain does not fit ``memory``.
        NonFiniteError: a product is nan or infinite.

    Warns:
        NumericalWarning: ``max_probes`` cut the sample that the tolerance asks for.

    Examples:
        >>> import torch, hessprobe as hp
        >>> A = hp.aslinearoperator(torch.diag(torch.tensor([4.0, 2.0, 1.0, -1.0], dtype=torch.float64)))
        >>> sketch = hp.spectral_sketch(A, n_probes=8, steps=4, seed=0)
        >>> round(sketch.trace().value, 6), round(sketch.frobenius_norm().value ** 2, 6)
        (6.0, 22.0)
    """
    began = time.perf_counter()
    fixed = _DEFAULT_PROBES if n_probes is None and rtol is None and atol is None else n_probes
    asked = budget.goal(rtol, atol, fixed if enough is None else max(fixed or 0, 2), confidence, max_probes)
    # Where only bounds and a known law are read, one probe is enough: no spread is estimated.
    asked = replace(asked, n_probes=fixed) if enough is not None else asked
    checks.one_of("law", law, LAWS)
    checks.one_of("method", method, ("auto", "slq", "exact"))
    memory = min(checks.positive_int("memory", memory), room_for_vectors() or memory)
    counted = Counted(settled(A))
    parts = counted.grouped(GROUPS) if data_error else counted
    known = 0.0 if counted.psd and lower is None else lower
    basis = basis_of(deflate, counted)
    longest = _MAX_STEPS if (target is not None or enough is not None) and steps is None else _DEFAULT_STEPS
    if enough is not None:
        each = counted.dim * torch.empty(0, dtype=counted.dtype).element_size()
        beside = 0 if room_for_vectors() is None else _BESIDE
        longest = max(min(longest, memory // each - beside), 2)
    plan = _Plan(
        operator=counted,
        steps=longest if steps is None else checks.positive_int("steps", steps, minimum=2),
        adaptive=(target is not None or enough is not None) and steps is None,
        enough=enough,
        target=target or SpectralSketch.frobenius_norm,
        asked=asked,
        seed=checks.resolve_seed(seed),
        law=law,
        parts=parts,
        data_error=data_error and reorthogonalize and parts.n_terms > 1,
        full=reorthogonalize,
        memory=memory,
        callback=callback,
        lower=None if known is None else checks.real("lower", known),
        may_be_whole=method == "auto" and fits(parts, memory),
    )
    if method == "exact" or (plan.may_be_whole and budget.exact_pays(counted.dim, _expected(plan))):
        sketch = whole_sketch(parts, plan.lower, callback)
    else:
        given = deflate if isinstance(deflate, Deflation) and basis is deflate.basis else None
        blank, vectors = deflated_part(parts, basis, plan.lower, given)
        sketch = blank if len(blank.theta) == counted.dim else _sampled(plan, blank, vectors)
    return replace(
        sketch, law=law, seed=plan.seed, matvecs=round(counted.matvec_count, 6), seconds=time.perf_counter() - began
    )


@dataclass(frozen=True)
class _Plan:
    operator: Counted
    parts: LinearOperator
    steps: int
    adaptive: bool
    target: Target
    asked: budget.Goal
    seed: int
    law: str
    data_error: bool
    full: bool
    memory: int
    callback: budget.Callback | None
    lower: float | None
    may_be_whole: bool
    enough: Enough | None = None


def _expected(plan: _Plan) -> float:
    """Return the fewest products of a sweep before any is made: of its pilot and smallest run for a tolerance."""
    if plan.asked.n_probes is None:
        steps = _FIRST_CHECK if plan.adaptive else min(plan.steps, plan.operator.dim)
        return float(_pilot_probes(plan) * steps + _MINIMUM_PROBES * (steps + plan.data_error))
    steps = _DEFAULT_STEPS // 2 if plan.adaptive else min(plan.steps, plan.operator.dim)
    return plan.asked.n_probes * float(steps + plan.data_error)


def _pilot_probes(plan: _Plan) -> int:
    return _PILOT_PROBES if plan.law == "sphere" else _MINIMUM_PROBES


@dataclass
class _Outlook:
    """Whether the run that a pilot in the making will ask for takes more products than the whole matrix.

    The quadrature error of the chains falls about geometrically, faster towards the end. At twice the mean rate so far
    the smallest run for chains that are then long enough, and further ones of two steps, is the least to expect.
    """

    plan: _Plan
    hopeless: bool = False
    _first: tuple[int, float] | None = None

    def ends(self, step: int, error: float, allowed: float, estimate: Estimate) -> bool:
        """Return whether the pilot is to end here, for d products.

        Args:
            step: of the chains.
            error: their quadrature error.
            allowed: what it may be.
            estimate: of the target.
        """
        if not self.plan.may_be_whole or error <= allowed or not math.isfinite(error):
            return False
        if self._first is None:
            self._first = step, error
            return False
        start, before = self._first
        rate = 2 * math.log(before / error) / (step - start) if error < before else 0.0
        steps = step + (math.log(error / allowed) / rate if rate > 0 and allowed > 0 else math.inf)
        wanted = _count(self.plan, estimate)[0]
        least = _MINIMUM_PROBES * (steps + self.plan.data_error) + 2 * max(wanted - _MINIMUM_PROBES, 0)
        self.hopeless = budget.exact_pays(self.plan.operator.dim, least)
        return self.hopeless


def _sampled(plan: _Plan, blank: SpectralSketch, vectors: Tensor | None) -> SpectralSketch:
    """Add the chains: a fixed number, or as many as a pilot of other probes asks for; or take the whole matrix."""
    if plan.asked.n_probes is not None:
        return _fixed(plan, blank, vectors, plan.asked.n_probes)
    few = _few(plan, blank, vectors)
    if few is not None:
        return few
    outlook = _Outlook(plan)
    pilot = _pilot(plan, blank, vectors, outlook)
    if outlook.hopeless:
        return whole_sketch(plan.parts, plan.lower, plan.callback)
    wanted, room = _count(plan, _answer(plan, pilot))
    count = min(wanted, plan.asked.max_probes)
    final = replace(plan, steps=pilot.alphas.shape[1], adaptive=False)
    each = final.steps + plan.data_error
    sizes = _sizes(final, pilot, count, room) if wanted == count else Sizes(count, 0, 0, float(count * each))

    def run() -> SpectralSketch:
        sketch = _chains(final, blank, vectors, sizes.long, "sketch")
        if sizes.short:
            sketch = _with_short(final, sketch, pilot, vectors, sizes)
        judged = budget.settled(_answer(plan, sketch), plan.asked, wanted, count)
        return replace(sketch, flags=tuple(f for f in judged.flags if f in ("tolerance-missed", "budget-exhausted")))

    exact = (lambda sampled: whole_sketch(plan.parts, plan.lower, plan.callback)) if plan.may_be_whole else None
    return budget.carried_out(plan.operator.dim, [budget.Way(sizes.cost, run)], exact)[0]


class _Alone:
    """Whether a chain alone tells the target: its quadrature by a bracket, and what few probes of its law are off by.

    In many dimensions a quadratic form hardly varies, and one chain knows by how much (``ProbeLaw``). What it goes on
    for is a theorem, so that where it ends takes nothing from the confidence; how many probes there shall be, fewer
    than the smallest run of a pilot, rests on a variance known to 16 degrees of freedom at least.
    """

    def __init__(self, plan: _Plan) -> None:
        self.plan, self.wanted, self.probes_do = plan, 0, False

    def __call__(self, sketch: SpectralSketch) -> bool:
        """Return True where the chain shall end: it is enough with ``wanted`` probes in all, or (0) not worth it."""
        estimate, asked = _answer(self.plan, sketch), self.plan.asked
        std, df = estimate.details["probe_std"], estimate.details["probe_df"]
        bracket = estimate.details["quadrature"] != "extrapolated"
        half = asked.target(estimate.value)
        self.wanted, self.probes_do = 0, False
        if std is None or not bracket or not df >= KNOWN:
            return True
        # Further chains change what is known of the variance, and of their brackets.
        std_of_more, solver = budget.upper_std(std, df), _MARGIN * estimate.errors.solver
        if self._count(std, df, half) > 1 and self._count(std_of_more, df, half) >= _MINIMUM_PROBES:
            return True
        self.probes_do = self._count(std, df, half) == 1
        if estimate.half_width(asked.confidence) <= half:
            self.wanted = 1
        elif self._count(std, df, half) > 1 and solver <= _BRACKET_SHARE * half:
            count = max(self._count(std_of_more, df, half - solver), 2)
            self.wanted = count if count < _MINIMUM_PROBES else 0
            return solver <= _TOLERANCE_SHARE * half or self.wanted > 0
        return self.wanted > 0

    def _count(self, std: float, df: float, half: float) -> int:
        return budget.smallest_count(
            lambda n: std / math.sqrt(n),
            lambda n: df * n,
            half,
            self.plan.asked.confidence,
            minimum=1,
            maximum=_MINIMUM_PROBES,
        )


def _few(plan: _Plan, blank: SpectralSketch, vectors: Tensor | None) -> SpectralSketch | None:
    """Return a sketch of fewer chains than the smallest run of a pilot has, or None where these do not tell enough."""
    if plan.law != "sphere" or not plan.adaptive:
        return None
    alone = _Alone(plan)
    steps = min(plan.steps, plan.operator.dim // _MINIMUM_PROBES) if plan.may_be_whole else plan.steps
    if steps < _FIRST_CHECK:
        return None
    sketch = _chains(replace(plan, enough=alone, steps=steps), blank, vectors, 1, "sketch", first=_APART)
    # A chain that ends by itself has not been asked.
    alone(sketch)
    if alone.probes_do and not alone.wanted and not plan.may_be_whole and sketch.alphas.shape[1] == plan.steps:
        # Longer chains are not to be had, and more of them leave the same quadrature error.
        alone.wanted = 1
    if not alone.wanted:
        return None
    if alone.wanted > 1:
        final = replace(plan, steps=sketch.alphas.shape[1], adaptive=False)
        sketch = _joined([sketch, _chains(final, blank, vectors, alone.wanted - 1, "sketch", first=_APART + 1)])
    judged = budget.settled(_answer(plan, sketch), plan.asked, alone.wanted, alone.wanted)
    return replace(sketch, flags=tuple(f for f in judged.flags if f == "tolerance-missed"))


def _fixed(plan: _Plan, blank: SpectralSketch, vectors: Tensor | None, count: int) -> SpectralSketch:
    """Run so many chains, or take the whole matrix once they have made d products and need to be longer."""
    most = max(plan.operator.dim // count - plan.data_error, 2)
    # How many steps are enough is not foreseen: half of what the whole matrix takes is tried.
    most = most if plan.enough is None else max(most // 2, 2)
    if not (plan.adaptive and plan.may_be_whole) or most >= plan.steps:
        return _chains(plan, blank, vectors, count, "sketch")
    sketch = _chains(replace(plan, steps=most), blank, vectors, count, "sketch")
    return sketch if sketch.alphas.shape[1] < most else whole_sketch(plan.parts, plan.lower, plan.callback)


def _pilot(plan: _Plan, blank: SpectralSketch, vectors: Tensor | None, outlook: _Outlook) -> SpectralSketch:
    # The smallest run with chains of this many steps takes d products.
    enough = max(-(-plan.operator.dim // _MINIMUM_PROBES), 2)
    steps = min(plan.steps, enough) if plan.may_be_whole else plan.steps
    plan = replace(plan, data_error=False, steps=steps)
    return _chains(plan, blank, vectors, _pilot_probes(plan), "pilot", outlook=outlook)


def _count(plan: _Plan, guess: Estimate) -> tuple[int, float]:
    """Return how many chains a pilot's guess asks for, and the half-width that is left to the probes."""
    half = plan.asked.target(guess.value)
    room = max(half - guess.errors.solver, (1 - _BRACKET_SHARE) * half)
    std = guess.details.get("probe_std")
    if std is None:
        std = budget.upper_std(guess.errors.probe * math.sqrt(guess.samples), guess.df)
    if room > 0 and std > 0:
        one = guess.details.get("probe_df") or 0.0
        wanted = budget.smallest_count(
            lambda n: std / math.sqrt(n),
            lambda n: max(one * n, n - 1.0),
            room,
            plan.asked.confidence,
            minimum=_MINIMUM_PROBES,
            maximum=2**62,
        )
        return wanted, room
    return _MINIMUM_PROBES if std == 0.0 else plan.asked.max_probes, room


def _answer(plan: _Plan, sketch: SpectralSketch) -> Estimate:
    """Return the target of a sketch that is not ready; what is weak about it yet is nobody's concern."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        return plan.target(sketch)


def _sizes(plan: _Plan, pilot: SpectralSketch, count: int, room: float) -> Sizes:
    """Return how many long and short chains reach the tolerance at the least cost, as the pilot sees it."""
    measured = {}
    if plan.law == "sphere" and count > _MINIMUM_PROBES and room > 0:
        for steps in short_steps(plan.steps):
            seen = _answer(plan, _cut(pilot, pilot, steps)).details
            if seen.get("rest_std") is not None:
                measured[steps] = (seen["rest_std"], seen["polynomial_std"])
    limits = (_MINIMUM_PROBES, plan.asked.max_probes)
    return best_sizes(measured, count, plan.steps + plan.data_error, room, plan.asked.confidence, limits)


def _cut(sketch: SpectralSketch, other: SpectralSketch, steps: int) -> SpectralSketch:
    """Return ``sketch`` with the first steps of the chains of ``other`` as its short ones."""
    rules = [gauss(*sketch.chain(c)) for c in range(sketch.n_probes) if len(sketch.chain(c)[0])]
    nodes = torch.cat([rule.nodes for rule in rules]) if rules else torch.zeros(1, dtype=torch.float64)
    weights = torch.cat([rule.weights for rule in rules]) / len(rules) if rules else torch.ones_like(nodes)
    return replace(
        sketch,
        short_norms=other.norms,
        short_alphas=other.alphas[:, :steps],
        short_betas=other.betas[:, :steps],
        short_lengths=other.lengths.clamp(max=steps),
        reference=torch.stack([nodes, weights]),
    )


def _with_short(
    plan: _Plan, sketch: SpectralSketch, pilot: SpectralSketch, vectors: Tensor | None, sizes: Sizes
) -> SpectralSketch:
    """Add short chains with probes of their own; polynomials are fitted on the pilot, used for nothing else."""
    plan = replace(plan, steps=sizes.steps, data_error=False, callback=None)
    blank = replace(sketch, weights=sketch.weights[:0], theta_influence=sketch.theta_influence[:0])
    short = _chains(plan, blank, vectors, sizes.short, "sketch", first=sizes.long)
    fitted = _cut(pilot, short, sizes.steps)
    names = ("short_norms", "short_alphas", "short_betas", "short_lengths", "reference")
    return replace(sketch, **{name: getattr(fitted, name) for name in names})


def _chains(
    plan: _Plan,
    blank: SpectralSketch,
    vectors: Tensor | None,
    count: int,
    stream: str,
    first: int = 0,
    outlook: _Outlook | None = None,
) -> SpectralSketch:
    A = plan.operator
    inner = A if vectors is None else Deflated(A, vectors)
    longest = min(plan.steps, A.dim - len(blank.theta))
    size = _chains_together(plan, longest, count)
    probes = ProbeStream(A.dim, plan.seed, plan.law, A.dtype, A.device, stream)
    pieces: list[SpectralSketch] = []
    for start in range(0, count, size):
        V = _projected(probes.block(first + start, first + min(start + size, count)), vectors, plan.law)
        monitor = _Monitor(plan, blank, count, start, longest, outlook)
        run = lanczos(inner, V, longest, reorthogonalize=plan.full, monitor=monitor if monitor.needed else None)
        longest = run.alphas.shape[1]
        plan = replace(plan, adaptive=False)
        weights, influence = (
            influences(plan.parts, run, len(blank.weights)) if plan.data_error else (blank.weights[:0], None)
        )
        pieces.append(_with_run(blank, run, weights, influence))
        # The next chains are made without the bases of these.
        del run, V
    return _joined(pieces)


def _chains_together(plan: _Plan, steps: int, count: int) -> int:
    A = plan.operator
    held = Slice(A.dim, A.ranks)
    # Where rows are held in parts, the start, what is multiplied and its product are whole.
    rows = steps if plan.full else 3
    if room_for_vectors() is not None:
        rows = _BESIDE + (steps if plan.full else 0)
    each = (rows * held.width + 3 * held.beside) * A.dtype.itemsize
    if each > plan.memory:
        raise MemoryBudgetError(
            about(
                "memory",
                f"must hold one chain of {steps} steps, {each} bytes; got {plan.memory}. "
                f"Use steps={max(plan.memory * steps // each, 2)}, more memory, or reorthogonalize=False.",
            )
        )
    return min(count, plan.memory // each)


def _projected(V: Tensor, vectors: Tensor | None, law: str) -> Tensor:
    if vectors is None:
        return V
    V = V - combine(gram(V, vectors), vectors)
    V = V - combine(gram(V, vectors), vectors)
    if law == "rademacher":
        return V
    length = math.sqrt(V.shape[1] - vectors.shape[0])
    norms = row_dots(V, V).sqrt()
    return V * (length / norms).to(V.dtype)[:, None] if law == "sphere" else V


def _with_run(blank: SpectralSketch, run: LanczosRun, weights: Tensor, influence: Tensor | None) -> SpectralSketch:
    p, m = run.alphas.shape
    groups = 0 if influence is None else len(weights)
    return replace(
        blank,
        norms=run.norms,
        alphas=run.alphas,
        betas=run.betas,
        lengths=run.lengths,
        weights=weights,
        chain_influence=torch.zeros(p, 0, m, dtype=torch.float64) if influence is None else influence,
        theta_influence=blank.theta_influence[:groups],
    )


def _joined(pieces: list[SpectralSketch]) -> SpectralSketch:
    steps = max(piece.alphas.shape[1] for piece in pieces)

    def grown(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, steps - tensor.shape[-1]))

    return replace(
        pieces[0],
        norms=torch.cat([piece.norms for piece in pieces]),
        lengths=torch.cat([piece.lengths for piece in pieces]),
        alphas=torch.cat([grown(piece.alphas) for piece in pieces]),
        betas=torch.cat([grown(piece.betas) for piece in pieces]),
        chain_influence=torch.cat([grown(piece.chain_influence) for piece in pieces]),
    )


class _Monitor:
    """Watches the target during a sweep: ends it when the quadrature is good enough, reports progress."""

    def __init__(
        self, plan: _Plan, blank: SpectralSketch, count: int, first: int, steps: int, outlook: _Outlook | None = None
    ) -> None:
        self.outlook = outlook
        self.plan, self.blank, self.count, self.first, self.steps = plan, blank, count, first, steps
        self.needed = plan.adaptive or plan.callback is not None
        self._settled, self._next = 0, _FIRST_CHECK

    def __call__(self, run: LanczosRun) -> bool:
        step = run.alphas.shape[1]
        due = step >= _FIRST_CHECK and step % _CHECK_EVERY == 0
        if self.plan.enough is not None:
            if self.plan.adaptive and step >= self._next:
                # What is asked takes an eigenproblem of this size.
                self._next = max(step + _CHECK_EVERY, int(1.1 * step))
                if self.plan.enough(_with_run(self.blank, run, self.blank.weights[:0], None)):
                    return True
            due = due and self.plan.callback is not None
        estimate = _answer(self.plan, _with_run(self.blank, run, self.blank.weights[:0], None)) if due else None
        if self.plan.callback is not None:
            value = math.nan if estimate is None else estimate.value
            error = math.inf if estimate is None else estimate.errors.probe
            done = float(self.first * self.steps + step * len(run.norms))
            self.plan.callback(budget.Progress(done, float(self.count * self.steps), value, error))
        return (
            self.plan.adaptive
            and self.plan.enough is None
            and estimate is not None
            and self._ends(estimate, step, len(run.norms))
        )

    def _share_of_tolerance(self, estimate: Estimate) -> float:
        """Return what the quadrature error may be: of a bracket, what the smallest run leaves of the tolerance."""
        target = self.plan.asked.target(estimate.value)
        std = estimate.details.get("probe_std")
        if std is None or estimate.details["quadrature"] == "extrapolated":
            return _TOLERANCE_SHARE * target
        probes: float = student_quantile(0.5 + self.plan.asked.confidence / 2, _MINIMUM_PROBES - 1.0) * std
        return max(_TOLERANCE_SHARE * target, _BRACKET_SHARE * target - probes / math.sqrt(_MINIMUM_PROBES))

    def _ends(self, estimate: Estimate, step: int, chains: int) -> bool:
        if self.plan.asked.n_probes is None:
            allowed = self._share_of_tolerance(estimate)
        else:
            allowed = _SOLVER_SHARE * estimate.errors.probe * math.sqrt(chains / self.count)
        error = estimate.details.get("quadrature_error", math.inf)
        allowed = max(allowed, 1e-12 * abs(estimate.value))
        good = error <= allowed
        if self.outlook is not None and self.outlook.ends(step, error, allowed, estimate):
            return True
        self._settled = self._settled + 1 if good else 0
        rate = estimate.details.get("rate_steps")
        # A bracket is a theorem; an error told from shorter rules may be small by chance once.
        return self._settled >= (2 if estimate.details["quadrature"] == "extrapolated" else 1) or (
            rate is not None and step >= rate
        )

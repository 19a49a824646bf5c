"""(phi, psi, mu) measures by name: the value, the Hessian-based estimate of the same quantity, and their z-score."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from scipy import special
from torch import Tensor

from hessprobe import estimators, krylov
from hessprobe.errors import ArgumentMessage, NonFiniteError, NumericalWarning, about
from hessprobe.estimate import ErrorParts, Estimate, student_quantile
from hessprobe.estimators.sketch import SpectralSketch
from hessprobe.estimators.whole import LARGEST, whole_matrix
from hessprobe.measures.context import Context, Result
from hessprobe.measures.table import UNIVERSAL_PREFIX
from hessprobe.operators import DenseOperator
from hessprobe.universal import Catalogued, Forms, Measure, Spectrum, agreement, evaluate, evaluate_from_losses
from hessprobe.universal import catalogue as cat
from hessprobe.universal.law import LAWS, sketched
from hessprobe.universal.products import find_point
from hessprobe.universal.samplers import Sampler

# Draws of the pilot, and the most that a tolerance may ask for: (phi, psi, mu) needs far more than the estimators.
_PILOT, _MOST = 64, 2048
# Beyond so many standard errors the two estimates do not measure the same number.
_DISAGREEMENT = 4.0
# The sweep behind spectral sums: polynomials of degree 4 and functions that are smooth on the scale of the spectrum.
_CHAINS, _STEPS, _DEFLATED = 16, 24, 16
# Products of the search for the leading eigenvectors that are taken out.
_SEARCH = 400
# Measures whose exponent comes from the shift.
_SHIFTED = frozenset({"logdet", "det", "log-exp"})
# Richardson levels of an evaluation from losses.
_LEVELS = 2
# Where nodes are put that correct the first two moments, relative to the Frobenius norm: third moments hardly change.
_SMALL_NODE = 0.02
# A truncated Lebesgue measure is sampled in few dimensions only, and reaches so many standard deviations out.
_LEBESGUE_DIM, _LEBESGUE_REACH = 8, 3.5


def measured(context: Context, name: str) -> Result:
    """Return the measure ``universal:NAME``; its arrays are ``hessian_based``, ``z``, ``plug_in_bias`` and others."""
    return context.shared(UniversalWork).answer(name)


@dataclass
class UniversalWork:
    """What the (phi, psi, mu) measures of one context share: quadratic forms, and a sweep for spectral sums.

    Where the sweep, or the draws of a law, would take d products, the whole matrix is made once and serves both.
    """

    context: Context
    _forms: dict[tuple[str, str], Forms] = field(default_factory=dict)
    # What the points of laws cost whose draws are multiplied by the matrix that is held.
    _held: dict[tuple[str, str], float] = field(default_factory=dict)

    def answer(self, name: str) -> Result:
        """Return the measure ``universal:NAME``.

        Raises:
            ValueError: a setting that the measure cannot honour, or a matrix that is not definite enough for it.
            NonFiniteError: a product or an expectation is not finite.
        """
        short = name.removeprefix(UNIVERSAL_PREFIX)
        self._require_honoured(name)
        before = self._products
        entry, notes = self._entry(short)
        reference = self._reference(short, entry)
        if short in ("logdet", "det") and math.isnan(reference.value):
            raise ValueError(self._indefinite(name))
        if self.context.settings.radius is not None:
            before = self._products  # the reference's products are no cost of an evaluation from losses
        estimate = self._estimate(name, entry, before)
        z = agreement(estimate, reference)
        if abs(z) > _disagreement(estimate):
            estimate = estimate.with_(flags=(*estimate.flags, "disagrees-with-hessian"))
        arrays = {"hessian_based": _vector(reference.value, reference.std_error)}
        if math.isfinite(z):
            arrays["z"] = _vector(z)
        for key, label in (("bias", "plug_in_bias"), ("effective_samples", "effective_samples")):
            if estimate.details.get(key) is not None:
                arrays[label] = _vector(estimate.details[key])
        return Result(estimate, arrays=arrays, notes=(_compared(entry, reference, z), *notes, *_loss_notes(estimate)))

    def _require_honoured(self, name: str) -> None:
        settings = self.context.settings
        if settings.radius is not None and settings.operator != "hessian":
            raise ValueError(
                about(
                    "radius",
                    f"must be None for operator={settings.operator!r}; got {settings.radius:g}. "
                    f"Losses know the Hessian only: measure {name} with operator='hessian', or by products.",
                )
            )

    def _indefinite(self, name: str) -> ArgumentMessage:
        """Say why E exp(-t) diverges: a Ritz value is never below the smallest eigenvalue."""
        low = self.sketch.ritz_range()[0]
        return about(
            "shift",
            f"must be above -lambda_min for {name}, which needs a positive definite I + A/shift; got "
            f"{self.shift:g}, and an eigenvalue of at most {low:.4g}, with which E exp(-t) diverges. Leave shift out "
            "for one that is large enough, or measure a positive semidefinite operator.",
        )

    def _entry(self, short: str) -> tuple[Catalogued, tuple[str, ...]]:
        if short in ("logdet", "det"):
            shift = self.shift
            form = f"log det(A/{shift:g} + I)" if short == "logdet" else f"det(A/{shift:g} + I)"
            chosen = "" if self.context.settings.shift is not None else ", a shift of at least 2 ||A||_F"
            return cat.CATALOGUE[short](1 / math.sqrt(shift)), (form + chosen,)
        if short == "log-exp":
            rate = self.context.A.dim / (2 * self.shift)
            return cat.log_exp(rate), (f"b = {rate:.6g}; tends to lambda_max only as b grows",)
        if short == "soft-max":
            return cat.soft_max(4), ("power 4; tends to max |eigenvalue| only as the power grows",)
        if short == "lebesgue-det":
            return self._lebesgue()
        made: Callable[[], Catalogued] = cat.CATALOGUE.get(short) or partial(
            cat.cumulant, int(short.removeprefix("tr"))
        )
        return made(), ()

    @cached_property
    def shift(self) -> float:
        """The damping s of log det(I + A/s): as asked for, or the power of two from 2 ||A||_F on.

        Then E exp(-t) has a variance whatever the spectrum, as I + 2A/s > 0, and a sample stands for its mean.
        """
        if self.context.settings.shift is not None:
            return self.context.settings.shift
        norm = float(self.matrix.matrix.norm()) if self._small else self.context.frobenius.value
        return 2.0 ** math.ceil(math.log2(2 * norm)) if norm > 0 else 1.0

    def _lebesgue(self) -> tuple[Catalogued, tuple[str, ...]]:
        A = self.context.A
        if A.dim > _LEBESGUE_DIM:
            raise ValueError(
                f"universal:lebesgue-det must have at most {_LEBESGUE_DIM} parameters; got {A.dim}. The share of a "
                "cube that carries the integral falls exponentially with the dimension. Measure universal:logdet."
            )
        low = float(torch.linalg.eigvalsh(A.to_dense().double()).min())
        if not low > 0:
            raise ValueError(
                f"universal:lebesgue-det must have a positive definite matrix; got an eigenvalue {low:.4g}, where "
                "INT exp(-t) du diverges. Measure universal:logdet."
            )
        reach = _LEBESGUE_REACH / math.sqrt(low)
        return cat.lebesgue_det(reach, A.dim), (f"Lebesgue measure on [-{reach:.4g}, {reach:.4g}]^{A.dim}",)

    def _reference(self, short: str, entry: Catalogued) -> Estimate:
        context = self.context
        if short == "trace":
            return context.trace
        if short == "frob":
            return context.frobenius
        if short == "worst":
            return context.eigenpairs.estimate(0)
        if short == "ascent":
            gradient = find_point(entry.measure.mu, context.A, context.risk, context.settings.seed)[0].part("gradient")
            unit = (gradient / gradient.norm()).to(dtype=context.A.dtype, device=context.A.device)
            rounding = 8 * torch.finfo(context.A.dtype).eps
            value = float(context.A.quadratic_forms(unit[None]))
            return Estimate(value, ErrorParts(solver=rounding * abs(value)), kind="exact")
        if short == "lebesgue-det":
            return Estimate(entry.closed_form(Spectrum.of_matrix(context.A.to_dense())), kind="exact")
        if self._small:
            return spectral_reference(self.sketch, entry.closed_form)
        return spectral_reference(self.sketch, entry.closed_form, context.trace, context.frobenius)

    @property
    def _small(self) -> bool:
        """True where d products are no more than what stands in for the spectrum of a larger matrix takes."""
        return self.context.A.dim <= _SEARCH + _CHAINS * _STEPS

    @cached_property
    def matrix(self) -> DenseOperator:
        """The whole matrix."""
        A = self.context.A
        return DenseOperator(whole_matrix(A, self._progress).to(A.dtype), psd=A.psd)

    @cached_property
    def sketch(self) -> SpectralSketch:
        """Chains behind spectral sums, with leading eigenvectors taken out; all eigenvalues of a small matrix."""
        A, seed = self.context.A, self.context.settings.seed
        if self._small:
            return estimators.spectral_sketch(self.matrix, method="exact")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumericalWarning)  # inexact vectors cost variance
            pairs = krylov.eigsh(
                A,
                _DEFLATED,
                "magnitude",
                tol=1e-3,
                rtol=None,
                seed=seed,
                verify=False,
                max_matvecs=_SEARCH,
                data_error=False,
            )
        return estimators.spectral_sketch(A, n_probes=_CHAINS, steps=_STEPS, deflate=pairs, seed=seed, data_error=False)

    def _estimate(self, name: str, entry: Catalogued, before: float) -> Estimate:
        try:
            return self._evaluated(entry, before)
        except NonFiniteError as error:
            if entry.name in _SHIFTED and self.context.settings.shift is not None:
                shift = self.context.settings.shift
                raise NonFiniteError(f"{error} For {name} that is a shift above {shift:g}.") from error
            raise

    def _evaluated(self, entry: Catalogued, before: float) -> Estimate:
        context, measure = self.context, entry.measure
        seed = context.settings.seed
        count, wanted = self._size(measure, self._spectrum(entry))
        how: dict[str, Any] = {"n_probes": count, "seed": seed, "correct_bias": True, "spectrum": self._spectrum(entry)}
        if context.settings.radius is not None:
            estimate = self._from_losses(measure, context.settings.radius, how)
        else:
            estimate = evaluate(measure, context.A, forms=self.forms(measure.mu, "universal", count), **how)
        # With those of the pilot and of the matrix; what losses needed to find their point is in the estimate already.
        products = estimate.matvecs if context.settings.radius is not None else 0.0
        estimate = estimate.with_(matvecs=products + self._products - before)
        if wanted > count:
            estimate = estimate.with_(flags=(*estimate.flags, "budget-exhausted"))
        return estimate

    def _from_losses(self, measure: Measure, radius: float, how: dict[str, Any]) -> Estimate:
        try:
            return evaluate_from_losses(
                measure, self.context.risk, radius, levels=_LEVELS, callback=self._progress, **how
            )
        except ValueError as error:
            # The radius of the settings is the rho of the formula; the smallest radius in use is half of it.
            said = error.args[0]
            if isinstance(said, ArgumentMessage) and said.parameter == "rho":
                raise ValueError(about("radius / 2, the smaller of the two in use,", said.rest)) from error
            raise

    @property
    def _products(self) -> float:
        matrix = self.context.A.dim if "matrix" in self.__dict__ else 0.0
        return matrix + math.fsum(self._held.get(key, forms.matvecs) for key, forms in self._forms.items())

    def _spectrum(self, entry: Catalogued) -> Spectrum | None:
        """Return the spectrum behind the Hessian-based estimate, which the law of t follows from; None without one."""
        return sketched(self.sketch) if entry.measure.mu.name in LAWS and "sketch" in self.__dict__ else None

    def _size(self, measure: Measure, spectrum: Spectrum | None) -> tuple[int, float]:
        """Return the number of draws, and that which the tolerance asks for: a pilot tells."""
        settings = self.context.settings
        if measure.mu.fixed or settings.n_probes is not None:
            count = settings.n_probes or 2
            return count, count
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NumericalWarning)
                forms = self.forms(measure.mu, "pilot", _PILOT)
                pilot = evaluate(
                    measure, self.context.A, n_probes=_PILOT, correct_bias=True, forms=forms, spectrum=spectrum
                )
        except NonFiniteError:
            return _MOST, math.inf
        std, target = pilot.std_error * math.sqrt(_PILOT), settings.rtol * abs(pilot.value)
        if not (math.isfinite(std) and target > 0):
            return (_MOST, math.inf) if std > 0 else (_PILOT, 0.0)
        wanted = estimators.required_samples(std, target, settings.confidence, minimum=_PILOT)
        return min(wanted, _MOST), wanted

    def forms(self, mu: Sampler, stream: str, count: int) -> Forms:
        """Return the quadratic forms of a law, shared by all measures that draw from it.

        Args:
            mu: the law.
            stream: of the draws.
            count: draws that will be asked for; those of as many as the matrix has columns are multiplied by it.
        """
        key = (mu.name, stream)
        if key not in self._forms:
            context = self.context
            point, cost = find_point(mu, context.A, context.risk, context.settings.seed)
            held = "matrix" in self.__dict__ or context.A.dim <= min(count, LARGEST)
            A = self.matrix if held else context.A
            made = Forms(A, mu, point, seed=context.settings.seed, stream=stream, callback=self._progress)
            made.matvecs += cost
            if held:
                self._held[key] = cost
            self._forms[key] = made
        return self._forms[key]

    def _progress(self, state: estimators.Progress) -> None:
        self.context.advance("directions", state)


def spectral_reference(
    sketch: SpectralSketch,
    closed_form: Callable[[Spectrum], float],
    trace: Estimate | None = None,
    frobenius: Estimate | None = None,
) -> Estimate:
    """Return a closed form of the spectrum from Lanczos chains, its error by the jackknife over chains.

    The nodes and weights of all chains together are a spectrum of total multiplicity d, so that whatever has a closed
    form in the eigenvalues can be had from it, also what is no spectral sum. Where trace and Frobenius norm are known
    better than the chains tell them, three small nodes of total weight 0 give the spectrum these moments.

    Args:
        sketch: chains and deflated values.
        closed_form: of the spectrum.
        trace: estimate of Tr A, independent of the sketch; with ``frobenius``.
        frobenius: estimate of ||A||_F.
    """
    chains = [index for index in range(sketch.n_probes) if int(sketch.lengths[index])]
    if len(chains) < 2:
        kind = "exact" if not chains else "estimate"
        return Estimate(closed_form(sketched(sketch, chains)), kind=kind, matvecs=sketch.matvecs, method="slq")

    def value(used: list[int], trace_off: float = 0.0, norm_off: float = 0.0) -> float:
        spectrum = sketched(sketch, used)
        if trace is not None and frobenius is not None:
            spectrum = _with_moments(spectrum, trace.value + trace_off, frobenius.value + norm_off)
        return closed_form(spectrum)

    whole = value(chains)
    without = [value(chains[:i] + chains[i + 1 :]) for i in range(len(chains))]
    mean = math.fsum(without) / len(chains)
    parts = [math.sqrt((len(chains) - 1) / len(chains) * math.fsum((one - mean) ** 2 for one in without))]
    if trace is not None and frobenius is not None:
        parts += [value(chains, trace.std_error) - whole, value(chains, 0.0, frobenius.std_error) - whole]
    return Estimate(
        whole,
        ErrorParts(math.hypot(*parts)),
        df=len(chains) - 1,
        matvecs=sketch.matvecs,
        samples=len(chains),
        method="slq",
    )


def _with_moments(spectrum: Spectrum, trace: float, norm: float) -> Spectrum:
    """Return the spectrum with nodes at -v, 0, v added, v small, that give it this trace and Frobenius norm."""
    step = _SMALL_NODE * norm
    if step == 0.0:
        return spectrum
    first, second = trace - spectrum.power_sum(1), norm**2 - spectrum.power_sum(2)
    up, down = (second / step**2 + first / step) / 2, (second / step**2 - first / step) / 2
    nodes = torch.tensor([-step, 0.0, step], dtype=torch.float64)
    weights = torch.tensor([down, -up - down, up], dtype=torch.float64)
    return Spectrum(torch.cat([spectrum.values, nodes]), torch.cat([spectrum.weights, weights]))


def _disagreement(estimate: Estimate) -> float:
    """Return the z-score that leaves out what 4 standard errors of a normal law do, for the estimate's df."""
    if estimate.std_error == 0.0 or not estimate.df > 0:
        return _DISAGREEMENT
    return student_quantile(float(special.ndtr(_DISAGREEMENT)), estimate.df)


def _compared(entry: Catalogued, reference: Estimate, z: float) -> str:
    error = f" ± {reference.std_error:.2g}" if reference.std_error > 0 else ""
    verdict = f"z = {z:.2f}" if math.isfinite(z) else "beyond the bounds on both errors"
    return f"Hessian-based ({entry.partner}): {reference.value:.6g}{error}, {verdict}"


def _loss_notes(estimate: Estimate) -> tuple[str, ...]:
    if "losses" not in estimate.details:
        return ()
    found = estimate.details
    sees = "losses see the kinks of ReLU and higher orders as curvature, products do not; try a smaller radius"
    return (
        f"from {found['losses']} losses at radii {found['rho']:g} and {found['rho'] / 2:g}, extrapolated; "
        f"||rho u|| is about {found['displacement']:.3g}",
        *((sees,) if "disagrees-with-hessian" in estimate.flags else ()),
    )


def _vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)

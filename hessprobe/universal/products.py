"""(phi, psi, mu)-sharpness through exact products u^T H u."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import NonFiniteError, about
from hessprobe.estimate import Estimate
from hessprobe.estimators.budget import Callback, Progress
from hessprobe.hvp import Hessian
from hessprobe.krylov import eigsh
from hessprobe.objective.base import Objective
from hessprobe.operators import LinearOperator, settled
from hessprobe.universal.definition import Measure
from hessprobe.universal.law import LAWS, law_error, spectrum_of
from hessprobe.universal.plugin import finish, plug_in
from hessprobe.universal.samplers import Point, Sampler
from hessprobe.universal.spectra import Spectrum

# Entries of a block of directions: 64 MB in fp64.
_BLOCK = 1 << 23
_MOST_ROWS = 256
_EIGEN_TOL = 1e-6

DEFAULT_DRAWS = 1024


class Forms:
    """The numbers u^T A u of the first draws of a law, computed when first asked for and never twice.

    Laws of one name at different scales, and different phi and psi, share them.

    Args:
        A: the operator.
        mu: the law; its scale does not matter here.
        point: what the law depends on.
        seed: integer >= 0.
        stream: of the draws; see ``probes.STREAMS``.
        callback: told of progress.

    Attributes:
        matvecs: products made.
    """

    def __init__(
        self,
        A: LinearOperator,
        mu: Sampler,
        point: Point,
        *,
        seed: int = 0,
        stream: str = "universal",
        callback: Callback | None = None,
    ) -> None:
        self._A, self._mu, self._point = A, mu, point
        self._seed, self._stream, self._callback = seed, stream, callback
        self._known = torch.zeros(0, dtype=torch.float64)
        self.matvecs = 0.0

    def first(self, count: int, scale: float = 1.0) -> Tensor:
        """Return scale^2 u^T A u of the first ``count`` draws at scale 1, fp64 (count,) on the CPU.

        Raises:
            NonFiniteError: a product is nan or infinite.
        """
        blocks, done = [self._known], len(self._known)
        rows = max(min(_BLOCK // self._A.dim, _MOST_ROWS), 1)
        while done < count:
            stop = min(done + rows, count)
            U = self._mu.rows(
                done,
                stop,
                self._point,
                seed=self._seed,
                stream=self._stream,
                dtype=self._A.dtype,
                device=self._A.device,
            )
            # At scale 1, whatever the scale of this law.
            blocks.append(self._A.quadratic_forms(U).cpu() / self._mu.scale**2)
            self.matvecs += stop - done
            done = stop
            if self._callback is not None:
                self._callback(Progress(done, count, math.nan, math.inf))
        self._known = torch.cat(blocks)
        if not bool(torch.isfinite(self._known).all()):
            raise NonFiniteError("products must be finite; got nan or inf in u^T A u. Check the weights and the data.")
        return self._known[:count] * scale**2


def evaluate(
    measure: Measure,
    A: Any,
    *,
    n_probes: int = DEFAULT_DRAWS,
    seed: int | torch.Generator = 0,
    correct_bias: bool = False,
    point: Point | None = None,
    forms: Forms | None = None,
    spectrum: Spectrum | None = None,
    callback: Callback | None = None,
) -> Estimate:
    """Estimate S = phi(E_mu psi(c u^T A u)) from exact products.

    Args:
        measure: phi, psi, mu and c.
        A: an objective (its Hessian is taken), a symmetric operator, or what ``aslinearoperator`` takes.
        n_probes: draws of u, at least ``measure.minimum``; a law concentrated at one point takes one.
        seed: integer >= 0, or a generator to draw one from.
        correct_bias: subtract the jackknife estimate of the plug-in bias, exact for phi quadratic in s.
        point: what an x-dependent mu reads; found from an objective where None.
        forms: quadratic forms of the same law and operator to share.
        spectrum: of the operator, where known: the error is then that of the law of t, see ``law``. Where None and the
            measure is ``skewed``, a Lanczos sweep finds one, of at most about 230 products, unless ``forms`` are given.
        callback: called with a ``Progress`` after each block of products.

    Returns:
        The estimate; ``std_error`` by the delta method (asymptotic), or 1 / 1.96 of the half-width of the 95 % interval
        that the law of t gives (``details["error_from"]``: ``"sample"`` or ``"law"``). ``details``: ``bias``
        (jackknife; None where phi is not defined on part of the sample), ``bias_corrected``, ``jackknife_std_error``,
        ``effective_samples``. ``df`` is below n - 1 where few draws carry the error. Flags: ``"heavy-tailed-mean"``:
        few draws carry the mean or its error, as for exp(-t) away from a narrow mu, and neither is to be trusted;
        ``"plug-in-bias"``: the bias is over half the standard error, and uncorrected; ``"few-probes"``: fewer than 128
        draws for a norm.

    Raises:
        TypeError, ValueError: an argument outside its range, phi or psi of the wrong shape, an mu that needs more of
            the point than there is.
        NonFiniteError: an expectation, phi of it, or a product is not finite.

    Warns:
        NumericalWarning: with each of the first two flags.
    """
    started = time.perf_counter()
    if not isinstance(measure, Measure):
        raise TypeError(
            about("measure", f"must be a Measure; got {type(measure).__name__}. Make one of phi, psi and mu.")
        )
    count = draws(measure, n_probes)
    number = checks.resolve_seed(seed)
    operator = Hessian(A) if isinstance(A, Objective) else settled(A)
    spent = 0.0
    if forms is None:
        risk = A if isinstance(A, Objective) else None
        at, spent = (point, 0.0) if point is not None else find_point(measure.mu, operator, risk, number)
        forms = Forms(operator, measure.mu, at, seed=number, callback=callback)
        if spectrum is None and measure.skewed and measure.mu.name in LAWS:
            spectrum, products = spectrum_of(operator, number)
            spent += products
    before = forms.matvecs
    t = measure.c * forms.first(count, measure.mu.scale)
    mass = measure.mass(operator.dim)
    found = plug_in(measure, measure.samples(t), mass)
    law = None
    if spectrum is not None:
        law = law_error(measure, spectrum, count, correct_bias=correct_bias, mass=mass, seed=number)
    return finish(
        found,
        law=law,
        correct_bias=correct_bias,
        name=measure.name,
        draws=count,
        fixed=measure.mu.fixed,
        known_square=0.0 if measure.norm else None,
        matvecs=forms.matvecs - before + spent,
        method=f"products/{measure.mu.name}",
        seconds=time.perf_counter() - started,
    )


def draws(measure: Measure, n_probes: int) -> int:
    """Return how many draws are made for this measure.

    Raises:
        TypeError, ValueError: fewer than phi makes sense of.
    """
    if measure.mu.fixed:
        return 1
    fewest = max(measure.minimum, 2)
    hint = f"{measure.name} needs that many for a variance that is not biased, and for an error."
    return checks.positive_int("n_probes", n_probes, minimum=fewest, hint=hint)


def find_point(mu: Sampler, A: LinearOperator, risk: Objective | None, seed: int) -> tuple[Point, float]:
    """Return what ``mu`` needs of the point, and what that cost in products (a gradient counts as one).

    Raises:
        ValueError: the law depends on the parameters or the gradient, and there is no objective.
    """
    theta = gradient = vector = None
    cost = 0.0
    if "eigenvector" in mu.needs:
        pairs = eigsh(A, 1, "largest", tol=_EIGEN_TOL, seed=seed, data_error=False)
        vector, cost = pairs.vectors[0], pairs.matvecs
    if risk is not None:
        theta = risk.theta
        if "gradient" in mu.needs:
            gradient, cost = risk.gradient(), cost + 1.0
    point = Point(A.dim, theta, gradient, vector)
    for part in mu.needs:
        point.part(part)
    return point, cost


def agreement(one: Estimate, other: Estimate) -> float:
    """Return the z-score between two independent estimates of one quantity.

    z = (|difference| - solver errors, at least 0) / sqrt(se_1^2 + se_2^2) with the sign of one - other; 0 where
    these explain the difference, inf where nothing does.
    """
    gap = one.value - other.value
    slack = one.errors.solver + other.errors.solver
    slack += 1e-12 * max(abs(one.value), abs(other.value))
    excess = max(abs(gap) - slack, 0.0)
    if excess == 0.0:
        return 0.0
    error = math.hypot(one.std_error, other.std_error)
    return math.copysign(excess / error if error > 0 else math.inf, gap)

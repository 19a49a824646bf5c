"""One quantity from the Hessian, from (phi, psi, mu) by products, and from losses alone, against the dense truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.measures import MeasureSettings, measure_all
from hessprobe.measures.context import Result
from hessprobe.objective import Objective
from hessprobe.objective.analytic import Quadratic, Rosenbrock, ScaleInvariantProduct
from hessprobe.universal import Spectrum, agreement, integrate
from hessprobe.universal import catalogue as cat
from hessprobe.validation.claim import Claim, Curve, Finding, Part, Series, agrees, below, near, seen
from hessprobe.validation.matrices import eigenvalues, rotated
from hessprobe.validation.networks import digits_network

_NAMES = ("trace", "frob", "logdet", "log-exp")
Measured = Callable[..., Iterator[Result]]


def against(label: str, truth: float, found: Estimate) -> Part:
    """Return the comparison with an exact number, deterministic errors taken off the difference."""
    z = agreement(found, Estimate(truth, kind="exact"))
    error = found.std_error
    return agrees(label, truth, truth + z * error if math.isfinite(z) else found.value, error)


def compare(
    label: str, risk: Objective, values: Tensor, settings: MeasureSettings, measured: Measured = measure_all
) -> list[Part]:
    """Return for every measure: by (phi, psi, mu), by the Hessian, and between the two.

    Args:
        label: of the objective.
        risk: the objective.
        values: eigenvalues of its Hessian (d,).
        settings: with a shift, which fixes the damping of logdet and the rate of log-exp.
        measured: ``measures.measure_all``.
    """
    shift = settings.shift or 1.0
    entries = {
        "trace": cat.trace(),
        "frob": cat.frob(),
        "logdet": cat.logdet(1 / math.sqrt(shift)),
        "log-exp": cat.log_exp(len(values) / (2 * shift)),
    }
    parts: list[Part] = []
    for result in measured([f"universal:{name}" for name in _NAMES], risk, settings):
        name = result.measure.removeprefix("universal:")
        truth = entries[name].closed_form(Spectrum.of(values))
        parts.append(against(f"{label}, {name}, (phi, psi, mu)", truth, result.estimate))
        other, *error = result.arrays["hessian_based"].tolist()
        based = Estimate(other, ErrorParts(probe=error[0] if error else 0.0))
        parts.append(against(f"{label}, {name}, from the Hessian", truth, based))
        if "z" in result.arrays:
            parts.append(agrees(f"{label}, {name}, z between them", 0.0, float(result.arrays["z"][0]), 1.0))
    return parts


def _objectives() -> dict[str, tuple[Objective, Tensor]]:
    flat = Quadratic(rotated(eigenvalues("flat", 40)), terms=4)
    mixed = Quadratic(rotated(eigenvalues("indefinite", 40)))
    bent = Rosenbrock(6)
    product = ScaleInvariantProduct(3, 2.0)
    return {
        "sum of 4 quadratics": (flat, torch.linalg.eigvalsh(flat.hessian())),
        "indefinite quadratic": (mixed, torch.linalg.eigvalsh(mixed.hessian())),
        "Rosenbrock": (bent, torch.linalg.eigvalsh(bent.hessian())),
        "product of two vectors": (product, torch.linalg.eigvalsh(product.hessian())),
    }


def analytic(draws: int, measured: Measured = measure_all) -> Finding:
    """Four analytic objectives, one of several terms, three with negative curvature."""
    parts: list[Part] = []
    for label, (risk, values) in _objectives().items():
        # I + 2 H / s > 0, so that exp(-t) has a variance whatever the signs.
        settings = MeasureSettings(n_probes=draws, shift=4 * float(values.norm()))
        parts += compare(label, risk, values, settings, measured)
    return Finding(tuple(parts))


def network(draws: int, radius: float, measured: Measured = measure_all) -> Finding:
    """A network trained here: by products, and from losses alone."""
    trained = digits_network(8)
    values = trained.spectrum
    settings = MeasureSettings(n_probes=draws, shift=2 * float(values.norm()), engine="double_backward")
    parts = compare("products", trained.risk, values, settings, measured)
    losses = MeasureSettings(
        n_probes=max(draws // 4, 32), shift=settings.shift, radius=radius, engine="double_backward", seed=1
    )
    parts += compare(f"losses at radius {radius:g}", trained.risk, values, losses, measured)
    return Finding(tuple(parts))


def soft_bound(b: float, values: Tensor) -> float:
    """Return a bound on lambda_max - (2/b) log E exp(b t), u on the unit sphere.

    u^T H u >= l_1 - (l_1 - l_d)(1 - u_1^2), with equality where all others are l_d. With u_1 = cos a, of density
    sin^(d-2) a, the gap is at most -(2/b) log E exp(-b (l_1 - l_d) sin^2 a / 2), here by 20,000 midpoints.
    """
    reach = b * float(values.max() - values.min()) / 2
    a = (torch.arange(20_000, dtype=torch.float64) + 0.5) * (math.pi / 20_000)
    law = (len(values) - 2) * a.sin().log()
    return -2 / b * float(torch.logsumexp(law - reach * a.sin() ** 2, 0) - torch.logsumexp(law, 0))


def soft_maximum(make: Callable[[float], cat.Catalogued] = cat.log_exp) -> Finding:
    """(2/b) log E exp(b t) below lambda_max by at most the bound: five eigenvalues, and those of the network."""
    small = torch.tensor([2.0, 1.0, 0.0, -0.5, -1.0], dtype=torch.float64)
    top = digits_network(8).spectrum
    unit = top / top.abs().max()
    parts: list[Part] = []
    lines: list[Series] = []
    for label, values, rates in (
        ("5 eigenvalues", small, (5, 20, 80, 320)),
        (f"network, d = {len(unit)}", unit, (10, 100, 1000, 4000)),
    ):
        gaps = [float(values.max()) - make(float(b)).closed_form(Spectrum.of(values)) for b in rates]
        bounds = [soft_bound(float(b), values) for b in rates]
        rows = zip(rates, gaps, bounds, strict=True)
        parts += [below(f"{label}, lambda_max - value, b {b}", bound, gap) for b, gap, bound in rows]
        lines.append(Series.of(label, rates, gaps))
        lines.append(Series.of(f"{label}, bound", rates, bounds, dashed=True))
    parts += _oracles(make)
    share = gaps[-1] / float(unit.max())
    parts.append(seen("share of the network's lambda_max missing at b = 4000/||H||", share))
    note = "The gap falls like (d - 1) log(b)/b: with d in the hundreds no b that can be sampled comes near lambda_max."
    return Finding(tuple(parts), Curve("b ||H||", "lambda_max - value", tuple(lines), log_x=True, log_y=True), note)


def _oracles(make: Callable[[float], cat.Catalogued]) -> list[Part]:
    """The bound where it is reached, and the closed form against quadrature on the sphere."""
    one_off = torch.tensor([1.0] + [0.25] * 7, dtype=torch.float64)
    reached = 1.0 - make(30.0).closed_form(Spectrum.of(one_off))
    parts = [near("one eigenvalue above seven equal ones, b 30: the bound", soft_bound(30.0, one_off), reached, 1e-12)]
    three = torch.tensor([2.0, 1.0, -1.0], dtype=torch.float64)
    for b in (1.0, 8.0):
        entry = make(b)
        exact = integrate(entry.measure, torch.diag(three), order=80)
        closed = entry.closed_form(Spectrum.of(three))
        parts.append(near(f"closed form against quadrature, d 3, b {b:g}", exact, closed, 1e-12))
    return parts


CLAIMS = (
    Claim(
        "estimators/agreement-analytic",
        "Trace, Frobenius norm, log-determinant and soft maximum by (phi, psi, mu) and from the Hessian agree with the "
        "dense truth and with each other on analytic objectives.",
        "derived here for the class of Tahmasebi et al. (2024)",
        partial(analytic, 512),
        partial(analytic, 2048),
    ),
    Claim(
        "estimators/agreement-network",
        "The same on a trained network, by products and from losses alone.",
        "derived here for the class of Tahmasebi et al. (2024)",
        partial(network, 256, 0.02),
        partial(network, 1024, 0.02),
    ),
    Claim(
        "estimators/soft-maximum",
        "(2/b) log E exp(b t) on the unit sphere is below lambda_max by at most what it would be if all other "
        "eigenvalues were the least.",
        "derived here",
        soft_maximum,
    ),
)

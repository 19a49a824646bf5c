"""phi of a sample mean: its value, its standard error, its bias, and whether they can be trusted.

Can a mean of these numbers, and the error of that mean, be trusted? Effective numbers of draws behind both.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessprobe.errors import NumericalWarning
from hessprobe.estimate import ErrorParts, Estimate, Influence
from hessprobe.estimators.budget import spread_df
from hessprobe.universal.definition import Measure

# Below so many degrees of freedom an error is a matter of a few draws. Student intervals of third and fourth cumulants
# from 1000 draws covered 90 to 94 % at 8 and more (nominal 95 %), 76 % at 4.
FEW_DF = 5.0
# Where psi has one component it may be exp(-t), whose variance need not exist; then degrees of freedom are overrated:
# 64 % at 7, 81 % at 13, 93 % at 48.
FEW_DF_ONE = 10.0


def effective_size(weights: Tensor) -> float:
    """Return (sum_i w_i)^2 / sum_i w_i^2 of weights (n,) >= 0: n for equal ones, 1 where one carries all.

    References:
        Kish (1965), "Survey Sampling".
    """
    scaled = weights.double() / weights.double().max().clamp_min(torch.finfo(torch.float64).tiny)
    square = float(scaled.square().sum())
    return float(scaled.sum()) ** 2 / square if square > 0 else float(len(weights))


# Groups that the jackknife leaves out one at a time; it is exact for quadratic phi at any number.
_GROUPS = 256
# Fewer effective draws than this make a mean of weights, and its error, a matter of luck.
_FEW = 30.0
# From fewer draws than this nominal 95 % intervals of a norm covered 82 to 95 %, often without another sign of it.
_FEW_FOR_NORM = 128
# The bias counts as visible from this share of the standard error.
_VISIBLE = 0.5

# Maps one mean per level, (levels, m), to phi and its gradient, and many rows of them to many values.
Functional = Callable[[Tensor], tuple[float, Tensor]]


@dataclass(frozen=True)
class PlugIn:
    """What a sample says about phi(mass * E psi).

    Attributes:
        value: phi(mass * mean psi).
        std_error: delta method: standard error of grad phi . psi.
        bias: jackknife estimate of E value - S, or None where phi is not defined on some part of the sample.
        jackknife_error: standard error by the jackknife, which does not linearise; None as above.
        effective: effective number of draws behind the least supported component of psi; n where psi changes sign.
        df: degrees of freedom of the error, see ``spread_df``: few where few draws carry it.
        heavy: True where the last two, or infinite influences, say that error and value are not to be trusted.
        influence: (n,) grad phi . (psi - mean), mass included; None for one draw.
    """

    value: float
    std_error: float
    bias: float | None
    jackknife_error: float | None
    effective: float
    df: float
    heavy: bool
    influence: Tensor | None = None


def plug_in(measure: Measure, samples: Tensor, mass: float = 1.0) -> PlugIn:
    """Return phi(mass * mean) of psi values ``samples`` (n, m), n >= 1, with its error and its bias."""
    n = len(samples)
    mean = samples.mean(0)
    value, slope = measure.value(mass * mean)
    if n == 1:
        return PlugIn(value, 0.0, None, None, 1.0, 0.0, False)
    influence = _influence(samples - mean, mass * slope)
    error = float((influence.square().sum() / (n * (n - 1))).sqrt())
    bias, jackknife_error = jackknife(lambda rows: measure.values(mass * rows), samples, value)
    effective, df = support(samples), spread_df(influence)
    heavy = effective < min(_FEW, n / 4) or not math.isfinite(error)
    heavy = heavy or df < min(FEW_DF_ONE if samples.shape[1] == 1 else FEW_DF, n / 8)
    return PlugIn(value, error, bias, jackknife_error, effective, df, heavy, influence)


def jackknife(values: Callable[[Tensor], Tensor], samples: Tensor, whole: float) -> tuple[float | None, float | None]:
    """Return bias and standard error of a function of the mean of ``samples`` (n, m), n >= 2, by leaving groups out.

    With groups of n_g draws, G of them, and T_g the value without group g,

        bias = sum_g (1 - n_g/n) T_g - (G - 1) T,

    which takes away a bias of order 1/n exactly, whatever the sizes; the error is that of the pseudo-values.

    Args:
        values: maps means (G, m) to numbers (G,).
        samples: (n, m).
        whole: T, the value of all.

    Returns:
        Two numbers, or None and None where some T_g is not finite.

    References:
        Quenouille (1956); Busing, Meijer, van der Leeden (1999), "Delete-m jackknife for unequal m".
    """
    n = len(samples)
    groups = min(n, _GROUPS)
    sizes = torch.full((groups,), n // groups, dtype=torch.float64)
    sizes[: n % groups] += 1
    members = torch.repeat_interleave(torch.arange(groups), sizes.long()).to(samples.device)
    sums = torch.zeros(groups, samples.shape[1], dtype=torch.float64, device=samples.device)
    mean = samples.mean(0)
    sums.index_add_(0, members, samples - mean)
    sizes = sizes.to(samples.device)
    without = values(mean - sums / (n - sizes)[:, None])
    if not bool(torch.isfinite(without).all()):
        return None, None
    bias = float(((1 - sizes / n) * (without - whole)).sum())
    ratio = n / sizes
    pseudo = ratio * whole - (ratio - 1) * without
    spread = (pseudo - (whole - bias)).square() / (ratio - 1)
    return bias, float((spread.sum() / groups).sqrt())


def finish(
    found: PlugIn,
    *,
    correct_bias: bool,
    name: str,
    draws: int,
    fixed: bool = False,
    law: float | None = None,
    **more: Any,
) -> Estimate:
    """Return the estimate of a plug-in, with what is weak about it as flags and warnings.

    Args:
        found: see ``PlugIn``.
        correct_bias: subtract the jackknife bias from the value.
        name: of the measure, for messages.
        draws: n.
        fixed: the law is concentrated at one point, so the value is exact.
        law: error from the law of t, which replaces that of the sample; see ``law``.
        **more: further attributes of the estimate; ``solver`` and ``details`` are merged in.

    Warns:
        NumericalWarning: heavy tails, or a bias as large as the error that was not corrected.
    """
    flags: tuple[str, ...] = ()
    correct = correct_bias and found.bias is not None
    if law is not None:
        more["known_square"] = None
    if law is None and found.heavy:
        flags += ("heavy-tailed-mean",)
        _warn(_heavy_words(found, name, draws))
    if more.get("known_square") is not None and found.std_error > 0 and draws < _FEW_FOR_NORM:
        flags += ("few-probes",)
    visible = found.bias is not None and abs(found.bias) > _VISIBLE * found.std_error and draws > 1
    if visible and not correct_bias and abs(float(found.bias or 0.0)) > 1e-12 * abs(found.value):
        flags += ("plug-in-bias",)
        _warn(
            f"{name}: phi of a mean of {draws} draws is off by about {found.bias:+.3g}, and the standard error is "
            f"{found.std_error:.3g}. Draw more, or correct it with correct_bias=True."
        )
    details = {
        "bias": found.bias,
        "bias_corrected": correct,
        "jackknife_std_error": found.jackknife_error,
        "effective_samples": found.effective,
        "error_from": "sample" if law is None else "law",
    }
    error, df = (found.std_error, found.df) if law is None else (law, math.inf)
    return Estimate(
        value=found.value - (float(found.bias or 0.0) if correct else 0.0),
        errors=ErrorParts(probe=0.0 if fixed else error, solver=more.pop("solver", 0.0)),
        df=math.inf if fixed else df,
        samples=0 if fixed else draws,
        kind="exact" if fixed else "estimate",
        flags=flags,
        details={**details, **more.pop("details", {})},
        influence=None if fixed or found.influence is None else Influence({"draws": found.influence.cpu()[None]}),
        **more,
    )


def _influence(deviations: Tensor, slope: Tensor) -> Tensor:
    # A root has an infinite slope at 0; where a component does not vary, that is of no consequence.
    parts = torch.where(deviations == 0, torch.zeros_like(deviations), deviations * slope)
    return parts.sum(1)


def support(samples: Tensor) -> float:
    """Return the effective number of draws behind the least supported component of psi values (n, m) >= 0."""
    sizes = [effective_size(column) for column in samples.T if bool((column >= 0).all())]
    return min(sizes, default=float(len(samples)))


def _heavy_words(found: PlugIn, name: str, draws: int) -> str:
    return (
        f"{name}: few of the {draws} draws carry the mean of psi (about {found.effective:.3g} effective ones) or its "
        f"error ({found.df:.2g} degrees of freedom), so value and error are not to be trusted. Draw more, take a "
        "narrower mu or a smaller exponent, or the estimate from the Hessian."
    )


def _warn(message: str) -> None:
    warnings.warn(message, NumericalWarning, stacklevel=4)

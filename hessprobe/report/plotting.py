"""Figures of results that are still in memory, drawn as those of their records are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hessprobe.comparison.comparing import Comparison
from hessprobe.estimate import Estimate
from hessprobe.estimators.density import Density
from hessprobe.estimators.hutchinson import ROUNDING
from hessprobe.krylov.eigenpairs import Eigenpairs
from hessprobe.landscape.result import Landscape
from hessprobe.measures.context import Result
from hessprobe.measures.distribution import curve, quantiles
from hessprobe.records import typed
from hessprobe.records.compare import CompareRecord
from hessprobe.records.record import build_record, result_row
from hessprobe.report.comparison import difference_of
from hessprobe.report.figures import Drawn, figures_of
from hessprobe.report.figures.landscape import drawn
from hessprobe.report.track import track_record
from hessprobe.tracking.tracker import SharpnessTracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_of(result: object, **options: Any) -> Figure:
    """Return a matplotlib figure of a result.

    Args:
        result: an ``Estimate``, ``Density``, ``Eigenpairs``, ``Landscape``, ``Comparison`` or ``SharpnessTracker``.
        options: of its ``plot``.

    Raises:
        TypeError: something else.
        ValueError: nothing to draw.
    """
    if isinstance(result, Landscape):
        return drawn(result, **options).figure()
    if isinstance(result, Estimate):
        return _of_estimate(result, **options)
    if isinstance(result, Eigenpairs):
        return _first(
            _figures(Result(result.estimate(0), arrays=_spectrum(result), measure="lambda-max", operator="matrix")),
            _PAIRS,
        )
    if isinstance(result, Density):
        return _of_density(result, **options)
    if isinstance(result, Comparison):
        return _first(_of_comparison(result), "a comparison must hold a finite difference")
    if isinstance(result, SharpnessTracker):
        return _first(figures_of(track_record(result)), "a track must hold a point. Call step after a training step")
    raise TypeError(f"result must be one that can be drawn; got {type(result).__name__}. See hessprobe plot.")


_PAIRS = "pairs must be two or more to be drawn. Ask eigsh for k >= 2"
_NUMBER = (
    "an estimate must hold layers, several eigenvalues or a density to be drawn, and this one is a single number. "
    "Measure with per_layer=True, with k >= 2, or measure 'density'"
)


def _first(figures: list[Drawn], missing: str) -> Figure:
    if not figures:
        raise ValueError(f"{missing}.")
    return figures[0].figure()


def _figures(result: Result, confidence: float = 0.95) -> list[Drawn]:
    return figures_of(build_record("measure", [result_row(result, confidence)], arguments={}, seed=None))


def _of_estimate(estimate: Estimate, which: str | None = None) -> Figure:
    told = estimate.details
    result = Result(
        estimate,
        measure=told.get("measure", ""),
        operator=told.get("operator", "matrix"),
        unit=told.get("unit", ""),
        layers=estimate.layers or None,
        arrays=told.get("arrays", {}),
    )
    figures = {figure.name.partition("-")[0]: figure for figure in _figures(result)}
    if which is not None and which not in figures:
        known = ", ".join(figures) or "none"
        raise ValueError(f"which must be a figure that this estimate has ({known}); got {which!r}. {_NUMBER}.")
    return _first([figures[which]] if which is not None else list(figures.values()), _NUMBER)


def _spectrum(pairs: Eigenpairs) -> dict[str, torch.Tensor]:
    errors = torch.maximum(pairs.errors, ROUNDING * torch.finfo(pairs.vectors.dtype).eps * pairs.values.abs())
    return {"eigenvalues": pairs.values, "residuals": pairs.residuals, "eigenvalue_errors": errors}


def _of_density(density: Density, confidence: float = 0.95) -> Figure:
    arrays = curve(density, confidence) | quantiles(density, confidence)
    result = Result(Estimate(0.0), arrays=arrays, measure="density", operator="matrix")
    return _figures(result, confidence)[0].figure()


def _of_comparison(found: Comparison) -> list[Drawn]:
    rows = tuple(difference_of(line, found.confidence) for line in found.lines)
    record = CompareRecord(results=(), baseline=found.baseline, differences=rows)
    return figures_of(typed.build("compare", record, arguments={}, seed=None))

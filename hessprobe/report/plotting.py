"""Figures from Python: of records, and of results that are still in memory, drawn as those of their records are."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hessprobe import looks
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
from hessprobe.records.record import build_record, checked_record, read_record, result_row
from hessprobe.report.comparison import difference_of
from hessprobe.report.figures import Drawn, classes, figures_across, figures_of
from hessprobe.report.figures.landscape import drawn
from hessprobe.report.track import track_record
from hessprobe.tracking.tracker import SharpnessTracker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Panels(np.ndarray[Any, np.dtype[Any]]):
    """The axes of a figure in an array (n,), as ``pyplot.subplots`` gives them; notebooks show the figure."""

    @property
    def figure(self) -> Figure:
        """The figure that they stand in."""
        found: Figure = self.flat[0].figure
        return found

    def _repr_png_(self) -> bytes:
        return _png(self.figure)


def plot(
    result: object, which: str | None = None, *, width: float | None = None, style: str = looks.STYLES[0]
) -> Axes | Panels:
    """Draw a record or a result as ``hessprobe plot`` does, and return the axes, whose ``figure`` can be saved.

    The figure belongs to nobody's state: ``matplotlib.pyplot`` does not know it, and a notebook shows it all the same.

    Args:
        result: a record, its path, several of them to be put side by side, or a result that has a ``plot``; or what was
            measured of each class of ``GaussNewton.by_class``, ``{"trace": {label: estimate}, "lambda-max": {label:
            estimate}}``, and ``"whole"``, lambda_max of the matrix itself, where it is known.
        which: name of the figure, or how it begins (``"density"``, ``"layers"``, ``"gap"``); the first by default.
        width: in inches, 2 to 20: 3.25 for one column of a journal, 6.75 for two; None for the figure's own.
        style: ``"paper"``, ``"screen"`` with larger letters, or ``"dark"``.

    Returns:
        The axes of matplotlib, or an array (n,) of them where the figure has several.

    Raises:
        TypeError: something that cannot be drawn.
        ValueError: nothing to draw, no figure of that name, a width or style that no figure has.
        RecordError: no record, or one that lacks what a figure needs.

    Example:
        >>> import torch, hessprobe as hp
        >>> density = hp.spectral_density(torch.diag(torch.arange(1.0, 6.0)), n_probes=4, steps=5, seed=0)
        >>> axes = hp.plot(density, width=3.25)
        >>> [panel.get_ylabel() for panel in axes]
        ['density', 'share below']
        >>> float(axes.figure.get_figwidth())
        3.25
    """
    found = _all_of(result)
    named = [each for each in found if which is None or each.name == which or each.name.startswith(f"{which}-")]
    if which is not None and not named:
        known = ", ".join(each.name for each in found) or "none"
        raise ValueError(f"which must be a figure of what is drawn ({known}); got {which!r}. Choose one of these.")
    if not named:
        raise ValueError(
            "result must hold something to draw, a density, several eigenvalues, layers, a sharpness, a landscape or a "
            "comparison; got none of these. Measure more."
        )
    return _axes(named[0].figure(width, style))


def axes_of(result: object, **options: Any) -> Axes | Panels:
    """Return the axes of a figure of a result, for its ``plot``.

    Args:
        result: an ``Estimate``, ``Density``, ``Eigenpairs``, ``Landscape``, ``Comparison`` or ``SharpnessTracker``.
        options: of its ``plot``.

    Raises:
        TypeError: something else.
        ValueError: nothing to draw.
    """
    return _axes(_drawn_of(result, **options).figure())


def _axes(figure: Figure) -> Axes | Panels:
    panels = figure.axes
    if len(panels) > 1:
        array = np.empty(len(panels), dtype=object)
        array[:] = panels
        return array.view(Panels)
    # Where pyplot does not know a figure, notebooks ask what they are given for a picture.
    panels[0].__dict__["_repr_png_"] = partial(_png, figure)
    return panels[0]


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def _all_of(result: object) -> list[Drawn]:
    if isinstance(result, (str, Path)):
        return figures_of(read_record(result), Path(result).parent)
    if isinstance(result, Mapping):
        if _CLASSES & set(result) and "schema" not in result:
            return [_of_classes(result)]
        return figures_of(checked_record(result, "result"))
    if isinstance(result, (list, tuple)):
        return figures_across([_record(each, f"result[{i}]") for i, each in enumerate(result)])
    return [_drawn_of(result)]


def _record(result: object, where: str) -> dict[str, Any]:
    return read_record(result) if isinstance(result, (str, Path)) else checked_record(result, where)


def _drawn_of(result: object, **options: Any) -> Drawn:
    if isinstance(result, Landscape):
        return drawn(result, **options)
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


_CLASSES = {"trace", "lambda-max", "whole"}
_PAIRS = "pairs must be two or more to be drawn. Ask eigsh for k >= 2"
_NUMBER = (
    "an estimate must hold layers, several eigenvalues or a density to be drawn, and this one is a single number. "
    "Measure with per_layer=True, with k >= 2, or measure 'density'"
)


def _first(figures: list[Drawn], missing: str) -> Drawn:
    if not figures:
        raise ValueError(f"{missing}.")
    return figures[0]


def _figures(result: Result, confidence: float = 0.95) -> list[Drawn]:
    return figures_of(build_record("measure", [result_row(result, confidence)], arguments={}, seed=None))


def _of_estimate(estimate: Estimate, which: str | None = None) -> Drawn:
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


def _of_classes(found: Mapping[str, Any], confidence: float = 0.95) -> Drawn:
    """Return the figure of ``{"trace": {label: estimate}, "lambda-max": {label: estimate}, "whole": lambda_max}``."""
    traces, tops = found.get("trace"), found.get("lambda-max")
    if not isinstance(traces, Mapping) or not isinstance(tops, Mapping) or not set(found) <= _CLASSES:
        raise TypeError(
            "result must be a record with its 'command', or estimates by class under 'trace' and 'lambda-max', and "
            f"that of the whole under 'whole'; got the keys {', '.join(map(str, found)) or 'none'}. "
            "See hp.GaussNewton(risk).by_class()."
        )
    if not traces or traces.keys() != tops.keys():
        raise ValueError(
            f"'trace' and 'lambda-max' must hold the same classes, one or more; got {len(traces)} and {len(tops)}. "
            "Measure both of every part of by_class()."
        )
    if not sum(float(each) for each in traces.values()) > 0:
        raise ValueError(
            "the traces must have a sum above 0 for shares of it; got none. Measure a matrix that is not 0."
        )
    shares, largest = ({label: _reach(each, confidence) for label, each in part.items()} for part in (traces, tops))
    whole = None if found.get("whole") is None else _reach(found["whole"], confidence)
    return classes.classes(shares, largest, whole, confidence)


def _reach(estimate: Estimate, confidence: float) -> tuple[float, float, float]:
    low, high = estimate.interval(confidence)
    return estimate.value, max(estimate.value - low, 0.0), max(high - estimate.value, 0.0)


def _spectrum(pairs: Eigenpairs) -> dict[str, torch.Tensor]:
    errors = torch.maximum(pairs.errors, ROUNDING * torch.finfo(pairs.vectors.dtype).eps * pairs.values.abs())
    return {"eigenvalues": pairs.values, "residuals": pairs.residuals, "eigenvalue_errors": errors}


def _of_density(density: Density, confidence: float = 0.95) -> Drawn:
    arrays = curve(density, confidence) | quantiles(density, confidence)
    result = Result(Estimate(0.0), arrays=arrays, measure="density", operator="matrix")
    return _figures(result, confidence)[0]


def _of_comparison(found: Comparison) -> list[Drawn]:
    rows = tuple(difference_of(line, found.confidence) for line in found.lines)
    record = CompareRecord(results=(), baseline=found.baseline, differences=rows)
    return figures_of(typed.build("compare", record, arguments={}, seed=None))

"""The tables of ``hessprobe sharpness``, from its record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hessprobe.cli import render
from hessprobe.cli.render import engines
from hessprobe.cli.wording import flag_sentence

if TYPE_CHECKING:
    from rich.console import Console

    from hessprobe.records.sharpness import Diagnostics, Predicted, Reading, SharpnessRecord
    from hessprobe.records.typed import Number

# Points of the arc that are printed; the record has all.
_WHOLE = 1e-6
_SHOWN = (0.0, 0.5, 1.0, 1.5, 2.0)


def show(found: SharpnessRecord, console: Console) -> None:
    """Print what was found.

    Args:
        found: the record.
        console: where to.
    """
    if found.results:
        _table(found.results, console)
    for line in _remarks(found.results, render.plus_minus_for(console)):
        render.print_line(console, line, style="dim")
    for engine in engines([{"engine": reading.measured.engine} for reading in found.results]):
        render.print_line(console, f"products by the {engine} engine", style="dim")
    if found.diagnostics is not None:
        _show_diagnostics(found.diagnostics, console)


def _table(readings: Sequence[Reading], console: Console) -> None:
    sign = render.plus_minus_for(console)
    header = ["sharpness", "rho", f"value {sign} error", "second order", "ratio", "losses", "gradients", "products"]
    header += ["seconds"]
    cells = [_cells(reading, sign) for reading in readings]
    keep = [(0, 1, 2, 3, 4, 5, 6, 7), (0, 1, 2, 3, 4), (0, 1, 2, 3)]
    layouts = [(header, cells)]
    layouts += [([header[i] for i in kept], [[row[i] for i in kept] for row in cells]) for kept in keep]
    render.print_table(layouts, console)


def _cells(reading: Reading, sign: str) -> list[str]:
    value, _, _, seconds = render.result_cells(reading.measured.number, sign)
    ball, cost = reading.ball, reading.cost
    model = "" if ball is None or ball.predicted is None else _model(ball.predicted, sign)
    ratio = "" if ball is None or ball.ratio is None else f"{ball.ratio:.4g}"
    rho = "" if ball is None or ball.rho is None else f"{ball.rho:g}"
    counts = [_count(number or 0.0) for number in (cost.losses, cost.gradients, cost.products)]
    return [reading.title, rho, value, model, ratio, *counts, seconds]


def _model(predicted: Predicted, sign: str) -> str:
    value, error = predicted.value, predicted.std_error
    # An exact trace has the rounding of its sum as error, which says nothing.
    told = error if value is None or error is None or error > _WHOLE * abs(value) else None
    return render.with_error(value, told, sign)


def _count(number: float) -> str:
    whole = abs(number - round(number)) < _WHOLE
    return f"{number:.0f}" if number >= 100 or whole else f"{number:.1f}"


def _remarks(readings: Sequence[Reading], sign: str) -> list[str]:
    said = []
    for reading in readings:
        one = reading.measured
        lines = [*(flag_sentence(flag) for flag in one.number.flags), *one.notes]
        said += [f"{one.measure}: {line}" for line in lines]
        for name, layer in (one.layers or {}).items():
            said.append(f"  {name}: {render.with_error(layer.value, layer.std_error, sign)}")
    if any(reading.ball is not None and reading.ball.predicted is not None for reading in readings):
        said.append("ratio: value over second order; near 1 as long as the quadratic model holds")
    return list(dict.fromkeys(said))


def _show_diagnostics(found: Diagnostics, console: Console) -> None:
    one, arc, sign = found.alignment, found.arc, render.plus_minus_for(console)
    render.print_line(console, "")
    render.print_line(
        console, f"SAM at rho {_known(one.rho):g}: its gradient and the plain one against the top eigenvectors"
    )
    header = ["eigenvalue", "|cos| gradient", "|cos| SAM gradient"]
    columns = zip(one.eigenvalues, one.residuals, one.gradient, one.sam_gradient, strict=True)
    cells = [
        [render.with_error(value, error, sign), f"{_known(a):.4f}", f"{_known(b):.4f}"]
        for value, error, a, b in columns
    ]
    render.print_table([(header, cells)], console)
    render.print_line(
        console,
        f"share of the squared norm in their span: {_known(one.gradient_share):.4f} of the gradient's "
        f"({_known(one.gradient_norm):.4g}), {_known(one.sam_gradient_share):.4f} of SAM's "
        f"({_known(one.sam_gradient_norm):.4g}); cos between the two {_known(one.cosine):.6f}",
    )
    render.print_line(console, "")
    best, degrees = _known(arc.best), math.degrees(_known(arc.angle))
    render.print_line(
        console,
        f"loss along the arc at radius {_known(arc.rho_max):g}: alpha* = {best:g}, angle {degrees:.3g} degrees",
    )
    alphas = [_known(alpha) for alpha in arc.alphas]
    wanted = sorted({*_SHOWN, best})
    places = [i for i, alpha in enumerate(alphas) if any(abs(alpha - each) < 1e-9 for each in wanted)]
    cells = [[f"{alphas[i]:g}", f"{_known(arc.rises[i]):.6g}", f"{_known(arc.model[i]):.6g}"] for i in places]
    render.print_table([(["alpha", "rise", "second order"], cells)], console)
    if found.splits:
        render.print_line(console, "")
        header = ["curvature", "Hessian", "Gauss-Newton", "functional part"]
        parts = [[each.name, *(_text(x, sign) for x in (each.whole, each.gauss_newton, each.functional))]
                 for each in found.splits]  # fmt: skip
        render.print_table([(header, parts)], console)
    for note in found.notes:
        render.print_line(console, note, style="dim")
    counts = [_count(_known(number)) for number in (found.cost.losses, found.cost.gradients, found.cost.products)]
    spent = "diagnostics: {} losses, {} gradients, {} products".format(*counts)
    render.print_line(console, spent, style="dim")


def _known(number: float | None) -> float:
    return math.nan if number is None else number


def _text(number: Number, sign: str) -> str:
    return render.with_error(number.value, number.error or None, sign)

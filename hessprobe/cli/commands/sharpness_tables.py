"""What ``hessprobe sharpness`` prints and records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hessprobe import report
from hessprobe.cli import render
from hessprobe.cli.remarks import engines
from hessprobe.cli.wording import flag_sentence
from hessprobe.estimate import Estimate
from hessprobe.report.record import estimate_row
from hessprobe.sharpness.names import MEANINGS

if TYPE_CHECKING:
    from rich.console import Console

    from hessprobe.sharpness import Diagnostics
    from hessprobe.sharpness.survey import Reading

_UNITS = {"fisher-rao": "loss", "relative-flatness": "loss"}
# Points of the arc that are printed; the record has all.
_WHOLE = 1e-6
_SHOWN = (0.0, 0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class _Row:
    """A reading as ``report.result_row`` takes it."""

    measure: str
    estimate: Estimate
    unit: str
    layers: Mapping[str, Estimate] | None
    notes: Sequence[str]
    engine: str
    operator: str = "hessian"
    arrays: Mapping[str, Tensor] = field(default_factory=dict)


def row_of(reading: Reading, confidence: float) -> dict[str, Any]:
    """Return one number as JSON-friendly values."""
    default = "curvature" if reading.sharpness is None else "loss"
    unit = _UNITS.get(reading.name, default)
    row = _Row(reading.name, reading.estimate, unit, reading.layers, reading.notes, reading.engine)
    entry = report.result_row(row, confidence)
    entry["meaning"] = MEANINGS[reading.name]
    entry["cost"] = asdict(reading.cost)
    one = reading.sharpness
    if one is not None:
        entry |= {"rho": one.rho, "norm": one.norm, "adaptive": one.adaptive, "m": one.m, "starts": one.starts}
        entry["predicted"] = None if one.predicted is None else asdict(one.predicted)
        entry["ratio"] = one.model_ratio
    return entry


def show(title: str, record: Mapping[str, Any], diagnostics: Diagnostics | None, console: Console) -> None:
    """Print what was found.

    Args:
        title: of the run.
        record: of it.
        diagnostics: of SAM, or None.
        console: where to.
    """
    render.print_line(console, title)
    rows = record["results"]
    if rows:
        _table(rows, console)
    for line in _remarks(rows, render.plus_minus_for(console)):
        render.print_line(console, line, style="dim")
    for engine in engines(rows):
        render.print_line(console, f"products by the {engine} engine", style="dim")
    if diagnostics is not None:
        _show_diagnostics(diagnostics, console)


def _table(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    sign = render.plus_minus_for(console)
    header = ["sharpness", "rho", f"value {sign} error", "second order", "ratio", "losses", "gradients", "products"]
    header += ["seconds"]
    cells = [_cells(row, sign) for row in rows]
    keep = [(0, 1, 2, 3, 4, 5, 6, 7), (0, 1, 2, 3, 4), (0, 1, 2, 3)]
    layouts = [(header, cells)]
    layouts += [([header[i] for i in kept], [[row[i] for i in kept] for row in cells]) for kept in keep]
    render.print_table(layouts, console)


def _cells(row: Mapping[str, Any], sign: str) -> list[str]:
    value, _, _, seconds = render.result_cells(row, sign)
    name = row["measure"] if row.get("m") is None else f"{row['measure']}, m = {row['m']}"
    predicted = row.get("predicted")
    model = "" if predicted is None else _model(predicted, sign)
    ratio = "" if row.get("ratio") is None else f"{row['ratio']:.4g}"
    rho = "" if row.get("rho") is None else f"{row['rho']:g}"
    counts = [_count(row["cost"][name]) for name in ("losses", "gradients", "products")]
    return [name, rho, value, model, ratio, *counts, seconds]


def _model(predicted: Mapping[str, float], sign: str) -> str:
    # An exact trace has the rounding of its sum as error, which says nothing.
    error = predicted["std_error"] if predicted["std_error"] > _WHOLE * abs(predicted["value"]) else None
    return render.with_error(predicted["value"], error, sign)


def _count(number: float) -> str:
    whole = abs(number - round(number)) < _WHOLE
    return f"{number:.0f}" if number >= 100 or whole else f"{number:.1f}"


def _remarks(rows: Sequence[Mapping[str, Any]], sign: str) -> list[str]:
    said = []
    for row in rows:
        lines = [*(flag_sentence(flag) for flag in row["flags"]), *row["notes"]]
        said += [f"{row['measure']}: {line}" for line in lines]
        for name, layer in (row.get("layers") or {}).items():
            said.append(f"  {name}: {render.with_error(layer['value'], layer['std_error'], sign)}")
    if any(row.get("predicted") is not None for row in rows):
        said.append("ratio: value over second order; near 1 as long as the quadratic model holds")
    return list(dict.fromkeys(said))


def _show_diagnostics(found: Diagnostics, console: Console) -> None:
    one, arc, sign = found.alignment, found.arc, render.plus_minus_for(console)
    render.print_line(console, "")
    render.print_line(console, f"SAM at rho {one.rho:g}: its gradient and the plain one against the top eigenvectors")
    header = ["eigenvalue", "|cos| gradient", "|cos| SAM gradient"]
    columns = zip(one.eigenvalues.tolist(), one.residuals.tolist(), one.gradient.tolist(), one.sam_gradient.tolist(),
                  strict=True)  # fmt: skip
    cells = [[render.with_error(value, error, sign), f"{a:.4f}", f"{b:.4f}"] for value, error, a, b in columns]
    render.print_table([(header, cells)], console)
    render.print_line(
        console,
        f"share of the squared norm in their span: {one.gradient_share:.4f} of the gradient's "
        f"({one.gradient_norm:.4g}), {one.sam_gradient_share:.4f} of SAM's ({one.sam_gradient_norm:.4g}); "
        f"cos between the two {one.cosine:.6f}",
    )
    render.print_line(console, "")
    render.print_line(
        console,
        f"loss along the arc at radius {arc.rho_max:g}: alpha* = {arc.best:g}, "
        f"angle {math.degrees(arc.angle):.3g} degrees",
    )
    wanted = sorted({*_SHOWN, arc.best})
    places = [i for i, alpha in enumerate(arc.alphas.tolist()) if any(abs(alpha - each) < 1e-9 for each in wanted)]
    cells = [[f"{arc.alphas[i]:g}", f"{arc.rises[i]:.6g}", f"{arc.model[i]:.6g}"] for i in places]
    render.print_table([(["alpha", "rise", "second order"], cells)], console)
    if found.splits:
        render.print_line(console, "")
        header = ["curvature", "Hessian", "Gauss-Newton", "functional part"]
        parts = [[each.name, *(_text(x, sign) for x in (each.whole, each.gauss_newton, each.functional))]
                 for each in found.splits]  # fmt: skip
        render.print_table([(header, parts)], console)
    for note in found.notes:
        render.print_line(console, note, style="dim")
    cost = found.cost
    render.print_line(
        console,
        f"diagnostics: {_count(cost.losses)} losses, {_count(cost.gradients)} gradients, "
        f"{_count(cost.products)} products",
        style="dim",
    )


def _text(estimate: Estimate, sign: str) -> str:
    return render.with_error(estimate.value, max(estimate.std_error, estimate.errors.solver) or None, sign)


def diagnostics_entry(found: Diagnostics, confidence: float) -> dict[str, Any]:
    """Return the diagnostics of SAM as JSON-friendly values."""

    def plain(values: Any) -> dict[str, Any]:
        return {key: one.tolist() if isinstance(one, Tensor) else one for key, one in vars(values).items()}

    splits = [
        {"name": each.name}
        | {part: estimate_row(getattr(each, part), confidence) for part in ("whole", "gauss_newton", "functional")}
        for each in found.splits
    ]
    return {
        "alignment": plain(found.alignment),
        "arc": plain(found.arc),
        "splits": splits,
        "notes": list(found.notes),
        "cost": asdict(found.cost),
    }

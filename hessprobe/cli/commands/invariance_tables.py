"""What ``hessprobe invariance`` prints and records of its lines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hessprobe.cli import render
from hessprobe.cli.wording import flag_sentence, in_options
from hessprobe.measures.table import entry_of
from hessprobe.records.record import estimate_row

if TYPE_CHECKING:
    from rich.console import Console

    from hessprobe.invariance import Found, Line
    from hessprobe.invariance.verdict import Compared


def site_entry(site: Any) -> dict[str, Any]:
    """Return a place where a transform acts as JSON-friendly values."""
    tensors = list(dict.fromkeys(touch.name for touch in site.touches))
    return {"transform": site.kind, "where": site.where, "units": site.size, "tensors": tensors}


def row_of(line: Line, confidence: float) -> dict[str, Any]:
    """Return a line of the table as JSON-friendly values, in which nan and inf may still stand."""
    applied, compared, theory = line.applied, line.compared, line.theory
    return {
        "transform": applied.kind,
        "strength": applied.strength,
        "sites": len(applied.sites),
        "measure": line.measure,
        "before": None if line.before is None else estimate_row(line.before, confidence),
        "after": None if line.after is None else estimate_row(line.after, confidence),
        "difference": None if compared is None else compared.difference,
        "ratio": None if compared is None else compared.ratio,
        "ratio_error": None if compared is None else compared.ratio_error,
        "difference_error": None if compared is None else {"std_error": compared.error, "bound": compared.bound},
        "common_probes": None if compared is None else compared.samples,
        "z": None if compared is None else compared.z,
        "verdict": line.verdict,
        "reason": line.reason,
        "expected_invariant": None if theory is None else theory.invariant,
        "predicted_difference": None if theory is None else theory.predicted,
        "contradicts_theory": line.surprising,
        "outputs_distance": applied.distance,
        "outputs_distance_with_old_eps": applied.with_old_eps,
        "outputs_tolerance": applied.tolerance,
        "log_det_of_factors": applied.log_volume,
    }


def show(lines: list[Line], left_out: list[str], console: Console) -> None:
    """Print the table, and what belongs under it.

    Args:
        lines: finished ones, at least one.
        left_out: what was not measured and why, one sentence each.
        console: where to.
    """
    _print_table(lines, console)
    for text in _applied_lines(lines):
        render.print_line(console, text)
    for text in (*_reasons(lines), *_weaknesses(lines), *left_out):
        render.print_line(console, text, style="dim")


def _print_table(lines: list[Line], console: Console) -> None:
    sign = render.plus_minus_for(console)
    header = [
        "transform",
        "strength",
        "measure",
        f"before {sign} error",
        f"after {sign} error",
        f"ratio {sign} error",
        "z",
        "verdict",
    ]
    full = [_cells(line, sign) for line in lines]
    columns = (range(8), (0, 1, 2, 3, 4, 5, 7), (0, 1, 2, 5, 7), (0, 1, 2, 7))
    layouts = [([header[i] for i in kept], [[row[i] for i in kept] for row in full]) for kept in columns]
    render.print_table(layouts, console)


def _cells(line: Line, sign: str) -> list[str]:
    strength = "" if line.applied.strength is None else f"{line.applied.strength:g}"
    name = [line.applied.kind, strength, line.measure]
    if line.before is None or line.after is None or line.compared is None:
        return [*name, "", "", "", "", line.verdict]
    both = (line.before, line.after)
    numbers = [render.with_error(one.value, max(one.std_error, one.errors.solver), sign) for one in both]
    compared = line.compared
    # A ratio of determinants has hundreds of digits; the difference of their logarithms says as much.
    logarithmic = line.before.value and entry_of(line.measure).logarithmic
    ratio = f"e^{compared.difference:.4g}" if logarithmic else _ratio(compared, sign)
    return [*name, *numbers, ratio, f"{compared.z:.3g}", line.verdict]


def _ratio(compared: Compared, sign: str) -> str:
    # Errors far below what is printed would be noise on the page.
    if compared.ratio_error < 1e-5 * abs(compared.ratio) or not math.isfinite(compared.ratio_error):
        return f"{compared.ratio:.5g}"
    return render.with_error(compared.ratio, compared.ratio_error, sign)


def _applied_lines(lines: list[Line]) -> Iterator[str]:
    for applied in dict.fromkeys(line.applied for line in lines):
        strength = "" if applied.strength is None else f" {applied.strength:g}"
        outcome = "unchanged" if applied.preserved else "CHANGED, so that nothing was measured"
        count = len(applied.sites)
        eps = "" if applied.with_old_eps is None else f"; {applied.with_old_eps:.1e} if eps did not follow"
        volume = 0.0 if abs(applied.log_volume) < 1e-9 * len(applied.factors) else applied.log_volume
        yield (
            f"{applied.kind}{strength} at {count} place{'s' if count > 1 else ''}: outputs {outcome} (largest relative "
            f"difference {applied.distance:.1e}, allowed {applied.tolerance:.0e}{eps}), log det D = {volume:.4g}"
        )


def _reasons(lines: list[Line]) -> Iterator[str]:
    """Yield each reason once, with the transforms and measures it is for."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        if line.reason:
            found.setdefault(line.reason, []).append(line)
    for reason, those in found.items():
        names = ", ".join(dict.fromkeys(line.measure for line in those))
        kinds = ", ".join(dict.fromkeys(_titled(line) for line in those))
        yield f"{names} under {kinds}: {in_options(reason)}"
    for line in lines:
        if line.surprising:
            yield f"{line.measure} under {_titled(line)} contradicts the theory: see predicted_difference in --json"


def _weaknesses(lines: list[Line]) -> Iterator[str]:
    """Yield each flag once as a sentence, with the measures that have it before or after a transform."""
    found: dict[str, list[str]] = {}
    for line in lines:
        for one in (line.before, line.after):
            for flag in () if one is None else one.flags:
                found.setdefault(flag, []).append(line.measure)
    for flag, names in found.items():
        yield f"{', '.join(dict.fromkeys(names))}: {flag_sentence(flag)}"


def _titled(line: Line) -> str:
    return line.applied.kind if line.applied.strength is None else f"{line.applied.kind} {line.applied.strength:g}"


def skipped(found: Found | None, transforms: list[str] | None) -> Iterator[str]:
    """Yield where transforms could not act and why; ``transforms`` are those asked for, None for all."""
    if found is None:
        return
    grouped: dict[tuple[str, str], list[str]] = {}
    for skip in found.skips:
        if transforms is None or skip.kind in transforms:
            grouped.setdefault((skip.where, skip.reason), []).append(skip.kind)
    for (where, reason), kinds in grouped.items():
        yield f"skipped at {where}: {reason} ({', '.join(kinds)})"

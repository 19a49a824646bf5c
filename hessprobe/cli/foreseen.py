"""What a measurement will take, for a reader and as JSON: ``hessprobe measure --dry-run``."""

from __future__ import annotations

import json as encoding
import sys
from typing import TYPE_CHECKING

from hessprobe.cli import render

if TYPE_CHECKING:
    from hessprobe.benchmarks.rehearsal import Forecast

SCHEMA = "hessprobe-forecast/1"


def deliver(forecast: Forecast, title: str, json: str | None) -> None:
    """Print a table of the times, and the memory below it; the JSON alone where it goes to stdout.

    Args:
        forecast: what was foreseen.
        title: of what is measured.
        json: ``--json``: a file, or ``-``.
    """
    text = encoding.dumps({"schema": SCHEMA, "title": title, **forecast.row()}, indent=2) + "\n"
    if json == "-":
        sys.stdout.write(text)
        return
    if json is not None:
        from hessprobe import files

        files.write_atomically(json, lambda stream: stream.write(text.encode()))
    console = render.stdout_console()
    render.print_line(console, f"{title}, not measured: foreseen")
    rows = [
        [each.measure, f"{each.products:.0f}" if each.fixed else f"about {each.products:.0f}", _time(each)]
        for each in forecast.measures
    ]
    if len(rows) > 1:
        rows.append(["all", "", _range(forecast.seconds, forecast.low, forecast.high)])
    render.print_table([(["measure", "products", "seconds"], rows)], console)
    for line in sentences(forecast):
        render.print_line(console, line, style="dim")


def _time(each: object) -> str:
    return _range(*(getattr(each, name) for name in ("seconds", "low", "high")))


def _range(seconds: float, low: float, high: float) -> str:
    return f"{seconds:.3g}" if low == high else f"{seconds:.3g} ({low:.3g} to {high:.3g})"


def sentences(forecast: Forecast) -> list[str]:
    """Return what stands below the table."""
    gradient = forecast.gradient_seconds
    each = "" if forecast.ranks == 1 else f" of each of {forecast.ranks} ranks"
    said = [
        f"as measured on {forecast.rehearsed:.1%} of the data, 1 of {forecast.batches} batches, in "
        f"{forecast.rehearsal_seconds:.2g} s"
        + ("" if gradient is None else f"; a gradient over all of them takes {gradient:.2g} s")
    ]
    if forecast.batches == 1:
        said.append("the data are one batch: this was the measurement itself; a smaller --batch-size foresees it")
    if any(not each.fixed for each in forecast.measures):
        said.append(
            "a range: the number of products depends on the spectrum of all data (0.6 to 2.2 times as many assumed, "
            "0.1 to 1.2 times for a trace to a tolerance; --probes fixes that one)"
        )
    if forecast.peak is not None:
        said.append(
            f"memory{each} beside network, data and libraries: {forecast.peak / 1e6:.0f} MB, of which "
            f"{forecast.kept / 1e6:.0f} MB are kept for products; {forecast.advice}"
        )
    else:
        said.append(forecast.advice)
    return said

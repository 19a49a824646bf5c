"""What stands under a table: what a number is, what is weak about it, and what else was found with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hessprobe.cli import render
from hessprobe.cli.wording import flag_sentence, in_options
from hessprobe.measures.table import entry_of
from hessprobe.records.number import Number

_NO_ENGINE = "auto"


def remarks(row: Mapping[str, Any]) -> list[str]:
    """Return the sentences that belong to a result, without its name.

    Args:
        row: of a record.
    """
    said = []
    entry = entry_of(row["measure"])
    if entry.number:
        said.append(f"the number is {entry.number}; --json has the rest")
    said += [_missed(row) if flag == "tolerance-missed" else flag_sentence(flag) for flag in row["flags"]]
    said += [in_options(note) for note in row["notes"]]
    layers = row.get("layers") or {}
    exact = [name for name, layer in layers.items() if Number.of(layer).is_exact]
    if exact:
        which = "the values of all layers" if len(exact) == len(layers) else f"the values of {', '.join(exact)}"
        said.append(f"{which} are exact up to rounding")
    return list(dict.fromkeys(said))


def eigenvalue_lines(rows: Sequence[Mapping[str, Any]], plus_minus: str) -> list[str]:
    """Return one line an eigenvalue, each with its error, where more than one at an end was found; else none.

    Args:
        rows: of a record; the first that holds eigenvalues counts, as all share them.
        plus_minus: the sign between value and error.
    """
    for row in rows:
        arrays = row.get("arrays") or {}
        values = _entries(arrays.get("eigenvalues"))
        errors = _entries(arrays.get("eigenvalue_errors")) or _entries(arrays.get("residuals"))
        if len(values) > 1:
            errors = errors or [None] * len(values)
            texts = [render.with_error(value, error, plus_minus) for value, error in zip(values, errors, strict=True)]
            title = f"{len(values)} eigenvalues, largest first, each with its error:"
            return [title, *(f"  {text}" for text in texts)]
    return []


def costs(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield one line with the time of every number in gradients of the loss over the same data, where that is known."""
    counts = [(row["measure"], (row.get("cost") or {}).get("gradients")) for row in rows]
    known = [(name, count) for name, count in counts if count is not None]
    if known:
        said = ", ".join(f"{name} {count:.0f}" if count >= 10 else f"{name} {count:.2g}" for name, count in known)
        yield f"cost in gradients of the loss: {said}"


def engines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the engines that made products, in the words of ``--engine``."""
    for engine in dict.fromkeys(row["engine"].split(" (")[0] for row in rows):
        # A choice that was never made: what was asked for was known without a product.
        if engine and engine != _NO_ENGINE:
            yield engine.replace("_", "-")


def _missed(row: Mapping[str, Any]) -> str:
    """Return what ``tolerance-missed`` means for a result, with what helps against the larger part of its error."""
    errors = row.get("errors") or {}
    if (errors.get("solver") or 0.0) <= (errors.get("probe") or 0.0):
        return flag_sentence("tolerance-missed")
    wider = "--dtype float64 in place of float32"
    helps = f"a larger --shift or {wider}" if "shift" in entry_of(row["measure"]).options else wider
    return f"the interval is wider than --rtol asks for; more --probes do not help, {helps} may, or a larger --rtol"


def _entries(array: Any) -> list[float | None]:
    values = array.get("values") if isinstance(array, Mapping) else array
    return list(values) if isinstance(values, Sequence) else []

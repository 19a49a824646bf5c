"""How it was measured: every record with its data, seed, versions, and the command that makes it again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hessprobe.report.document import Command, Commands, Section, Text, section
from hessprobe.report.schema import objects, part
from hessprobe.report.sections.page import Page, ended
from hessprobe.report.sources import FINISHED, Source
from hessprobe.report.typography import moment

_LEAD = (
    "One entry a record. The same command on the same data gives the same numbers, up to rounding: random probes come "
    "from the seed. Type it in the folder in which the paths lie."
)
_DATA = ("name", "split", "examples", "batches", "weighting", "weight", "sha256", "fingerprint")
_MACHINE = ("hessprobe", "torch", "numpy", "scipy", "python", "device", "device_name", "threads", "platform")


def build(page: Page) -> Section | None:
    """Return the section."""
    commands = tuple(_command(page, source) for source in page.gathered.sources)
    return section("records", "How it was measured", [Commands(commands) if commands else None], _LEAD)


def problems(page: Page) -> Section | None:
    """Return what cannot be shown: unfinished work, damaged records, figures that could not be drawn."""
    said = [ended(source) for source in page.gathered.sources if source.state != FINISHED]
    said += [f"Left out: {sentence}" for _, sentence in page.gathered.broken]
    said += [f"A figure of {label} could not be drawn: {sentence}" for label, sentence in page.undrawn.items()]
    block = Text(tuple(said), listed=True, alert=True) if said else None
    return section("problems", "Not complete", [block], folded=False)


def _command(page: Page, source: Source) -> Command:
    return Command(
        source.id,
        source.label,
        f"{source.command} {_subjects(source)}".strip(),
        tuple(_facts(source)),
        page.repeat(source.record),
        source.state,
    )


def _subjects(source: Source) -> str:
    compared = [str(one.get("label")) for one in objects(source.record, "checkpoints")]
    return source.subject or ", ".join(compared)


def _facts(source: Source) -> Iterator[tuple[str, str]]:
    record = source.record
    yield "record", source.path.name
    yield "made", moment(str(record["created"]))
    checkpoint, data, machine = (part(record, name) for name in ("checkpoint", "data", "environment"))
    if checkpoint:
        yield "checkpoint", _joined(checkpoint, ("path", "sha256"))
    if data:
        yield "data", _joined(data, _DATA)
        rest = [key for key in data if key not in _DATA]
        if rest:
            yield "evaluated", _joined(data, rest)
    if record.get("seed") is not None:
        yield "seed", str(record["seed"])
    engines = dict.fromkeys(str(row["engine"]).split(" (")[0] for row in source.rows if row.get("engine"))
    if engines:
        yield "engine", "; ".join(engines)
    yield "versions", _joined(machine, [name for name in _MACHINE if name in machine])


def _joined(entry: Any, names: Any) -> str:
    """Return entries in words: ``name digits, split train``; those that are missing are left out."""
    known = [(name, entry[name]) for name in names if entry.get(name) not in (None, [], {})]
    return ", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in known)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_text(one)}" for key, one in value.items()) + ")"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.6g}"

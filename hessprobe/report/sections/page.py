"""What the sections of a page are made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hessprobe.report.document import Picture, Pictures, Text
from hessprobe.report.schema import part
from hessprobe.report.sources import FINISHED, Gathered, Source

Remarks = Callable[[Mapping[str, Any]], Sequence[str]]


def plain_remarks(row: Mapping[str, Any]) -> list[str]:
    """Return flags and notes of a result as they stand in the record."""
    return [str(said) for said in (*row["flags"], *row["notes"])]


def no_command(record: Mapping[str, Any]) -> str:  # noqa: ARG001  # the signature of a repeater
    """Return no command: the caller has no command line."""
    return ""


@dataclass(frozen=True)
class Page:
    """The records of a page, with their figures and commands.

    Attributes:
        gathered: the records.
        pictures: figures by label of their record; those of several records by their labels with a plus between.
        undrawn: by label, why a figure could not be drawn.
        remarks: what is to be said about a result, in sentences.
        repeat: the command that makes a record again; nothing where it is not known.
    """

    gathered: Gathered
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    undrawn: Mapping[str, str] = field(default_factory=dict)
    remarks: Remarks = plain_remarks
    repeat: Callable[[Mapping[str, Any]], str] = no_command

    def of(self, command: str) -> list[Source]:
        """Return the records of a command, oldest first."""
        return self.gathered.of(command)

    def drawn(self, command: str) -> Pictures | None:
        """Return the figures of the records of a command that others on the page cover, or None without any."""
        found = [one for source in self.of(command) for one in self.pictures.get(source.label, ()) if one.covered]
        return Pictures(tuple(found)) if found else None

    def shown(self) -> Pictures | None:
        """Return the figures that no other covers: of comparisons first, then of several records, then of each."""
        compared = {source.label for source in self.of("compare")}
        ordered = sorted(self.pictures, key=lambda label: (label not in compared, "+" not in label))
        found = [one for label in ordered for one in self.pictures[label] if not one.covered]
        return Pictures(tuple(found)) if found else None

    def data_name(self, source: Source) -> str:
        """Return the checkpoint, with the data it was measured on where records differ in that."""
        said = {_data(one) for one in self.gathered.sources if _data(one)}
        data = _data(source)
        return f"{source.name} ({data})" if data and len(said) > 1 else source.name


def unfinished(sources: Sequence[Source]) -> Text | None:
    """Return one paragraph a record that was interrupted or failed, set apart, or None where all were finished."""
    said = [ended(source) for source in sources if source.state != FINISHED]
    return Text(tuple(said), alert=True) if said else None


def ended(source: Source) -> str:
    """Return how the work on a record ended, in one sentence."""
    errors = [str(error) for error in source.record.get("errors") or ()]
    why = f": {' '.join(errors)}" if errors else "."
    kept = f" What is shown of {source.label} is what was finished by then." if source.rows else " It holds no result."
    return f"{source.label}, hessprobe {source.command} of {source.name}, was {_past(source.state)}{why}{kept}"


def _past(state: str) -> str:
    return "interrupted" if state == "interrupted" else "ended by a failure"


def _data(source: Source) -> str:
    data = part(source.record, "data")
    if not data:
        return ""
    return ",\u00a0".join(str(data[name]) for name in ("split", "examples") if data.get(name) is not None)

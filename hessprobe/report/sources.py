"""The records a page is made from: found, read, checked, named."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hessprobe import files
from hessprobe.errors import RecordError
from hessprobe.records.record import read_record
from hessprobe.report.schema import check_results

_MOST_ROWS = 10_000

FINISHED, INTERRUPTED, FAILED = "finished", "interrupted", "failed"


@dataclass(frozen=True)
class Source:
    """One record.

    Attributes:
        record: what the file holds.
        path: of the file.
        label: ``R1``, ``R2``, ... in the order in which they were made.
        subject: the checkpoint's shortest name that no other checkpoint on the page has; empty where there is none.
    """

    record: Mapping[str, Any]
    path: Path
    label: str = ""
    subject: str = ""

    @property
    def id(self) -> str:
        """Anchor of its entry on the page."""
        return f"record-{self.label[1:]}"

    @property
    def command(self) -> str:
        """The command that made it."""
        return str(self.record["command"])

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Its results."""
        rows: Sequence[Mapping[str, Any]] = self.record["results"]
        return rows

    @property
    def state(self) -> str:
        """Whether the work was finished, interrupted, or failed."""
        flags = self.record.get("flags") or ()
        return next((state for state in (FAILED, INTERRUPTED) if state in flags), FINISHED)

    @property
    def name(self) -> str:
        """The checkpoint, or the command where there is none."""
        return self.subject or self.command


@dataclass(frozen=True)
class Gathered:
    """What was found.

    Attributes:
        sources: the records, oldest first.
        broken: path and sentence of each record of a folder that cannot be used.
        foreign: JSON files of a folder that are no records.
    """

    sources: tuple[Source, ...]
    broken: tuple[tuple[Path, str], ...] = ()
    foreign: tuple[Path, ...] = ()

    def of(self, command: str) -> list[Source]:
        """Return the records of one command."""
        return [source for source in self.sources if source.command == command]


def gather(paths: Sequence[Path]) -> Gathered:
    """Read records and folders of records.

    Args:
        paths: files, each of which must be a record, and folders, which are searched to their depths; there a record
            that cannot be used is reported in ``broken`` and other JSON in ``foreign``.

    Raises:
        RecordError: a file that is no record, lacks an entry or has another schema version; a folder without a record.
    """
    found: dict[Path, Mapping[str, Any]] = {}
    broken: list[tuple[Path, str]] = []
    foreign: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.setdefault(files.real(path), _read(path))
            continue
        listed = sorted(file for file in path.rglob("*.json") if not _hidden(file.relative_to(path)))
        before = len(found) + len(broken)
        for file in listed:
            if not _claims_to_be_one(file):
                foreign.append(file)
                continue
            try:
                found.setdefault(files.real(file), _read(file))
            except RecordError as error:
                broken.append((file, str(error)))
        if not found and len(found) + len(broken) == before:
            raise RecordError(_without_records(path, listed))
    sources = [Source(record, path) for path, record in found.items()]
    return Gathered(tuple(_named(sources)), tuple(broken), tuple(foreign))


def of_record(record: Mapping[str, Any], path: Path) -> Gathered:
    """Return what a page of one record is made from.

    Args:
        record: as ``read_record`` returns it.
        path: where it is kept.
    """
    return Gathered(tuple(_named([Source(record, path)])))


def _read(path: Path) -> Mapping[str, Any]:
    record = read_record(path)
    if len(record["results"]) > _MOST_ROWS:
        raise RecordError(
            f"{path} holds {len(record['results']):,} results, more than a page shows ({_MOST_ROWS:,}). Leave it out."
        )
    try:
        check_results(record, str(path))
    except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
        raise RecordError(f"{path} holds something else than a record does ({error}). Write it again.") from error
    return record


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _claims_to_be_one(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        # Cut short or unreadable: reading it says so, by name.
        return True
    return isinstance(content, dict) and str(content.get("schema")).startswith("hessprobe.")


def _without_records(folder: Path, listed: Sequence[Path]) -> str:
    what = f"{len(listed)} JSON files, none of them a record" if listed else "no JSON file"
    return (
        f"{folder} must hold records; got a folder with {what}. Make one: "
        f"hessprobe measure CKPT --json {folder / 'measure.json'}"
    )


def _named(sources: Sequence[Source]) -> list[Source]:
    ordered = sorted(sources, key=lambda source: (str(source.record["created"]), str(source.path)))
    paths = {_checkpoint(source) for source in ordered} - {""}
    names = {path: Path(path).name for path in paths}
    repeated = {name for name in names.values() if list(names.values()).count(name) > 1}
    short = {path: path if name in repeated else name for path, name in names.items()}
    return [
        replace(source, label=f"R{index}", subject=short.get(_checkpoint(source), ""))
        for index, source in enumerate(ordered, start=1)
    ]


def _checkpoint(source: Source) -> str:
    checkpoint = source.record.get("checkpoint")
    if isinstance(checkpoint, Mapping):
        return str(checkpoint.get("path") or "")
    arguments = source.record["arguments"]
    run = arguments.get("run_dir")
    return str(arguments.get("objective") or (run[0] if isinstance(run, list) and run else ""))

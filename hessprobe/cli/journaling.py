"""The journal of a command: beside its record while it runs, gone once the record is written whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessprobe.cli import failures, outputs, threads

if TYPE_CHECKING:
    from hessprobe.cli.load import Subject
    from hessprobe.journal import Journal

# Where the outcome goes, and how it is shown, decides no number.
_NOT_IDENTITY = frozenset({"json", "csv", "out", "debug"})


def path_of(record: str) -> Path:
    """Return where the journal of the run that writes ``record`` lies."""
    return Path(f"{record}.journal")


@contextmanager
def kept(record: str | None, request: Any, facts: Mapping[str, Any]) -> Iterator[Journal | None]:
    """Write the products made inside down, and read those of a stopped run first where ``--resume`` is given.

    Where the record goes to no file there is no journal.

    Args:
        record: ``--json``.
        request: the options, a dataclass.
        facts: what else decides the numbers, as plain values by name: hashes of weights and data.

    Raises:
        UsageError: ``--resume`` without ``--json FILE``.
        JournalError: damaged, or of another run.
    """
    run = outputs.current()
    if record in (None, "-"):
        if run.resume:
            raise failures.UsageError("--resume needs --json FILE, beside which the journal lies; got none. Name it.")
        yield None
        return
    from hessprobe.hvp import replay
    from hessprobe.journal import Journal

    path = path_of(str(record))
    if path.exists() and not run.resume:
        failures.say(f"note: {path}, of a stopped run, is replaced; --resume would have gone on from it")
    if run.resume and not path.exists():
        failures.say(f"note: there is no {path} to go on from; beginning anew")
    journal = Journal(path, _identity(run.command, request, facts), resume=run.resume)
    if len(journal):
        failures.say(f"going on from {path}: {len(journal)} products are known")
    try:
        with replay.replayed(journal):
            yield journal
    finally:
        if journal.failure is not None:
            failures.say(
                f"warning: {path} could not be written on ({journal.failure.strerror}); what came after is lost "
                "if this run stops"
            )
        journal.close()


def facts(subjects: Sequence[Subject]) -> dict[str, Any]:
    """Return what decides the numbers of networks beside the options: hashes of their weights and of the data."""
    found: dict[str, Any] = {}
    for index, subject in enumerate(subjects):
        found[f"weights {index}"] = (subject.checkpoint or {}).get("sha256")
        found[f"data {index}"] = subject.data.get("fingerprint")
    return found


def facts_of_files(paths: Iterable[str]) -> dict[str, Any]:
    """Return hashes of the files among ``paths``, which decide the numbers of what is loaded from them later on."""
    from hessprobe.training.checkpoint import file_sha256

    return {f"content of {path}": file_sha256(path) for path in paths if Path(path).is_file()}


def finished(record: str | None) -> None:
    """Remove the journal of a run whose record is written and whole."""
    if record not in (None, "-"):
        path_of(str(record)).unlink(missing_ok=True)


def _identity(command: str, request: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    from hessprobe.records.record import environment

    given = {f"--{name.replace('_', '-')}": value for name, value in asdict(request).items()}
    options = {name: value for name, value in given.items() if name.lstrip("-") not in _NOT_IDENTITY}
    here = environment("cpu")
    machine = {name: here[name] for name in ("hessprobe", "torch", "numpy", "scipy", "device_name")}
    # Left open, the number is that of the moment; another one changes the rounding of sums and nothing else.
    machine["threads"] = threads.identity()
    return {"command": command, **options, **facts, **machine}

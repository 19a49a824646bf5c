"""``hessprobe repeat``: run the command of a record again, and compare the numbers."""

from __future__ import annotations

import contextlib
import io
import math
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe.cli import options, outputs, process, repeat, usage
from hessprobe.cli.outputs import NAMES as OUTPUTS

if TYPE_CHECKING:
    from rich.console import Console

# Commands whose records hold numbers that the same options give again.
REPEATED = ("measure", "sharpness", "compare", "invariance")
# Numbers of the same probes on the same weights differ by the order of sums alone.
_ROUNDING = 1e-5
# Standard errors of both that two measurements of one number differ by at most, but once in 16,000.
_FAR = 4.0
# More rows than anybody reads; a terminal's table of 100,000 takes minutes.
_ROWS = 1000
_SAME, _WITHIN, _DIFFERS, _GONE = "same", "within error", "differs", "not found now"
# What names code: FILE.py:FUNCTION, package.module:factory; kinds of files and libraries do not.
_CODE = re.compile(r"\.py\b|^[\w.]+\.\w+:\w+")


@dataclass(frozen=True)
class Pair:
    """One number, then and now.

    Attributes:
        name: of it.
        then, now: (value, error); None where there is none.
    """

    name: str
    then: tuple[float, float]
    now: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """Whether they agree: to rounding, within their errors, or not."""
        if self.now is None:
            return _GONE
        off = abs(self.now[0] - self.then[0])
        if off <= _ROUNDING * max(abs(self.then[0]), abs(self.now[0])):
            return _SAME
        return _WITHIN if off <= _FAR * math.hypot(self.then[1], self.now[1]) else _DIFFERS


def repeat_(
    context: typer.Context,
    record: Annotated[str, typer.Argument(metavar="RECORD", help="A record (--json) of a command that measures.")],
    trust: Annotated[
        bool, typer.Option("--trust-code", help="Run the Python file or module that the record names.")
    ] = False,
    json: options.Json = None,
    debug: options.Debug = False,
) -> None:
    """Run the command of a record again, say what has changed since, and compare the numbers.

    A record is data: only commands of this program are run, every argument is checked as if it were typed, and what the
    command wrote then is not written again; --json keeps the new record. The exit code is 1 where a number differs.

    Example: hessprobe repeat digits.json
    """
    del debug  # the wrapper reads it
    options.require_records([record])
    if json == "-":
        raise process.UsageError("--json must be a file; got '-'. The comparison goes to stdout.")
    options.check_outputs(json=json)
    resume = outputs.current_invocation().resume
    if resume and json is None:
        raise process.UsageError("--resume needs --json FILE, beside which the journal lies; got none. Name it.")

    from hessprobe.cli import render
    from hessprobe.records.record import read_record

    program, before = context.find_root().command, read_record(record)
    words = words_of(before, record, program, trust=trust)
    with tempfile.TemporaryDirectory(prefix="hessprobe-repeat-") as folder:
        place = json or str(Path(folder) / "now.json")
        process.note(f"running {shlex.join(['hessprobe', *words])}")
        _run([words[0], "--json", place, *words[1:], *(["--resume"] if resume else [])], program)
        now = read_record(place)
    console, pairs = render.stdout_console(), pairs_of(before, now)
    show(pairs, changes(before, now), console)
    if any(pair.verdict in (_DIFFERS, _GONE) for pair in pairs):
        raise typer.Exit(process.FAILED)


repeat_.__name__ = "repeat"


def words_of(record: Mapping[str, Any], path: str, program: Any, *, trust: bool = False) -> list[str]:
    """Return the words of the command that made a record, without what it wrote.

    Args:
        record: as ``read_record`` returns it.
        path: of its file, for messages.
        program: all commands, as a click group.
        trust: whether it may name code to be run.

    Raises:
        UsageError: of another command, with an option that this version does not have, or naming code without
            ``trust``.
    """
    command, arguments = record["command"], record["arguments"]
    line = repeat.command_line(record, program)
    if command not in REPEATED:
        mend = f"Run it yourself: {line}" if line else "Make such a record with --json FILE."
        raise process.UsageError(f"RECORD must be of {', '.join(REPEATED)}; got {path!r} of {str(command)!r}. {mend}")
    own = {name: value for name, value in arguments.items() if name not in OUTPUTS}
    words = repeat.words({"command": command, "arguments": own}, program)
    if words is None:
        raise process.UsageError(
            f"{path} asks for an option that hessprobe {command} of this version does not have, or was made in Python. "
            "Repeat it with the version that made it."
        )
    code = [str(own[name]) for name in ("objective", "model", "loss") if _CODE.search(str(own.get(name) or ""))]
    if code and not trust:
        raise process.UsageError(
            f"{path} names code that would be run, {', '.join(code)}. Pass --trust-code if you know what it does."
        )
    return words


def _run(words: list[str], program: Any) -> None:
    """Run a command of the program inside this one, without its table.

    Raises:
        typer.Exit: it did not end well, and has said why.
        UsageError: an argument that the parser refuses.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            code = program(words, prog_name="hessprobe", standalone_mode=False)
    except usage.ParserError as error:
        raise process.UsageError(f"RECORD: {usage.sentence(error, words, program)}") from error
    if isinstance(code, int) and code:
        raise typer.Exit(code)


def pairs_of(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Pair]:
    """Return every number of a record beside that of the same name of another."""
    found = dict(numbers_of(now))
    return [Pair(name, value, found.get(name)) for name, value in numbers_of(before)]


def numbers_of(record: Mapping[str, Any]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield name, and value with error, of every number in the results of a record."""
    for row in record["results"]:
        if isinstance(row, Mapping):
            known = (row.get(key) for key in ("transform", "strength", "measure", "rho", "checkpoint"))
            yield from _numbers(row, " ".join(str(each) for each in known if isinstance(each, str | float)))


def _numbers(part: Any, name: str) -> Iterator[tuple[str, tuple[float, float]]]:
    if not isinstance(part, Mapping):
        return
    value = part.get("value")
    if isinstance(value, int | float):
        yield name, (float(value), _error(part))
    for key, each in part.items():
        if key not in ("errors", "arrays", "data"):
            yield from _numbers(each, f"{name} {key}".replace(" layers ", " of "))


def _error(part: Mapping[str, Any]) -> float:
    known = [part.get("std_error")]
    interval = part.get("interval")
    if isinstance(interval, list) and len(interval) == 2 and all(isinstance(end, int | float) for end in interval):
        known.append((interval[1] - interval[0]) / _FAR)
    return max((float(each) for each in known if isinstance(each, int | float)), default=0.0)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what is not as it was, one sentence each: versions and machine, weights, data."""
    then, here = before["environment"], now["environment"]
    found = [f"{name}: then {then.get(name)}, now {here[name]}" for name in here if then.get(name) != here[name]]
    for entry, key in (("checkpoint", "sha256"), ("data", "fingerprint")):
        old, new = ((record.get(entry) or {}).get(key) for record in (before, now))
        if old != new:
            found.append(f"the {entry} is not what it was ({key} {str(old)[:12]} then, {str(new)[:12]} now)")
    return found


def show(pairs: list[Pair], changed: list[str], console: Console) -> None:
    """Print the numbers side by side, and what has changed.

    Args:
        pairs: of both records; of more than 1,000 those that are not the same come first, and 1,000 are printed.
        changed: see ``changes``.
        console: where to.
    """
    from hessprobe.cli import render

    sign = render.plus_minus_for(console)
    told = pairs if len(pairs) <= _ROWS else sorted(pairs, key=lambda pair: pair.verdict == _SAME)[:_ROWS]
    rows = [
        [
            pair.name,
            render.with_error(*pair.then, sign),
            "" if pair.now is None else render.with_error(*pair.now, sign),
            pair.verdict,
        ]
        for pair in told
    ]
    if rows:
        header = ["number", "then", "now", "verdict"]
        render.print_table([(header, rows), (header[::3], [row[::3] for row in rows])], console)
    if len(told) < len(pairs):
        render.print_line(console, f"and {len(pairs) - len(told):,} more numbers")
    for sentence in changed:
        render.print_line(console, sentence)
    counts = {verdict: sum(pair.verdict == verdict for pair in pairs) for verdict in (_SAME, _WITHIN, _DIFFERS, _GONE)}
    render.print_line(console, ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "none")

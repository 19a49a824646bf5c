"""The program: commands, version, entry point.

Options from a TOML file and from variables of the environment, as words of the command line.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from hessprobe.cli import process, usage
from hessprobe.cli.commands.bench import bench
from hessprobe.cli.commands.compare import compare
from hessprobe.cli.commands.demo import demo
from hessprobe.cli.commands.doctor import doctor
from hessprobe.cli.commands.info import info
from hessprobe.cli.commands.invariance import invariance
from hessprobe.cli.commands.landscape import landscape
from hessprobe.cli.commands.measure import measure
from hessprobe.cli.commands.plot import plot
from hessprobe.cli.commands.repeat import repeat_
from hessprobe.cli.commands.report import report
from hessprobe.cli.commands.sharpness import sharpness
from hessprobe.cli.commands.track import track
from hessprobe.cli.commands.train import train
from hessprobe.cli.commands.validate import validate
from hessprobe.cli.process import UsageError, guarded

PREFIX = "HESSPROBE_"
_OURS = re.compile(PREFIX)
_FILE = f"{PREFIX}CONFIG"
# Read elsewhere, with another meaning: the folders of data sets and of decoded images.
_OTHERS = frozenset({"HESSPROBE_DATA", "HESSPROBE_CACHE"})
# What only the command line may say.
_NEVER = frozenset({"--help", "--config", "--force", "--trust-data", "--trust-code", "--resume"})
# A few hundred options fit many times over.
_LARGEST_CONFIG = 2**16
_YES, _NO = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True)
class Merged:
    """A command line with what file and environment add to it.

    Attributes:
        words: of the command line.
        sources: where each option that was not typed comes from, by its name with dashes.
    """

    words: tuple[str, ...]
    sources: Mapping[str, str] = field(default_factory=dict)

    def named(self, text: str) -> str:
        """Return a message about an option with its source in place of its name, where it was not typed."""
        option, space, rest = text.partition(" ")
        return f"{self.sources[option]}{space}{rest}" if option in self.sources else text


def merged(words: Sequence[str], group: Any, environment: Mapping[str, str] = os.environ) -> Merged:
    """Return the command line with the options of ``--config FILE`` and ``HESSPROBE_*``; what was typed counts first.

    Keys of the file are options without dashes; those at the top are for every command that has such an option, those
    in a table for the command of its name. Then come the variables, then the file.

    Args:
        words: of the command line, without the program.
        group: the program as a group of commands.
        environment: variables by name.

    Raises:
        UsageError: the file cannot be read, or has a key or a value that no option has, or a variable names none;
            names file and key, or the variable.
    """
    path, typed = _without_config(words)
    # What is wrong in a file or a variable must not hide the help that says what is right.
    if not typed or typed[0] not in group.commands or "--help" in typed:
        return Merged(tuple(typed))
    options = _options_of(group.commands[typed[0]])
    given = {name for name, parameter in options.items() if _is_typed(parameter, typed[1:])}
    path = path or environment.get(_FILE, "")
    entries = {} if not path else _of_file(path, typed[0], group)
    entries |= _of_environment(environment, options, group)
    more: list[str] = []
    sources: dict[str, str] = {}
    for name in (each for each in options if each in entries and each not in given):
        value, source = entries[name]
        more += _words(name, options[name], value, source)
        sources[name] = source
    return Merged((typed[0], *more, *typed[1:]), sources)


def _without_config(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the file that ``--config`` names, and the other words."""
    path, left = "", list(words)
    kept: list[str] = []
    while left:
        word = left.pop(0)
        if word == "--":
            return path, [*kept, word, *left]
        if word == "--config":
            if not left:
                raise UsageError("--config must be followed by a value; got none. Write --config FILE.toml.")
            path = left.pop(0)
        elif word.startswith("--config="):
            path = word.partition("=")[2]
        else:
            kept.append(word)
    return path, kept


def _options_of(command: Any) -> dict[str, Any]:
    found = {max(each.opts, key=len): each for each in command.params if each.param_type_name == "option"}
    return {name: each for name, each in found.items() if name not in _NEVER}


def _is_typed(parameter: Any, words: Sequence[str]) -> bool:
    own = (*parameter.opts, *parameter.secondary_opts)
    short = tuple(name for name in own if len(name) == 2)
    before = words[: words.index("--")] if "--" in words else words
    return any(word.partition("=")[0] in own or (bool(short) and word.startswith(short)) for word in before)


def _of_file(path: str, command: str, group: Any) -> dict[str, tuple[Any, str]]:
    try:
        content = tomllib.loads(_text(path))
    except OSError as error:
        raise UsageError(f"--config must be a file that can be read; got {path!r} ({error.strerror}).") from error
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply. Write lines such as rtol = 0.05.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {str(error).rstrip('.')}. Write lines such as rtol = 0.05.") from error
    everywhere = _everywhere(group)
    found: dict[str, tuple[Any, str]] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            if key not in group.commands:
                raise UsageError(f"{path} must have tables of commands; got [{key}].{_nearest(key, group.commands)}")
            known = _options_of(group.commands[key])
            for inner, each in value.items():
                place = f"{inner} in [{key}] of {path}"
                option = _once(_known(inner, known, place, f"hessprobe {key}"), value, place)
                if key == command:
                    found[option] = (each, place)
        else:
            place = f"{key} in {path}"
            option = _once(_known(key, everywhere, place, "hessprobe"), content, place)
            # The table of the command says more.
            found = {option: (value, place), **found}
    return found


def _text(path: str) -> str:
    """Return the text of a file; a pipe or a device, which may not end, is none.

    Raises:
        OSError: it cannot be read.
        UsageError: it is no file, or a large one.
    """
    size = os.stat(path)
    if not stat.S_ISREG(size.st_mode):
        raise UsageError(f"--config must be a file; got {path!r}, which is none. Write the options to a file.")
    if size.st_size > _LARGEST_CONFIG:
        raise UsageError(f"--config must be at most {_LARGEST_CONFIG:,} bytes; got {path!r} of {size.st_size:,}.")
    return Path(path).read_text(encoding="utf-8")


def _everywhere(group: Any) -> set[str]:
    return {name for each in group.commands.values() for name in _options_of(each)}


def _once(option: str, table: Mapping[str, Any], place: str) -> str:
    name = option.strip("-")
    if name in table and (other := name.replace("-", "_")) != name and other in table:
        raise UsageError(f"{place} must be there once; got {name} and {other}. Leave one of them out.")
    return option


def _known(key: str, known: Any, place: str, program: str) -> str:
    option = f"--{key.replace('_', '-')}"
    if option in known:
        return option
    if option in _NEVER:
        raise UsageError(_never(option, place, "a file"))
    raise UsageError(f"{place} is no option of {program}.{_nearest(option, known).replace('--', '')}")


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else " See 'hessprobe COMMAND --help'."


def _never(option: str, place: str, teller: str) -> str:
    return f"{place} must be typed; {teller} cannot say it. Write {option} behind the command."


def _of_environment(
    environment: Mapping[str, str], options: Mapping[str, Any], group: Any
) -> dict[str, tuple[Any, str]]:
    ours = sorted(filter(_OURS.match, environment))
    if not ours:
        return {}
    everywhere = {_variable(option): option for option in _everywhere(group)}
    never = {_variable(option): option for option in _NEVER}
    found = {}
    for name in ours:
        if name in _OTHERS or name == _FILE:
            continue
        if name in never:
            raise UsageError(_never(never[name], name, "a variable"))
        if name not in everywhere:
            near = _nearest(name, everywhere.keys() | _OTHERS | {_FILE})
            raise UsageError(f"{name} is no option of hessprobe.{near} Rename it or unset it.")
        if everywhere[name] in options:
            found[everywhere[name]] = (environment[name], name)
    return found


def _variable(option: str) -> str:
    return PREFIX + option.strip("-").replace("-", "_").upper()


def _words(option: str, parameter: Any, value: Any, source: str) -> Iterator[str]:
    if getattr(parameter, "is_flag", False):
        said = str(value).lower()
        if said not in _YES | _NO or not isinstance(value, bool | str):
            raise UsageError(f"{source} must be true or false; got {value!r}.")
        off = max(parameter.secondary_opts, key=len, default="")
        yield from [option] if said in _YES else [off] if off else []
        return
    values = value if isinstance(value, list) else [value]
    if len(values) != 1 and not parameter.multiple:
        raise UsageError(f"{source} must be one value; got {len(values)}. Take the brackets away.")
    for each in values:
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            raise UsageError(f"{source} must be a text or a number; got {each!r}.")
        yield f"{option}={each}"


app = typer.Typer(
    name="hessprobe",
    help="Measure the curvature of trained networks: every number with its error and its cost.",
    epilog="Exit codes: 0 done, 1 the work failed, 2 wrong usage, 130 interrupted, 143 terminated, "
    "75 another rank was lost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"hessprobe {version('hessprobe')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Measure the curvature of trained networks: every number with its error and its cost."""


app.command()(guarded(train))
app.command()(guarded(measure))
app.command()(guarded(invariance))
app.command()(guarded(sharpness))
app.command()(guarded(landscape))
app.command()(guarded(track))
app.command()(guarded(compare))
app.command()(guarded(plot))
app.command()(guarded(info))
app.command()(guarded(bench))
app.command()(guarded(validate))
app.command()(guarded(report))
app.command()(guarded(demo))
app.command()(guarded(doctor))
app.command()(guarded(repeat_))


def main(last: bool = False) -> None:
    """Run the program on the arguments of the process.

    Args:
        last: nothing but the end of the process follows; see ``process.handled``.

    Raises:
        SystemExit: always, with the exit code.
    """
    process.prepare()
    with process.handled(last):
        code = _run()
    sys.exit(process.exit_code(code))


def _run() -> int:
    group = typer.main.get_command(app)
    try:
        line = merged(sys.argv[1:], group)
    except process.UsageError as error:
        process.say(f"error: {error}")
        return process.WRONG_USAGE
    try:
        with process.naming(line.named):
            code = app(list(line.words), prog_name="hessprobe", standalone_mode=False)
    except usage.ParserError as error:
        if usage.is_help(error):
            typer.echo(str(error))
        else:
            process.say(f"error: {line.named(usage.sentence(error, line.words, group))}")
        return process.WRONG_USAGE
    except typer.Abort:
        return process.FAILED
    except KeyboardInterrupt:
        return process.INTERRUPTED
    return code if isinstance(code, int) else process.OK

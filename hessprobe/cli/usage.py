"""What the parser of the command line complains about, in one line: the option, the value, the mend."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import typer

from hessprobe.cli import meanings, options
from hessprobe.measures import NAMES

# typer exports only the subclass; what it is made of has moved between its versions.
ParserError = cast(type[Exception], typer.BadParameter.__base__)

# What a converter calls a kind of value, and how a reader does, with an example.
_KINDS = {"int": ("an integer", "10"), "integer": ("an integer", "10"), "float": ("a number", "0.05")}


def is_help(error: Exception) -> bool:
    """Return whether this only asks for the help to be shown: the program was called without arguments."""
    return type(error).__name__ == "NoArgsIsHelpError"


def sentence(error: Exception, arguments: Sequence[str], group: Any) -> str:
    """Return a complaint of the parser as ``<name> must be <requirement>; got <value>. <what to do>``.

    Args:
        error: a ``ParserError``.
        arguments: the words of the command line, without the program.
        group: the program as a group of commands.
    """
    # Some complaints do not say which command they are about.
    chosen = arguments[0] if arguments and arguments[0] in group.commands else ""
    command, program = (group.commands[chosen], f"hessprobe {chosen}") if chosen else (group, "hessprobe")
    parameter: Any = getattr(error, "param", None)
    if hasattr(error, "possibilities"):
        return _unknown_option(cast(Any, error).option_name, command, program, arguments)
    if hasattr(error, "option_name"):
        return _value_or_none(cast(Any, error).option_name, command, program, arguments)
    if parameter is not None and hasattr(error, "param_type"):
        return _missing(parameter, program)
    if parameter is not None:
        return _bad_value(error, parameter, program)
    text = " ".join(cast(Any, error).format_message().split())
    extra = re.fullmatch(r"Got unexpected extra arguments?\s?(?:\(s\))? \((.*)\)", text)
    if extra is not None:
        return _too_many(extra[1], program)
    unknown = re.match(r"No such command '(.*?)'\.", text)
    if unknown is not None:
        return _unknown_command(unknown[1], tuple(group.commands), arguments)
    if text == "Missing command.":
        return f"COMMAND must be given; got none. Choose one of {', '.join(group.commands)}."
    return f"{text} {_see(program)}"


def _unknown_option(name: str, command: Any, program: str, arguments: Sequence[str]) -> str:
    # Of '-rtol' the parser sees '-r' alone.
    if re.fullmatch(r"-\w", name):
        name = next((word.split("=")[0] for word in arguments if word.startswith(name)), name)
    owners = [each for each, other in getattr(command, "commands", {}).items() if name in _options_of(other)]
    if owners:
        return f"{name} must stand behind a command; got it before one. Write: {program} {owners[-1]} {name} ..."
    known = _options_of(command)
    whole = f"--{name.lstrip('-')}"
    meant = whole if whole in known else meanings.option(name, known) or _nearest_spelling(name, tuple(known))
    return f"{program} has no option {name}.{f' Did you mean {meant}?' if meant else ' ' + _see(program)}"


def _nearest_spelling(name: str, known: Sequence[str]) -> str:
    # The dashes, and a letter or two, make anything look alike.
    bare = name.lstrip("-")
    close = difflib.get_close_matches(bare, [each.lstrip("-") for each in known], n=1, cutoff=0.7)
    return f"--{close[0]}" if close and len(bare) > 2 else ""


def _value_or_none(name: str, command: Any, program: str, arguments: Sequence[str]) -> str:
    parameter = _options_of(command).get(name)
    if getattr(parameter, "is_flag", False):
        got = next((word.partition("=")[2] for word in arguments if word.startswith(f"{name}=")), "a value")
        return f"{name} must stand without a value; got {got!r}. Write {name} alone, or leave it out."
    shown = getattr(parameter, "metavar", None) or "VALUE"
    return f"{name} must be followed by a value; got none. Write {name} {shown}, see '{program} --help'."


def _missing(parameter: Any, program: str) -> str:
    name = _name_of(parameter)
    shown = name if parameter.param_type_name == "argument" else f"{name} {parameter.metavar or 'VALUE'}"
    what = f" ({parameter.help.rstrip('.')})" if getattr(parameter, "help", None) else ""
    return f"{name} must be given; got none. Write: {program} {shown}{what}."


def _bad_value(error: Exception, parameter: Any, program: str) -> str:
    name, cause = _name_of(parameter), error.__cause__
    value, kind = None, None
    # The value stands in the complaint of the converter: pydantic's, or a sentence in other versions of typer.
    if cause is not None and hasattr(cause, "errors"):
        first = cast(Any, cause).errors()[0]
        value, kind = first["input"], first["type"].split("_")[0]
    else:
        said = re.search(r"'(.*?)' is not a valid (\w+)", str(error))
        value, kind = (said[1], said[2]) if said else (None, None)
    if kind not in _KINDS:
        return f"{name}: {' '.join(str(error).split())}. {_see(program)}"
    requirement, example = _KINDS[kind]
    return f"{name} must be {requirement}; got {value!r}. Write for example {name} {example}."


def _too_many(extra: str, program: str) -> str:
    words = extra.split()
    if all(word in NAMES for word in words):
        return f"{program} takes one CKPT; got also {extra!r}. Write {' '.join(f'--measure {word}' for word in words)}."
    return f"{program} takes fewer arguments; got also {extra!r}. Leave it out, or name the option it belongs to."


def _unknown_command(name: str, known: tuple[str, ...], arguments: Sequence[str]) -> str:
    if name == "help":
        command = next((word for word in arguments if word in known), "")
        return f"hessprobe has no command 'help'. Write: hessprobe {f'{command} ' if command else ''}--help"
    mend = options.nearest(name, known)
    if not mend:
        file = _is_file(name)
        mend = f" Write: hessprobe measure {name}" if file else f" Choose one of {', '.join(known)}."
    return f"hessprobe has no command {name!r}.{mend}"


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        # Too long for a path, or with a null byte.
        return False


def _options_of(command: Any) -> dict[str, Any]:
    named = {name: each for each in command.params for name in each.opts if name.startswith("-")}
    return {**named, "--help": None}


def _name_of(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper()).strip("[]")
    return str(max(parameter.opts, key=len))


def _see(program: str) -> str:
    return f"See '{program} --help'."

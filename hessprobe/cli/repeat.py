"""The command line that makes a record again, from the arguments that the record keeps."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def command_line(record: Mapping[str, Any], group: Any) -> str:
    """Return the command as a shell takes it, or nothing where this version has no such command or option.

    Args:
        record: as ``read_record`` returns it.
        group: the program as a group of commands.
    """
    found = words(record, group)
    return "" if found is None else shlex.join(["hessprobe", *found])


def words(record: Mapping[str, Any], group: Any) -> list[str] | None:
    """Return the words behind the program's name, without what is the default; None where they are not known.

    Args:
        record: as ``read_record`` returns it.
        group: the program as a group of commands.
    """
    command = group.commands.get(record["command"])
    arguments = _own(record["arguments"])
    known = set() if command is None else {parameter.name for parameter in command.params}
    if command is None or any(value for name, value in arguments.items() if name not in known):
        return None
    options: list[str] = []
    positional: list[str] = []
    for parameter in command.params:
        value = arguments.get(parameter.name)
        if value is None and parameter.required:
            # Made by a program that used the library: nobody typed it.
            return None
        if value is None or (value == _default(parameter) and not parameter.required):
            continue
        if parameter.param_type_name == "argument":
            positional += [_text(one) for one in _each(value)]
        else:
            options += _option(parameter, value)
    # Behind the bare dashes nothing is an option, whatever a file is called.
    guarded = any(word.startswith("-") for word in positional)
    return [record["command"], *options, "--", *positional] if guarded else [record["command"], *positional, *options]


def _own(arguments: Mapping[str, Any]) -> dict[str, Any]:
    # A fixed number of probes is in place of a tolerance; records of both keep the tolerance that would have been.
    fixed = arguments.get("probes") is not None
    return {name: value for name, value in arguments.items() if not (fixed and name == "rtol")}


def _option(parameter: Any, value: Any) -> Iterator[str]:
    name = max(parameter.opts, key=len)
    if getattr(parameter, "is_flag", False):
        off = max(parameter.secondary_opts, key=len, default="")
        if value or off:
            yield name if value else off
        return
    for one in _each(value):
        yield name
        yield _text(one)


def _each(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _default(parameter: Any) -> Any:
    default = parameter.default
    return default() if callable(default) else default

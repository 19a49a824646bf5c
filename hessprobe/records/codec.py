"""Dataclasses as the JSON objects of a record: the fields that are declared are what is written, read and refused.

A field without default must be there. Entries that no field declares are passed over: a later version may have written
them.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from hessprobe.errors import RecordError
from hessprobe.records.record import build_record, cleaned

_Kind = TypeVar("_Kind")
_MEND = "Write the record again."

# Metadata of a field: its own fields stand in the object itself, none of them where it is None; or it is not written
# where it is None.
FLAT: Mapping[str, bool] = types.MappingProxyType({"flat": True})
LEFT_OUT: Mapping[str, bool] = types.MappingProxyType({"left_out": True})


def read(kind: type[_Kind], part: Mapping[str, Any], where: str) -> _Kind:
    """Return an object of a record as a dataclass.

    Args:
        kind: the dataclass.
        part: the object.
        where: the object in words, for messages: ``"the record"``, ``"results[0],"``.

    Raises:
        RecordError: an entry is missing, or of another type; names it.
    """
    hints, values = _hints(typing.cast(Any, kind)), {}
    for each in fields(typing.cast(Any, kind)):
        if each.metadata.get("flat"):
            inner = _only(hints[each.name])
            if inner is hints[each.name] or any(one.name in part for one in fields(inner)):
                values[each.name] = read(inner, part, where)
        elif each.name in part:
            values[each.name] = _value(hints[each.name], part[each.name], each.name, where)
        elif each.default is MISSING and each.default_factory is MISSING:
            raise RecordError(f"{where} lacks the entry {each.name!r}. {_MEND}")
    return kind(**values)


def build(command: str, found: Any, **head: Any) -> dict[str, Any]:
    """Return the record of a command, ready to be written as JSON.

    Args:
        command: its name on the command line.
        found: its record as a dataclass, with the field ``results``.
        head: ``arguments``, ``seed`` and ``device``; see ``build_record``.
    """
    parts = written(found)
    return build_record(command, parts.pop("results"), **head, **parts)


def written(one: Any) -> dict[str, Any]:
    """Return a dataclass as the object of a record, in the order of its fields; nan and inf become null."""
    entries: dict[str, Any] = {}
    for each in fields(one):
        value = getattr(one, each.name)
        if each.metadata.get("flat"):
            entries |= {} if value is None else written(value)
        elif not (value is None and each.metadata.get("left_out")):
            entries[each.name] = _plain(value)
    return entries


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return written(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return cleaned(value)


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _only(hint: Any) -> Any:
    """Return X of ``X | None``, and any other type as it is."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    (only,) = (each for each in typing.get_args(hint) if each is not type(None))
    return only


def _value(hint: Any, value: Any, name: str, where: str) -> Any:
    if value is None and type(None) in typing.get_args(hint):
        return None
    hint = _only(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        _require(value, Mapping, name, where)
        return read(typing.cast(Any, hint), value, _inside(where, f"{name},"))
    if origin is tuple:
        _require(value, (list, tuple), name, where)
        if arguments[-1] is not Ellipsis:
            if len(value) != len(arguments):
                raise RecordError(f"{where} has {len(value)} numbers as {name!r}, not {len(arguments)}. {_MEND}")
            return tuple(_value(each, one, name, where) for each, one in zip(arguments, value, strict=True))
        return tuple(_entry(arguments[0], one, f"{name}[{index}]", where) for index, one in enumerate(value))
    if origin is dict:
        _require(value, Mapping, name, where)
        return {key: _entry(arguments[1], one, f"{name}, {key!r}", where) for key, one in value.items()}
    _require(value, (int, float) if hint is float else hint, name, where)
    return value


def _entry(hint: Any, value: Any, place: str, where: str) -> Any:
    if is_dataclass(hint) and isinstance(value, Mapping):
        return read(typing.cast(Any, hint), value, _inside(where, f"{place},"))
    return _value(hint, value, place, where)


def _require(value: Any, kind: Any, name: str, where: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise RecordError(f"{where} has {type(value).__name__} as {name!r}. {_MEND}")


def _inside(where: str, name: str) -> str:
    return name if where == "the record" else f"{where} {name}"

"""The JSON record of a command: inputs with hashes, results with error and cost, seed, versions, device."""

from __future__ import annotations

import datetime
import json
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hessprobe import files
from hessprobe.errors import RecordError
from hessprobe.estimate import Estimate
from hessprobe.hvp import pool

_FAMILY = "hessprobe.record"
_VERSION = 1
SCHEMA = f"{_FAMILY}/{_VERSION}"

# Arrays beyond this many entries would make records of hundreds of megabytes.
ARRAY_LIMIT = 1_000_000

_RECORD_KEYS: dict[str, type | tuple[type, ...]] = {
    "schema": str,
    "command": str,
    "results": list,
    "environment": dict,
    "arguments": dict,
    "created": str,
}
_ROW_KEYS: dict[str, type | tuple[type, ...]] = {
    "measure": str,
    "value": (int, float, type(None)),
    "std_error": (int, float, type(None)),
    "interval": list,
    "confidence": (int, float),
    "matvecs": (int, float, type(None)),
    "method": str,
    "operator": str,
    "errors": dict,
    "flags": list,
}
# Arrays that are larger are left out of records.
_LARGEST = 2**28
_CSV_COLUMNS = (
    "measure",
    "operator",
    "layer",
    "value",
    "std_error",
    "data_std_error",
    "low",
    "high",
    "confidence",
    "matvecs",
    "seconds",
    "method",
    "kind",
    "unit",
    "flags",
)


class MeasuredResult(Protocol):
    """What a measure hands over: see ``hessprobe.measures.Result``."""

    @property
    def measure(self) -> str:
        """Registered name."""

    @property
    def operator(self) -> str:
        """``"hessian"``, ``"ggn"`` or ``"fisher"``."""

    @property
    def estimate(self) -> Estimate:
        """Value, error and cost."""

    @property
    def unit(self) -> str:
        """Unit in words."""

    @property
    def layers(self) -> Mapping[str, Estimate] | None:
        """One estimate a parameter tensor, or None."""

    @property
    def arrays(self) -> Mapping[str, Tensor]:
        """Named arrays that belong to the result (a density and its grid, a diagonal)."""

    @property
    def notes(self) -> Sequence[str]:
        """Remarks for a reader."""

    @property
    def engine(self) -> str:
        """How products were made."""


def result_row(result: MeasuredResult, confidence: float = 0.95) -> dict[str, Any]:
    """Return one result as JSON-friendly values; nan and inf become null and a flag ``non-finite:<where>=<what>``.

    Args:
        result: as ``measure_all`` yields it.
        confidence: level of the interval, in (0, 1).
    """
    row: dict[str, Any] = {
        "measure": result.measure,
        "operator": result.operator,
        "unit": result.unit,
        **estimate_row(result.estimate, confidence),
        "notes": list(result.notes),
        "engine": result.engine,
    }
    if result.layers is not None:
        row["layers"] = {name: estimate_row(layer, confidence) for name, layer in result.layers.items()}
    flags: list[str] = list(row["flags"])
    plain: dict[str, Any] = _clean(row, "", flags)
    if result.arrays:
        plain["arrays"] = {name: _array(name, values, flags) for name, values in result.arrays.items()}
    plain["flags"] = flags
    return plain


def estimate_row(estimate: Estimate, confidence: float = 0.95) -> dict[str, Any]:
    """Return an estimate as a dictionary, in which nan and inf may still stand."""
    return estimate.row(confidence)


def build_record(
    command: str,
    results: Sequence[Mapping[str, Any]],
    *,
    arguments: Mapping[str, Any],
    seed: int | None,
    device: torch.device | str = "cpu",
    **parts: Any,
) -> dict[str, Any]:
    """Return the record of a command; made by several ranks, it says how many examples each has multiplied.

    Args:
        command: its name on the command line.
        results: rows as ``result_row`` makes them.
        arguments: what was asked for, by option name.
        seed: of all randomness; None where there is none.
        device: where the work was done.
        parts: further entries (``checkpoint``, ``data``, ``training``, ``flags``, ``errors``, ``partial``); those that
            are None are left out. nan and inf in them become null.
    """
    record = {
        "schema": SCHEMA,
        "command": command,
        "results": [dict(row) for row in results],
        **{key: value for key, value in parts.items() if value is not None},
        "environment": environment(device),
        **({} if (shared := pool.current()) is None else {"ranks": shared.described()}),
        "peak_memory": peak_memory(device),
        "seed": seed,
        "arguments": dict(arguments),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    plain: dict[str, Any] = cleaned(record)
    return plain


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return versions, device, threads and platform."""
    place = torch.device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else platform.processor() or platform.machine()
    versions = {package: metadata.version(package) for package in ("hessprobe", "numpy", "scipy")}
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **versions,
        "device": str(place),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def peak_memory(device: torch.device | str = "cpu") -> dict[str, int]:
    """Return the largest number of bytes that the process has held so far, and its tensors on a CUDA ``device``.

    ``"process"``, its resident set, has Python, torch and the data in it: about 300 MB before anything is computed.
    Windows does not tell it. ``"above_start"``, what that is above what was held when ``begin_memory`` was called, is
    there on Linux where it was: libraries that were imported meanwhile are in it.
    """
    found: dict[str, int] = {}
    if sys.platform != "win32":
        import resource

        # The kernel counts in KiB, that of macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        found = {"process": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    begun = _begun.get()
    if begun:
        found["above_start"] = max(pool.status_bytes("VmHWM") - begun, 0)
    place = torch.device(device)
    return found | ({"device": torch.cuda.max_memory_allocated(place)} if place.type == "cuda" else {})


# Bytes that the process held when a measurement began; 0 where the system does not tell.
_begun: ContextVar[int] = ContextVar("begun", default=0)


def begin_memory() -> None:
    """Take what the process holds now for the start of the measurement whose record is made next."""
    _begun.set(pool.status_bytes("VmRSS"))


def to_json(record: Mapping[str, Any]) -> str:
    """Return the record as JSON text, ending in a newline.

    Raises:
        ValueError: nan or inf in it; make rows with ``result_row``.
    """
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name that is not UTF-8 stands as JSON's own escapes, which are read back to the same name.
    return text.encode(errors="backslashreplace").decode()


def write_record(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write the record atomically as JSON."""
    text = to_json(record).encode()
    files.write_atomically(path, lambda file: file.write(text))


def to_csv(record: Mapping[str, Any]) -> str:
    """Return the results as CSV: one line a result, and one a layer where layers were measured."""
    import pandas as pd

    lines = []
    for row in record["results"]:
        lines.append(_csv_line(row, row, ""))
        lines += [_csv_line(row, layer, name) for name, layer in row.get("layers", {}).items()]
    return pd.DataFrame(lines, columns=list(_CSV_COLUMNS)).to_csv(index=False)


def write_csv(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write ``to_csv`` of the record atomically."""
    text = to_csv(record).encode(errors="backslashreplace")
    files.write_atomically(path, lambda file: file.write(text))


def read_record(path: str | Path) -> dict[str, Any]:
    """Return a record after checking that it is one.

    Raises:
        RecordError: the file is missing, not JSON, not a record, of a newer or older schema, or lacks an entry.
    """
    source = Path(path)
    try:
        _require_readable(source)
        record = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{source} cannot be read: {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{source} is not a record, which is JSON text. Make one with --json FILE.") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{source} is truncated or not JSON ({error}). Write the record again.") from error
    return checked_record(record, str(source))


def checked_record(record: Any, where: str) -> dict[str, Any]:
    """Return what was read as a record after checking that it is one.

    Args:
        record: as JSON has it.
        where: it stands, for the message.

    Raises:
        RecordError: it is none, of a newer or older schema, or lacks an entry.
    """
    schema = record.get("schema") if isinstance(record, Mapping) else None
    family, _, version = str(schema).partition("/")
    if family != _FAMILY or not version.isdigit():
        raise RecordError(f"{where} is not a hessprobe record (schema {schema!r}). Make one with --json FILE.")
    if int(version) > _VERSION:
        raise RecordError(f"{where} has schema {schema!r}, but this hessprobe reads up to {SCHEMA}. Update hessprobe.")
    if int(version) < _VERSION:
        raise RecordError(
            f"{where} has schema {schema!r}, which this hessprobe, of {SCHEMA}, no longer reads. Run hessprobe "
            f"{record.get('command', '')} again with the options under 'arguments' and --json to convert it."
        )
    require(record, _RECORD_KEYS, where)
    for position, row in enumerate(record["results"]):
        place = f"{where}, results[{position}],"
        if not isinstance(row, dict):
            raise RecordError(f"{place} is not an object. Write the record again.")
        if record["command"] == "measure":
            require(row, _ROW_KEYS, place)
    return dict(record)


def _require_readable(source: Path) -> None:
    if source.exists() and not source.is_file():
        raise RecordError(f"{source} is no file. Give the JSON record of a command.")
    if source.is_file() and source.stat().st_size > _LARGEST:
        raise RecordError(f"{source} is larger than any record, {source.stat().st_size / 1e6:.3g} MB. Check the path.")


def require(entry: Mapping[str, Any], keys: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    """Refuse a part of a record that lacks one of ``keys`` or holds something of another type there.

    Args:
        entry: the part.
        keys: what must be in it, and as what.
        where: the part in words, for the message.

    Raises:
        RecordError: names the first such key.
    """
    for key, kind in keys.items():
        if key not in entry:
            raise RecordError(f"{where} lacks the entry {key!r}. Write the record again.")
        if not isinstance(entry[key], kind):
            raise RecordError(f"{where} has {type(entry[key]).__name__} as {key!r}. Write the record again.")


def _array(name: str, values: Tensor, flags: list[str]) -> dict[str, Any]:
    strange = int((~torch.isfinite(values)).sum())
    if strange:
        flags.append(f"non-finite:arrays.{name}={strange} entries")
    shape = {"shape": list(values.shape), "dtype": str(values.dtype).removeprefix("torch.")}
    if values.numel() > ARRAY_LIMIT:
        return {**shape, "values": None, "omitted": f"more than {ARRAY_LIMIT} entries"}
    return {**shape, "values": _clean(values.detach().cpu().tolist(), "", [])}


def _csv_line(result: Mapping[str, Any], row: Mapping[str, Any], layer: str) -> dict[str, Any]:
    low, high = row["interval"]
    return {
        **{key: row.get(key) for key in _CSV_COLUMNS},
        "measure": result["measure"],
        "operator": result["operator"],
        "unit": result["unit"],
        "layer": layer,
        "data_std_error": row["errors"].get("data"),
        "low": low,
        "high": high,
        "flags": " ".join(row["flags"]),
    }


def cleaned(value: Any) -> Any:
    """Return ``value`` as JSON has it: numbers that are not finite are None, tuples are lists."""
    return _clean(value, "", [])


def _clean(value: Any, where: str, flags: list[str]) -> Any:
    """Return ``value`` for JSON; each number that is not finite becomes null and is named in ``flags``."""
    if isinstance(value, Mapping):
        return {str(key): _clean(item, f"{where}.{key}" if where else str(key), flags) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item, f"{where}[{index}]", flags) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        flags.append(f"non-finite:{where}={value}")
        return None
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        return _clean(value.item(), where, flags)
    return str(value)

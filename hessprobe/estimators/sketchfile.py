"""A spectral sketch on disk: one small .npz file that holds no code."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessprobe.errors import HessprobeError
from hessprobe.files import write_atomically

_FORMAT = "hessprobe.sketch"
_VERSION = 2
# What NumPy, zipfile and json raise on bytes that they did not write.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    struct.error,
    zipfile.BadZipFile,
)
_TENSORS = (
    "norms",
    "alphas",
    "betas",
    "lengths",
    "theta",
    "residuals",
    "weights",
    "chain_influence",
    "theta_influence",
    "short_norms",
    "short_alphas",
    "short_betas",
    "short_lengths",
    "reference",
)


def save(fields: Mapping[str, Any], path: str | Path) -> None:
    """Write the fields of a sketch to ``path`` (the name is taken as it is), whole or not at all.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    values = dict(fields)
    arrays = {name: values.pop(name).numpy() for name in _TENSORS}
    header = json.dumps({"format": _FORMAT, "version": _VERSION, **values})
    write_atomically(path, lambda file: np.savez(file, header=np.array(header), **arrays))


def load(path: str | Path, names: Collection[str]) -> dict[str, Any]:
    """Read the fields of a sketch; nothing in the file is executed.

    Args:
        path: the file.
        names: of all fields.

    Raises:
        FileNotFoundError: no such file.
        HessprobeError: damaged, of another kind, or of a newer version.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            header = _header(archive, path)
            tensors = {name: torch.from_numpy(np.ascontiguousarray(archive[name])) for name in _TENSORS}
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"path must be an existing sketch file; got {str(path)!r}. Write one with SpectralSketch.save."
        ) from error
    except _DAMAGE as error:
        raise HessprobeError(
            f"path must be a sketch file written by save; got {str(path)!r}, which is damaged or of another kind "
            f"({type(error).__name__}). Make the sketch again."
        ) from error
    return _checked(header, tensors, path, names)


def _header(archive: Any, path: str | Path) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(str(archive["header"]))
    if header.pop("format", None) != _FORMAT:
        raise ValueError("another format")
    version = header.pop("version", None)
    if version != _VERSION:
        raise HessprobeError(
            f"path must be a sketch of version {_VERSION}; got {str(path)!r} of version {version}. "
            "Read it with the hessprobe that wrote it, or make it again."
        )
    header["flags"] = tuple(header["flags"])
    return header


def _checked(
    header: dict[str, Any], tensors: dict[str, Tensor], path: str | Path, names: Collection[str]
) -> dict[str, Any]:
    p, m = (len(tensors["norms"]), tensors["alphas"].shape[-1])
    groups, k = len(tensors["weights"]), len(tensors["theta"])
    short, j = len(tensors["short_norms"]), tensors["short_alphas"].shape[-1]
    wanted = {
        "norms": (p,),
        "alphas": (p, m),
        "betas": (p, m),
        "lengths": (p,),
        "theta": (k,),
        "residuals": (k,),
        "weights": (groups,),
        "chain_influence": (p, groups, m),
        "theta_influence": (groups, k),
        "short_norms": (short,),
        "short_alphas": (short, j),
        "short_betas": (short, j),
        "short_lengths": (short,),
        "reference": (2, tensors["reference"].shape[-1]),
    }
    known = set(names) - set(_TENSORS)
    wrong = [name for name, shape in wanted.items() if tuple(tensors[name].shape) != shape]
    if wrong or set(header) != known:
        raise HessprobeError(
            f"path must be a sketch file with matching parts; got {str(path)!r}, where "
            f"{', '.join(wrong) or 'the header'} does not fit. Make the sketch again."
        )
    return {**header, **tensors}

"""Data sets by name: with a fixed split and a content hash."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hessprobe import checks
from hessprobe.errors import DataError, about
from hessprobe.training.datasets.base import (
    LAYOUTS,
    SPLITS,
    TOKEN_LAYOUTS,
    DataSet,
    Report,
    batches,
    load_digits,
    load_text,
    make_synthetic,
    mislabel,
    subset,
)
from hessprobe.training.datasets.folders import load_folder
from hessprobe.training.datasets.hub import load_hub

__all__ = ["KINDS", "LAYOUTS", "SPLITS", "TOKEN_LAYOUTS", "DataSet", "batches", "load_dataset", "resolve_name"]

# How each kind is written, for messages and help.
KINDS = {
    "digits": "digits",
    "synthetic": "synthetic[:KEY=VALUE,..]",
    "image-folder": "image-folder:PATH",
    "hf": "hf:NAME_OR_PATH",
    "text": "text:PATH",
}
# Data sets that other programs fetch by their bare names.
_ON_THE_HUB = frozenset({"cifar10", "cifar100", "mnist", "fashionmnist", "svhn", "imagenet", "tinyimagenet", "stl10"})
_SCALED = ("image-folder", "hf")
_WITH_PATH = ("image-folder", "text")


def load_dataset(
    name: str,
    *,
    context: int | None = None,
    image_size: int | None = None,
    part: float = 1.0,
    label_noise: float = 0.0,
    seed: int = 0,
    report: Report | None = None,
) -> DataSet:
    """Return a data set by name.

    Args:
        name: ``"digits"``; ``"synthetic"`` or ``"synthetic:n=500,side=16"`` (see ``make_synthetic``);
            ``"image-folder:PATH"``, a directory or tar archive of class folders; ``"hf:NAME_OR_PATH"``, through the
            library ``datasets``; ``"text:PATH"``, characters. What is not at its path is also looked for, by the last
            part of it, in the folder ``$HESSPROBE_DATA``.
        context: characters in an example of text; 64 by default.
        image_size: pixels >= 1 of the shorter side, to which the images of folders and of ``hf`` are scaled before a
            square of it is cut out; None leaves them as they are.
        part: share in (0, 1] of the training examples of every class that are kept.
        label_noise: share in [0, 1] of the training labels that are made wrong.
        seed: which examples are kept and which labels are wrong, >= 0.
        report: told how far decoding is, ``(stage, done, total, remark)``.

    Raises:
        ValueError: unknown name (the message names the nearest one), or an argument outside its range.
        DataError: the path is missing, or what is there cannot be read.
        UnsupportedError: the library ``datasets`` is needed and not installed.
    """
    kind, _, rest = name.partition(":")
    if kind not in KINDS:
        mend = checks.nearest(kind, KINDS)
        if kind.lower().replace("-", "") in _ON_THE_HUB:
            mend = f" Nothing is fetched unasked: write image-folder:PATH for a copy of it, or hf:{kind} for the Hub's."
        raise ValueError(about("data", f"must be one of {', '.join(KINDS.values())}; got {name!r}.{mend}"))
    tell = report or _silent
    if image_size is None:
        whole = _LOADERS[kind](name, rest, context, tell)
    elif kind in _SCALED:
        size = checks.positive_int("image_size", image_size)
        read = functools.partial(load_hub, name, rest) if kind == "hf" else _folder_reader(name, rest)
        whole = read(tell, size)
    else:
        raise ValueError(
            about("image_size", f"must be left out for data {name!r}, which have their size; got {image_size}.")
        )
    return mislabel(subset(whole, part, seed), label_noise, seed)


def _folder_reader(name: str, rest: str) -> Callable[[Report, int | None], DataSet]:
    return functools.partial(load_folder, name, _existing(name, rest))


def resolve_name(name: str) -> str:
    """Return ``name`` with its path made absolute, so that a checkpoint finds its data from any folder."""
    kind, _, rest = name.partition(":")
    local = kind in _WITH_PATH or (kind == "hf" and Path(rest).exists())
    return f"{kind}:{Path(rest).resolve()}" if rest and local else name


def _load_digits(name: str, rest: str, context: int | None, report: Report) -> DataSet:  # noqa: ARG001  # one signature
    if rest:
        raise ValueError(f"data must be 'digits' alone; got {name!r}. It takes no argument.")
    return load_digits()


def _load_synthetic(name: str, rest: str, context: int | None, report: Report) -> DataSet:  # noqa: ARG001
    known = make_synthetic.__kwdefaults__ or {}
    arguments: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, _, text = (piece.strip() for piece in item.partition("="))
        checks.one_of("argument of data 'synthetic'", key, known)
        if not re.fullmatch(r"-?\d+(\.\d+)?", text):
            raise ValueError(f"{key} must be a number; got {text!r}. Write e.g. synthetic:n=500,noise=0.3.")
        arguments[key] = float(text) if "." in text else int(text)
    return make_synthetic(name, **arguments)


def _load_folder(name: str, rest: str, context: int | None, report: Report) -> DataSet:  # noqa: ARG001
    return load_folder(name, _existing(name, rest), report)


def _load_hub(name: str, rest: str, context: int | None, report: Report) -> DataSet:  # noqa: ARG001
    if not rest:
        raise ValueError(f"data must be {KINDS['hf']}; got {name!r}. Add the name or path.")
    return load_hub(name, rest, report)


def _load_text(name: str, rest: str, context: int | None, report: Report) -> DataSet:  # noqa: ARG001
    path = _existing(name, rest)
    if path.is_dir():
        raise DataError(f"{path} is a folder; data 'text:PATH' must name a file. Give the file inside it.")
    return load_text(name, path, context)


def _existing(name: str, rest: str) -> Path:
    if not rest:
        raise ValueError(f"data must be {KINDS[name.partition(':')[0]]}; got {name!r}. Add the path.")
    elsewhere = os.environ.get("HESSPROBE_DATA")
    try:
        path = Path(rest).expanduser()
        found = path.exists()
    except (RuntimeError, OSError, ValueError) as error:
        raise DataError(f"data {name[:80]!r} must name a path; {error}. Check it.") from error
    if found:
        return path
    if elsewhere and (Path(elsewhere) / path.name).exists():
        return Path(elsewhere) / path.name
    raise DataError(
        f"data {name!r} must name a path that exists; nothing is at {path}. "
        f"Check it, or set HESSPROBE_DATA to the folder that now holds {path.name!r}."
    )


def _silent(stage: str, done: float, total: float | None, remark: str) -> None:
    """Tell nobody."""


_LOADERS: dict[str, Callable[[str, str, int | None, Report], DataSet]] = {
    "digits": _load_digits,
    "synthetic": _load_synthetic,
    "image-folder": _load_folder,
    "hf": _load_hub,
    "text": _load_text,
}

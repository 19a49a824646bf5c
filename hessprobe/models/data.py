"""``--data`` by its kinds: files of other programs, and the data sets of hessprobe."""

from __future__ import annotations

from pathlib import Path

from hessprobe.errors import DataError
from hessprobe.models import tables
from hessprobe.models.examples import Examples
from hessprobe.models.opening import Opening
from hessprobe.training.datasets import KINDS as DATA_SETS
from hessprobe.training.datasets import DataSet, load_dataset

KINDS = "npz:FILE, csv:FILE, FOLDER of class folders, " + ", ".join(DATA_SETS.values())
_TABLES = {"npz": tables.load_npz, "csv": tables.load_csv}


def is_data_set(name: str) -> bool:
    """Return whether a name is that of a data set of hessprobe."""
    return name.partition(":")[0] in DATA_SETS


def load(name: str, opening: Opening) -> Examples | DataSet:
    """Return labelled examples by name.

    Args:
        name: see ``KINDS``; a file or folder may stand without its kind where its ending says it.
        opening: names of columns, sizes of images and the like.

    Raises:
        ValueError: an unknown kind, or an option outside its range.
        DataError: the path is missing, or what is there cannot be read.
        UnsupportedError: a library is needed and not installed.
    """
    kind, colon, rest = _kind(name)
    if kind in _TABLES:
        path = Path(rest).expanduser()
        if not path.is_file():
            raise DataError(f"data {name!r} must name a file that exists; got {rest!r}. Check the path.")
        return _TABLES[kind](name, path, opening.label_column)
    return load_dataset(f"{kind}{colon}{rest}")


def _kind(name: str) -> tuple[str, str, str]:
    kind, colon, rest = name.partition(":")
    path = Path(name).expanduser()
    if path.is_dir() and kind not in DATA_SETS:
        return "image-folder", ":", name
    if path.is_file() and path.suffix[1:] in _TABLES:
        return path.suffix[1:], ":", name
    return kind, colon, rest

"""Image classification data through the ``datasets`` library, by name or from a local path."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessprobe.errors import DataError, UnsupportedError
from hessprobe.training.datasets import pictures
from hessprobe.training.datasets.base import DataSet, Report, every_fifth_of_each_class, image_set
from hessprobe.training.datasets.pictures import remembered

HELD_OUT = ("test", "validation", "valid", "val")
_LABELS = ("label", "labels", "fine_label", "target")
# What ``save_to_disk`` leaves in a folder.
_SAVED = ("dataset_dict.json", "state.json")


def load_hub(name: str, source: str, report: Report, size: int | None = None) -> DataSet:
    """Return a data set with an image and a class column, decoded once, scaled to ``size`` and kept in the cache.

    A held-out split (``test``, or else ``validation``) is used as it is; without one every fifth image of a class is
    held out. A local path (of ``save_to_disk``, or a folder that ``datasets.load_dataset`` reads) needs no network.

    Raises:
        UnsupportedError: the library is not installed.
        DataError: it cannot be loaded, or has no image or class column.
    """
    splits = load_splits(source)
    if "train" not in splits:
        raise DataError(f"{source} must have a split 'train'; got {', '.join(map(str, splits))}. Choose other data.")
    held_out = next((split for split in HELD_OUT if split in splits), None)
    parts = [splits["train"], *([splits[held_out]] if held_out else [])]
    # The library's own fingerprint of what it loaded: it changes with the content and with every transformation.
    marks = ["hf" if size is None else f"hf {size}", *(str(part._fingerprint) for part in parts)]
    key = hashlib.sha256("\n".join(marks).encode()).hexdigest()
    kept = remembered(key, lambda: _decode_all(source, parts, report, size))
    return image_set(name, kept["images"], kept["labels"], kept["test"], int(kept["labels"].max()) + 1)


def load_splits(source: str) -> dict[str, Any]:
    """Return the splits of a data set by name, or of a local path, through the library ``datasets``.

    Raises:
        UnsupportedError: the library is not installed.
        DataError: it cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise UnsupportedError(
            f"data 'hf:{source}' needs the package datasets. Install it with: pip install datasets"
        ) from error
    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    # Without a network it tells of each of its five tries.
    speaker = logging.getLogger("huggingface_hub")
    level = speaker.level
    speaker.setLevel(logging.ERROR)
    try:
        saved = any((Path(source) / each).is_file() for each in _SAVED)
        loaded: Any = datasets.load_from_disk(source) if saved else datasets.load_dataset(source)
    except Exception as error:
        reason = (str(error).splitlines()[0] if str(error) else type(error).__name__).rstrip(".")
        raise DataError(
            f"data 'hf:{source}' cannot be loaded: {reason}. Check the name or path; a name needs the network."
        ) from error
    finally:
        speaker.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _decode_all(source: str, parts: list[Any], report: Report, size: int | None) -> dict[str, Tensor]:
    image, label = _columns(source, parts[0])
    arrays: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    names: list[str] = []
    labels: list[int] = []
    total = sum(len(part) for part in parts)
    for number, part in enumerate(parts):
        for row in range(len(part)):
            if not len(arrays) % 500:
                report("decoding images", len(arrays), total, f"{len(arrays):,}")
            names.append(f"{source} row {row} of part {number}")
            try:
                example = part[row]
                arrays.append(pictures.to_array(example[image], size))
            except (OSError, ValueError, SyntaxError, AttributeError) as error:
                raise DataError(f"{names[-1]} cannot be read as an image ({error}). Repair the data.") from error
            labels.append(int(example[label]))
    targets = torch.tensor(labels)
    if not len(targets) or int(targets.min()) < 0:
        raise DataError(f"{source} must have classes numbered from 0; got unlabelled rows. Choose labelled data.")
    trained = len(parts[0])
    test = torch.arange(trained, total) if len(parts) > 1 else every_fifth_of_each_class(targets)
    return {"images": pictures.stack(arrays, names), "labels": targets, "test": test}


def _columns(source: str, part: Any) -> tuple[str, str]:
    kinds = {column: type(feature).__name__ for column, feature in part.features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    classes = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    named = [column for column in _LABELS if column in kinds]
    labels = [column for column in named if column in classes] or classes or named
    if not images or not labels:
        listed = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
        raise DataError(f"{source} must have a column of images and one of classes; got {listed}. Choose other data.")
    return images[0], labels[0]

"""``--data`` by its kinds: files of other programs, and the data sets of hessprobe."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from hessprobe import checks
from hessprobe.errors import DataError
from hessprobe.models import images, language, tables
from hessprobe.models.images import AS_THEY_ARE, Examples, Usual, of_data_set
from hessprobe.models.spec import Opening
from hessprobe.training.datasets import KINDS as DATA_SETS
from hessprobe.training.datasets import DataSet, load_dataset

_OWN = ", ".join(DATA_SETS.values())
KINDS = f"npz:FILE, csv:FILE, jsonl:FILE, a FOLDER of class folders, torchvision:CLASS?root=FOLDER, {_OWN}"
_TABLES = {"npz": tables.load_npz, "csv": tables.load_csv}
_ENDINGS = {".txt": "text", ".md": "text", ".json": "jsonl"}
_IMAGES = ("image_size", "normalize")
_TEXTS = ("text_column", "label_column", "tokenizer", "context", "pack")
_WHAT = {
    **dict.fromkeys(_IMAGES, "images"),
    "text_column": "texts, for networks of transformers",
    "label_column": "targets in a column or array, or beside texts",
    "tokenizer": "texts, for networks of transformers",
    "context": "texts, for networks of transformers",
    "pack": "rows of texts, for causal and masked language models",
}


def is_data_set(name: str) -> bool:
    """Return whether a name is that of a data set of hessprobe."""
    return name.partition(":")[0] in DATA_SETS


def load(name: str, opening: Opening, usual: Usual = AS_THEY_ARE) -> tuple[Examples | DataSet, tuple[str, ...]]:
    """Return labelled examples by name.

    Args:
        name: see ``KINDS``; a file or folder may stand without its kind where its ending says it.
        opening: names of columns, sizes of images and the like.
        usual: how the network expects its images.

    Returns:
        The data, and what a reader should know of how images were made.

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
        return _TABLES[kind](name, path, opening.label_column), _idle(opening, ("label_column",))
    if kind in images.KINDS:
        pictures, said = images.load_images(kind, rest, name, opening, usual)
        return pictures, (*said, *_idle(opening, _IMAGES))
    # A size is refused where the data have their own.
    return load_dataset(f"{kind}{colon}{rest}", image_size=opening.image_size), _idle(opening, ("image_size",))


def load_for(model: nn.Module, folder: str, task: str, name: str, opening: Opening) -> Examples:
    """Return labelled examples as a network of transformers takes them.

    Args:
        model: the network.
        folder: where its tokenizer is, unless ``opening`` names another.
        task: one of ``TASKS``.
        name: ``text:FILE``, ``jsonl:FILE``, ``csv:FILE`` or ``hf:PATH[:split]``.
        opening: columns, tokenizer, context, packing.

    Raises:
        ValueError: another kind, or an option outside its range.
        DataError: the path is missing, or what is there cannot be used.
        CheckpointError: there is no tokenizer.
    """
    kind, _, rest = _kind(name)
    if task == "image-classification":
        checks.one_of(f"data for the task {task}: KIND", kind, images.KINDS)
        pictures, said = images.load_images(kind, rest, name, opening, images.usual_of("transformers", model, folder))
        found = of_data_set(pictures, "image")
        named: Any = {str(getattr(model, "main_input_name", "pixel_values")): found.inputs}
        return replace(found, inputs=named, notes=(*said, *found.notes, *_idle(opening, _IMAGES)))
    checks.one_of(f"data for the task {task}: KIND", kind, tables.KINDS)
    texts = tables.read_rows(kind, rest, name)
    needed = language.needs_tokens(texts)
    reader = language.open_reader(model.config, folder, task, opening, needed=needed)
    found = language.read_examples(texts, reader)
    return replace(found, notes=(*found.notes, *_idle(opening, _used_of_texts(texts, task, needed=needed))))


def _used_of_texts(texts: tables.Rows, task: str, *, needed: bool) -> tuple[str, ...]:
    """Return the options that rows of texts, or of tokens where no tokenizer is needed, are read by."""
    language_model = task in ("causal-lm", "masked-lm")
    used = ["context"]
    used += ["tokenizer", "text_column"] if needed else []
    used += [] if language_model else ["label_column"]
    # A text file is joined without being asked.
    used += ["pack"] if language_model and not texts.stream else []
    return tuple(used)


def _idle(opening: Opening, used: Container[str]) -> tuple[str, ...]:
    """Return a sentence for each option of how data are read that was given and that these data do not use."""
    given = [option for option in (*_IMAGES, *_TEXTS) if getattr(opening, option) and option not in used]
    return tuple(f"--{option.replace('_', '-')} has no effect here; it is for {_WHAT[option]}" for option in given)


def _kind(name: str) -> tuple[str, str, str]:
    kind, colon, rest = name.partition(":")
    path = Path(name).expanduser()
    if path.is_dir() and kind not in DATA_SETS:
        return "image-folder", ":", name
    ending = _ENDINGS.get(path.suffix, path.suffix[1:])
    if path.is_file() and ending in (*_TABLES, *tables.KINDS):
        return ending, ":", name
    return kind, colon, rest

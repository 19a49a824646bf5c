"""How ``--model`` names a network: ``KIND:NAME[?key=value&...]``. Nothing here imports torch.

What the command line says about files of other libraries, beside their names. Nothing here imports torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Libraries that are named before the colon; everything else before it is a module or a file.
LIBRARIES = ("torchvision", "timm", "transformers", "peft")
ZOO = "zoo"
# The networks of hessprobe itself, by which a text without a library is told from a module.
ZOO_NAMES = ("mlp", "cnn", "resnet", "resnet18", "wide-resnet", "vgg", "vit", "gpt")
SHAPE = (
    "NAME[:key=value,...] of hessprobe, torchvision:NAME, timm:NAME, transformers:FOLDER, peft:FOLDER, "
    "package.module:factory or file.py:factory, the last ones with ?key=value&..."
)


@dataclass(frozen=True)
class ModelSpec:
    """What a text of ``--model`` says.

    Attributes:
        text: as it was written.
        kind: ``"zoo"``, one of ``LIBRARIES``, ``"file"`` or ``"module"``.
        place: the file or the dotted module, empty for the other kinds.
        name: the model, the folder, or the function inside ``place``.
        arguments: keyword arguments of the constructor.
    """

    text: str
    kind: str
    name: str
    place: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)


def parse_spec(text: str) -> ModelSpec:
    """Return what ``text`` names.

    Args:
        text: see ``SHAPE``. Values are read as JSON where they are JSON, ``128-64`` as a list, else as texts.

    Raises:
        ValueError: an argument without ``=``, or nothing behind a colon.
    """
    head, colon, rest = text.partition(":")
    if head in LIBRARIES:
        name, arguments = _query(text, rest)
        return ModelSpec(text, head, name, arguments=arguments)
    if head == ZOO and colon:
        return _zoo(text, rest)
    # A path may hold colons of its own (C:\\...), and arguments too; the name of a function holds none.
    body, question, query = text.partition("?")
    place, colon, name = body.rpartition(":")
    if colon and head not in ZOO_NAMES and (place.endswith(".py") or re.fullmatch(r"[A-Za-z_][\w.]*", place)):
        function, arguments = _query(text, name + question + query)
        return ModelSpec(text, "file" if place.endswith(".py") else "module", function, place, arguments)
    return _zoo(text, text)


def _zoo(text: str, rest: str) -> ModelSpec:
    name, _, listed = rest.partition(":")
    if name.endswith(".py"):
        raise ValueError(f"--model must name a function of the file; got {text!r}. Write {name}:FUNCTION.")
    return ModelSpec(text, ZOO, name, arguments=parse_pairs(text, listed, ",", "NAME or NAME:key=value,..."))


def _query(text: str, rest: str) -> tuple[str, dict[str, Any]]:
    name, _, listed = rest.partition("?")
    if not name:
        raise ValueError(f"--model must be {SHAPE}; got {text!r}. Add the name behind the colon.")
    return name, parse_pairs(text, listed, "&", "KIND:NAME or KIND:NAME?key=value&...")


def parse_pairs(text: str, listed: str, separator: str, shape: str) -> dict[str, Any]:
    """Return ``key=value`` pairs.

    Args:
        text: the whole, for messages.
        listed: the pairs.
        separator: between them.
        shape: how the whole is to be written, for messages.

    Raises:
        ValueError: a pair without ``=``.
    """
    arguments: dict[str, Any] = {}
    for item in filter(None, listed.split(separator)):
        key, equals, value = item.partition("=")
        if not (key.strip() and equals):
            raise ValueError(f"--model must be {shape}; got {item!r} in {text!r}.")
        arguments[key.strip()] = _value(value.strip())
    return arguments


def _value(text: str) -> Any:
    if re.fullmatch(r"\d+(-\d+)+", text):
        return [int(part) for part in text.split("-")]
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text


LOSSES = ("cross-entropy", "mse", "bce-logits", "nll", "l1", "huber", "model")
TASKS = (
    "causal-lm",
    "masked-lm",
    "seq2seq",
    "sequence-classification",
    "token-classification",
    "image-classification",
)
NORMALIZATIONS = ("imagenet", "cifar10", "cifar100", "mnist", "half", "own", "none")


@dataclass(frozen=True)
class Opening:
    """How files of other libraries are read; None where the file, the model or the program decides.

    Attributes:
        task: one of ``TASKS``.
        key: entry of the file that holds the weights.
        loss: one of ``LOSSES``, or ``module:function``, or ``file.py:function``.
        image_size: images are scaled to this shorter side and cut to a square of it, >= 1.
        normalize: one of ``NORMALIZATIONS``.
        text_column, label_column: names of columns, keys or arrays.
        tokenizer: folder of a tokenizer.
        context: tokens in an example, >= 2.
        pack: texts are joined and cut into examples of ``context`` tokens.
    """

    task: str | None = None
    key: str | None = None
    loss: str | None = None
    image_size: int | None = None
    normalize: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    tokenizer: str | None = None
    context: int | None = None
    pack: bool = False


AS_FOUND = Opening()

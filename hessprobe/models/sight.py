"""What a file or folder of weights is, and the command that measures it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hessprobe.errors import CheckpointError, UnsupportedError
from hessprobe.models import fitting
from hessprobe.models.files import ADAPTER_CONFIG, path_sha256, read_contents
from hessprobe.models.pretrained import CONFIG, kind_of_folder, read_config, task_of
from hessprobe.models.progress import read_progress
from hessprobe.training import models as zoo

# What stands for what only the reader knows.
YOUR_MODEL, YOUR_DATA = "file.py:factory", "npz:FILE"
_MODULES_SHOWN = 12
_DATA_OF_TASK = {
    "causal-lm": "text:FILE",
    "masked-lm": "text:FILE",
    "seq2seq": "jsonl:FILE",
    "sequence-classification": "jsonl:FILE",
    "token-classification": "jsonl:FILE",
    "image-classification": "FOLDER",
}


def describe_file(path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint of another program holds, and the command that measures it, for a reader and a record.

    Returns:
        ``path``, ``sha256``, ``format``; the ``entry`` and prefix of the weights where there is one, and other entries
        that hold tensors; ``tensors``, ``parameters`` (elements of all of them, buffers too), ``dtype``; ``modules``,
        elements by the first part of the names that tells them apart; ``step``, ``epoch``, ``lr`` where the checkpoint
        says them; ``model``, what fits as ``--model``; ``command``.

    Raises:
        CheckpointError: see ``read_contents``.
    """
    contents = read_contents(path)
    held = fitting.entries(contents.tree)
    if not held:
        raise CheckpointError(f"{path} holds no state_dict (names with tensors). Save model.state_dict() and load it.")
    label, tensors = fitting.main_entry(held)
    prefix, bare = _without_prefix(tensors)
    kinds = sorted({str(each.dtype).removeprefix("torch.") for each in tensors.values()})
    described: dict[str, Any] = {"path": str(path), "sha256": path_sha256(path), "format": contents.format}
    if label or prefix:
        described["entry"] = f"{label}/{prefix}" if label and prefix else label or prefix
    others = [each for each in held if each != label]
    if others:
        described["other_entries"] = ", ".join(others)
    described |= {
        "tensors": len(tensors),
        "parameters": sum(each.numel() for each in tensors.values()),
        "dtype": ", ".join(kinds),
        "modules": _by_module(bare),
    }
    progress = read_progress(path)
    said = {"step": progress.step, "epoch": progress.epoch, "lr": progress.lr}
    described |= {name: value for name, value in said.items() if value is not None}
    model, data, extra = _fitting_model(Path(path), contents.tree, bare)
    words = ["hessprobe", "measure", str(path), *([] if model is None else ["--model", model]), "--data", data, *extra]
    return {**described, "model": model or kind_of_folder(path), "command": shlex.join(words)}


def _fitting_model(path: Path, tree: Any, tensors: Mapping[str, Tensor]) -> tuple[str | None, str, list[str]]:
    """Return what goes behind ``--model`` (None for a folder that says it itself) and ``--data``, and more options."""
    kind = kind_of_folder(path)
    if kind is not None:
        config = read_config(path / (ADAPTER_CONFIG if kind == "peft" else CONFIG))
        return (None, *_data_of(config, kind, path))
    named = read_config(path / CONFIG).get("architecture") if path.is_dir() else None
    arch = named or (tree.get("arch") if isinstance(tree, Mapping) else None)
    if isinstance(arch, str) and arch:
        classes = _classes(tensors)
        return f"timm:{arch}" + (f"?num_classes={classes}" if classes else ""), "FOLDER", []
    own = _of_zoo(tensors) or _of_torchvision(tensors)
    return own or YOUR_MODEL, "FOLDER" if own and own.startswith("torchvision") else YOUR_DATA, []


def _data_of(config: dict[str, Any], kind: str, path: Path) -> tuple[str, list[str]]:
    if kind == "peft":
        return _DATA_OF_TASK.get("causal-lm", ""), []
    try:
        return _DATA_OF_TASK[task_of(config, str(path))], []
    except UnsupportedError:
        return "text:FILE", ["--task", "TASK"]


def _of_zoo(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the network of hessprobe whose tensors these are, with the sizes that they show."""
    linear = [tensor for name, tensor in tensors.items() if re.fullmatch(r"layers\.\d+\.weight", name)]
    if not linear or any(each.ndim != 2 for each in linear):
        return None
    hidden = [len(each) for each in linear[:-1]]
    arguments = {"in_features": linear[0].shape[1], "hidden": hidden, "n_classes": len(linear[-1])}
    try:
        fits = _same_state(zoo.build_model("mlp", arguments), tensors)
    except (TypeError, ValueError):
        fits = False
    return f"mlp:hidden={'-'.join(map(str, hidden))}" if fits and hidden else None


def _of_torchvision(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the classifier of torchvision whose tensors these are; None where it is not installed."""
    try:
        from torchvision import models as library
    except ImportError:
        return None
    classes = _classes(tensors)
    for name in library.list_models(module=library):
        options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        try:
            with torch.device("meta"):
                model = library.get_model(name, weights=None, num_classes=classes or 1000, **options)
        except NotImplementedError:
            # A network that computes with its own numbers while it is made (the RegNets) is not looked for.
            continue
        if _same_state(model, tensors):
            return f"torchvision:{name}" + (f"?num_classes={classes}" if classes != 1000 else "")
    return None


def _same_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return wanted == {name: tensor.shape for name, tensor in tensors.items()}


def _classes(tensors: Mapping[str, Tensor]) -> int | None:
    last = [tensor for name, tensor in tensors.items() if name.endswith(".weight") and tensor.ndim in (2, 4)]
    return len(last[-1]) if last else None


def _without_prefix(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Return the prefix of wrappers that all names share, and the tensors by the rest."""
    found = re.match(r"(?:(?:module|model|net|network|backbone)\.)+", next(iter(tensors)))
    prefix = found.group() if found else ""
    while prefix and not all(name.startswith(prefix) for name in tensors):
        prefix = prefix[: prefix[:-1].rfind(".") + 1]
    return prefix, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _by_module(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    depth = 1
    while True:
        sizes: dict[str, int] = {}
        for name, tensor in tensors.items():
            head = ".".join(name.split(".")[:-1][:depth]) or name
            sizes[head] = sizes.get(head, 0) + tensor.numel()
        deeper = max(name.count(".") for name in tensors) > depth
        if len(sizes) > 1 or not deeper:
            break
        depth += 1
    largest = sorted(sizes, key=lambda each: -sizes[each])[:_MODULES_SHOWN]
    kept = {name: size for name, size in sizes.items() if name in largest}
    rest = sum(sizes.values()) - sum(kept.values())
    return {**kept, **({"others": rest} if rest else {})}

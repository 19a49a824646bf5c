"""Checkpoints: one file that says what was trained, on what, how, and with what outcome."""

from __future__ import annotations

import copy
import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hessprobe import files
from hessprobe.errors import CheckpointError, PlainWeightsError
from hessprobe.objective import EmpiricalRisk
from hessprobe.training import models, weights
from hessprobe.training.datasets import batches, load_dataset, resolve_name
from hessprobe.training.dataspec import DataSpec
from hessprobe.training.evaluation import make_loss
from hessprobe.training.recipe import Recipe

FORMAT = "hessprobe.checkpoint"
VERSION = 2

WHOSE_WEIGHTS = (
    "Pass --model and --data: those of hessprobe by name, your own as --model FILE.py:FUNCTION --data npz:FILE; or "
    "--objective FILE.py:FUNCTION."
)

# Ten or more batches of a small data set: enough for the spread between batches to be an error bar.
RISK_BATCH_SIZE = 256

_KEYS: dict[str, type] = {
    "model": dict,
    "data": dict,
    "loss": str,
    "recipe": dict,
    "optimizer": dict,
    "metrics": dict,
    "state_dict": dict,
    "versions": dict,
}


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and what is known about it.

    Attributes:
        model: in evaluation mode, on the CPU.
        model_name, model_arguments: its entry in the model zoo.
        data: what it was trained on.
        loss: name of the training loss.
        recipe: how it was trained, as recorded; empty for weights from elsewhere.
        optimizer: ``{"name": ..., "state": ...}``, the state as ``torch.optim`` gives it.
        metrics: train/test loss and accuracy, history, curve, seconds.
        progress: where the run stood, for continuing it; empty once it is done.
        versions: of Python and libraries at training time.
        path, sha256: of the file; empty where there is none.
    """

    model: nn.Module
    model_name: str
    model_arguments: dict[str, Any]
    data: DataSpec
    loss: str = "cross-entropy"
    recipe: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    path: str = ""
    sha256: str = ""

    @property
    def n_parameters(self) -> int:
        """Number of trainable parameters, tied ones counted once."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def risk(
        self,
        split: str = "train",
        examples: int | None = None,
        batch_size: int = RISK_BATCH_SIZE,
        params: Any = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        batchnorm: str = "eval",
        seed: int = 0,
    ) -> EmpiricalRisk:
        """Return the mean training loss over data as a function of the parameters, ready to be measured.

        Args:
            split: ``"train"``, ``"test"`` or ``"all"``.
            examples: size of a random part of the split, >= 1; all of it by default.
            batch_size: examples a batch, >= 1; it changes cost and error bars, and not the quantity, as the losses of
                recipes are means over examples or tokens (but for ``batchnorm="batch"``).
            params: which parameters, as in ``EmpiricalRisk``.
            dtype: floating dtype of parameters and inputs; that of the model by default.
            device: where to compute; the CPU by default.
            batchnorm: as in ``EmpiricalRisk``.
            seed: which ``examples`` are drawn, >= 0.

        Raises:
            ValueError: an argument outside its range.
            CheckpointError: the data of this name are not those of the training.
        """
        inputs, labels = self.data.load().split(split, self.data.layout, examples=examples, seed=seed)
        place = torch.device(device or "cpu")
        model = self.model
        if dtype is not None or place.type != "cpu":
            model = copy.deepcopy(model).to(device=place, dtype=dtype)
        own = next((each.dtype for each in model.parameters()), inputs.dtype)
        inputs = inputs.to(own) if inputs.is_floating_point() else inputs
        parts = batches(inputs.to(place), labels.to(place), batch_size)
        return EmpiricalRisk(model, make_loss(self.loss, self.data.layout), parts, params, batchnorm=batchnorm)


def save_checkpoint(
    path: str | Path,
    *,
    model: nn.Module,
    model_name: str,
    model_arguments: Mapping[str, Any],
    data: DataSpec,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    metrics: Mapping[str, Any],
    progress: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint in one atomic step.

    Args:
        path: the file to write; its folder exists.
        model: trained; its weights are stored on the CPU.
        model_name: entry in the model zoo that builds ``model``.
        model_arguments: its arguments there, all of them.
        data: what it was trained on.
        recipe: how.
        optimizer: its state is stored.
        metrics: JSON-friendly.
        progress: where the run stands, of ``hessprobe.training.state.capture``; None for a finished one.

    Raises:
        ValueError: the folder is missing or cannot be written.

    Examples:
        >>> import tempfile, torch, hessprobe as hp
        >>> from pathlib import Path
        >>> from hessprobe.training import DataSpec, Recipe
        >>> from hessprobe.training.datasets import load_dataset
        >>> from hessprobe.training.models import build_model, complete_arguments
        >>> digits = load_dataset("digits")
        >>> arguments = complete_arguments("mlp", {"hidden": [4]}, digits.implied_arguments)
        >>> model = build_model("mlp", arguments)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = hp.save_checkpoint(
        ...         Path(folder) / "digits.pt",
        ...         model=model,
        ...         model_name="mlp",
        ...         model_arguments=arguments,
        ...         data=DataSpec("digits", "vector", digits.sha256),
        ...         recipe=Recipe(epochs=1),
        ...         optimizer=optimizer,
        ...         metrics={"train": {"loss": 2.3}},
        ...     )
        ...     stored = torch.load(path, weights_only=True)
        >>> stored["model"]["name"], stored["data"]["name"], stored["metrics"]
        ('mlp', 'digits', {'train': {'loss': 2.3}})
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": {"name": model_name, "arguments": dict(model_arguments)},
        "data": data.as_dict(),
        "loss": recipe.loss,
        "recipe": recipe.as_dict(),
        "optimizer": {"name": recipe.optimizer, "state": _on_cpu(optimizer.state_dict())},
        "metrics": dict(metrics),
        "progress": _on_cpu(dict(progress or {})),
        "state_dict": _on_cpu(dict(model.state_dict())),
        "versions": library_versions(),
    }
    target = files.check_output("path", path)
    files.write_atomically(target, lambda file: torch.save(content, file))
    return target


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Return the checkpoint in ``path``; code inside the file is never run.

    Raises:
        PlainWeightsError: the file holds nothing but weights.
        CheckpointError: the file is missing, damaged, not a hessprobe checkpoint, of a newer format, or its weights do
            not fit its model or are not finite.

    Examples:
        >>> import tempfile, torch, hessprobe as hp
        >>> from pathlib import Path
        >>> from hessprobe.training import DataSpec, Recipe
        >>> from hessprobe.training.datasets import load_dataset
        >>> from hessprobe.training.models import build_model, complete_arguments
        >>> digits = load_dataset("digits")
        >>> arguments = complete_arguments("mlp", {"hidden": [4]}, digits.implied_arguments)
        >>> model = build_model("mlp", arguments)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = hp.save_checkpoint(
        ...         Path(folder) / "digits.pt",
        ...         model=model,
        ...         model_name="mlp",
        ...         model_arguments=arguments,
        ...         data=DataSpec("digits", "vector", digits.sha256),
        ...         recipe=Recipe(epochs=1),
        ...         optimizer=optimizer,
        ...         metrics={"train": {"loss": 2.3}},
        ...     )
        ...     loaded = hp.load_checkpoint(path)
        >>> loaded.model_name, torch.equal(loaded.model.layers[0].weight, model.layers[0].weight)
        ('mlp', True)
    """
    source = weights.require_file(path)
    content = weights.read_torch_file(source)
    _require_format(content, source)
    content = migrate(content)
    spec = content["model"]
    try:
        model = models.build_model(spec["name"], spec["arguments"])
        data = DataSpec(**content["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source} names a model or data that this version cannot build: {error} Update hessprobe."
        ) from error
    weights.load_weights(model, content["state_dict"], str(source))
    return Checkpoint(
        model=model.eval(),
        model_name=spec["name"],
        model_arguments=spec["arguments"],
        data=data,
        path=str(source),
        sha256=file_sha256(source),
        **{key: content[key] for key in ("loss", "recipe", "optimizer", "metrics", "progress", "versions")},
    )


def foreign_checkpoint(
    path: str | Path,
    model_name: str,
    model_arguments: Mapping[str, Any],
    data: str,
    place: Callable[[nn.Module], None] | None = None,
) -> Checkpoint:
    """Return a plain state_dict as a checkpoint of a model and data named by the caller.

    Args:
        path: ``.pt`` or ``.safetensors`` file of named tensors.
        model_name: a name in the model zoo.
        model_arguments: those that differ from what the data and the defaults imply.
        data: name of a data set.
        place: copies the weights into the model, from wherever they stand in the file; by default they are all of it.

    Raises:
        CheckpointError: the file is missing, damaged, or its weights do not fit the model.
        ValueError: unknown model, argument or data.
    """
    context = model_arguments.get("context")
    content = load_dataset(data, context=context)
    arguments = models.complete_arguments(model_name, model_arguments, content.implied_arguments)
    model = models.build_model(model_name, arguments)
    layout = models.REGISTRY[model_name].layout
    content.require_layout(layout)
    spec = DataSpec(resolve_name(data), layout, content.sha256, context=context)
    if place is None:
        weights.load_weights(model, weights.read_state_dict(path), str(path))
    else:
        place(model)
    return Checkpoint(model.eval(), model_name, arguments, spec, path=str(path), sha256=file_sha256(path))


def is_checkpoint(path: str | Path) -> bool:
    """Return whether ``path`` holds a hessprobe checkpoint rather than plain weights.

    Raises:
        CheckpointError: missing, damaged, or a file that would run code.
    """
    if Path(path).suffix == ".safetensors":
        return False
    content = weights.read_torch_file(path)
    return isinstance(content, Mapping) and content.get("format") == FORMAT


def migrate(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a checkpoint of any earlier format in the present one.

    Format 1 had no ``progress``, and data without subset, label noise or context, whose defaults say the same.
    """
    return {"progress": {}, **content, "version": VERSION}


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def library_versions() -> dict[str, str]:
    """Return the versions that decide what is computed."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


def _require_format(content: Any, source: Path) -> None:
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        if weights.is_state_dict(content):
            raise PlainWeightsError(
                f"{source} is a plain state_dict: it does not say which model and data it belongs to. {WHOSE_WEIGHTS}"
            )
        raise CheckpointError(
            f"{source} is not a hessprobe checkpoint. Make one with 'hessprobe train', or pass --model and --data "
            "with a plain state_dict, or --objective file.py:function."
        )
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise CheckpointError(
            f"{source} has checkpoint format {version!r}, but this hessprobe reads up to {VERSION}. Update hessprobe."
        )
    for key, kind in _KEYS.items():
        if not isinstance(content.get(key), kind):
            raise CheckpointError(f"{source} has no usable entry {key!r}. Save it again with save_checkpoint.")


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_on_cpu(item) for item in value]
    return value

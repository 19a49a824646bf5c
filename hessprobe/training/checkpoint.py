"""Checkpoints: one file that says what was trained, on what, how, and with what outcome.

- state dicts: reading them from files without running code, and fitting them into a model;
- files of ``torch.save`` before anything in them is read: whole, and no larger inside than out;
- stored tensors that can be the weights of a model: plain numbers of its kind, all of them there;
- which data a checkpoint was trained on, so that they can be had again.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import pickle
import platform
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hessprobe import files
from hessprobe.errors import CheckpointError, PlainWeightsError, UnsupportedError
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.base import make_loss
from hessprobe.objective.preconditioner import Preconditioner, of_state
from hessprobe.training import models
from hessprobe.training.building import parameter_names
from hessprobe.training.datasets import DataSet, batches, load_dataset, resolve_name
from hessprobe.training.datasets.base import Report
from hessprobe.training.optimizers import BASES
from hessprobe.training.recipe import Recipe
from hessprobe.vectors import ParameterLayout

# torch.save compresses nothing; a file packed by hand may shrink by a few times, weights hardly at all.
_EXPANSION = 20
_SMALL = 2**26
# What describes the tensors: names, shapes, settings.
_LARGEST_PICKLE = 2**28


def require_sound(source: Path) -> None:
    """Refuse a zip archive with a wrong checksum, or one that would unpack to many times its size.

    ``torch.load`` compares no checksums: without this a flipped bit in a weight would be measured. Files that are no
    zip archives (the format before torch 1.6) have none, and pass.

    Raises:
        CheckpointError: names the entry.
    """
    if not zipfile.is_zipfile(source):
        return
    try:
        with zipfile.ZipFile(source) as archive:
            _require_size(source, archive.infolist())
            damaged = archive.testzip()
    except CheckpointError:
        raise
    except Exception as error:
        # zlib, lzma and bz2 have errors of their own beside those of zipfile.
        raise CheckpointError(f"{source} is damaged: {error}. Copy or save it again.") from error
    if damaged is not None:
        raise CheckpointError(f"{source} is damaged: the checksum of {damaged} is wrong. Copy or save it again.")


def _require_size(source: Path, entries: list[zipfile.ZipInfo]) -> None:
    size, inside = source.stat().st_size, sum(entry.file_size for entry in entries)
    if inside > _SMALL and inside > _EXPANSION * size:
        raise CheckpointError(
            f"{source} would unpack from {size / 1e6:.3g} MB to {inside / 1e6:.3g} MB, which no weights do. "
            "Save it again with torch.save."
        )
    for entry in entries:
        if entry.filename.endswith("data.pkl") and entry.file_size > _LARGEST_PICKLE:
            raise CheckpointError(
                f"{source} describes its tensors in {entry.file_size / 1e6:.3g} MB, more than any model needs. "
                "Save the model's state_dict alone."
            )


_KEPT = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def require_numbers(name: str, given: Tensor, wanted: Tensor, source: str) -> None:
    """Refuse a stored tensor that copying into the model would turn into other numbers, or that has none.

    Args:
        name: of the tensor.
        given: from the file, of the shape of ``wanted``.
        wanted: of the model.
        source: what to call the file in a message.

    Raises:
        CheckpointError: sparse, quantised, without data (meta), expanded from fewer numbers, or of a dtype that is not
            that of weights (integers, booleans, complex numbers, float8).
    """
    kind = str(given.dtype).removeprefix("torch.")
    if given.is_meta:
        problem, mend = "without data (a meta tensor)", "Load the weights before saving"
    elif given.is_quantized:
        problem, mend = f"quantised ({kind})", "Save the weights before quantisation, or dequantize() them"
    elif given.layout != torch.strided:
        problem, mend = f"sparse ({str(given.layout).removeprefix('torch.')})", "Save to_dense() of it"
    elif given.numel() * given.element_size() > given.untyped_storage().nbytes():
        problem, mend = "expanded from fewer numbers", "Save a contiguous() copy of it"
    elif wanted.is_floating_point() and given.dtype not in _KEPT:
        problem, mend = f"as {kind}", "Convert it to a floating-point dtype that holds what the model used"
    elif not wanted.is_floating_point() and given.is_floating_point() | given.is_complex():
        problem, mend = f"as {kind}, where the model counts in {str(wanted.dtype).removeprefix('torch.')}", "Convert it"
    else:
        return
    raise CheckpointError(f"{source} has {name} {problem}, which cannot be measured as it is. {mend}.")


def widen(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Make ``model`` float64 where its weights are stored so; others are measured in its own dtype."""
    floating = [state_dict[name].dtype for name, _ in model.named_parameters() if name in state_dict]
    if torch.float64 in floating:
        model.double()


# Where trainers put the weights inside a larger dictionary, and what wrappers put before every name.
_WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_NAMES_SHOWN = 3


def read_torch_file(path: str | Path, harmless: Sequence[Any] = (), *, mapped: bool = False) -> Any:
    """Return the content of a file written by ``torch.save``, on the CPU; no code in it is ever run.

    Args:
        path: the file.
        harmless: classes beyond those of ``weights_only`` that may be made, as ``torch.serialization.safe_globals``
            takes them.
        mapped: leaves the tensors on the disk until they are used; the file is a zip archive, as of today's torch.

    Raises:
        CheckpointError: missing, a folder, unreadable, damaged, or holding Python objects that loading would have to
            run code for.
    """
    source = require_file(path)
    require_sound(source)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(harmless)):
            # torch warns about pickle protocols of foreign files; whether they can be read shows below.
            warnings.simplefilter("ignore")
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped or None)
    except pickle.UnpicklingError as error:
        culprit = _global_in(str(error))
        if culprit is None:
            raise CheckpointError(f"{source} is damaged or not a PyTorch file. Copy or save it again.") from error
        raise CheckpointError(
            f"{source} holds a Python object ({culprit}), which could run code when loaded; nothing was run. "
            "Save the model's state_dict alone and load that: torch.save(model.state_dict(), 'weights.pt')."
        ) from error
    except Exception as error:
        # Damaged bytes are taken for instructions of the reader, and raise whatever these raise.
        if isinstance(error, PermissionError):
            raise CheckpointError(f"{source} cannot be read: {error.strerror}. Check its permissions.") from error
        raise CheckpointError(
            f"{source} is truncated, damaged or not a PyTorch file. Copy or save it again."
        ) from error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the named tensors of a ``.pt`` or ``.safetensors`` file, without the prefixes of DDP and torch.compile.

    A dictionary that holds the weights under ``state_dict``, ``model_state_dict`` or ``model`` is understood.

    Raises:
        CheckpointError: see ``read_torch_file``; or the file holds no named tensors.
        UnsupportedError: a ``.safetensors`` file where the package safetensors is not installed.
    """
    source = require_file(path)
    content = read_safetensors(source) if source.suffix == ".safetensors" else read_torch_file(source)
    for key in _WRAPPER_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not is_state_dict(content):
        raise CheckpointError(
            f"{source} holds no state_dict (names with tensors). Save model.state_dict() and load it."
        )
    return {_bare(name): tensor for name, tensor in content.items()}


def is_state_dict(content: Any) -> bool:
    """Return whether ``content`` is a non-empty mapping from names to tensors."""
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Copy ``state_dict`` into ``model``, in place, after checking that it fits; float64 weights make it float64.

    Args:
        model: its own state names and shapes are what is required.
        state_dict: one tensor a name.
        source: what to call the weights in a message.

    Raises:
        CheckpointError: missing or unexpected names, a tensor of another shape, one that holds no weights (see
            ``require_numbers``), or nan or inf in a tensor; the message names the tensor. The model is then unchanged.
    """
    wanted = model.state_dict()
    _require_fitting(wanted, state_dict, source)
    for name, tensor in wanted.items():
        given = state_dict[name]
        require_numbers(name, given, tensor, source)
        if given.is_floating_point() and not bool(torch.isfinite(given).all()):
            count = int((~torch.isfinite(given)).sum())
            raise CheckpointError(
                f"{source} has nan or inf in {count} of the {given.numel()} entries of {name}. "
                "Its training diverged; take an earlier checkpoint."
            )
    widen(model, state_dict)
    model.load_state_dict(dict(state_dict))


def _require_fitting(wanted: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], source: str) -> None:
    missing = [name for name in wanted if name not in state_dict]
    unexpected = [name for name in state_dict if name not in wanted]
    if missing or unexpected:
        words = [
            f"{kind} {_listed(names)}" for kind, names in (("lacks", missing), ("has unknown", unexpected)) if names
        ]
        raise CheckpointError(f"{source} {' and '.join(words)}. Check that it belongs to this model and its arguments.")
    for name, tensor in wanted.items():
        given = state_dict[name]
        if not isinstance(given, Tensor):
            raise CheckpointError(
                f"{source} has a {type(given).__name__} as {name}, where the model has a tensor. Save it again."
            )
        if given.shape != tensor.shape:
            raise CheckpointError(
                f"{source} has {name} of shape {tuple(given.shape)}, but the model has {tuple(tensor.shape)}. "
                "Check the model's arguments."
            )


def require_file(path: str | Path) -> Path:
    """Return ``path`` if it is an existing file.

    Raises:
        CheckpointError: nothing is there, or a folder, a pipe or a device.
    """
    source = Path(path)
    if source.is_dir():
        raise CheckpointError(f"{source} is a folder, not a checkpoint. Give the file inside it.")
    if not source.exists():
        raise CheckpointError(f"{source} does not exist. Check the path.")
    if not source.is_file():
        raise CheckpointError(f"{source} is a pipe or a device, not a file. Write the checkpoint to a file first.")
    if not os.path.getsize(source):
        raise CheckpointError(f"{source} is empty. Copy or save it again.")
    return source


def read_safetensors(source: Path) -> Mapping[str, Tensor]:
    """Return the named tensors of a file of safetensors.

    Raises:
        CheckpointError: truncated or of another format.
        UnsupportedError: the package is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UnsupportedError(
            f"{source} needs the package safetensors. Install it with: pip install safetensors"
        ) from error
    try:
        tensors: Mapping[str, Tensor] = load_file(source)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, TypeError, MemoryError) as error:
        raise CheckpointError(f"{source} is truncated or not a safetensors file. Copy or save it again.") from error
    return tensors


def _global_in(message: str) -> str | None:
    found = re.search(r"GLOBAL ([\w.]+)", message)
    found = found or re.search(r"(?:Unsupported (?:global|class|operand)|class) ([\w.]+\.[\w.]+)", message)
    return found.group(1) if found else None


def _bare(name: str) -> str:
    for prefix in _WRAPPER_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"


@dataclass(frozen=True)
class DataSpec:
    """Which data a checkpoint was trained on.

    Attributes:
        name: a name that ``load_dataset`` takes; paths in it are absolute.
        layout: how the model takes its inputs, ``"vector"``, ``"image"`` or ``"tokens"``.
        sha256: content hash of the data as trained on; empty where it is not known (weights from elsewhere).
        subset: share of the training examples of every class that were kept.
        label_noise: share of the training labels that were made wrong.
        seed: which examples and labels.
        context: characters in an example of text; None for images, or where it is the usual one.
    """

    name: str
    layout: str
    sha256: str = ""
    subset: float = 1.0
    label_noise: float = 0.0
    seed: int = 0
    context: int | None = None

    def __post_init__(self) -> None:
        for name in ("name", "layout", "sha256"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"the {name} of data must be a text; got {type(value).__name__}.")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-friendly values."""
        return dataclasses.asdict(self)

    def load(self, report: Report | None = None) -> DataSet:
        """Return the data set, after comparing its content with the hash.

        Args:
            report: told how far decoding is.

        Raises:
            ValueError: unknown data set.
            DataError: its files are missing or cannot be read.
            CheckpointError: the data set of this name has other content now.
        """
        data = load_dataset(
            self.name,
            context=self.context,
            part=self.subset,
            label_noise=self.label_noise,
            seed=self.seed,
            report=report,
        )
        if self.sha256 and data.sha256 != self.sha256:
            raise CheckpointError(
                f"The checkpoint was trained on data {self.name!r} with hash {self.sha256[:12]}, but here they hash to "
                f"{data.sha256[:12]}. Install the version of the data's package, or restore the files, that it was "
                "trained with."
            )
        return data


FORMAT = "hessprobe.checkpoint"
VERSION = 2

WHOSE_WEIGHTS = (
    "Pass --model and --data: those of hessprobe by name, your own as --model FILE.py:FUNCTION --data npz:FILE; or "
    "--objective FILE.py:FUNCTION."
)

# Arguments of models that are numbers of layers, each of which has tensors; so few are built at once.
_DEPTHS = frozenset({"blocks", "depth", "layers", "stages"})
_FEW = 64

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
        risk = EmpiricalRisk(model, make_loss(self.loss, self.data.layout), parts, params, batchnorm=batchnorm)
        state = self.optimizer.get("state")
        # What every state of Adam has, and few others.
        if isinstance(state, Mapping) and "betas" in (state.get("param_groups") or [{}])[0]:
            risk.preconditioner = partial(self._preconditioner, state, risk.layout)
        return risk

    def _preconditioner(self, state: Mapping[str, Any], layout: ParameterLayout) -> Preconditioner | None:
        names = parameter_names(str(self.recipe.get("decay", "all")), self.model)
        return of_state(state, names, layout, ascent=self.recipe.get("optimizer") not in BASES)


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
    source = require_file(path)
    content = read_torch_file(source)
    _require_format(content, source)
    content = migrate(content)
    spec = content["model"]
    try:
        _require_modest(spec["arguments"], content["state_dict"], source)
        # Before memory is asked for.
        _require_fitting(_shapes(spec["name"], spec["arguments"]), content["state_dict"], str(source))
        model = models.build_model(spec["name"], spec["arguments"])
        data = DataSpec(**content["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source} names a model or data that this version cannot build: {error} Update hessprobe."
        ) from error
    load_weights(model, content["state_dict"], str(source))
    return Checkpoint(
        model=model.eval(),
        model_name=spec["name"],
        model_arguments=spec["arguments"],
        data=data,
        path=str(source),
        sha256=file_sha256(source),
        **{key: content[key] for key in ("loss", "recipe", "optimizer", "metrics", "progress", "versions")},
    )


def _require_modest(arguments: Mapping[str, Any], state_dict: Mapping[str, Tensor], source: Path) -> None:
    """Refuse to build more layers than the file has tensors for, which would take minutes only to be refused.

    Raises:
        CheckpointError: names the argument.
    """
    if not isinstance(arguments, Mapping):
        raise CheckpointError(
            f"{source} must have the arguments of its model by name; got {type(arguments).__name__}. Save it again "
            "with save_checkpoint."
        )
    most = max(len(state_dict), _FEW)
    for name, value in arguments.items():
        count = value if name in _DEPTHS else len(value) if isinstance(value, (list, tuple)) else 0
        if isinstance(count, int) and count > most:
            raise CheckpointError(
                f"{source} asks for {count:,} layers ({name}), and has {len(state_dict)} tensors. Save it again with "
                "save_checkpoint."
            )


def _shapes(name: str, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state of a model without its numbers.

    Raises:
        KeyError, TypeError, ValueError: see ``build_model``; or sizes beyond what can be counted.
    """
    try:
        with torch.device("meta"):
            return dict(models.build_model(name, arguments).state_dict())
    except RuntimeError as error:
        raise ValueError(f"{error}.") from error


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
        load_weights(model, read_state_dict(path), str(path))
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
    content = read_torch_file(path)
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
        if is_state_dict(content):
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

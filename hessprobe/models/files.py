"""What a file or folder of weights holds, whoever wrote it; code inside it is never run.

Folders of ``torch.distributed.checkpoint``: their tensors alone, and nothing that would have to be run.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import hashlib
import importlib
import json
import pathlib
import pickle
import struct
import types
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessprobe.errors import CheckpointError
from hessprobe.training import checkpoint

# What the description of such a folder is made of: values, and nothing that does anything.
_MODULE = "torch.distributed.checkpoint"
_METADATA = (
    "_MEM_FORMAT_ENCODING",
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "Metadata",
    "MetadataIndex",
    "StorageMeta",
    "TensorProperties",
    "TensorStorageMetadata",
)
_KNOWN = frozenset(
    {
        *((f"{_MODULE}.metadata", name) for name in _METADATA),
        (f"{_MODULE}.filesystem", "_StorageInfo"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),
    }
)


class _Restricted(pickle.Unpickler):
    """Makes the values above and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that holds values.

        Raises:
            pickle.UnpicklingError: it is not one of them.
        """
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or (module, name) in _KNOWN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder of ``torch.distributed.checkpoint`` by their full names, on the CPU.

    Its description is read by an unpickler that knows the classes of such descriptions only; other objects in the
    folder (the state of a scheduler) are not read at all.

    Raises:
        CheckpointError: damaged, incomplete, or a description that would run code.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with (folder / ".metadata").open("rb") as file:
            described = _Restricted(file).load()
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{folder} holds a Python object ({error}) in its .metadata, which could run code when loaded; nothing was "
            "run. Convert it where it was made: python -m torch.distributed.checkpoint.format_utils dcp_to_torch."
        ) from error
    except (OSError, EOFError, ValueError, AttributeError, TypeError, IndexError, KeyError, ImportError) as error:
        raise CheckpointError(f"{folder} has a damaged .metadata ({error}). Copy the whole folder again.") from error
    entries = described.state_dict_metadata if isinstance(described, Metadata) else {}
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    if not tensors:
        raise CheckpointError(f"{folder} holds no tensors. Save the state_dict of the model in it.")
    try:
        with warnings.catch_warnings():
            # It warns that no process group is there, which is what is wanted.
            warnings.simplefilter("ignore")
            load(tensors, storage_reader=FileSystemReader(folder), no_dist=True)
    except Exception as error:
        raise CheckpointError(
            f"{folder} cannot be read whole ({type(error).__name__}). Copy the folder again with all of its parts."
        ) from error
    return tensors


ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".tar")
ADAPTER_CONFIG = "adapter_config.json"

# Files of weights inside a folder, the ones that win first; an index lists the parts of a sharded model.
_IN_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "adapter_model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "adapter_model.bin",
)
_DISTRIBUTED = ".metadata"

_SAVE_AGAIN = "Where it was made: torch.save(model.state_dict(), 'weights.pt'); then name that file."
_FOREIGN_FORMATS = {
    ".onnx": "ONNX",
    ".h5": "Keras",
    ".keras": "Keras",
    ".msgpack": "Flax",
    ".gguf": "GGUF",
    ".tflite": "TensorFlow Lite",
    ".pb": "TensorFlow",
}


def _text(*arguments: Any) -> str:
    """Stands for an enumeration: the value it was written with."""
    return "".join(map(str, arguments))


# NumPy 2 has moved it.
_MULTIARRAY = importlib.import_module("numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray")

# Names that frameworks leave beside the weights. Every one is a class that only holds values, or is replaced by one
# of this file that does, so that not even their constructors run.
_HARMLESS: tuple[Any, ...] = (
    (argparse.Namespace, "argparse.Namespace"),
    (types.SimpleNamespace, "types.SimpleNamespace"),
    (collections.defaultdict, "collections.defaultdict"),
    (collections.Counter, "collections.Counter"),
    *((kind, f"builtins.{kind.__name__}") for kind in (int, float, str, list, dict, set, bool, complex)),
    *((kind, f"datetime.{kind.__name__}") for kind in (datetime.datetime, datetime.timedelta, datetime.date)),
    *(
        (pathlib.PurePosixPath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path")
    ),
    *(
        (dict, f"{module}.AttributeDict")
        for module in (
            "lightning_fabric.utilities.data",
            "lightning.fabric.utilities.data",
            "pytorch_lightning.utilities.parsing",
        )
    ),
    *(
        (_text, f"transformers.{name}")
        for name in (
            "trainer_utils.IntervalStrategy",
            "trainer_utils.SaveStrategy",
            "trainer_utils.SchedulerType",
            "trainer_utils.HubStrategy",
            "training_args.OptimizerNames",
        )
    ),
    *((kind, f"numpy.dtypes.{name}") for name, kind in vars(np.dtypes).items() if isinstance(kind, type)),
    (np.dtype, "numpy.dtype"),
    (np.ndarray, "numpy.ndarray"),
    *(
        (getattr(_MULTIARRAY, name), f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
)


@dataclass(frozen=True)
class Contents:
    """What stands in a file or folder of weights.

    Attributes:
        path: that was read.
        format: what wrote it, for a reader.
        tree: tensors by name, or a dictionary that holds such dictionaries beside other things.
        files: those whose bytes were read, for the hash.
    """

    path: Path
    format: str
    tree: Any
    files: tuple[Path, ...]

    def sha256(self) -> str:
        """Return the hash of the bytes of the file, or of the names and hashes of several."""
        hashes = [file_sha256(file) for file in self.files]
        if len(hashes) == 1:
            return hashes[0]
        named = "\n".join(f"{file.name} {digest}" for file, digest in zip(self.files, hashes, strict=True))
        return hashlib.sha256(named.encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_contents(path: str | Path) -> Contents:
    """Return what stands in a file or folder of weights.

    Understood are files of ``torch.save`` (of Lightning, DeepSpeed and timm too) and of safetensors; folders of
    ``save_pretrained`` and of the ``Trainer``, whole or in parts with an index; and folders of
    ``torch.distributed.checkpoint``. Of classes outside PyTorch only those are made that hold values and nothing else,
    by name (``argparse.Namespace``, the hyper-parameters of Lightning, paths, dates, numbers and arrays of NumPy).

    Raises:
        CheckpointError: nothing there, damaged, a format of another library, a network that was saved whole or as
            TorchScript, or a file that would run code; says how to save it again.
        UnsupportedError: the package safetensors is needed and not installed.
    """
    source = Path(path)
    if source.is_dir():
        return _read_folder(source)
    checkpoint.require_file(source)
    if source.suffix.lower() in _FOREIGN_FORMATS:
        kind = _FOREIGN_FORMATS[source.suffix.lower()]
        raise CheckpointError(f"{source} is a file of {kind}, not of PyTorch. Convert it to a state_dict first.")
    if source.suffix == ".safetensors":
        return Contents(source, "safetensors", checkpoint.read_safetensors(source), (source,))
    _refuse_programs(source)
    tree = checkpoint.read_torch_file(source, _HARMLESS)
    return Contents(source, _format_of(tree), tree, (source,))


def read_settings(path: str | Path) -> Any:
    """Return what stands in a file of ``torch.save``, its tensors left on the disk until they are used.

    Raises:
        CheckpointError: see ``read_contents``.
    """
    return checkpoint.read_torch_file(path, _HARMLESS, mapped=zipfile.is_zipfile(path))


def path_sha256(path: str | Path) -> str:
    """Return the hash of a checkpoint: of the file, or of the files of weights in the folder.

    Raises:
        CheckpointError: the folder holds none.
    """
    place = Path(path)
    if place.is_file():
        return file_sha256(place)
    files = tuple(sorted(place.glob("*.distcp"))) if is_distributed(place) else weight_files(place)
    if not files:
        raise CheckpointError(f"{place} is a folder, not a checkpoint. Give the file inside it.")
    return Contents(place, "", None, files).sha256()


def weight_files(folder: str | Path) -> tuple[Path, ...]:
    """Return the files of weights in a folder of ``save_pretrained``, all parts of a sharded one; () for none.

    Raises:
        CheckpointError: an index that cannot be read, or that names a file which is not there.
    """
    place = Path(folder)
    found = next((place / name for name in _IN_FOLDER if (place / name).is_file()), None)
    if found is None:
        return ()
    if found.suffix != ".json":
        return (found,)
    try:
        names = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{found} is no index of weights ({error}). Copy or save it again.") from error
    # Names with a folder in them would read what lies outside.
    lacking = [name for name in names if Path(name).name != name or not (place / name).is_file()]
    if lacking:
        raise CheckpointError(f"{place} lacks {lacking[0]}, which {found.name} names. Copy the whole folder.")
    return tuple(place / name for name in names)


def is_distributed(folder: str | Path) -> bool:
    """Return whether a folder was written by ``torch.distributed.checkpoint``."""
    return (Path(folder) / _DISTRIBUTED).is_file()


def _read_folder(folder: Path) -> Contents:
    if is_distributed(folder):
        parts = tuple(sorted(folder.glob("*.distcp")))
        return Contents(folder, "torch.distributed.checkpoint", read_tensors(folder), (folder / _DISTRIBUTED, *parts))
    files = weight_files(folder)
    if not files:
        inside = sorted(each.name for each in folder.iterdir())
        candidates = [name for name in inside if Path(name).suffix in ENDINGS]
        seen = f"it holds {', '.join(candidates[:3])}" if candidates else "it holds no file of weights"
        raise CheckpointError(f"{folder} is a folder, not a checkpoint ({seen}). Give the file inside it.")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_contents(file).tree
    kind = "Trainer checkpoint" if (folder / "trainer_state.json").is_file() else "save_pretrained"
    return Contents(
        folder, f"{kind} folder, {len(files)} file{'s' if len(files) > 1 else ''} of weights", tensors, files
    )


def _refuse_programs(source: Path) -> None:
    if not zipfile.is_zipfile(source):
        return
    try:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error):
        # Damaged, which reading it says.
        return
    if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
        raise CheckpointError(
            f"{source} is TorchScript: a program, whose network cannot be differentiated twice here. Load it with "
            "torch.jit.load(file), save its weights with torch.save(loaded.state_dict(), 'weights.pt'), and name the "
            "network with --model."
        )
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        raise CheckpointError(
            f"{source} is an exported program (torch.export), not weights. Save its weights with "
            "torch.save(program.state_dict, 'weights.pt'), and name the network with --model."
        )


def _format_of(tree: Any) -> str:
    if not isinstance(tree, Mapping):
        return "torch.save"
    if "pytorch-lightning_version" in tree:
        return f"Lightning {tree['pytorch-lightning_version']}"
    if "ds_version" in tree or "ds_config" in tree:
        return "DeepSpeed"
    return "torch.save"

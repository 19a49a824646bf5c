"""Folders of ``torch.distributed.checkpoint``: their tensors alone, and nothing that would have to be run."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hessprobe.errors import CheckpointError

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

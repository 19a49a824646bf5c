"""State dicts: reading them from files without running code, and fitting them into a model.

Files of ``torch.save`` before anything in them is read: whole, and no larger inside than out.

Stored tensors that can be the weights of a model: plain numbers of its kind, all of them there.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hessprobe.errors import CheckpointError, UnsupportedError

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
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{source} is damaged: {error}. Copy or save it again.") from error
    except Exception as error:
        # zlib, lzma and bz2 have errors of their own.
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
    missing = [name for name in wanted if name not in state_dict]
    unexpected = [name for name in state_dict if name not in wanted]
    if missing or unexpected:
        words = [
            f"{kind} {_listed(names)}" for kind, names in (("lacks", missing), ("has unknown", unexpected)) if names
        ]
        raise CheckpointError(f"{source} {' and '.join(words)}. Check that it belongs to this model and its arguments.")
    for name, tensor in wanted.items():
        given = state_dict[name]
        if given.shape != tensor.shape:
            raise CheckpointError(
                f"{source} has {name} of shape {tuple(given.shape)}, but the model has {tuple(tensor.shape)}. "
                "Check the model's arguments."
            )
        require_numbers(name, given, tensor, source)
        if given.is_floating_point() and not bool(torch.isfinite(given).all()):
            count = int((~torch.isfinite(given)).sum())
            raise CheckpointError(
                f"{source} has nan or inf in {count} of the {given.numel()} entries of {name}. "
                "Its training diverged; take an earlier checkpoint."
            )
    widen(model, state_dict)
    model.load_state_dict(dict(state_dict))


def require_file(path: str | Path) -> Path:
    """Return ``path`` if it is an existing file.

    Raises:
        CheckpointError: nothing is there, or a folder.
    """
    source = Path(path)
    if source.is_dir():
        raise CheckpointError(f"{source} is a folder, not a checkpoint. Give the file inside it.")
    if not source.exists():
        raise CheckpointError(f"{source} does not exist. Check the path.")
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

"""Decoded images kept on disk under the hash of what they were decoded from."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hessprobe import files

# Changes when decoding does, so that an older cache is not taken for a new one.
_FORMAT = 1


class CacheWarning(UserWarning):
    """The cache of decoded images cannot be used; the images are decoded each time."""


def cache_folder() -> Path:
    """Return where decoded images are kept: ``$HESSPROBE_CACHE``, or ``hessprobe`` in the user's cache folder."""
    chosen = os.environ.get("HESSPROBE_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "hessprobe"
    except RuntimeError:
        # Users without a home, as in containers.
        return Path(tempfile.gettempdir()) / f"hessprobe-{os.getuid()}"


def remembered(key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return ``make()``, or what it returned when the same key was last asked for, on this machine.

    Args:
        key: hash of everything that the tensors depend on.
        make: called where the cache holds nothing, or something damaged.
    """
    target = cache_folder() / f"images-v{_FORMAT}-{key}.pt"
    kept = _read(target)
    if kept is not None:
        return kept
    made = make()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(target, lambda file: torch.save(made, file))
    except OSError as error:
        warnings.warn(
            f"{target.parent} cannot be written ({error.strerror}), so images are decoded each time. "
            "Set HESSPROBE_CACHE to a folder that can.",
            CacheWarning,
            stacklevel=2,
        )
    return made


def _read(path: Path) -> dict[str, Tensor] | None:
    if not path.is_file():
        return None
    try:
        content = torch.load(path, weights_only=True)
    except Exception:  # whatever is wrong with it, the cache can be made anew
        return None
    whole = isinstance(content, dict) and all(isinstance(each, Tensor) for each in content.values())
    return content if whole else None

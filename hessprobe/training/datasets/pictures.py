"""From encoded images to one tensor.

Decoded images kept on disk under the hash of what they were decoded from.
"""

from __future__ import annotations

import io
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessprobe import files
from hessprobe.errors import DataError

_GRAY_MODES = ("1", "L")
_ADVICE = "Remove it, or replace it by an intact copy."


def decode(source: bytes, name: str, size: int | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return an encoded image as uint8 (channels, height, width), one channel where it is gray, else three.

    Args:
        source: the file's bytes.
        name: to call it by.
        size: see ``to_array``.

    Raises:
        DataError: it cannot be decoded; names it.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(source)) as image:
            return to_array(image, size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{name} cannot be read as an image ({reason}). {_ADVICE}") from error


def to_array(image: Any, size: int | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a PIL image as uint8 (channels, height, width); transparency is dropped.

    Args:
        image: in any mode.
        size: pixels >= 1 that the shorter side is scaled to (bilinear, smoothed, as torchvision's ``Resize`` does it)
            before the middle ``size`` x ``size`` are cut out; None leaves it as it is.
    """
    gray = image.mode in _GRAY_MODES
    plain = image.convert("L" if gray else "RGB")
    pixels = np.asarray(plain if size is None else _square(plain, size), dtype=np.uint8)
    return pixels[None] if gray else np.moveaxis(pixels, -1, 0)


def _square(image: Any, size: int) -> Any:
    from PIL import Image

    width, height = image.size
    shorter = min(width, height)
    scaled = image.resize((int(size * width / shorter), int(size * height / shorter)), Image.Resampling.BILINEAR)
    left, top = (round((length - size) / 2) for length in scaled.size)
    return scaled.crop((left, top, left + size, top + size))


def stack(arrays: list[np.ndarray[Any, np.dtype[np.uint8]]], names: list[str]) -> Tensor:
    """Return images as uint8 (n, channels, height, width); gray ones among colored ones get three equal channels.

    Raises:
        DataError: images of different sizes; names the first that differs.
    """
    height, width = arrays[0].shape[1:]
    channels = max(each.shape[0] for each in arrays)
    result = torch.empty(len(arrays), channels, height, width, dtype=torch.uint8)
    view = result.numpy()
    for index, (each, name) in enumerate(zip(arrays, names, strict=True)):
        if each.shape[1:] != (height, width):
            raise DataError(
                f"images must all have one size; got {names[0]} of {height} x {width} pixels and {name} of "
                f"{each.shape[1]} x {each.shape[2]}. Resize them first, or pass image_size=."
            )
        view[index] = each
    return result


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

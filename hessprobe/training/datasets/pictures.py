"""From encoded images to one tensor."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

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

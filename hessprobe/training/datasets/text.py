"""Text as characters, each to be predicted from those before it."""

from __future__ import annotations

from pathlib import Path

import torch

from hessprobe import checks
from hessprobe.errors import DataError
from hessprobe.training.datasets.base import DataSet

DEFAULT_CONTEXT = 64

# The last tenth of the windows is held out: text has no classes, and neighbouring windows belong together.
_HOLD_OUT = 10


def load_text(name: str, path: Path, context: int | None = None) -> DataSet:
    """Return a UTF-8 text as windows of ``context`` characters and, as labels, the character after each.

    The windows do not overlap; the vocabulary is the sorted set of characters of the file; the last tenth of the
    windows is held out.

    Args:
        name: to call it by.
        path: the file.
        context: characters in a window, >= 1; 64 by default.

    Raises:
        ValueError: context is not a positive integer.
        DataError: not UTF-8, or too short for two windows.
    """
    length = checks.positive_int("context", DEFAULT_CONTEXT if context is None else context)
    if path.exists() and not path.is_file():
        raise DataError(f"data must be a text file; got {str(path)!r}, which is none. Check the path.")
    text = read_utf8(path)
    windows = (len(text) - 1) // length
    if windows < 2:
        raise DataError(
            f"{path} must hold at least {2 * length + 1} characters for context {length}; got {len(text)}. "
            "Take a longer text or a smaller context."
        )
    # The characters as numbers: their places in the sorted vocabulary.
    codes = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32)
    vocabulary, tokens = torch.unique(codes, sorted=True, return_inverse=True)
    used = windows * length
    inputs = tokens[:used].view(windows, length).contiguous()
    labels = tokens[1 : used + 1].view(windows, length).contiguous()
    test = torch.arange(windows - max(1, windows // _HOLD_OUT), windows)
    return DataSet(name, inputs, labels, test, len(vocabulary))


def read_utf8(path: Path) -> str:
    """Return the text of a file.

    Raises:
        DataError: not UTF-8, or it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}). Convert it, e.g. with iconv.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check the path and its permissions.") from error

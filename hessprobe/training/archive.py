"""Files of ``torch.save`` before anything in them is read: whole, and no larger inside than out."""

from __future__ import annotations

import zipfile
from pathlib import Path

from hessprobe.errors import CheckpointError

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

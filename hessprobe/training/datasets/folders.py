"""Images in class folders, in a directory or a tar archive."""

from __future__ import annotations

import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from hessprobe.errors import DataError
from hessprobe.training.datasets import pictures
from hessprobe.training.datasets.base import DataSet, Report, every_fifth_of_each_class, image_set
from hessprobe.training.datasets.pictures import remembered

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_TRAIN = "train"
_HELD_OUT = ("test", "val", "valid", "validation")
_LAYOUT = "Lay them out as CLASS/FILE, or as train/CLASS/FILE and test/CLASS/FILE."
_BROKEN_ARCHIVE = (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError)
_READ = 1 << 20
# Images are compressed already; those that are not shrink by some ten times.
_EXPANSION, _SMALL = 100, 1 << 28


@dataclass(frozen=True)
class _Place:
    """Where an image stands: its split (empty where there is none), its class, its path."""

    split: str
    label: str
    path: str


def load_folder(name: str, path: Path, report: Report, size: int | None = None) -> DataSet:
    """Return the images of a directory or tar archive (also compressed) of class folders.

    ``CLASS/FILE``: every fifth image of a class is held out. ``train/CLASS/FILE`` with ``test/CLASS/FILE`` (or ``val``,
    ``valid``, ``validation``; ``test`` where there are several): as they are. Folders around these are skipped; so are
    hidden files and files that are no images by their suffix. Classes are numbered in the order of their names. The
    images are decoded once, scaled to ``size`` where that is given (see ``pictures.to_array``), and kept in the cache
    under the hash of the files' content.

    Raises:
        DataError: nothing there, a broken archive, an unreadable image, images of different sizes, another layout, or
            class folders that differ between the splits.
    """
    if not (path.is_file() or path.is_dir()):
        raise DataError(f"data must be a directory or a tar archive that exists; got {str(path)!r}. Check the path.")
    key = hashlib.sha256(f"image-folder{'' if size is None else f' {size}'}\n".encode())
    try:
        _hash_into(key, path)
        kept = remembered(key.hexdigest(), lambda: _decode_all(path, report, size))
    except _BROKEN_ARCHIVE as error:
        raise DataError(
            f"{path} cannot be read as a directory or tar archive of images ({error}). Copy it again."
        ) from error
    n_classes = int(kept["labels"].max()) + 1
    return image_set(name, kept["images"], kept["labels"], kept["test"], n_classes)


def _hash_into(key: hashlib._Hash, path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            while block := file.read(_READ):
                key.update(block)
        return
    for relative, content in _in_directory(path):
        key.update(f"{relative}\n{len(content)}\n".encode())
        key.update(content)


def _decode_all(path: Path, report: Report, size: int | None) -> dict[str, Tensor]:
    source = _in_directory(path) if path.is_dir() else _in_archive(path)
    arrays = {}
    for count, (relative, content) in enumerate(source):
        if not count % 500:
            report("decoding images", count, None, f"{count:,}")
        arrays[relative] = pictures.decode(content, f"{path}/{relative}", size)
    if not arrays:
        raise DataError(f"{path} must hold images ({', '.join(SUFFIXES)}); got none. {_LAYOUT}")
    # An archive has its own order, a file system none: the images are numbered by their paths.
    places = sorted(_places(sorted(arrays), str(path)), key=lambda each: (each.split != _TRAIN, each.label, each.path))
    classes = _classes(places, str(path))
    labels = torch.tensor([classes.index(each.label) for each in places])
    images = pictures.stack([arrays[each.path] for each in places], [f"{path}/{each.path}" for each in places])
    if places[0].split:
        test = torch.nonzero(torch.tensor([each.split != _TRAIN for each in places])).flatten()
    else:
        test = every_fifth_of_each_class(labels)
    report("decoding images", len(places), len(places), f"{len(places):,}")
    return {"images": images, "labels": labels, "test": test}


def _places(paths: Sequence[str], where: str) -> list[_Place]:
    parts = [PurePosixPath(path).parts for path in paths]
    while min(map(len, parts)) > 2 and len({each[0] for each in parts}) == 1:
        parts = [each[1:] for each in parts]
    for path, each in zip(paths, parts, strict=True):
        if len(each) != len(parts[0]) or len(each) not in (2, 3):
            raise DataError(f"{where}/{path} does not lie in a class folder beside those of the others. {_LAYOUT}")
    if len(parts[0]) == 2:
        return [_Place("", each[0], path) for path, each in zip(paths, parts, strict=True)]
    found = {each[0] for each in parts}
    held_out = next((split for split in _HELD_OUT if split in found), None)
    unknown = sorted(found - {_TRAIN, *_HELD_OUT})
    if unknown or _TRAIN not in found or held_out is None:
        raise DataError(f"{where} must have folders train and test; got {', '.join(sorted(found))}. {_LAYOUT}")
    kept = (_TRAIN, held_out)
    return [_Place(each[0], each[1], path) for path, each in zip(paths, parts, strict=True) if each[0] in kept]


def _classes(places: Sequence[_Place], where: str) -> list[str]:
    by_split: dict[str, set[str]] = {}
    for each in places:
        by_split.setdefault(each.split, set()).add(each.label)
    every = set().union(*by_split.values())
    lacking = [f"{split} lacks {', '.join(sorted(every - has))}" for split, has in by_split.items() if every - has]
    if lacking:
        raise DataError(
            f"class folders of {where} must be the same in both splits; {'; '.join(lacking)}. "
            "Rename or complete the folders."
        )
    return sorted(every)


def _in_directory(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        if _is_image(relative.parts) and file.is_file():
            yield relative.as_posix(), file.read_bytes()


def _in_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    # Members are read in their order and never unpacked to disk: a stream, whatever the compression.
    packed, unpacked = path.stat().st_size, 0
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            unpacked += member.size
            if unpacked > _SMALL and unpacked > _EXPANSION * packed:
                raise DataError(
                    f"{path} would unpack from {packed / 1e6:.3g} MB to over {unpacked / 1e6:.3g} MB, which no images "
                    "do. Pack them again."
                )
            relative = PurePosixPath(member.name)
            content = archive.extractfile(member) if member.isfile() and _is_image(relative.parts) else None
            if content is not None:
                yield "/".join(part for part in relative.parts if part not in (".", "/")), content.read()


def _is_image(parts: Sequence[str]) -> bool:
    hidden = any(part.startswith(".") and part != "." for part in parts)
    return not hidden and parts[-1].lower().endswith(SUFFIXES)

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hessprobe.errors import DataError
from hessprobe.training.datasets import folders, load_dataset, pictures

CIFAR = Path(__file__).parents[4] / "shared" / "datasets" / "cifar10-jpeg.tar.xz"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HESSPROBE_CACHE", str(tmp_path / "cache"))


def picture(seed, size=(4, 4), mode="RGB"):
    channels = {"RGB": (3,), "L": ()}[mode]
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (*size, *channels), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue(), pixels


def lay_out(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def two_splits(classes=("cat", "dog"), test_classes=None):
    names = [f"train/{label}/{index}.png" for label in classes for index in range(3)]
    names += [f"test/{label}/{index}.png" for label in test_classes or classes for index in range(2)]
    return {name: picture(seed)[0] for seed, name in enumerate(names)}


def test_directory_with_splits_has_pixels_labels_and_split_as_laid_out(tmp_path):
    root = lay_out(tmp_path / "a", {**two_splits(), "README.md": b"x", "train/.hidden/a.png": b"x"})
    data = load_dataset(f"image-folder:{root}")
    assert data.inputs.shape == (10, 3, 4, 4)
    assert data.inputs.dtype == torch.uint8
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    assert data.test.tolist() == [6, 7, 8, 9]
    assert data.n_classes == 2
    assert np.array_equal(data.inputs[4].permute(1, 2, 0).numpy(), picture(4)[1])


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("prefix", ["", "./", "inner/"])
def test_archive_in_any_order_equals_the_directory(tmp_path, mode, prefix):
    files = two_splits()
    root = lay_out(tmp_path / "a", files)
    with tarfile.open(tmp_path / "a.tar", mode) as archive:
        for name in sorted(files, reverse=True):
            member = tarfile.TarInfo(prefix + name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    assert load_dataset(f"image-folder:{tmp_path}/a.tar").sha256 == load_dataset(f"image-folder:{root}").sha256


def test_without_splits_every_fifth_of_a_class_is_held_out(tmp_path):
    names = [f"{label}/{index}.png" for label in "ab" for index in range(6)]
    root = lay_out(tmp_path / "a", {name: picture(seed)[0] for seed, name in enumerate(names)})
    data = load_dataset(f"image-folder:{root}")
    assert data.test.tolist() == [0, 5, 6, 11]


def test_validation_stands_for_test_and_gray_joins_color(tmp_path):
    files = {name.replace("test/", "val/"): content for name, content in two_splits().items()}
    files["train/cat/0.png"], gray = picture(9, mode="L")
    data = load_dataset(f"image-folder:{lay_out(tmp_path / 'a', files)}")
    assert len(data.test) == 4
    assert all(np.array_equal(channel.numpy(), gray) for channel in data.inputs[0])


def test_images_are_decoded_once_and_again_when_content_changes(tmp_path, monkeypatch):
    calls = []
    decode = pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda *given: calls.append(1) or decode(*given))
    root = lay_out(tmp_path / "a", two_splits())
    first = load_dataset(f"image-folder:{root}")
    assert load_dataset(f"image-folder:{root}").sha256 == first.sha256
    assert len(calls) == 10
    (root / "train/cat/0.png").write_bytes(picture(77)[0])
    assert load_dataset(f"image-folder:{root}").sha256 != first.sha256
    assert len(calls) == 20


def test_damaged_cache_is_made_anew(tmp_path):
    root = lay_out(tmp_path / "a", two_splits())
    first = load_dataset(f"image-folder:{root}")
    for file in pictures.cache_folder().iterdir():
        file.write_bytes(b"half")
    assert load_dataset(f"image-folder:{root}").sha256 == first.sha256


def test_cache_that_cannot_be_written_is_said_and_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HESSPROBE_CACHE", str(tmp_path / "file" / "below"))
    root = lay_out(tmp_path / "a", two_splits())
    with pytest.warns(pictures.CacheWarning, match=r"cannot be written .*decoded each time\. Set HESSPROBE_CACHE"):
        assert len(load_dataset(f"image-folder:{root}").labels) == 10


def test_cache_folder_is_where_users_expect_it(monkeypatch):
    monkeypatch.delenv("HESSPROBE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert pictures.cache_folder() == Path("/x/hessprobe")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert pictures.cache_folder() == Path("/home/someone/.cache/hessprobe")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train/dog/1.png": b"no image"},
            r"a/train/dog/1\.png cannot be read as an image \(not an image\)\. Remove it",
        ),
        ({"train/dog/1.png": picture(0)[0][:60]}, r"a/train/dog/1\.png cannot be read as an image \(.*\)"),
        ({"train/dog/1.png": picture(0, (4, 5))[0]}, r"one size; got .*of 4 x 4 pixels and .*dog/1\.png of 4 x 5"),
        ({"train/frog/1.png": picture(0)[0]}, r"must be the same in both splits; test lacks frog\. Rename"),
        ({"test/frog/1.png": picture(0)[0]}, r"must be the same in both splits; train lacks frog\. Rename"),
        ({"train/1.png": picture(0)[0]}, r"a/train/1\.png does not lie in a class folder|train/.* does not lie"),
        (
            {"extra/cat/1.png": picture(0)[0]},
            r"must have folders train and test; got extra, test, train\. Lay them out",
        ),
    ],
)
def test_what_is_wrong_in_a_folder_is_named(tmp_path, changes, message):
    root = lay_out(tmp_path / "a", {**two_splits(), **changes})
    with pytest.raises(DataError, match=message):
        load_dataset(f"image-folder:{root}")
    assert not (tmp_path / "cache").exists()


def test_missing_empty_and_broken_sources(tmp_path):
    with pytest.raises(DataError, match=r"must name a path that exists; nothing is at .*/no\. Check it, or set"):
        load_dataset(f"image-folder:{tmp_path}/no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty must hold images \(\.png, .*\); got none\. Lay them out"):
        load_dataset(f"image-folder:{tmp_path}/empty")
    (tmp_path / "a.tar").write_bytes(b"no archive at all" * 100)
    with pytest.raises(DataError, match=r"a\.tar cannot be read as a directory or tar archive"):
        load_dataset(f"image-folder:{tmp_path}/a.tar")
    lay_out(tmp_path / "one", {"a/1.png": picture(0)[0], "b/1.png": picture(1)[0]})
    with pytest.raises(DataError, match=r"images to train on and to hold out; got 0 and 2"):
        load_dataset(f"image-folder:{tmp_path}/one")


def test_truncated_archive(tmp_path):
    files = two_splits()
    with tarfile.open(tmp_path / "a.tar.xz", "w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    whole = (tmp_path / "a.tar.xz").read_bytes()
    (tmp_path / "a.tar.xz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.tar\.xz cannot be read as a directory or tar archive .*Copy it again"):
        load_dataset(f"image-folder:{tmp_path}/a.tar.xz")


def test_moved_data_are_found_by_the_last_part_of_their_path(tmp_path, monkeypatch):
    lay_out(tmp_path / "new" / "a", two_splits())
    monkeypatch.setenv("HESSPROBE_DATA", str(tmp_path / "new"))
    assert len(load_dataset(f"image-folder:{tmp_path}/old/a").labels) == 10


def test_decoding_is_reported(tmp_path):
    seen = []
    root = lay_out(tmp_path / "a", two_splits())
    load_dataset(f"image-folder:{root}", report=lambda *given: seen.append(given))
    assert seen == [("decoding images", 0, None, "0"), ("decoding images", 10, 10, "10")]


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.exists(), reason=f"{CIFAR} is not here")
def test_cifar10_archive():
    data = load_dataset(f"image-folder:{CIFAR}")
    assert data.inputs.shape == (60_000, 3, 32, 32)
    assert torch.equal(torch.bincount(data.labels[data.test]), torch.full((10,), 1000))
    assert torch.equal(data.test, torch.arange(50_000, 60_000))
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=5e-3)


def test_suffixes_are_lower_case_and_links_are_followed(tmp_path):
    root = lay_out(tmp_path / "a", two_splits())
    os.symlink(root / "train/cat/0.png", root / "train/cat/9.PNG")
    assert len(load_dataset(f"image-folder:{root}").labels) == 11
    assert all(suffix == suffix.lower() for suffix in folders.SUFFIXES)

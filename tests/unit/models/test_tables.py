import numpy as np
import pytest
import torch

from hessprobe.errors import DataError
from hessprobe.models.tables import load_csv, load_npz


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_arrays_with_a_split_of_their_own(tmp_path):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (7, 5, 4), dtype=np.uint8)
    path = saved(
        tmp_path / "m.npz", x_train=pixels[:4], y_train=[[0], [1], [2], [0]], x_test=pixels[4:], y_test=[[1]] * 3
    )
    data = load_npz("m", path)
    assert data.inputs.shape == (7, 1, 5, 4)
    assert torch.equal(data.inputs[:, 0], torch.tensor(pixels).float() / 255)
    assert data.targets.tolist() == [0, 1, 2, 0, 1, 1, 1]
    assert data.test.tolist() == [4, 5, 6]
    assert [len(batch[1]) for batch in data.batches(batch_size=3)] == [2, 2]
    assert len(data.batches("test")[0][1]) == 3
    assert len(data.batches("all")[0][1]) == 7


def test_channels_behind_pixels_are_moved(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    data = load_npz("m", saved(tmp_path / "m.npz", images=pixels, labels=[0, 1]))
    assert torch.equal(data.inputs, torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255)
    assert data.notes == ("bytes of the inputs divided by 255", "channels moved from last to first")


def test_drawn_examples_are_the_same_for_a_seed_and_in_order(tmp_path):
    path = saved(tmp_path / "m.npz", x=np.arange(50.0)[:, None], y=np.arange(50))
    data = load_npz("m", path)
    drawn = [data.batches(examples=20, seed=seed)[0][1].tolist() for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] == sorted(drawn[0])
    assert drawn[0] != drawn[2]
    assert len(set(drawn[0])) == 20
    with pytest.raises(ValueError, match=r"examples must be at most 50, the size of split 'all'"):
        data.batches(examples=51)
    with pytest.raises(ValueError, match=r"split must be 'all' for data 'm', which has no split of its own"):
        data.batches("test")


@pytest.mark.parametrize(
    ("arrays", "label", "words"),
    [
        ({"a": [[1.0]], "b": [0]}, None, "must hold arrays x and y; got a (1, 1), b (1,)"),
        ({"x": [[1.0]], "y": [0, 1]}, None, "must have as many targets as inputs; got 1 of 'x' and 2"),
        ({"x": [[np.nan]], "y": [0]}, None, "must hold finite numbers"),
        ({"x": [["a"]], "y": [0]}, None, "must hold numbers"),
        ({"x": [[1.0]], "y": [0], "z": [0]}, "y", "must hold one array beside 'y'"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, arrays, label, words):
    with pytest.raises(DataError) as told:
        load_npz("m", saved(tmp_path / "m.npz", **arrays), label)
    assert words in str(told.value)


def test_arrays_of_other_names(tmp_path):
    data = load_npz("m", saved(tmp_path / "m.npz", a=[[1.0]], b=[2]), "b")
    assert (data.inputs.tolist(), data.targets.tolist()) == ([[1.0]], [2])


def test_objects_in_an_archive_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "m.npz", x=np.array([{}], dtype=object), y=[0])
    with pytest.raises(DataError, match="is not a file of NumPy arrays"):
        load_npz("m", tmp_path / "m.npz")


def test_a_table_with_words_for_classes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,class\n1,2.5,dog\n3,4,cat\n5,6,dog\n")
    data = load_csv("t", path)
    assert data.inputs.tolist() == [[1, 2.5], [3, 4], [5, 6]]
    assert data.targets.tolist() == [1, 0, 1]
    assert data.notes == ("classes of 'class' in the order of their names: cat, dog",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,label\n1,0\n,1\n", "has empty cells in column 'a'"),
        ("a,label\nx,0\n", "column 'a' holds texts"),
        ("label\n0\n", "there is no other column"),
        ("a,b\n0,1\n", "none of a, b is called so"),
        ("y,label\n0,1\n", "y, label all could be"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, text, words):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError) as told:
        load_csv("t", path)
    assert words in str(told.value)

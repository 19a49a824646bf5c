from __future__ import annotations

import dataclasses

import pytest
import torch

from hessprobe.errors import DataError
from hessprobe.training.datasets import DataSet, batches, load_dataset


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def test_digits_are_the_whole_set_scaled_to_the_unit_interval(digits):
    inputs, labels = digits.split("all", "vector")
    assert inputs.shape == (1797, 64)
    assert inputs.dtype == torch.float32
    assert (float(inputs.min()), float(inputs.max())) == (0.0, 1.0)
    assert labels.dtype == torch.int64
    assert digits.split("all", "image")[0].shape == (1797, 1, 8, 8)
    assert digits.implied_arguments == {"in_features": 64, "in_channels": 1, "n_classes": 10}


def test_split_is_a_stratified_partition(digits):
    train, test = digits.positions("train"), digits.positions("test")
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(1797))
    shares = torch.bincount(digits.labels[test]) / torch.bincount(digits.labels)
    assert float((shares - 0.2).abs().max()) < 0.005


def test_hash_is_pinned_and_sees_every_change(digits):
    assert digits.sha256 == "ba3c6a6130b70d6ce8df33fcb89bf347656b23208e5ce7a6f3ab5e807d2320a2"
    images, labels = digits.images.clone(), digits.labels.clone()
    images[100, 0, 3, 3] += 0.01
    labels[7] = (labels[7] + 1) % 10
    others = [
        dataclasses.replace(digits, images=images),
        dataclasses.replace(digits, labels=labels),
        dataclasses.replace(digits, test=digits.test[1:]),
    ]
    assert len({digits.sha256, *(other.sha256 for other in others)}) == 4


def test_examples_are_a_reproducible_random_part(digits):
    first = digits.split("train", examples=100, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, digits.split("train", examples=100, seed=1), strict=True))
    other = digits.split("train", examples=100, seed=2)
    assert not torch.equal(first[0], other[0])
    assert len(first[1]) == 100
    assert len(first[0].unique(dim=0)) == 100
    everything = digits.split("train", examples=1433, seed=5)
    assert torch.equal(everything[0], digits.split("train")[0])


def test_batches_are_even_reiterable_views(digits):
    inputs, labels = digits.split("test")
    parts = batches(inputs, labels, 101)
    assert [len(y) for _, y in parts] == [91, 91, 91, 91]
    assert [len(y) for _, y in batches(inputs, labels, 80)] == [73, 73, 73, 73, 72]
    assert torch.equal(torch.cat([x for x, _ in parts]), inputs)
    assert parts[1][0].data_ptr() == inputs[91:].data_ptr()


def test_wrong_requests_are_refused(digits):
    with pytest.raises(ValueError, match=r"data must be one of digits; got 'digit'\. Did you mean 'digits'\?"):
        load_dataset("digit")
    with pytest.raises(ValueError, match=r"split must be one of train, test, all; got 'tset'\. Did you mean 'test'"):
        digits.split("tset")
    with pytest.raises(ValueError, match=r"layout must be one of vector, image for data 'digits'; got 'tokens'"):
        digits.split("all", "tokens")
    with pytest.raises(ValueError, match=r"examples must be at most 364, .*; got 365"):
        digits.split("test", examples=365)
    with pytest.raises(ValueError, match=r"examples must be an integer >= 1; got 0"):
        digits.split("test", examples=0)
    with pytest.raises(ValueError, match=r"batch_size must be an integer >= 1"):
        batches(torch.zeros(2, 1), torch.zeros(2), 0)
    with pytest.raises(DataError, match=r"at least one example; got none"):
        batches(torch.zeros(0, 1), torch.zeros(0), 4)


def test_empty_split_of_a_foreign_set():
    data = DataSet("x", torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.long), torch.arange(0), 1)
    assert len(data.positions("test")) == 0

"""Loaders of one to four batches: intervals that include the data part hold the value of the law of the examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import hessprobe as hp
from hessprobe.estimate import Estimate

_RUNS, _EXAMPLES = 200, 128
_SCALES = np.array([2.0, 1.0, 0.5, 0.25])


def _drawn(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)) * _SCALES


def _curvature(inputs: np.ndarray) -> np.ndarray:
    """Return the Hessian of the logistic loss at weights 1/2, E p (1 - p) x x^T, whatever the labels."""
    p = 1 / (1 + np.exp(-inputs.sum(1) / 2))
    hessian: np.ndarray = (inputs * (p * (1 - p))[:, None]).T @ inputs / len(inputs)
    return hessian


def _estimates(batches: int, seed: int) -> dict[str, Estimate]:
    model = nn.Linear(4, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.5)
    data = torch.from_numpy(_drawn(_EXAMPLES, seed))
    loader = [(part, torch.zeros(len(part), 1).double()) for part in data.chunk(batches)]
    H = hp.Hessian(hp.EmpiricalRisk(model, nn.BCEWithLogitsLoss(), loader), engine="double_backward")
    return {
        "trace": hp.trace(H),
        "frob": hp.frobenius_norm(H),
        "lambda-max": hp.eigsh(H, 1, "largest").estimate(0),
    }


def test_exact_values_of_one_batch() -> None:
    values = np.linalg.eigvalsh(_curvature(_drawn(400_000, 1)))
    truth = {"trace": values.sum(), "frob": np.sqrt(np.square(values).sum()), "lambda-max": values[-1]}
    hits = dict.fromkeys(truth, 0)
    for seed in range(_RUNS):
        for name, found in _estimates(1, 100 + seed).items():
            assert (found.kind, found.errors.data_df) == ("exact", pytest.approx(15.0)), name
            low, high = found.interval(include_data=True)
            hits[name] += low <= truth[name] <= high
    shares = {name: count / _RUNS for name, count in hits.items()}
    assert all(0.92 <= share < 0.985 for share in shares.values()), shares


@pytest.mark.parametrize("batches", [2, 4])
def test_how_the_examples_are_batched_is_of_no_consequence(batches: int) -> None:
    whole, cut = _estimates(1, 7), _estimates(batches, 7)
    for name, found in cut.items():
        assert found.value == pytest.approx(whole[name].value)
        assert found.errors.data == pytest.approx(whole[name].errors.data)
        assert found.errors.data_df == pytest.approx(15.0)
        assert found.matvecs == pytest.approx(whole[name].matvecs)

"""Parts of a data set, and wrong labels in it: both drawn from a seed of their own."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import about
from hessprobe.training.datasets.base import DataSet

# Streams of one seed that share nothing.
_SUBSET, _NOISE = 1, 2


def subset(data: DataSet, share: float, seed: int) -> DataSet:
    """Return ``data`` with a random ``share`` of the training examples of every class; held-out ones all stay.

    Args:
        data: not changed.
        share: in (0, 1]; of each class round(share * count) examples stay, at least one.
        seed: which, >= 0.

    Raises:
        TypeError, ValueError: share outside (0, 1].
    """
    checks.real("subset", share, low=0, low_open=True, high=1, hint="0.1 keeps a tenth of the training examples.")
    if share == 1:
        return data
    generator, train = _generator(seed, _SUBSET), data.positions("train")
    groups = torch.zeros(len(train)) if data.is_text else data.labels[train]
    kept = [_draw(train[groups == each], share, generator) for each in torch.unique(groups)]
    rows = torch.cat([*kept, data.test]).sort().values
    held_out = torch.zeros(len(data.labels), dtype=torch.bool)
    held_out[data.test] = True
    return dataclasses.replace(
        data,
        inputs=data.inputs[rows],
        labels=data.labels[rows],
        test=torch.nonzero(held_out[rows]).flatten(),
        clean_labels=None if data.clean_labels is None else data.clean_labels[rows],
    )


def mislabel(data: DataSet, share: float, seed: int) -> DataSet:
    """Return ``data`` with round(share n) of the n training labels changed, each to another class, all equally likely.

    Held-out labels stay right, and the right ones of the training examples are kept in ``clean_labels``.

    Args:
        data: images; not changed.
        share: in [0, 1].
        seed: which labels, and to what, >= 0.

    Raises:
        TypeError, ValueError: share outside [0, 1], or text, or a single class.
    """
    checks.real("label_noise", share, low=0, high=1, hint="0.2 makes a fifth of the training labels wrong.")
    if share == 0:
        return data
    if data.is_text:
        raise ValueError(about("label_noise", f"must be 0 for text; got {share:g}. Leave it out."))
    if data.n_classes < 2:
        raise ValueError(about("label_noise", f"must be 0 for data of one class; got {share:g}. Leave it out."))
    generator, train = _generator(seed, _NOISE), data.positions("train")
    count = round(share * len(train))
    chosen = train[torch.randperm(len(train), generator=generator)[:count]]
    step = torch.randint(1, data.n_classes, (count,), generator=generator)
    labels = data.labels.clone()
    labels[chosen] = (labels[chosen] + step) % data.n_classes
    return dataclasses.replace(data, labels=labels, clean_labels=data.labels)


def _draw(rows: Tensor, share: float, generator: torch.Generator) -> Tensor:
    count = max(1, round(share * len(rows)))
    return rows[torch.randperm(len(rows), generator=generator)[:count]]


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed((checks.resolve_seed(seed) * 8 + stream) % 2**63)

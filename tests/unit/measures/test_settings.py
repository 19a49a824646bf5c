"""Keywords of ``measure``: in the docstring, at the top level, and said where one is unknown."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import nn

import hessprobe as hp


def test_the_settings_are_at_the_top_level_and_in_the_docstring_of_measure() -> None:
    listed = re.findall(r"^            (\w+): .*\.$", hp.measure.__doc__ or "", re.M)
    assert listed == [field.name for field in dataclasses.fields(hp.MeasureSettings)]
    assert "MeasureSettings" in hp.__all__


def test_an_unknown_setting_names_the_nearest() -> None:
    data = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))]
    risk = hp.EmpiricalRisk(nn.Linear(3, 2), nn.CrossEntropyLoss(), data)
    said = r"no argument 'probes'\. Did you mean 'n_probes'\? It takes optimizer, progress, operator, rtol, "
    with pytest.raises(TypeError, match=said):
        hp.measure("trace", risk, probes=4)
    with pytest.raises(
        TypeError, match=r"SharpnessTracker has no argument 'evry'\. Did you mean 'every'\? It takes model"
    ):
        hp.SharpnessTracker(nn.Linear(3, 2), nn.CrossEntropyLoss(), data, evry=5)

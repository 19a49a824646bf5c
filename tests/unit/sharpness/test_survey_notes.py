"""What the survey says where the second-order model fails, on one parameter with a kink or a quartic term."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hessprobe.objective import EmpiricalRisk
from hessprobe.sharpness import Neighborhood
from hessprobe.sharpness.survey import Plan, survey


def readings(loss, radii):
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    one = torch.ones(1, 1, dtype=torch.float64)
    risk = EmpiricalRisk(net, lambda outputs, _: loss(outputs).mean(), [(one, one)])
    return list(survey(Neighborhood(risk), Plan(("average",), radii, n_probes=4)))


def kinked(outputs):
    return 0.005 * outputs**2 + torch.relu(outputs.abs() - 0.1)


def quartic(outputs):
    return 0.005 * outputs**2 + outputs**4


@pytest.mark.parametrize(("loss", "falls"), [(kinked, True), (quartic, False)])
def test_ratio_tells_kinks_from_higher_orders(loss, falls):
    found = readings(loss, [0.01, 0.2, 2.0])
    ratios = [one.sharpness.model_ratio for one in found]
    # 1 + (rho - 0.1) / (0.005 rho^2), and 1 + 200 rho^2.
    expected = [1, 501, 96] if falls else [1.02, 9, 801]
    assert ratios == pytest.approx(expected, rel=1e-6)
    said = [any("the second-order model does not hold there" in note for note in one.notes) for one in found]
    assert said == [False, True, True]
    assert "they see the nearest kinks of ReLU" in found[1].notes[-1]

"""Differences between two networks against their full Hessians in float64."""

from __future__ import annotations

import copy

import nets
import pytest
import torch

from hessprobe.comparison import compare_values, measure_each
from hessprobe.measures import MeasureSettings, Result

NAMES = ("trace", "frob", "lambda-max", "spectral-norm", "diagonal", "effective-rank", "adaptive-trace",
         "adaptive-frob", "adaptive-lambda-max", "universal:trace")  # fmt: skip
PROBES = 24


def truths(H, theta):
    values = torch.linalg.eigvalsh(H)
    adaptive = theta.abs()[:, None] * H * theta.abs()
    return {
        "trace": float(H.trace()),
        "frob": float(H.norm()),
        "lambda-max": float(values[-1]),
        "spectral-norm": float(values.abs().max()),
        "diagonal": float(H.trace()) / len(H),
        "effective-rank": float(H.trace() ** 2 / H.square().sum()),
        "adaptive-trace": float(adaptive.trace()),
        "adaptive-frob": float(adaptive.norm()),
        "adaptive-lambda-max": float(torch.linalg.eigvalsh(adaptive)[-1]),
        "universal:trace": float(H.trace()),
    }


@pytest.fixture(scope="module")
def pair():
    """A network and the same after a small step: values and truths of both."""
    case = nets.mlp()
    moved = copy.deepcopy(case.module)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    cases = {"first": case, "second": nets.Case(moved, case.data, case.loss)}
    values, exact = {}, {}
    for label, one in cases.items():
        risk = one.risk()
        found = list(measure_each(risk, NAMES, MeasureSettings(n_probes=PROBES, engine="double_backward")))
        assert all(isinstance(each, Result) for each in found)
        values[label] = {each.measure: each.estimate for each in found}
        exact[label] = truths(nets.full_hessian(risk), risk.theta)
    return values, exact


@pytest.mark.parametrize("name", NAMES)
def test_the_difference_agrees_with_the_full_hessians(pair, name):
    values, exact = pair
    (line,) = compare_values({label: {name: own[name]} for label, own in values.items()}, "first")
    found, truth = line.difference.estimate, exact["second"][name] - exact["first"][name]
    error = found.std_error + found.errors.solver / 4
    assert abs(found.value - truth) < 4 * error + 1e-9 * abs(exact["first"][name])
    if name == "effective-rank":
        # The trace of this network is too near 0 for its square to be linear in the samples: a bound, which says so.
        assert found.flags == ("not-paired",)
        return
    single = values["first"][name]
    # A step of one per cent moves the samples alike: the error of the difference is far below that of a value.
    # Brackets are one per mille wide each, and theirs is the difference of any two numbers inside.
    rest = 2.1e-3 if single.kind == "bracket" else 1e-4
    assert 4 * error < max(1.2 * single.std_error, rest * abs(single.value))
    assert line.difference.gain is None or line.difference.gain > 5


def test_sampled_measures_are_paired(pair):
    values, _ = pair
    gains = {line.measure: line.difference.gain for line in compare_values(values, "first")}
    paired = {name for name, gain in gains.items() if gain is not None}
    assert {"trace", "adaptive-trace", "frob", "adaptive-frob", "universal:trace"} <= paired

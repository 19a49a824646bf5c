"""Each class' share of the trace and its lambda_max."""

from __future__ import annotations

import nets
import numpy as np
import pytest
import torch
from figure_checks import WIDTHS, require_fit

import hessprobe as hp
from hessprobe.estimate import Estimate
from hessprobe.report.figures.classes import classes


def test_the_bars_are_those_of_the_dense_matrices_of_the_classes():
    G = hp.GaussNewton(nets.mlp((8, 3, 8, 2)).risk())
    parts = G.by_class()
    traces = {label: hp.trace(part, rtol=0.05, seed=0) for label, part in parts.items()}
    tops = {label: hp.lambda_max(part) for label, part in parts.items()}
    left, right = hp.plot({"trace": traces, "lambda-max": tops, "whole": hp.lambda_max(G)}, width=3.25)
    dense = {label: part.to_dense() for label, part in parts.items()}
    whole = float(G.to_dense().trace())
    shares = [bar.get_width() for bar in left.patches]
    assert shares == pytest.approx([100 * float(part.trace()) / whole for part in dense.values()], rel=0.05)
    assert sum(shares) == pytest.approx(100)
    highest = [float(torch.linalg.eigvalsh(part)[-1]) for part in dense.values()]
    assert [bar.get_width() for bar in right.patches] == pytest.approx(highest, rel=1e-3)
    assert [text.get_text() for text in left.get_yticklabels()] == [str(label) for label in parts]
    (line,) = [each for each in right.lines if each.get_linestyle() == "--"]
    assert line.get_xdata()[0] == pytest.approx(float(torch.linalg.eigvalsh(G.to_dense())[-1]), rel=1e-3)


TRACES = {"cat": (6.0, 0.1, 0.4), "dog": (3.0, 0.2, 0.2), "eel": (1.0, 0.0, 0.3)}
TOPS = {"cat": (2.0, 0.1, 0.1), "dog": (2.5, 0.0, 0.0), "eel": (0.5, 0.1, 0.2)}


def test_the_interval_of_a_share_holds_whatever_the_traces_have_in_common():
    found = classes(TRACES, TOPS, (3.0, 0.1, 0.1), 0.95)
    corners = np.array([[a, b, c] for a in (5.9, 6.4) for b in (2.8, 3.2) for c in (1.0, 1.3)])
    shares = 100 * corners / corners.sum(1, keepdims=True)
    for row, low, high in zip(found.data, shares.min(0), shares.max(0), strict=True):
        assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert [(row["class"], row["trace"], row["lambda_max_high"]) for row in found.data] == [
        ("cat", 6.0, 2.1), ("dog", 3.0, 2.5), ("eel", 1.0, 0.7),
    ]  # fmt: skip
    assert "class cat has the largest share of the trace, 60" in found.alt
    assert "class dog the largest lambda_max, 2.50000, that of the whole matrix is 3.00" in found.alt


def test_exact_traces_have_no_interval():
    exact = {label: (value, 0.0, 0.0) for label, value in enumerate((0.1, 0.3, 0.7, 0.9, 1.7))}
    found = classes(exact, exact, None, 0.95)
    found.figure(3.25)
    for row in found.data:
        assert row["low"] <= row["share"] <= row["high"]
        assert row["high"] - row["low"] < 1e-12


@pytest.mark.parametrize("width", WIDTHS)
def test_few_and_many_classes_fit(width):
    require_fit(classes(TRACES, TOPS, (3.0, 0.1, 0.1), 0.95), width)
    require_fit(classes({1: (1.0, 0.0, 0.0), 2: (2.0, 0.5, 0.5)}, {1: (1.0, 0.0, 0.0), 2: (1.0, 0.0, 0.0)}, None, 0.9),
                width, "dark")  # fmt: skip
    many = {label: (1.0 + label, 0.1, 0.1) for label in range(100)}
    left = require_fit(classes(many, many, None, 0.95), width).axes[0]
    assert left.get_title(loc="left") == "the 80 largest of 100"
    assert [left.get_yticklabels()[index].get_text() for index in (0, -1)] == ["20", "99"]


def test_what_is_no_measurement_of_classes_is_refused():
    one = Estimate(1.0)
    with pytest.raises(TypeError, match=r"estimates by class under 'trace' and 'lambda-max'.*got the keys trace"):
        hp.plot({"trace": {0: one}})
    with pytest.raises(TypeError, match="got the keys trace, lambda-max, frob"):
        hp.plot({"trace": {0: one}, "lambda-max": {0: one}, "frob": {0: one}})
    with pytest.raises(ValueError, match="must hold the same classes, one or more; got 1 and 2"):
        hp.plot({"trace": {0: one}, "lambda-max": {0: one, 1: one}})
    with pytest.raises(ValueError, match="traces must have a sum above 0"):
        hp.plot({"trace": {0: Estimate(0.0)}, "lambda-max": {0: one}})

from __future__ import annotations

import math

import numpy as np
import pytest

from hessprobe.validation.claims import invariance


def test_the_measures_before_and_after_are_the_known_ones():
    x, D = np.array(invariance._POINT), np.array(invariance._SCALES)
    before, after = (
        [measure(invariance.curvature(at), at) for measure in invariance.MEASURES.values()] for at in (x, D * x)
    )
    squared = [0.02224, 0.42265**0.5, 1.00388, 0.587**0.5, 1.134, 0.647]
    assert before[:6] == pytest.approx(squared, abs=6e-4)
    assert after[:6] == pytest.approx([*before[:3], 1.887**0.5, 1.793, 1.293], abs=6e-4)


def test_the_sphere_gives_the_moments_of_a_gaussian():
    H = invariance.curvature(np.array(invariance._POINT))
    S = np.linalg.inv(H)
    crossed = S[0, 0] * S[1, 2] ** 2 + S[1, 1] * S[0, 2] ** 2 + S[2, 2] * S[0, 1] ** 2
    moment = S[0, 0] * S[1, 1] * S[2, 2] + 2 * crossed + 8 * S[0, 1] * S[0, 2] * S[1, 2]
    # E r^6 = 105 for three standard normal numbers.
    expected = moment / 105 / math.sqrt(np.linalg.det(H))
    found, error = invariance._on_sphere(H, 2.0, 400_000, np.random.default_rng(0))
    assert abs(found - expected) < 4 * error < 0.02 * expected


def test_a_scaling_that_changes_the_loss_is_noticed(monkeypatch):
    monkeypatch.setattr(invariance, "_SCALES", (2.5, 0.6, 0.7))
    assert invariance.group_action().verdict == "fails"
    assert invariance.product_measures(20_000).verdict == "fails"


def test_a_measure_that_is_not_invariant_is_noticed_along_runs(monkeypatch):
    monkeypatch.setattr(invariance, "INVARIANT", (*invariance.INVARIANT, "lambda_max"))
    finding = invariance.along_runs(15)
    wrong = [part.label for part in finding.parts if not part.holds]
    assert wrong == [f"{rule}: lambda_max, most along the run" for rule in ("Frob-SAM", "Det-SAM")]


def test_the_determinant_of_a_network_moves_as_its_layers_say(monkeypatch):
    assert invariance.layer_rescaling().verdict == "holds"
    log = math.log
    monkeypatch.setattr(invariance.math, "log", lambda x: 1.01 * log(x))
    assert invariance.layer_rescaling().verdict == "fails"

from __future__ import annotations

import numpy as np
import pytest

from hessprobe.validation.claims import unified_sam, wen_ma_li


def test_the_corrected_end_of_1_sam_tends_to_the_minimum_of_the_trace():
    assert wen_ma_li.corrected(1e-9, 0.1) == pytest.approx([0.8, 1 / 7], abs=1e-6)
    assert wen_ma_li.corrected(0.02, 1e-6) == pytest.approx([0.7485, 0.110], abs=5e-4)


def test_the_minimum_of_the_trace_is_not_where_1_sam_ends(monkeypatch):
    assert wen_ma_li.one_sam(24, 3000).verdict == "holds"
    monkeypatch.setattr(wen_ma_li, "corrected", lambda eta, rho: np.array([0.8, 1 / 7]))
    assert wen_ma_li.one_sam(24, 3000).verdict == "fails"


def test_without_the_bounce_the_ode_of_full_batch_sam_is_off(monkeypatch):
    right = wen_ma_li._drifts
    monkeypatch.setattr(wen_ma_li, "_drifts", lambda *at: tuple((1.0, shift) for _, shift in right(*at)))
    finding = wen_ma_li.full_batch()
    assert (finding.verdict, finding.worst.label) == ("fails", "largest distance of x1 from the ODE")


def test_the_limits_of_the_three_notions_are_the_known_ones():
    found = {part.label: part.measured for part in wen_ma_li.limits().parts}
    assert found["worst, rho 0.1"] == pytest.approx(9.3266, abs=5e-5)
    assert found["ascent mixed"] == pytest.approx(9.0, abs=0.02)


def test_the_leading_excess_has_the_limit_that_the_recursion_gives():
    f, rates, tau = unified_sam._orthogonal_design()
    t = np.arange(1, 20_001)
    leading, limit = unified_sam._leading(f, rates.mu, tau, np.ones(3), np.minimum(0.1, 2 / (rates.mu * t)))
    assert leading[-1] * t[-1] == pytest.approx(limit, rel=1e-3)


def test_another_power_of_t_is_told_from_one_over_t(monkeypatch):
    right = unified_sam._leading

    def slower(*given):
        leading, limit = right(*given)
        return leading * np.arange(1, len(leading) + 1) ** 0.2, limit

    monkeypatch.setattr(unified_sam, "_leading", slower)
    wrong = [part.label for part in unified_sam.decreasing(200, 1500).parts if not part.holds]
    assert wrong == [f"t E delta over the second half, lam {lam}" for lam in ("0", "0.5", "1")]


def test_the_effect_of_missing_weights_depends_on_rho(monkeypatch):
    assert unified_sam.importance().verdict == "holds"
    right = unified_sam._end_of_runs
    monkeypatch.setattr(unified_sam, "_end_of_runs", lambda f, p, weights, rho: right(f, p, weights, 0.0))
    finding = unified_sam.importance()
    assert finding.verdict == "fails"
    assert {part.label[4:] for part in finding.parts if not part.holds} == {"rule without weights"}

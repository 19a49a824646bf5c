from __future__ import annotations

import math

import nets
import pytest
import torch
from invariance_nets import dense, dense_risk
from torch import nn

from hessprobe.errors import UnsupportedError
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.invariance import check_invariance, find_sites
from hessprobe.invariance.check import Applied, Line, apply
from hessprobe.invariance.names import CHANGES, DENSE_LIMIT, INVARIANT, NOT_MEASURED, UNDECIDED
from hessprobe.invariance.run import Runner
from hessprobe.invariance.verdict import Theory, compare, expected
from hessprobe.measures import MeasureSettings, Result
from hessprobe.measures.registry import log_pseudo_determinant
from hessprobe.objective import EmpiricalRisk, Quadratic
from hessprobe.objective.copying import risk_of
from hessprobe.operators import DenseOperator

OWN = ("adaptive-lambda-max", "adaptive-trace", "adaptive-frob")


class Half(nn.Module):
    """Half the squared error of one output, a mean over examples."""

    def forward(self, outputs, targets):
        return (outputs - targets).square().sum(1).mean() / 2


def two_layer_risk(activation, widths=(3, 4, 1)):
    """Regression off its minimum; with LeakyReLU the Hessian has full rank."""
    net = dense(widths, activation, bias=False)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, widths[0], generator=generator).double()
    y = torch.randn(40, widths[-1], generator=generator).double()
    return EmpiricalRisk(net, Half(), [(x, y)]), x


def moved(risk, kind, strength, seed=0):
    runner = Runner.of(risk)
    applied, state = apply(runner, find_sites(risk).of(kind), strength, seed)
    return applied, risk_of(risk, runner.written(state))


@pytest.mark.parametrize("strength", [2.0, 0.3])
def test_determinant_under_layer_rescaling(strength):
    # W1 is 4 x 3 and W2 is 1 x 4: det D = c^(12 - 4), so that det H moves by c^(-2 (12 - 4)).
    risk, _ = two_layer_risk(nn.LeakyReLU)
    applied, other = moved(risk, "layer-rescaling", strength)
    assert applied.log_volume == pytest.approx(8 * math.log(strength), rel=1e-12)
    before, after = (torch.linalg.slogdet(nets.full_hessian(one)) for one in (risk, other))
    assert before.sign == after.sign
    assert float(after.logabsdet - before.logabsdet) == pytest.approx(-16 * math.log(strength), abs=1e-8)
    (line,) = check_invariance(risk, ["pseudo-logdet"], ["layer-rescaling"], [strength])
    assert line.verdict == CHANGES
    assert line.compared.difference == pytest.approx(-16 * math.log(strength), abs=1e-8)
    assert line.theory.predicted == pytest.approx(-16 * math.log(strength), abs=1e-8)
    assert not line.surprising


def test_trace_of_a_linear_network_by_hand():
    # f = w2 W1 x: tr over W1 is |w2|^2 m, over w2 is |W1 X|^2, m = mean |x|^2; the second differentials off the
    # diagonal blocks do not enter. With W1 c and w2 / c: |w2|^2 m / c^2 + c^2 mean |W1 x|^2.
    risk, x = two_layer_risk(nn.Identity)
    W1, w2 = risk.module[0].weight.detach(), risk.module[2].weight.detach()
    first, second = float(w2.square().sum() * x.square().sum(1).mean()), float((x @ W1.T).square().sum(1).mean())
    lines = list(check_invariance(risk, ["trace"], ["layer-rescaling"], [2.0, 10.0]))
    for line, c in zip(lines, (2.0, 10.0), strict=True):
        assert line.before.value == pytest.approx(first + second, rel=1e-9)
        assert line.after.value == pytest.approx(first / c**2 + second * c**2, rel=1e-9)
        assert line.compared.ratio == pytest.approx((first / c**2 + second * c**2) / (first + second), rel=1e-9)
        assert line.verdict == CHANGES


def test_pseudo_determinant_with_null_directions():
    # Cross-entropy: the shift of all logits is a null direction, so that -2 log det D is not what det H moves by.
    risk = dense_risk((3, 4, 3), nn.LeakyReLU)
    (line,) = check_invariance(risk, ["pseudo-logdet"], ["layer-rescaling"], [2.0])
    assert line.before.details["rank"] < risk.dim
    assert abs(line.compared.difference + 2 * line.applied.log_volume) > 0.1
    assert line.compared.difference == pytest.approx(line.theory.predicted, abs=1e-6)
    values = torch.linalg.eigvalsh(nets.full_hessian(risk)).abs()
    oracle = float(values[values > 1e-12].log().sum())
    assert line.before.value == pytest.approx(oracle, abs=1e-6)


def test_unit_rescaling_preserves_volume_and_the_determinant_of_a_full_rank_hessian():
    risk, _ = two_layer_risk(nn.LeakyReLU)
    (line,) = check_invariance(risk, ["pseudo-logdet"], ["unit-rescaling"], [10.0])
    assert line.applied.log_volume == pytest.approx(0, abs=1e-12)
    assert line.verdict == INVARIANT
    assert line.reason == "the factors preserve volume, det D = 1"
    assert float(line.applied.factors.max()) >= 10 - 1e-9


@pytest.mark.parametrize("kind", ["unit-rescaling", "layer-rescaling"])
def test_hessian_follows_the_factors(kind):
    risk = dense_risk((3, 4, 3), nn.LeakyReLU)
    applied, other = moved(risk, kind, 3.0)
    D = applied.factors
    torch.testing.assert_close(
        nets.full_hessian(other), nets.full_hessian(risk) / D[:, None] / D[None, :], rtol=1e-9, atol=1e-11
    )


def test_adaptive_measures_stay_and_plain_ones_change():
    risk = dense_risk((3, 4, 3), nn.LeakyReLU)
    measures = ("lambda-max", "trace", *OWN)
    lines = list(check_invariance(risk, measures, ["unit-rescaling", "layer-rescaling"], [10.0]))
    assert len(lines) == 10
    H, w = nets.full_hessian(risk), risk.theta.abs()
    C = H * w[:, None] * w[None, :]
    truth = dict(zip(OWN, (torch.linalg.eigvalsh(C)[-1], C.trace(), C.norm()), strict=True))
    for line in lines:
        assert line.verdict == (INVARIANT if line.measure in OWN else CHANGES), line.measure
        assert not line.surprising
        if line.measure in truth:
            for one in (line.before, line.after):
                slack = 4 * one.std_error + one.errors.solver + 1e-9
                assert abs(one.value - float(truth[line.measure])) <= slack
                assert slack < 0.05 * float(truth[line.measure])


def test_permutation_leaves_every_measure():
    risk = dense_risk((3, 4, 3), nn.Tanh)
    measures = ("lambda-max", "trace", "frob", "pseudo-logdet", *OWN)
    lines = list(check_invariance(risk, measures, settings=MeasureSettings(rtol=0.005)))
    assert [line.applied.kind for line in lines] == ["permutation"] * 7
    assert {line.verdict for line in lines} == {INVARIANT}
    assert {line.applied.strength for line in lines} == {None}
    _, other = moved(risk, "permutation", None)
    assert not torch.equal(risk.theta, other.theta)
    spectra = [torch.linalg.eigvalsh(nets.full_hessian(one)) for one in (risk, other)]
    torch.testing.assert_close(*spectra, rtol=1e-9, atol=1e-12)


def test_what_shares_no_probes_has_independent_errors(monkeypatch):
    from hessprobe.invariance import check

    seeds = []

    def spy(names, risk, settings, report=None, operator=None, missing=None):
        seeds.append(settings.seed)
        return [Result(Estimate(1.0), measure=name, operator="hessian", unit="curvature") for name in names]

    monkeypatch.setattr(check, "measure_all", spy)
    list(check_invariance(dense_risk(), ["logdet"], ["permutation"], settings=MeasureSettings(seed=3)))
    assert len(set(seeds)) == 2


def test_some_parameters_only():
    risk = dense_risk((3, 4, 3), nn.ReLU, params="2.*")
    (line,) = check_invariance(risk, ["adaptive-trace"], ["layer-rescaling"], [2.0])
    assert line.applied.factors.tolist() == [0.5] * 12 + [1.0] * 3
    assert line.verdict == INVARIANT
    head = dense_risk((3, 4, 3), nn.ReLU, params="2.bias")
    (line,) = check_invariance(head, ["trace"], ["layer-rescaling"], [2.0])
    assert (line.verdict, line.reason) == (INVARIANT, "it moves no parameter that is measured")


def number(value, error=0.0, solver=0.0, **more):
    return Estimate(value, ErrorParts(probe=error, solver=solver), **more)


@pytest.mark.parametrize(
    ("before", "after", "verdict", "z"),
    [
        (number(1, 0.003), number(1.003, 0.004), INVARIANT, 0.6),
        (number(1, 0.003), number(1.019, 0.004), INVARIANT, 3.8),
        (number(1, 0.003), number(1.021, 0.004), CHANGES, 4.2),
        (number(1, 0.03), number(1.1, 0.04), UNDECIDED, 2.0),
        (number(1, 0.0, 0.01), number(1.019, 0.0, 0.01), INVARIANT, 3.8),
        (number(1, 0.0, 0.01), number(1.021, 0.0, 0.01), CHANGES, 4.2),
        (number(1, 0.0, 0.04), number(1.0, 0.0, 0.04), UNDECIDED, 0.0),
        (number(1, 0.003, df=5), number(1.03, 0.004), UNDECIDED, 6.0),
        (number(1), number(math.nan), UNDECIDED, math.nan),
        (number(1, details={"rank": 3}), number(9, details={"rank": 2}), UNDECIDED, math.inf),
    ],
)
def test_verdicts(before, after, verdict, z):
    found = compare("trace", before, after, rounding=0.0)
    assert found.verdict == verdict
    assert found.z == pytest.approx(z, nan_ok=True)


def test_rounding_is_no_change_and_resolution_decides():
    assert compare("trace", number(1), number(1 + 1e-6), rounding=1e-5).verdict == INVARIANT
    assert compare("trace", number(1), number(1 + 1e-4), rounding=1e-5).verdict == CHANGES
    pair = number(1, 0.03), number(1, 0.04)
    assert compare("trace", *pair, rounding=0.0, resolution=0.3).verdict == INVARIANT


def test_logarithmic_measures_are_compared_by_their_difference():
    found = compare("pseudo-logdet", number(-10), number(-12), rounding=0.0)
    assert found.ratio == pytest.approx(math.exp(-2))
    assert compare("trace", number(-10), number(-12), rounding=0.0).ratio == pytest.approx(1.2)


def line_of(before, after, theory):
    applied = Applied("unit-rescaling", 2.0, (), 0.0, 1e-10, torch.ones(1))
    return Line(applied, "trace", before, after, compare("trace", before, after, rounding=0.0), theory)


def test_no_sample_is_evidence_against_a_theorem():
    close = number(1, 0.003), number(1.003, 0.004)
    assert line_of(*close, Theory(False, "")).verdict == UNDECIDED
    assert line_of(*close, Theory(True, "")).verdict == INVARIANT
    assert line_of(number(1), number(1), Theory(False, "")).verdict == INVARIANT


def test_contradictions_are_seen():
    far = number(1, 0.003), number(1.1, 0.004)
    assert line_of(*far, Theory(True, "", 0.0)).surprising
    assert line_of(*far, Theory(True, "")).surprising
    assert not line_of(*far, Theory(False, "")).surprising
    assert not line_of(*far, Theory(False, "", 0.1)).surprising
    assert line_of(*far, Theory(False, "", 0.2)).surprising


def test_reasons():
    D = torch.tensor([0.5, 2.0]).double()
    assert expected("trace", "unit-rescaling", D, number(1)).reason == (
        "H becomes D^-1 H D^-1 with factors D from 0.5 to 2: not orthogonal, so the eigenvalues move"
    )
    assert "damping stays" in expected("logdet", "unit-rescaling", D, number(1)).reason
    assert expected("adaptive-frob", "unit-rescaling", D, number(1)).invariant is True
    assert "orthogonal: the spectrum stays" in expected("trace", "permutation", torch.ones(2), number(1)).reason


def test_outputs_that_move_are_not_measured(monkeypatch):
    monkeypatch.setattr(Runner, "distance", lambda *_, few=False: 0.0 if few else 0.5)
    (line,) = check_invariance(dense_risk(), ["trace"], ["layer-rescaling"], [2.0])
    assert line.verdict == NOT_MEASURED
    assert line.reason == "the outputs move by 5.0e-01 of the largest, more than 1e-10"


def test_pseudo_logdet_refuses_what_is_too_large_or_zero():
    with pytest.raises(UnsupportedError, match=f"at most {DENSE_LIMIT} parameters; got {DENSE_LIMIT + 1}"):
        log_pseudo_determinant(DenseOperator(torch.eye(DENSE_LIMIT + 1).double()))
    with pytest.raises(UnsupportedError, match="got the zero matrix"):
        log_pseudo_determinant(DenseOperator(torch.zeros(3, 3).double()))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"measures": ["tracee"]}, ValueError, "measure must be one of .*; got 'tracee'. Did you mean 'trace'"),
        ({"transforms": ["permute"]}, ValueError, "transform must be one of .*; got 'permute'."),
        ({"strengths": [1.0]}, ValueError, "strength must be another number than 1; got 1."),
        ({"strengths": [0.0]}, ValueError, "strength must be a finite number > 0; got 0.0"),
        ({"strengths": [math.nan]}, ValueError, "strength must be a finite number > 0; got nan"),
        ({"resolution": 1.0}, ValueError, r"resolution must be a number in \(0, 1\); got 1.0"),
        ({"transforms": ["qk-rescaling"]}, UnsupportedError, "qk-rescaling does; got a network without such layers"),
    ],
)
def test_bad_arguments(options, kind, message):
    with pytest.raises(kind, match=message):
        list(check_invariance(dense_risk(), **options))


def test_transform_that_an_activation_forbids_is_explained():
    with pytest.raises(UnsupportedError, match="got at 0: Tanh 1 is not positively homogeneous; at 2: Tanh 3"):
        list(check_invariance(dense_risk(activation=nn.Tanh), transforms=["unit-rescaling"]))


def test_other_objectives_are_refused():
    with pytest.raises(TypeError, match=r"risk must be an EmpiricalRisk; got Quadratic\. A transform needs the module"):
        list(check_invariance(Quadratic(torch.eye(2).double())))

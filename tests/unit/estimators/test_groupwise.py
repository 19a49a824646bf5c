"""The data error of traces from groups of examples: against exact groups, of shifts, and where there is none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import hessprobe as hp
from hessprobe.operators import Shifted


def risk_of(seed: int, sizes: tuple[int, ...], width: int = 8, sparse: bool = False) -> hp.EmpiricalRisk:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), 6, generator=generator, dtype=torch.float64)
    y = x[:, :3].argmax(1)
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 3)] if sparse else [nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3)]
    inputs = [each.to_sparse_csr() if sparse else each for each in x.split(sizes)]
    return hp.EmpiricalRisk(
        nn.Sequential(*layers).double(), nn.CrossEntropyLoss(), list(zip(inputs, y.split(sizes), strict=True))
    )


@pytest.mark.parametrize(("seed", "sizes"), [(0, (300, 100)), (1, (200,)), (2, (60, 90, 50))])
def test_a_sampled_trace_tells_the_data_error_of_the_exact_one(seed: int, sizes: tuple[int, ...]) -> None:
    risk = risk_of(seed, sizes)
    dense = hp.trace(hp.Hessian(risk), method="exact").errors.data
    assert dense is not None
    H = hp.Hessian(risk)
    found = [hp.trace(H, n_probes=8, method="hutchinson", seed=number) for number in range(40)]
    told = [estimate.errors.data for estimate in found if estimate.errors.data is not None]
    assert len(told) >= 20
    # What is told is selected where noise drowns part of the runs, and then too large: 3 and more where the number of
    # probes rested on what they said.
    assert 0.8 * dense < math.sqrt(sum(error**2 for error in told) / len(told)) < 1.6 * dense
    assert {estimate.matvecs for estimate in found[1:]} == {found[1].matvecs}


def test_a_shift_leaves_the_data_error_of_a_trace() -> None:
    risk = risk_of(0, (30, 10))
    plain, shifted = hp.trace(hp.GaussNewton(risk)), hp.trace(Shifted(hp.GaussNewton(risk), 0.5))
    assert plain.errors.data is not None
    assert shifted.errors.data == pytest.approx(plain.errors.data, rel=1e-9)
    assert shifted.value == pytest.approx(plain.value + 0.5 * risk.dim)
    A = Shifted(hp.GaussNewton(risk), 0.5)
    for operator in (A, A.grouped(16)):
        total = sum(weight * term.to_dense() for weight, term in operator.terms())
        torch.testing.assert_close(total, hp.GaussNewton(risk).to_dense() + 0.5 * torch.eye(risk.dim).double())


def test_one_example_has_no_data_error_and_no_flag() -> None:
    for operator in (hp.GaussNewton(risk_of(0, (1,))), hp.Hessian(risk_of(0, (1,)))):
        estimate = hp.trace(operator)
        assert (estimate.errors.data, estimate.flags) == (None, ())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_inputs_that_cannot_be_cut_keep_their_batches() -> None:
    compressed, dense = hp.Hessian(risk_of(0, (40,), sparse=True)), hp.Hessian(risk_of(0, (40,)))
    assert compressed.grouped(16) is compressed
    assert dense.grouped(16) is not dense
    exact = float(compressed.to_dense().trace())
    assert hp.trace(compressed, method="exact").value == pytest.approx(exact)
    assert hp.frobenius_norm(compressed, n_probes=8).value > 0


def test_known_traces_ask_for_no_engine() -> None:
    G = hp.GaussNewton(risk_of(0, (40,)))
    assert hp.trace(G).errors.data is not None
    assert G.engine_name == "auto"


def test_the_draws_of_a_fisher_matrix_have_one_memory_and_probes_of_their_own() -> None:
    risk = risk_of(0, (40,))
    F = hp.Fisher(risk, kind="mc", n_draws=4, memory=10**6)
    assert len({id(each._source.budget) for each in (F, *F.draws)}) == 1
    values = torch.tensor([hp.trace(F, n_probes=2, seed=seed, data_error=False).value for seed in range(60)]).double()
    about = values - values.mean()
    # 0.75 where neighbouring seeds share three of four sets of probes; two standard errors of zero are 0.26.
    assert abs(float((about[1:] * about[:-1]).sum() / about.square().sum())) < 0.35
    assert math.isfinite(hp.trace(F, n_probes=2, seed=2**63 - 1).value)


def test_a_piecewise_linear_network_tells_its_data_error_by_two_probes_inside_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 6, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    # More outputs than the trace is summed over.
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 70)).double()
    risk = hp.EmpiricalRisk(module, nn.CrossEntropyLoss(), [(x, x[:, :3].argmax(1))])
    dense = hp.trace(hp.Hessian(risk), method="exact").errors.data
    H = hp.Hessian(risk)
    bare = hp.trace(H, rtol=1e-3, data_error=False)
    found = hp.trace(H, rtol=1e-3)
    assert found.method == bare.method == "hutchinson+blocks+surrogate"
    assert found.errors.data == pytest.approx(dense, rel=1e-9)
    # Two probes inside two blocks, with either matrix; the surrogate's diagonal is known by then.
    assert found.matvecs < bare.matvecs + 2 * 2 * 2

"""Batches cut into groups of examples: the same objective, or none where the examples cannot be told apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprobe as hp
from hessprobe.objective.checking import by_groups
from hessprobe.operators import Block, BlockDiagonal, Combination, Congruence, Counted, Deflated, LinearOperator
from hessprobe.operators.algebra import Reordered


def _risk(sizes: tuple[int, ...], loss: object = None, **how: object) -> hp.EmpiricalRisk:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    data = [(torch.randn(n, 3).double(), torch.randint(3, (n,))) for n in sizes]
    return hp.EmpiricalRisk(model, loss or nn.CrossEntropyLoss(), data, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [((64,), 16), ((40, 24), 16), ((17, 17, 3), 18), ((5,), 5), ((30, 2, 2, 2), 17), ((1,), None)],
)
def test_groups_are_the_same_objective(sizes: tuple[int, ...], groups: int | None) -> None:
    risk = _risk(sizes)
    found = by_groups(risk, 16)
    if groups is None:
        assert found is None
        return
    assert found is not None
    assert found.n_terms == groups
    terms = list(found.terms())
    assert len(terms) == groups
    assert sum(term.weight for term in terms) == pytest.approx(1.0)
    assert float(found.loss()) == pytest.approx(float(risk.loss()), rel=1e-12)
    torch.testing.assert_close(found.gradient(), risk.gradient())


def test_as_many_batches_are_left_alone() -> None:
    assert by_groups(_risk((4,) * 16), 16) is None
    assert by_groups(_risk((4,) * 15), 16) is not None


def test_ignored_targets_carry_no_weight() -> None:
    risk = _risk((64,), nn.CrossEntropyLoss(ignore_index=2))
    found = by_groups(risk, 16)
    assert found is not None
    weights = [term.weight for term in found.terms()]
    assert max(weights) > 1.2 * min(weights)
    assert float(found.loss()) == pytest.approx(float(risk.loss()), rel=1e-12)


def _contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    unit = F.normalize(outputs, dim=1)
    return F.cross_entropy(unit @ unit.T / 0.5, torch.arange(len(unit)))


def test_examples_that_see_each_other_stay_together() -> None:
    risk = _risk((32, 32), _contrastive)
    assert by_groups(risk, 16) is None
    assert any("others would give another" in caveat for caveat in risk.caveats)
    found = hp.eigsh(hp.Hessian(risk, engine="double_backward"), 1, "largest").estimate(0)
    assert found.errors.data_df == pytest.approx(1.0)


def test_a_loss_for_one_number_of_examples_is_not_cut() -> None:
    def ranking(outputs: Tensor, targets: Tensor) -> Tensor:
        gaps = outputs[:, :1] - outputs[:, 0]
        return F.softplus(gaps)[torch.triu(torch.ones(32, 32), 1) > 0].mean() + 0 * targets.sum()

    assert by_groups(_risk((32,), ranking), 16) is None


def test_a_loss_of_ones_own_forward_is_not_cut() -> None:
    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

    model = nn.Linear(3, 3).double()
    data = [(torch.randn(8, 3).double(), torch.randint(3, (8,)))]
    assert by_groups(hp.EmpiricalRisk(model, None, data, forward=forward), 16) is None


def test_what_reads_the_statistics_of_a_batch_is_not_cut() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    data = [(torch.randn(32, 3).double(), torch.randint(3, (32,)))]
    assert by_groups(hp.EmpiricalRisk(model, nn.CrossEntropyLoss(), data, batchnorm="batch"), 16) is None
    assert by_groups(hp.EmpiricalRisk(model, nn.CrossEntropyLoss(), data), 16) is not None


@pytest.mark.parametrize("make", [hp.Hessian, hp.GaussNewton, hp.Fisher])
def test_matrices_of_the_groups_add_up_for_one_product(make: Callable[..., LinearOperator]) -> None:
    A = Counted(make(_risk((24, 8)), engine="double_backward") if make is hp.Hessian else make(_risk((24, 8))))
    finer = A.grouped(16)
    assert (finer.n_terms, A.grouped(2) is A) == (16, True)
    V = torch.randn(3, A.dim).double()
    whole = A.matvecs(V)
    before = A.matvec_count
    total = torch.zeros_like(V)
    for weight, term in finer.terms():
        total.add_(term.matvecs(V), alpha=weight)
    torch.testing.assert_close(total, whole)
    assert A.matvec_count - before == pytest.approx(3.0)


def test_wrapped_operators_have_the_groups_of_the_inner_one() -> None:
    H = hp.Hessian(_risk((24, 8)), engine="double_backward")
    basis = torch.linalg.qr(torch.randn(H.dim, 2).double())[0].T.contiguous()
    order = torch.randperm(H.dim)
    wrapped = [
        Block(H, slice(0, 12)),
        Deflated(H, basis),
        Congruence(H, torch.rand(H.dim).double()),
        BlockDiagonal(H, [slice(0, 12), slice(12, H.dim)]),
        Reordered(H, order),
        Combination([H, hp.GaussNewton(H.risk)], [2.0, -1.0]),
    ]
    for A in wrapped:
        finer, v = A.grouped(16), torch.randn(1, A.dim).double()
        assert finer.n_terms == 16, A
        total = sum(weight * term.matvecs(v) for weight, term in finer.terms())
        torch.testing.assert_close(total, A.matvecs(v), msg=repr(A))
        torch.testing.assert_close(finer.matvecs(v), A.matvecs(v), msg=repr(A))

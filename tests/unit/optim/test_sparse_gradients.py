"""Embeddings with sparse gradients: every rule takes the steps that it takes with dense ones, or says why not."""

from __future__ import annotations

import pytest
import torch
from contracts.optim_rows.harness import flat_weights, step
from contracts.optim_rows.row import Row
from contracts.optim_rows.table import all_rows
from torch import nn

from hessprobe.optim import SAM, LookbehindSAM, VaSSO, registry

TWICE = {"eigen-sam", "x-sam", "sassha"}
# The last two of six rows are never looked up.
ROWS, LOOKED_UP = 6, 4


class Table(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = nn.Embedding(ROWS, 4, sparse=sparse, dtype=torch.float64)
        self.head = nn.Sequential(nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)).double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table((x[:, :2] > 0).long() @ torch.tensor([1, 2])))


def build(row: Row, module: nn.Module) -> torch.optim.Optimizer:
    entry = registry.get(row.name)
    arguments = {**dict(entry.arguments), **row.arguments, "rho": row.rho}
    if row.needs_model:
        arguments["model"] = module
    if entry.standalone:
        return entry.load()(list(module.parameters()), **arguments)
    return entry.load()(torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), **arguments)


@pytest.mark.parametrize("row", all_rows(), ids=lambda row: row.id)
def test_a_rule_takes_the_steps_that_it_takes_with_dense_gradients(row: Row):
    modules = [Table(sparse) for sparse in (True, False)]
    sparse, dense = (build(row, module) for module in modules)
    if row.name in TWICE:
        with pytest.raises(TypeError, match=r"gradients must be dense where a rule differentiates twice; got sparse"):
            step(sparse, modules[0], 1)
        return
    for t in range(1, 5):
        step(sparse, modules[0], t)
        step(dense, modules[1], t)
        # SAMPa goes on after its step, and leaves none.
        assert row.evaluates_after_step or modules[0].table.weight.grad.is_sparse == sparse.takes_sparse
    assert float((flat_weights(modules[0]) - flat_weights(modules[1])).abs().max()) < 1e-11
    assert not torch.equal(flat_weights(modules[0]), flat_weights(Table(True)))


def lookup(table: nn.Embedding, optimizer: torch.optim.Optimizer, rows: list[int], factor: float = 1.0):
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = factor * table(torch.tensor(rows)).square().sum()
        loss.backward()
        return loss

    return closure


def test_a_base_that_wants_sparse_gradients_sees_the_rows_that_were_reached():
    # SparseAdam changes the state of a row that is there with a zero gradient: bit for bit, it must be there.
    tables = [nn.Embedding(5, 3, sparse=True) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    plain = torch.optim.SparseAdam(tables[0].parameters(), lr=0.1)
    wrapped = SAM(torch.optim.SparseAdam(tables[1].parameters(), lr=0.1), rho=0.0)
    for rows, factor in (([0, 2], 1.0), ([1], 1.0), ([0, 3], 0.0), ([2, 0], 1.0)):
        plain.step(lookup(tables[0], plain, rows, factor))
        wrapped.step(lookup(tables[1], wrapped, rows, factor))
        assert sorted(tables[1].weight.grad._indices()[0].tolist()) == sorted(rows)
    assert torch.equal(tables[0].weight, tables[1].weight)


def test_rows_that_a_rule_fills_from_earlier_steps_are_handed_on():
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = LookbehindSAM(torch.optim.SGD(table.parameters(), lr=0.1), rho=0.1, k=2, alpha=0.5)
    before = table.weight.detach().clone()
    optimizer.step(lookup(table, optimizer, [1, 4]))
    assert ((table.weight != before).any(1)).tolist() == [False, True, False, False, True]
    vasso = VaSSO(torch.optim.SGD(table.parameters(), lr=0.1), rho=0.1)
    for rows in ([0], [3]):
        vasso.step(lookup(table, vasso, rows))
    # The second ascent went along both rows, and the gradient there is of the one that was looked up.
    assert table.weight.grad._indices().tolist() == [[3]]


def test_a_table_that_is_a_dense_layer_as_well_has_a_dense_gradient():
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = SAM(torch.optim.SGD(table.parameters(), lr=0.1), rho=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (table(torch.tensor([1])) @ table.weight.T).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not table.weight.grad.is_sparse


def test_a_gradient_that_turns_dense_within_a_step_stays_dense():
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = SAM(torch.optim.SGD(table.parameters(), lr=0.1), rho=0.1)
    calls = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        calls.append(1)
        loss = table(torch.tensor([1])).square().sum() if len(calls) == 1 else table.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not table.weight.grad.is_sparse


def test_sparse_gradients_that_were_accumulated_are_refused_as_dense_ones_are():
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = SAM(torch.optim.SGD(table.parameters(), lr=0.1), rho=0.1)
    optimizer.step(lookup(table, optimizer, [1]))
    table.weight.grad = None
    table(torch.tensor([2])).square().sum().backward()

    def keeping() -> torch.Tensor:
        loss = table(torch.tensor([1])).square().sum()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="gradients must be empty when SAM"):
        optimizer.step(keeping)
    assert table.weight.grad._indices().tolist() == [[2]]
    optimizer.step(lookup(table, optimizer, [1]))


def test_sparse_gradients_of_elements_are_refused():
    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = SAM(torch.optim.SGD([weight], lr=0.1), rho=0.1)

    def closure() -> torch.Tensor:
        weight.grad = torch.eye(3)[:, :2].to_sparse()
        return torch.ones(())

    with pytest.raises(
        TypeError, match=r"gradients must be dense or sparse in rows, .* parameter 0, of shape \(3, 2\)"
    ):
        optimizer.step(closure)

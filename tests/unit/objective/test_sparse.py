"""Sparse inputs and sparse buffers (adjacency matrices) give the numbers of the same matrices written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hessprobe.estimators import frobenius_norm, trace
from hessprobe.hvp import Hessian
from hessprobe.objective import EmpiricalRisk


class Graph(nn.Module):
    """One layer of a graph network: neighbours are averaged by a matrix that is a buffer."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("matrix", matrix)
        self.first, self.second = nn.Linear(3, 3).double(), nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.mm(self.matrix, self.first(x)).tanh())


def adjacency() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(5, 5, generator=generator) * (torch.rand(5, 5, generator=generator) > 0.5)).double()


def numbers(module: nn.Module, x: Tensor) -> list[float]:
    operator = Hessian(EmpiricalRisk(module, nn.CrossEntropyLoss(), [(x, torch.tensor([0, 1, 0, 1, 1]))]))
    return [trace(operator, seed=0).value, frobenius_norm(operator, seed=0, rtol=1e-6).value]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", ["coo", "csr"])
def test_a_sparse_buffer(kind):
    matrix, x = adjacency(), torch.randn(5, 3, generator=torch.Generator().manual_seed(2)).double()
    sparse = matrix.to_sparse() if kind == "coo" else matrix.to_sparse_csr()
    assert numbers(Graph(sparse), x) == pytest.approx(numbers(Graph(matrix), x), rel=1e-8)


def test_sparse_inputs():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(2)).double().relu()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    assert numbers(model, x.to_sparse()) == pytest.approx(numbers(model, x), rel=1e-8)

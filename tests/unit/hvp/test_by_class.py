"""The Gauss-Newton matrix as a sum over classes, against dense matrices of their examples."""

from __future__ import annotations

import nets
import pytest
import torch
from torch import Tensor, nn

import hessprobe as hp
from hessprobe.errors import UnsupportedError


def _of_class(case: nets.Case, label: int) -> tuple[Tensor, int]:
    """G of the mean loss over the examples of one class, by Jacobians and softmax alone, and their number."""
    names = [name for name, _ in case.module.named_parameters()]
    x = torch.cat([x[y == label] for x, y in case.data])

    def outputs(*tensors: Tensor) -> Tensor:
        return torch.func.functional_call(case.module, dict(zip(names, tensors, strict=True)), (x,))

    parameters = tuple(p.detach() for p in case.module.parameters())
    jacobians = torch.autograd.functional.jacobian(outputs, parameters)
    J = torch.cat([part.reshape(*part.shape[:2], -1) for part in jacobians], dim=2)
    p = outputs(*parameters).softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("sci,scd,sdj->ij", J, middle, J) / len(x), len(x)


def test_the_parts_are_the_matrices_of_the_classes_and_add_up() -> None:
    case = nets.mlp((8, 3, 8, 2))
    G = hp.GaussNewton(case.risk())
    parts = G.by_class()
    assert list(parts) == sorted({int(label) for _, y in case.data for label in y})
    dense = G.to_dense()
    for label, part in parts.items():
        own, count = _of_class(case, label)
        assert torch.allclose(part.to_dense(), own * count / 21, rtol=0, atol=1e-12)
        assert part.psd
        assert float(hp.lambda_max(part)) <= float(torch.linalg.eigvalsh(dense)[-1]) * (1 + 1e-9)
    assert torch.allclose(sum(part.to_dense() for part in parts.values()), dense, rtol=0, atol=1e-12)
    traces = [hp.trace(part, rtol=0.01, seed=0).value for part in parts.values()]
    assert sum(traces) == pytest.approx(float(dense.trace()), rel=0.02)


def test_a_class_that_only_some_batches_have_and_labels_that_are_ignored() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    x, y = torch.randn(9, 3).double(), torch.tensor([0, 0, 0, 2, 2, -100, 1, 0, -100])
    data = list(zip(x.split(3), y.split(3), strict=True))
    risk = hp.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    parts = hp.GaussNewton(risk).by_class()
    assert list(parts) == [0, 1, 2]
    for label, part in parts.items():
        own, count = _of_class(nets.Case(model, data, None), label)
        assert torch.allclose(part.to_dense(), own * count / 7, rtol=0, atol=1e-13)


def test_weights_of_classes_are_kept() -> None:
    case = nets.mlp((8, 8))
    case = nets.Case(case.module, case.data, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 3.0]).double()))
    G = hp.GaussNewton(case.risk())
    parts = G.by_class()
    assert torch.allclose(sum(part.to_dense() for part in parts.values()), G.to_dense(), rtol=0, atol=1e-12)
    weight, total = 2.0, sum(float(case.loss.weight[y].sum()) for _, y in case.data)
    own, count = _of_class(case, 1)
    assert torch.allclose(parts[1].to_dense(), own * count * weight / total, rtol=0, atol=1e-12)


class Compared(nn.Module):
    """A loss between examples."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs - outputs.mean(0), targets)


def test_what_is_no_sum_over_classes_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="one integer label an example"):
        hp.GaussNewton(nets.regression().risk()).by_class()
    with pytest.raises(UnsupportedError, match="one integer label an example"):
        hp.GaussNewton(nets.attention().risk()).by_class()
    with pytest.raises(UnsupportedError, match="cannot be cut into classes"):
        hp.GaussNewton(nets.cnn().risk(batchnorm="batch")).by_class()
    case = nets.mlp((8, 8))
    with pytest.raises(UnsupportedError, match="do not add up"):
        hp.GaussNewton(nets.Case(case.module, case.data, Compared()).risk()).by_class()

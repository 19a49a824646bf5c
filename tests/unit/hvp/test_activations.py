"""Curvature with respect to inputs and activations, against dense Hessians of the examples' own losses."""

from __future__ import annotations

from collections.abc import Callable

import nets
import pytest
import torch
from oracles import symmetric
from torch import Tensor, nn

import hessprobe as hp
from hessprobe.errors import UnsupportedError
from hessprobe.krylov import block_lambda_max
from hessprobe.operators import DenseOperator

F64 = torch.float64


def _own_hessians(case: nets.Case, rest: Callable[[Tensor], Tensor], at: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """d^2 l_i / d a_i^2 of every example by torch alone."""
    found = []
    for x, y in case.data:
        for a, target in zip(at(x).detach(), y, strict=True):
            H = torch.autograd.functional.hessian(lambda v, t=target: case.loss(rest(v[None]), t[None]), a)
            found.append(H.reshape(a.numel(), a.numel()))
    return found


PLACES = {
    "input": (lambda m: m, lambda m: lambda x: x),
    "0": (lambda m: m[1:], lambda m: m[0]),
    "1": (lambda m: m[2:], lambda m: m[:2]),
}


@pytest.mark.parametrize("place", list(PLACES))
def test_the_hessian_is_that_of_every_example_over_their_number(place: str) -> None:
    case = nets.mlp((5, 3, 2))
    rest, at = (make(case.module) for make in PLACES[place])
    own = _own_hessians(case, rest, at)
    H = hp.Hessian(case.risk(), wrt=place)
    expected = torch.block_diag(*own) / 10
    assert H.shape == expected.shape
    assert torch.allclose(H.to_dense(), expected, rtol=0, atol=1e-12)
    assert torch.allclose(H.block("example.3").to_dense() * 10, own[3], rtol=0, atol=1e-11)
    assert torch.allclose(sum(w * t.to_dense() for w, t in H.terms()), expected, rtol=0, atol=1e-12)
    found = H.example_lambda_max(rtol=1e-9)
    exact = torch.stack([torch.linalg.eigvalsh(each)[-1] for each in own])
    assert torch.allclose(found.values, exact, rtol=1e-7, atol=1e-9)
    assert found.matvecs <= len(own[0]) + 1
    assert float(hp.lambda_max(H)) == pytest.approx(float(exact.max()) / 10, rel=0.01)
    assert not case.module[0]._forward_hooks


def test_images_and_the_gauss_newton_matrix() -> None:
    case = nets.cnn()
    G = hp.GaussNewton(case.risk(), wrt="input")
    assert G.dim == 14 * 36
    # Linear in the input between kinks: no curvature of the network itself.
    H = hp.Hessian(case.risk(), wrt="input")
    assert torch.allclose(G.to_dense(), H.to_dense(), rtol=0, atol=1e-12)
    trace = hp.trace(G, rtol=0.02, seed=0)
    assert abs(trace.value - float(G.to_dense().trace())) <= 4 * trace.std_error + 1e-9
    assert tuple(H.layout.shapes[0]) == (1, 6, 6)


def test_embeddings_of_tokens_and_examples_of_different_weight() -> None:
    case = nets.attention()
    risk = case.risk()
    H = hp.Hessian(risk, wrt="embed")
    assert H.dim == 7 * 4 * 4
    dense = H.to_dense()
    blocks = torch.block_diag(*(dense[w, w] for w in H.blocks.values()))
    assert torch.allclose(dense, blocks, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match=r"examples of one size and weight.*shares"):
        H.example_lambda_max()
    with pytest.raises(UnsupportedError, match=r"needs the input to be one tensor of floats; got torch\.int64"):
        hp.Hessian(risk, wrt="input")


class Twice(nn.Module):
    """Calls one layer two times, another never, and one whose output lies the other way."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.idle, self.turned = nn.Linear(4, 4), nn.Linear(4, 4), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(torch.tanh(self.shared(x)))
        return self.turned(x.T).T


@pytest.mark.parametrize(
    ("wrt", "error", "words"),
    [
        ("shared", UnsupportedError, "called once in a pass; got 2 calls"),
        ("idle", UnsupportedError, "got 0 calls"),
        ("turned", UnsupportedError, r"6 examples along its first dimension; got shape \(4, 6\)"),
        ("share", ValueError, "Did you mean 'shared'"),
        ("", ValueError, "wrt must be 'input' or the name of a submodule; got ''. These are shared, "),
        ("xyz", ValueError, "got 'xyz'. These are shared, "),
    ],
)
def test_places_without_one_activation_an_example_are_refused(wrt: str, error: type[Exception], words: str) -> None:
    torch.manual_seed(0)
    risk = hp.EmpiricalRisk(
        Twice().double(), nn.MSELoss(), [(torch.randn(6, 4, dtype=F64), torch.zeros(6, 4).double())]
    )
    with pytest.raises(error, match=words):
        hp.Hessian(risk, wrt=wrt)


def test_what_has_no_examples_of_its_own_is_refused() -> None:
    with pytest.raises(TypeError, match="needs a Hessian with respect to inputs"):
        hp.Hessian(nets.mlp().risk()).example_lambda_max()
    with pytest.raises(TypeError, match="risk must be an EmpiricalRisk"):
        hp.Hessian(hp.Hessian(nets.mlp().risk(), wrt="input").risk, wrt="input")
    case = nets.cnn()
    H = hp.Hessian(case.risk(batchnorm="batch"), wrt="0")
    with pytest.raises(UnsupportedError, match="see each other"):
        H.example_lambda_max()


def test_blocks_of_every_sign_and_rank_are_solved_together() -> None:
    spectra = [[-3.0, -2.0, -1.0, -0.5], [5.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1e-3, 2e-3, 0.0, -1.0]]
    blocks = [symmetric(torch.tensor(values, dtype=F64), seed) for seed, values in enumerate(spectra)]
    A = DenseOperator(torch.block_diag(*blocks))
    found = block_lambda_max(A, 4, rtol=1e-12)
    assert torch.allclose(found.values, torch.tensor([-0.5, 5.0, 0.0, 2e-3], dtype=F64), rtol=0, atol=1e-12)
    # Stopped early they are lower bounds, each with an eigenvalue within its residual.
    large = DenseOperator(torch.block_diag(*(symmetric(torch.linspace(-1, 1, 40, dtype=F64), s) for s in range(3))))
    rough = block_lambda_max(large, 3, steps=5)
    assert bool((rough.values <= 1).all())
    assert bool((rough.values + rough.residuals >= 1 - 2 / 39).all())
    assert rough.matvecs == 6

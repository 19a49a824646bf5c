"""Blocks of modules, layers and heads against the dense matrix, and what makes a group."""

from __future__ import annotations

import nets
import pytest
import torch
from stats import assert_agrees
from torch import Tensor, nn
from torch.nn import functional

import hessprobe as hp
from hessprobe.errors import UnsupportedError
from hessprobe.measures.grouping import by_group
from hessprobe.operators import DenseOperator, Grouped
from hessprobe.training.models.transformers import TransformerBlock

F64 = torch.float64


class Separate(nn.Module):
    """Attention with projections of their own, as transformers have it; one key and value for two queries."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        width = 2 if shared else 4
        self.q_proj, self.o_proj = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.k_proj, self.v_proj = nn.Linear(4, width), nn.Linear(4, width)
        self.num_heads = 2

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (-1, 2)).transpose(1, 2) for each in (self.q_proj, self.k_proj, self.v_proj))
        k, v = (each.expand(-1, 2, -1, -1) for each in (k, v))
        return self.o_proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Packed(nn.Module):
    """torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x, x, need_weights=False)[0]


class Conv1D(nn.Module):
    """A linear layer whose weight is transposed."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / 2), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Transposed(nn.Module):
    """Attention of GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj, self.num_heads = Conv1D(12, 4), Conv1D(4, 4), 2

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (e.unflatten(-1, (2, 2)).transpose(1, 2) for e in self.c_attn(x).split(4, -1))
        return self.c_proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ByHead(nn.Module):
    """Attention of GPT-NeoX and BLOOM: rows of a head together, its query, key and value within."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value, self.dense, self.num_heads = nn.Linear(4, 12), nn.Linear(4, 4), 2

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query_key_value(x).unflatten(-1, (2, 6)).transpose(1, 2).split(2, -1)
        return self.dense(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


ATTENTIONS = {
    "by-head": ByHead,
    "separate": lambda: Separate(shared=False),
    "packed": Packed,
    "transposed": Transposed,
    "own": lambda: TransformerBlock(4, 2).attention,
}


def _risk(make: object) -> hp.EmpiricalRisk:
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn(6, 3, 4, dtype=F64)
    return hp.EmpiricalRisk(model, nn.MSELoss(), [(x[:4], torch.randn(4, 3, 4).double()), (x[4:], x[4:])])


def _entries(risk: hp.EmpiricalRisk, group: str) -> dict[str, Tensor]:
    """Entries of theta in each group, found by what the operator does with numbered entries."""
    numbered = by_group(DenseOperator(torch.diag(torch.arange(risk.dim).double())), risk, group)
    diagonal = numbered.exact_diagonal()
    assert diagonal is not None
    return {name: diagonal[0][where].long() for name, where in numbered.blocks.items()}


class FusedShared(nn.Module):
    """Four heads with one key and value in a fused projection: 4 + 1 + 1 times 2 rows, a multiple of 3 times 4."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.num_heads = nn.Linear(4, 12), nn.Linear(8, 4), 4

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split((8, 2, 2), -1)
        heads = functional.scaled_dot_product_attention(q.unflatten(-1, (4, 2)).transpose(1, 2), k[:, None], v[:, None])
        return self.out(heads.transpose(1, 2).flatten(2))


def test_a_fused_projection_with_keys_that_heads_share_is_not_cut() -> None:
    with pytest.raises(UnsupportedError, match="attention whose heads are recognised"):
        _entries(_risk(FusedShared), "head")


@pytest.mark.parametrize("kind", list(ATTENTIONS))
def test_the_entries_of_a_head_are_those_that_act_through_it(kind: str) -> None:
    risk = _risk(ATTENTIONS[kind])
    groups = _entries(risk, "head")
    heads = [name for name in groups if "head" in name]
    assert len(heads) == 2
    assert sorted(torch.cat(list(groups.values())).tolist()) == list(range(risk.dim))
    output = {"separate": "o_proj.weight", "packed": "attend.out_proj.weight", "transposed": "c_proj.weight"}
    output["by-head"] = "dense.weight"
    where = risk.layout.slices[output.get(kind, "out.weight")]
    for own, other in (heads, heads[::-1]):
        columns = [int(i) for i in groups[own] if where.start <= i < where.stop]
        assert len(columns) == 8
        theta = risk.theta.clone()
        theta[columns] = 0
        gradient = risk.gradient(theta)
        # With its output cut off, nothing acts through this head, and all the rest through the other.
        inner = [int(i) for i in groups[own] if int(i) not in columns]
        assert float(gradient[inner].abs().max()) < 1e-15
        reach = gradient[[int(i) for i in groups[other]]].abs()
        # The bias of keys shifts all scores of a query alike.
        assert int((reach < 1e-15).sum()) == (2 if risk.dim > 64 else 0)


def test_keys_that_several_heads_share_belong_to_none() -> None:
    groups = _entries(_risk(lambda: Separate(shared=True)), "head")
    assert set(groups) == {"k_proj", "v_proj", "head0", "head1"}
    assert len(groups["head0"]) == 4 * 2 + 2 + 8


@pytest.mark.parametrize(
    ("group", "name", "expected"),
    [
        ("module", "layers.0.attn.proj.weight", "layers.0.attn.proj"),
        ("module", "scale", "scale"),
        ("layer", "transformer.h.3.attn.c_proj.weight", "transformer.h.3"),
        ("layer", "layer1.0.conv1.weight", "layer1.0"),
        ("layer", "0.weight", "0"),
        ("layer", "lm_head.weight", "lm_head"),
        ("layer", "head2.weight", "head2"),
    ],
)
def test_what_parameters_a_group_holds(group: str, name: str, expected: str) -> None:
    risk = nets.mlp((5,)).risk()
    layout = hp.vectors.ParameterLayout.of({name: torch.zeros(risk.dim)})
    risk.layout = layout
    assert list(_entries(risk, group)) == [expected]


CASES = [("mlp", "module", "hessian"), ("cnn", "layer", "ggn"), ("attention", "head", "hessian")]


@pytest.mark.parametrize(("net", "group", "operator"), CASES)
def test_blocks_have_the_numbers_of_the_dense_ones(net: str, group: str, operator: str) -> None:
    risk = nets.CASES[net]().risk()
    dense = (hp.Hessian if operator == "hessian" else hp.GaussNewton)(risk).to_dense()
    names = ["lambda-max", "trace", "frob", "block-frob", "adaptive-trace"]
    found = hp.measure(names, risk, group=group, operator=operator, n_probes=64, engine="double_backward")
    groups, weights = _entries(risk, group), risk.theta.abs()
    assert all(set(found[name].layers) == set(groups) for name in names)
    total = 0.0
    for name, where in groups.items():
        block = dense[where][:, where]
        total += float(block.square().sum())
        size = float(dense.norm())
        top = float(torch.linalg.eigvalsh(block)[-1])
        assert float(found["lambda-max"].layers[name]) == pytest.approx(top, rel=2e-3, abs=1e-3 * size)
        assert_agrees(found["trace"].layers[name], float(block.trace()), 0.3 * float(dense.diagonal().abs().sum()))
        share = float(dense[where].square().sum()) / size**2
        assert float(found["frob"].layers[name]) == pytest.approx(share, abs=0.15)
        norm = found["block-frob"].layers[name]
        assert abs(float(norm) - float(block.norm())) < 5 * norm.std_error + 1e-9 * size
        adaptive = float((block.diagonal() * weights[where] ** 2).sum())
        assert_agrees(found["adaptive-trace"].layers[name], adaptive, 2.0)
    assert_agrees(found["block-frob"], total**0.5, 0.3 * total**0.5)
    assert_agrees(found["trace"], float(dense.trace()), 0.3 * float(dense.diagonal().abs().sum()))


def test_a_regrouped_operator_is_the_permuted_matrix_with_all_that_is_known_of_it() -> None:
    risk = nets.attention().risk()
    H, order = hp.Hessian(risk), torch.randperm(risk.dim, generator=torch.Generator().manual_seed(0))
    A, dense = Grouped(H, order, {"all": slice(0, risk.dim)}), H.to_dense()
    expected = dense[order][:, order]
    assert torch.allclose(A.to_dense(), expected, rtol=0, atol=1e-14)
    assert torch.allclose(sum(w * term.to_dense() for w, term in A.terms()), expected, rtol=0, atol=1e-14)
    V = torch.randn(3, risk.dim, dtype=F64)
    assert torch.allclose(A.quadratic_forms(V), ((V @ expected) * V).sum(1), rtol=1e-10)
    assert A.surrogate is not None
    G = hp.GaussNewton(risk).to_dense()[order][:, order]
    assert torch.allclose(A.surrogate.to_dense(), G, rtol=0, atol=1e-14)
    known = A.surrogate.exact_diagonal()
    assert known is not None
    assert torch.allclose(known[0], G.diagonal(), rtol=0, atol=1e-14)
    finer = A.grouped(7)
    assert finer.n_terms > A.n_terms
    assert torch.allclose(finer.to_dense(), expected, rtol=0, atol=1e-14)


def test_the_diagonal_keeps_the_order_of_the_parameters() -> None:
    risk = nets.attention().risk()
    found = hp.measure("diagonal", risk, group="head", rtol=0.01, engine="double_backward")
    values, errors = (found.details["arrays"][name] for name in ("diagonal", "diagonal_std_error"))
    exact = hp.Hessian(risk).to_dense().diagonal()
    assert bool(((values - exact).abs() <= 6 * errors + 1e-12).all())


def test_a_model_without_heads_and_an_unknown_group_are_refused() -> None:
    risk = nets.mlp((5,)).risk()
    with pytest.raises(UnsupportedError, match="needs attention whose heads are recognised; got Sequential"):
        hp.measure("trace", risk, group="head")
    with pytest.raises(ValueError, match="group must be one of module, layer, head"):
        hp.measure("trace", risk, group="heads")

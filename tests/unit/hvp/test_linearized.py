"""The recording behind the linearized engine: made once a shape, checked on every batch, simplified without harm."""

from __future__ import annotations

from collections.abc import Callable

import nets
import pytest
import torch
from torch import Tensor, fx, nn

from hessprobe.errors import UnsupportedError
from hessprobe.hvp import Hessian
from hessprobe.hvp import linearized as engine_module
from hessprobe.hvp.known import RECORDINGS
from hessprobe.hvp.linearized import Linearized
from hessprobe.hvp.tracing import trace_linear
from hessprobe.objective import EmpiricalRisk


def _recordings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []

    def counted(*args: object) -> object:
        made.append(1)
        return trace_linear(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(engine_module, "trace_linear", counted)
    RECORDINGS.clear()
    return made


def test_one_recording_serves_all_batches_of_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _recordings(monkeypatch)
    risk = nets.mlp((8, 8, 8, 8)).risk()
    H = Hessian(risk, engine="linearized")
    V = torch.randn(1, risk.dim, dtype=torch.float64)
    torch.testing.assert_close(H.matvecs(V), V @ nets.full_hessian(risk), rtol=1e-11, atol=1e-14)
    assert len(made) == 1


def test_a_shape_is_recorded_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _recordings(monkeypatch)
    risk = nets.mlp((8, 8, 3, 3, 3)).risk()
    H = Hessian(risk, engine="linearized")
    V = torch.randn(2, risk.dim, dtype=torch.float64)
    torch.testing.assert_close(H.matvecs(V), V @ nets.full_hessian(risk), rtol=1e-11, atol=1e-14)
    assert len(made) == 2


class Branching(nn.Module):
    """Takes a Python-level decision that depends on a value in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.layer(inputs)
        return torch.tanh(outputs) if float(inputs.sum()) > 0 else outputs.square()


def test_a_batch_that_decides_otherwise_than_the_recording_is_not_served_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _recordings(monkeypatch)
    torch.manual_seed(0)
    data = [(sign * torch.rand(4, 3).double(), torch.randint(3, (4,))) for sign in (1, -1, 1, -1)]
    risk = EmpiricalRisk(Branching().double(), nn.CrossEntropyLoss(), data)
    V = torch.randn(2, risk.dim, dtype=torch.float64)
    H = Hessian(risk, engine="linearized")
    torch.testing.assert_close(H.matvecs(V), V @ nets.full_hessian(risk), rtol=1e-11, atol=1e-14)
    assert len(made) == 1


def _padded(lengths: tuple[int, ...]) -> dict[str, Tensor]:
    ids = torch.randint(0, 11, (len(lengths), 6))
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_models_that_look_whether_a_mask_is_all_ones_are_recorded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    made = _recordings(monkeypatch)
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
        model = transformers.GPT2LMHeadModel(config).double()
    else:
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        config = transformers.BertConfig(vocab_size=11, max_position_embeddings=8, **sizes)
        model = transformers.BertForMaskedLM(config).double()
    # Two batches that need the mask, one that does not, and a fourth like the first two.
    batches = [_padded(lengths) for lengths in ((6, 2, 4), (1, 6, 5), (6, 6, 6), (3, 3, 2))]
    risk = EmpiricalRisk(model, None, batches)
    V = torch.randn(2, risk.dim, dtype=torch.float64)
    product = Hessian(risk, engine="linearized").matvecs(V)
    torch.testing.assert_close(product, Hessian(risk, engine="double_backward").matvecs(V), rtol=1e-10, atol=1e-13)
    assert len(made) == 1


class Scaled(nn.Module):
    """Takes a plain number from the batch, which a recording cannot exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, inputs: Tensor, scale: float) -> Tensor:
        return torch.tanh(scale * self.layer(inputs))


def test_a_number_frozen_by_the_recording_is_noticed() -> None:
    torch.manual_seed(0)
    data = [({"inputs": torch.rand(4, 3).double(), "scale": 1.0 + i}, torch.randint(3, (4,))) for i in range(4)]
    risk = EmpiricalRisk(Scaled().double(), nn.CrossEntropyLoss(), data)
    V = torch.randn(2, risk.dim, dtype=torch.float64)
    product = Hessian(risk, engine="linearized").matvecs(V)
    torch.testing.assert_close(product, V @ nets.full_hessian(risk), rtol=1e-11, atol=1e-14)


def test_summed_losses_of_different_sizes_do_not_share_a_recording() -> None:
    """The size of a summed loss enters as a number; padding makes shapes equal and sizes different."""
    torch.manual_seed(0)
    data = []
    for ignored in (0, 2, 3):
        targets = torch.randint(4, (6,))
        targets[:ignored] = -100
        data.append((torch.randn(6, 5).double(), targets))
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    risk = EmpiricalRisk(module, nn.CrossEntropyLoss(reduction="sum"), data)
    V = torch.randn(1, risk.dim, dtype=torch.float64)
    product = Hessian(risk, engine="linearized").matvecs(V)
    torch.testing.assert_close(product, V @ nets.full_hessian(risk), rtol=1e-11, atol=1e-14)


def test_opaque_batches_are_refused_and_auto_goes_on() -> None:
    case = nets.mlp()
    forward_risk = EmpiricalRisk(
        case.module,
        None,
        case.data,
        forward=lambda module, batch: (
            nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="sum"),
            len(batch[1]),
        ),
    )
    V = torch.randn(1, forward_risk.dim, dtype=torch.float64)
    expected = V @ nets.full_hessian(case.risk())
    H = Hessian(forward_risk, expected_matvecs=10**7)
    for _ in range(3):  # a job that is long enough for a race begins with two products by what is ready
        torch.testing.assert_close(H.matvecs(V), expected, rtol=1e-11, atol=1e-14)
    assert "exchange" in H.engine_note
    with pytest.raises(UnsupportedError, match="exchange"):
        Hessian(forward_risk, engine="linearized").matvecs(V)


def test_batchnorm_is_folded_out_of_the_tangent_program() -> None:
    risk = nets.cnn().risk()
    batch = next(iter(risk.terms()))
    engine = Linearized()
    engine(batch, risk.theta)
    (recording,) = engine._programs.values()
    program = recording.program  # type: ignore[union-attr]
    assert isinstance(program.tangents[0], fx.GraphModule)
    names = [str(node.target) for node in program.tangents[0].graph.nodes]
    assert not [name for name in names if "batch_norm" in name]


def test_a_conv_output_changed_in_place_is_not_folded() -> None:
    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(1, 2, 2), nn.BatchNorm1d(2)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.conv(inputs)
            hidden.mul_(inputs.mean())
            return self.norm(hidden).flatten(1)

    torch.manual_seed(0)
    data = [(torch.randn(4, 1, 4).double(), torch.randint(6, (4,))) for _ in range(2)]
    risk = EmpiricalRisk(Hooked().double(), nn.CrossEntropyLoss(), data)
    V = torch.randn(1, risk.dim, dtype=torch.float64)
    product = Hessian(risk, engine="linearized").matvecs(V)
    torch.testing.assert_close(product, V @ nets.full_hessian(risk), rtol=1e-11, atol=1e-14)


def test_products_do_not_change_what_they_keep() -> None:
    """The tangent program writes in place; a second product must not see the traces of the first."""
    for name in nets.CASES:
        risk = nets.CASES[name]().risk()
        H = Hessian(risk, engine="linearized")
        V = torch.randn(3, risk.dim, dtype=torch.float64)
        first = [H.matvecs(V[i : i + 1]) for i in range(3)]
        again = [H.matvecs(V[i : i + 1]) for i in range(3)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        torch.testing.assert_close(torch.cat(first), H.matvecs(V), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", list(nets.CASES))
def test_a_product_adds_itself_to_a_sum(name: str) -> None:
    risk = nets.CASES[name]().risk()
    batch = next(iter(risk.terms()))
    with risk.evaluating():
        product = Linearized()(batch, risk.theta)
    assert product.add is not None
    for _ in range(4):  # both ways of taking a block, and the one that is then chosen
        V = torch.randn(9, risk.dim, dtype=torch.float64)
        expected = torch.cat([product(v[None]) for v in V])
        total = torch.ones_like(V)
        product.add_to(total, V, 0.3)
        product.add_to(total[:1], V[:1], -0.1)
        expected = 1 + 0.3 * expected - 0.1 * torch.cat([expected[:1], torch.zeros_like(V[1:])])
        torch.testing.assert_close(total, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("faster", ["singly", "jointly"])
def test_blocks_are_taken_the_way_that_was_faster_on_the_first_ones(
    monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    now, calls = [0.0], []
    monkeypatch.setattr(engine_module, "device_clock", lambda _: now[0])

    def way(name: str) -> Callable[[Tensor], Tensor]:
        def run(V: Tensor) -> Tensor:
            calls.append((name, len(V)))
            now[0] += len(V) * (1 if name == faster else 2)
            return 3 * V

        return run

    blocks = engine_module.Blocks()
    for rows in (1, 3, 9, 4, 9, 2):
        V = torch.randn(rows, 2)
        assert torch.equal(blocks.apply(way("singly"), way("jointly"), V), 3 * V)
    trial = [("singly", 4), ("jointly", 4), ("singly", 1), ("singly", 2), ("jointly", 2)]
    assert calls == [("singly", 1), ("singly", 3), *trial, (faster, 9), (faster, 2)]


def test_blocks_are_no_longer_taken_together_where_whole_ones_turn_out_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    now, jointly = [0.0], []
    monkeypatch.setattr(engine_module, "device_clock", lambda _: now[0])

    def one_by_one(V: Tensor) -> Tensor:
        now[0] += 2 * len(V)
        return V

    def together(V: Tensor) -> Tensor:
        jointly.append(len(V))
        now[0] += len(V) * (1 if len(V) <= 4 else 3)  # more than four leave the cache
        return V

    blocks = engine_module.Blocks()
    for _ in range(8):
        blocks.apply(one_by_one, together, torch.randn(8, 2))
    assert jointly == [4, 4, 8, 8, 8]
    assert blocks.together is False


def test_weight_gradients_accumulate_inside_the_matrix_product() -> None:
    risk = nets.mlp().risk()
    engine = Linearized()
    engine(next(iter(risk.terms())), risk.theta)
    (recording,) = engine._programs.values()
    program = recording.program  # type: ignore[union-attr]
    names = [str(node.target) for node in program.accumulate.graph.nodes]  # type: ignore[union-attr]
    assert "aten.cat.default" not in names
    # Two layers: x^T d' for the first, x^T d' + x'^T d for the second, and biases.
    assert names.count("aten.addmm_.default") >= 3
    assert not [name for name in names if "zeros" in name]


def test_a_recording_that_writes_into_kept_values_is_refused() -> None:
    def function(v: Tensor, theta: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        kept = theta * 2
        kept.add_(v)
        return (kept - theta * 2,), theta

    with pytest.raises(UnsupportedError, match="writes into a kept value"):
        trace_linear(function, torch.ones(3, dtype=torch.float64), [])

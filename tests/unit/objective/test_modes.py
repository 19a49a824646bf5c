from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hessprobe.errors import UnsupportedError
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.modes import evaluation, precision, unwrap

CE = nn.CrossEntropyLoss()
CPU = torch.device("cpu")


def images(sizes: tuple[int, ...] = (8, 8, 4)) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(sum(sizes), 2, 6, 6, generator=generator, dtype=torch.float64)
    return list(zip(x.split(sizes), (torch.arange(sum(sizes)) % 3).split(sizes), strict=True))


class Net(nn.Module):
    """A BatchNorm CNN with dropout, used statistics, a counter buffer and mixed modes."""

    def __init__(self, track: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4, track_running_stats=track)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, 3)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.seen: list[int] | None = None
        self.double()
        if track:
            with torch.no_grad():
                self.norm.running_mean.normal_(0, 0.3)
                self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.seen = [len(x)]
        self.extra = x
        return self.head(self.drop(self.norm(self.conv(x)).relu()).mean((2, 3)))


def snapshot(model: nn.Module, generator: torch.Generator) -> list[object]:
    state = [t.clone() for t in (*model.parameters(), *model.buffers())]
    state += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    state += [torch.get_rng_state(), generator.get_state(), np.random.get_state()[1], random.getstate()]  # noqa: NPY002
    state += [sorted(m.__dict__) for m in model.modules()]
    state += [[m.training for m in model.modules()], [list(m._buffers) for m in model.modules()]]
    state += [[len(m._forward_hooks) for m in model.modules()], [id(t) for t in model.buffers()]]
    state += [torch.get_float32_matmul_precision(), torch.backends.cudnn.conv.fp32_precision]
    state += [torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()]
    return state


def assert_same(before: list[object], after: list[object]) -> None:
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        same = np.array_equal if isinstance(one, np.ndarray) else torch.equal if isinstance(one, Tensor) else None
        assert same(one, other) if same else one == other


@pytest.mark.parametrize("batchnorm", ["eval", "batch", "recalibrate"])
def test_everything_is_bit_identical_after_every_call(batchnorm: str) -> None:
    model = Net().train()
    model.norm.eval()
    CE(model(images()[0][0]), images()[0][1]).backward()
    model.seen = None
    del model.extra
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.cat(parts) for parts in zip(*images(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=8, generator=generator)
    before = snapshot(model, generator)
    risk = EmpiricalRisk(model, CE, loader, batchnorm=batchnorm)
    assert_same(before, snapshot(model, generator))
    with pytest.raises(ZeroDivisionError), risk.evaluating(), risk.evaluating():  # noqa: PT012
        assert not model.training
        torch.rand(3)
        random.random()
        np.random.rand()  # noqa: NPY002
        _ = 1 / 0
    assert_same(before, snapshot(model, generator))
    for call in (risk.loss, risk.gradient, risk.fingerprint, risk.describe, lambda: list(risk.terms())):
        call()
        assert_same(before, snapshot(model, generator))
    (term, *_) = risk.terms()
    torch.func.jvp(torch.func.grad(term), (risk.theta,), (risk.theta,))
    with warnings.catch_warnings(action="ignore"):
        torch.func.linearize(torch.func.grad(term), risk.theta)[1](risk.theta)
    assert_same(before, snapshot(model, generator))


def test_module_attributes_survive_a_partly_read_generator() -> None:
    model = Net()
    state = torch.get_rng_state()
    terms = EmpiricalRisk(model, CE, DataLoader(TensorDataset(*images((8,))[0]), batch_size=4)).terms()
    next(terms)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    del terms


def test_eval_uses_running_statistics_and_batch_uses_those_of_the_batch() -> None:
    model = Net()
    evaluated = EmpiricalRisk(model, CE, images())
    by_batch = EmpiricalRisk(model, CE, images(), batchnorm="batch")
    expected_eval, expected_batch = 0.0, 0.0
    for x, y in images():
        expected_eval += len(y) * CE(Net().eval()(x), y).item() / 20
        training = Net().train()
        training.drop.eval()
        expected_batch += len(y) * CE(training(x), y).item() / 20
    assert float(evaluated.loss()) == pytest.approx(expected_eval, rel=1e-13)
    assert float(by_batch.loss()) == pytest.approx(expected_batch, rel=1e-13)
    assert abs(expected_eval - expected_batch) > 1e-3
    switched = "1 Dropout and 1 BatchNorm modules in train mode measured in evaluation mode (drop, norm)"
    assert evaluated.notes == (switched, "BatchNorm with its running statistics")
    switched = "1 Dropout module in train mode measured in evaluation mode (drop)"
    assert by_batch.notes == (switched, "BatchNorm with the statistics of each batch")


def test_recalibrated_statistics_are_those_of_all_data() -> None:
    model = Net()
    risk = EmpiricalRisk(model, CE, images(), batchnorm="recalibrate")
    features = [model.conv(x).detach() for x, _ in images()]
    mean = torch.cat(features).mean((0, 2, 3))
    variance = sum(len(f) * f.transpose(0, 1).flatten(1).var(1) for f in features) / 20
    torch.testing.assert_close(risk._buffers["norm.running_mean"], mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(risk._buffers["norm.running_var"], variance, rtol=1e-12, atol=0)
    model.norm.running_mean, model.norm.running_var = mean, variance
    expected = EmpiricalRisk(model, CE, images())
    torch.testing.assert_close(risk.gradient(), expected.gradient(), rtol=1e-12, atol=1e-14)
    assert risk.notes[1:] == ("BatchNorm recalibrated on these data, then held fixed",)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
@pytest.mark.parametrize("batchnorm", ["eval", "batch", "recalibrate"])
def test_every_batchnorm_is_twice_differentiable(kind: type[nn.Module], batchnorm: str) -> None:
    dims = {nn.BatchNorm1d: 1, nn.BatchNorm3d: 3}.get(kind, 2)
    x = torch.randn(6, 2, *[3] * dims, dtype=torch.float64)
    model = nn.Sequential(kind(2), nn.Flatten(), nn.Linear(2 * 3**dims, 1)).double()
    risk = EmpiricalRisk(model, nn.MSELoss(), [(x, x[:, 0].flatten(1)[:, :1])], batchnorm=batchnorm)
    (term,) = risk.terms()
    forward = torch.func.jvp(torch.func.grad(term), (risk.theta,), (torch.ones_like(risk.theta),))[1]
    theta = risk.theta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(term(theta), theta, create_graph=True)
    (backward,) = torch.autograd.grad(slope.sum(), theta)
    torch.testing.assert_close(forward, backward, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("track", "batchnorm"), [(False, "eval"), (True, "batch")])
def test_batch_statistics_forbid_cutting(track: bool, batchnorm: str) -> None:
    (term, *_) = EmpiricalRisk(Net(track), CE, images(), batchnorm=batchnorm).terms()
    with pytest.raises(UnsupportedError, match="This batch cannot be cut: BatchNorm normalises by the statistics"):
        term.slice(0, 2)


def test_risk_is_a_frozen_point() -> None:
    model = Net()
    risk = EmpiricalRisk(model, CE, images())
    before = risk.loss()
    model.train()(images()[0][0])
    with torch.no_grad():
        model.head.weight += 1
    assert torch.equal(risk.loss(), before)
    part = EmpiricalRisk(model, CE, images(), params="head")
    with torch.no_grad():
        model.conv.weight += 1
    with pytest.raises(UnsupportedError, match=r"Parameter 'conv.weight', which is not in theta, has changed"):
        part.loss()


def test_old_style_reparametrisation_is_put_back() -> None:
    with pytest.warns(FutureWarning):
        model = nn.utils.weight_norm(nn.Linear(3, 3).double())
    effective = model.weight
    x = torch.randn(4, 3, dtype=torch.float64)
    risk = EmpiricalRisk(model, CE, [(x, torch.zeros(4, dtype=torch.long))])
    torch.func.grad(next(risk.terms()))(risk.theta)
    assert model.weight is effective


def test_wrappers_are_taken_off() -> None:
    inner = nn.Linear(4, 3)
    for wrapped in (
        torch.compile(inner, backend="eager"),
        nn.DataParallel(inner),
        torch.compile(nn.DataParallel(inner)),
    ):
        assert unwrap(wrapped) is inner
        assert EmpiricalRisk(wrapped, CE, [(torch.ones(2, 4), torch.zeros(2, dtype=torch.long))]).module is inner


def test_compiled_models_and_compiled_parts_run_eagerly() -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        compiled.append(graph)
        return graph.forward

    def hessian(model: nn.Module) -> Tensor:
        x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
        risk = EmpiricalRisk(model, CE, [(x, torch.tensor([0, 1, 2]))])
        with risk.evaluating():
            return torch.func.hessian(next(risk.terms()))(risk.theta)

    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()

    plain = hessian(build())
    torch.testing.assert_close(hessian(torch.compile(build(), backend=backend)), plain)
    nested = build()
    nested[0] = torch.compile(nested[0], backend=backend)
    torch.testing.assert_close(hessian(nested), plain)
    in_place = build()
    in_place.compile(backend=backend)
    call = in_place._compiled_call_impl
    torch.testing.assert_close(hessian(in_place), plain)
    assert in_place._compiled_call_impl is call
    assert not compiled


STATES = {
    "default": lambda b: None,
    "old matmul": lambda b: torch.set_float32_matmul_precision("medium"),
    "old cudnn": lambda b: setattr(b.cudnn, "allow_tf32", False),
    "new matmul": lambda b: setattr(b.cuda.matmul, "fp32_precision", "tf32"),
    "new conv only": lambda b: setattr(b.cudnn.conv, "fp32_precision", "ieee"),
    "new all": lambda b: setattr(b, "fp32_precision", "tf32"),
}


def switches() -> list[str]:
    b = torch.backends
    leaves = [
        b,
        b.cudnn,
        b.mkldnn,
        b.cuda.matmul,
        b.cudnn.conv,
        b.cudnn.rnn,
        b.mkldnn.matmul,
        b.mkldnn.conv,
        b.mkldnn.rnn,
    ]
    values = [leaf.fp32_precision for leaf in leaves]
    for old in (torch.get_float32_matmul_precision, lambda: b.cudnn.allow_tf32, lambda: b.cuda.matmul.allow_tf32):
        try:
            values.append(str(old()))
        except RuntimeError:
            values.append("refused")
    return values


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("tf32", [False, True])
def test_precision_switches_are_set_and_put_back(name: str, tf32: bool) -> None:
    original = switches()
    with precision(False):
        pass
    assert switches() == original
    b = torch.backends
    with precision(False):
        STATES[name](b)
        before = switches()
        with precision(tf32):
            word = "tf32" if tf32 else "ieee"
            assert [b.cuda.matmul.fp32_precision, b.cudnn.conv.fp32_precision, b.cudnn.rnn.fp32_precision] == [word] * 3
            assert b.mkldnn.matmul.fp32_precision == "ieee"
        assert switches() == before
        b.fp32_precision = "none"
    assert switches()[3:] == original[3:]


def test_ambient_autocast_and_reduced_cpu_products_are_off() -> None:
    x, y = torch.randn(32, 64), torch.randn(32, 8)
    risk = EmpiricalRisk(nn.Linear(64, 8), nn.MSELoss(), [(x, y)])
    exact = risk.loss()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(risk.loss(), exact)


def test_evaluation_restores_after_nesting_of_two_risks_on_one_module() -> None:
    model = Net()
    one, two = EmpiricalRisk(model, CE, images()), EmpiricalRisk(model, CE, images(), batchnorm="batch")
    running = model.norm.running_mean
    with one.evaluating():
        with two.evaluating():
            assert model.norm.running_mean is None
        assert model.norm.running_mean is running
        assert not model.training
    assert model.training


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.Conv1d])
def test_recurrent_networks_are_evaluated_without_cudnn(kind: type[nn.Module]) -> None:
    # Their kernels on a GPU have no gradient in evaluation mode; other networks keep cuDNN.
    seen: list[bool] = []
    net = nn.Sequential(kind(3, 3, 1))
    assert torch.backends.cudnn.enabled
    with evaluation([net], device=CPU):
        seen.append(torch.backends.cudnn.enabled)
    assert seen == [kind is nn.Conv1d]
    assert torch.backends.cudnn.enabled
    with pytest.raises(KeyError), evaluation([net], device=CPU):
        raise KeyError
    assert torch.backends.cudnn.enabled


def test_evaluation_turns_the_fast_path_and_modes_off() -> None:
    loss = nn.Sequential(nn.Dropout())
    with evaluation([Net(), loss], device=CPU):
        assert not torch.backends.mha.get_fastpath_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
        assert not torch.backends.cuda.flash_sdp_enabled()
        assert not loss[0].training
    assert loss[0].training
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("kind", ["padding_idx", "scale_grad_by_freq", "sparse"])
def test_embeddings_have_their_true_symmetric_hessian(kind: str) -> None:
    options = {"padding_idx": {"padding_idx": 0}}.get(kind, {kind: True})
    torch.manual_seed(0)
    embed, head = nn.Embedding(4, 3, **options).double(), nn.Linear(3, 4, bias=False).double()
    head.weight = embed.weight
    model = nn.Sequential(embed, nn.Tanh(), head)
    ids, targets = torch.tensor([0, 1, 1, 3]), torch.tensor([1, 0, 2, 3])
    risk = EmpiricalRisk(model, CE, [(ids, targets)])

    def loss(theta: Tensor) -> Tensor:
        table = theta.view(4, 3)
        return CE(table[ids].tanh() @ table.T, targets)

    expected = torch.func.hessian(loss)(risk.theta)
    with risk.evaluating():
        (term,) = risk.terms()
        torch.testing.assert_close(torch.func.hessian(term)(risk.theta), expected, rtol=1e-12, atol=1e-14)
        theta = risk.theta.clone().requires_grad_()
        (slope,) = torch.autograd.grad(term(theta), theta, create_graph=True)
        rows = [torch.autograd.grad(entry, theta, retain_graph=True)[0] for entry in slope]
    torch.testing.assert_close(torch.stack(rows), expected, rtol=1e-12, atol=1e-14)
    assert all(getattr(embed, name) == value for name, value in options.items())
    assert len(risk.notes) == (kind == "padding_idx")


def test_embeddings_that_rewrite_their_weights_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"Embedding '0' has max_norm=1.0, which rewrites"):
        EmpiricalRisk(nn.Sequential(nn.Embedding(4, 3, max_norm=1.0)), CE, [(torch.tensor([0]), torch.tensor([1]))])

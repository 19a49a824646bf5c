"""What a process remembers of a model serves another of the same kind, and no other."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hessprobe.hvp import Hessian, known
from hessprobe.hvp.known import Known, kind_of
from hessprobe.hvp.linearized import Linearized
from hessprobe.objective import EmpiricalRisk


class Scaled(nn.Module):
    """A network with a number, a list, a tensor that is no buffer, and a buffer."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0, buffer: float = 1.0, frozen: float = 1.0) -> None:
        super().__init__()
        self.scale, self.hidden = scale, [3, 4]
        self.shift = torch.full((4,), shift, dtype=torch.float64)
        self.register_buffer("gain", torch.full((4,), buffer, dtype=torch.float64))
        self.first, self.second = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
        self.frozen = nn.Parameter(torch.full((4,), frozen, dtype=torch.float64), requires_grad=False)

    def forward(self, x):
        return self.second(torch.tanh(self.scale * self.first(x) * self.gain * self.frozen + self.shift))


def _weighted(weight: float):
    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets) * weight

    return loss


def _batch_kind(module, loss):
    torch.manual_seed(0)
    data = [(torch.randn(6, 3, dtype=torch.float64), torch.randint(2, (6,)))]
    risk = EmpiricalRisk(module, loss, data)
    with risk.evaluating():
        return kind_of(*next(iter(risk.terms())).makes())


def _kind(loss=F.cross_entropy, seed: int = 0, **settings):
    torch.manual_seed(seed)
    return _batch_kind(Scaled(**settings), loss)


def test_parameters_and_buffers_do_not_count_but_settings_do():
    same = _kind()
    assert same == _kind(seed=1, buffer=2.0, frozen=3.0)
    assert same != _kind(scale=2.0)
    assert same != _kind(shift=1.0)


def test_a_changed_list_or_a_hook_is_another_kind():
    module = Scaled()
    module.hidden.append(5)
    assert _batch_kind(module, F.cross_entropy) != _kind()
    hooked = Scaled()
    hooked.register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    assert _batch_kind(hooked, F.cross_entropy) != _kind()


def test_losses_count_by_what_they_close_over():
    assert _kind(_weighted(2.0)) == _kind(_weighted(2.0), seed=3)
    assert _kind(_weighted(2.0)) != _kind(_weighted(3.0))
    partial = functools.partial(F.cross_entropy, label_smoothing=0.1)
    assert _kind(partial) == _kind(functools.partial(F.cross_entropy, label_smoothing=0.1))
    assert _kind(partial) != _kind(functools.partial(F.cross_entropy, label_smoothing=0.2))
    assert _kind(lambda o, t: F.cross_entropy(o, t)) != _kind(lambda o, t: 2 * F.cross_entropy(o, t))


def test_weights_of_a_loss_count_by_content():
    heavy, light = (nn.CrossEntropyLoss(weight=torch.tensor([1.0, w], dtype=torch.float64)) for w in (3.0, 2.0))
    again = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert _kind(heavy) == _kind(again)
    assert _kind(heavy) != _kind(light)


def test_a_network_that_a_loss_holds_counts_by_its_numbers():
    def distilled(teacher):
        return lambda o, t: F.mse_loss(o, teacher.weight[0, 0] * torch.ones_like(o))

    torch.manual_seed(0)
    one, other = nn.Linear(2, 2).double().requires_grad_(False), nn.Linear(2, 2).double().requires_grad_(False)
    assert _kind(distilled(one)) == _kind(distilled(one))
    assert _kind(distilled(one)) != _kind(distilled(other))


def test_large_tensors_and_unknown_objects_equal_themselves_only():
    large = torch.zeros(1 << 17)
    module = nn.Linear(1, 1)
    assert kind_of(module, large) == kind_of(module, large)
    assert kind_of(module, large) != kind_of(module, large.clone())
    thing = object()
    assert kind_of(module, thing) == kind_of(module, thing)
    assert kind_of(module, thing) != kind_of(module, object())


def test_what_holds_itself_ends():
    ring: list[object] = []
    ring.append(ring)
    assert kind_of(nn.Linear(1, 1), ring) == kind_of(nn.Linear(1, 1), ring)


def test_the_least_used_goes_first():
    few = Known(2)
    few.put("a", 1)
    few.put("b", 2)
    assert few.get("a") == 1
    few.put("c", 3)
    assert [few.get(name) for name in "abc"] == [1, None, 3]


class Normed(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))
        norm = self.body[1]
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x):
        return self.body(x)


@pytest.fixture
def traced(monkeypatch):
    from hessprobe.hvp import linearized

    known.RECORDINGS.clear()
    count: list[int] = []
    trace = linearized.trace_linear

    def counted(*arguments):
        count.append(1)
        return trace(*arguments)

    monkeypatch.setattr(linearized, "trace_linear", counted)
    yield count
    known.RECORDINGS.clear()


def _risk(module, loss=F.cross_entropy):
    torch.manual_seed(9)
    data = [(torch.randn(5, 1, 6, dtype=torch.float64), torch.randint(2, (5,))) for _ in range(2)]
    return EmpiricalRisk(module.double(), loss, data)


def _agree(risk):
    V = torch.randn(2, risk.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slow = Hessian(risk, engine="double_backward").matvecs(V)
    torch.testing.assert_close(Hessian(risk, engine="linearized").matvecs(V), slow, rtol=1e-9, atol=1e-11)


def test_one_recording_serves_checkpoints_with_other_running_statistics(traced):
    for seed in range(3):
        _agree(_risk(Normed(seed)))
    assert len(traced) == 1


def test_another_loss_is_recorded_anew(traced):
    _agree(_risk(Normed(0)))
    _agree(_risk(Normed(0), _weighted(2.0)))
    assert len(traced) == 2


def test_a_recording_that_does_not_hold_for_another_risk_is_made_anew(traced, monkeypatch):
    _agree(_risk(Normed(0)))
    # As if the kinds could not be told apart.
    monkeypatch.setattr("hessprobe.hvp.linearized.kind_of", lambda *things: "all the same")
    known.RECORDINGS.clear()
    _agree(_risk(Normed(0)))
    _agree(_risk(Normed(0), _weighted(2.0)))
    assert len(traced) == 3


def test_recordings_do_not_keep_the_model_alive(traced):
    import gc
    import weakref

    module = Normed(0)
    risk = _risk(module)
    Hessian(risk, engine="linearized").matvecs(torch.ones(1, risk.dim, dtype=torch.float64))
    gone = weakref.ref(module)
    del module, risk
    gc.collect()
    assert gone() is None


def test_a_recording_takes_constants_as_inputs(traced):
    risk = _risk(Normed(0))
    with risk.evaluating():
        batch = next(iter(risk.terms()))
        names = batch.model.varying
        assert names == ("body.1.running_mean", "body.1.running_var")
        Linearized()(batch, risk.theta)
    (recording,) = known.RECORDINGS._values.values()
    held = list(recording.program.primal.parameters()) + list(recording.program.primal.buffers())
    assert not any(t.shape == (3,) for t in held)

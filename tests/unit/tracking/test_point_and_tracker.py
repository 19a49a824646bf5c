"""Points against dense oracles and single measurements; the tracker's bit-identity, and what it refuses."""

from __future__ import annotations

import copy
import json
import random

import nets
import numpy as np
import pytest
import torch
from torch import nn

from hessprobe import report
from hessprobe.errors import NumericalWarning
from hessprobe.measures import MeasureSettings, measure
from hessprobe.objective import EmpiricalRisk
from hessprobe.optim import SAM
from hessprobe.report.track import track_record, write_track
from hessprobe.tracking import SharpnessTracker, StepRule, measure_point

SETTINGS = MeasureSettings(engine="double_backward", rtol=0.05, k=2)


def trained(case, steps, lr=0.2):
    """Return the risks after every ten steps of gradient descent."""
    module, optimizer = case.module, torch.optim.SGD(case.module.parameters(), lr=lr)
    risks = [case.risk()]
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        for inputs, targets in case.data:
            (case.loss(module(inputs), targets) / len(case.data)).backward()
        optimizer.step()
        if step % 10 == 0:
            risks.append(case.risk())
    return risks


def test_a_network_too_small_for_a_search_of_directions_is_tracked():
    torch.manual_seed(0)
    model, x = nn.Linear(2, 2).double(), torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]).double()
    case = nets.Case(model, [(x, torch.tensor([0, 1, 0]))], nn.CrossEntropyLoss())
    point = SharpnessTracker(model, case.loss, case.data).step(1)
    dense = nets.full_hessian(case.risk())
    assert point.values["trace"] == pytest.approx(float(dense.trace()), rel=1e-9)
    assert point.values["frob"] == pytest.approx(float(dense.norm()), rel=1e-9)
    assert point.matvecs == sum(result.estimate.matvecs for result in point.results)


def test_a_point_is_what_the_full_hessian_says():
    risk = nets.mlp().risk()
    H, g = nets.full_hessian(risk), risk.gradient()
    values, vectors = torch.linalg.eigh(H)
    point, left = measure_point(
        risk, SETTINGS, ("trace", "frob", "lambda-min"), step=3, rule=StepRule(0.1, momentum=0.5), lr=0.1, epoch=1.0
    )
    found = point.values
    assert list(found) == ["lambda-max", "lambda-min", "trace", "frob"]
    assert found["lambda-max"] == pytest.approx(float(values[-1]), rel=1e-5)
    assert found["lambda-min"] == pytest.approx(float(values[0]), rel=1e-3)
    assert found["trace"] == pytest.approx(float(H.trace()), rel=0.05)
    assert found["frob"] == pytest.approx(float(H.norm()), rel=0.05)
    assert point.loss == float(risk.loss())
    assert point.gradient_norm == pytest.approx(float(g.norm()), rel=1e-12)
    assert point.alignment.first == pytest.approx(float((vectors[:, -1] @ g).abs() / g.norm()), rel=1e-3)
    assert point.alignment.space == pytest.approx(float((vectors[:, -2:].T @ g).norm() / g.norm()), rel=1e-3)
    assert point.alignment.k == 2
    assert point.edge.plain == pytest.approx(30)
    assert left.engines[0] == "double_backward"
    assert left.eigenvectors.shape[1] == risk.dim
    # Both ends of the spectrum come from one run; the directions behind the norm are counted with it.
    apart = {result.measure: result.estimate.matvecs for result in point.results}
    assert apart.pop("lambda-min") == apart["lambda-max"]
    assert point.matvecs == pytest.approx(sum(apart.values()), rel=1e-12)


def test_a_warm_start_gives_the_same_values_for_no_more_products():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 4)).double()
    batches = [(torch.randn(n, 6).double(), torch.randint(4, (n,))) for n in (12, 12)]
    risks = trained(nets.Case(module, batches, nn.CrossEntropyLoss()), 20)
    settings, vectors = MeasureSettings(engine="double_backward", rtol=0.05), None
    warm, cold = [], []
    for step, risk in enumerate(risks):
        point, vectors = measure_point(risk, settings, ("frob",), step=step, start=vectors)
        warm.append(point)
        cold.append(measure_point(risk, settings, ("frob",), step=step)[0])
        exact = nets.full_hessian(risk)
        for found in (warm[-1], cold[-1]):
            assert found.values["lambda-max"] == pytest.approx(float(torch.linalg.eigvalsh(exact)[-1]), rel=1e-5)
            low, high = found.results[1].estimate.interval(0.9999)
            assert low <= float(exact.norm()) <= high
        alone = measure("lambda-max", risk, engine="double_backward", rtol=0.05).value
        assert cold[-1].values["lambda-max"] == alone
    eigen, all_ = ([sum(take(point) for point in points[1:]) for points in (warm, cold)] for take in (
        lambda point: point.results[0].estimate.matvecs, lambda point: point.matvecs))  # fmt: skip
    assert warm[0].matvecs == cold[0].matvecs
    # A bracket takes as many products from a warm start as from a cold one: what it does not see it must exclude.
    assert eigen[0] <= 1.1 * eigen[1]
    # A cold norm finds in its pilot what to deflate, and has no search for eigenvectors to save.
    assert all_[0] <= 1.1 * all_[1] <= 3 * 50


def test_products_are_counted_once_each():
    # With every pass of the operator counted, nothing is missing and nothing counted twice.
    risk, seen = nets.mlp().risk(), []
    from hessprobe.hvp import Hessian

    original = Hessian._matvecs

    def counted(self, V):
        seen.append(len(V))
        return original(self, V)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hessian, "_matvecs", counted)
        point, _ = measure_point(risk, MeasureSettings(engine="double_backward"), ("lambda-max",), step=0)
    # The pair found is multiplied once more, batch by batch, which is one product of the whole.
    # It is counted by its groups of examples, whose shares add up to rounding.
    assert point.matvecs == pytest.approx(sum(seen) + 1, rel=1e-12)


class Net(nn.Module):
    """BatchNorm and dropout: buffers and random numbers that training moves."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4))

    def forward(self, inputs):
        return self.layers(inputs)


def data(seed=0, n=24):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator), torch.randint(4, (n,), generator=generator)


def training(kind, make_tracker=None, steps=6):
    """Train and return everything that a later step depends on."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    model = Net().train()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = SAM(base, rho=0.05) if kind == "sam" else base
    tracker = make_tracker(model, optimizer) if make_tracker else None
    x, y = data(5)
    for step in range(1, steps + 1):
        rows = torch.randperm(len(x))[:8]

        def closure(rows=rows):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            return loss

        optimizer.step(closure)
        if tracker is not None:
            tracker.step(step)
            assert model.training
    gradients = {name: p.grad for name, p in model.named_parameters()}
    state = copy.deepcopy([model.state_dict(), optimizer.state_dict(), gradients])
    return state, [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()], tracker  # noqa: NPY002


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("kind", ["sgd", "sam"])
def test_training_is_bit_identical_with_and_without(kind, tmp_path):
    def tracked(model, optimizer):
        x, y = data()
        return SharpnessTracker(
            model, nn.CrossEntropyLoss(), [(x[:16], y[:16]), (x[16:], y[16:])], every=2, optimizer=optimizer, rtol=0.2
        )

    state, generators, _ = training(kind)
    beside, generators_beside, tracker = training(kind, tracked)
    assert same(state, beside)
    assert same(generators, generators_beside)
    assert [point.step for point in tracker.points] == [2, 4, 6]
    assert all((point.edge.sharpness_aware is None) == (kind == "sgd") for point in tracker.points)


def test_a_tracker_measures_the_weights_of_its_step():
    x, y = data()
    model = Net().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = SharpnessTracker(model, nn.CrossEntropyLoss(), [(x, y)], measures=("trace",), engine="double_backward")
    for step in range(3):
        point = tracker.step(step, lr=0.1, train_accuracy=0.5)
        alone = EmpiricalRisk(copy.deepcopy(model), nn.CrossEntropyLoss(), [(x, y)])
        expected = measure("lambda-max", alone, engine="double_backward").value
        assert point.values["lambda-max"] == pytest.approx(expected, rel=1e-4)
        assert (point.lr, point.edge.plain, point.scores) == (0.1, pytest.approx(20), {"train_accuracy": 0.5})
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    row = tracker.rows()[0]
    assert row["lambda-max"] == tracker.points[0].values["lambda-max"]
    assert row["train_accuracy"] == 0.5


def test_a_diverged_step_is_left_out_with_a_warning():
    x, y = data()
    model = Net()
    tracker = SharpnessTracker(model, nn.CrossEntropyLoss(), [(x, y)], measures=(), engine="double_backward")
    tracker.step(0)
    with torch.no_grad():
        model.layers[0].weight.fill_(float("nan"))
    with pytest.warns(NumericalWarning, match=r"step 1 was not measured: .*nan"):
        assert tracker.step(1) is None
    assert [point.step for point in tracker.points] == [0]


def test_a_record_is_drawn_and_read_again(tmp_path):
    x, y = data()
    model = Net()
    tracker = SharpnessTracker(model, nn.CrossEntropyLoss(), [(x, y)], k=2, rtol=0.2, engine="double_backward")
    for step in (0, 5):
        tracker.step(step, lr=0.5)
    write_track(tmp_path / "t.json", tracker)
    record = report.read_record(tmp_path / "t.json")
    # The process may have grown in between.
    assert record == {**track_record(tracker), **{name: record[name] for name in ("created", "peak_memory")}}
    assert record["arguments"]["k"] == 2
    from hessprobe.report.figures import figures_of

    figure, *_ = figures_of(record)
    assert "Along steps 0 to 5, 2 points: largest eigenvalue " in figure.alt
    labels = [text.get_text() for text in figure.figure().axes[0].get_legend().get_texts()]
    assert any(label.startswith("threshold 2/lr") for label in labels)
    json.dumps(record, allow_nan=False)


class Writer:
    def __init__(self):
        self.seen = []

    def add_scalar(self, tag, value, step):
        self.seen.append((tag, value, step))


def test_a_writer_is_told_every_number():
    x, y = data()
    writer = Writer()
    tracker = SharpnessTracker(
        Net(), nn.CrossEntropyLoss(), [(x, y)], writer=writer, rtol=0.2, engine="double_backward"
    )
    point = tracker.step(7, lr=0.1)
    seen = {tag: value for tag, value, step in writer.seen if step == 7}
    assert len(seen) == len(writer.seen)
    assert seen["hessprobe/lambda-max"] == point.values["lambda-max"]
    assert seen["hessprobe/edge-of-stability"] == pytest.approx(20)
    assert {"hessprobe/trace", "hessprobe/trace-error", "hessprobe/frob", "hessprobe/alignment"} <= set(seen)


def test_tensorboard_files_hold_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    x, y = data()
    with SharpnessTracker(
        Net(), nn.CrossEntropyLoss(), [(x, y)], writer=tmp_path / "runs", measures=(), engine="double_backward"
    ) as tracker:
        point = tracker.step(3)
    events = EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    (scalar,) = events.Scalars("hessprobe/lambda-max")
    assert (scalar.step, scalar.value) == (3, pytest.approx(point.values["lambda-max"], rel=1e-6))


def frozen():
    model = Net()
    model.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"budget": 0.0}, ValueError, "budget must be a number in (0, 1]; got 0.0. 0.05 lets measuring take 5 %"),
        ({"budget": 5}, ValueError, "budget must be a number in (0, 1]; got 5."),
        ({"budget": float("nan")}, ValueError, "budget must be a number in (0, 1]; got nan."),
        ({"every": 0}, ValueError, "every must be an integer >= 1; got 0."),
        ({"every": 2.5}, TypeError, "every must be an integer >= 1; got 2.5."),
        ({"measures": ("density",)}, ValueError, "measures must be one of lambda-max, lambda-min,"),
        ({"engine": "doublebackward"}, ValueError, "engine must be one of auto, linearized, double_backward,"),
        ({"rtol": 0}, ValueError, "rtol must be a number in (0, 1); got 0."),
        ({"optimizer": "sgd"}, TypeError, "optimizer must be a torch.optim.Optimizer; got str."),
        ({"writer": 3}, TypeError, "writer must be a SummaryWriter or a folder; got int."),
        ({"model": frozen()}, ValueError, "model must have trainable parameters; got none."),
        ({"model": "net"}, TypeError, "model must be a torch.nn.Module; got str."),
    ],
)
def test_wrong_arguments(arguments, kind, message):
    given = {"model": Net(), "loss": nn.CrossEntropyLoss(), "data": [data()], **arguments}
    with pytest.raises(kind, match=r".*") as caught:
        SharpnessTracker(**given)
    assert message in str(caught.value)


def test_wrong_steps_and_rates():
    tracker = SharpnessTracker(Net(), nn.CrossEntropyLoss(), [data()], measures=(), engine="double_backward")
    tracker.step(5)
    for arguments, message in (
        ({"step": 5}, "step must be more than at the last point, 5; got 5."),
        ({"step": 6, "lr": -1.0}, "lr must be a finite number >= 0; got -1.0."),
        ({"step": 6, "lr": float("nan")}, "lr must be a finite number >= 0; got nan."),
    ):
        with pytest.raises(ValueError, match=r".*") as caught:
            tracker.step(**arguments)
        assert message in str(caught.value)
    assert tracker.points[0].edge.reason == "the learning rate is not known"
    assert tracker.step(6, lr=0.0).edge.reason == "the learning rate is 0"


def test_a_loader_that_shuffles_is_refused():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=8, shuffle=True)
    before = torch.get_rng_state()
    tracker = SharpnessTracker(Net(), nn.CrossEntropyLoss(), loader, measures=(), engine="double_backward")
    with pytest.raises(Exception, match="data"):
        tracker.step(0)
    assert torch.equal(before[:8], torch.get_rng_state()[:8])

"""A training that is stopped and goes on from a checkpoint: its tracker gives the points of an uninterrupted run."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from hessprobe.report.track import track_record
from hessprobe.tracking import SharpnessTracker
from hessprobe.tracking.store import packed

OPTIONS = {"every": 2, "rtol": 0.2, "k": 2, "engine": "double_backward"}


def network(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 4))


def data(n=24):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 6, generator=generator), torch.randint(4, (n,), generator=generator)


def tracker_of(model, optimizer=None, **options):
    x, y = data()
    batches = [(x[:16], y[:16]), (x[16:], y[16:])]
    return SharpnessTracker(model, nn.CrossEntropyLoss(), batches, optimizer=optimizer, **{**OPTIONS, **options})


def train(first, last, checkpoint=None, **options):
    """Train from after step ``first`` to ``last``; return the tracker and a checkpoint, as bytes."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    tracker = tracker_of(model, optimizer, **options)
    if checkpoint is not None:
        content = torch.load(io.BytesIO(checkpoint), weights_only=True)
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        tracker.load_state_dict(content["tracker"])
    x, y = data(48)
    for step in range(first + 1, last + 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[step % 3 :: 3]), y[step % 3 :: 3]).backward()
        optimizer.step()
        tracker.step(step, accuracy=np.float64(step / 10))
    target = io.BytesIO()
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "tracker": tracker.state_dict()}
    torch.save(states, target)
    return tracker, target.getvalue()


def without_times(rows):
    if isinstance(rows, dict):
        return {
            key: without_times(each)
            for key, each in rows.items()
            if key not in ("seconds", "created", "gradients", "peak_memory")
        }
    return [without_times(each) for each in rows] if isinstance(rows, list) else rows


@pytest.fixture(scope="module")
def halves():
    """An uninterrupted run, and one that was stopped after step 5."""
    return train(0, 8)[0], train(0, 5)


def test_stop_and_resume_gives_the_points_of_an_uninterrupted_run(halves):
    whole, (stopped, checkpoint) = halves
    resumed, _ = train(5, 8, checkpoint)
    assert [point.step for point in resumed.points] == [2, 4, 6, 8]
    # To the last bit, eigenvalues, intervals and products; the record is one, and holds all points.
    assert without_times(track_record(resumed)) == without_times(track_record(whole))
    for one, other in zip(resumed.points, whole.points, strict=True):
        assert one.scores == other.scores == {"accuracy": one.step / 10}
        for mine, theirs in zip(one.results, other.results, strict=True):
            assert mine.estimate.details.keys() == theirs.estimate.details.keys()
            assert all(torch.equal(tensor, theirs.arrays[name]) for name, tensor in mine.arrays.items())
    # What differs of two runs from one checkpoint can still be compared probe by probe.
    mine, theirs = (each.points[0].results[1].estimate.influence for each in (resumed, stopped))
    assert theirs.rows.keys() == mine.rows.keys()
    assert all(torch.equal(rows, theirs.rows[name]) for name, rows in mine.rows.items())
    assert torch.equal(mine.batches.table, theirs.batches.table)


def test_times_go_on_from_those_of_the_stopped_run(halves):
    _, (stopped, checkpoint) = halves
    state = torch.load(io.BytesIO(checkpoint), weights_only=True)["tracker"]
    fresh = tracker_of(network())
    fresh.load_state_dict(state)
    assert fresh.pace.spent == stopped.pace.spent > 0
    assert fresh.pace.trained == state["pace"]["trained"] > 0
    assert fresh.pace.expected == stopped.pace.expected


def test_a_state_without_vectors_is_small_and_begins_anew():
    model = network()
    tracker = tracker_of(model)
    tracker.measure(2)
    small = tracker.state_dict(vectors=False)
    assert small["start"]["eigenvectors"] is small["start"]["directions"] is None
    assert tracker.state_dict()["start"]["eigenvectors"].shape == (2, 92)
    fresh = tracker_of(model)
    fresh.load_state_dict(small)
    again = fresh.measure(4)
    assert again.values == pytest.approx(tracker.points[0].values, rel=1e-6)
    assert again.matvecs == tracker.points[0].matvecs > tracker.measure(4).matvecs


def test_every_and_budget_may_change_and_steps_go_on():
    tracker = tracker_of(network())
    tracker.measure(4)
    fresh = tracker_of(network(), every=3, budget=0.5, engine="auto", memory=10**9)
    fresh.load_state_dict(tracker.state_dict())
    with pytest.raises(ValueError, match="step must be more than at the last point, 4; got 3"):
        fresh.measure(3)


@pytest.mark.parametrize(
    ("options", "width", "message"),
    [
        ({"seed": 1}, 8, "state must be of a tracker with the same settings; got one with seed=0, not 1. Make the"),
        ({"rtol": 0.1}, 8, "got one with rtol=0.2, not 0.1."),
        ({"measures": ("trace",)}, 8, "got one with measure=['lambda-max', 'trace', 'frob'], not ['trace']."),
        ({}, 9, "state must be of 103 parameters; got 92. Load that of the same model."),
    ],
)
def test_a_state_of_another_track_is_refused(halves, options, width, message):
    _, (_, checkpoint) = halves
    state = torch.load(io.BytesIO(checkpoint), weights_only=True)["tracker"]
    tracker = tracker_of(network(width), **options)
    with pytest.raises(ValueError, match=r".*") as caught:
        tracker.load_state_dict(state)
    assert message in str(caught.value)
    assert (tracker.points, tracker.pace.spent) == ([], 0.0)


def test_what_is_no_state_is_refused():
    tracker = tracker_of(network())
    good = tracker.state_dict()
    for state, message in (
        ([], "state must be what state_dict returned (hessprobe.tracker/1); got list."),
        ({"format": "hessprobe.tracker/9"}, "got format 'hessprobe.tracker/9'."),
        ({**good, "points": [{"kind of record": "Pint", "step": 3}]}, "got 'Pint' with ['step']."),
    ):
        with pytest.raises(ValueError, match=r".*") as caught:
            tracker.load_state_dict(state)
        assert message in str(caught.value)
    with pytest.raises(TypeError, match=r"points must hold tensors, numbers and strings; got object\."):
        packed([object()])
    # Before it is measured, not when a checkpoint is written.
    with pytest.raises(TypeError, match=r"accuracy must be a number; got NoneType\. Pass plain scores"):
        tracker.measure(1, accuracy=None)
    assert (tracker.points, tracker.pace.spent) == ([], 0.0)


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, options = network(), {"writer": tmp_path, "measures": ()}
    with tracker_of(model, **options) as tracker:
        tracker.measure(2)
        state = tracker.state_dict()
        # Lost: the run is stopped before the next checkpoint.
        tracker.measure(4)
        tracker.measure(6)
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    with tracker_of(model, **options) as tracker:
        tracker.load_state_dict(state)
        tracker.measure(4)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    shown = events.Scalars("hessprobe/lambda-max")
    assert [scalar.step for scalar in shown] == [2, 4]
    assert math.isclose(shown[1].value, tracker.points[1].values["lambda-max"], rel_tol=1e-6)

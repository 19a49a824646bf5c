"""The adapters against stand-ins that have the signatures of the packages and nothing else; nothing is imported."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import hessprobe as hp
from hessprobe.errors import UnsupportedError
from hessprobe.tracking import loggers
from hessprobe.tracking.tensorboard import open_writer


class Run:
    """A run of Weights & Biases: what is logged at a step that is over is dropped."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self.step, self.ended, self.axes = 0, False, {}

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes[name] = step_metric

    def log(self, data: dict[str, float], step: int | None = None) -> None:
        assert not self.ended
        if step is not None and step < self.step:
            return
        at = self.step if step is None else step
        self.rows.setdefault(at, {}).update(data)
        self.step = at + 1 if step is None else at

    def finish(self) -> None:
        self.ended = True


class Client:
    """A client of MLflow."""

    made: ClassVar[list[Client]] = []

    def __init__(self) -> None:
        self.metrics: list[tuple[str, str, float, int]] = []
        self.experiments: dict[str, str] = {"known": "7"}
        self.terminated: list[str] = []
        Client.made.append(self)

    def get_experiment_by_name(self, name: str) -> Any:
        found = self.experiments.get(name)
        return None if found is None else types.SimpleNamespace(experiment_id=found)

    def create_experiment(self, name: str) -> str:
        assert name not in self.experiments
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def create_run(self, experiment_id: str) -> Any:
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"run of {experiment_id}"))

    def log_metric(
        self, run_id: str, key: str, value: float, timestamp: int | None = None, step: int | None = None
    ) -> None:
        assert step is not None
        self.metrics.append((run_id, key, value, step))

    def set_terminated(self, run_id: str) -> None:
        self.terminated.append(run_id)


def tracker(writer: Any) -> hp.SharpnessTracker:
    torch.manual_seed(0)
    model = nn.Linear(2, 2).double()
    data = [(torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]).double(), torch.tensor([0, 1, 0]))]
    return hp.SharpnessTracker(model, nn.CrossEntropyLoss(), data, measures=("trace",), writer=writer)


def test_a_run_of_wandb_is_told_every_number_on_an_axis_of_its_own() -> None:
    run = Run()
    with tracker(run) as mine:
        points = [mine.step(3), mine.step(6)]
    assert run.axes == {"hessprobe/step": None, "hessprobe/*": "hessprobe/step"}
    assert not run.ended
    assert sorted(run.rows) == [3, 6]
    for point in points:
        assert point is not None
        row = run.rows[point.step]
        assert row["hessprobe/step"] == point.step
        assert row["hessprobe/loss"] == point.loss
        assert row["hessprobe/trace"] == point.values["trace"]
        assert row["hessprobe/lambda-max"] == point.values["lambda-max"]
        assert "hessprobe/trace-error" in row


def test_a_run_that_counts_otherwise_drops_nothing() -> None:
    run = Run()
    run.step = 500
    with tracker(run) as mine:
        mine.step(3)
        mine.step(4)
    assert [row["hessprobe/step"] for row in run.rows.values()] == [3, 4]


def test_a_project_of_wandb_is_opened_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = Run(), []
    fake = types.ModuleType("wandb")
    fake.init = lambda project: asked.append(project) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with tracker("wandb:minima") as mine:
        mine.step(2)
        state = mine.state_dict()
        # The state of a stopped run opens no second one.
        mine.load_state_dict(state)
    assert (asked, run.ended, list(run.rows)) == (["minima"], True, [2])


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    fake = types.ModuleType("mlflow")
    fake.MlflowClient, fake.active_run = Client, lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    Client.made.clear()
    return fake


@pytest.mark.parametrize(("name", "run_id"), [("known", "run of 7"), ("new", "run of 1")])
def test_an_experiment_of_mlflow_gets_a_run(mlflow: types.ModuleType, name: str, run_id: str) -> None:
    with tracker(f"mlflow:{name}") as mine:
        point = mine.step(5)
    (client,) = Client.made
    assert point is not None
    assert (run_id, "hessprobe/loss", point.loss, 5) in client.metrics
    assert (run_id, "hessprobe/trace", point.values["trace"], 5) in client.metrics
    assert {(run, step) for run, _, _, step in client.metrics} == {(run_id, 5)}
    assert client.terminated == [run_id]


def test_the_active_run_of_mlflow_goes_on(mlflow: types.ModuleType) -> None:
    active = types.SimpleNamespace(info=types.SimpleNamespace(run_id="mine"))
    mlflow.active_run = lambda: active  # type: ignore[attr-defined]
    with tracker("mlflow:known") as mine:
        mine.step(1)
    (client,) = Client.made
    assert {run for run, *_ in client.metrics} == {"mine"}
    assert client.terminated == []


@pytest.mark.parametrize("kind", loggers.KINDS)
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(UnsupportedError, match=f"needs the package {kind}. Run pip install {kind}."):
        open_writer(f"{kind}:name")
    with pytest.raises(ValueError, match=f"writer must be {kind}:NAME; got '{kind}:'"):
        open_writer(f"{kind}:")


def test_nothing_is_imported_unless_it_is_named() -> None:
    run = Run()
    with tracker(run):
        pass
    assert not {"wandb", "mlflow"} & set(sys.modules)


@pytest.mark.parametrize("writer", ["", " "])
def test_a_writer_without_a_name_is_refused(writer: str) -> None:
    with pytest.raises(ValueError, match="writer must name a folder; got"):
        open_writer(writer)


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"writer must name a folder that can be made and written; got '/proc/x' \("):
        open_writer("/proc/x")
    with pytest.raises(ValueError, match=r"got '.*file/x' \(Not a directory\)\. Choose another\."):
        open_writer(tmp_path / "file" / "x")

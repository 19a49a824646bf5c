"""Every registered optimizer on one small task: what it costs a step, and how sharp the minimum is that it finds."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hessprobe.benchmarks.processes import Outcome, run_apart
from hessprobe.errors import HessprobeError, LostRunsError
from hessprobe.measures import MeasureSettings, measure_all
from hessprobe.objective.base import make_loss
from hessprobe.optim import available
from hessprobe.optim.engine import SharpnessAware
from hessprobe.training import Recipe, load_checkpoint
from hessprobe.training.building import build_optimizer
from hessprobe.training.closures import StepClosures, Tally
from hessprobe.training.models import build_model
from hessprobe.training.run import make_plan, train_to_file

MEASURES = ("lambda-max", "trace", "frob")
LABEL_NOISE = 0.2
EPOCHS = 6
# Name -> (arguments of the network, share of wrong labels). Every optimizer is at its defaults in all of them.
SETTINGS: dict[str, tuple[dict[str, Any], float]] = {
    "LayerNorm, wrong labels": ({"norm": "layer"}, LABEL_NOISE),
    "LayerNorm, clean": ({"norm": "layer"}, 0.0),
    "plain, wrong labels": ({}, LABEL_NOISE),
    "plain, clean": ({}, 0.0),
}
FIRST = next(iter(SETTINGS))
# Rules about normalization layers, which the other networks have none of.
_OF_NORMALIZATION = frozenset({"sam-on"})
# Those that are made to lower a measure, which is taken in every setting, and those that they are held against.
FLATTENERS = {"trace-sam": "trace", "frob-sam": "frob", "det-sam": "logdet"}
PLAIN = ("sgd", "adamw")
_COMPARED = ("sgd", "sam", *FLATTENERS)
_STEPS_TIMED = 10
_BATCH = 32


@dataclass(frozen=True)
class TrainedOptimizer:
    """One run of one optimizer.

    Attributes:
        optimizer: its name.
        seed: of weights and order.
        test_accuracy: on held-out digits with their true labels.
        train_accuracy: on the training digits, against the labels trained on.
        measures: name -> (value, standard error including the solver's) of the training loss's Hessian.
        failure: why there are no numbers, else empty.
        others: the same in the other settings that the rule has a place in, by their names; accuracy nan where the run
            diverged.
        epochs: passes over the data.
    """

    optimizer: str
    seed: int
    test_accuracy: float = math.nan
    train_accuracy: float = math.nan
    measures: dict[str, tuple[float, float]] = field(default_factory=dict)
    failure: str = ""
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    epochs: int = EPOCHS

    def row(self) -> dict[str, Any]:
        """Return the figures as a flat dict."""
        return asdict(self)


def optimizer_names() -> list[str]:
    """Return the plain optimizers, then every registered one."""
    return [*PLAIN, *available()]


def compare_optimizers(
    names: Sequence[str],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = EPOCHS,
    jobs: int = 1,
    known: Sequence[TrainedOptimizer] = (),
    report: Callable[[TrainedOptimizer, int, int], None] = lambda run, done, total: None,
) -> list[TrainedOptimizer]:
    """Train the digits networks and measure what comes out, each optimizer at its defaults.

    Args:
        names: of optimizers.
        seeds: one run each.
        epochs: passes over the data.
        jobs: processes of one thread each.
        known: runs of an earlier call, which are not made again.
        report: told of every finished run, how many are done, of how many.

    Returns:
        The runs, in the order of the names.

    Raises:
        LostRunsError: once all others are finished, where processes died or broke.
    """
    everything = [(name, seed, epochs) for seed in seeds for name in names]
    done = [run for run in known if (run.optimizer, run.seed, run.epochs) in everything]
    there = {(run.optimizer, run.seed, run.epochs) for run in done}
    tasks = [task for task in everything if task not in there]
    lost: list[Outcome] = []

    def finished(outcome: Outcome) -> None:
        if outcome.failure:
            lost.append(outcome)
            return
        done.append(outcome.result)
        report(outcome.result, len(done) + len(lost), len(everything))

    run_apart(_train_on_one_thread, tasks, jobs=jobs, finished=finished)
    done.sort(key=lambda one: (names.index(one.optimizer), one.seed))
    if lost:
        raise _lost(sorted(lost, key=lambda one: tasks.index(one.task)), done)
    return done


def _lost(lost: Sequence[Outcome], done: Sequence[TrainedOptimizer]) -> LostRunsError:
    ends = [f"the run of {one.task[0]}, seed {one.task[1]}, {one.failure}" for one in lost]
    kept = f"{len(done)} of {len(lost) + len(done)} runs were finished"
    error = LostRunsError(f"{'; '.join(ends)}; {kept}.", done)
    for one in lost:
        if one.details:
            error.add_note(one.details)
    return error


def _train_on_one_thread(name: str, seed: int, epochs: int) -> TrainedOptimizer:
    torch.set_num_threads(1)
    return train_and_measure(name, seed, epochs)


def train_and_measure(name: str, seed: int, epochs: int) -> TrainedOptimizer:
    """Return one run in every setting; one that diverges says so instead of failing the comparison."""
    ends = {setting: _in_setting(setting, name, seed, epochs) for setting in SETTINGS if has_a_place(name, setting)}
    first = ends.pop(FIRST)
    return TrainedOptimizer(name, seed, **first, others=ends, epochs=epochs)


def has_a_place(name: str, setting: str) -> bool:
    """Return whether a rule can train the network of a setting."""
    return name not in _OF_NORMALIZATION or "norm" in SETTINGS[setting][0]


def _in_setting(setting: str, name: str, seed: int, epochs: int) -> dict[str, Any]:
    arguments, noise = SETTINGS[setting]
    recipe = Recipe(optimizer=name, epochs=epochs, label_noise=noise, batch_size=_BATCH, seed=seed)
    wanted = [*(MEASURES if setting == FIRST else ()), *(FLATTENERS.values() if name in _COMPARED else ())]
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(recipe, Path(folder) / "run.pt", "mlp", arguments)
        try:
            metrics = train_to_file(plan).metrics
            checkpoint = load_checkpoint(plan.out)
            settings = MeasureSettings(rtol=0.03, seed=seed, shift=1.0)
            results = list(measure_all(list(dict.fromkeys(wanted)), checkpoint.risk(), settings)) if wanted else []
        except HessprobeError as error:
            return {"failure": str(error)}
    values = {one.measure: (one.estimate.value, one.estimate.half_width(0.95) / 1.96) for one in results}
    return {
        "test_accuracy": metrics["test_accuracy"],
        "train_accuracy": metrics["train_accuracy"],
        "measures": values,
    }


def time_optimizers(names: Sequence[str], *, rounds: int = 15) -> dict[str, tuple[float, float, float]]:
    """Return median, lower and upper quartile of the time of a step over that of SGD in the same round.

    A round takes ten steps with SGD and ten with the optimizer, on the digits network with batches of 32, so that a
    rule that works every k-th step shows its average.

    Args:
        names: of optimizers; ``sgd`` is added.
        rounds: >= 2, after one that is not counted.
    """
    found = {"sgd": (1.0, 1.0, 1.0)}
    for name in dict.fromkeys(names):
        if name != "sgd":
            low, middle, high = statistics.quantiles(_ratios(name, rounds), n=4)
            found[name] = (middle, low, high)
    return found


def _ratios(name: str, rounds: int) -> list[float]:
    # Alone with SGD, as in a training: every optimizer that is alive is looked at by the others at each of their steps.
    base, own, ratios = _stepper("sgd"), _stepper(name), []
    for number in range(rounds + 1):
        spent = []
        for step in (base, own):
            start = time.perf_counter()
            for _ in range(_STEPS_TIMED):
                step()
            spent.append(time.perf_counter() - start)
        if number:
            ratios.append(spent[1] / spent[0])
    return ratios


def _stepper(name: str) -> Callable[[], None]:
    recipe = Recipe(optimizer=name, epochs=1000, batch_size=_BATCH)
    model = build_model("mlp", {"in_features": 64, "norm": "layer"}, seed=0).train()
    optimizer = build_optimizer(recipe, model, steps=100_000, examples=1_433)
    loss, batches = make_loss("cross-entropy", "vector"), _batches()

    def step() -> None:
        inputs, labels = next(batches)
        count = getattr(optimizer, "shards", 1)
        shards = list(zip(inputs.tensor_split(count), labels.tensor_split(count), strict=True))
        closures = StepClosures(model, loss, shards, Tally.on(inputs.device), in_parts=count > 1)
        if isinstance(optimizer, SharpnessAware):
            optimizer.step(**closures.for_optimizer(optimizer))
        else:
            optimizer.zero_grad()
            closures.backward()
            optimizer.step()

    return step


def _batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(_BATCH, 64, generator=generator), torch.randint(10, (_BATCH,), generator=generator)

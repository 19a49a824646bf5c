"""Time of a point of a loss landscape beside a plain forward pass and the package ``loss-landscapes``, in one run."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprobe.benchmarks.ratios import quartiles
from hessprobe.landscape import axis, evaluate, random_plane
from hessprobe.objective import EmpiricalRisk
from hessprobe.training.checkpoint import RISK_BATCH_SIZE
from hessprobe.training.datasets import batches, load_dataset
from hessprobe.training.models import build_model

# The plane that every time is stated for.
SIZE = 51
PLAIN, OURS, PEER = "plain forward passes", "hessprobe", "loss-landscapes"


@dataclass(frozen=True)
class Case:
    """A network with its data.

    Attributes:
        name: short.
        title: for tables.
        build: makes the module.
        data: makes all examples and labels.
        size: points an axis that are timed; the time of a plane of 51 x 51 is worked out from them.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    size: int


@dataclass(frozen=True)
class PlaneTiming:
    """One contestant on one network.

    Attributes:
        case, contestant: which.
        seconds: median time of a plane of 51 x 51 points.
        milliseconds: median time of a point.
        ratio: median over rounds of the time of the plane over that of as many plain forward passes, same round.
        low, high: quartiles of the ratio; None for one round.
        rounds: interleaved rounds.
        points: timed a round.
    """

    case: str
    contestant: str
    seconds: float
    milliseconds: float
    ratio: float
    low: float | None
    high: float | None
    rounds: int
    points: int

    def row(self) -> dict[str, object]:
        """Return the figures as a flat dict."""
        return asdict(self)


def _digits() -> tuple[Tensor, Tensor]:
    return load_dataset("digits").split("all")


def _images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1000, 3, 32, 32, generator=generator)
    return images, torch.randint(10, (1000,), generator=generator)


CASES = {
    case.name: case
    for case in (
        Case(
            "digits",
            "MLP 64-128-64-10, 1,797 digits",
            lambda: build_model("mlp", {"hidden": [128, 64]}, seed=0),
            _digits,
            SIZE,
        ),
        Case("resnet20", "ResNet-20, 1,000 images", lambda: build_model("resnet", {}, seed=0), _images, 5),
    )
}

# A run gives the time of all its points, and that of one point apart from what is done once a plane.
_Run = Callable[[], tuple[float, float]]


def time_planes(case: Case, *, rounds: int = 5, report: Callable[[str], None] = lambda _: None) -> list[PlaneTiming]:
    """Time the points of a plane by every contestant in turn, ``rounds`` times after one that is not counted.

    Args:
        case: the network and its data.
        rounds: >= 1.
        report: told of progress.
    """
    module, (inputs, labels) = case.build().eval(), case.data()
    parts = list(batches(inputs, labels, RISK_BATCH_SIZE))
    runs: dict[str, _Run] = {
        PLAIN: lambda: _plain(module, parts, case.size),
        OURS: lambda: _ours(module, parts, case.size),
    }
    if importlib.util.find_spec("loss_landscapes") is not None:
        runs[PEER] = lambda: _peer(module, inputs, labels, case.size)
    planes: dict[str, list[float]] = {name: [] for name in runs}
    points: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            report(f"{case.name}, round {number} of {rounds}: {name}")
            total, each = run()
            if number:
                # What is done once, and all points of the plane.
                planes[name].append(total + each * (SIZE**2 - case.size**2))
                points[name].append(each)
    return [_timing(case, name, planes, points) for name in runs]


def _plain(module: nn.Module, parts: list[tuple[Tensor, Tensor]], size: int) -> tuple[float, float]:
    began = time.perf_counter()
    with torch.no_grad():
        for _ in range(size**2):
            total = sum(len(y) * F.cross_entropy(module(x), y).double() for x, y in parts)
            float(total)
    spent = time.perf_counter() - began
    return spent, spent / size**2


def _ours(module: nn.Module, parts: list[tuple[Tensor, Tensor]], size: int) -> tuple[float, float]:
    risk = EmpiricalRisk(module, F.cross_entropy, parts)
    seen: list[tuple[int, float]] = []
    began = time.perf_counter()
    plane = random_plane(risk, seed=0)
    grid = axis(size, -1.0, 1.0)
    evaluate(risk, plane, (grid, grid), callback=lambda done, _: seen.append((done, time.perf_counter())))
    spent = time.perf_counter() - began
    # The first pass over several points also tries how many a pass may hold.
    (start, then), (stop, now) = seen[min(1, len(seen) - 2)], seen[-1]
    return spent, (now - then) / (stop - start)


def _peer(module: nn.Module, inputs: Tensor, labels: Tensor, size: int) -> tuple[float, float]:
    peer: Any = importlib.import_module("loss_landscapes")
    metric = importlib.import_module("loss_landscapes.metrics").Loss(F.cross_entropy, inputs, labels)
    # It changes the model it is given, and leaves its gradients off.
    own = copy.deepcopy(module)
    began = time.perf_counter()
    # Its filter normalization divides by zero in a network with BatchNorm; the directions cost next to nothing.
    peer.random_plane(own, metric, distance=1.0, steps=size, normalization="model", deepcopy_model=True)
    spent = time.perf_counter() - began
    return spent, spent / size**2


def _timing(case: Case, name: str, planes: dict[str, list[float]], points: dict[str, list[float]]) -> PlaneTiming:
    ratios = [own / plain for own, plain in zip(planes[name], planes[PLAIN], strict=True)]
    low, high = quartiles(ratios)
    return PlaneTiming(
        case=case.name,
        contestant=name,
        seconds=statistics.median(planes[name]),
        milliseconds=1e3 * statistics.median(points[name]),
        ratio=statistics.median(ratios),
        low=low,
        high=high,
        rounds=len(ratios),
        points=case.size**2,
    )

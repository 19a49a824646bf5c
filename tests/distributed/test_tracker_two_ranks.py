"""A tracker in two gloo processes: one measures, nothing hangs, and the training is that of a run without it."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hessprobe.errors import UnsupportedError
from hessprobe.measures import measure
from hessprobe.objective import EmpiricalRisk
from hessprobe.tracking import SharpnessTracker

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

STEPS, WORLD = 4, 2
CASES = ("none", "wrapped", "bare", "one rank", "resumed")
OPTIONS = {"every": 2, "measures": ("trace",), "rtol": 0.2, "engine": "double_backward"}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 3))


def batch(step: int, rows: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(rows, 6, generator=generator), torch.randint(3, (rows,), generator=generator)


def tracker_of(module: nn.Module, case: str, rank: int, optimizer: torch.optim.Optimizer, folder: Path):
    if case == "none" or (case == "one rank" and rank > 0):
        return None
    inner = module.module if case == "bare" else module
    writer = {"writer": folder / f"board-{rank}"} if case == "wrapped" else {}
    tracker = SharpnessTracker(inner, nn.CrossEntropyLoss(), [batch(99)], optimizer=optimizer, **OPTIONS, **writer)
    if case == "resumed":
        # Every rank loads the checkpoint that the first one has written.
        tracker.load_state_dict(torch.load(folder / "wrapped-0.pt", weights_only=True)["halfway"])
    return tracker


def train(case: str, rank: int, folder: Path) -> dict:
    module = DistributedDataParallel(network().train())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    tracker = tracker_of(module, case, rank, optimizer, folder)
    torch.manual_seed(10 + rank)
    found: dict = {}
    for step in range(1, STEPS + 1):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x[rank::2]), y[rank::2]).backward()
        optimizer.step()
        if tracker is not None and (case != "resumed" or step > 2):
            tracker.step(step)
            found |= {"halfway": tracker.state_dict()} if step == 2 else {}
    found |= {"model": module.module.state_dict(), "random": torch.get_rng_state()}
    found["gradients"] = {name: p.grad for name, p in module.module.named_parameters()}
    if tracker is not None:
        tracker.close()
        found["state"] = tracker.state_dict()
        found["points"] = [(point.step, point.values) for point in tracker.points]
        alone = EmpiricalRisk(module, nn.CrossEntropyLoss(), [batch(99)])
        found["alone"] = measure("trace", alone, rtol=0.2, engine="double_backward").value
    return found


def refusal() -> str:
    """Return what is said of a module of which each rank holds a part."""
    from torch.distributed.fsdp import fully_shard

    try:
        SharpnessTracker(fully_shard(nn.Linear(4, 4)), nn.MSELoss(), [])
    except UnsupportedError as error:
        return str(error)
    return ""


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    for case in CASES:
        torch.save(train(case, rank, folder), folder / f"{case}-{rank}.pt")
        dist.barrier()
    torch.save(refusal(), folder / f"refusal-{rank}.pt")
    # A wrapper that outlives the group makes torch abort at exit, once in ten times or so.
    gc.collect()
    dist.destroy_process_group()


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_two_ranks(tmp_path: Path):
    # One pair of processes for all cases: starting it takes longer than all that it does.
    mp.spawn(rank_main, args=(tmp_path,), nprocs=WORLD, join=True)
    found = {(case, rank): torch.load(tmp_path / f"{case}-{rank}.pt") for case in CASES for rank in range(WORLD)}
    for (case, rank), each in found.items():
        plain = found["none", rank]
        assert same(each["model"], plain["model"]), (case, rank)
        assert same(each["gradients"], plain["gradients"]), (case, rank)
        assert torch.equal(each["random"], plain["random"]), (case, rank)
    # The weights of all ranks are one; the buffers and random states are each rank's own.
    assert torch.equal(found["none", 0]["model"]["0.weight"], found["none", 1]["model"]["0.weight"])
    assert not torch.equal(found["none", 0]["random"], found["none", 1]["random"])
    first = found["wrapped", 0]["points"]
    assert [step for step, _ in first] == [2, 4]
    assert first[-1][1]["trace"] == pytest.approx(found["wrapped", 0]["alone"], rel=0.2)
    for case in ("bare", "one rank", "resumed"):
        assert found[case, 0]["points"] == first, case
    assert found["wrapped", 1]["points"] == found["resumed", 1]["points"] == []
    assert found["wrapped", 1]["state"]["pace"]["spent"] == 0
    # Given the bare module each rank measures, here with the buffers of its own batches.
    assert [step for step, _ in found["bare", 1]["points"]] == [2, 4]
    assert (tmp_path / "board-0").is_dir()
    assert not (tmp_path / "board-1").exists()
    for rank in range(WORLD):
        message = torch.load(tmp_path / f"refusal-{rank}.pt")
        assert message.startswith("The parameter 'weight' is sharded over ranks (FSDP), and a tracker measures on one ")

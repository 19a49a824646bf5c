"""A landscape on two ranks: each computes half of the points, and both hold all of them, to the last bit."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from hessprobe.hvp import pool
from hessprobe.landscape.directions import random_plane
from hessprobe.landscape.grid import evaluate
from hessprobe.landscape.points import Points
from hessprobe.objective import EmpiricalRisk

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")


def values(mode, axis=9):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    data = [(torch.randn(n, 6).double(), torch.randint(3, (n,))) for n in (7, 12)]
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    found = evaluate(risk, random_plane(risk, 1), [np.linspace(-1, 1, axis)], ("loss", "error"), mode=mode)
    return {name: torch.from_numpy(each) for name, each in found.values.items()}


def work(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    made = []
    one = Points._one

    def counted(self, theta, statistics):
        made.append(theta)
        return one(self, theta, statistics)

    with pool.shared_out(dist.group.WORLD):
        Points._one = counted
        kept = {"loop": values("loop")}
        kept["made"] = len(made)
        Points._one = one
        kept["vmap"] = values("vmap")
    torch.save(kept, folder / f"{rank}.pt")
    made.clear()
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def test_points_are_dealt_out(tmp_path: Path):
    mp.spawn(work, args=(2, tmp_path), nprocs=2)
    alone = values("loop")
    for rank in range(2):
        kept = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, expected in alone.items():
            assert torch.equal(kept["loop"][name], expected)
            torch.testing.assert_close(kept["vmap"][name], expected, rtol=1e-13, atol=1e-13)
        # The center, and four of the eight others.
        assert kept["made"] == 5

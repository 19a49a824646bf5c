"""Two gloo processes against one, for rules that read losses or curvature: these are not averaged with gradients."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hessprobe.optim import SAMSPS, SASSHA, XSAM, EigenSAM, FrobSAM

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

STEPS, WORLD = 4, 2
RULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "frob-sam": (FrobSAM, {"rho": 0.3, "lam": 0.5, "n": 3}),
    "xsam": (XSAM, {"rho": 0.5, "steps_per_epoch": 1, "alpha_max": 40.0, "alpha_step": 0.5}),
    "sam-sps": (SAMSPS, {"rho": 0.3, "weight_decay": 0.0}),
    "sassha": (SASSHA, {"rho": 0.3, "lr": 0.01, "every": 2}),
    "eigen-sam": (EigenSAM, {"rho": 0.5, "alpha": 0.8, "every": 2, "tol": 1e-12, "max_matvecs": 300}),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=generator, dtype=torch.float64), torch.randint(3, (8,), generator=generator)


def train(module: nn.Module, target: nn.Module, rows: slice) -> Tensor:
    """Return the weights after training by each rule; ``target`` is ``module`` or wraps it."""
    ends = []
    for kind, arguments in RULES.values():
        module.load_state_dict(network().state_dict())
        base = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        owner: Any = module.parameters() if kind in (SAMSPS, SASSHA) else base
        optimizer = kind(owner, model=target, **arguments)
        for step in range(STEPS):
            x, y = (part[rows] for part in batch(step))

            def loss(x: Tensor = x, y: Tensor = y) -> Tensor:
                return nn.functional.cross_entropy(target(x), y)

            optimizer.step(closure_of(optimizer, loss), loss=loss)
        ends.append(torch.cat([p.detach().reshape(-1) for p in module.parameters()]).clone())
    return torch.stack(ends)


def closure_of(optimizer: torch.optim.Optimizer, loss: Any) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    module = network()
    ends = train(module, DistributedDataParallel(module), slice(rank, None, WORLD))
    torch.save(ends, os.path.join(folder, f"rank{rank}.pt"))
    # A wrapper that outlives the group makes torch abort at exit, once in ten times or so.
    gc.collect()
    dist.destroy_process_group()


def test_two_ranks_take_the_steps_of_one_process(tmp_path: Path):
    mp.spawn(rank_main, args=(str(tmp_path),), nprocs=WORLD, join=True)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(WORLD)]
    module = network()
    expected = train(module, module, slice(None))
    for i, name in enumerate(RULES):
        assert torch.equal(ranks[0][i], ranks[1][i]), name
        torch.testing.assert_close(ranks[0][i], expected[i], rtol=1e-9, atol=1e-11)

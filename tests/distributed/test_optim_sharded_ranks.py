"""Every row of the contract table under ``fully_shard`` on two gloo processes, against one process."""

from __future__ import annotations

import gc
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from contracts.optim_rows.harness import build, flat_weights, make_module, step
from contracts.optim_rows.problem import is_close
from contracts.optim_rows.row import Row
from contracts.optim_rows.table import all_rows
from torch import Tensor

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

STEPS, WORLD = 3, 2
ROWS = {row.id: row for row in all_rows()}
# Their Hessian is a central difference of gradients there.
TOLERANCES = dict.fromkeys(("eigen-sam", "x-sam", "x-sam-plain", "sassha", "sassha-weights"), 1e-6)


def train(row: Row, sharded: bool) -> Tensor:
    """Return the weights after a few steps; both ranks see the same batches, whose mean gradient is that of one."""
    module = make_module()
    if sharded:
        from torch.distributed.fsdp import fully_shard

        for child in module:
            if list(child.parameters()):
                fully_shard(child)
        fully_shard(module)
    optimizer = build(row, module)
    for t in range(1, STEPS + 1):
        step(optimizer, module, t)
    if not sharded:
        return flat_weights(module)
    return torch.cat([p.detach().full_tensor().reshape(-1) for p in module.parameters()])


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    ends: dict[str, object] = {}
    for name, row in ROWS.items():
        try:
            ends[name] = train(row, sharded=True)
        except Exception:
            ends[name] = traceback.format_exc()
    torch.save(ends, folder / f"rank{rank}.pt")
    gc.collect()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    # One pair of processes for all rows: starting it takes longer than all that it does.
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_main, args=(folder,), nprocs=WORLD, join=True)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", ROWS)
def test_sharded_parameters_take_the_steps_of_one_process(ends: list[dict[str, object]], name: str):
    for rank in range(WORLD):
        end = ends[rank][name]
        assert isinstance(end, Tensor), end
        assert torch.equal(end, ends[0][name])
        assert is_close(end, train(ROWS[name], sharded=False)) < TOLERANCES.get(name, 1e-11)

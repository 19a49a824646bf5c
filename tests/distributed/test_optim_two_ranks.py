"""Two gloo processes against one: global displacements are the whole batch's, local ones are m-sharpness."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hessprobe.optim import GSAM, SAM
from hessprobe.optim.engine import weights as exchange
from hessprobe.optim.integrations.micro_batches import evaluate_together

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

STEPS, WORLD = 6, 2
OPTIMIZERS = {"SAM": SAM, "GSAM": GSAM}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=generator, dtype=torch.float64), torch.randint(3, (8,), generator=generator)


def closure_of(module: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor):
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x), y)
        loss.backward()
        return loss

    return closure


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).clone()


def one_process(name: str, sync: str) -> torch.Tensor:
    """Return the weights after training on the whole batches, displaced along the whole or each half's gradient."""
    module = network()
    optimizer = OPTIMIZERS[name](
        torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9),
        rho=0.5,
        accumulate="global" if sync == "global" else "per_microbatch",
    )
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.step([closure_of(module, optimizer, x[r::2], y[r::2]) for r in range(WORLD)])
    return weights(module)


CASES = [("SAM", "global", False), ("SAM", "local", False), ("GSAM", "global", True), ("GSAM", "local", True)]


def saved(folder: Path, case: tuple[str, str, bool], rank: int) -> Path:
    return folder / f"{case[0]}-{case[1]}-rank{rank}.pt"


def train_on_one_rank(rank: int, name: str, sync: str, bucket_view: bool) -> torch.Tensor:
    module = DistributedDataParallel(network(), gradient_as_bucket_view=bucket_view)
    optimizer = OPTIMIZERS[name](
        torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), rho=0.5, model=module, sync=sync
    )
    if bucket_view:
        # Nothing that the wrapper keeps reads the parameters' memory, so that large ones are exchanged: here all are.
        exchange.SMALLEST = 0
        assert all(exchange.is_alone(parameter) for parameter in module.parameters())
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.step(closure_of(module, optimizer, x[rank::2], y[rank::2]))
    return weights(module)


def train_by_micro_batches(rank: int) -> tuple[torch.Tensor, int]:
    """Train on two micro-batches a step, as trainers do that clip and step by themselves; count the averagings."""
    module = DistributedDataParallel(network())
    averaged: list[int] = []

    # Without annotations: DistributedDataParallel compares them with classes.
    def count(_, bucket):
        averaged.append(1)
        return dist.all_reduce(bucket.buffer().div_(WORLD), async_op=True).get_future().then(lambda f: f.value()[0])

    module.register_comm_hook(None, count)
    optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), rho=0.5, model=module)
    for step in range(STEPS):
        x, y = batch(step)

        def backward_of(part: slice, x: torch.Tensor = x, y: torch.Tensor = y) -> Callable[[], torch.Tensor]:
            def backward() -> torch.Tensor:
                loss = nn.functional.cross_entropy(module(x[rank::2][part]), y[rank::2][part]) / 2
                loss.backward()
                return loss

            return backward

        parts = [backward_of(part) for part in (slice(0, 2), slice(2, 4))]
        evaluate_together(optimizer, parts, loss=lambda: torch.zeros(()), no_sync=module.no_sync)
        optimizer.step()
    return weights(module), len(averaged)


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    for case in CASES:
        torch.save(train_on_one_rank(rank, *case), saved(folder, case, rank))
    torch.save(train_by_micro_batches(rank), folder / f"parts-{rank}.pt")
    # A wrapper that outlives the group makes torch abort at exit, once in ten times or so.
    gc.collect()
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path: Path):
    # One pair of processes for all cases: starting it takes longer than all that it does.
    mp.spawn(rank_main, args=(tmp_path,), nprocs=WORLD, join=True)
    for case in CASES:
        name, sync, _ = case
        ranks = [torch.load(saved(tmp_path, case, rank)) for rank in range(WORLD)]
        assert torch.equal(ranks[0], ranks[1]), case
        torch.testing.assert_close(ranks[0], one_process(name, sync), rtol=1e-12, atol=1e-14)
        other = one_process(name, "local" if sync == "global" else "global")
        assert float((ranks[0] - other).abs().max()) > 1e-4, case
    parts = [torch.load(tmp_path / f"parts-{rank}.pt") for rank in range(WORLD)]
    assert torch.equal(parts[0][0], parts[1][0])
    torch.testing.assert_close(parts[0][0], one_process("SAM", "global"), rtol=1e-12, atol=1e-14)
    # Once a pass, with the last micro-batch.
    assert [count for _, count in parts] == [2 * STEPS] * WORLD

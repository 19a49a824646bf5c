"""``sync="local"`` on two gloo processes: what enters an update is averaged, and a rank that stops stops both."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hessprobe.errors import NonFiniteError
from hessprobe.optim import ESAM, SAM, SAMSPS, WSAM

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

STEPS, WORLD, RHO = 4, 2, 0.4


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    return x[rank::WORLD], torch.randint(3, (8,), generator=generator)[rank::WORLD]


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).clone()


def closure_of(module: nn.Module, step: int, rank: int, scaler: Any = None, factor: float = 1.0) -> Any:
    x, y = batch(step, rank)

    def closure() -> Tensor:
        module.zero_grad()
        loss = factor * nn.functional.cross_entropy(module(x), y)
        (loss if scaler is None else scaler.scale(loss)).backward()
        return loss

    return closure


def local(rank: int, rule: str) -> tuple[Tensor, ...]:
    module = DistributedDataParallel(network())
    options: dict[str, Any] = {"rho": RHO, "model": module, "sync": "local"}
    optimizer: Any
    if rule == "wsam":
        optimizer = WSAM(torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), gamma=0.8, **options)
    else:
        optimizer = SAMSPS(module.parameters(), weight_decay=0.0, gamma_max=100.0, **options)
    for step in range(STEPS):
        optimizer.step(closure_of(module, step, rank))
    return (flat(module),)


def esam(rank: int) -> tuple[Tensor, ...]:
    module = DistributedDataParallel(network())
    optimizer = ESAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=RHO, model=module, gamma=1.0, beta=0.5)
    for step in range(STEPS):
        x, y = batch(step, rank)
        optimizer.step(lambda rows, x=x, y=y: nn.functional.cross_entropy(module(x), y, reduction="none"))
    return (flat(module),)


def with_scaler(rank: int, bad: int, bad_pass: int) -> tuple[Tensor, ...]:
    """Return the weights before and after a step in which one rank overflows, its numbers, and the weights at last."""
    module = DistributedDataParallel(network().float())
    optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=RHO, model=module, sync="local")
    scaler, passes = torch.amp.GradScaler("cpu", init_scale=1024.0), []
    before = flat(module)
    x, y = batch(0, rank)

    def closure() -> Tensor:
        module.zero_grad()
        loss = nn.functional.cross_entropy(module(x.float()), y)
        scaler.scale(loss).backward()
        passes.append(1)
        if rank == bad and len(passes) == bad_pass:
            next(module.parameters()).grad[0, 0] = torch.inf
        return loss

    optimizer.step(closure, scaler=scaler)
    scaler.update()
    after, skipped, scale = flat(module), optimizer.last.skipped, scaler.get_scale()
    optimizer.step(closure, scaler=scaler)
    scaler.update()
    return before, after, torch.tensor([float(skipped), scale]), flat(module)


def without_scaler(rank: int) -> tuple[Tensor, ...]:
    module = DistributedDataParallel(network())
    optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=RHO, model=module, sync="local")
    before = flat(module)
    match = "at the weights is nan" if rank else "on another rank is not finite in step 1; the weights are as before"
    with pytest.raises(NonFiniteError, match=match):
        optimizer.step(closure_of(module, 0, rank, factor=torch.nan if rank else 1.0))
    assert torch.equal(flat(module), before)
    optimizer.step(closure_of(module, 0, rank))
    return (flat(module),)


def unwrapped(rank: int) -> tuple[Tensor, ...]:
    module = DistributedDataParallel(network())
    for given, name in ((None, "None"), (module.module, "Sequential")):
        optimizer = SAM(torch.optim.SGD(module.parameters(), lr=0.1), model=given, sync="local")
        with pytest.raises(ValueError, match=f"must be the DistributedDataParallel module .* got {name}"):
            optimizer.step(closure_of(module, 0, rank))
    return (flat(module),)


CASES: dict[str, Any] = {
    "wsam": lambda rank: local(rank, "wsam"),
    "sam-sps": lambda rank: local(rank, "sam-sps"),
    "esam": esam,
    **{f"scaler-{b}-{n}": (lambda rank, b=b, n=n: with_scaler(rank, b, n)) for b in (0, 1) for n in (1, 2)},
    "no scaler": without_scaler,
    "unwrapped": unwrapped,
}


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    torch.save({name: case(rank) for name, case in CASES.items()}, folder / f"rank{rank}.pt")
    # A wrapper that outlives the group makes torch abort at exit, once in ten times or so.
    gc.collect()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[Tensor, ...]]]:
    # One pair of processes for all cases: starting it takes longer than all that it does.
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_main, args=(folder,), nprocs=WORLD, join=True)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", CASES)
def test_ranks_do_not_drift_apart(ends: list[dict[str, tuple[Tensor, ...]]], name: str):
    assert all(torch.equal(*pair) for pair in zip(ends[0][name], ends[1][name], strict=True))


def slopes(module: nn.Module, w: Tensor, step: int, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return g, and loss and gradient at w + e, and e, on one rank's half."""

    def at(point: Tensor) -> tuple[Tensor, Tensor]:
        nn.utils.vector_to_parameters(point, module.parameters())
        x, y = batch(step, rank)
        loss = nn.functional.cross_entropy(module(x), y)
        return loss.detach(), torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(module.parameters()))])

    _, g = at(w)
    e = RHO * g / g.norm()
    loss, gt = at(w + e)
    return g, loss, gt, e


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0)


def test_wsam_takes_the_mean_of_both_terms(ends: list[dict[str, tuple[Tensor, ...]]]):
    module, momentum = network(), torch.zeros(())
    w = flat(module)
    for step in range(STEPS):
        own = [slopes(module, w, step, rank) for rank in range(WORLD)]
        g, gt = mean([part[0] for part in own]), mean([part[2] for part in own])
        momentum = 0.9 * momentum + g
        w = w - 0.1 * momentum - 0.1 * 4.0 * (gt - g)
    torch.testing.assert_close(ends[0]["wsam"][0], w, rtol=1e-10, atol=1e-12)


def test_polyaks_step_size_is_that_of_the_mean(ends: list[dict[str, tuple[Tensor, ...]]]):
    module = network()
    w = flat(module)
    for step in range(STEPS):
        own = [slopes(module, w, step, rank) for rank in range(WORLD)]
        excess, slope = mean([loss - gt @ e for _, loss, gt, e in own]), mean([gt for _, _, gt, _ in own])
        w = w - excess.clamp_min(0) / (slope @ slope) * slope
    torch.testing.assert_close(ends[0]["sam-sps"][0], w, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("bad", "number"), [(0, 1), (0, 2), (1, 1), (1, 2)])
def test_an_overflow_on_one_rank_skips_the_step_of_both(
    ends: list[dict[str, tuple[Tensor, ...]]], bad: int, number: int
):
    for rank in range(WORLD):
        before, after, numbers, later = ends[rank][f"scaler-{bad}-{number}"]
        assert torch.equal(after, before)
        assert numbers.tolist() == [1.0, 512.0]
        assert not torch.equal(later, before)

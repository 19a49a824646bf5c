"""A risk that knows its ranks: the numbers of one process from a sampler's shares, each rank making its part."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import hessprobe as hp
from hessprobe.errors import DataError
from hessprobe.hvp.functional import FunctionalPart
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.batches import EmpiricalBatch

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

LOSS = nn.CrossEntropyLoss()


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    generator = torch.Generator().manual_seed(1)
    # No multiple of the ranks: the sampler would repeat an example.
    inputs = torch.randn(41, 6, generator=generator, dtype=torch.float64)
    return model, TensorDataset(inputs, torch.randint(3, (41,), generator=generator))


def numbers(risk):
    found = {name: hp.measure(name, risk, seed=0) for name in ("lambda-max", "trace", "frob")}
    made = {name: (each.value, *each.interval()) for name, each in found.items()}
    fisher = hp.trace(hp.Fisher(risk), n_probes=4, seed=0)
    logdet = hp.logdet(hp.GaussNewton(risk), shift=0.1, n_probes=3, steps=8, method="slq", seed=0)
    made["logdet"] = (logdet.value, *logdet.interval(), logdet.errors.data)
    return {**made, "fisher": (fisher.value, *fisher.interval()), "loss": (float(risk.loss()),)}


def work(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    model, data = problem()
    wrapped = DistributedDataParallel(model)
    sampler = DistributedSampler(data, shuffle=True, seed=3)
    loader = DataLoader(data, 10, sampler=sampler)
    risk = EmpiricalRisk(wrapped, LOSS, loader)
    kept = {"shares": numbers(risk), "examples": risk.n_examples}
    # Of a sampler inside another, and of all of the data.
    inside = DataLoader(data, batch_sampler=BatchSampler(sampler, 10, True))
    kept["inside"] = numbers(EmpiricalRisk(wrapped, LOSS, inside))
    whole = EmpiricalRisk(model, LOSS, DataLoader(data, 10), group=dist.group.WORLD)
    kept["whole"] = numbers(whole)
    hessian, metric = hp.Hessian(whole), hp.GaussNewton(whole)
    operators = [hessian, metric, hp.Fisher(whole), FunctionalPart(whole), hessian.grouped(16), metric.grouped(16)]
    operators += [term for A in (hessian, hessian.grouped(16)) for _, term in A.terms()]
    assert {A.ranks.count for A in operators} == {world}
    assert hp.Hessian(EmpiricalRisk(model, LOSS, DataLoader(data, 10))).ranks is None
    made = []
    evaluated = EmpiricalBatch.__call__

    def counted(self, theta):
        if torch.is_grad_enabled():
            made.append(self.index)
        return evaluated(self, theta)

    hessian = hp.Hessian(whole, engine="double_backward")
    V = torch.ones(1, whole.dim, dtype=torch.float64)
    hessian.matvecs(V)
    EmpiricalBatch.__call__ = counted
    hp.Hessian(whole, engine="forward_over_reverse").matvecs(V)
    EmpiricalBatch.__call__ = evaluated
    kept["made"] = sorted(set(made) - {0})
    with pytest.raises(DataError, match=r"or group=dist\.group\.WORLD"):
        EmpiricalRisk(model, LOSS, loader, group=None)
    with pytest.raises(TypeError, match="group must be a process group"):
        EmpiricalRisk(model, LOSS, loader, group="world")
    with torch.no_grad():
        model[0].bias += rank
    with pytest.raises(ValueError, match=r"must be the same on all ranks of group; got .* on rank 1"):
        EmpiricalRisk(model, LOSS, loader)
    torch.save(kept, folder / f"{world}-{rank}.pt")
    del model, wrapped, risk, whole, hessian, metric, operators
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_a_risk_shares_itself_out(tmp_path: Path, world):
    mp.spawn(work, args=(world, tmp_path), nprocs=world)
    model, data = problem()
    alone = numbers(EmpiricalRisk(model, LOSS, DataLoader(data, 10)))
    for rank in range(world):
        kept = torch.load(tmp_path / f"{world}-{rank}.pt", weights_only=True)
        assert kept["examples"] == 41
        for way in ("shares", "inside", "whole"):
            for name, expected in alone.items():
                assert kept[way][name] == pytest.approx(expected, rel=1e-9), (way, name)
        assert kept["made"] == [index for index in range(1, 5) if index % world == rank]

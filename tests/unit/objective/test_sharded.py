from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from hessprobe.errors import DataError, UnsupportedError
from hessprobe.objective import EmpiricalRisk

CE = nn.CrossEntropyLoss()


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    return model, TensorDataset(torch.randn(30, 5), torch.randint(3, (30,)))


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("inside", [False, True])
def test_one_ranks_share_of_the_data_is_refused(inside):
    model, data = problem()
    sampler = DistributedSampler(data, num_replicas=2, rank=1, shuffle=False)
    loader = (
        DataLoader(data, batch_sampler=BatchSampler(sampler, 10, False))
        if inside
        else DataLoader(data, 10, sampler=sampler)
    )
    with pytest.raises(DataError, match=r"got the share of rank 1 of 2 \(DistributedSampler\)\. Pass a DataLoader"):
        EmpiricalRisk(model, CE, loader)


def test_a_single_share_is_everything():
    model, data = problem()
    sampler = DistributedSampler(data, num_replicas=1, rank=0, shuffle=False)
    shared = EmpiricalRisk(model, CE, DataLoader(data, 10, sampler=sampler))
    assert float(shared.loss()) == float(EmpiricalRisk(model, CE, DataLoader(data, 10)).loss())


def test_prepared_loaders_of_several_processes_are_refused():
    model, data = problem()

    class DataLoaderShard(DataLoader):
        state = type("State", (), {"num_processes": 2})

    with pytest.raises(DataError, match=r"got the share of one process \(DataLoaderShard\)"):
        EmpiricalRisk(model, CE, DataLoaderShard(data, 10))


def test_sharded_modules_are_refused_and_work_on(one_rank):
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    model, data = problem()
    inputs = data.tensors[0]
    right = model(inputs).detach()
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    fully_shard(model, mesh=mesh)
    with pytest.raises(UnsupportedError, match=r"got the distributed tensor '0\.weight' \(fully_shard or tensor"):
        EmpiricalRisk(model, CE, [data.tensors])
    torch.testing.assert_close(model(inputs).detach(), right)

    first, _ = problem()
    with pytest.warns(UserWarning, match="NO_SHARD"):
        wrapped = nn.Sequential(first[0], FullyShardedDataParallel(first[2], device_id=torch.device("cpu")))
    with pytest.raises(UnsupportedError, match="got FullyShardedDataParallel at 1"):
        EmpiricalRisk(wrapped, CE, [data.tensors])

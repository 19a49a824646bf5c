"""Models whose parameters are spread over two ranks: the curvature of the model that is not, within the error told."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import hessprobe as hp
from hessprobe.errors import UnsupportedError
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.sharded import ShardedRisk, spread

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

NAMES = ("lambda-max", "trace", "frob")
LOSS = nn.CrossEntropyLoss()


class Net(nn.Module):
    """Widths that two ranks do not divide evenly, a tied bias of one entry, BatchNorm, and a parameter left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(5, 3), nn.BatchNorm1d(3)
        self.middle, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(1))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x):
        hidden = torch.tanh(self.norm(self.first(x)) * self.scale)
        return self.last(torch.tanh(self.middle(hidden))) * self.frozen


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return Net().to(dtype)


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    # The last batch has fewer examples than there are ranks.
    made = [
        (torch.randn(n, 5, generator=generator).to(dtype), torch.randint(3, (n,), generator=generator)) for n in (9, 1)
    ]
    made[1][1][:3] = -100
    return made


def sharded(model):
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    # What is not named here stays whole.
    for part in (model.first, model.middle, model.last):
        fully_shard(part, mesh=mesh)
    return model, mesh


class Rows(nn.Module):
    """Layers in a list, of which one shares its weight with what stands outside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 3), nn.Linear(3, 3)
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 3)), nn.Linear(3, 3)])
        self.layers[2].weight = self.last.weight

    def forward(self, x):
        hidden = self.first(x)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return self.last(hidden)


def rows_risk(**more):
    torch.manual_seed(2)
    return EmpiricalRisk(Rows().double(), LOSS, data(), **more)


def spread_out(kept):
    """A risk whose weights are spread, of all and of some of its parameters."""
    from torch.distributed.fsdp import FSDPModule

    for name, params in (("all", None), ("some", ["layers.*", "first.bias"])):
        risk = spread(rows_risk(params=params))
        kept[f"spread {name}"] = (risk.gradient(), hp.Hessian(risk).matvecs(torch.ones(1, risk.dim).double()))
        assert risk.shares == [[4, 5], [1, 1]]  # of a batch too small to be cut each has all
        own = {name for name, part in risk.module.named_modules() if isinstance(part, FSDPModule)}
        assert own == {"", "layers.0", "layers.1"}
    with pytest.raises(UnsupportedError, match="batchnorm must be 'eval'"):
        spread(EmpiricalRisk(net(), LOSS, data(), batchnorm="batch"))
    with pytest.raises(UnsupportedError, match="computes its own loss"):
        spread(EmpiricalRisk(net(), None, data(), forward=lambda model, batch: (model(batch[0]).sum(), 3.0)))
    scalar = net()
    scalar.scale = nn.Parameter(torch.ones(()).double())
    with pytest.raises(UnsupportedError, match=r"weights cannot be spread over ranks: .*scalar"):
        spread(EmpiricalRisk(scalar, LOSS, data()))


def of_the_user(model):
    """What a user's model goes through: refused, failed, given a rank's share of the data; its forward stays."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    inputs, targets = data()[0]
    before = float(LOSS(model(inputs), targets).detach())
    with pytest.raises(UnsupportedError, match="module must hold whole parameters; got fully_shard at first"):
        EmpiricalRisk(model, LOSS, data())
    assert float(LOSS(model(inputs), targets).detach()) == before
    calls = []

    def failing(outputs, labels):
        calls.append(1)
        if len(calls) > 3:
            raise ArithmeticError("lost on the way")
        return LOSS(outputs, labels)

    with pytest.raises(ArithmeticError, match="lost on the way"):
        hp.measure("lambda-max", ShardedRisk(model, failing, data(), weighting="tokens"))
    assert float(LOSS(model(inputs), targets).detach()) == before
    whole_set = TensorDataset(torch.randn(7, 5).double(), torch.arange(7) % 3)
    share = DataLoader(whole_set, 4, sampler=DistributedSampler(whole_set))
    assert ShardedRisk(model, LOSS, share).n_examples == 7
    for original in (False, True):
        old = FullyShardedDataParallel(rows_risk().module, use_orig_params=original, device_id=torch.device("cpu"))
        inside = nn.Sequential(nn.Linear(5, 5).double(), old)
        for name, each in (("the top", old), ("1", inside)):
            for kind in (EmpiricalRisk, ShardedRisk):
                with pytest.raises(UnsupportedError, match=f"got FullyShardedDataParallel at {name}"):
                    kind(each, LOSS, data())
        assert torch.isfinite(old(inputs)).all()


def found_by(risk):
    """Value and interval of each."""
    hessian = hp.Hessian(risk)
    found = {
        "lambda-max": hp.measure("lambda-max", risk, seed=0),
        "trace": hp.trace(hessian, n_probes=60, seed=0),
        "frob": hp.frobenius_norm(hessian, n_probes=40, seed=0),
    }
    return {name: (float(each.value), *map(float, each.interval())) for name, each in found.items()}


def dense_of(risk):
    return hp.Hessian(risk, engine="double_backward").matvecs(torch.eye(risk.dim, dtype=torch.float64))


def trained(model, optimizer):
    optimizer.zero_grad()
    loss = LOSS(model(data()[0][0]), data()[0][1])
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def work(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model, mesh = sharded(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = {"before": trained(model, optimizer)}
    model.train()
    held = [p.to_local().detach().clone() for p in model.first.parameters()]
    # Somebody evaluates it without a backward pass, which leaves parameters gathered.
    with torch.no_grad():
        model(data()[0][0])
    state = torch.get_rng_state()
    risk = ShardedRisk(model, LOSS, data())
    kept["gradient"], kept["loss"] = risk.gradient(), risk.loss()
    V = torch.randn(3, risk.dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    hessian = hp.Hessian(risk)
    kept["product"], kept["engine"], kept["V"] = hessian.matvecs(V), hessian.engine.name, V
    assert hessian.ranks.count == world
    kept["error"] = hessian.product_error().relative
    kept["found"] = found_by(risk)
    with pytest.raises(UnsupportedError, match="differentiated only once"):
        hp.Hessian(risk, engine="double_backward").matvecs(V)
    with pytest.raises(UnsupportedError, match="differentiated only once"):
        hp.Hessian(risk, engine="forward_over_reverse").matvecs(V)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    for parameter, before in zip(model.first.parameters(), held, strict=True):
        # They lie spread as they were, to the last bit.
        assert torch.equal(parameter.to_local(), before)
        assert parameter.to_local().numel() < parameter.numel()
    kept["after"] = trained(model, optimizer)
    kept["weights"] = {name: whole(p).detach() for name, p in model.named_parameters()}
    with pytest.raises(UnsupportedError, match=r"hessprobe\.objective\.sharded\.ShardedRisk"):
        EmpiricalRisk(model, LOSS, data())

    plain = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    plain.load_state_dict({"0.weight": torch.ones(4, 5), "0.bias": torch.zeros(4), "2.weight": torch.eye(3, 4),
                           "2.bias": torch.zeros(3)})  # fmt: skip
    kept["tp reference"] = EmpiricalRisk(plain, LOSS, data()).gradient()
    parallelize_module(plain, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    kept["tp"] = ShardedRisk(plain, LOSS, data()).gradient()

    single, _ = sharded(net(torch.float32))
    largest = hp.measure("lambda-max", ShardedRisk(single, LOSS, data(torch.float32)), seed=0)
    kept["float32"] = (float(largest.value), *map(float, largest.interval()))
    low = fully_shard(net(), mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    with pytest.raises(UnsupportedError, match="must compute in the dtype of its parameters"):
        ShardedRisk(low, LOSS, data())
    with pytest.raises(UnsupportedError, match=r"got none\. Use EmpiricalRisk"):
        ShardedRisk(net(), LOSS, data())
    spread_out(kept)
    of_the_user(model.eval())
    torch.save(kept, folder / f"{rank}.pt")
    del model, optimizer, risk, hessian, plain, single, low
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def test_a_sharded_model_is_measured_as_the_one_that_is_not(tmp_path: Path):
    mp.spawn(work, args=(2, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # FSDP takes the mean of its ranks' gradients, here of the same examples, BatchNorm's statistics included.
    assert first["before"] == pytest.approx(trained(model, optimizer), rel=1e-12)
    with torch.no_grad():
        model(data()[0][0])
    risk = EmpiricalRisk(model, LOSS, data())
    torch.testing.assert_close(first["gradient"], risk.gradient(), rtol=1e-12, atol=1e-14)
    assert float(first["loss"]) == pytest.approx(float(risk.loss()), rel=1e-13)
    exact = hp.Hessian(risk, engine="double_backward").matvecs(first["V"])
    assert first["engine"] == "finite_difference"
    gap = float((first["product"] - exact).norm() / exact.norm())
    assert gap < max(3 * first["error"], 1e-12)
    assert first["error"] < 1e-7
    dense = dense_of(risk)
    true = {
        "lambda-max": float(torch.linalg.eigvalsh(dense).max()),
        "trace": float(dense.trace()),
        "frob": float(dense.norm()),
    }
    for name, right in true.items():
        value, low, high = first["found"][name]
        assert second["found"][name] == (value, low, high)
        # An exact number is off by its products.
        slack = first["error"] * float(dense.norm())
        assert low - slack <= right <= high + slack, name
        assert high - low < (0.1 if name == "frob" else 0.01) * abs(right), name
    value, low, high = first["float32"]
    assert low <= float(torch.linalg.eigvalsh(dense_of(EmpiricalRisk(net(), LOSS, data()))).max()) <= high
    assert high - low < 0.05 * value
    assert first["after"] == pytest.approx(trained(model, optimizer), rel=1e-12)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(first["weights"][name], parameter.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(first["tp"], first["tp reference"], rtol=1e-12, atol=1e-14)
    for name, params in (("all", None), ("some", ["layers.*", "first.bias"])):
        risk = rows_risk(params=params)
        gradient, product = first[f"spread {name}"]
        torch.testing.assert_close(gradient, risk.gradient(), rtol=1e-12, atol=1e-14)
        exact = hp.Hessian(risk, engine="double_backward").matvecs(torch.ones(1, risk.dim).double())
        torch.testing.assert_close(product, exact, rtol=1e-6, atol=1e-8)

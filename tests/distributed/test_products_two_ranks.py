"""The batches of a product shared out over gloo processes: the numbers of one process, each batch made once."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import hessprobe as hp
from hessprobe.hvp import pool
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.batches import EmpiricalBatch

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

# Ragged, and no multiple of the ranks.
SIZES = (9, 16, 5, 12, 7)


def contrast(outputs, targets):
    """A loss between the examples of a batch: that of a part is another loss, not a part of it."""
    return -torch.log_softmax(outputs @ outputs.T, 1).diagonal().mean()


def risk_of(sizes=SIZES, loss=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(n, 6, generator=generator, dtype=torch.float64), torch.randint(3, (n,), generator=generator))
        for n in sizes
    ]
    return EmpiricalRisk(model, loss or nn.CrossEntropyLoss(), batches)


def answers(engine):
    risk = risk_of()
    hessian = hp.Hessian(risk, engine=engine)
    V = torch.randn(3, risk.dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = {"product": hessian.matvecs(V), "again": hessian.matvecs(V), "engine": hessian.engine.name}
    found["one batch"] = hp.Hessian(risk_of((9,)), engine=engine).matvecs(V)
    coupled = hp.Hessian(risk_of((9, 8), contrast), engine=engine)
    operators = {"terms": hessian, "G terms": hp.GaussNewton(risk, engine=engine), "coupled terms": coupled}
    for name, A in operators.items():
        found[name] = [(weight, term.matvecs(V), term.quadratic_forms(V)) for weight, term in A.terms()]
    for name in ("lambda-max", "trace", "frob"):
        estimate = hp.measure(name, risk, seed=0, engine=engine)
        found[name] = (estimate.value, *estimate.interval(), estimate.matvecs)
    return found


def work(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    made = []
    tensors = EmpiricalBatch.__call__

    def counted(self, theta):
        if torch.is_grad_enabled():  # no check of the loss alone
            made.append((self.index, self.examples))
        return tensors(self, theta)

    with pool.shared_out(dist.group.WORLD) as shared:
        found = {engine: answers(engine) for engine in ("double_backward", "auto")}
        EmpiricalBatch.__call__ = counted
        risk = risk_of()
        made.clear()
        one = torch.ones(1, risk.dim, dtype=torch.float64)
        hp.Hessian(risk, engine="double_backward").matvecs(one)
        whole = sorted(set(made))
        dealt = shared.described()
        made.clear()
        for _, term in hp.Hessian(risk, engine="double_backward").terms():
            term.matvecs(one)
        cut = sorted(set(made))
    torch.save(
        {"found": found, "made": whole, "cut": cut, "dealt": dealt, "shares": shared.described()},
        folder / f"{world}-{rank}.pt",
    )
    # What outlives the group makes torch abort at exit, once in ten times or so; so does a rank that leaves early.
    del risk, found
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_give_the_numbers_of_one_process(tmp_path: Path, world):
    mp.spawn(work, args=(world, tmp_path), nprocs=world)
    alone = answers("double_backward")
    for rank in range(world):
        kept = torch.load(tmp_path / f"{world}-{rank}.pt", weights_only=True)
        for engine in ("double_backward", "auto"):
            found = kept["found"][engine]
            for name in ("product", "again", "one batch", "terms", "G terms", "coupled terms"):
                torch.testing.assert_close(found[name], alone[name], rtol=1e-10, atol=1e-13)
            for name in ("lambda-max", "trace", "frob"):
                assert found[name] == pytest.approx(alone[name], rel=1e-9), (engine, name)
        # All try the engine on the first batch.
        assert [part for part in kept["made"] if part[0]] == [(i, SIZES[i]) for i in range(1, 5) if i % world == rank]
        assert kept["dealt"] == {"count": world, "examples": [sum(SIZES[first::world]) for first in range(world)]}
        # Of a batch by itself each rank has the part from n r / R to n (r + 1) / R.
        parts = [[round(n * (one + 1) / world) - round(n * one / world) for n in SIZES] for one in range(world)]
        assert [part for part in kept["cut"] if part[0]] == list(enumerate(parts[rank]))[1:]
        assert kept["shares"] == {"count": world, "examples": [sum(part) for part in parts]}

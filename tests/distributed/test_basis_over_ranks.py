"""Krylov bases held in parts by several ranks: the eigenpairs of one process, from a part of its memory."""

from __future__ import annotations

import gc
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import hessprobe as hp
from hessprobe.errors import MemoryBudgetError, NumericalWarning
from hessprobe.hvp.pool import Ranks
from hessprobe.krylov import restart
from hessprobe.krylov.lanczos import lanczos
from hessprobe.krylov.restart import ThickRestart
from hessprobe.operators import (
    Block,
    BlockDiagonal,
    Combination,
    Congruence,
    Counted,
    Deflated,
    DenseOperator,
    Grouped,
    Reordered,
    Shifted,
)
from hessprobe.vectors import ProbeStream, Slice, vectors_within

# The function of the same name hides the module.
solver = import_module("hessprobe.krylov.eigsh")

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

DIM = 101  # no multiple of the ranks
BYTES = 8 * DIM


class Together(DenseOperator):
    """A matrix whose products all ranks make, each the whole of them."""

    @property
    def ranks(self):
        return Ranks(dist.group.WORLD, dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else None


def matrix(dim=DIM, dtype=torch.float64, top=(9.0, 8.0, 7.5)):
    """A dense matrix of known eigenvalues."""
    values = torch.linspace(-3, 5, dim, dtype=torch.float64)
    count = min(len(top), dim)
    values[:count] = torch.tensor(top, dtype=torch.float64)[:count]
    turned = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0)).double()).Q
    return Together((turned * values @ turned.T).to(dtype))


def start():
    return torch.randn(2, DIM, generator=torch.Generator().manual_seed(5)).double()


def rescaled(A):
    return Congruence(Shifted(Combination([A, A], [0.25, 0.75]), 0.5), torch.linspace(0.5, 1, A.dim).double())


CASES = {
    "both": lambda: hp.eigsh(matrix(), 1),
    # A further round looks for copies in the complement of locked rows.
    "locked": lambda: hp.eigsh(matrix(), 3, "largest"),
    # Here it finds one; when the first run sees a trace of it depends on rounding.
    "copies": lambda: hp.eigsh(matrix(top=(9.0, 9.0, 8.5)), 3, "largest"),
    "restarted": lambda: hp.eigsh(matrix(), 2, "magnitude", basis_size=9, verify=False, rtol=None),
    "warm": lambda: hp.eigsh(matrix(), 1, "largest", start=start()),
    "exact": lambda: hp.eigsh(matrix(7), 2),
    # A rank has nothing at all.
    "tiny": lambda: hp.eigsh(matrix(4), 1),
    # The Krylov space of a random start ends after two products, and goes on from fresh rows.
    "identity": lambda: hp.eigsh(Together(torch.eye(30).double()), 2, "largest"),
    "of others": lambda: hp.eigsh(Block(rescaled(matrix()), slice(3, 90)), 1, "smallest"),
    "float32": lambda: hp.eigsh(matrix(dtype=torch.float32), 1, "largest", tol=1e-3),
}


def found_by(pairs):
    return {
        "numbers": torch.stack([pairs.values, pairs.residuals, *pairs.intervals]),
        "vectors": pairs.vectors,
        # Signs, and axes in the space of a multiple eigenvalue, are free.
        "span": pairs.vectors.T @ pairs.vectors,
        "cost": (pairs.matvecs, pairs.method, pairs.flags, pairs.exact),
    }


def found():
    return {name: found_by(make()) for name, make in CASES.items()}


def sketched(n_probes, memory=2**30):
    return hp.spectral_sketch(matrix(), n_probes=n_probes, steps=30, seed=0, method="slq", memory=memory)


def chains():
    """Chains in lock-step, one of which ends early, and what is made of their bases."""
    A = matrix()
    generator = torch.Generator().manual_seed(3)
    V, X = (torch.randn(3, DIM, generator=generator).double() for _ in range(2))
    V[1] = A.matvecs(V[1:2]) - 9 * V[1]
    V[2] = torch.linalg.eigh(A.to_dense()).eigenvectors[:, [0, 60]].sum(1)
    run = lanczos(A, V, 40)
    short = lanczos(A, V, 12, reorthogonalize=False, keep_basis=True)
    assert run.slabs[1].shape == (3, 8, Slice(DIM, A.ranks).of(V).shape[1])
    Q = run.basis
    torch.testing.assert_close(Q[0] @ Q[0].T, torch.eye(40).double(), rtol=0, atol=1e-12)
    inner = A.matvecs(Q[0]) @ Q[0].T
    torch.testing.assert_close(inner.diagonal(), run.alphas[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(inner.diagonal(1), run.betas[0, :-1], rtol=0, atol=1e-12)
    torch.testing.assert_close(run.coefficients(X), torch.einsum("pmd,pd->pm", Q, X), rtol=0, atol=1e-12)
    torch.testing.assert_close(run.starts, V / V.norm(dim=1)[:, None])
    assert run.lengths.tolist() == [40, 40, 2]
    # The later coefficients of a chain that has found an eigenvalue are made of rounding; sums over it are not.
    return {
        "norms": run.norms,
        "T": torch.cat([run.alphas[:, :12], run.betas[:, :12]], 1),
        "short": torch.cat([short.alphas, short.betas], 1),
        "bits": torch.cat([run.alphas, run.betas], 1),
        "sketch": sketched(4).alphas[:, :12],
        "logdet": torch.tensor(
            hp.logdet(A, shift=4.0, lower=-3.1, n_probes=4, steps=30, seed=0, method="slq").interval()
        ),
    }


def basis_of(limit=None):
    """Rows and bytes of the basis that the largest eigenvalue is looked for in."""
    held = []
    begin = ThickRestart.begin

    def watched(self, row=None):
        held.append((self.basis.shape[0], self.basis.nbytes))
        begin(self, row)

    ThickRestart.begin = watched
    try:
        with vectors_within(limit), warnings.catch_warnings():
            warnings.simplefilter("ignore", NumericalWarning)  # few rows, wide intervals
            hp.eigsh(matrix(), 1, "largest", max_matvecs=60)
    finally:
        ThickRestart.begin = begin
    return held[0]


def calls_of_a_step():
    """How often ranks speak to each other in one product of a basis, and of how many numbers."""
    A, spoken = matrix(), []
    stream = ProbeStream(DIM, 0, "gaussian", torch.float64, stream="start")
    engine = ThickRestart(A, 8, stream, 0, Slice(DIM, A.ranks).of(torch.empty(0, DIM).double()))
    engine.begin()
    for _ in range(4):
        engine.step()
    before = {name: getattr(Ranks, name) for name in ("summed", "gather", "first")}

    def counted(name, call):
        def instead(self, *given):
            spoken.append((name, given[-1].numel()))
            return call(self, *given)

        return instead

    for name, call in before.items():
        setattr(Ranks, name, counted(name, call))
    try:
        engine.step()
    finally:
        for name, call in before.items():
            setattr(Ranks, name, call)
    return spoken


def elsewhere(rank, patch):
    """The same on ranks whose libraries turn eigenvectors around and round otherwise."""
    solved, dots = torch.linalg.eigh, solver.row_dots

    def turned(M):
        values, vectors = solved(M)
        return values, vectors * (-1) ** rank

    patch.setattr(torch.linalg, "eigh", turned)
    patch.setattr(solver, "row_dots", lambda left, right: dots(left, right) * (1 + 1e-4 * rank))
    names = ("both", "restarted", "warm")
    return {name: found_by(CASES[name]()) for name in names}


def sizes(patch):
    """Rows of a basis where little is held for the bounds' sake, and what single precision is held in."""
    patch.setattr(solver, "_BASIS", 20 * DIM)
    patch.setattr(restart, "_WIDE", 30 * DIM)
    A = matrix(dtype=torch.float32)
    held = Slice(DIM, A.ranks)
    least = 8 * 10 * held.width + 4 * held.beside

    def made(capacity, limit=None):
        stream = ProbeStream(DIM, 0, "gaussian", torch.float32, stream="start")
        with vectors_within(limit):
            return ThickRestart(A, capacity, stream, 0, held.of(torch.empty(0, DIM))).basis.dtype == torch.float64

    return {"rows": basis_of()[0], "wide": (made(49), made(9, least), made(9, least - 1))}


def work(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    kept = {"found": found(), "basis": basis_of(), "calls": calls_of_a_step(), "chains": chains()}
    kept["limited"] = [basis_of(rows * BYTES) for rows in (7, 10)]
    with pytest.MonkeyPatch.context() as patch:
        kept["sizes"] = sizes(patch)
    with pytest.MonkeyPatch.context() as patch:
        kept["elsewhere"] = elsewhere(rank, patch)
    # A chain is 30 parts of rows, and 3 whole ones; of whole rows it would not fit.
    one = (30 * -(-DIM // world) + 3 * DIM) * 8
    assert one < 30 * BYTES
    kept["chains"]["one by one"] = sketched(4, one).alphas[:, :12]
    with pytest.raises(MemoryBudgetError, match=f"one chain of 30 steps, {one} bytes"):
        sketched(4, one - 1)
    with pytest.raises(MemoryBudgetError, match=rf"memory must leave .* to 12 vectors of {DIM} entries"):
        kept["too small"] = basis_of_many(11)
    torch.save(kept, folder / f"{world}-{rank}.pt")
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def basis_of_many(rows):
    with vectors_within(rows * BYTES):
        return hp.eigsh(matrix(), 3, "both", verify=False)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_find_the_eigenpairs_of_one_process_in_parts_of_its_basis(tmp_path: Path, world):
    mp.spawn(work, args=(world, tmp_path), nprocs=world)
    chained = chains()
    alone, basis, limited = found(), basis_of(), [basis_of(rows * BYTES) for rows in (7, 10)]
    every = [torch.load(tmp_path / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
    longest = -(-DIM // world)
    for rank, kept in enumerate(every):
        for name, own in kept["found"].items():
            expected, first = alone[name], every[0]["found"][name]
            # What was summed or told is the same on all ranks, to the last bit.
            assert torch.equal(own["numbers"], first["numbers"]), name
            assert torch.equal(own["vectors"], first["vectors"]), name
            if name == "copies":
                assert own["numbers"][0].tolist() == pytest.approx([9, 9, 8.5], abs=1e-5)
                assert (own["numbers"][1] <= 9e-3).all()
                continue
            assert own["cost"] == expected["cost"], name
            rtol, close = (1e-5, 1e-3) if name == "float32" else (1e-10, 1e-8)
            torch.testing.assert_close(own["numbers"], expected["numbers"], rtol=rtol, atol=10 * rtol, msg=name)
            torch.testing.assert_close(own["span"], expected["span"], rtol=0, atol=close, msg=name)
        for name, expected in {**chained, "one by one": chained["sketch"]}.items():
            if name != "bits":
                torch.testing.assert_close(kept["chains"][name], expected, rtol=1e-10, atol=1e-10, msg=name)
            assert torch.equal(kept["chains"][name], every[0]["chains"][name]), name
        for name, own in kept["elsewhere"].items():
            torch.testing.assert_close(own["numbers"], alone[name]["numbers"], rtol=1e-10, atol=1e-10, msg=name)
            torch.testing.assert_close(own["span"], alone[name]["span"], rtol=0, atol=1e-8, msg=name)
            assert torch.equal(own["vectors"], every[0]["elsewhere"][name]["vectors"]), name
        assert kept["sizes"] == {"rows": 20 * DIM // longest + 1, "wide": (True, True, False)}
        width = min(longest, DIM - rank * longest)
        assert kept["basis"] == (basis[0], basis[0] * width * 8)
        # As many parts of rows as fit beside the one that is whole.
        assert kept["limited"] == [(n, n * width * 8) for n in ((rows - 1) * DIM // longest for rows in (7, 10))]
        assert kept["calls"] == [("gather", world * longest), ("summed", 5), ("summed", 5), ("summed", 1)]
    assert [rows for rows, _ in limited] == [7, 10]
    with pytest.MonkeyPatch.context() as patch:
        assert sizes(patch) == {"rows": 21, "wide": (False, True, False)}


def test_what_is_made_of_an_operator_keeps_its_ranks(monkeypatch):
    monkeypatch.setattr(Together, "ranks", "those")
    A = Together(torch.eye(4).double())
    made = [
        A + A, 2 * A, A.block(slice(0, 2)), Counted(A), Shifted(A, 1.0), Congruence(A, torch.ones(4).double()),
        Deflated(A, torch.eye(4)[:1].double()), BlockDiagonal(A, [slice(0, 2), slice(2, 4)]),
        Reordered(A, torch.arange(4)), Grouped(A, torch.arange(4), {}),
    ]  # fmt: skip
    assert [each.ranks for each in made] == ["those"] * len(made)
    assert DenseOperator(torch.eye(4)).ranks is None


def test_parts_of_rows_make_the_whole():
    class Few:
        count = 3

        def __init__(self, rank, parts):
            self.rank, self.parts = rank, parts

        def gather(self, part, whole):
            row = self.parts.pop(0)
            torch.testing.assert_close(part[: len(row[self.rank])], row[self.rank])
            whole.copy_(torch.cat([torch.cat([each, each.new_zeros(len(part) - len(each))]) for each in row]))

    for dim in (7, 4, 2, 3):
        rows = torch.arange(2.0 * dim).view(2, dim)
        parts = [[Slice(dim, Few(rank, [])).of(row[None])[0] for rank in range(3)] for row in rows]
        for rank in range(3):
            assert torch.equal(torch.cat(parts[0]), rows[0])
            held = Slice(dim, Few(rank, list(parts)))
            whole = held.whole(held.of(rows))
            assert torch.equal(whole, rows)
            assert whole.is_contiguous()
            assert (held.width, held.beside) == (-(-dim // 3), dim)
    assert Slice(5).whole(rows) is rows

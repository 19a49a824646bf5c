"""Products are kept while the budget lasts; data are read only for those that are not."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator

import nets
import pytest
import torch
from torch import nn

from hessprobe.errors import DataError, MemoryBudgetError, NonFiniteError
from hessprobe.estimators.frobenius import sample_squares
from hessprobe.estimators.linear import Sampling, sample_linear
from hessprobe.hvp import Fisher, GaussNewton, Hessian
from hessprobe.hvp.engines import DoubleBackward, Product
from hessprobe.hvp.pool import heap_held
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.operators import Counted
from hessprobe.vectors import ProbeStream, vectors_within


class Counting:
    """Data that count how many batches are read."""

    def __init__(self, data: list[nets.Batch]) -> None:
        self.data, self.read = data, 0

    def __iter__(self) -> Iterator[nets.Batch]:
        for batch in self.data:
            self.read += 1
            yield batch


def _risk() -> tuple[EmpiricalRisk, Counting]:
    case = nets.mlp((8, 8, 8, 8))
    data = Counting(case.data)
    return EmpiricalRisk(case.module, case.loss, data), data


def _one_product_bytes() -> int:
    risk, _ = _risk()
    return DoubleBackward()(next(iter(risk.terms())), risk.theta).nbytes


def test_all_kept_means_data_are_read_once() -> None:
    risk, data = _risk()
    H = Hessian(risk, engine="double_backward")
    V = torch.randn(2, risk.dim, dtype=torch.float64)
    first = H.matvecs(V)
    read = data.read
    assert torch.equal(H.matvecs(V), first)
    assert data.read == read
    assert H._source.pool.kept == 4


@pytest.mark.parametrize(("products", "kept"), [(1.5, 1), (3.2, 3), (100, 4)])
def test_the_budget_decides_how_many_are_kept(products: float, kept: int) -> None:
    size = _one_product_bytes()
    assert size > 0
    risk, _ = _risk()
    H = Hessian(risk, engine="double_backward", memory=int(products * size))
    V = torch.randn(1, risk.dim, dtype=torch.float64)
    expected = V @ nets.full_hessian(risk)
    for _ in range(2):
        torch.testing.assert_close(H.matvecs(V), expected, rtol=1e-11, atol=1e-14)
    assert H._source.pool.kept == kept


def test_a_batch_beyond_the_budget_is_cut() -> None:
    size = _one_product_bytes()
    risk, _ = _risk()
    V = torch.randn(3, risk.dim, dtype=torch.float64)
    for A, expected in (
        (Hessian(risk, engine="double_backward", memory=size // 3), nets.full_hessian(risk)),
        (GaussNewton(risk, engine="double_backward", memory=size // 3), nets.full_gauss_newton(risk)),
    ):
        torch.testing.assert_close(A.matvecs(V), V @ expected, rtol=1e-11, atol=1e-14)


def test_a_batch_that_cannot_be_cut_enough_says_what_it_needs() -> None:
    risk, _ = _risk()
    with pytest.raises(MemoryBudgetError, match=r"keeps .* more than the budget of .* engine='forward_over_reverse'"):
        Hessian(risk, engine="double_backward", memory=8).matvecs(torch.ones(1, risk.dim, dtype=torch.float64))


def test_data_that_shrink_between_passes_are_refused() -> None:
    risk, data = _risk()
    H = Hessian(risk, engine="forward_over_reverse", memory=100)
    data.data = data.data[:-1]
    with pytest.raises(DataError):
        H.matvecs(torch.ones(1, risk.dim, dtype=torch.float64))


def test_an_abandoned_pass_leaves_the_module_as_it_was() -> None:
    case = nets.cnn()
    case.module.train()
    H = Hessian(case.risk(), engine="forward_over_reverse")
    for _weight, _term in H.terms():
        break
    assert all(module.training for module in case.module.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_products_that_are_not_finite_are_an_error(dtype: torch.dtype) -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, dtype=dtype))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs + self.weight.square().sum().sqrt()

    risk = EmpiricalRisk(Root(), nn.MSELoss(), [(torch.ones(2, 1, dtype=dtype), torch.zeros(2, 1, dtype=dtype))])
    look = r"Look for sqrt" if dtype == torch.float64 else "Measure in float64, or look for sqrt"
    message = rf"the gradient of batch 0 is so already in parameter 'weight'\. {look}"
    for engine in ("double_backward", "auto"):
        with pytest.raises(NonFiniteError, match=message):
            Hessian(risk, engine=engine).matvecs(torch.ones(1, 2, dtype=dtype))
        with pytest.raises(NonFiniteError, match=message):
            next(iter(Hessian(risk, engine=engine).terms()))[1].matvecs(torch.ones(1, 2, dtype=dtype))


def test_products_on_bad_data_name_the_batch_and_the_layer() -> None:
    """The risk looks at its first batch only; a product sees all of them."""
    case = nets.mlp((8, 8, 8))
    case.data[1][0][2, 3] = float("nan")
    risk = EmpiricalRisk(case.module, case.loss, case.data)
    V = torch.ones(1, risk.dim, dtype=torch.float64)
    for A in (Hessian(risk, engine="double_backward"), GaussNewton(risk, engine="double_backward"), Fisher(risk)):
        with pytest.raises(NonFiniteError, match=r"on batch 1, first in 0 \(Linear"):
            A.matvecs(V)


def test_an_objective_without_modules_names_the_batch() -> None:
    plain = EmpiricalRisk(nn.Linear(1, 1).double(), nn.MSELoss(), [(torch.ones(2, 1).double(),) * 2] * 2)
    with pytest.raises(NonFiniteError, match="loss must be finite; got nan on batch 0"):
        Objective.require_finite_loss(plain, plain.theta * float("nan"))


def test_products_work_whatever_the_callers_grad_mode() -> None:
    risk, _ = _risk()
    V = torch.randn(1, risk.dim, dtype=torch.float64)
    expected = V @ nets.full_hessian(risk)
    for mode in (torch.no_grad, torch.inference_mode):
        for engine in ("linearized", "double_backward", "forward_over_reverse"):
            with mode():
                product = Hessian(risk, engine=engine).matvecs(V)
            torch.testing.assert_close(product.clone(), expected, rtol=1e-11, atol=1e-14)


# In a process of its own, whose heap has no holes. Blocks of 20 MB come from the heap and have no mapping of their own.
_HEAP = """
import torch
from hessprobe.hvp.pool import give_back_free, heap_held, status_bytes

cpu, block, blocks = torch.device("cpu"), 20 << 20, 8

def left():
    # What is resident after so many blocks have been filled and freed.
    held = [torch.ones(block, dtype=torch.uint8) for _ in range(blocks)]
    del held
    return status_bytes("VmRSS") / (block * blocks)

# The allocator has found its own limits, and holds nothing.
left(), give_back_free()
start = status_bytes("VmRSS") / (block * blocks)
with heap_held(1, cpu):
    with heap_held(1, cpu):
        print(left() - start > 0.9)
    print(left() - start > 0.9)
"""
_GNU = pytest.mark.skipif(
    sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="another C library than GNU's"
)


@_GNU
def test_what_products_free_is_kept_for_the_next_ones() -> None:
    done = subprocess.run([sys.executable, "-c", _HEAP], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["True"] * 2


def test_the_heap_is_held_once_and_not_under_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes back afterwards is up to the allocator, whose heap may end with something that lives."""
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr("hessprobe.hvp.pool._held", 0)
    monkeypatch.setattr("hessprobe.hvp.pool._of_gnu", lambda name: lambda option, value: seen.append((option, value)))
    cpu = torch.device("cpu")
    with heap_held(1 << 25, cpu), heap_held(1, torch.device("meta")):
        assert seen == []
    with vectors_within(1 << 20), heap_held(1, cpu):
        assert seen == []
    with heap_held(1, cpu), heap_held(1, cpu):
        assert seen == [(-3, 1 << 25), (-1, (1 << 31) - 1)]
    assert seen == [(-3, 1 << 25), (-1, (1 << 31) - 1), (-1, 1 << 26)]
    seen.clear()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    with heap_held(1, cpu):
        assert seen == []


@_GNU
def test_passes_keep_the_heap_also_where_they_are_not_gone_through(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    # A pass that a test before has left open somewhere counts too.
    monkeypatch.setattr("hessprobe.hvp.pool._held", 0)
    monkeypatch.setattr("hessprobe.hvp.pool._of_gnu", lambda name: lambda option, value: seen.append((option, value)))
    risk, _ = _risk()
    H = Hessian(risk, engine="double_backward")
    H.matvecs(torch.ones(1, risk.dim, dtype=torch.float64))
    assert seen == [(-3, 1 << 25), (-1, (1 << 31) - 1), (-1, 1 << 26)]
    seen.clear()
    left = H.terms()
    next(left)
    del left
    gc.collect()
    assert [value for option, value in seen if option == -1] == [(1 << 31) - 1, 1 << 26]


@pytest.mark.parametrize("ask", ["product", "trace", "norm"])
def test_a_product_that_is_not_kept_is_gone_when_the_next_is_made(monkeypatch: pytest.MonkeyPatch, ask: str) -> None:
    risk, _ = _risk()
    H = Hessian(risk, engine="double_backward", memory=int(1.1 * _one_product_bytes()))
    pool, alive, most = H._source.pool, weakref.WeakSet[Product](), []
    # Nothing is kept: all of the budget is taken by somebody else.
    pool.budget.take(pool.budget.room)
    make = pool._make

    def counted(batch: BatchLoss, theta: torch.Tensor) -> Product:
        most.append(len(alive))
        made = make(batch, theta)
        alive.add(made)
        return made

    monkeypatch.setattr(pool, "_make", counted)
    if ask == "product":
        H.matvecs(torch.ones(1, risk.dim, dtype=torch.float64))
    elif ask == "trace":
        sample_linear(Counted(H), Sampling(2, 0, "rademacher", "probe", None))
    else:
        stream = ProbeStream(risk.dim, dtype=torch.float64, stream="frobenius")
        sample_squares(Counted(H), stream, 0, 3, None)
    assert len(most) == 4
    assert max(most) == 0

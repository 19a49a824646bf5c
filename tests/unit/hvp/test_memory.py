"""What is kept, by whom, and how much is alive at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hessprobe.errors import MemoryBudgetError, NumericalWarning
from hessprobe.hvp import ENGINES, GaussNewton, Hessian
from hessprobe.hvp.auto import choose
from hessprobe.hvp.engines import DoubleBackward, ForwardOverReverse, LossFunction, Product, batch_bytes
from hessprobe.hvp.gauss_newton import JacobianGraph
from hessprobe.hvp.pool import Chunked, MemoryBudget, forward_bytes
from hessprobe.objective import EmpiricalRisk


class Peak(TorchDispatchMode):
    """Follows the bytes of live storages that are made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._addresses: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage(), given)
        return result

    def _see(self, storage: Any, given: set[int]) -> None:
        key = storage._cdata
        if key in given or key in self._addresses:
            return
        size = storage.nbytes()
        self._addresses.add(key)
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._addresses.discard(key)
        self.alive -= size


def _wide(examples: int = 512) -> EmpiricalRisk:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    data = [(torch.randn(examples, 4).double(), torch.randint(3, (examples,))) for _ in range(2)]
    return EmpiricalRisk(module, nn.CrossEntropyLoss(), data)


def _opaque(case: nets.Case) -> EmpiricalRisk:
    def forward(module: nn.Module, batch: nets.Batch) -> tuple[Tensor, int]:
        return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="sum"), len(batch[1])

    return EmpiricalRisk(case.module, None, case.data, forward=forward)


def _first(risk: EmpiricalRisk) -> Any:
    return next(iter(risk.terms()))


@contextmanager
def _measured() -> Iterator[Peak]:
    peak = Peak()
    with peak:
        yield peak


def test_a_budget_counts_what_all_have_taken() -> None:
    budget = MemoryBudget(100, torch.device("cpu"))
    assert budget.take(60)
    assert not budget.take(41)
    assert budget.take(40)
    assert (budget.room, budget.total) == (0, 100)


def test_the_hessian_and_its_surrogate_share_one_budget() -> None:
    risk = nets.mlp((8, 8, 8, 8)).risk()
    V = torch.randn(1, risk.dim, dtype=torch.float64)
    one = DoubleBackward()(_first(risk), risk.theta).nbytes
    H = Hessian(risk, memory=5 * one, engine="double_backward")
    H.matvecs(V)
    G = H.surrogate
    assert isinstance(G, GaussNewton)
    for _ in range(2):
        torch.testing.assert_close(G.matvecs(V), V @ nets.full_gauss_newton(risk), rtol=1e-11, atol=1e-14)
    assert H._source.pool.kept == 4
    assert G._source.pool.kept < 4
    kept = [product.nbytes for pool in (H._source.pool, G._source.pool) for _, product in pool._kept]
    assert sum(kept) <= 5 * one


@pytest.mark.parametrize("budget", ["opaque", "batch statistics"])
def test_a_batch_that_cannot_be_cut_goes_to_the_engine_that_keeps_nothing(budget: str) -> None:
    case = nets.cnn()
    risk = _opaque(case) if budget == "opaque" else case.risk(batchnorm="batch")
    hessian = nets.full_hessian(risk)
    memory = DoubleBackward()(_first(risk), risk.theta).nbytes // 2
    V = torch.randn(3, risk.dim, dtype=torch.float64)
    H = Hessian(risk, memory=memory)
    torch.testing.assert_close(H.matvecs(V), V @ hessian, rtol=1e-10, atol=1e-12)
    assert H.engine.name == "forward_over_reverse"
    assert "double_backward: too large" in H.engine_note
    forced = Hessian(risk, memory=memory, engine="double_backward")
    with pytest.raises(MemoryBudgetError, match=r"keeps .*more than the budget of .*engine='forward_over_reverse'"):
        forced.matvecs(V)


def test_a_budget_below_a_single_example_is_refused_with_what_is_needed() -> None:
    risk = nets.mlp().risk()
    message = r"single example needs at least \d.*, more than the budget of 1 B\. Use a larger memory budget\."
    for engine in ("auto", "forward_over_reverse"):
        with pytest.raises(MemoryBudgetError, match=message):
            Hessian(risk, memory=1, engine=engine).matvecs(torch.ones(1, risk.dim, dtype=risk.dtype))


def test_what_fits_nowhere_and_lacks_a_forward_rule_says_so() -> None:
    """Neither cut, nor kept, nor pushed forward: finite differences do not take the place of a memory."""
    risk = _opaque(nets.mlp())
    size = DoubleBackward()(_first(risk), risk.theta).nbytes

    def broken() -> Any:
        raise RuntimeError("no forward rule")

    class Broken(ForwardOverReverse):
        def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
            raise RuntimeError("no forward rule")

    engines = {**ENGINES, "forward_over_reverse": Broken}
    with pytest.raises(MemoryBudgetError, match=r"No engine fits the memory.*no forward rule.*keeps .*larger memory"):
        choose(engines, _first(risk), risk.theta, size // 3)


@pytest.mark.parametrize("share", [2, 5])
def test_choosing_stays_within_the_budget(share: int) -> None:
    risk = _wide()
    batch = _first(risk)
    with risk.evaluating():
        whole = DoubleBackward()(batch, risk.theta).nbytes
        budget = whole // share
        with _measured() as peak:
            choose(ENGINES, batch, risk.theta, budget, 2, 60)
        with _measured() as free:
            choose(ENGINES, batch, risk.theta, 100 * whole, 2, 60)
    assert free.most > 2 * whole
    # What is kept, as much again for a product in the making, and vectors of length d.
    assert peak.most < 2 * budget + 40 * risk.theta.nbytes


def test_forward_over_reverse_counts_its_batch_and_bounds_its_rows() -> None:
    risk = _wide()
    batch = _first(risk)
    with risk.evaluating():
        product = ForwardOverReverse()(batch, risk.theta)
        assert product.nbytes == batch.inputs.nbytes + batch.targets.nbytes
        a_row = forward_bytes(batch, risk.theta)
        rows: list[int] = []

        class Watched:
            name, is_exact, keeps, setup_seconds = "watched", True, False, 0.0

            def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
                def apply(V: Tensor) -> Tensor:
                    rows.append(len(V))
                    return product(V)

                return Product(apply)

        V = torch.randn(7, risk.dim, dtype=torch.float64)
        limited = Chunked(Watched(), 16 * a_row)(batch, risk.theta)
        torch.testing.assert_close(limited(V), product(V), rtol=1e-10, atol=1e-14)
    assert rows[:3] == [3, 3, 1]


def test_a_row_of_forward_over_reverse_takes_about_what_is_said() -> None:
    risk = _wide()
    batch = _first(risk)
    with risk.evaluating():
        product = ForwardOverReverse()(batch, risk.theta)
        most = []
        for k in (2, 10):
            V = torch.randn(k, risk.dim, dtype=torch.float64)
            with _measured() as peak:
                product(V)
            most.append(peak.most)
        a_row = forward_bytes(batch, risk.theta)
    assert 2.5 * a_row < (most[1] - most[0]) / 8 < 4 * a_row
    assert most[0] < 3 * 4 * a_row


def test_products_from_a_loader_are_charged_for_their_batches() -> None:
    risk = nets.mlp((8, 8, 8, 8)).risk()
    batch = _first(risk)
    size = batch.inputs.nbytes + batch.targets.nbytes
    H = Hessian(risk, engine="forward_over_reverse", memory=2 * size)
    H.matvecs(torch.randn(1, risk.dim, dtype=torch.float64))
    assert H._source.pool.kept == 2


@pytest.mark.parametrize("engine", [DoubleBackward, JacobianGraph])
def test_a_product_that_is_dropped_leaves_nothing_behind(engine: Any) -> None:
    """Counting what a graph saves must not keep it alive: slices are made anew at every call."""
    risk = _wide()
    batch = _first(risk)
    V = torch.randn(1, risk.dim, dtype=torch.float64)
    with risk.evaluating(), _measured() as peak:
        product = engine()(batch, risk.theta)
        product(V)
        # The inputs, which the graph holds too, were there before.
        assert peak.alive >= product.nbytes - risk.theta.nbytes - batch_bytes(batch) > 0
        del product
        assert peak.alive == 0


def test_a_product_of_a_large_model_takes_few_vectors_and_keeps_none() -> None:
    """Of two examples the parameters are everything: what is alive is counted in units of them."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 1500), nn.Tanh(), nn.Linear(1500, 1500), nn.Tanh(), nn.Linear(1500, 3))
    risk = EmpiricalRisk(module, nn.CrossEntropyLoss(), [(torch.randn(2, 4), torch.tensor([0, 2]))])
    batch, size = _first(risk), risk.theta.nbytes
    V = torch.randn(1, risk.dim)
    total = torch.zeros_like(V)
    with risk.evaluating(), _measured() as peak:
        product = DoubleBackward()(batch, risk.theta)
        assert peak.alive < 0.1 * size
        peak.most = peak.alive
        product.add_to(total, V, 1.0)
        # Two parts of a tensor of the product and their sum, or all tensors and these in one piece.
        assert peak.most < 3.2 * size
        assert peak.alive < 0.1 * size


def test_the_first_product_is_checked_within_few_vectors() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 1500), nn.Tanh(), nn.Linear(1500, 1500), nn.Tanh(), nn.Linear(1500, 3))
    risk = EmpiricalRisk(module, nn.CrossEntropyLoss(), [(torch.randn(2, 4), torch.tensor([0, 2]))])
    V = torch.randn(1, risk.dim)
    H = Hessian(risk)
    with _measured() as peak:
        H.matvecs(V)
        assert peak.most < 7 * risk.theta.nbytes, peak.most / risk.theta.nbytes


def test_lambda_max_of_a_large_model_holds_a_short_basis() -> None:
    """In vectors: a basis of ten rows, a product of three, what they are added to, and a little."""
    from hessprobe.krylov import lambda_max

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 2300), nn.Tanh(), nn.Linear(2300, 2300), nn.Tanh(), nn.Linear(2300, 3))
    risk = EmpiricalRisk(module, nn.CrossEntropyLoss(), [(torch.randn(2, 4), torch.tensor([0, 2]))])
    H = Hessian(risk)
    with _measured() as peak:
        lambda_max(H, rtol=0.1)
    assert peak.most < 18.5 * risk.theta.nbytes, peak.most / risk.theta.nbytes


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("gone"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
@pytest.mark.parametrize("engine", ["auto", "double_backward"])
def test_what_runs_out_of_memory_goes_on_in_smaller_pieces_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, engine: str, error: Exception
) -> None:
    risk = nets.mlp((40, 40)).risk()
    V = torch.randn(2, risk.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    known = Hessian(risk, engine=engine).matvecs(V)
    make, sizes = DoubleBackward.__call__, []

    def scarce(self: DoubleBackward, loss: Any, theta: Tensor) -> Product:
        product = make(self, loss, theta)
        sizes.append(loss.examples)

        def apply(rows: Tensor) -> Tensor:
            if room[0] < loss.examples:
                raise error
            return product.apply(rows)

        return Product(apply, product.nbytes)

    monkeypatch.setattr(DoubleBackward, "__call__", scarce)
    room = [40]
    H = Hessian(risk, engine=engine)
    torch.testing.assert_close(H.matvecs(V), known)
    assert max(sizes) == 40
    room[0] = 6
    with pytest.warns(NumericalWarning, match="memory ran out"):
        again = H.matvecs(V)
    torch.testing.assert_close(again, known)
    sizes.clear()
    # Warnings are errors here: it is said once.
    torch.testing.assert_close(H.matvecs(V), known)
    assert 0 < max(sizes) <= 6
    room[0] = 0
    with pytest.raises((type(error), MemoryBudgetError)):
        H.matvecs(V)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("gone"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
@pytest.mark.parametrize(("step", "finer"), [("product", False), ("product", True), ("making", True)])
def test_terms_that_run_out_of_memory_are_made_in_smaller_pieces(
    monkeypatch: pytest.MonkeyPatch, error: Exception, finer: bool, step: str
) -> None:
    risk = nets.mlp((40, 40)).risk()
    V = torch.randn(2, risk.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    make, sizes, room = DoubleBackward.__call__, [], [40]

    def scarce(self: DoubleBackward, loss: Any, theta: Tensor) -> Product:
        if step == "making" and room[0] < loss.examples:
            raise type(error)(*error.args)
        product = make(self, loss, theta)

        def apply(rows: Tensor) -> Tensor:
            if room[0] < loss.examples:
                raise type(error)(*error.args)
            sizes.append(loss.examples)
            return product.apply(rows)

        return Product(apply, product.nbytes)

    monkeypatch.setattr(DoubleBackward, "__call__", scarce)
    whole = Hessian(risk, engine="double_backward")
    known = whole.matvecs(V)
    H = whole.grouped(8) if finer else Hessian(risk, engine="double_backward")
    assert (H is not whole, H.n_terms) == (True, 8 if finer else 2)
    parts = [(weight, term.matvecs(V)) for weight, term in H.terms()]
    torch.testing.assert_close(sum(weight * part for weight, part in parts), known)
    room[0] = 3
    sizes.clear()
    with pytest.warns(NumericalWarning, match="memory ran out") as said:
        again = [(weight, term.matvecs(V)) for weight, term in H.terms()]
    assert len(said) == 1
    assert 0 < max(sizes) <= 3
    torch.testing.assert_close(sum(weight * part for weight, part in again), known)
    # Warnings are errors here: it is said once.
    forms = sum(weight * term.quadratic_forms(V) for weight, term in H.terms())
    torch.testing.assert_close(forms, (V * known).sum(1))
    room[0] = 0
    with pytest.raises((type(error), MemoryBudgetError)):
        [term.matvecs(V) for _, term in H.terms()]


def test_memory_that_runs_out_is_not_the_engine_being_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    risk, make, left = nets.mlp((8,)).risk(), DoubleBackward.__call__, [1]

    def scarce(self: DoubleBackward, loss: Any, theta: Tensor) -> Product:
        # All of the batch, not the few examples that its size is estimated from.
        if left[0] and loss.examples == 8:
            left[0] -= 1
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return make(self, loss, theta)

    V = torch.ones(1, risk.dim, dtype=torch.float64)
    known = Hessian(risk, engine="double_backward").matvecs(V)
    monkeypatch.setattr(DoubleBackward, "__call__", scarce)
    with pytest.warns(NumericalWarning, match="memory ran out"):
        torch.testing.assert_close(Hessian(risk, engine="double_backward").matvecs(V), known)


def test_other_failures_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    H = Hessian(nets.mlp((8,)).risk(), engine="double_backward")
    V = torch.ones(1, H.dim, dtype=torch.float64)
    H.matvecs(V)
    monkeypatch.setattr(Product, "add_to", lambda *args: (_ for _ in ()).throw(RuntimeError("a shape is wrong")))
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        H.matvecs(V)

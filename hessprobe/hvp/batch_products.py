"""Where an operator gets its products: one engine for all batches, within one memory budget.

A curvature matrix whose terms are groups of examples, for the error that comes from the data being a sample.

One batch's curvature as an operator of its own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from time import process_time
from typing import Any

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import HessprobeError, MemoryBudgetError, NumericalWarning, UnsupportedError
from hessprobe.hvp import engines, pool
from hessprobe.hvp.auto import EXPECTED_MATVECS, UNSUPPORTED, Choice, choose, first_line, is_final, no_recorder
from hessprobe.hvp.engines import DoubleBackward, Engine, Product, decided, device_clock, fresh_gradient, value
from hessprobe.hvp.known import ENGINES_TAKEN, kind_of
from hessprobe.hvp.linearized import recording_seconds
from hessprobe.hvp.pool import Chunked, MemoryBudget, ProductPool, Watch, give_back_free
from hessprobe.hvp.verification import (
    Look,
    WrongProductError,
    agree,
    look_at,
    require_own_gradient,
    require_own_product,
    require_symmetric,
    signs,
)
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.objective.batches import EmpiricalBatch
from hessprobe.objective.checking import GroupedObjective, by_groups
from hessprobe.operators.base import LinearOperator, SampledTrace, Wrapper
from hessprobe.vectors import ParameterLayout, row_dots


class BatchOperator(Wrapper):
    """The matrix of one batch; used while the pool that made it is being iterated.

    Args:
        product: of the batch.
        pool: where it comes from.
        parent: the operator that it is a term of.
        index: its position among the terms.
    """

    def __init__(self, product: Product, pool: ProductPool, parent: LinearOperator, index: int) -> None:
        self._product, self._pool, self._inner = product, pool, parent
        self._index = index
        self._place = pool.place and f"{pool.place}-{index}"
        self.dim, self.dtype, self.device = parent.dim, parent.dtype, parent.device
        self.psd = parent.psd

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the whole operator."""
        return self._inner.blocks

    @property
    def layout(self) -> ParameterLayout | None:
        """That of the whole operator."""
        return self._inner.layout

    def _matvecs(self, V: Tensor) -> Tensor:
        return self._counted("products", V, self._place, lambda: self._multiplied(V))

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return v^T A v a row, by the cheaper way where the product has one."""
        if self._product.forms is None:
            return super().quadratic_forms(V)

        def make() -> Tensor:
            with self._pool.context():
                return self._in_pieces(lambda product: _forms(product, V.detach()))

        return self._counted("forms", V, self._place and f"{self._place}-forms", make)

    def _counted(self, kind: str, V: Tensor, place: str, make: Callable[[], Tensor]) -> Tensor:
        pool = self._pool
        pool.made[kind] += len(V) / pool.risk.n_terms
        if self._index:
            return engines.product(place, V, make)
        # The first term stands for all.
        start, begun = device_clock(V.device), process_time()
        result = engines.product(place, V, make)
        worked = (process_time() - begun) * pool.risk.n_terms
        spent = (device_clock(V.device) - start) * pool.risk.n_terms
        if len(V):
            pool.took(kind, spent, len(V))
        if pool.watch is not None and len(V):
            pool.watch.took(min(spent, worked) if V.device.type == "cpu" else spent, len(V))
            pool.watch.rows += len(V)
        return result

    def _in_pieces(self, use: Callable[[Product], Tensor]) -> Tensor:
        """Return what is made by the product; where memory runs out, by one in smaller pieces from there on."""
        lost = False

        def make() -> Tensor:
            nonlocal lost
            if lost:
                self._product = self._pool.again(self._index)
            lost = True
            return use(self._product)

        return self._pool.within_memory(make)

    def _multiplied(self, V: Tensor) -> Tensor:
        with self._pool.context():
            result = self._in_pieces(lambda product: product(V.detach()))
        self._pool.require_finite(result, V)
        return result


def operators_of(pool: ProductPool, parent: LinearOperator) -> Iterator[tuple[float, LinearOperator]]:
    """Yield weight and matrix of every product of a pool, as a term of ``parent``, of which it holds one at a time."""
    # Not enumerate, which holds what it has handed out until it has the next.
    index = 0
    for weight, product in pool:
        term = BatchOperator(product, pool, parent, index)
        del product
        yield weight, term
        del term
        index += 1  # noqa: SIM113  # above


def _halved(pool: ProductPool, allowed: int, times: int) -> int | None:
    """Keep nothing, and return half of what the largest product took: all that one may take from here on.

    Args:
        pool: of the products.
        allowed: bytes that one might take so far.
        times: how often memory has run out, which is said the first time.

    Returns:
        None where that was too often.
    """
    largest = pool.clear()
    give_back_free()
    if times > _SHRINKS:
        return None
    if times == 1:
        warnings.warn(
            "memory ran out in a product: batches are cut into smaller pieces from here on, which is slower and "
            "changes no number. Use a smaller --memory or --batch-size to begin so.",
            NumericalWarning,
            stacklevel=3,
        )
    return max(min(largest or allowed, allowed) // 2, 1)


def _forms(product: Product, V: Tensor) -> Tensor:
    return (row_dots(V, product(V)) if product.forms is None else product.forms(V)).to(torch.float64)


# What tells that a batch cannot be cut: sparse rows, statistics of the batch, a loss or a layer of a fixed number of
# rows.
NOT_CUT = (UnsupportedError, RuntimeError, ValueError, IndexError, TypeError)
# Share of the first batch that a loss is looked at on before the first product, and the fewest examples.
_PART_LOOKED_AT, _LEAST_LOOKED_AT = 8, 16

# Engines tried in place of one that records each shape of a batch, which takes longer than a few products.
_DIFFERENCES = "finite_difference"
_UNRECORDED = {"linearized": ("double_backward", "forward_over_reverse")}


def _against(after: Engine, before: Engine, batch: BatchLoss, theta: Tensor) -> str:
    """Return what speaks against going on with another engine, "" for nothing; it may not hold for this risk at all."""
    try:
        own, known = after(batch, theta), before(batch, theta)
    except (MemoryBudgetError, *UNSUPPORTED) as error:
        if is_final(error):
            raise
        return first_line(error)
    return "" if agree(own, known, theta) else f"its product differs from that of {before.name}"


class ByGroups(Wrapper):
    """The same matrix as ``parent``, and made by it; only ``terms`` are finer.

    Products of the groups are not kept: they serve one pass each.

    Args:
        parent: the matrix.
        objective: its groups of examples.
        count: groups that were asked for.
        engines: the engines of such a matrix, by name.
        engine: returns that of the parent, once its first product has shown that it is right.
        budget: bytes that a product may take.
        made: where the parent counts its products.
    """

    def __init__(
        self,
        parent: LinearOperator,
        objective: GroupedObjective,
        count: int,
        engines: Mapping[str, Callable[[], Engine]],
        engine: Callable[[], Engine],
        budget: int,
        made: dict[str, float],
    ) -> None:
        self._inner, self._count = parent, count
        self.dim, self.dtype, self.device = parent.dim, parent.dtype, parent.device
        self.psd, self.n_terms = parent.psd, objective.n_terms
        # Known traces need no product, and no engine.
        self._of_parent, self._names, self._verified = engine, list[str](), False
        self._engines, self._budget, self._layout = engines, budget, objective.layout
        self._chosen: Engine | None = None
        self._price: float | None = None
        self._pool = ProductPool(objective, self._make, MemoryBudget(1, parent.device))
        self._pool.made, self._pool.shrink, self._shrunk = made, self._shrink, 0

    @property
    def blocks(self) -> dict[str, slice]:
        """Those of the parent."""
        return self._inner.blocks

    @property
    def surrogate(self) -> LinearOperator | None:
        """That of the parent by the same groups; None where it has others."""
        twin = self._inner.surrogate
        finer = None if twin is None else twin.grouped(self._count)
        return finer if finer is not None and finer.n_terms == self.n_terms else None

    def _matvecs(self, V: Tensor) -> Tensor:
        return self._inner.matvecs(V)

    def quadratic_forms(self, V: Tensor) -> Tensor:
        """Return v^T A v a row, as the parent makes them."""
        return self._inner.quadratic_forms(V)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield each group's weight and matrix."""
        # Before the data are read: the first product of the parent reads them too.
        self._names = self._names or self._candidates()
        yield from operators_of(self._pool, self)

    def exact_diagonal(self) -> tuple[Tensor, float] | None:
        """Return that of the parent."""
        return self._inner.exact_diagonal()

    def exact_diagonal_cost(self) -> float:
        """Return that of the parent."""
        return self._inner.exact_diagonal_cost()

    def group_traces(self) -> tuple[Tensor, Tensor] | None:
        """Return those of the parent."""
        return self._inner.group_traces()

    def sampled_trace(self, draws: range, seed: int = 0) -> SampledTrace | None:
        """Return that of the parent."""
        return self._inner.sampled_trace(draws, seed)

    def cost_of(self, work: str) -> float:
        """Return that of the parent, of products and forms times what small groups cost more.

        Beside the arithmetic of its examples a group pays for passing over the parameters: on a transformer of 800,000
        parameters as much as 75 positions (measured: 1.27 products of whole batches by groups of 256 positions, 1.67 by
        128, 2.2 by 64). A model and not a clock, so that the same seed makes the same plan.
        """
        if work == "draw":
            return self._inner.cost_of(work)
        if self._price is None:
            with self._pool.context(), torch.no_grad():
                self._price = _price(self._pool.risk, self._inner.n_terms)
        return self._inner.cost_of(work) * self._price

    def _candidates(self) -> list[str]:
        """Return the engines to try, that of the parent first."""
        own = self._of_parent().name
        self._verified = own not in _UNRECORDED
        found = [name for name in _UNRECORDED.get(own, (own,)) if name in self._engines]
        return [*found, _DIFFERENCES] if own in _UNRECORDED and _DIFFERENCES in self._engines else found

    def _shrink(self) -> bool:
        """Make smaller pieces of groups; False where that was done often."""
        self._shrunk += 1
        allowed = _halved(self._pool, self._budget, self._shrunk)
        if allowed is None:
            return False
        self._budget = allowed
        if self._chosen is not None:
            self._chosen = Chunked(self._engines[self._chosen.name](), self._budget)
        return True

    def _make(self, batch: object, theta: Tensor) -> Product:
        while True:
            engine = self._chosen or Chunked(self._engines[self._names[0]](), self._budget)
            try:
                product = engine(batch, theta)  # type: ignore[arg-type]  # a batch loss
                if not self._verified and engine.is_exact:
                    require_symmetric(product, theta)
                    if _DIFFERENCES in self._engines:
                        require_own_product(product, batch, theta, self._layout.slices)  # type: ignore[arg-type]
            except UNSUPPORTED as error:
                if is_final(error) or self._chosen is not None or len(self._names) == 1:
                    raise
                del self._names[0]
                continue
            self._chosen, self._verified = engine, True
            signs.cache_clear()
            return product


# Positions whose arithmetic costs as much as a pass over the parameters.
_PASSING = 75.0


def _price(groups: Objective, batches: int) -> float:
    """Return the cost of a product by groups of examples over that by whole batches; inf where it is not known."""
    first = next(iter(groups.terms()))
    if not isinstance(first, EmpiricalBatch):
        return math.inf
    try:
        outputs = first.outputs(groups.theta)
    except UnsupportedError:
        return math.inf
    if not outputs.dim():
        return math.inf
    positions = max(outputs[..., 0].numel() if outputs.dim() > 2 else len(outputs), 1)
    whole = positions * groups.n_terms / batches
    return float((1 + _PASSING / positions) / (1 + _PASSING / whole))


# Ready without a recording, and as fast as any for a few products.
_AT_ONCE = "double_backward"
# Products after which the others are thought of first, where nobody has said that there will be many.
_PATIENCE = 8
# Gradients that are timed, where they are short enough for a machine to be busy during all of one.
_LOOKS, _SHORT = 2, 0.02
# Share of the time of a product that the others are hoped to save: 5 % on an MLP of 700,000 parameters and up to 40 %
# on a transformer (measured on one core).
_SAVED = 0.2
# What the race takes, in products of the first batch: three engines, each built and timed some times.
_TRIAL = 12
# How often what a product may take is halved where memory runs out.
_SHRINKS = 12
# Room that it needs, in products of a batch that are kept.
_RACE = 6


class BatchProducts:
    """The products of a risk's batches with the engine that was asked for, or chosen on the first batch.

    Args:
        risk: the objective.
        engines: the engines there are, by name.
        engine: ``"auto"`` or one of their names.
        memory: bytes that may be kept between products, or a budget shared with others; None for half of what is free.
        expected_matvecs: about how many products will be asked for.

    Attributes:
        pool: the products.
        budget: their memory.
        choice: what ``"auto"`` decided, None before the first product or with another engine.
        gradient_seconds: time of one gradient over all data, from that of the first batch; None before a product.

    Raises:
        ValueError: unknown engine, or ``memory`` or ``expected_matvecs`` not positive.
    """

    def __init__(
        self,
        risk: Objective,
        engines: Mapping[str, Callable[[], Engine]],
        engine: str,
        memory: int | MemoryBudget | None,
        expected_matvecs: int,
    ) -> None:
        checks.one_of("engine", engine, ("auto", *engines))
        self._risk, self._engines = risk, engines
        if risk.differentiable_once and engine == "auto" and _DIFFERENCES in engines:
            engine = _DIFFERENCES
        self.budget = memory if isinstance(memory, MemoryBudget) else MemoryBudget(memory, risk.device, risk)
        self.expected_matvecs = checks.positive_int("expected_matvecs", expected_matvecs)
        self.choice: Choice | None = None
        self.gradient_seconds: float | None = None
        self._engine: Engine | None = None
        self._faster = ""
        if engine != "auto":
            self._engine = Chunked(engines[engine](), self.budget.total)
        self._verified = False
        self._groups: dict[int, GroupedObjective | None] = {}
        self.pool = ProductPool(risk, self._make, self.budget)
        self.pool.shrink = self._shrink
        self._shrunk = 0
        # Groups are smaller than batches as they are: what is cut down for these may not hold one of them.
        self._allowed = self.budget.total

    def _shrink(self) -> bool:
        """Make smaller pieces of batches; False where that was done often."""
        self._shrunk += 1
        allowed = _halved(self.pool, self.budget.total, self._shrunk)
        if allowed is None:
            return False
        self.budget.total = allowed
        if self._engine is not None:
            self._engine = Chunked(self._engines[self._engine.name](), self.budget.total)
        return True

    @property
    def chosen(self) -> bool:
        """Whether the engine is known."""
        return self._engine is not None

    @property
    def engine(self) -> Engine:
        """The engine in use; with ``"auto"`` the first access begins with one."""
        if self._engine is None:
            # Whether the one to begin with works is known once it has made a product, which is kept.
            next(iter(self.pool))
        return self._engine  # type: ignore[return-value]  # a product has been made

    @property
    def note(self) -> str:
        """Which engine runs, and with ``"auto"`` why the others do not."""
        return self.engine.name if self.choice is None else str(self.choice)

    def terms(self, parent: LinearOperator) -> Iterator[tuple[float, LinearOperator]]:
        """Yield each batch's weight and matrix, as a term of ``parent``."""
        if self.pool.watch is not None:
            self.pool.watch.asked()
        yield from operators_of(self.pool, parent)

    def groups(self, count: int) -> GroupedObjective | None:
        """Return the risk as a sum over about ``count`` groups of examples, or None; see ``by_groups``."""
        if count not in self._groups:
            with self.pool.context():
                self._groups[count] = by_groups(self._risk, count)
        return self._groups[count]

    def grouped(self, parent: LinearOperator, count: int) -> LinearOperator:
        """Return ``parent`` with groups of examples as terms, itself where there are no finer ones."""
        objective = self.groups(count)
        if objective is None:
            return parent
        # Not kept: it holds its parent, whose memory must go when the parent goes.
        return ByGroups(parent, objective, count, self._engines, self._tried, self._allowed, self.pool.made)

    def _tried(self) -> Engine:
        """Return the engine once a product has been made: what that shows to be wrong holds for groups too."""
        if not self._verified:
            next(iter(self.pool))
        return self.engine

    def _make(self, batch: BatchLoss, theta: Tensor) -> Product:
        if self._verified and self._engine is not None:
            product = self._engine(batch, theta)
            if product.gradient_seconds and self.gradient_seconds and batch.weight:
                self.gradient_seconds = min(self.gradient_seconds, product.gradient_seconds / batch.weight)
            return product
        few, gradient, look = self._looked_at(batch, theta)
        try:
            require_own_gradient(few, theta, gradient, look.value)
            del gradient
            product = self._first(batch, few, look, theta)
        finally:
            signs.cache_clear()
        made = product.gradient_seconds or self._gradient_time(batch, theta)
        # That of a part takes no less than its share; what is short may have been made while the machine was busy.
        shared = look.seconds * getattr(batch, "examples", 1) / max(getattr(few, "examples", 1), 1)
        self.gradient_seconds = min(made, shared or made) / batch.weight
        return product

    def _first(self, batch: BatchLoss, few: BatchLoss, look: Look, theta: Tensor) -> Product:
        """Return the product of the first batch, looked at on ``few`` of its examples, by an engine that works."""
        begun = self._engine is None and self._begin(batch)
        engine = self._choose(batch) if self._engine is None else self._engine
        try:
            product = self._checked(engine, batch, few, look, theta)
        except WrongProductError as error:
            product = self._differences(batch, theta, error)
        except (MemoryBudgetError, *UNSUPPORTED) as error:
            if is_final(error) or (not begun and isinstance(error, HessprobeError)):
                raise
            if not begun:
                raise UnsupportedError(
                    f"engine={engine.name!r} cannot differentiate this model: {first_line(error)}. Leave engine out: "
                    "another one is then taken."
                ) from error
            return self._made_otherwise(batch, few, look, theta)
        self._verified = True
        return product

    def _gradient_time(self, batch: BatchLoss, theta: Tensor) -> float:
        """Return the seconds of a gradient of the first batch, in units of which costs are told."""
        times: list[float] = []
        while not times or (len(times) < _LOOKS and sum(times) < _SHORT):
            start = device_clock(theta.device)
            fresh_gradient(batch, theta)
            times.append(device_clock(theta.device) - start)
        return min(times)

    def _made_otherwise(self, batch: BatchLoss, few: BatchLoss, look: Look, theta: Tensor) -> Product:
        """Return the product by what works, where the engine that was begun with does not."""
        self.pool.watch, self._engine, self.choice = None, None, None
        engine = self._choose(batch)
        try:
            product = self._checked(engine, batch, few, look, theta)
        except WrongProductError as error:
            product = self._differences(batch, theta, error)
        self._verified = True
        self._remember(batch, at_once_works=False)
        return product

    def _checked(self, engine: Engine, batch: BatchLoss, few: BatchLoss, look: Look, theta: Tensor) -> Product:
        """Return the product of the first batch; of an exact engine after it has been seen to be a second derivative.

        That is looked at on ``few`` of its examples.

        Raises:
            WrongProductError: it is not.
        """
        if self._verified or not engine.is_exact:
            return engine(batch, theta)
        # An engine that records a shape would have to record another one.
        whole = few is batch or bool(engine.setup_seconds)
        part = batch if whole else few
        small = isinstance(engine, Chunked) and not whole
        looked_at = engine.small(few, batch, theta) if small else engine(part, theta)  # type: ignore[attr-defined]
        require_symmetric(looked_at, theta)
        # Else it is no second derivative, but a Gauss-Newton matrix; where no custom Function runs all is well.
        if _DIFFERENCES in self._engines and (look.custom or part is not few):
            require_own_product(looked_at, part, theta, self._risk.layout.slices)
        if whole:
            return looked_at
        del looked_at
        return engine(batch, theta)

    def _looked_at(self, batch: BatchLoss, theta: Tensor) -> tuple[BatchLoss, Tensor, Look]:
        """Return an eighth of a batch, at least 16 examples, all where it is not cut, its gradient and a look at it.

        The code of the model and the loss is the same, and so is what is wrong with it.
        """
        examples = getattr(batch, "examples", 1)
        count = max(examples // _PART_LOOKED_AT, _LEAST_LOOKED_AT)
        if count < examples and not self._risk.differentiable_once:
            try:
                few = batch.slice(0, count)
                if getattr(few, "size", 1):
                    gradient, look = look_at(few, theta)
                    if math.isfinite(look.value):
                        return few, gradient, look
            except NOT_CUT as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
        return batch, *look_at(batch, theta)

    def _differences(self, batch: BatchLoss, theta: Tensor, reason: UnsupportedError) -> Product:
        """Return the product by differences of gradients, where the engine was left open and there is one for them."""
        if self.choice is None or _DIFFERENCES not in self._engines:
            raise reason
        self.pool.watch = None
        self._engines, self._verified = {_DIFFERENCES: self._engines[_DIFFERENCES]}, True
        self._decide(f"differences-{self.pool.place}", batch, {"exact engines": str(reason)})
        return self._engine(batch, theta)  # type: ignore[misc]  # decided

    def _begin(self, batch: BatchLoss) -> bool:
        """Take the engine to begin with, and return whether there is one.

        It is double backward, which is ready at once, but where that is known not to work for a risk of this kind. The
        products that it makes tell when others are worth trying (``_look``); one that was the fastest for a risk of
        this kind in this process needs no trial.
        """
        place, expected = self.pool.place, self.expected_matvecs
        won = place and decided(f"engine-{place}") and not decided(f"refused-{place}")
        if _AT_ONCE not in self._engines or won or (place and decided(f"differences-{place}")):
            return False

        def decide() -> list[Any]:
            # What a kind is told by takes as long as a gradient of a small network to read.
            return list((ENGINES_TAKEN.get(self._key(batch)) if len(ENGINES_TAKEN) else None) or ("", True))

        known, works = value(f"begin-{place}", lambda: self._agreed(decide)) if place else self._agreed(decide)
        name = _AT_ONCE if works else str(known)
        self._faster = str(known) if name == _AT_ONCE != known else ""
        why = f"{known} was the fastest for a risk of this kind" if known else "not tried: too few products so far"
        self._engine = Chunked(self._engines[name](), self.budget.total)
        self.choice = Choice(self._engine, {}, {other: why for other in self._engines if other != name})
        settled = known and not self._faster
        self.pool.watch = None if settled else Watch(self._look, due=1 if expected > EXPECTED_MATVECS else _PATIENCE)
        return True

    def _look(self) -> None:
        """Try the other engines where what is left to do pays for it."""
        watch = self.pool.watch
        if watch is None or self._engine is None or self.pool.passes:
            return
        if no_recorder(self.budget.total, self._risk.theta):
            self.pool.watch = None
            return
        left = max(self.expected_matvecs - watch.rows, watch.rows)
        if self.expected_matvecs <= EXPECTED_MATVECS:
            left = watch.rows  # nobody has said how many there will be: as many again
        with self.pool.context():
            batch = next(iter(self._risk.terms()))
            if self._faster or self._agreed(lambda: self._pays(batch, watch, left)):
                self._switch(batch, left)

    def _agreed(self, decide: Callable[[], Any]) -> Any:
        return pool.agreed(decide, self._risk)

    def _pays(self, batch: BatchLoss, watch: Watch, left: int) -> bool:
        """Return whether what another engine may save of so many products is worth a recording and a race."""
        saved = _SAVED * left * watch.seconds
        if saved <= recording_seconds(0):
            return False
        examples = getattr(batch, "examples", 1)
        try:
            nodes = DoubleBackward().nodes(batch.slice(0, max(examples // 16, 1)), self._risk.theta)
        except NOT_CUT:
            nodes = DoubleBackward().nodes(batch, self._risk.theta)
        return saved > recording_seconds(nodes) + _TRIAL * watch.seconds / self._risk.n_terms

    def _switch(self, batch: BatchLoss, left: int) -> None:
        """Go on with the fastest, found by a race if it is not known, if its products are those of the present one."""
        before, theta = self._engine, self._risk.theta
        if before is None:
            return
        self.pool.watch = None
        if self.budget.room < _RACE * (self.budget.total - self.budget.room) / max(self.pool.kept, 1):
            self.pool.clear()
        after = self._known_faster() if self._faster else self._choose(batch, left)
        if after.name == before.name:
            self._engine = before
        else:
            against = self._agreed(lambda: _against(after, before, batch, theta))
            if not against:
                self.pool.clear()
            else:
                if self.pool.place:
                    value(f"refused-{self.pool.place}", lambda: True)
                self._engine, self.choice = before, Choice(before, {}, {after.name: against})
        self._remember(batch, at_once_works=True)

    def _known_faster(self) -> Engine:
        """Return the engine that was the fastest for a risk of this kind, and write the choice down."""
        key, name = f"engine-{self.pool.place}", self._faster
        why = f"slower: {name} was the fastest for a risk of this kind"
        taken = {"engine": name, "seconds": {}, "reasons": {other: why for other in self._engines if other != name}}
        taken = value(key, lambda: taken) if self.pool.place else taken
        self._engine = Chunked(self._engines[name](), self.budget.total)
        self.choice = Choice(self._engine, {}, taken["reasons"])  # type: ignore[arg-type]  # as written above
        return self._engine

    def _remember(self, batch: BatchLoss, *, at_once_works: bool) -> None:
        key = self._key(batch)
        if key is not None and self._engine is not None and self._engine.is_exact:
            ENGINES_TAKEN.put(key, (self._engine.name, at_once_works))

    def _key(self, batch: BatchLoss) -> Hashable:
        """Return what the process knows the fastest engine by, None where the kind of the risk cannot be told."""
        makes = batch.makes()
        if makes is None or any(tensor.is_nested for tensor in batch.tensors()):
            return None
        shapes = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in batch.tensors())
        power = self.budget.total.bit_length()
        terms = self._risk.n_terms
        return kind_of(*makes), tuple(self._engines), shapes, terms, power, torch.get_num_threads()

    def _choose(self, batch: BatchLoss, expected: int | None = None) -> Engine:
        # A run gone through again knows how the engine that it had to begin with has ended.
        if self.pool.place and decided(f"differences-{self.pool.place}"):
            self._engines, self._verified = {_DIFFERENCES: self._engines[_DIFFERENCES]}, True
            return self._decide(f"differences-{self.pool.place}", batch, {})
        return self._decide(f"engine-{self.pool.place}", batch, None, expected)

    def _decide(
        self, key: str, batch: BatchLoss, reasons: Mapping[str, str] | None, expected: int | None = None
    ) -> Engine:
        """Choose among the engines; two of them differ in the last digits, so that a run gone through again keeps its.

        Args:
            key: of the decision where the run is written down.
            batch: the first one.
            reasons: why others were not taken, where that is known.
            expected: products to be made, where more is known than at first.
        """
        terms, budget, count = self._risk.n_terms, self.budget.total, max(expected or 0, self.expected_matvecs)
        made: list[Choice] = []

        def decide() -> dict[str, Any]:
            made.append(choose(self._engines, batch, self._risk.theta, budget, terms, count))
            why = made[0].reasons if reasons is None else reasons
            return {"engine": made[0].engine.name, "seconds": dict(made[0].seconds), "reasons": dict(why)}

        taken = value(key, lambda: self._agreed(decide)) if self.pool.place else self._agreed(decide)
        self._engine = made[0].engine if made else Chunked(self._engines[taken["engine"]](), budget)
        self.choice = Choice(self._engine, taken["seconds"], taken["reasons"])
        return self._engine

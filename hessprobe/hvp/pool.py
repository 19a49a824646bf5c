"""The products of all batches of an objective, within a memory budget, over the ranks of a process group.

- products are kept while the budget lasts and made anew beyond it (``ProductPool``);
- how much memory there is, and how much of it products may keep (``MemoryBudget``); long blocks of probes and large
  batches are taken in pieces (``Chunked``);
- batches are shared out over ranks, with one all-reduce for a pass over all of them.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import DataError, MemoryBudgetError, NonFiniteError, UnsupportedError, about
from hessprobe.hvp import engines
from hessprobe.hvp.engines import (
    DoubleBackward,
    Engine,
    LossFunction,
    Product,
    batch_bytes,
    device_clock,
    fresh_gradient,
    graph_bytes,
    leaf_at,
)
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.objective.checking import parts_of
from hessprobe.vectors import all_finite, room_for_vectors, row_dots, vectors_within

Made = TypeVar("Made")

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from hessprobe.hvp.answering import Watchman


@dataclass(frozen=True)
class Ranks:
    """The ranks that make a product together; every one of them runs the same program on the same data.

    Attributes:
        group: whose collectives are used.
        rank: of this process, from 0.
        count: how many there are.
        examples: how many of each batch every rank has made products of in the latest pass, by the index of the batch.
        watch: who knows which ranks are alive; None where nobody does.
    """

    group: ProcessGroup
    rank: int
    count: int
    examples: dict[int, tuple[int, ...]] = field(default_factory=dict)
    watch: Watchman | None = None

    @property
    def all(self) -> range:
        """The numbers of all ranks."""
        return range(self.count)

    def owns(self, index: int, rank: int | None = None) -> bool:
        """Return whether batch ``index`` is that of ``rank``, by default of this one.

        Batches are dealt out in turn, so that shares differ by one.
        """
        return index % self.count == (self.rank if rank is None else rank)

    def note(self, index: int, examples: Sequence[int]) -> None:
        """Note how many examples of batch ``index`` every rank makes products of; batch 0 begins a pass."""
        if index == 0:
            self.examples.clear()
        self.examples[index] = tuple(examples)

    def summed(self, part: Tensor) -> Tensor:
        """Return the sum of every rank's ``part``, the same on all, in place; one all-reduce.

        Raises:
            RanksError: another rank has ended or does not answer.
        """
        with _answered(self.watch):
            dist.all_reduce(part, group=self.group)
        return part

    def gather(self, part: Tensor, whole: Tensor) -> None:
        """Write every rank's ``part`` (n,) into ``whole`` (count * n,) on all of them, one after the other.

        Raises:
            RanksError: another rank has ended or does not answer.
        """
        with _answered(self.watch):
            # Newer versions call it by another name.
            gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
            gather(whole, part, group=self.group)

    def first(self, tensor: Tensor) -> Tensor:
        """Return the first rank's ``tensor`` on all, in place.

        Raises:
            RanksError: another rank has ended or does not answer.
        """
        with _answered(self.watch):
            dist.broadcast(tensor, group_src=0, group=self.group)
        return tensor

    def described(self) -> dict[str, Any]:
        """Return what a record says: the number of ranks, and how many examples each had in the latest pass."""
        parts = [sum(counts[rank] for counts in self.examples.values()) for rank in self.all]
        return {"count": self.count, "examples": parts}

    def agreed(self, decide: Callable[[], Any]) -> Any:
        """Return what the first rank decides, on all."""
        found = [decide() if self.rank == 0 else None]
        with _answered(self.watch):
            dist.broadcast_object_list(found, group_src=0, group=self.group)
        return found[0]


_active: ContextVar[Ranks | None] = ContextVar("ranks", default=None)


def _answered(watch: Watchman | None) -> AbstractContextManager[Any]:
    from hessprobe.hvp.answering import answered

    return answered(None, watch)


@contextmanager
def shared_out(group: ProcessGroup, watch: Watchman | None = None) -> Iterator[Ranks]:
    """Share the batches of every product inside the block out over ``group``.

    All its ranks must enter the block with the same model and all of the data, and ask for the same products in the
    same order; each then holds the same results. In a pass over all batches each rank makes the products of its own
    batches, with one all-reduce at the end; of a single batch (a term of the operator) it makes those of its own
    examples, with one all-reduce a batch and block of vectors, where the loss of the batch is the mean of theirs. A
    rank that fails leaves the others waiting until the timeout of the group; ``watch`` then says which.
    """
    ranks = Ranks(group, dist.get_rank(group), dist.get_world_size(group), watch=watch)
    token = _active.set(ranks)
    try:
        yield ranks
    finally:
        _active.reset(token)


def current(risk: Objective | None = None) -> Ranks | None:
    """Return the ranks that share products here, of ``risk`` its own; None where this process makes them alone.

    Where weights are spread over ranks all of them make every product of a risk together, and no batch is dealt out.
    """
    if risk is not None and risk.spread_over is not None:
        return None
    ranks = _active.get()
    if risk is not None and risk.group is not None:
        ranks = Ranks(risk.group, dist.get_rank(risk.group), dist.get_world_size(risk.group))
    return ranks if ranks is not None and ranks.count > 1 else None


def holding(risk: Objective) -> Ranks | None:
    """Return the ranks that hold vectors of ``risk`` between them, in parts; None where this process holds them whole.

    Those that share its products out, or over which its weights are spread.
    """
    group = risk.spread_over
    if group is None:
        return current(risk)
    ranks = Ranks(group, dist.get_rank(group), dist.get_world_size(group))
    return ranks if ranks.count > 1 else None


def agreed(decide: Callable[[], Any], risk: Objective | None = None) -> Any:
    """Return ``decide()``, of the first rank where several share products or evaluate ``risk`` together."""
    if risk is not None and risk.differentiable_once:
        return risk.agreed(decide)
    ranks = current(risk)
    return decide() if ranks is None else ranks.agreed(decide)


def on_this_machine() -> int:
    """Return how many of the ranks that share products run on this machine, as ``torchrun`` says; else all of them."""
    ranks = current()
    return 1 if ranks is None else int(os.environ.get("LOCAL_WORLD_SIZE", ranks.count))


# Share of the free memory that kept products may take by default; the rest is for probes, bases and the work itself.
DEFAULT_SHARE = 0.5


def status_bytes(name: str) -> int:
    """Return bytes that Linux tells of this process, ``"VmRSS"`` or the peak ``"VmHWM"``; 0 elsewhere."""
    for line in _lines("/proc/self/status"):
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    return 0


def available_bytes(device: torch.device) -> int:
    """Return the bytes that can still be allocated on ``device`` (a CPU: without swapping)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + reserved)
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) * 1024, _cgroup_room())
    return 4 * 2**30


def budget_bytes(memory: int | None, device: torch.device) -> int:
    """Return ``memory`` in bytes, or the default share of what is free on ``device``.

    Ranks on one machine, whose CPU they share, have it between them.

    Raises:
        TypeError, ValueError: ``memory`` is not a positive integer.
    """
    if memory is not None:
        return checks.positive_int("memory", memory, hint="Give a number of bytes.")
    sharing = 1 if device.type == "cuda" else on_this_machine()
    return int(DEFAULT_SHARE * available_bytes(device) / sharing)


@dataclass(frozen=True)
class Shares:
    """What a limit of memory is shared out to.

    Attributes:
        products: bytes that products may keep; one in the making may take as much again.
        vectors: bytes of probe blocks, Krylov bases and deflated directions (``vectors.vectors_within``).

    Either is None without a limit.
    """

    products: int | None = None
    vectors: int | None = None


# Vectors that a product has alive beside what it keeps, and that a measurement holds at least; bytes that are lost in
# the gaps of the allocator and to what is made and dropped at once, whatever the network.
_IN_A_PRODUCT, _AT_LEAST, _LOST = 4, 12, 24 << 20


def shares(memory: int | None, dim: int, itemsize: int) -> Shares:
    """Return how ``memory``, the bytes that a measurement may take in all, is shared out: half to vectors.

    Args:
        memory: bytes, or None for no limit.
        dim: entries of a vector.
        itemsize: bytes of an entry.

    Raises:
        TypeError, ValueError: ``memory`` is not a positive integer.
        MemoryBudgetError: so little that a basis of a few vectors and a product do not fit.
    """
    if memory is None:
        return Shares()
    memory = checks.positive_int("memory", memory, hint="Give a number of bytes.")
    vector = dim * itemsize
    usable = memory - _LOST
    if usable < _AT_LEAST * vector:
        raise MemoryBudgetError(
            about(
                "memory",
                f"must be at least {words(1.01 * (_AT_LEAST * vector + _LOST))} for {dim} parameters; got "
                f"{words(memory)}. Give as much, or measure fewer parameters (params).",
            )
        )
    return Shares((usable - usable // 2 - _IN_A_PRODUCT * vector) // 2, usable // 2)


class MemoryBudget:
    """Bytes that products may keep; everybody who is given the same one shares it.

    Args:
        memory: bytes; the default share of what is free on ``device`` where None.
        device: where the products lie.
        risk: whose products they are; ranks that make them together agree on the bytes.

    Raises:
        TypeError, ValueError: ``memory`` is not a positive integer.
    """

    def __init__(self, memory: int | None, device: torch.device, risk: Objective | None = None) -> None:
        def decide() -> int:
            return int(agreed(lambda: budget_bytes(memory, device), risk))

        self.total = int(engines.value(engines.place("memory"), decide))
        self._taken = 0

    @property
    def room(self) -> int:
        """Bytes that nobody has taken."""
        return self.total - self._taken

    def take(self, nbytes: int) -> bool:
        """Take ``nbytes`` for good and return True; take nothing and return False where there is less room."""
        if nbytes > self.room:
            return False
        self._taken += nbytes
        return True

    def give_back(self, nbytes: int) -> None:
        """Return what was taken."""
        self._taken -= nbytes


def words(nbytes: float) -> str:
    """Return a size for a message, e.g. ``"1.5 GB"``."""
    for unit in ("B", "KB", "MB", "GB"):
        if nbytes < 1024 or unit == "GB":
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return ""


def _cgroup_room() -> int:
    limit = _lines("/sys/fs/cgroup/memory.max")
    used = _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].strip().isdigit():
        return max(int(limit[0]) - int(used[0]), 0)
    return 2**62


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


Maker = Callable[[BatchLoss, Tensor], Product]


@dataclass
class Watch:
    """How many products were asked for, and what they take.

    Attributes:
        look: called before a pass once there have been ``due`` products more than at the last look, at twice as many
            each time.
        rows: vectors multiplied so far.
        seconds: the least time of the products of all batches with one vector, without making them ready.
    """

    look: Callable[[], None] = field(repr=False)
    rows: int = 0
    seconds: float = math.inf
    due: int = 1

    def asked(self) -> None:
        """Look, where that is due."""
        if self.rows >= self.due:
            self.due = 2 * self.rows
            self.look()

    def took(self, seconds: float, rows: int) -> None:
        """Note the time of the products with so many vectors; noise only ever adds."""
        self.seconds = min(self.seconds, seconds / rows)


class ProductPool:
    """Iterates (weight, product) over the batches of a risk, in order.

    Args:
        risk: the objective; its ``theta`` is where curvature is taken.
        make: turns (batch, theta) into a product.
        budget: of the bytes that kept products may hold, perhaps shared with other pools. Products of the leading
            batches are kept until it is spent; once all are kept, the data are not read again.

    Attributes:
        place: what a run that is written down knows the pool by.
        passes: how many passes are under way.
        watch: told of every product, and when one is asked for; None where nobody waits for that.
        shrink: called where memory is out in the middle of a pass; True where the pass is to be made again, in smaller
            pieces.
        made: products and forms so far, with all batches; those of one batch count as its share of their number.
        seconds: the least time of either with one vector and all batches; what was never made is not in it.
    """

    def __init__(self, risk: Objective, make: Maker, budget: MemoryBudget) -> None:
        self.risk = risk
        self.budget = budget
        self._make = make
        self.place = engines.place("pool")
        self._kept: list[tuple[float, Product]] = []
        self._full = False
        # What this rank keeps where several make products together, by the index of the batch: of whole batches for a
        # pass over all, and of its examples of every batch where each is a matrix of its own.
        self._own: dict[int, tuple[float, Product]] = {}
        self._parts: dict[int, tuple[float, Product]] = {}
        self._tried = self._has_forms = False
        self.passes = 0
        self.watch: Watch | None = None
        self.shrink: Callable[[], bool] | None = None
        self._largest = 0
        self.made = {"products": 0.0, "forms": 0.0}
        self.seconds: dict[str, float] = {}

    @property
    def kept(self) -> int:
        """Number of batches whose products are kept."""
        return len(self._kept)

    def took(self, kind: str, seconds: float, rows: int) -> None:
        """Note the time of a pass over all batches with so many vectors; noise only ever adds."""
        self.seconds[kind] = min(self.seconds.get(kind, math.inf), seconds / rows)

    def clear(self) -> int:
        """Keep nothing of what was made, and return the bytes of the largest; a pass under way keeps no more."""
        kept = [*self._kept, *self._own.values(), *self._parts.values()]
        self.budget.give_back(sum(product.nbytes for _, product in kept))
        self._kept, self._own, self._parts, self._full = [], {}, {}, False
        return max(self._largest, *(product.nbytes for _, product in kept), 0)

    def __iter__(self) -> Iterator[tuple[float, Product]]:
        """Yield every batch's weight and product."""
        self.passes += 1
        try:
            with heap_held(self.risk.theta.nbytes, self.risk.device):
                yield from self._pass()
        finally:
            self.passes -= 1

    def _pass(self) -> Iterator[tuple[float, Product]]:
        shared = current(self.risk)
        if shared is not None:
            with self.context():
                yield from self._parts_of(shared)
            return
        # What another pass keeps meanwhile must not change what this one skips.
        served = list(self._kept)
        yield from served
        if len(served) == self.risk.n_terms:
            return
        with self.context():
            seen = 0
            for index, batch in enumerate(self.risk.terms()):
                seen += 1
                if index < len(served):
                    continue
                if index < len(self._kept):
                    yield self._kept[index]
                    continue
                product = self.within_memory(functools.partial(self._make, batch, self.risk.theta))
                self._largest = max(self._largest, product.nbytes)
                if not self._full and index == len(self._kept) and self.budget.take(product.nbytes):
                    self._kept.append((batch.weight, product))
                elif index == len(self._kept):  # else all has been let go of meanwhile
                    self._full = True
                yield batch.weight, product
                # The next one is made without it.
                del product
            if seen != self.risk.n_terms:
                raise DataError(
                    f"data must give the same batches at every pass; got {seen} after {self.risk.n_terms}. "
                    "Pass a list of batches, or a loader without shuffling."
                )

    def _own_of(self, shared: Ranks) -> Iterator[tuple[float, Product]]:
        """Yield weight and product of this rank's batches.

        The first batch is made by all before the first pass: there the engine is agreed on and tried.
        """
        for index, batch in enumerate(self.risk.terms()):
            known = self._own.get(index)
            if known is None and (shared.owns(index) or not self._tried):
                known = (batch.weight, self._make(batch, self.risk.theta))
                if shared.owns(index) and self.budget.take(known[1].nbytes):
                    self._own[index] = known
            self._tried = True
            shared.note(index, [getattr(batch, "examples", 1) * shared.owns(index, rank) for rank in shared.all])
            if shared.owns(index) and known is not None:
                yield known

    def _parts_of(self, shared: Ranks) -> Iterator[tuple[float, Product]]:
        """Yield every batch's weight and product, of which each rank makes the part of its own examples."""
        for index, batch in enumerate(self.risk.terms()):
            if not self._tried:
                # Whole, and by all: there the engine is agreed on and tried.
                self._has_forms = self._make(batch, self.risk.theta).forms is not None
                self._tried = True
            known = self._parts.get(index)
            if known is None:
                known = (batch.weight, self._part(index, batch, shared))
                if self.budget.take(known[1].nbytes):
                    self._parts[index] = known
            yield known

    def _part(self, index: int, batch: BatchLoss, shared: Ranks) -> Product:
        """Return the product of ``batch``, summed over ranks that cut it between them.

        Where it cannot be cut, as where its examples see each other, every rank makes all of it.
        """
        theta = self.risk.theta
        # Ranks that disagreed would wait for each other.
        edges = shared.agreed(lambda: parts_of(batch, shared.count, theta))
        if not edges:
            return self._make(batch, theta)
        shared.note(index, [stop - start for start, stop in edges] + [0] * (shared.count - len(edges)))
        part = batch.slice(*edges[shared.rank]) if shared.rank < len(edges) else None
        share = part.weight / batch.weight if part is not None and batch.weight else 0.0
        own = self._make(part, theta) if part is not None and share else None

        def apply(V: Tensor) -> Tensor:
            total = torch.zeros_like(V)
            if own is not None:
                own.add_to(total, V, share)
            return shared.summed(total)

        def forms(V: Tensor) -> Tensor:
            found = torch.zeros(len(V), dtype=torch.float64, device=V.device)
            if own is not None:
                found += share * (row_dots(V, own(V)) if own.forms is None else own.forms(V))
            return shared.summed(found)

        return Product(apply, 0 if own is None else own.nbytes, forms if self._has_forms else None)

    @contextmanager
    def context(self) -> Iterator[None]:
        """Evaluate losses and products in here, whatever the caller's grad mode."""
        with torch.inference_mode(False), torch.enable_grad(), self.risk.evaluating():
            yield

    def total(self, V: Tensor) -> Tensor:
        """Return the weighted sum of all products with the rows of ``V``.

        Raises:
            NonFiniteError: the result has nan or inf.
        """
        result = self.within_memory(lambda: engines.product(self.place, V, functools.partial(self._sum, V)))
        self.made["products"] += len(V)
        if self.watch is not None:
            self.watch.rows += len(V)
        return result

    def within_memory(self, make: Callable[[], Made]) -> Made:
        """Return ``make()``; where memory runs out in it, again in smaller pieces, as long as these can be had."""
        lost: BaseException | None = None
        try:
            while True:
                try:
                    return make()
                except MemoryBudgetError as error:
                    # Where smaller pieces do not fit what is left, that memory ran out is what there is to say.
                    if lost is None:
                        raise
                    raise lost from error
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    # Ranks that went on by themselves would wait for each other.
                    if not out_of_memory(error) or self.shrink is None or current() is not None or not self.shrink():
                        raise
                    lost = error
        finally:
            # The error has this frame, and all that called it: a pass that is given up must end now, not some time.
            del lost

    def again(self, index: int) -> Product:
        """Return the product of one batch, made anew and not kept."""
        with self.context():
            batch = next(itertools.islice(self.risk.terms(), index, None))
            product = self._make(batch, self.risk.theta)
        self._largest = product.nbytes
        return product

    def _sum(self, V: Tensor) -> Tensor:
        shared, began = current(self.risk), device_clock(V.device)
        with self.context():
            if self.watch is not None:
                self.watch.asked()
            total, spent, worked = torch.zeros_like(V), 0.0, 0.0
            for weight, product in self if shared is None else self._own_of(shared):
                # Asked for anew: the first product of all decides whether somebody watches.
                watched = self.watch is not None
                start, begun = (device_clock(V.device), process_time()) if watched else (0.0, 0.0)
                product.add_to(total, V.detach(), weight)
                spent += device_clock(V.device) - start if watched else 0.0
                worked += process_time() - begun if watched else 0.0
                # The next one is made without it.
                del product
            if self.watch is not None:
                # What other programs take of a core is in the time of a product and not in what a recording is known
                # to take: on a machine that was busy one was made for 180 products of 6 ms.
                self.watch.took(min(spent, worked) if V.device.type == "cpu" else spent, len(V))
            if shared is not None:
                shared.summed(total)
        self.require_finite(total, V)
        # Under a limit they go back by themselves, see ``within``.
        if V.shape[1] * V.element_size() >= _LARGE and V.device.type == "cpu":
            give_back_free()
        self.took("products", device_clock(V.device) - began, len(V))
        return total

    def require_finite(self, result: Tensor, V: Tensor) -> None:
        """Refuse a product with finite vectors ``V`` that is not finite; the culprit is looked for only then.

        Raises:
            NonFiniteError: names the batch, and the module or the parameter where it starts.
        """
        if all_finite(result) or not all_finite(V):
            return
        self.risk.require_finite_loss()
        look = "Look" if self.risk.dtype == torch.float64 else "Measure in float64, or look"
        raise NonFiniteError(
            f"The curvature product is nan or inf at finite parameters{self._first_gradient()}. "
            f"{look} for sqrt(0), log(0) or 0/0 in the model."
        )

    def _first_gradient(self) -> str:
        """Return where the first gradient that is not finite is, in words; nothing where all are finite."""
        with self.context():
            for index, batch in enumerate(self.risk.terms()):
                gradient = fresh_gradient(batch, self.risk.theta)
                for name, tensor in self.risk.layout.split(gradient).items():
                    if not bool(torch.isfinite(tensor).all()):
                        return f": the gradient of batch {index} is so already in parameter {name!r}"
        return "; the gradients of all batches are finite"


# Bytes of a vector from which the blocks that a product has freed go back to the system: the allocator keeps those
# of up to 32 MB, in whose gaps the next tensors may not fit, a quarter of the peak at 10 million parameters.
_LARGE = 1 << 25


def out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation has failed; the allocator of the CPU says so in words only."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


@functools.cache
def _of_gnu(name: str) -> Callable[..., int] | None:
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None  # another C library than GNU's
    return found


def give_back_free() -> None:
    """Give memory of the CPU that is free already back to the system, where the C library can."""
    trim = _of_gnu("malloc_trim")
    if trim is not None:
        trim(0)


# Options of GNU's ``mallopt``: the free memory at its end that a heap keeps, and from what size on blocks are mapped by
# themselves. The two sizes are what that allocator comes to by itself once a block of 32 MB has been freed.
_TRIM, _MMAP = -1, -3
_KEPT_ALWAYS, _MAPPED, _KEPT_IN_A_PASS = 1 << 26, 1 << 25, (1 << 31) - 1
# Whoever sets these variables has chosen for the process.
_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
# Blocks of a limit's share of this, and within these sizes, go back to the system once they are freed: what lies in the
# gaps between larger ones was half of the peak of a measurement. Smaller shares cost page faults.
_BLOCKS_IN_LIMIT, _SMALLEST_BLOCK, _LARGEST_BLOCK = 128, 1 << 17, 1 << 22
_held = 0


@contextmanager
def heap_held(vector_bytes: int, device: torch.device) -> Iterator[None]:
    """Keep what is freed inside for what is allocated next, where vectors are small and memory is not limited.

    A product frees its intermediate values, and the C library gives what ends a heap back to the system from 64 MB on:
    the next product asked for it again page by page, a quarter of its time (ResNet-20, batches of 64 images).

    Args:
        vector_bytes: of a vector as long as the parameters.
        device: where products are made.
    """
    global _held
    option = _of_gnu("mallopt") if device.type == "cpu" and not any(map(os.environ.get, _CHOSEN)) else None
    if option is None or vector_bytes >= _LARGE or room_for_vectors() is not None:
        yield
        return
    if not _held:
        option(_MMAP, _MAPPED)
        option(_TRIM, _KEPT_IN_A_PASS)
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if not _held:
            option(_TRIM, _KEPT_ALWAYS)


@contextmanager
def within(memory: int | None, share: Shares) -> Iterator[None]:
    """Hold what is done in the block to a limit of memory: vectors to their share, free memory to little.

    Args:
        memory: bytes in all; None for no limit.
        share: of it.
    """
    trim, option = _of_gnu("malloc_trim"), _of_gnu("mallopt")
    with vectors_within(share.vectors):
        if memory is None or trim is None or option is None:
            yield
            return
        block = min(max(memory // _BLOCKS_IN_LIMIT, _SMALLEST_BLOCK), _LARGEST_BLOCK)
        trim(0)
        option(_MMAP, block)
        option(_TRIM, block)
        try:
            yield
        finally:
            option(_MMAP, _MAPPED)
            option(_TRIM, _KEPT_ALWAYS)


# Rows of a block handled at once; more gains nothing (2 + 1/k gradients a probe) and costs k times the activations.
MAX_ROWS = 16

# Live bytes of forward over reverse, for the primal and for each probe, in units of what a forward pass saves: forward
# and backward values and a temporary of each.
_WORKING = 4

# Live bytes while a gradient's derivative is recorded, in units of what the graph of the gradient keeps.
_RECORDING = 3

# A budget this many times what a batch takes at most is no reason to measure a second slice.
_AMPLE = 4


class Chunked:
    """Takes an engine and a budget in bytes; is an engine that respects it.

    A block of probes is cut so that its tangents fit beside the rest. A batch whose product alone is larger than the
    budget is cut into slices, whose products are made one after the other at every call. How large a product will be
    is estimated from two small slices of the first batch before any product is made; a batch that cannot be cut is
    known too large in advance where already its forward pass is. An engine that keeps nothing is the last resort: it
    goes down to single examples, and refuses a budget that does not hold the forward pass of one; what cannot be cut
    is taken whole, one probe at a time.
    """

    def __init__(self, engine: Engine, budget: int) -> None:
        self._engine, self._budget = engine, budget
        self.name, self.is_exact = engine.name, engine.is_exact
        self.keeps, self.setup_seconds = engine.keeps, engine.setup_seconds
        # Bytes that a product of n examples takes: fixed + slope * n; None before the first, zeros where unknown.
        self._line: tuple[float, float] | None = None

    def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
        """Return the product.

        Raises:
            MemoryBudgetError: the batch does not fit and cannot be cut.
        """
        expected = self._expected_bytes(loss, theta)
        if not self.keeps:
            return self._unkept(loss, theta, expected)
        if expected > self._budget:
            return self._sliced(loss, theta, expected)
        product = self._engine(loss, theta)
        nbytes = product.nbytes
        if nbytes <= self._budget:
            # The tangents of one probe take no more than what is kept of the primal.
            return limit_rows(product, lambda: self._rows(nbytes, nbytes))
        self._line = (0.0, nbytes / max(getattr(loss, "examples", 1), 1))
        del product
        return self._sliced(loss, theta, nbytes)

    def small(self, part: LossFunction, batch: LossFunction, theta: Tensor) -> Product:
        """Return the product of a part of ``batch``; its size tells that of others where there is memory in plenty."""
        share = getattr(part, "examples", 0) / max(getattr(batch, "examples", 0), 1)
        told = self._line is None and self.keeps and not self.setup_seconds and 0 < share <= 1 / _AMPLE
        if not told or room_for_vectors() is not None:
            # Slices of the batch tell more than those of a part.
            self._expected_bytes(batch, theta)
            return self(part, theta)
        product = self._engine(part, theta)
        if product.nbytes > self._budget:
            return self(part, theta)
        if _AMPLE * product.nbytes <= share * self._budget:
            self._line = (0.0, product.nbytes / part.examples)  # type: ignore[attr-defined]  # asked for above
        return limit_rows(product, lambda: self._rows(product.nbytes, product.nbytes))

    def _unkept(self, loss: LossFunction, theta: Tensor, expected: int) -> Product:
        if expected > self._budget:
            examples = getattr(loss, "examples", 0)
            if expected > examples * self._budget:
                self._require_one(loss, theta)
            try:
                return self._sliced(loss, theta, min(expected, examples * self._budget) or expected)
            except MemoryBudgetError:
                # Nothing smaller is left to try.
                return limit_rows(self._engine(loss, theta), lambda: 1)

        def rows() -> int:
            one = _WORKING * forward_bytes(loss, theta)
            return self._rows(one, one)

        return limit_rows(self._engine(loss, theta), rows)

    def _require_one(self, loss: LossFunction, theta: Tensor) -> None:
        """Refuse a budget below the forward pass of one example, which every product holds several times."""
        try:
            least = forward_bytes(loss.slice(0, 1), theta) if isinstance(loss, BatchLoss) else 0
        except UnsupportedError:
            return
        if least > self._budget:
            raise MemoryBudgetError(
                f"A curvature product of a single example needs at least {words(least)}, more than the budget of "
                f"{words(self._budget)}. Use a larger memory budget."
            )

    def _rows(self, kept: int, a_row: int) -> int:
        return min(MAX_ROWS, max(1, (self._budget - kept) // a_row)) if a_row else MAX_ROWS

    def _expected_bytes(self, loss: LossFunction, theta: Tensor) -> int:
        """Return about how much a product of ``loss`` takes, a lower bound where the batch cannot be cut."""
        examples = getattr(loss, "examples", 0)
        if self._line is None:
            try:
                self._line = self._measured_line(loss, theta, examples)
            except (UnsupportedError, RuntimeError, ValueError, IndexError, TypeError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                # What is wrong with the model is said when the engine meets it.
                self._line = (0.0, 0.0)
        if self._line != (0.0, 0.0):
            return int(self._line[0] + self._line[1] * examples)
        return forward_bytes(loss, theta) if self.keeps else 0

    def _measured_line(self, loss: LossFunction, theta: Tensor, examples: int) -> tuple[float, float]:
        if not isinstance(loss, BatchLoss) or examples < 4:
            return 0.0, 0.0
        one = max(examples // 16, 1)
        small = self._bytes_of(loss.slice(0, one), theta)
        if _AMPLE * small * examples <= one * self._budget:
            # Nothing that does not grow with the examples has to be told apart.
            return 0.0, small / one
        large = self._bytes_of(loss.slice(0, 2 * one), theta)
        slope = max(large - small, 0) / one
        return max(small - slope * one, 0.0), slope

    def _bytes_of(self, part: LossFunction, theta: Tensor) -> int:
        if not self.keeps:
            return 2 * _WORKING * forward_bytes(part, theta)
        if self.setup_seconds:
            # Recording takes seconds, so that it is not tried on slices.
            return _RECORDING * DoubleBackward()(part, theta).nbytes
        return self._engine(part, theta).nbytes

    def _sliced(self, loss: LossFunction, theta: Tensor, nbytes: int) -> Product:
        slices = _cut(loss, math.ceil(nbytes / self._budget), nbytes, self._budget)
        whole = sum(part.weight for part in slices)
        with torch.no_grad():
            together = float(loss(theta))
            apart = sum(part.weight / whole * float(part(theta)) for part in slices)
        if abs(together - apart) > torch.finfo(theta.dtype).eps ** 0.5 * (abs(together) + abs(apart)):
            raise MemoryBudgetError(
                f"A curvature product of one batch keeps {words(nbytes)}, more than the budget of "
                f"{words(self._budget)}, and cannot be cut: its examples see each other. "
                "Use smaller batches, more memory, or engine='forward_over_reverse'."
            )

        def apply(V: Tensor) -> Tensor:
            total = torch.zeros_like(V)
            for part in slices:
                total.add_(limit_rows(self._engine(part, theta), lambda: 1)(V), alpha=part.weight / whole)
            return total

        return Product(apply, batch_bytes(loss))


def forward_bytes(loss: LossFunction, theta: Tensor) -> int:
    """Return the bytes that one forward pass keeps for a gradient, without data and parameters."""
    data = loss.tensors() if isinstance(loss, BatchLoss) else []
    with torch.enable_grad():
        leaf = leaf_at(theta)
        return graph_bytes(loss(leaf), ignore=[theta, leaf, *data])


def limit_rows(product: Product, rows: Callable[[], int]) -> Product:
    """Return the product, with blocks of more than ``rows()`` probes done that many at a time.

    ``rows`` is asked at the first block of several probes.
    """
    known: list[int] = []

    def parts(V: Tensor) -> tuple[Tensor, ...]:
        if V.shape[0] == 1:
            return (V,)
        if not known:
            known.append(rows())
        return V.split(known[0])  # type: ignore[no-untyped-call, no-any-return]  # untyped in torch

    def apply(V: Tensor) -> Tensor:
        pieces = parts(V)
        return product.apply(V) if len(pieces) == 1 else torch.cat([product.apply(part) for part in pieces])

    def forms(V: Tensor) -> Tensor:
        return torch.cat([product.forms(part) for part in parts(V)])  # type: ignore[misc]  # asked for below

    def add(V: Tensor, total: Tensor, weight: float) -> None:
        pieces = parts(V)
        for part, rows in zip(pieces, total.split([len(piece) for piece in pieces]), strict=True):  # type: ignore[no-untyped-call]  # untyped in torch
            product.add(part, rows, weight)  # type: ignore[misc]  # asked for below

    return replace(
        product,
        apply=apply,
        forms=None if product.forms is None else forms,
        add=None if product.add is None else add,
    )


def _cut(loss: LossFunction, pieces: int, nbytes: int, budget: int) -> list[BatchLoss]:
    examples = getattr(loss, "examples", 0)
    needs = f"A curvature product of one batch keeps {words(nbytes)}, more than the budget of {words(budget)}"
    advice = "Use smaller batches, a larger memory budget, or engine='forward_over_reverse'."
    if not isinstance(loss, BatchLoss) or examples < pieces:
        raise MemoryBudgetError(f"{needs}. {advice}")
    edges = [round(examples * number / pieces) for number in range(pieces + 1)]
    try:
        return [loss.slice(start, stop) for start, stop in itertools.pairwise(edges)]
    except UnsupportedError as error:
        raise MemoryBudgetError(f"{needs}, and it cannot be cut: {error} {advice}") from error

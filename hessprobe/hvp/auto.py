"""Choosing an engine by trying: time the candidates on the first batch, keep the fastest that works and fits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hessprobe.errors import HessprobeError, UnsupportedError
from hessprobe.hvp.engine import Engine, LossFunction, Product

# Products over which the cost of building one is spread when engines are compared: a Lanczos run and a few probes.
EXPECTED_PRODUCTS = 60

_ROUNDS = 3
_BLOCK = 8

# What an engine meets when a model lacks a derivative rule; anything else is a bug that must surface.
_UNSUPPORTED = (UnsupportedError, RuntimeError, TypeError, IndexError, AssertionError)


@dataclass(frozen=True)
class Choice:
    """What ``choose`` decided, and why.

    Attributes:
        engine: the engine to use.
        seconds: time of a product with one vector on the first batch, by engine name.
        reasons: why the other engines were not taken, by name.
        product: the chosen engine's product of the first batch, ready for use.
    """

    engine: Engine
    seconds: Mapping[str, float]
    reasons: Mapping[str, str]
    product: Product = field(repr=False)

    def __str__(self) -> str:
        others = "; ".join(f"{name}: {reason}" for name, reason in self.reasons.items())
        return self.engine.name + (f" ({others})" if others else "")


def choose(
    engines: Mapping[str, Callable[[], Engine]],
    loss: LossFunction,
    theta: Tensor,
    budget: int,
    n_terms: int = 1,
    expected_products: int = EXPECTED_PRODUCTS,
) -> Choice:
    """Return the engine with the least time for ``expected_products`` products over ``n_terms`` batches.

    The first ``EXPECTED_PRODUCTS`` are taken to come one by one (Lanczos), the others in blocks (probes).

    Exact engines are compared first; an inexact one is taken only where no exact one works. An engine whose kept
    bytes exceed ``budget`` is charged the time of building its product at every use.

    Raises:
        UnsupportedError: no engine works; the message carries every reason.
    """
    times: dict[str, float] = {}
    costs: dict[str, float] = {}
    reasons: dict[str, str] = {}
    built: dict[str, tuple[Engine, Product]] = {}
    for name, factory in engines.items():
        engine = factory()
        if not engine.is_exact and built:
            reasons[name] = "not exact"
            continue
        try:
            times[name], costs[name], product = _trial(engine, loss, theta, budget, n_terms, expected_products)
            built[name] = engine, product
        except _UNSUPPORTED as error:
            if isinstance(error, torch.OutOfMemoryError) or _is_domain(error):
                raise
            reasons[name] = "unsupported: " + (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    if not built:
        raise UnsupportedError("No engine can differentiate this model twice. " + "; ".join(reasons.values()))
    best = min(built, key=costs.__getitem__)
    for name in built:
        if name != best:
            reasons[name] = f"slower: {costs[name] / costs[best]:.2g} x the time of {best}"
    engine, product = built[best]
    return Choice(engine, times, reasons, product)


def _trial(
    engine: Engine, loss: LossFunction, theta: Tensor, budget: int, n_terms: int, expected_products: int
) -> tuple[float, float, Product]:
    """Return the seconds of one product, the seconds of the whole job per batch, and the product."""
    block = torch.ones(_BLOCK, theta.numel(), dtype=theta.dtype, device=theta.device)
    product = engine(loss, theta)
    # Built twice: what an engine prepares once for all batches (a recording) is paid for by now.
    build = _time(lambda: engine(loss, theta), theta.device)
    if product.nbytes * n_terms > budget:
        build *= expected_products
    product(block[:1])
    single = statistics.median(_time(lambda: product(block[:1]), theta.device) for _ in range(_ROUNDS))
    together = statistics.median(_time(lambda: product(block), theta.device) for _ in range(_ROUNDS)) / _BLOCK
    alone = min(expected_products, EXPECTED_PRODUCTS)
    return single, build + alone * single + (expected_products - alone) * together, product


def _time(work: Callable[[], object], device: torch.device) -> float:
    start = _clock(device)
    work()
    return _clock(device) - start


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _is_domain(error: Exception) -> bool:
    """True for hessprobe's own complaints about the data or the loss, which no engine can mend."""
    return isinstance(error, HessprobeError) and not isinstance(error, UnsupportedError)

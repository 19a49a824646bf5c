"""Central differences of the gradient, for models that have no second derivative.

    H v ~ ||v|| (g(theta + h u) - g(theta - h u)) / (2 h),    u = v / ||v||.

**The step.** A difference is off by rounding, eta / (2 h), and by truncation, h^2 ||g'''[u, u, u]|| / 6. Both differ by
orders of magnitude between models and between directions, so that no step is right for all of them, and both are
measured: eta, once a batch, is what is left of a second difference of gradients near theta. With

    o = ||g(theta + h u) - g(theta - h u)||,    e = ||g(theta + h u) + g(theta - h u) - 2 g(theta)||,

the product is off by n + t relative to its length, n = eta / o and t = 2 (e / o)^2: where each derivative along u is c
times the one before it, e / o is c h / 2. The sum is least at f h, f = (n / 2 t)^(1/3); a step that is far from there
is replaced, until one is near. In float32 products are off by 1e-4 or so, in float64 by 1e-9; where a network bends
within some roundings of its weights (large weights), by more.

**Kinks.** The gradient of a network with ReLUs jumps, and a difference across a jump takes it for curvature with every
step. A piecewise linear function of one tensor (ReLU, leaky ReLU, hard tanh, clamp, absolute value) and max pooling are
held to the piece that they are on at theta, which is what a second derivative sees. Functions that are not known here
(PReLU, hard swish, sorting, a function of one's own) keep their kinks: ``Hessian.product_error`` tells what can be seen
of them by other steps.

References:
    Gill, Murray, Saunders, Wright (1983), "Computing forward-difference intervals for numerical optimization".
    Moré, Wild (2012), "Estimating derivatives of noisy simulations".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hessprobe.hvp.engines import LossFunction, Product, batch_bytes, by_rows, fresh_gradient
from hessprobe.vectors import distance, row_dots

# Slope and start of a line, None for a start of 0.
_Line = tuple[Tensor, Tensor | None]

# The first step, in units of eps^(1/3) (1 + ||theta||): random directions mostly need no other.
_FIRST = 0.25
# Steps that are tried for one vector, at most; how much longer or shorter each may be, and the longest in all.
_TRIED, _FURTHER, _NEARER, _LONGEST = 6, 8.0, 1 / 64, 1024.0
# A step this far from the best one, shorter or longer, is kept: the error is flat about its least.
_SHORT, _LONG = 2.5, 0.4
# A step is not made longer for the sake of rounding below this many eps^(2/3), what central differences are known for.
_ENOUGH = 10.0
# Rounding is measured at the first step over these, until e does not fall by so much from one to the next.
_NEAR, _FALLEN = (64, 1024, 16384), 20
# It makes up sqrt(3) eta of e, and what is bent is seen apart from it where e is larger than three of eta.
_ROUNDED, _SEEN = math.sqrt(3), 3
# A product that is off by more than this is not near its limit.
_BENT = 0.02


class FiniteDifference:
    """Engine ``finite_difference``; see the module.

    A product costs two gradients for every step that is tried, one or two of them mostly; a batch two more before its
    first product.

    Args:
        factor: of the step that is found, > 0; other than 1 it costs two gradients more.
    """

    name = "finite_difference"
    is_exact = False
    keeps = False
    setup_seconds = 0.0

    def __init__(self, factor: float = 1.0) -> None:
        self._factor = factor

    def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
        """Return the product, after two gradients."""
        differences = _Differences(loss, theta)

        def apply_one(vector: Tensor) -> Tensor:
            length = math.sqrt(row_dots(vector[None], vector[None]))
            if length == 0:
                return torch.zeros_like(vector)
            slope, step = differences.along(vector, length)
            if self._factor != 1:
                step *= self._factor
                slope = differences.at(vector, step / length)[0]
            return slope.mul_(length / (2 * step))

        return Product(by_rows(apply_one), batch_bytes(loss) + differences.nbytes)


class _Differences:
    """Differences of the gradient of one loss at one point.

    Attributes:
        nbytes: kept beside theta and the batch.
    """

    def __init__(self, loss: LossFunction, theta: Tensor) -> None:
        self._loss, self._theta, self._pieces = loss, theta, _Pieces()
        self._here = self._gradient(theta)
        self.nbytes = self._here.nbytes + self._pieces.nbytes
        self._eps = torch.finfo(theta.dtype).eps
        size = 1 + math.sqrt(row_dots(theta[None], theta[None]))
        self._first = _FIRST * self._eps ** (1 / 3) * size
        signs = torch.randint(2, theta.shape, generator=torch.Generator().manual_seed(0), dtype=torch.int8)
        anywhere = signs.to(device=theta.device, dtype=theta.dtype).mul_(2).sub_(1)
        near = self._first / math.sqrt(theta.numel())
        # What is bent falls with the square of the distance, and rounding does not.
        left = [self.at(anywhere, near / away)[2] for away in _NEAR[:2]]
        for away in _NEAR[2:]:
            if not left[-1] < left[-2] / _FALLEN:
                break
            left.append(self.at(anywhere, near / away)[2])
        self._noise = (left[-1] if left[-1] < left[-2] / _FALLEN else left[-2]) / _ROUNDED

    def along(self, vector: Tensor, length: float) -> tuple[Tensor, float]:
        """Return the difference for a vector of this length, and the step h of it that was found."""
        tried: list[tuple[float, float]] = []
        step, further = self._first, 1.0
        while True:
            slope, odd, even = self.at(vector, step / length)
            error, turn = self._judged(odd, even)
            tried.append((error, step))
            longest = _LONGEST * self._first
            # What was made longer and is to be shorter again has been nearer before.
            back = further > 1 > turn
            if turn == 1 or back or len(tried) == _TRIED or (turn > 1 and step >= longest):
                break
            further, step = turn, min(step * turn, longest)
        best = min(tried)[1]
        return (slope if best == step else self.at(vector, best / length)[0]), best

    def at(self, vector: Tensor, scale: float) -> tuple[Tensor, float, float]:
        """Return g(theta + s v) - g(theta - s v), its length, and that of what the sum of both differs from 2 g."""
        ahead = self._gradient(self._theta.add(vector, alpha=scale)).sub_(self._here)
        behind = self._gradient(self._theta.add(vector, alpha=-scale)).sub_(self._here)
        odd = distance(ahead[None], behind[None])
        behind.neg_()
        even = distance(ahead[None], behind[None])
        return ahead.add_(behind), odd, even

    def _judged(self, odd: float, even: float) -> tuple[float, float]:
        """Return how far a difference is off, relative to it, and the factor to a better step: 1 where it will do."""
        if not math.isfinite(odd + even):
            return math.inf, _NEARER
        if odd == 0:
            # Rounding may have hidden it; a vector that the gradient does not depend on is 0 with every step.
            return math.inf, _FURTHER if self._noise else 1.0
        # Rounding alone makes up sqrt(3) eta of e: along this vector there is no more of it than that.
        noise = max(min(self._noise, even / _ROUNDED) / odd, self._eps)
        bent = 2 * max((even / odd) ** 2 - (_SEEN * noise) ** 2, (noise / 2) ** 2)
        best = (noise / (2 * bent)) ** (1 / 3)
        if best >= 1 and noise < _ENOUGH * self._eps ** (2 / 3):
            best = 1.0
        elif best < 1 and bent > _BENT:
            # So far out the model of the error does not hold.
            best = min(best, _LONG / 2)
        return noise + bent, 1.0 if _LONG < best < _SHORT else min(max(best, _NEARER), _FURTHER)

    def _gradient(self, theta: Tensor) -> Tensor:
        with self._pieces.held():
            return fresh_gradient(self._loss, theta)


# By the name under which torch calls them; those that write into their argument end in an underline, or are told so.
_LINEAR_IN_PIECES = frozenset(
    name + ending
    for name in ("relu", "relu6", "leaky_relu", "hardtanh", "threshold", "abs", "clamp", "clamp_min", "clamp_max")
    for ending in ("", "_")
) | {"_threshold"}
_POOLS = {getattr(functional, f"max_pool{n}d"): n for n in (1, 2, 3)}
_POOLS |= {getattr(functional, f"adaptive_max_pool{n}d"): n for n in (1, 2, 3)}


class _Pieces(TorchFunctionMode):
    """Which piece every piecewise linear function of a pass was on the first time; later passes stay on it.

    Attributes:
        nbytes: of what is remembered.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[_Line] = []
        self._next, self._first = 0, True
        self.nbytes = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Record inside the first block, and hold to that inside the later ones."""
        self._next = 0
        with self:
            yield
        self._first = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, or what it is on its piece."""
        kwargs = kwargs or {}
        if func in _POOLS:
            return self._pooled(func, args, kwargs)
        name = getattr(func, "__name__", "")
        if name not in _LINEAR_IN_PIECES or not _of_one_tensor(args, kwargs):
            return func(*args, **kwargs)
        x = args[0]
        inplace = name.endswith("_") or kwargs.get("inplace", False) or args[-1] is True
        plain = {key: value for key, value in kwargs.items() if key != "inplace"}
        rest = tuple(value for value in args[1:] if value is not True)
        slope, start = self._piece(lambda: _line_of(lambda at: func(at, *rest, **plain), x))
        if slope is None:
            return func(*args, **kwargs)
        y = x * slope if start is None else x * slope + start
        return x.copy_(y) if inplace else y

    def _pooled(self, func: Any, args: Any, kwargs: Any) -> Any:
        x, dims = args[0], _POOLS[func]

        def largest() -> tuple[Tensor, None]:
            return func(*args, **{**kwargs, "return_indices": True})[1], None

        where, _ = self._piece(largest)
        if where is None or kwargs.get("return_indices"):
            return func(*args, **kwargs)
        return x.flatten(-dims).gather(-1, where.flatten(-dims)).view(where.shape)

    def _piece(self, make: Callable[[], _Line]) -> _Line | tuple[None, None]:
        """Return what was remembered at this place of the pass, None where passes differ."""
        if self._first:
            self._seen.append(make())
            self.nbytes += sum(each.numel() * each.element_size() for each in self._seen[-1] if each is not None)
        self._next += 1
        if self._next > len(self._seen):
            return None, None
        return self._seen[self._next - 1]


def _of_one_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a function is called with a tensor of floats, and numbers beside it."""
    first = bool(args) and isinstance(args[0], Tensor) and args[0].is_floating_point() and not args[0].is_nested
    return first and not any(isinstance(value, Tensor) for value in (*args[1:], *kwargs.values()))


def _line_of(function: Callable[[Tensor], Tensor], x: Tensor) -> _Line:
    """Return slope and start of a piecewise linear function of each entry at ``x``."""
    with torch.enable_grad():
        at = x.detach().clone().requires_grad_()
        # In-place functions take no leaf.
        value = function(at * 1)
        (slope,) = torch.autograd.grad(value.sum(), at)
    start = value.detach() - slope * x.detach()
    return slope, start if bool(start.any()) else None

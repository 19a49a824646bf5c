"""Whether a product is the second derivative of the loss: symmetric, and of a gradient that is the loss's own.

What products by finite differences are off by, measured on directions of the kinds that estimators use.

A difference D(v) of gradients along v is not linear in v: its truncation error is a third derivative along v three
times, so that D - H is larger along a coordinate or a leading eigenvector, where the loss bends most, than along a
random direction of the same length. An error seen with random signs alone says too little about an exact trace, made
of coordinates, or about an eigenvalue.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hessprobe.errors import UnsupportedError
from hessprobe.hvp.engines import LossFunction, Product, device_clock, fresh_gradient, leaf_at
from hessprobe.vectors import ProbeStream, all_finite, distance, row_dots

# Asymmetry allowed, relative to the length of a product.
_ASYMMETRY = {torch.float64: 1e-6, torch.float32: 3e-2}
_COARSE = 0.5
# Difference allowed between the products of two engines, likewise; one that is refused costs time, never correctness.
_SAME = {torch.float64: 1e-9, torch.float32: 1e-3}
_SAME_COARSE = 0.1

# Slope that the gradient may miss, relative to its own slope in a random direction; steps relative to the parameters.
_MISSED = {torch.float64: 1e-3}
_STEPS = {torch.float64: 1e-4}

# Ratio of the two steps: at the finer one the error of a difference is far smaller, but not always where kinks are.
_FINER = 16
# Parts of the wide step that must tell the same as the finer one before a loss is refused.
_PARTS = (1, 4, 8)
# Distance of the two points aside, in wide steps.
_ASIDE = 4

_CAUSES = (
    "Something in forward or the loss cuts derivatives (.detach(), torch.no_grad, .data, .item(), a straight-through "
    "estimator or a custom backward)"
)


class WrongProductError(UnsupportedError):
    """What an engine makes of this loss is not its Hessian, although nothing failed."""


def require_symmetric(product: Product, theta: Tensor) -> None:
    """Compare u . (A v) with v . (A u) for two random directions of independent signs.

    For a matrix with antisymmetric part S the gap is about 2 ||S||_F whatever d; the rounding of A u and A v, with
    errors of relative size e, contributes about e ||A||_F.

    Args:
        product: of one batch.
        theta: (d,) where it was taken.

    Raises:
        WrongProductError: they differ by more than the rounding of the dtype explains.
    """
    forms, square = [], 0.0
    for index in range(2):
        # One at a time: a block would need more memory than single products do.
        bent = product(_row(theta, index)[None])
        if not all_finite(bent):
            return
        square += float(row_dots(bent, bent))
        forms.append(float(row_dots(bent, _row(theta, 1 - index)[None])))
    (other, one), scale = forms, math.sqrt(square)
    if abs(one - other) <= _ASYMMETRY.get(theta.dtype, _COARSE) * scale:
        return
    raise WrongProductError(
        f"The second derivative of the loss is not symmetric on the first batch: u.(Hv) = {one:.6g} and "
        f"v.(Hu) = {other:.6g}. {_CAUSES}, or an operation's own second derivative is wrong (torch's weight_norm), so "
        f"that this is not its Hessian. Remove it, or measure with engine='finite_difference'{_float64(theta)}."
    )


def agree(product: Product, known: Product, theta: Tensor) -> bool:
    """Return whether a product does to a vector of independent signs what one that is known to be right does.

    Two engines differ by rounding alone. Costs a product of each.

    Args:
        product: of one batch, by another engine.
        known: of the same batch.
        theta: (d,) where.
    """
    v = _row(theta, 0)[None]
    signs.cache_clear()
    right, own = known(v), product(v)
    return distance(own, right) <= _SAME.get(theta.dtype, _SAME_COARSE) * math.sqrt(row_dots(right, right))


class Look(NamedTuple):
    """What one evaluation of a loss and its gradient tells.

    Attributes:
        value: of the loss.
        custom: whether it runs a user's ``torch.autograd.Function``.
        seconds: what both took.
    """

    value: float
    custom: bool
    seconds: float


def look_at(loss: LossFunction, theta: Tensor) -> tuple[Tensor, Look]:
    """Return the gradient of ``loss`` at ``theta`` (d,), as ``fresh_gradient`` makes it, and what else is seen."""
    start = device_clock(theta.device)
    with torch.enable_grad():
        leaf = leaf_at(theta)
        value = loss(leaf)
        gradient = torch.zeros_like(leaf)
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, leaf, materialize_grads=True)
    seconds = device_clock(theta.device) - start
    return gradient, Look(float(value.detach()), runs_custom_functions(value), seconds)


def require_own_gradient(
    loss: LossFunction, theta: Tensor, gradient: Tensor | None = None, level: float | None = None
) -> None:
    """Compare the slope of the loss along two random directions with what its gradient says.

    Reverse mode takes a value that was cut off for a constant, in the second derivative as in the first: the product
    is then symmetric, the Hessian of another function. The slopes (L(theta + s v) - L(theta - s v)) / (2 s), with
    v_i = +-theta_i, give it away: what they find beyond g . v is the same at a step and at a sixteenth of it, where the
    error of a difference is far smaller. Kinks of a ReLU may agree at two steps by accident, so that what looks like a
    cut must be the same at the steps between them; one close to the point agrees at all of them, so that it must also
    be found at two points aside. Costs a gradient and 5 evaluations of one batch; before a refusal 2 and 22 more.

    Args:
        loss: of one batch.
        theta: (d,) where.
        gradient: of the loss there, where it is known already.
        level: the loss there, likewise.

    Raises:
        UnsupportedError: the gradient misses a part of the slope, well above rounding.
    """
    if theta.dtype in (torch.float16, torch.bfloat16):
        return  # no step is both above rounding and small
    step = _STEPS.get(theta.dtype, 1e-2)
    found = _cut(loss, theta, theta, step, _PARTS, gradient, level)
    if found is None:
        return
    for index in range(2):
        if _cut(loss, theta.add(_row(theta, index, theta), alpha=_ASIDE * step), theta, step) is None:
            return
    told = " and ".join(f"{slope:.6g} (the gradient says {g:.6g})" for slope, g in found)
    raise UnsupportedError(
        f"The gradient of the loss is not its slope on the first batch: along two random directions the loss changes "
        f"by {told}. {_CAUSES}, so that no product is its Hessian. Remove it."
    )


def runs_custom_functions(value: Tensor) -> bool:
    """Return whether the graph of ``value`` holds a user's ``torch.autograd.Function``.

    Its backward is code of its own: one that hands out a gradient made in forward, or detaches a factor, gives the
    right gradient and the wrong second derivative, which no check of the gradient or of symmetry can see.
    """
    seen: set[Any] = set()
    left = [value.grad_fn] if value.grad_fn is not None else []
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        left += [following for following, _ in node.next_functions if following is not None]
    return False


def require_own_product(product: Product, loss: LossFunction, theta: Tensor, blocks: Mapping[str, slice]) -> None:
    """Compare H v, of a loss that runs a custom Function, with differences of gradients along v, tensor by tensor.

    (g(theta + s v) - g(theta - s v)) / (2 s) at two steps s; v moves every entry by the same order as its tensor's.
    What H v misses must exceed what the two steps differ by, and rounding, at the point and at one aside, as a kink may
    lie close by. Costs a product and 5 gradients of one batch, before a refusal as many again; a forward pass where no
    custom Function runs.

    Args:
        product: of one batch.
        loss: of that batch.
        theta: (d,) where.
        blocks: of the parameters.

    Raises:
        WrongProductError: they differ; names the tensor.
    """
    if theta.dtype in (torch.float16, torch.bfloat16):
        return
    with torch.enable_grad():
        if not runs_custom_functions(loss(theta.detach().clone().requires_grad_())):
            return
    v = _direction(theta, blocks)
    wrong = _wrong_blocks(product, loss, theta, v, blocks)
    if not wrong:
        return
    step = _STEPS.get(theta.dtype, 1e-2)
    aside = theta.add(_row(theta, 1, v.abs()), alpha=_ASIDE * step)
    if not wrong & _wrong_blocks(None, loss, aside, v, blocks):
        return
    raise WrongProductError(
        f"The second derivative of the loss is not the slope of its gradient in {', '.join(sorted(wrong)[:3])}: a "
        "custom torch.autograd.Function has a backward that does not depend on its inputs as its gradient does (a "
        "gradient saved in forward, a detached factor). Write its backward with differentiable operations on saved "
        "tensors, or measure with engine='finite_difference'."
    )


def _wrong_blocks(
    product: Product | None, loss: LossFunction, theta: Tensor, v: Tensor, blocks: Mapping[str, slice]
) -> set[str]:
    if product is None:
        with torch.enable_grad():
            leaf = theta.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
            (bent,) = torch.autograd.grad(slope, leaf, v, materialize_grads=True)
    else:
        bent = product(v[None])[0]
    step = _STEPS.get(theta.dtype, 1e-2)
    wide, narrow = (_difference(loss, theta, v, size) for size in (step, step / _FINER**0.5))
    size = fresh_gradient(loss, theta).double()
    eps, tolerance = torch.finfo(theta.dtype).eps, _MISSED.get(theta.dtype, 0.05)
    wrong = set()
    for name, where in blocks.items():
        missed, told = (narrow[where] - bent[where].double()).norm(), narrow[where].norm()
        noise = 50 * eps * float(size[where].norm()) / step
        if float(missed) > tolerance * float(told) + 3 * float((wide[where] - narrow[where]).norm()) + noise:
            wrong.add(name)
    return wrong


def _difference(loss: LossFunction, theta: Tensor, v: Tensor, step: float) -> Tensor:
    ahead, behind = (fresh_gradient(loss, theta.add(v, alpha=sign * step)).double() for sign in (1, -1))
    return (ahead - behind) / (2 * step)


def _direction(theta: Tensor, blocks: Mapping[str, slice]) -> Tensor:
    v = _row(theta, 0)
    for where in blocks.values():
        v[where] *= theta[where].abs() + theta[where].double().square().mean().sqrt().to(theta) + 1e-3
    return v


def _float64(theta: Tensor) -> str:
    return "" if theta.dtype == torch.float64 else ", or in float64 if only rounding is to blame"


def _cut(
    loss: LossFunction,
    theta: Tensor,
    lengths: Tensor,
    step: float,
    parts: tuple[int, ...] = (),
    known: Tensor | None = None,
    value: float | None = None,
) -> list[tuple[float, float]] | None:
    """Return (slope, what the gradient says) along signs times ``lengths`` where these differ, else None.

    ``parts`` of the step must tell the same as the finer one.
    """
    gradient = fresh_gradient(loss, theta) if known is None else known
    rows = (_row(theta, index, lengths)[None] for index in range(2))
    told = torch.cat([row_dots(row, gradient[None]) for row in rows]).cpu()
    with torch.no_grad():
        level = abs(float(loss(theta)) if value is None else value)
    narrow = _missed(loss, theta, lengths, told, step / _FINER)
    size = float(narrow.norm())
    along = theta * gradient
    scale = math.sqrt(2 * float(row_dots(along[None], along[None])))
    del along
    noise = 20 * torch.finfo(theta.dtype).eps * level * _FINER / step
    if not size > max(_MISSED.get(theta.dtype, 0.01) * scale, noise):
        return None
    if any(float((_missed(loss, theta, lengths, told, step / part) - narrow).norm()) >= 0.3 * size for part in parts):
        return None
    return [(miss + g, g) for miss, g in zip(narrow.tolist(), told.tolist(), strict=True)]


def _missed(loss: LossFunction, theta: Tensor, lengths: Tensor, told: Tensor, step: float) -> Tensor:
    """Return what the slopes along signs times ``lengths`` have beyond what the gradient told at a step, fp64 (2,)."""
    with torch.no_grad():
        slopes = [_slope(loss, theta, _row(theta, index, lengths), step) for index in range(2)]
        return torch.tensor(slopes, dtype=torch.float64) - told


def _slope(loss: LossFunction, theta: Tensor, vector: Tensor, step: float) -> float:
    ahead, behind = (float(loss(theta.add(vector, alpha=sign * step))) for sign in (1, -1))
    return (ahead - behind) / (2 * step)


def _row(theta: Tensor, index: int, lengths: Tensor | None = None) -> Tensor:
    """Return the first or the second direction of independent signs (d,), times ``lengths``.

    Made anew when it is asked for: several vectors held at once would be the largest memory of a measurement.
    """
    row = signs(theta.numel())[index].to(device=theta.device, dtype=theta.dtype).mul_(2).sub_(1)
    return row if lengths is None else row.mul_(lengths)


# A dozen rows are asked for in a row; drawn each time, they took as long as a gradient of an MLP.
@functools.lru_cache(maxsize=1)
def signs(dim: int) -> Tensor:
    """Return what the two directions are made from, (2, dim) bytes of 0 and 1: half of a vector until it is cleared."""
    return torch.randint(2, (2, dim), generator=torch.Generator().manual_seed(20), dtype=torch.int8)


# Directions of random signs, and of single coordinates.
_SIGNS, _COORDINATES = 4, 8
# Products that turn a random direction towards the leading eigenvector.
_TURNS = 3
# Standard errors that a mean over few directions is given.
_WIDE = 3.0
# Coordinates that are compared at a time.
_BLOCK = 64

# Vectors that are compared in all, where not every coordinate is.
COMPARED = _SIGNS + _COORDINATES + 1


class ProductError(NamedTuple):
    """What the products of an operator are off by: E the difference to the Hessian. Estimates, not bounds.

    Attributes:
        norm: of E in the Frobenius sense, sqrt(d * mean ||E(u)||^2) over unit vectors u of the kind where it is
            largest, with three standard errors; no less than ||E(x)|| at the leading direction x.
        trace: |sum_i e_i^T E(e_i)| from coordinates e_i and |d * mean u^T E(u)| from random signs, the larger, each
            with three standard errors.
        relative: ``norm`` over the Frobenius norm of the operator.
    """

    norm: float
    trace: float
    relative: float


def compare(
    own: Callable[[Tensor], Tensor],
    reference: Callable[[Tensor], Tensor],
    like: Tensor,
    seed: int = 0,
    *,
    every_coordinate: bool = False,
) -> ProductError:
    """Return by how much products differ from a reference.

    Args:
        own: maps V (k, d) to the products by differences.
        reference: the same by an exact engine, or by a smaller step.
        like: (d,) of their dtype and device.
        seed: of the directions, >= 0.
        every_coordinate: compare all d of them, as an answer that is made of all needs: a kink lies across a few, and
            a part of them may cross none.
    """
    d = like.numel()
    signs = ProbeStream(d, seed, "rademacher", like.dtype, like.device, "pilot").block(0, _SIGNS)
    chosen = torch.randperm(d, generator=torch.Generator().manual_seed(seed))
    chosen = (chosen if every_coordinate else chosen[:_COORDINATES]).to(like.device)
    squares, forms, size = _misses(own, reference, signs)
    parts = [_misses(own, reference, _units(like, part)) for part in torch.split(chosen, _BLOCK)]
    unit_squares, unit_forms = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    leading = _misses(own, reference, _leading(own, signs[:1]))
    # The mean over all coordinates has no error.
    wide = _WIDE if len(chosen) < d else 0.0
    norm = math.sqrt(max(_upper(squares, _WIDE), _upper(unit_squares, wide), float(leading[0]) / d))
    # But rounding, which is another the next time.
    trace = max(abs(float(forms.mean())) + _WIDE * math.sqrt(2 / _SIGNS) * norm, _upper(unit_forms, _WIDE))
    length = math.sqrt(float(size.mean()))
    return ProductError(norm, trace, norm / length if length > 0 else 0.0)


def _misses(
    own: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor], V: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ||E(v)||^2, v^T E(v) and the squared length of the product, a row; all rows have length sqrt(d).

    Squared lengths are then those of the Frobenius norm in the mean.
    """
    made = own(V)
    missed = made - reference(V)
    return row_dots(missed, missed), row_dots(V, missed), row_dots(made, made)


def _units(like: Tensor, chosen: Tensor) -> Tensor:
    rows = torch.zeros(len(chosen), like.numel(), dtype=like.dtype, device=like.device)
    rows[torch.arange(len(chosen), device=like.device), chosen] = math.sqrt(like.numel())
    return rows


def _leading(own: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    leading = start
    for _ in range(_TURNS):
        turned = own(leading)
        length = float(turned.double().norm())
        if not 0 < length < math.inf:
            break
        leading = turned * (math.sqrt(start.numel()) / length)
    return leading


def _upper(values: Tensor, times: float) -> float:
    """Return the size of the mean of ``values`` with ``times`` standard errors."""
    spread = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return abs(float(values.mean())) + times * spread

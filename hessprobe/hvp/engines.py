"""Central differences of the gradient, for models that have no second derivative.

    H v ~ (g(theta + e v) - g(theta - e v)) / (2 e),    e = eps^(1/3) * (1 + ||theta||) / ||v||,

eps the machine epsilon of the parameters' dtype. The step is divided by ||v||, so that the relative error does not
depend on the length of v (a Rademacher probe has length sqrt(d)). The error is O(eps^(2/3)) relative to the scale
of the third derivative, about 2e-5 in float32 and 4e-11 in float64 at best: products are not exact, and estimators
that polish to rounding level are told so by ``is_exact``. Where the gradient has kinks (ReLU) a difference sees them as
curvature whatever the step: ``Hessian.product_error`` measures by how much.

Reverse over reverse: the derivative of <gradient, v>, with the graph of the gradient kept.

H v = d/dtheta <g(theta), v>. The graph of g is built once; each product is one more backward pass through it, about
2 gradients of arithmetic (3 when the graph is new), with memory independent of the number of probes.

References:
    Pearlmutter (1994), "Fast exact multiplication by the Hessian".

Forward over reverse: the directional derivative of the gradient, g(theta + t v) at t = 0.

Nothing but the batch is kept between products: memory is that of one gradient and its tangents; about 3 gradients of
arithmetic for one probe, 2 + 1/k for each of a block of k (one shared primal under vmap).

References:
    Pearlmutter (1994), "Fast exact multiplication by the Hessian".
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from hessprobe.errors import UnsupportedError
from hessprobe.hvp.engine import (
    LossFunction,
    Product,
    batch_bytes,
    by_rows,
    fresh_gradient,
    graph_bytes,
    graph_nodes,
    pulled_back,
)


class DoubleBackward:
    """Engine ``double_backward``; see the module."""

    name = "double_backward"
    is_exact = True
    keeps = True
    setup_seconds = 0.0

    def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
        """Return the product, its graph built here."""
        with torch.enable_grad():
            leaf = theta.detach().clone().requires_grad_()
            value = loss(leaf)
            gradient = _gradient(value, leaf)

        def apply_one(vector: Tensor) -> Tensor:
            if not gradient.requires_grad:
                return torch.zeros_like(vector)
            return pulled_back(gradient, leaf, vector)

        return Product(by_rows(apply_one), graph_bytes(gradient, ignore=[theta]))

    def nodes(self, loss: LossFunction, theta: Tensor) -> int:
        """Return the number of operations in the graph of the gradient, 0 where that is constant."""
        with torch.enable_grad():
            leaf = theta.detach().clone().requires_grad_()
            return len(graph_nodes(_gradient(loss(leaf), leaf)))


def _gradient(value: Tensor, leaf: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True, materialize_grads=True)
    require_differentiable(gradient)
    return gradient


def require_differentiable(gradient: Tensor) -> None:
    """Refuse a gradient whose graph ends in a node that cannot be differentiated.

    Such a node is cut off from the parameters, so that autograd would take the second derivative to be zero there
    without a word.

    Raises:
        UnsupportedError: part of the model can be differentiated once only.
    """
    waiting, seen = [gradient.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().rpartition("::")[2] in ("Error", "NotImplemented", "DelayedError"):
            raise UnsupportedError("A part of the model can be differentiated only once.")
        waiting += [source for source, _ in node.next_functions]


class ForwardOverReverse:
    """Engine ``forward_over_reverse``; see the module."""

    name = "forward_over_reverse"
    is_exact = True
    keeps = False
    setup_seconds = 0.0

    def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
        """Return the product; the gradient is evaluated anew at each call."""

        def apply_one(vector: Tensor) -> Tensor:
            column: Tensor = jvp(grad(loss), (theta,), (vector,))[1]
            return column

        def apply(V: Tensor) -> Tensor:
            if V.shape[0] == 1:
                return apply_one(V[0])[None]
            columns: Tensor = vmap(apply_one)(V)
            return columns

        return Product(apply, batch_bytes(loss))


class FiniteDifference:
    """Engine ``finite_difference``; see the module.

    Args:
        factor: of the step e, > 0.
    """

    name = "finite_difference"
    is_exact = False
    keeps = False
    setup_seconds = 0.0

    def __init__(self, factor: float = 1.0) -> None:
        self._factor = factor

    def __call__(self, loss: LossFunction, theta: Tensor) -> Product:
        """Return the product; each call costs two gradients."""
        scale = self._factor * torch.finfo(theta.dtype).eps ** (1 / 3) * (1 + float(theta.double().norm()))

        def apply_one(vector: Tensor) -> Tensor:
            length = float(vector.double().norm())
            if length == 0:
                return torch.zeros_like(vector)
            step = scale / length
            ahead = fresh_gradient(loss, theta.add(vector, alpha=step))
            behind = fresh_gradient(loss, theta.add(vector, alpha=-step))
            return (ahead - behind).div_(2 * step)

        return Product(by_rows(apply_one), batch_bytes(loss))

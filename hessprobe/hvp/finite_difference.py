"""Central differences of the gradient, for models that have no second derivative.

    H v ~ (g(theta + e v) - g(theta - e v)) / (2 e),    e = eps^(1/3) * (1 + ||theta||) / ||v||,

eps the machine epsilon of the parameters' dtype. The step is divided by ||v||, so that the relative error does not
depend on the length of v (a Rademacher probe has length sqrt(d)). The error is O(eps^(2/3)) relative to the scale
of the third derivative, about 2e-5 in float32 and 4e-11 in float64 at best: products are not exact, and estimators
that polish to rounding level are told so by ``is_exact``. Where the gradient has kinks (ReLU) a difference sees them as
curvature whatever the step: ``Hessian.product_error`` measures by how much.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hessprobe.hvp.engine import LossFunction, Product, batch_bytes, by_rows, fresh_gradient


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

"""Rules that follow eigenvectors, search along an arc, or pull a fixed cotangent back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from contracts.optim_rows.problem import Flat, unit
from contracts.optim_rows.row import Row
from torch import Tensor


def xsam(
    steps: int, alpha: float | None = None, every: int = 7, ratio: float = 2.0
) -> Callable[[Flat, Tensor], Tensor]:
    def spec(flat: Flat, w: Tensor) -> Tensor:
        g, e = flat.grad(w), torch.zeros_like(w)
        for _ in range(steps):
            e = e + flat.rho / steps * unit(g)
            g = flat.grad(w + e)
        # No eps here: the sines of a large alpha would make 1e-12 of it visible.
        v0, v1 = e / e.norm(), g / g.norm()
        psi = 2 * torch.atan2((v1 - v0).norm(), (v1 + v0).norm())

        def arc(a: float) -> Tensor:
            return (torch.sin((1 - a) * psi) * v0 + torch.sin(a * psi) * v1) / torch.sin(psi)

        if alpha is None and (flat.t - 1) % every == 0:
            losses = [float(flat.loss(w + ratio * flat.rho * arc(i))) for i in range(41)]
            flat.memory["alpha"] = losses.index(max(losses))
        return g.norm() * arc(flat.memory["alpha"] if alpha is None else alpha)

    return spec


def top(flat: Flat, w: Tensor, every: int) -> Tensor:
    """Return the eigenvector of the largest eigenvalue, of step 1, 1 + every, ..."""
    if (flat.t - 1) % every == 0:
        flat.memory["v"] = torch.linalg.eigh(flat.hessian(w))[1][:, -1]
    return flat.memory["v"]


def eigen_sam(flat: Flat, w: Tensor) -> Tensor:
    v, h = top(flat, w, 7), unit(flat.grad(w))
    e = h + 0.3 * torch.sign(flat.grad(w) @ v) * (v - (h @ v) * h)
    return flat.grad(w + flat.rho * e)


def x_sam(normalize: bool) -> Callable[[Flat, Tensor], Tensor]:
    def spec(flat: Flat, w: Tensor) -> Tensor:
        v = top(flat, w, 7)
        ga = flat.grad(w + flat.rho * unit(flat.grad(w)))
        return (unit(ga) if normalize else ga) - 0.5 * (ga @ v) * v

    return spec


def functional_sam(flat: Flat, w: Tensor) -> Tensor:
    return flat.pull_back(w + flat.rho * unit(flat.grad(w)), flat.cotangent(w))


def searching(every: int, grid: int, gradients: int = 2) -> list[int]:
    """Return the gradients of 12 steps where a search takes one for each alpha: no ``loss=`` is given here."""
    return [gradients + (grid if step % every == 0 else 0) for step in range(12)]


# This grid goes round the whole circle, so that the highest loss lies inside it and nothing is said of the cap.
SEARCH: dict[str, Any] = {"alpha_max": 40.0, "alpha_step": 1.0, "steps_per_epoch": 7}
TIGHT: dict[str, Any] = {"every": 7, "tol": 1e-13, "max_matvecs": 400}

ROWS = [
    Row(
        "xsam",
        "xsam",
        xsam(1),
        SEARCH,
        evaluations=searching(7, 41),
        rho=0.3,
        base_at_rho_zero_arguments={"alpha": 1.0},
    ),
    Row(
        "xsam-multi",
        "xsam",
        xsam(3, alpha=1.4),
        {"steps": 3, "alpha": 1.4},
        evaluations=4,
        rho=0.15,
        base_at_rho_zero_arguments={"alpha": 1.0},
    ),
    Row("eigen-sam", "eigen-sam", eigen_sam, {"alpha": 0.3, **TIGHT}, accumulates=False),
    # A direction of length one is not the gradient of the loss at rho = 0, and does not grow with the loss.
    Row("x-sam", "x-sam", x_sam(True), TIGHT, base_at_rho_zero=False, scale_invariant=False, accumulates=False),
    Row(
        "x-sam-plain",
        "x-sam",
        x_sam(False),
        {**TIGHT, "normalize": False},
        base_at_rho_zero_arguments={"alpha": 0.0},
        accumulates=False,
    ),
    Row("functional-sam", "functional-sam", functional_sam, {}, accumulates=False),
]

"""SAM and its nearest relatives."""

from __future__ import annotations

from contracts.optim_rows.problem import Flat, unit
from contracts.optim_rows.row import Row, Step
from torch import Tensor


def sam(flat: Flat, w: Tensor) -> Tensor:
    return flat.grad(w + flat.rho * unit(flat.grad(w)))


def gsam(flat: Flat, w: Tensor) -> Tensor:
    g, gp = flat.grad(w), sam(flat, w)
    return gp - 0.4 * (g - (g @ gp) / (gp @ gp) * gp)


def wsam_coupled(flat: Flat, w: Tensor) -> Tensor:
    a = 0.8 / 0.2
    return (1 - a) * flat.grad(w) + a * sam(flat, w)


def wsam_decoupled(flat: Flat, w: Tensor) -> Step:
    a, g, gt = 0.8 / 0.2, flat.grad(w), sam(flat, w)
    return Step(g, after=lambda new: new - flat.lr * a * (gt - g))


def vasso(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    d = g if "d" not in flat.memory else 0.6 * flat.memory["d"] + 0.4 * g
    flat.memory["d"] = d
    return flat.grad(w + flat.rho * unit(d))


def stable_sam(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    gt = flat.grad(w + flat.rho * unit(g))
    return g.norm() * unit(gt)


def stable_usam(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    return g.norm() * unit(flat.grad(w + flat.rho * g))


ROWS = [
    Row("sam", "sam", sam, {}),
    Row("gsam", "gsam", gsam, {"alpha": 0.4}),
    Row(
        "wsam-coupled",
        "wsam",
        wsam_coupled,
        {"gamma": 0.8, "decouple": False},
        clip_factor=3.0 + 4.0,
        clip_is_reached=False,
    ),
    Row("wsam", "wsam", wsam_decoupled, {"gamma": 0.8}, clip_factor=1.0 + 2 * 4.0, clip_is_reached=False),
    Row("vasso", "vasso", vasso, {"theta": 0.4}),
    Row("stable-sam", "stable-sam", stable_sam, {}),
    Row("stable-usam", "stable-sam", stable_usam, {"normalize": False}, rho=0.3, scale_invariant=False),
]

"""Rules that save gradients, and those that own their update."""

from __future__ import annotations

import math
from typing import Any

import torch
from contracts.optim_rows.problem import Flat, N, unit
from contracts.optim_rows.row import Row, Step
from torch import Tensor

from hessprobe.estimators import diagonal
from hessprobe.optim.engine.randomness import generator
from hessprobe.optim.schedules import LinearProbability


def sam(flat: Flat, w: Tensor) -> Tensor:
    return flat.grad(w + flat.rho * unit(flat.grad(w)))


def orthogonal_part(gs: Tensor, g: Tensor) -> Tensor:
    return gs - (g @ gs) / g.norm() ** 2 * g


def looksam(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    if flat.t in (1, 4, 7, 10):
        gs = sam(flat, w)
        flat.memory["gv"] = orthogonal_part(gs, g)
        return gs
    gv = flat.memory["gv"]
    return g + 0.6 * g.norm() / gv.norm() * gv


def is_ae_step(flat: Flat, g: Tensor) -> bool:
    n, t, total = float(g @ g), flat.t, 30
    mu = 0.7 * flat.memory.get("mu", 0.0) + 0.3 * n
    s2 = 0.7 * flat.memory.get("s2", 0.0) + 0.3 * (n - mu) ** 2
    flat.memory.update(mu=mu, s2=s2)
    c = t / total * -1.0 + (1 - t / total) * 0.5
    return n >= mu + c * math.sqrt(s2)


def ae_sam(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    return sam(flat, w) if is_ae_step(flat, g) else g


def ae_looksam(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    if is_ae_step(flat, g):
        gs = sam(flat, w)
        flat.memory["gv"] = orthogonal_part(gs, g)
        return gs
    gv = flat.memory.get("gv")
    return g if gv is None else g + 0.6 * g.norm() / gv.norm() * gv


def uniform(t: int, count: int = 1) -> Tensor:
    """Return the first draws of step ``t`` with seed 0."""
    return torch.rand(count, generator=generator(0, t, 1), dtype=torch.float64)


def ss_sam(flat: Flat, w: Tensor) -> Tensor:
    return sam(flat, w) if float(uniform(flat.t)) < 0.4 else flat.grad(w)


def g_rst(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    p = 0.2 + 0.6 * (flat.t - 1) / 14
    return g + 1.7 * (sam(flat, w) - g) if float(uniform(flat.t)) < p else g


# Where no tensor is kept one gradient is enough.
ESAM_COUNTS = [1 + bool((uniform(t, 6) <= 0.35).any()) for t in range(1, 13)]
SS_SAM_STEPS = [bool(uniform(t) < 0.4) for t in range(1, 13)]
G_RST_STEPS = [bool(uniform(t) < 0.2 + 0.6 * (t - 1) / 14) for t in range(1, 13)]


def interval_sam(flat: Flat, w: Tensor) -> Tensor:
    return sam(flat, w) if flat.t % 3 == 0 else flat.grad(w)


def esam_ascent(flat: Flat, w: Tensor, beta: float, all_at_first: bool) -> Tensor:
    g, draws = flat.grad(w), uniform(flat.t, len(flat.slices))
    for s, draw in zip(flat.slices, draws, strict=True):
        if float(draw) > beta and not (all_at_first and flat.t == 1):
            g[s] = 0.0
    return flat.rho / beta * unit(g)


def esam(flat: Flat, w: Tensor) -> Tensor:
    e = esam_ascent(flat, w, 0.35, False)
    if not e.any():
        return flat.grad(w)
    rise = flat.losses(w + e) - flat.losses(w)
    return flat.grad(w + e, torch.argsort(rise)[-7:])


def esam_code(flat: Flat, w: Tensor) -> Tensor:
    e = esam_ascent(flat, w, 0.6, True)
    rise = flat.losses(w + e) - flat.losses(w)
    seventh = rise.sort().values[-7]
    return flat.grad(w + e, torch.nonzero(rise > seventh).reshape(-1))


def k_sam(flat: Flat, w: Tensor) -> Tensor:
    rows = torch.argsort(flat.losses(w))[-5:]
    return flat.grad(w + flat.rho * unit(flat.grad(w, rows)), rows)


def friendly_sam(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    m = flat.memory.get("m")
    d = g if m is None else g - 0.8 * m
    flat.memory["m"] = g if m is None else 0.7 * m + 0.3 * g
    return flat.grad(w + flat.rho * unit(d))


def largest(scores: Tensor, count: int) -> Tensor:
    marked = torch.zeros_like(scores)
    marked[torch.argsort(scores)[len(scores) - count :]] = 1.0
    return marked


def fisher(flat: Flat, w: Tensor) -> Tensor:
    return sum(flat.grad(w, torch.tensor([i])) ** 2 for i in range(5))  # type: ignore[return-value]


def masked_sam(flat: Flat, w: Tensor, mask: Tensor) -> Tensor:
    g = flat.grad(w)
    return flat.grad(w + flat.rho * mask * g / g.norm().clamp_min(1e-12))


def sparse_sam_fisher(flat: Flat, w: Tensor) -> Tensor:
    if flat.t in (1, 5, 9):
        flat.memory["mask"] = largest(fisher(flat, w), len(w) - math.ceil(0.7 * len(w)))
    return masked_sam(flat, w, flat.memory["mask"])


def sparse_sam_fisher_code(flat: Flat, w: Tensor) -> Tensor:
    if flat.t in (2, 6, 10):
        flat.memory["mask"] = largest(fisher(flat, w), len(w) - math.ceil(0.7 * len(w)))
    return masked_sam(flat, w, flat.memory.get("mask", torch.zeros_like(w)))


def drawn(flat: Flat, draw: int) -> Tensor:
    source = generator(0, flat.t, draw)
    parts = [torch.rand(shape, generator=source, dtype=torch.float64) for shape in flat.shapes]
    return torch.cat([part.reshape(-1) for part in parts])


def sparse_sam_dynamic(flat: Flat, w: Tensor) -> Tensor:
    live = len(w) - math.ceil(0.7 * len(w))
    first = flat.t == 1
    mask = largest(drawn(flat, 1), live) if first else flat.memory["mask"]
    flat.memory["mask"] = mask
    if flat.t in (1, 5, 9):
        count = math.floor(live * 0.8 * 0.5 * (1 + math.cos(math.pi * (flat.t - 1) / 20)))
        size = torch.where(mask == 1, flat.grad(w).abs(), -1.0)
        fresh = torch.where(mask == 1, -1.0, drawn(flat, 2 if first else 1))
        flat.memory["mask"] = largest(size, live - count) + largest(fresh, count)
    return masked_sam(flat, w, mask)


def momentum_sam(flat: Flat, w: Tensor) -> Tensor:
    stepper = flat.memory["base"]
    coupled = hasattr(stepper, "buffer")
    v = stepper.buffer if coupled else stepper.m
    e = -flat.rho * unit(v) if isinstance(v, Tensor) else torch.zeros_like(w)
    return flat.grad(w + e) + (flat.weight_decay * e if coupled else 0.0)


def bsam(flat: Flat, w: Tensor) -> Step:
    m, s = flat.memory.get("m", torch.zeros_like(w)), flat.memory.get("s", torch.ones_like(w))
    delta = 30 / 200
    source = generator(0, flat.t, 1)
    parts = [torch.randn(shape, generator=source, dtype=torch.float64) for shape in flat.shapes]
    g = flat.grad(w + torch.cat([part.reshape(-1) for part in parts]) / (200 * s).sqrt())
    ge = flat.grad(w + flat.rho * g / s)
    m = 0.8 * m + 0.2 * (ge + delta * w)
    flat.memory["m"], flat.memory["s"] = m, 0.95 * s + 0.05 * (s.sqrt() * g.abs() + delta + 0.2)
    return Step(replace=w - flat.lr * m / s)


def sam_sps(flat: Flat, w: Tensor) -> Step:
    g = flat.grad(w)
    e = flat.rho * (0.3 + 0.7 / (g.norm() + 1e-12)) * g
    ge = flat.grad(w + e)
    gamma = float((flat.loss(w + e) - 0.7 - ge @ e) / (ge @ ge).clamp_min(1e-300))
    gamma = min(max(gamma, 0.0), 2.0)
    return Step(replace=w - gamma * (ge + 0.01 * w))


def adasam(flat: Flat, w: Tensor) -> Step:
    start = torch.full_like(w, 1e-4)
    m, v, vhat = (flat.memory.get(k, d) for k, d in (("m", 0 * w), ("v", start), ("vhat", start)))
    g = sam(flat, w)
    m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
    vhat = torch.maximum(vhat, v)
    flat.memory.update(m=m, v=v, vhat=vhat)
    return Step(replace=w - flat.lr * (m / vhat.sqrt() + 0.02 * w))


def lightsam_norm(flat: Flat, w: Tensor) -> Step:
    s = flat.grad(w)
    u = flat.memory.get("u", 1e-16) + float(s @ s)
    g = flat.grad(w + flat.rho * s / math.sqrt(u))
    v = flat.memory.get("v", 1e-16) + float(g @ g)
    flat.memory.update(u=u, v=v)
    return Step(replace=w - flat.lr * g / math.sqrt(v))


def lightsam_adagrad(flat: Flat, w: Tensor) -> Step:
    s = flat.grad(w)
    u = flat.memory.get("u", 1e-6) + s * s
    g = flat.grad(w + flat.rho * s / u.sqrt())
    v = flat.memory.get("v", 1e-6) + g * g
    flat.memory.update(u=u, v=v)
    return Step(replace=w - flat.lr * g / v.sqrt())


def lightsam_adam(flat: Flat, w: Tensor) -> Step:
    u, v = (flat.memory.get(k, torch.full_like(w, 1e-6)) for k in ("u", "v"))
    r, m = (flat.memory.get(k, torch.zeros_like(w)) for k in ("r", "m"))
    s = flat.grad(w)
    r, u = 0.8 * r + 0.2 * s, 0.9 * u + 0.1 * s * s
    g = flat.grad(w + flat.rho * r / u.sqrt())
    m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
    flat.memory.update(u=u, v=v, r=r, m=m)
    return Step(replace=w - flat.lr * m / v.sqrt())


def sassha(flat: Flat, w: Tensor, at_weights: bool = False) -> Step:
    m, h = (flat.memory.get(k, torch.zeros_like(w)) for k in ("m", "h"))
    e = flat.rho * unit(flat.grad(w))
    m = 0.8 * m + 0.2 * flat.grad(w + e)
    if flat.t in (1, 6, 11):
        # The same probes; the Hessian is the dense one.
        dense = flat.hessian(w if at_weights else w + e)
        estimate = diagonal(dense, n_probes=3, seed=generator(0, flat.t, 1), method="hutchinson")
        h = 0.9 * h + 0.1 * estimate.values.abs()
        flat.memory["since"] = flat.t
    flat.memory.update(m=m, h=h)
    mhat, hhat = m / (1 - 0.8**flat.t), h / (1 - 0.9 ** flat.memory["since"])
    return Step(replace=w * (1 - flat.lr * 0.03) - flat.lr * mhat / (hhat.sqrt() + 1e-2))


def sassha_at_weights(flat: Flat, w: Tensor) -> Step:
    return sassha(flat, w, at_weights=True)


AE: dict[str, Any] = {"steps": 30, "delta": 0.7, "lambda1": -1.0, "lambda2": 0.5}
SASSHA: dict[str, Any] = {
    "betas": (0.8, 0.9),
    "every": 5,
    "n_probes": 3,
    "eps_denominator": 1e-2,
    "weight_decay": 0.03,
    "lr": 0.02,
}
SPARSE: dict[str, Any] = {"sparsity": 0.7, "every": 4}

# Rules that own their update are no base optimizer at rho = 0, and their directions are preconditioned, so they do not
# scale with the loss.
ALONE: dict[str, Any] = {"base_at_rho_zero": False, "scale_invariant": False}

ROWS = [
    Row("looksam", "looksam", looksam, {"k": 3, "alpha": 0.6}, evaluations=[2, 1, 1] * 4),
    Row("ae-sam", "ae-sam", ae_sam, AE, evaluations=[2, 2, 1, 1, 2, 1, 2, 1, 1, 1, 2, 2]),
    Row("ae-looksam", "ae-looksam", ae_looksam, {**AE, "alpha": 0.6}, evaluations=[2, 2, 1, 1, 2, 1, 2, 1, 1, 1, 1, 2]),
    Row("ss-sam", "ss-sam", ss_sam, {"probability": 0.4}, evaluations=[1 + one for one in SS_SAM_STEPS]),
    Row(
        "ss-sam-general",
        "ss-sam",
        g_rst,
        {"probability": LinearProbability(0.2, 0.8, 15), "gamma": 1.7},
        evaluations=[1 + one for one in G_RST_STEPS],
        # (1 - 1.7) g + 1.7 g is g up to rounding only.
        base_at_rho_zero_arguments={"gamma": 1.0},
    ),
    Row("sam-interval", "sam-interval", interval_sam, {"k": 3}, evaluations=[1, 1, 2] * 4),
    # At rho = 0 a selection of the examples would still be one: all of them are taken there.
    Row(
        "esam",
        "esam",
        esam,
        {"beta": 0.35, "gamma": 0.6},
        evaluations=ESAM_COUNTS,
        base_at_rho_zero_arguments={"gamma": 1.0},
        accumulates=False,
    ),
    Row(
        "esam-code",
        "esam",
        esam_code,
        {"beta": 0.6, "gamma": 0.6, "convention": "code"},
        base_at_rho_zero_arguments={"gamma": 1.0},
        accumulates=False,
    ),
    Row("k-sam", "k-sam", k_sam, {"keep": 5.5 / N}, base_at_rho_zero_arguments={"keep": 1.0}, accumulates=False),
    Row("friendly-sam", "friendly-sam", friendly_sam, {"sigma": 0.8, "lam": 0.7}),
    Row(
        "sparse-sam-fisher",
        "sparse-sam",
        sparse_sam_fisher,
        {**SPARSE, "mask": "fisher", "n_samples": 5},
        evaluations=[7, 2, 2, 2] * 3,
        accumulates=False,
    ),
    Row(
        "sparse-sam-fisher-code",
        "sparse-sam",
        sparse_sam_fisher_code,
        {**SPARSE, "mask": "fisher", "n_samples": 5, "convention": "code"},
        evaluations=[2, 7, 2, 2] * 3,
        accumulates=False,
    ),
    Row("sparse-sam", "sparse-sam", sparse_sam_dynamic, {**SPARSE, "drop_rate": 0.8, "steps": 20}),
    # Its one gradient is taken away from w, and so is the loss.
    Row("momentum-sam", "momentum-sam", momentum_sam, {}, evaluations=1, rho=0.3, clean_loss=False),
    # Its first point is drawn around w.
    Row(
        "bsam",
        "bsam",
        bsam,
        {"examples": 200, "lr": 0.1, "betas": (0.8, 0.95), "prior_precision": 30.0, "damping": 0.2},
        clean_loss=False,
        **ALONE,
    ),
    # The step size is its own: lr plays no part. Some of the 12 steps are at the cap, some below.
    Row(
        "sam-sps",
        "sam-sps",
        sam_sps,
        {"lam": 0.7, "lower": 0.7, "gamma_max": 2.0, "weight_decay": 0.01},
        rho=0.1,
        still_at_lr_zero=False,
        clip_factor=2.0,  # its step size, gamma_max
        **ALONE,
    ),
    Row(
        "adasam",
        "adasam",
        adasam,
        {"lr": 0.02, "betas": (0.8, 0.9), "eps_root": 1e-2, "weight_decay": 0.02},
        **ALONE,
    ),
    Row("lightsam", "lightsam", lightsam_norm, {"lr": 0.1}, **ALONE),
    Row("lightsam-adagrad", "lightsam", lightsam_adagrad, {"method": "adagrad", "eps_root": 1e-3}, **ALONE),
    Row(
        "lightsam-adam",
        "lightsam",
        lightsam_adam,
        {"method": "adam", "betas": (0.8, 0.9), "eps_root": 1e-3, "lr": 0.02},
        rho=0.02,
        **ALONE,
    ),
    Row("sassha", "sassha", sassha, SASSHA, **ALONE, accumulates=False),
    Row(
        "sassha-weights", "sassha", sassha_at_weights, {**SASSHA, "curvature_at": "weights"}, **ALONE, accumulates=False
    ),
]

"""The (phi, psi, mu) family: each row is the gradient, by autograd, of the objective that it claims to descend."""

from __future__ import annotations

from collections.abc import Callable

import torch
from contracts.optim_rows.problem import Flat
from contracts.optim_rows.row import Row
from torch import Tensor

from hessprobe.optim.engine import randomness


def directions(flat: Flat, n: int, law: str = "gaussian", width: float = 1.0) -> list[Tensor]:
    """Draw as the engine's documented stream does: one generator for each (seed, step, number of the draw)."""
    drawn = []
    for i in range(1, n + 1):
        source = randomness.generator(0, flat.t, i)
        if law == "cube":
            parts = [torch.rand(s, generator=source, dtype=torch.float64) * 2 * width - width for s in flat.shapes]
        else:
            parts = [torch.randn(s, generator=source, dtype=torch.float64) for s in flat.shapes]
        u = torch.cat([part.reshape(-1) for part in parts])
        if law == "rademacher":
            u = torch.where(u < 0, -1.0, 1.0).double()
        if law == "sphere":
            u = u * (len(u) ** 0.5 / u.norm())
        if law == "unit-sphere":
            u = u / u.norm()
        drawn.append(u * width if law == "gaussian" else u)
    return drawn


def descends(
    objective: Callable[[Flat, Tensor, Tensor, Tensor], Tensor],
    n: int,
    law: str = "gaussian",
    width: float = 1.0,
    antithetic: bool = False,
) -> Callable[[Flat, Tensor], Tensor]:
    """Return the gradient of L(w) + objective(flat, perturbed losses, L(w), rho), the directions being fixed."""

    def gradient(flat: Flat, w: Tensor) -> Tensor:
        point = w.detach().clone().requires_grad_()
        clean, losses = flat.loss(point), []
        for u in directions(flat, n, law, width):
            one = flat.loss(point + flat.rho * u)
            losses.append((one + flat.loss(point - flat.rho * u)) / 2 if antithetic else one)
        total = clean + objective(flat, torch.stack(losses), clean, flat.rho[0])
        return torch.autograd.grad(total, point)[0]

    return gradient


def trace(flat: Flat, losses: Tensor, clean: Tensor, rho: Tensor) -> Tensor:
    return 0.7 * (losses - clean).mean()


def frob(flat: Flat, losses: Tensor, clean: Tensor, rho: Tensor) -> Tensor:
    return 0.3 / (2 * rho**2) * losses.var(correction=1)


def frob_paper(flat: Flat, losses: Tensor, clean: Tensor, rho: Tensor) -> Tensor:
    t = (losses - clean) / rho**2
    return 0.3 * rho**2 * ((t * t).mean() - t.mean() ** 2)


def det_code(flat: Flat, losses: Tensor, clean: Tensor, rho: Tensor) -> Tensor:
    return 0.5 * rho**2 / torch.exp(-(losses - clean) / (2 * rho**2)).mean() ** 2


def det_paper(flat: Flat, losses: Tensor, clean: Tensor, rho: Tensor) -> Tensor:
    return 0.5 * rho**2 / torch.exp(-(losses - clean) / rho**2).mean() ** 2


def logdet_paper(flat: Flat, losses: Tensor, clean: Tensor, rho: Tensor) -> Tensor:
    return -2 * 0.5 * rho**2 * torch.log(torch.exp(-(losses - clean) / rho**2).mean())


def cumulant(s: Tensor) -> Tensor:
    return s[1] - s[0] ** 2 + torch.sin(s[2])


def powers(t: Tensor) -> Tensor:
    return torch.stack([t, t * t, torch.tanh(t)])


def universal(flat: Flat, losses: Tensor, clean: Tensor, rho: Tensor) -> Tensor:
    t = (losses - clean) / rho**2
    return 0.3 * rho**2 * (t.square().mean() - t.mean() ** 2 + torch.sin(torch.tanh(t).mean()))


def exponential(t: Tensor) -> Tensor:
    return torch.exp(-t)


def minus_log(s: Tensor) -> Tensor:
    return -2 * torch.log(s)


FROB = {"limit": None, "lam": 0.3, "n": 4}
DET = {"antithetic": False, "log": False, "width": 0.01, "lam": 0.5, "n": 3}
# Only Trace-SAM is linear in the losses, and only it has a limit as rho goes to 0: the others divide by rho^2.
NONLINEAR = {"base_at_rho_zero": False, "scale_invariant": False}

ROWS = [
    Row("trace-sam", "trace-sam", descends(trace, 2), {"lam": 0.7, "n": 2, "antithetic": False}, evaluations=3),
    Row(
        "trace-sam-paper",
        "trace-sam",
        descends(trace, 3, "unit-sphere", antithetic=True),
        {"lam": 0.7, "n": 3, "convention": "paper", "antithetic": True},
        evaluations=7,
    ),
    Row("frob-sam", "frob-sam", descends(frob, 4), FROB, evaluations=5, **NONLINEAR),
    Row(
        "frob-sam-paper",
        "frob-sam",
        descends(frob_paper, 4),
        {**FROB, "convention": "paper"},
        evaluations=5,
        **NONLINEAR,
    ),
    Row(
        "frob-sam-antithetic",
        "frob-sam",
        descends(frob, 4, antithetic=True),
        {**FROB, "antithetic": True},
        evaluations=9,
        **NONLINEAR,
    ),
    Row("det-sam", "det-sam", descends(det_code, 3, "cube", 0.01), DET, evaluations=4, rho=1.0, **NONLINEAR),
    Row(
        "det-sam-paper",
        "det-sam",
        descends(det_paper, 3, "gaussian", 0.2, antithetic=True),
        {**DET, "mu": "gaussian", "width": 0.2, "antithetic": True, "convention": "paper"},
        evaluations=7,
        rho=0.5,
        **NONLINEAR,
    ),
    Row(
        "det-sam-log",
        "det-sam",
        descends(logdet_paper, 3, "cube", 0.3),
        {**DET, "width": 0.3, "log": True, "convention": "paper"},
        evaluations=4,
        rho=0.2,
        **NONLINEAR,
    ),
    Row(
        "universal-sam",
        "universal-sam",
        descends(universal, 3, "sphere"),
        {"phi": cumulant, "psi": powers, "mu": "sphere", "lam": 0.3, "n": 3, "antithetic": False},
        evaluations=4,
        **NONLINEAR,
    ),
    Row(
        "universal-sam-log",
        "universal-sam",
        descends(logdet_paper, 2, "rademacher", antithetic=True),
        {"phi": minus_log, "psi": exponential, "mu": "rademacher", "lam": 0.5, "n": 2, "antithetic": True},
        evaluations=5,
        **NONLINEAR,
    ),
]

"""The largest curvature at which an optimizer's step is stable: the edge of stability, plain and with SAM.

On the quadratic L(x) = x'Hx/2 a step acts on each eigenvector of H by itself. For an eigenvalue a the gradient that the
base optimizer sees is c x with the effective curvature

    c = a (1 + r a) + w,        w the coefficient of an L2 weight decay,

where the ascent step x + r g of SAM's family contributes the factor 1 + r a:

    none        r = 0
    USAM        r = rho                               (rho multiplies the gradient)
    SAM         r = rho/||g||                         (rho is a length, so that r grows as the gradient shrinks)
    Unified     r = rho (1 - lam + lam/||g||)

Gradient descent with heavy-ball momentum beta and dampening tau, m <- beta m + (1 - tau) c x, x <- x - eta m, is stable
if and only if (both roots of z^2 - (1 + beta - eta (1 - tau) c) z + beta lie inside the unit circle, so)

    c < C = 2 (1 + beta) / (eta (1 - tau)),           with Nesterov's  C = 2 (1 + beta) / (eta (1 + 2 beta)).

Solving a (1 + r a) = C - w for a gives the largest stable eigenvalue

    a* = 2 (C - w) / (1 + sqrt(1 + 4 r (C - w))),

which is 2/eta for plain gradient descent and, for SAM without momentum,

    a* = (||g||/(2 rho)) (sqrt(1 + 8 rho/(eta ||g||)) - 1).

SAM is not linear: with its r the factor 1 - eta c is that of one step at this gradient norm. The bounce that SAM ends
in on a quadratic, ||x|| = eta rho a/(2 - eta a) with g = a x, is exactly where a* = a.

All of this is about full-batch steps: the batches of a run have larger gradients than the whole data (so that SAM's own
threshold is higher on them), and their noise makes training unstable below the threshold.

References:
    Cohen, Kaur, Li, Kolter, Talwalkar (2021), "Gradient descent on neural networks typically occurs at the edge of
    stability"; Agarwala, Dauphin (2023), "SAM operates far from home" (USAM); Long, Bartlett (2024), "Sharpness-aware
    minimization and the edge of stability" (SAM); Wen, Ma, Li (2023), "How does SAM minimize sharpness?" (the bounce).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hessprobe import checks
from hessprobe.optim.engine import SharpnessAware
from hessprobe.optim.rules.ascent import SAM, USAM, UnifiedSAM

# Share of the ascent that is normalized, by the name of the optimizer.
_NORMALIZED = {"sam": 1.0, "usam": 0.0}


@dataclass(frozen=True)
class StepRule:
    """What decides whether a step is stable on a quadratic; see the head of this file.

    Attributes:
        lr: eta > 0.
        momentum: beta in [0, 1).
        dampening: tau in [0, 1).
        nesterov: whether the momentum is Nesterov's.
        weight_decay: w >= 0, an L2 term.
        rho: >= 0: radius or factor of the ascent; 0 without one.
        normalized: lam in [0, 1], see ``UnifiedSAM``: 1 for SAM, 0 for USAM.

    Raises:
        TypeError, ValueError: a value outside its range.
    """

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    rho: float = 0.0
    normalized: float = 1.0

    def __post_init__(self) -> None:
        checks.real("lr", self.lr, low=0, low_open=True)
        for name in ("momentum", "dampening"):
            checks.real(name, getattr(self, name), low=0, high=1, high_open=True)
        for name in ("weight_decay", "rho"):
            checks.real(name, getattr(self, name), low=0)
        checks.real("normalized", self.normalized, low=0, high=1)

    @property
    def plain(self) -> float:
        """The largest stable eigenvalue without an ascent step: C - w, at least 0."""
        factor = 1 + 2 * self.momentum if self.nesterov else 1 - self.dampening
        return max(2 * (1 + self.momentum) / (self.lr * factor) - self.weight_decay, 0.0)

    def sharpness_aware(self, gradient_norm: float) -> float | None:
        """Return the largest stable eigenvalue a* with the ascent step, or None where there is none (rho = 0).

        Args:
            gradient_norm: ||g|| >= 0 at the point; where it is 0 a normalized ascent step leaves nothing stable.
        """
        if self.rho == 0:
            return None
        if self.normalized and gradient_norm == 0:
            return 0.0
        pull = self.normalized / gradient_norm if self.normalized else 0.0
        r = self.rho * (1 - self.normalized + pull)
        return 2 * self.plain / (1 + math.sqrt(1 + 4 * r * self.plain))

    def words(self) -> str:
        """Return the formula of ``plain`` for a legend."""
        top = "2" if self.momentum == 0 else "2(1+β)"
        bottom = "lr" if not self.nesterov or self.momentum == 0 else "lr(1+2β)"
        bottom = f"lr(1-{self.dampening:g})" if self.dampening else bottom
        return f"{top}/{bottom}" + ("" if self.weight_decay == 0 else " - weight decay")


@dataclass(frozen=True)
class Edge:
    """The thresholds at one point.

    Attributes:
        plain: of the base optimizer, see ``StepRule.plain``; None where it has none on the Hessian itself.
        sharpness_aware: SAM's own, or None.
        formula: of ``plain``.
        reason: why there is none, or "".
        preconditioned: of Adam, on P^-1/2 H P^-1/2 (``objective.preconditioner``), or None.
    """

    plain: float | None = None
    sharpness_aware: float | None = None
    formula: str = ""
    reason: str = ""
    preconditioned: float | None = None


def edge(rule: StepRule | str, gradient_norm: float) -> Edge:
    """Return the thresholds of a rule at a gradient norm; a text in place of a rule says why there are none."""
    if isinstance(rule, str):
        return Edge(reason=rule)
    return Edge(rule.plain, rule.sharpness_aware(gradient_norm), rule.words())


def rule_of_recipe(recipe: Mapping[str, Any], lr: float | None, rho: float | None, step: int) -> StepRule | str:
    """Return the rule of a step of a recorded recipe, or why there is none.

    Args:
        recipe: ``Recipe.as_dict()``; empty where it is not known.
        lr: of the step; None where it is not known.
        rho: of the step; the recipe's where None.
        step: number of the step, for a weight lam that moves.
    """
    problem = _lr_problem(lr)
    if problem or lr is None:
        return problem
    if not recipe:
        return StepRule(lr)
    name, base = str(recipe.get("optimizer", "sgd")), str(recipe.get("base") or "sgd")
    if base != "sgd":
        return _preconditioned(base)
    lam: float | str | None = _NORMALIZED.get(name)
    if name == "unified-sam":
        lam = dict(recipe.get("optimizer_args") or {}).get("lam", 0.5)
    shared: dict[str, Any] = {key: float(recipe.get(key) or 0.0) for key in ("momentum", "weight_decay", "dampening")}
    shared["nesterov"] = bool(recipe.get("nesterov"))
    if name == "sgd":
        return StepRule(lr, **shared)
    if lam is None:
        return _unknown(name)
    radius = recipe.get("rho") if rho is None else rho
    return StepRule(lr, **shared, rho=float(radius or 0.0), normalized=_lam(lam, step))


def rule_of_optimizer(optimizer: torch.optim.Optimizer, lr: float | None = None) -> StepRule | str:
    """Return the rule of the next step of an optimizer, or why there is none.

    Args:
        optimizer: ``torch.optim.SGD``, or ``SAM``, ``USAM`` or ``UnifiedSAM`` around it; others have no threshold on
            the Hessian itself.
        lr: of the step; that of the first parameter group by default.
    """
    groups = optimizer.param_groups
    base = optimizer.base_optimizer if isinstance(optimizer, SharpnessAware) else optimizer
    if not isinstance(base, torch.optim.SGD):
        return _preconditioned(type(base).__name__)
    keys = ("lr", "momentum", "dampening", "nesterov", "weight_decay", "rho")
    if len({tuple(group.get(key) for key in keys) for group in groups}) > 1:
        return "the parameter groups of the optimizer differ"
    group = groups[0]
    rate = float(group["lr"]) if lr is None else lr
    problem = _lr_problem(rate)
    if problem:
        return problem
    shared: dict[str, Any] = {key: group[key] for key in ("momentum", "dampening", "nesterov", "weight_decay")}
    if not isinstance(optimizer, SharpnessAware):
        return StepRule(rate, **shared)
    kinds: dict[type, float | str] = {SAM: 1.0, USAM: 0.0}
    lam = optimizer.lam if type(optimizer) is UnifiedSAM else kinds.get(type(optimizer))
    if lam is None:
        return _unknown(type(optimizer).__name__)
    return StepRule(rate, **shared, rho=float(group["rho"]), normalized=_lam(lam, optimizer.t))


def _lam(lam: float | str, step: int) -> float:
    if isinstance(lam, str):
        return 1 / max(step, 1) if lam == "1/t" else 1 - 1 / max(step, 1)
    return float(lam)


def _lr_problem(lr: float | None) -> str:
    if lr is None:
        return "the learning rate is not known"
    return "" if lr > 0 else "the learning rate is 0"


def _preconditioned(name: str) -> str:
    return f"{name} scales its steps, so that no threshold on the Hessian itself decides its stability"


def _unknown(name: str) -> str:
    return f"no threshold is known for {name}"

"""The preconditioner P of Adam's step, and the curvature in its coordinates up to which the step is stable.

Adam's step is x <- x - lr P^-1 m, with m <- beta_1 m + (1 - beta_1) g and, t steps done,

    P = (1 - beta_1^t) (sqrt(v / (1 - beta_2^t)) + eps).

P moves slowly. With P held fixed, y = P^1/2 x takes the steps of gradient descent with averaged momentum on a function
of Hessian P^-1/2 H P^-1/2. On an eigenvector of that, of eigenvalue a, and with the decay w of AdamW,

    m <- beta_1 m + (1 - beta_1) a y,        y <- (1 - lr w) y - lr m,

whose characteristic polynomial z^2 - z (1 + beta_1 - lr w - lr (1 - beta_1) a) + beta_1 (1 - lr w) has both roots
inside the unit circle if and only if (Jury, at z = -1; a > -w)

    a < C (1 - lr w / 2),        C = (2 + 2 beta_1) / ((1 - beta_1) lr).

Where the decay differs between parameters, the largest w gives a sufficient condition: an eigenvector of the quadratic
eigenvalue problem turns it into that polynomial with the Rayleigh quotients a <= lambda_max and w <= w_max.

References:
    Cohen, Ghorbani, Krishnan, Agarwal, Medapati, Badura, Suo, Cardoze, Nado, Dahl, Gilmer (2022), "Adaptive gradient
    methods at the edge of stability".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hessprobe.vectors import ParameterLayout

_ADAM = (torch.optim.Adam, torch.optim.AdamW)
# Of a group of Adam or AdamW; NAdam and RAdam, whose steps are others, have no amsgrad.
_KEYS = frozenset({"lr", "betas", "eps", "amsgrad"})


@dataclass(frozen=True)
class Preconditioner:
    """P of Adam's next step at the measured point, and where that step stops being stable.

    Attributes:
        scale: (d,) fp64, P^-1/2 an entry; 0 for entries that Adam has not moved.
        threshold: the largest stable eigenvalue of P^-1/2 H P^-1/2, or None.
        formula: of the threshold.
        reason: why there is none, or "".
    """

    scale: Tensor
    threshold: float | None = None
    formula: str = ""
    reason: str = ""


def of_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, layout: ParameterLayout) -> Preconditioner | None:
    """Return P of a running Adam or AdamW, also inside a sharpness-aware one.

    Args:
        optimizer: of the parameters of ``module``.
        module: the model.
        layout: of what is measured.

    Returns:
        P; None for another optimizer, or one that has done no step on these parameters.
    """
    base = getattr(optimizer, "base_optimizer", optimizer)
    if not isinstance(base, _ADAM):
        return None
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    entries = [
        (names.get(id(parameter)), {**group, "decoupled_weight_decay": _decoupled(base, group)}, base.state[parameter])
        for group in base.param_groups
        for parameter in group["params"]
        if parameter in base.state
    ]
    return _of_entries(entries, layout, ascent=base is not optimizer)


def of_state(
    state: Mapping[str, Any], names: Iterable[str], layout: ParameterLayout, *, ascent: bool = False
) -> Preconditioner | None:
    """Return P from the ``state_dict()`` of Adam or AdamW; None where it is that of another optimizer, or says nothing.

    Args:
        state: as torch has it.
        names: of the parameters in the order of the optimizer's groups.
        layout: of what is measured.
        ascent: whether a sharpness-aware optimizer was around it.
    """
    groups, states = state.get("param_groups"), state.get("state")
    if not groups or not isinstance(states, Mapping) or not all(_KEYS.issubset(group) for group in groups):
        return None
    known = list(names)
    places = [(int(index), group) for group in groups for index in group["params"]]
    if len(known) != len(places):
        return None
    entries = [(known[index], group, states[index]) for index, group in places if index in states]
    return _of_entries(entries, layout, ascent=ascent)


def _decoupled(base: torch.optim.Optimizer, group: Mapping[str, Any]) -> bool:
    return isinstance(base, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay"))


def _of_entries(
    entries: Iterable[tuple[str | None, Mapping[str, Any], Mapping[str, Any]]], layout: ParameterLayout, *, ascent: bool
) -> Preconditioner | None:
    roots: dict[str, Tensor] = {}
    groups: list[Mapping[str, Any]] = []
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    for name, group, state in entries:
        variance = state.get("max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq")
        # Adam moves the real and the imaginary part as two parameters, and so does the layout.
        if isinstance(variance, Tensor) and variance.is_complex():
            variance = torch.view_as_real(variance)
        if name not in shapes or not isinstance(variance, Tensor) or variance.shape != shapes[name]:
            continue
        steps, (beta_1, beta_2) = float(state["step"]), map(float, group["betas"])
        if steps < 1:
            continue
        P = (variance.detach().double() / (1 - beta_2**steps)).sqrt() + float(group["eps"])
        roots[name] = ((1 - beta_1**steps) * P).rsqrt()
        groups.append(group)
    if not roots:
        return None
    device = next(iter(roots.values())).device
    scale = layout.join(
        roots.get(name, torch.zeros(shape, dtype=torch.float64, device=device)) for name, shape in shapes.items()
    )
    threshold, formula, reason = _threshold(groups, ascent)
    return Preconditioner(scale, threshold, formula, reason)


def _threshold(groups: list[Mapping[str, Any]], ascent: bool) -> tuple[float | None, str, str]:
    first = groups[0]
    lr, beta_1 = float(first["lr"]), float(first["betas"][0])
    if ascent:
        return None, "", "no threshold is known for a sharpness-aware step around Adam"
    if not lr > 0:
        return None, "", "the learning rate is 0"
    if any((float(each["lr"]), float(each["betas"][0])) != (lr, beta_1) for each in groups):
        return None, "", "the parameter groups of the optimizer differ"
    if any(each.get("weight_decay") and not each.get("decoupled_weight_decay") for each in groups):
        return None, "", "the weight decay of Adam is part of its gradient and not of the measured loss; AdamW has one"
    decay = max(float(each.get("weight_decay") or 0.0) for each in groups)
    formula = "(2 + 2 beta1) / ((1 - beta1) lr)" + (" (1 - lr decay / 2)" if decay else "")
    return (2 + 2 * beta_1) / ((1 - beta_1) * lr) * max(1 - lr * decay / 2, 0.0), formula, ""

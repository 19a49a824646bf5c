"""One row of the contract table: an optimizer, its specification on a flat vector, and what it promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from contracts.optim_rows.problem import Flat
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """What a specification returns where a gradient for the base is not all.

    Attributes:
        gradient: for the base step, (d,).
        after: maps the weights after the base step to those after the whole step.
        lr: learning rate of the base step in place of the groups' own.
        replace: the weights after the step, where no base optimizer is involved.
    """

    gradient: Tensor | None = None
    after: Callable[[Tensor], Tensor] | None = None
    lr: float | None = None
    replace: Tensor | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        id: test id, unique.
        name: in the registry.
        arguments: keyword arguments of the class, besides rho.
        spec: (flat, w) -> gradient for the base, or ``Step``: the rule in the paper's own terms, written apart from the
            implementation; it may keep numbers in ``flat.memory``.
        evaluations: gradients in each of 12 steps: a number, or a list of 12.
        rho: of the first group; the second has twice as much.
        base_at_rho_zero: at rho = 0 it is the base optimizer, bit for bit.
        base_at_rho_zero_arguments: arguments for that check, where others are needed.
        scale_invariant: the direction is multiplied by c when the loss is.
        clean_loss: ``step`` returns the loss at the weights themselves.
        still_at_lr_zero: with lr = 0 (and no weight decay) nothing moves.
        single_group: its parameters cannot be split into groups.
        needs_model: it is given ``model=``.
        accumulates: a list of closures is the shards of a batch; False where only one closure may be given, None where
            the rule has shards of its own.
        clip_factor: greatest length of a step of SGD with lr 1, in units of a small ``clip_grad_norm``.
        clip_is_reached: a step is as long as that; else it is no longer.
        evaluates_after_step: its last pass is at the weights that the step leads to.
    """

    id: str
    name: str
    spec: Callable[[Flat, Tensor], Tensor | Step]
    arguments: dict[str, Any]
    evaluations: int | list[int] = 2
    rho: float = 0.05
    base_at_rho_zero: bool = True
    base_at_rho_zero_arguments: dict[str, Any] | None = None
    scale_invariant: bool = True
    clean_loss: bool = True
    still_at_lr_zero: bool = True
    single_group: bool = False
    needs_model: bool = False
    accumulates: bool | None = True
    clip_factor: float = 1.0
    clip_is_reached: bool = True
    evaluates_after_step: bool = False


def base_sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-3)


def base_adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.02, weight_decay=0.01)

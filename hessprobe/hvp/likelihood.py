"""A loss as a likelihood of its outputs: the same model with a loss whose Gauss-Newton matrix is the Fisher matrix.

With l(f, y) = -log p(y | f) + const the Fisher matrix in the outputs is E_y[r r^T], r = dl/df, over y drawn from
p(. | f), which is E_y[d^2 l / df^2] as well. Where d^2 l does not depend on y (an exponential family in its natural
parameters: cross-entropy on scores, squared error, Poisson on log rates) it is d^2 l itself, a theorem that makes the
Fisher matrix the Gauss-Newton matrix. The losses of torch for which this fails are turned into ones for which it holds:

* ``NLLLoss`` is linear in its outputs, the log-probabilities g: its Gauss-Newton matrix is 0. As log-softmax leaves
  log-probabilities as they are, it is the cross-entropy of g, whose Gauss-Newton matrix J^T diag(exp g) J is the
  Fisher matrix;
* ``BCELoss`` and ``PoissonNLLLoss(log_input=False)`` are linear in y, so that E_y[d^2 l] is d^2 l at y = E y, which is
  the output itself.

References:
    Martens (2020), "New insights and perspectives on the natural gradient method", section 9; Kunstner, Balles, Hennig
    (2019), "Limitations of the empirical Fisher approximation".
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, jvp

from hessprobe.errors import UnsupportedError
from hessprobe.hvp.output_space import agree, convex_on, differentiating_twice
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.objective.terms import EmpiricalBatch
from hessprobe.objective.weighting import LossRule, shifted_cross_entropy, token_cross_entropy

_NATURAL = (nn.CrossEntropyLoss, F.cross_entropy, token_cross_entropy, shifted_cross_entropy, nn.MSELoss, F.mse_loss)
_LOG_PROBABILITIES = (nn.NLLLoss, F.nll_loss)
_MEANS = (nn.BCELoss, F.binary_cross_entropy)
_POISSON = (nn.PoissonNLLLoss, F.poisson_nll_loss)

# How far from 0 the log of the sum of probabilities may be, in roundings.
_ROUNDINGS = 1e3


def likelihood(risk: Objective) -> Objective:
    """Return the risk, or the same model with a loss whose Gauss-Newton matrix is the risk's Fisher matrix.

    Raises:
        UnsupportedError: a loss that is no negative log-likelihood that is known here, or ``NLLLoss`` on outputs that
            are no log-probabilities (looked at on the first batch).
    """
    with risk.evaluating():
        batch = next(iter(risk.terms()))
        if _kind(batch) in ("log-probabilities", "means"):
            found: Objective = _Likelihood(risk)
            next(iter(found.terms()))
            return found
        if _kind(batch) != "natural":
            _require_natural(batch, risk.theta)
    return risk


class _Likelihood(Objective):
    """The outputs of a risk, with the loss that ``as_natural`` makes of its own."""

    def __init__(self, risk: Objective) -> None:
        self._risk = risk
        self.dim, self.dtype, self.device = risk.dim, risk.dtype, risk.device
        self.theta, self.layout, self.n_terms = risk.theta, risk.layout, risk.n_terms

    def __repr__(self) -> str:
        return f"likelihood of {self._risk!r}"

    def evaluating(self) -> AbstractContextManager[None]:
        """Return the context of the risk."""
        return self._risk.evaluating()

    def require_finite_loss(self, theta: Tensor | None = None) -> None:
        """See that of the risk."""
        self._risk.require_finite_loss(theta)

    def terms(self) -> Iterator[BatchLoss]:
        """Yield each batch of the risk with the other loss."""
        for batch in self._risk.terms():
            yield as_natural(batch, self.theta)


def as_natural(batch: BatchLoss, theta: Tensor) -> BatchLoss:
    """Return the batch with a loss whose second derivative in the outputs at ``theta`` is the Fisher matrix there.

    Raises:
        UnsupportedError: ``NLLLoss`` on outputs that are no log-probabilities.
    """
    if not isinstance(batch, EmpiricalBatch) or _kind(batch) not in ("log-probabilities", "means"):
        return batch
    with torch.no_grad():
        outputs = batch.outputs(theta).detach()
    if _kind(batch) == "means":
        return replace(batch, targets=outputs)
    _require_log_probabilities(outputs)
    _, option = unwrapped(batch.rule.function)
    # The size and the weight of a batch are those of the risk; a cross-entropy divides alike.
    function = functools.partial(
        F.cross_entropy,
        weight=option("weight", None),
        ignore_index=batch.rule.ignore_index,
        reduction=batch.rule.reduction,
    )
    return replace(batch, rule=replace(batch.rule, function=function))


def _kind(batch: BatchLoss) -> str:
    if not isinstance(batch, EmpiricalBatch):
        return "unknown"
    base, option = unwrapped(batch.rule.function)

    def among(known: tuple[Any, ...]) -> bool:
        return base in known or type(base) in known

    if among(_LOG_PROBABILITIES):
        return "log-probabilities"
    if among(_MEANS) or (among(_POISSON) and not option("log_input", True)):
        return "means"
    return "natural" if among(_NATURAL) else "unknown"


def unwrapped(loss: Callable[..., Any]) -> tuple[Any, Callable[[str, Any], Any]]:
    """Return the loss inside partials, and what gives the value of one of its options."""
    keywords: dict[str, Any] = {}
    while isinstance(loss, functools.partial):
        keywords, loss = {**loss.keywords, **keywords}, loss.func

    def option(name: str, default: Any) -> Any:
        return keywords.get(name, getattr(loss, name, default) if isinstance(loss, nn.Module) else default)

    return loss, option


def _require_log_probabilities(outputs: Tensor) -> None:
    totals = outputs.double().logsumexp(1 if outputs.dim() > 1 else 0)
    worst = float(totals.abs().max())
    if not worst <= _ROUNDINGS * torch.finfo(outputs.dtype).eps:
        raise UnsupportedError(
            f"The Fisher matrix of NLLLoss needs outputs that are log-probabilities; the log of their sum is up to "
            f"{worst:.3g} away from 0. End the model in LogSoftmax(dim=1), or use CrossEntropyLoss."
        )


def _require_natural(batch: BatchLoss, theta: Tensor) -> None:
    """Refuse a loss whose second derivative cannot be that of a likelihood in its natural parameters.

    Raises:
        UnsupportedError: it is 0, or depends on the targets.
    """
    rule = batch.rule if isinstance(batch, EmpiricalBatch) else None
    name = "this loss" if rule is None else rule.name
    outputs = batch.outputs(theta).detach()
    with differentiating_twice():
        seen = _bend(batch, outputs)
    if not bool((seen != 0).any()):
        raise UnsupportedError(
            f"The Fisher matrix needs a likelihood that is known; {name} is linear in the outputs, whose second "
            "derivative of 0 is no Fisher matrix. Pass torch.nn.NLLLoss() itself, or a cross-entropy on scores."
        )
    other = _turned(batch)
    if other is not None and not agree(_bend(other, outputs), seen):
        other_way = "operator='ggn'" if convex_on([batch], theta) else "operator='hessian'"
        raise UnsupportedError(
            f"The Fisher matrix needs a likelihood that is known; the second derivative of {name} in the outputs "
            f"depends on the targets. Pass a loss of torch itself, or measure with {other_way}, or "
            "Fisher(risk, kind='empirical')."
        )


def _bend(batch: BatchLoss, outputs: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    bent: Tensor = jvp(grad(batch.loss_of_outputs), (outputs,), (probe,))[1]
    return bent


def _turned(batch: BatchLoss) -> BatchLoss | None:
    """Return the batch with each example given the targets of the one before, or None where that is not possible."""
    if not isinstance(batch, EmpiricalBatch) or not isinstance(batch.targets, Tensor) or batch.examples < 2:
        return None
    if not _same_units(batch.rule, batch.targets):
        return None
    return replace(batch, targets=batch.targets.roll(1, 0))


def _same_units(rule: LossRule, targets: Tensor) -> bool:
    """Return whether the targets of all examples count alike: ignored ones take away curvature, and may."""
    ignored = not targets.is_floating_point() and bool((targets == rule.ignore_index).any())
    return not ignored and rule.class_weight is None

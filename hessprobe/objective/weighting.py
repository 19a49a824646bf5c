"""What a batch loss is an average of, so that batches of different sizes add up to one mean."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprobe import checks
from hessprobe.objective.second_order import SecondOrderLosses

WEIGHTINGS = ("auto", "examples", "tokens")

IGNORED = -100

# Logits up to this many are worth a copy in double precision.
_DOUBLED = 1 << 22

_TOKEN_MODULES = (nn.CrossEntropyLoss, nn.NLLLoss)
_TOKEN_FUNCTIONS = (F.cross_entropy, F.nll_loss)
_ELEMENTWISE_MODULES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss)
_ELEMENTWISE_FUNCTIONS = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
)


@dataclass(frozen=True)
class LossRule:
    """A loss on outputs and targets, and how many units its mean over a batch is taken over.

    Attributes:
        function: ``(outputs, targets) -> loss``.
        name: for messages and records.
        unit: ``"examples"`` or ``"tokens"`` (targets that are not ignored).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``: what ``function`` does over a batch.
        ignore_index: the target value that does not count.
        class_weight: (C,) weights of the classes, by whose sum over the targets torch divides; None for equal ones.
        known: whether the loss is one of torch's, whose mean is known to be over ``unit``.
        elementwise: whether outputs and targets must have one shape.
        shift: whether target t + 1 is compared with output t (causal language models).
    """

    function: Callable[[Any, Any], Tensor]
    name: str
    unit: str = "examples"
    reduction: str = "mean"
    ignore_index: int = IGNORED
    class_weight: Tensor | None = None
    known: bool = True
    elementwise: bool = False
    shift: bool = False

    def size(self, targets: Any, examples: int) -> float:
        """Return the number of units in a batch (a weighted number where the classes have weights), >= 0.

        Raises:
            ValueError: the targets hold -100 and it is not known whether the loss ignores it.
        """
        if self.unit == "examples":
            if not self.known and _is_labels(targets) and bool((targets == IGNORED).any()):
                raise ValueError(
                    f"weighting must be 'tokens' or 'examples' for targets that hold {IGNORED}; got 'auto' with "
                    f"{self.name}. Pass weighting='tokens' if the loss ignores them."
                )
            return float(examples)
        if not isinstance(targets, Tensor):
            raise TypeError(
                f"targets must be a tensor to be counted as tokens; got {type(targets).__name__}. "
                "Pass weighting='examples' or forward=."
            )
        if not _is_labels(targets):
            return targets.numel() / (targets.shape[1] if self.known and targets.ndim > 1 else 1)
        labels = targets[..., 1:] if self.shift else targets
        counted = labels != self.ignore_index
        if self.class_weight is None:
            return float(counted.sum())
        weights = self.class_weight.to(device=labels.device, dtype=torch.float64)
        return float(weights[labels[counted]].sum())

    def mean(self, outputs: Any, targets: Any, size: float) -> Tensor:
        """Return the mean loss over the ``size`` units of a batch, a scalar; exactly 0 for a batch without units.

        Raises:
            TypeError: the loss is not a tensor.
            ValueError: the loss is not a scalar.
        """
        if size == 0:
            nothing: Tensor = (outputs * 0).sum()
            return nothing
        precise = self._in_double(outputs)
        with SecondOrderLosses():
            value = self.function(outputs.double() if precise else outputs, targets)
        value = value.to(outputs.dtype) if precise and isinstance(value, Tensor) else value
        if not isinstance(value, Tensor):
            raise TypeError(f"loss must return a tensor; got {type(value).__name__}. Return a differentiable scalar.")
        if self.reduction == "mean":
            if value.ndim != 0:
                raise ValueError(
                    f"loss must be a scalar; got shape {tuple(value.shape)} from {self.name}. "
                    "Reduce it with .mean(), or use reduction='mean'."
                )
            return value
        # An elementwise loss left unreduced stands for its mean over all elements, as reduction="mean" would.
        return value.mean() if self.reduction == "none" and self.elementwise else value.sum() / size

    def _in_double(self, outputs: Any) -> bool:
        """True for single-precision logits of a cross-entropy: near an interpolating minimum softmax - onehot cancels.

        At a loss of 6e-8 products are then off by 10 to 30 %; with the loss alone in double precision by 1e-6.
        """
        if self.unit != "tokens" or not self.known or self.class_weight is not None or not isinstance(outputs, Tensor):
            return False
        return outputs.dtype == torch.float32 and outputs.numel() <= _DOUBLED and outputs.device.type != "mps"


def loss_rule(loss: Callable[..., Any], weighting: str = "auto") -> LossRule:
    """Return the rule of a loss that follows torch's conventions.

    Args:
        loss: ``(outputs, targets) -> scalar``, a mean over the batch; torch's losses, as modules, functions or
            ``functools.partial`` of them, may also have ``reduction="sum"`` or ``"none"``.
        weighting: ``"examples"``, ``"tokens"``, or ``"auto"``: tokens for cross-entropy and negative log-likelihood
            (whose mean is over targets that are not ``ignore_index``, weighted by class weights), else examples.

    Raises:
        ValueError: an unknown weighting.
    """
    checks.one_of("weighting", weighting, WEIGHTINGS)
    base, options = _options(loss)
    token = isinstance(base, _TOKEN_MODULES) or base in (*_TOKEN_FUNCTIONS, token_cross_entropy)
    elementwise = isinstance(base, _ELEMENTWISE_MODULES) or base in _ELEMENTWISE_FUNCTIONS
    ignore_index = options("ignore_index", IGNORED)
    unit = ("tokens" if token else "examples") if weighting == "auto" else weighting
    return LossRule(
        function=loss,
        name=_name(base),
        unit=unit,
        reduction=options("reduction", "mean") if token or elementwise else "mean",
        ignore_index=ignore_index if isinstance(ignore_index, int) else IGNORED,
        class_weight=options("weight", None) if token and unit == "tokens" else None,
        known=token or elementwise or weighting == "examples",
        elementwise=elementwise,
    )


def require_matching(rule: LossRule, outputs: Any, targets: Any) -> None:
    """Refuse elementwise losses of different shapes, which torch broadcasts into a different loss.

    Raises:
        ValueError: with both shapes.
    """
    both = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    if rule.elementwise and both and outputs.shape != targets.shape:
        raise ValueError(
            f"targets must have the shape of the outputs for {rule.name}; got {tuple(targets.shape)} and "
            f"{tuple(outputs.shape)}. Reshape one of them: broadcasting would change the loss."
        )


def mismatch(rule: LossRule, outputs: Any, targets: Any, error: Exception) -> ValueError:
    """Return the error that says, in one sentence, which outputs and targets a loss could not take."""
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return ValueError(
        f"outputs and targets must fit {rule.name}; got outputs {_shape(outputs)} and targets {_shape(targets)} "
        f"({reason}). {_remedy(rule, outputs, targets, reason)}"
    )


def about_dtype(reason: str) -> bool:
    """Return whether what torch says is wrong is a dtype and no shape."""
    return re.search(r"dtype|scalar type|result type|Input type", reason) is not None


def token_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of outputs (..., C) on labels (...) that are not -100; half precision in fp32."""
    logits = outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED)


def shifted_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return ``token_cross_entropy`` of outputs (B, T, C) up to T - 1 on labels (B, T) from 1 on."""
    return token_cross_entropy(outputs[..., :-1, :], labels[..., 1:])


def _options(loss: Callable[..., Any]) -> tuple[Any, Callable[[str, Any], Any]]:
    keywords: dict[str, Any] = {}
    while isinstance(loss, functools.partial):
        keywords = {**loss.keywords, **keywords}
        loss = loss.func

    def option(name: str, default: Any) -> Any:
        return keywords.get(name, getattr(loss, name, default) if isinstance(loss, nn.Module) else default)

    return loss, option


def _name(loss: Any) -> str:
    return type(loss).__name__ if isinstance(loss, nn.Module) else getattr(loss, "__name__", type(loss).__name__)


def _remedy(rule: LossRule, outputs: Any, targets: Any, reason: str) -> str:
    used = targets[targets != rule.ignore_index] if _is_labels(targets) else None
    if used is not None and used.numel() and isinstance(outputs, Tensor) and "out of bounds" in reason:
        classes = outputs.shape[1 if outputs.ndim > 1 else 0]
        return (
            f"The labels are {int(used.min())} to {int(used.max())}, and the model has outputs for {classes} classes, "
            f"0 to {classes - 1}: number the classes from 0, or give the model one output a class."
        )
    if "missing" in reason and "argument" in reason:
        example = ", as lambda o, t: loss(o[:, 0], t, o[:, 1].exp())" if "GaussianNLL" in rule.name else ""
        return f"{rule.name} takes more than outputs and targets: wrap it in a function of these two{example}."
    if "has no attribute" in reason:
        return "The loss gets the logits alone of a model that returns several things: use them, or pass forward=."
    if about_dtype(reason):
        return "Convert the targets: class labels to int64 (.long()), others to the dtype of the outputs."
    return "Check the order and shapes in data."


def _is_labels(targets: Any) -> bool:
    return isinstance(targets, Tensor) and not targets.is_floating_point()


def _shape(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__

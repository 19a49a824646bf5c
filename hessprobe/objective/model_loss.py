"""The loss that a model computes itself (transformers), recognised from its value so that it can be re-weighted."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprobe.errors import UnsupportedError
from hessprobe.objective.weighting import LossRule, shifted_cross_entropy, token_cross_entropy

_ASK = "Pass loss= on the logits, or forward=function(module, batch) -> (loss_sum, weight)."

# Attention kernels outside torch: they define a first derivative only.
_FIRST_ORDER_ATTENTION = ("flash", "flex", "paged", "sage")


def logits_of(outputs: Any) -> Any:
    """Return ``outputs.logits`` (or ``outputs["logits"]``) where there is one, else ``outputs``."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, dict) and "logits" in outputs:
        return outputs["logits"]
    return getattr(outputs, "logits", outputs)


def recognise(run: Callable[[dict[str, Any]], Any], inputs: dict[str, Any], key: str, labels: Any) -> LossRule:
    """Return the rule that reproduces the model's own ``.loss`` from its logits and labels.

    Candidates: token cross-entropy, shifted (causal language models) and not, mean squared error, and binary
    cross-entropy with logits. The nearest must agree to rounding, and the others must not.

    Args:
        run: calls the model with keyword arguments; returns what has ``loss`` and ``logits``.
        inputs: a batch without its labels.
        key: under which the batch holds its labels.
        labels: some of them not -100.

    Raises:
        UnsupportedError: the model has no loss, or none or several candidates agree with it.
    """
    try:
        outputs = run({**inputs, key: labels})
    except TypeError as error:
        raise UnsupportedError(f"loss=None needs a model that takes {key!r}; got: {error}. {_ASK}") from error
    own = outputs.get("loss") if isinstance(outputs, dict) else getattr(outputs, "loss", None)
    logits = logits_of(outputs)
    if not isinstance(own, Tensor) or not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        raise UnsupportedError(
            f"loss=None needs a model that returns .loss and .logits for batches with labels. {_ASK}"
        )
    if own.ndim != 0:
        raise ValueError(f"loss must be a scalar; got shape {tuple(own.shape)} from the model. {_ASK}")
    tolerance = 1e-2 if own.dtype in (torch.float16, torch.bfloat16) else 1e-5
    gaps = []
    for rule in _candidates(logits, labels):
        value = rule.mean(logits, labels, 1.0)
        gaps.append((abs(float(value) - float(own)) / max(abs(float(own)), 1e-6), rule))
    fitting = [rule for gap, rule in gaps if gap < tolerance]
    if len(fitting) != 1:
        found = "none of" if not fitting else "several of"
        tried = ", ".join(rule.name for _, rule in gaps) or "nothing that fits the shapes"
        raise UnsupportedError(
            f"The model's own loss ({float(own):.6g}) equals {found}: {tried}; "
            f"so what it averages over is unknown. {_ASK}"
        )
    return fitting[0]


def _candidates(logits: Tensor, labels: Tensor) -> list[LossRule]:
    if labels.is_floating_point():
        if labels.shape == logits.shape:
            squared = LossRule(F.mse_loss, "mean squared error", elementwise=True)
            return [squared, LossRule(F.binary_cross_entropy_with_logits, "binary cross-entropy", elementwise=True)]
        if logits.shape == (*labels.shape, 1):
            return [LossRule(_squeezed_mse, "mean squared error")]
        return []
    if logits.shape[:-1] != labels.shape:
        return []
    plain = LossRule(token_cross_entropy, "token cross-entropy", unit="tokens")
    if labels.ndim < 2 or labels.shape[-1] < 2:
        return [plain]
    return [LossRule(shifted_cross_entropy, "shifted token cross-entropy", unit="tokens", shift=True), plain]


def _squeezed_mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs.squeeze(-1), targets)


def needs_labels(run: Callable[[dict[str, Any]], Any], inputs: dict[str, Any], key: str, labels: Any) -> bool:
    """Return whether the model must be given its labels to make the logits (as encoder-decoders do).

    Without them it does not compute its own loss again beside the one that is measured.

    Args:
        run: calls the model with keyword arguments.
        inputs: the batch without labels.
        key: under which the batch holds its labels.
        labels: of the batch.
    """
    try:
        plain = logits_of(run(inputs))
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError):
        return True
    if not isinstance(plain, Tensor):
        return True
    try:
        full = logits_of(run({**inputs, key: labels}))
    except TypeError:
        return False
    return not (isinstance(full, Tensor) and full.shape == plain.shape and torch.equal(full, plain))


def extra_arguments(module: nn.Module) -> dict[str, Any]:
    """Return the keyword arguments that keep a transformers model from building caches nobody reads."""
    try:
        names = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return {}
    return {"use_cache": False} if "use_cache" in names and hasattr(module, "config") else {}


def require_differentiable_attention(module: nn.Module) -> None:
    """Refuse attention kernels from outside torch, which have no second derivative.

    Raises:
        UnsupportedError: with the name of the kernel.
    """
    kernel = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if isinstance(kernel, str) and any(word in kernel for word in _FIRST_ORDER_ATTENTION):
        raise UnsupportedError(
            f"The model's attention kernel {kernel!r} has no second derivative. "
            "Load it with attn_implementation='sdpa' or 'eager'."
        )

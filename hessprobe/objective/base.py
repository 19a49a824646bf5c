"""A loss on a flat parameter vector that is a weighted sum over batches: the interface, and what losses are made of.

- what a batch loss is an average of, so that batches of different sizes add up to one mean (``LossRule``);
- the loss that a model computes itself (transformers), recognised from its value so that it can be re-weighted;
- losses whose torch kernels lack a forward derivative of their gradient, written out of operations that have one.
"""

from __future__ import annotations

import functools
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, where
from torch.overrides import TorchFunctionMode

from hessprobe import checks
from hessprobe.errors import NonFiniteError, UnsupportedError
from hessprobe.objective.preconditioner import Preconditioner
from hessprobe.vectors import ParameterLayout


class BatchLoss(ABC):
    """The mean loss over one batch as a function of the flat parameters, twice differentiable.

    Attributes:
        weight: share of this batch in the objective; the weights of all batches sum to 1.
        size: number of examples (or counted tokens) in the batch.
        through_logits: whether ``loss_of_outputs`` is bent by what its outputs make (logits, never all alive) alone:
            its second derivative is then M^T (d^2 l / dz^2) M, M the Jacobian of the logits z in the outputs, and not
            the slope of its gradient.
    """

    weight: float = 1.0
    size: float = 1.0
    through_logits: bool = False

    @abstractmethod
    def __call__(self, theta: Tensor) -> Tensor:
        """Return the mean loss, a scalar, at ``theta`` (d,)."""

    def outputs(self, theta: Tensor) -> Tensor:
        """Return the model outputs f, shape (B, ..., C), whose loss is ``loss_of_outputs(f)``.

        Raises:
            UnsupportedError: the loss is computed inside the model, so that there are no outputs to speak of.
        """
        raise UnsupportedError(
            "The Gauss-Newton matrix needs model outputs and a loss on them, but this objective computes its loss "
            "inside forward. Pass loss= to EmpiricalRisk, or measure with operator='hessian'."
        )

    def loss_of_outputs(self, outputs: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of model outputs as ``outputs(theta)`` gives them."""
        raise UnsupportedError("This objective has no loss on outputs. Pass loss= to EmpiricalRisk.")

    def tensors(self) -> list[Tensor]:
        """Return every tensor that differs from batch to batch (inputs, targets, counts), in a fixed order.

        Empty where the batch is opaque (a user's forward on a foreign batch).
        """
        return []

    @property
    def signature(self) -> Hashable:
        """What besides the shapes of ``tensors()`` a recording of this loss depends on."""
        return ()

    def constants(self) -> list[Tensor]:
        """Return the tensors that are the same for all batches of a risk but another's may differ in, in a fixed order.

        These are parameters outside theta and buffers, of floating point.
        """
        return []

    def makes(self) -> tuple[Any, ...] | None:
        """Return the objects that make this loss out of theta, ``tensors()``, ``constants()`` and ``signature``.

        A recording serves another risk where these are of one kind; None where that cannot be told.
        """
        return None

    def rebind(self, tensors: list[Tensor], constants: list[Tensor] | None = None) -> BatchLoss:
        """Return the same loss on other values of ``tensors()``, and of ``constants()`` where these are given.

        One recording thus serves many batches, and other risks of the same kind.
        """
        raise UnsupportedError("This batch is opaque: its tensors cannot be exchanged.")

    def slice(self, start: int, stop: int) -> BatchLoss:
        """Return the loss of examples ``start .. stop - 1`` of this batch alone, its weight their share.

        Raises:
            UnsupportedError: the batch cannot be cut (its loss is computed by a user's forward on a foreign batch).
        """
        raise UnsupportedError("This batch cannot be cut into examples. Pass smaller batches.")


class Objective(ABC):
    """L(theta) = sum_b weight_b * L_b(theta).

    Attributes:
        dim: d, length of theta.
        dtype, device: of theta.
        theta: the point at which curvature is measured, flat (d,), detached.
        layout: named tensors inside theta.
        n_terms: number of batches.
        caveats: what a reader of any number measured on it should know, in sentences.
        group: the process group whose ranks share its products out; None where each makes its own, but inside
            ``hvp.pool.shared_out``.
        spread_over: the process group whose ranks hold its weights in parts; None where each has all of them.
        differentiable_once: whether its products can only be differences of gradients.
    """

    dim: int
    dtype: torch.dtype
    device: torch.device
    theta: Tensor
    layout: ParameterLayout
    n_terms: int = 1
    caveats: tuple[str, ...] = ()
    group: Any = None
    spread_over: Any = None
    differentiable_once: bool = False
    _preconditioner: Preconditioner | Callable[[], Preconditioner | None] | None = None

    @property
    def preconditioner(self) -> Preconditioner | None:
        """Of the optimizer that has trained theta, see ``objective.preconditioner``; None where it is not known.

        Set to a function it is made when it is first asked for.
        """
        if callable(self._preconditioner):
            self._preconditioner = self._preconditioner()
        return self._preconditioner

    @preconditioner.setter
    def preconditioner(self, given: Preconditioner | Callable[[], Preconditioner | None] | None) -> None:
        self._preconditioner = given

    def __repr__(self) -> str:
        kind, terms = type(self).__name__, self.n_terms
        return f"{kind}(dim={self.dim}, batches={terms}, dtype={self.dtype}, device={self.device})"

    @abstractmethod
    def terms(self) -> Iterator[BatchLoss]:
        """Yield the batches, in the same order at every call. Use inside ``evaluating()``."""

    def agreed(self, decide: Callable[[], Any]) -> Any:
        """Return ``decide()``, which may differ between ranks: of the first, where several evaluate this together."""
        return decide()

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a context in which losses may be evaluated; on leaving it, everything is as it was before."""
        return nullcontext()

    def loss(self, theta: Tensor | None = None) -> Tensor:
        """Return L(theta), a detached fp64 scalar; at ``self.theta`` by default."""
        at = self.theta if theta is None else theta
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with self.evaluating(), torch.no_grad():
            for term in self.terms():
                total += term.weight * term(at).double()
        return total

    def require_finite_loss(self, theta: Tensor | None = None) -> None:
        """Evaluate every batch at ``theta`` and refuse the first whose loss is nan or infinite.

        Raises:
            NonFiniteError: names that batch.
        """
        at = self.theta if theta is None else theta.detach()
        with self.evaluating(), torch.no_grad():
            for index, term in enumerate(self.terms()):
                value = term(at)
                if not bool(torch.isfinite(value)):
                    raise NonFiniteError(f"loss must be finite; got {float(value)} on batch {index}. Check that batch.")

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """Return the gradient of L at ``theta`` (``self.theta`` by default), shape (d,)."""
        at = (self.theta if theta is None else theta).detach()
        total = torch.zeros_like(at)
        with self.evaluating(), torch.enable_grad():
            for term in self.terms():
                leaf = at.clone().requires_grad_()
                value = term(leaf)
                if value.requires_grad:
                    (slope,) = torch.autograd.grad(value, leaf)
                    total.add_(slope, alpha=term.weight)
        return total


def require_objective(name: str, value: Any) -> Objective:
    """Return ``value`` if it is an objective.

    Raises:
        TypeError: it is not; the message says how to make one of what it is.
    """
    if isinstance(value, Objective):
        return value
    mend = "Make one with EmpiricalRisk(model, loss, data)."
    if isinstance(value, torch.nn.Module):
        mend = "Pass EmpiricalRisk(model, loss, data) in its place."
    elif hasattr(value, "matvecs") or hasattr(value, "__matmul__"):
        mend = "Of a matrix or an operator take trace, frobenius_norm, eigsh, logdet, diagonal or spectral_density."
    raise TypeError(f"{name} must be an objective such as EmpiricalRisk; got {type(value).__name__}. {mend}")


class SecondOrderLosses(TorchFunctionMode):
    """Inside, ``mse_loss``, ``huber_loss`` and ``soft_margin_loss`` are twice differentiable in every mode.

    Torch's own kernels fail under ``jvp`` of ``grad``: the first with an error about immutable zero tensors, and with a
    crash of the process under ``linearize``; the others for want of a formula. Values agree to rounding. Calls with
    outputs and targets of different shapes, weights or deprecated arguments go to torch's own function.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``TorchFunctionMode``."""
        kwargs = kwargs or {}
        substitute = _SUBSTITUTES.get(func)
        if substitute is None or not _plain(args, kwargs):
            return func(*args, **kwargs)
        options = {key: value for key, value in kwargs.items() if value is not None}
        reduction = options.pop("reduction", "mean")
        values = substitute(*args, **options)
        if reduction == "none":
            return values
        return values.sum() if reduction == "sum" else values.mean()


def _plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    given = {"input": args[0] if args else None, "target": args[1] if len(args) == 2 else None, **kwargs}
    known = {"input", "target", "reduction", "delta"}
    unusual = [key for key, value in given.items() if key not in known and value is not None]
    both = [given["input"], given["target"]]
    standard = given.get("reduction", "mean") in ("mean", "sum", "none")
    return standard and not unusual and all(isinstance(t, Tensor) for t in both) and both[0].shape == both[1].shape


def _squared(input: Tensor, target: Tensor) -> Tensor:
    return (input - target).square()


def _huber(input: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    size = (input - target).abs()
    return where(size <= delta, size.square() / 2, delta * (size - delta / 2))


def _soft_margin(input: Tensor, target: Tensor) -> Tensor:
    return F.softplus(-target * input)


_SUBSTITUTES: dict[Any, Callable[..., Tensor]] = {
    F.mse_loss: _squared,
    F.huber_loss: _huber,
    F.soft_margin_loss: _soft_margin,
}


WEIGHTINGS = ("auto", "examples", "tokens")
# What a recipe and a checkpoint may name.
LOSSES: dict[str, Callable[[], nn.Module]] = {"cross-entropy": nn.CrossEntropyLoss}

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


# The way out for models that compute their losses themselves, from lists of images and of what is in them.
OWN_LOSSES = "forward=lambda m, b: (sum(m(*b).values()) * len(b[0]), len(b[0]))"
HOW_A_LIST_IS_PASSED = (
    " A list of inputs is passed as the model's arguments; one that takes a list, or its targets too, needs forward= "
    f"instead of loss=, for a detector that returns a dict of losses {OWN_LOSSES}."
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


def make_loss(name: str, layout: str = "vector") -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss, a mean over the batch, by name, so that a checkpoint can say which one it was trained with.

    Args:
        name: a name in ``LOSSES``.
        layout: with ``"tokens"`` outputs are (B, T, C) and targets (B, T), and the mean is over all tokens.

    Raises:
        ValueError: unknown name; the message names the nearest one.
    """
    checks.one_of("loss", name, LOSSES)
    return token_cross_entropy if layout == "tokens" else LOSSES[name]()


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
    if not isinstance(outputs, Tensor) and "must be Tensor" in reason:
        return f"The model returns {_parts(outputs)}: choose in the loss, as lambda o, t: loss(o{_place(outputs)}, t)."
    if "has no attribute" in reason:
        return "The loss gets the logits alone of a model that returns several things: use them, or pass forward=."
    if about_dtype(reason):
        return "Convert the targets: class labels to int64 (.long()), others to the dtype of the outputs."
    return "Check the order and shapes in data."


def _parts(outputs: Any) -> str:
    named = outputs.items() if isinstance(outputs, dict) else getattr(outputs, "__dict__", {}).items()
    if isinstance(outputs, list | tuple):
        names = getattr(outputs, "_fields", range(len(outputs)))
        named = zip(names, outputs, strict=True)
    listed = ", ".join(f"{name}: {_shape(value)}" for name, value in list(named)[:4])
    return f"several things ({listed})" if listed else f"a {type(outputs).__name__}"


def _place(outputs: Any) -> str:
    """Return how the first tensor of the outputs is asked for."""
    if isinstance(outputs, dict):
        return f"[{next(iter(outputs))!r}]" if outputs else "[...]"
    if isinstance(outputs, list | tuple):
        return f".{outputs._fields[0]}" if hasattr(outputs, "_fields") else "[0]"
    return f".{next(iter(getattr(outputs, '__dict__', {})), '...')}"


def _is_labels(targets: Any) -> bool:
    return isinstance(targets, Tensor) and not targets.is_floating_point()


def _shape(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


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

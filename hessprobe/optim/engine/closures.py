"""The three kinds of closure that a step can be given, each run wherever the engine has moved the weights to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from hessprobe.optim.engine.owner import Owner
from hessprobe.optim.engine.requests import At

ClosureKind = Literal["backward", "per-sample", "outputs"]


@dataclass(frozen=True)
class Passed:
    """What one run of a closure gave, its gradients being in ``.grad``; see ``Evaluation``."""

    loss: Tensor
    losses: Tensor | None = None
    cotangent: Tensor | None = None
    computed_gradient: bool = True


@dataclass(frozen=True)
class Pass:
    """One shard of the step's examples.

    Attributes:
        kind: ``"backward"``: ``closure()`` computes the loss, calls backward and returns the loss, as in torch;
            ``"per-sample"``: ``closure(subset)`` returns the losses (n,) of the examples in ``subset`` (an index
            tensor, or None for all) with their graph, and does not call backward;
            ``"outputs"``: ``closure()`` returns (outputs, loss) with their graph, and does not call backward.
        closure: of that kind.
        loss: forward only, returns the loss with its graph; where a rule needs that, else None.
        scaler: the loss is multiplied by its scale before backward where the engine calls backward.
    """

    kind: ClosureKind
    closure: Callable[..., Any]
    loss: Callable[[], Tensor] | None = None
    scaler: Any = None

    def run(self, request: At) -> Passed:
        """Evaluate at the present weights.

        Raises:
            TypeError: the closure returned something other than its kind does.
        """
        if request.loss_only:
            return self._forward(request)
        with torch.enable_grad():
            if self.kind == "backward":
                return Passed(_scalar(self.closure()))
            if self.kind == "per-sample":
                losses = _by_example(self.closure(request.subset))
                self._backward(losses.mean())
                return Passed(losses.detach().mean(), losses=losses.detach())
            return self._through_outputs(request)

    def _through_outputs(self, request: At) -> Passed:
        outputs, loss = _pair(self.closure())
        (cotangent,) = torch.autograd.grad(loss, outputs, retain_graph=True)
        pulled = cotangent if request.cotangent is None else request.cotangent
        torch.autograd.backward(outputs, pulled if self.scaler is None else self.scaler.scale(pulled))
        return Passed(loss.detach(), cotangent=cotangent.detach())

    def _forward(self, request: At) -> Passed:
        if self.kind == "per-sample":
            with torch.no_grad():
                losses = _by_example(self.closure(request.subset))
            return Passed(losses.mean(), losses=losses, computed_gradient=False)
        if self.kind == "outputs":
            with torch.no_grad():
                return Passed(_pair(self.closure())[1], computed_gradient=False)
        if self.loss is None:
            # A closure that calls backward is all there is: its gradient is computed and dropped, and counted.
            with torch.enable_grad():
                return Passed(_scalar(self.closure()))
        with torch.no_grad():
            return Passed(_scalar(self.loss()), computed_gradient=False)

    def _backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss if self.scaler is None else self.scaler.scale(loss))


def passes_of(optimizer: Owner, closure: Any, loss: Callable[[], Tensor] | None, scaler: Any) -> list[Pass]:
    """Return the passes of a step that ``SharpnessAware.step`` is given.

    Raises:
        ValueError: the rule wants ``loss``, and there is none.
        TypeError: ``closure`` is neither a function nor a non-empty list of functions.
    """
    if optimizer.needs_loss and loss is None:
        raise ValueError(
            f"{type(optimizer).__name__} must be given loss=, a function that returns the loss without backward; got "
            "None. Call opt.step(closure, loss=lambda: criterion(model(x), y))."
        )
    if closure is None:
        closure = backward_of(cast(Callable[[], Tensor], loss), scaler)
    closures = list(closure) if isinstance(closure, Iterable) else [closure]
    if not closures or not all(callable(one) for one in closures):
        raise TypeError(f"closure must be a function or a non-empty list of functions; got {closure!r}.")
    own = None if optimizer.closure_kind == "backward" else scaler
    return [Pass(optimizer.closure_kind, one, loss, own) for one in closures]


def backward_of(loss: Callable[[], Tensor], scaler: Any = None) -> Callable[[], Tensor]:
    """Return the closure that computes ``loss`` and calls backward."""

    def closure() -> Tensor:
        value = loss()
        torch.autograd.backward(value if scaler is None else scaler.scale(value))
        return value

    return closure


def _scalar(loss: Any) -> Tensor:
    if isinstance(loss, (float, int)):
        return torch.tensor(float(loss))
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"closure must return the loss, a tensor of one number; got {what}. End it with 'return loss'.")
    return loss.detach().reshape(())


def _by_example(losses: Any) -> Tensor:
    if not isinstance(losses, Tensor) or losses.ndim != 1 or not len(losses):
        what = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise TypeError(
            f"closure must return one loss an example, a tensor (n,); got {what}. "
            "Use reduction='none', and do not call backward in it."
        )
    return losses


def _pair(value: Any) -> tuple[Tensor, Tensor]:
    if not (isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, Tensor) for part in value)):
        raise TypeError(
            f"closure must return (outputs, loss), two tensors; got {type(value).__name__}. Do not call backward in it."
        )
    return value

"""A step taken by hand: ``with opt.ascend(): ...`` as often as the rule wants, then ``opt.descend()``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from hessprobe.optim.engine.buffers import BufferGuard
from hessprobe.optim.engine.gradients import Gradients
from hessprobe.optim.engine.memory import Memory
from hessprobe.optim.engine.owner import Owner
from hessprobe.optim.engine.ranks import average_over_ranks
from hessprobe.optim.engine.requests import Apply, At, Curvature, Evaluation, Outcome, StepReport
from hessprobe.optim.engine.tensors import TensorList
from hessprobe.optim.engine.updates import decouple, resolved
from hessprobe.optim.engine.weights import Weights

_Optimizer = TypeVar("_Optimizer")

_BY_HAND = ("first_step() or ascend()", "second_step() or descend()")


class ManualStep:
    """Drives the rule of ``optimizer`` from gradients that the caller computes."""

    def __init__(self, optimizer: Owner) -> None:
        self._owner = optimizer
        self._gradients = Gradients(optimizer.parameters(), optimizer.fused(), optimizer.takes_sparse)
        self._rule = optimizer.rule()
        self._request: At | None = None
        self._outcome: Outcome | None = None
        self._started = False
        # What the first pass makes of the buffers stays; it lies behind us where its gradient is there already.
        self._buffers = BufferGuard(optimizer.model)
        optimizer.last = StepReport()

    def wants_ascent(self) -> bool:
        """Return whether the rule wants another evaluation; the first is the gradient at w, already in ``.grad``."""
        self._start()
        return self._request is not None

    @contextmanager
    def ascend(self) -> Iterator[None]:
        """Displace the weights for the body, which computes the loss there and calls backward."""
        name = type(self._owner).__name__
        if not self.wants_ascent() or self._request is None:
            raise RuntimeError(f"{name} wants no further ascend() in this step; call opt.descend().")
        request, counts = self._request, self._owner.last.evaluations == 0
        self._gradients.clear()
        if not counts:
            self._buffers.keep_all()
        try:
            with torch.no_grad():
                self._owner.weights.displace(request.displacement)
            yield
            gradient = self._gradients.take()
            self._buffers.restore()
        except BaseException:
            self._owner.abandon()
            raise
        self._owner.weights.restore()
        self._owner.last.evaluations += 1
        self._send(Evaluation(_unknown(gradient), gradient))

    def descend(self) -> None:
        """Hand the rule's gradient to the base optimizer."""
        owner = self._owner
        if self.wants_ascent() or self._outcome is None:
            raise RuntimeError(
                f"{type(owner).__name__} wants another evaluation before descend(). "
                "Write 'while opt.wants_ascent():' above 'with opt.ascend():'."
            )
        with torch.no_grad():
            update = resolved(self._outcome)
        if update.lr is not None:
            raise RuntimeError(
                f"{type(owner).__name__} sets its own step size and cannot be stepped by hand; use opt.step(closure)."
            )
        direction = average_over_ranks(owner, update.gradient)
        self._gradients.put(direction if update.is_clipped else owner.clipped(direction))
        owner.base_optimizer.step()
        with torch.no_grad():
            if update.decoupled is not None:
                decouple(owner, average_over_ranks(owner, update.decoupled))
            if update.then is not None:
                update.then()
        owner.memory.remember_number("step", owner.t)
        owner.memory.commit()

    def _start(self) -> None:
        if self._started:
            return
        if self._owner.closure_kind != "backward" or self._owner.needs_loss:
            raise RuntimeError(f"{type(self._owner).__name__} needs more than gradients; use opt.step(closure).")
        self._started = True
        self._send(None)
        if self._request is not None and self._request.displacement is None:
            gradient = self._gradients.take()
            self._owner.last.evaluations += 1
            self._send(Evaluation(_unknown(gradient), gradient))

    def _send(self, evaluation: Evaluation | None) -> None:
        try:
            with torch.no_grad():
                request = self._rule.send(evaluation)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as done:
            self._outcome, self._request = done.value, None
            return
        if isinstance(request, Apply):
            self._owner.abandon()
            raise RuntimeError(
                f"{type(self._owner).__name__} evaluates after its step as well and cannot be stepped by hand; "
                "use opt.step(closure)."
            )
        if isinstance(request, Curvature) or request.loss_only:
            self._owner.abandon()
            raise RuntimeError(
                f"{type(self._owner).__name__} needs losses or curvature; use opt.step(closure, loss=...)."
            )
        self._request = request


def _unknown(gradient: TensorList) -> Tensor:
    # Rules that only look at gradients never read it; one that does shows nan rather than a wrong number.
    return torch.full((), float("nan"), device=gradient.tensors[0].device)


def itself(optimizer: _Optimizer) -> _Optimizer:
    """Return the optimizer behind a wrapper that imitates its class, as Lightning's does.

    Methods found through that class are handed the wrapper, on which nothing may be kept.
    """
    found: Any = optimizer
    while "base_optimizer" not in found.__dict__ and "_optimizer" in found.__dict__:
        found = found._optimizer
    return cast(_Optimizer, found)


class StepsByHand:
    """The half of an optimizer that loops without closures call: ``first_step``, ``ascend``, ``descend``."""

    _manual: ManualStep | None
    _phase: AbstractContextManager[None] | None

    if TYPE_CHECKING:
        # Of the optimizer whose half this is.
        _staged: Any
        weights: Weights
        memory: Memory
        rule_in_use: bool
        _clip_grad_norm: float | None
        prepare: Callable[[], None]
        step: Callable[..., Tensor | None]
        zero_grad: Callable[..., None]

    def ascend(self) -> AbstractContextManager[None]:
        """For loops written by hand: inside, the weights are displaced; compute the loss and call backward there.

        Before the first ``with opt.ascend():`` call backward at the weights themselves; after it call ``descend()``. A
        rule with more points wants more of them, see ``wants_ascent``.
        """
        return itself(self)._manual_step().ascend()

    def wants_ascent(self) -> bool:
        """Return whether the rule wants (another) ``with opt.ascend():`` before ``descend()``."""
        owner = itself(self)
        owner._leave_phase()
        return owner._manual_step().wants_ascent()

    def descend(self, *, clip_grad_norm: float | None = None) -> None:
        """Take the step that the evaluations since the last one lead to."""
        itself(self)._manual_step()
        # By its name: learning-rate schedulers, hooks and trainers count the calls of ``step``.
        self.step(clip_grad_norm=clip_grad_norm)

    def first_step(self, zero_grad: bool = False) -> None:
        """Displace the weights after a first backward: the name that loops written for other packages use.

        A rule with more points wants it after every backward but the last, see ``wants_ascent``.

        Args:
            zero_grad: accepted as there; the gradients are cleared in any case.
        """
        del zero_grad
        owner = itself(self)
        owner._leave_phase()
        phase = owner._manual_step().ascend()
        phase.__enter__()
        owner._phase = phase

    def second_step(self, zero_grad: bool = False, *, clip_grad_norm: float | None = None) -> None:
        """Restore the weights after a second backward and take the step; ``step()`` does the same.

        Args:
            zero_grad: clear the gradients afterwards.
            clip_grad_norm: see ``step``.

        Raises:
            RuntimeError: without a ``first_step`` before it, or where the rule wants another one.
        """
        if itself(self)._manual is None:
            raise RuntimeError("second_step() must follow first_step(); call first_step() after the first backward.")
        self.step(clip_grad_norm=clip_grad_norm)
        if zero_grad:
            self.zero_grad()

    def _manual_step(self) -> ManualStep:
        if self._manual is None:
            self.rule_in_use = True
            self.prepare()
            self._manual = ManualStep(cast(Owner, self))
        return self._manual

    def abandon(self) -> None:
        """Forget a step that was begun, after putting the weights back."""
        self.weights.restore()
        self.memory.discard()
        self._manual = self._phase = self._staged = None

    def _is_ended_by(self, closure: Any, loss: Any) -> bool:
        """Return whether this call of ``step`` evaluates nothing: it has no closure, or one that calls no backward.

        Lightning runs its hooks in a closure, and clips there, also where the gradients are there already.

        Raises:
            RuntimeError: the closure calls backward within a step that was begun.
        """
        if closure is None:
            return loss is None
        if self._manual is None and self._staged is None:
            return False
        parameters = cast(Owner, self).parameters()
        found = [p.grad for p in parameters]
        if self._manual is not None:
            self.zero_grad()
        is_empty = callable(closure) and not computes_gradients(closure, parameters)
        if self._manual is not None:
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = gradient
        if is_empty:
            return True
        begun, end = ("evaluate()", "step()") if self._manual is None else _BY_HAND
        if self._manual is None:
            self.abandon()  # its gradients have been added to
        raise RuntimeError(
            f"step(closure) must not be called inside a step by hand; got one that {begun} has begun. End it with "
            f"{end}."
        )

    def _leave_phase(self) -> None:
        phase, self._phase = self._phase, None
        if phase is not None:
            phase.__exit__(None, None, None)

    def _end_manual_step(self, clip_grad_norm: float | None) -> None:
        self._leave_phase()
        self._clip_grad_norm = clip_grad_norm
        try:
            self._manual_step().descend()
        finally:
            self.abandon()


def computes_gradients(closure: Callable[[], object], parameters: Sequence[Tensor]) -> bool:
    """Call ``closure`` and return whether a backward pass in it has reached a parameter."""
    reached: list[bool] = []
    handles = [_hook(p, reached) for p in parameters]
    try:
        closure()
    finally:
        for handle in handles:
            handle.remove()
    return bool(reached)


def _hook(parameter: Any, reached: list[bool]) -> Any:
    return parameter.register_post_accumulate_grad_hook(lambda _: reached.append(True))

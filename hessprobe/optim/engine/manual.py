"""A step taken by hand: ``with opt.ascend(): ...`` as often as the rule wants, then ``opt.descend()``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hessprobe.optim.engine.buffers import BufferGuard
from hessprobe.optim.engine.gradients import Gradients
from hessprobe.optim.engine.owner import Owner
from hessprobe.optim.engine.ranks import average_over_ranks
from hessprobe.optim.engine.requests import Apply, At, Curvature, Evaluation, Outcome, StepReport
from hessprobe.optim.engine.tensors import TensorList
from hessprobe.optim.engine.updates import decouple, resolved


class ManualStep:
    """Drives the rule of ``optimizer`` from gradients that the caller computes."""

    def __init__(self, optimizer: Owner) -> None:
        self._owner = optimizer
        self._gradients = Gradients(optimizer.parameters(), optimizer.fused())
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

"""One step: answers what a rule asks, then hands its gradient to the base optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hessprobe.errors import NonFiniteError, about
from hessprobe.optim.engine.buffers import BufferGuard
from hessprobe.optim.engine.closures import Pass
from hessprobe.optim.engine.curvature import hessian_of
from hessprobe.optim.engine.gradients import Accumulated, Gradients
from hessprobe.optim.engine.owner import Owner
from hessprobe.optim.engine.randomness import Replay, replayed
from hessprobe.optim.engine.ranks import acts_locally, average_over_ranks, on_every_rank, without_gradient_averaging
from hessprobe.optim.engine.requests import Apply, At, Curvature, Evaluation, Outcome, Rule, StepReport, Update
from hessprobe.optim.engine.tensors import TensorList
from hessprobe.optim.engine.updates import LearningRate, decouple, resolved


class _SkippedError(Exception):
    """A gradient is not finite and a scaler is there to deal with it."""


class Execution:
    """Runs the rule of ``optimizer`` on the passes of one step.

    Args:
        optimizer: prepared.
        passes: the shards of the step.
        shares: their weights, summing to 1.
        scaler: the ``GradScaler``, or None.
        accumulated: gradients that the first closure has to clear.
        is_staged: the caller clips, unscales and steps between ``evaluate`` and ``finish``.
    """

    def __init__(
        self,
        optimizer: Owner,
        passes: Sequence[Pass],
        shares: Sequence[float],
        scaler: Any = None,
        accumulated: Accumulated | None = None,
        is_staged: bool = False,
    ) -> None:
        self._owner, self._scaler, self.report = optimizer, scaler, StepReport()
        self._shards = list(zip(passes, shares, strict=True))
        self._parameters = optimizer.parameters()
        self._gradients = Gradients(self._parameters, optimizer.fused(), optimizer.takes_sparse)
        self._buffers = BufferGuard(optimizer.model)
        self._random = Replay({p.device for p in self._parameters}) if optimizer.rng == "same" else None
        self._accumulated, self._is_staged = accumulated, is_staged
        self._pending: Update | None = None
        # A rule that goes on after its step, and what it is run on.
        self._rest: tuple[Rule, Sequence[tuple[Pass, float]]] | None = None
        self._seen: set[int] = set()
        self._first: TensorList | None = None
        self._last: TensorList | None = None
        self._number, self._applied, self._told = optimizer.t, False, False

    def step(self) -> Tensor | None:
        """Take the step; return the loss at the first point. See ``SharpnessAware.step``."""
        self.evaluate()
        self.finish()
        return self.report.loss

    def evaluate(self) -> Tensor | None:
        """Do what comes before the base step, whose gradient is in ``.grad`` then; return the loss."""
        with self._guarded():
            self._buffers.before()
            self._place(self._directions())
        return self.report.loss

    def finish(self) -> None:
        """Take the base step, and what the rule wants after it; nothing where ``evaluate`` has found it skipped."""
        while self._pending is not None:
            with self._guarded():
                update, self._pending = self._pending, None
                self._take(update)
                if self._rest is not None:
                    (rule, shards), self._rest = self._rest, None
                    self._place(self._drive(rule, shards))

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        owner = self._owner
        try:
            with torch.no_grad(), self._synchronised():
                yield
        except (_SkippedError, NonFiniteError) as failure:
            if not self._told:
                on_every_rank(owner, False)
            if isinstance(failure, NonFiniteError):
                raise
            self._skip()
        finally:
            owner.weights.restore()
            self._buffers.restore()
            # What was remembered waits for the base step.
            if self._pending is None:
                owner.memory.discard()

    def _directions(self) -> Outcome | None:
        owner = self._owner
        if owner.accumulate == "global" or len(self._shards) == 1:
            return self._drive(owner.rule(), self._shards)
        if owner.vectors or owner.numbers:
            raise ValueError(
                about(
                    "accumulate",
                    f"must be 'global' for {type(owner).__name__}, which remembers vectors or numbers between "
                    "steps; got 'per_microbatch'. Use accumulate='global'.",
                )
            )
        total: TensorList | None = None
        is_clipped = False
        clean, perturbed = _Mean(), _Mean()
        for one, share in self._shards:
            self.report.loss = self.report.perturbed_loss = None
            outcome = self._drive(owner.rule(), [(one, 1.0)])
            self.report.loss = clean.add(self.report.loss, share)
            self.report.perturbed_loss = perturbed.add(self.report.perturbed_loss, share)
            update = Update(TensorList([]), lr=0.0) if outcome is None else resolved(outcome)
            if any(part is not None for part in (update.decoupled, update.then, update.lr)):
                raise ValueError(
                    about(
                        "accumulate",
                        f"must be 'global' for {type(owner).__name__}, whose update is more than a gradient; "
                        "got 'per_microbatch'. Use accumulate='global'.",
                    )
                )
            owner.weights.restore()
            direction, is_clipped = update.gradient, update.is_clipped
            total = direction * share if total is None else total.add_(direction, alpha=share)
        if total is None:
            raise ValueError("closure must be a non-empty list; got an empty one.")
        return Update(total, is_clipped=is_clipped)

    def _drive(self, rule: Rule, shards: Sequence[tuple[Pass, float]]) -> Outcome | None:
        answer: Evaluation | None = None
        while True:
            try:
                request = rule.send(answer)  # type: ignore[arg-type]  # None starts a generator
            except StopIteration as done:
                outcome: Outcome | None = done.value
                return outcome
            # What the rule has let go of must not be held here while the next pass fills the memory with activations.
            answer = None
            if isinstance(request, Apply):
                self._rest = (rule, shards)
                return request.update
            if isinstance(request, Curvature):
                answer = self._curvature(request)
                continue
            self._owner.weights.displace(request.displacement)
            self._note_displacement(request)
            request = replace(request, displacement=None)
            answer = self._evaluate(request, shards)

    # -- answering --------------------------------------------------------------------------------

    def _evaluate(self, request: At, shards: Sequence[tuple[Pass, float]]) -> Evaluation:
        if request.shard is not None:
            shards = [(_shard(shards, request.shard, type(self._owner).__name__), 1.0)]
        if len(shards) == 1:
            result = self._one(request, shards[0][0])
        else:
            result = self._mean([(self._one(request, one), share) for one, share in shards])
        self._note(request, result)
        return result

    def _one(self, request: At, one: Pass) -> Evaluation:
        self._gradients.before_pass()
        first = id(one) not in self._seen
        self._seen.add(id(one))
        accumulated, self._accumulated = self._accumulated, None
        if accumulated is not None:
            accumulated.mark()
        # DistributedDataParallel waits for every gradient, wanted or not.
        frozen = None if torch.distributed.is_initialized() else request.frozen
        with _frozen(self._parameters, frozen), replayed(self._random, id(one)):
            try:
                passed = one.run(request)
            except BaseException:
                if accumulated is not None:
                    accumulated.put_back()
                raise
        if accumulated is not None:
            accumulated.refuse_kept(type(self._owner).__name__)
        # The first pass over a shard is the one that counts for running statistics.
        if first:
            self._buffers.keep()
        else:
            self._buffers.restore()
        if passed.computed_gradient:
            self.report.evaluations += 1
        else:
            self.report.forwards += 1
        if request.loss_only:
            self._gradients.clear()
            return Evaluation(passed.loss, TensorList([]), passed.losses, passed.cotangent)
        gradient = self._gradients.take(1.0 if self._scaler is None else 1.0 / self._scaler.get_scale())
        self._require_finite(passed.loss, gradient)
        if request.frozen is not None and frozen is None:
            gradient = gradient.where([not still for still in request.frozen])
        return Evaluation(passed.loss, gradient, passed.losses, passed.cotangent)

    def _mean(self, parts: Sequence[tuple[Evaluation, float]]) -> Evaluation:
        first, share = parts[0]
        loss, gradient = first.loss * share, first.gradient * share
        for part, weight in parts[1:]:
            loss = loss + part.loss * weight
            gradient = gradient.add_(part.gradient, alpha=weight) if len(gradient) else gradient
        if any(part.losses is not None or part.cotangent is not None for part, _ in parts):
            raise TypeError(
                f"{type(self._owner).__name__} must be given one closure; got a list of {len(parts)}. "
                "Give it the whole batch at once."
            )
        return Evaluation(loss, gradient)

    def _curvature(self, request: Curvature) -> Evaluation:
        loss = self._shards[0][0].loss
        if loss is None or len(self._shards) > 1:
            raise ValueError(
                f"{type(self._owner).__name__} must be given one closure and loss=; got {len(self._shards)} closures"
                f"{'' if loss else ' and no loss'}. Pass loss=lambda: criterion(model(x), y)."
            )
        self._owner.weights.displace(request.displacement)
        self._gradients.clear()
        operator = hessian_of(loss, self._parameters)
        # The graph is built at the first product: inside, so that it sees the masks of the other passes.
        with torch.enable_grad(), replayed(self._random, id(self._shards[0][0])):
            result = request.use(operator)
        self._buffers.restore()
        self.report.products += operator.products
        self._gradients.clear()
        return Evaluation(torch.zeros(()), TensorList([]), result=result)

    def _note(self, request: At, result: Evaluation) -> None:
        report = self.report
        if report.loss is None:
            report.loss = result.loss
        if self._owner.weights.displaced:
            report.perturbed_loss = result.loss
        if request.loss_only or not self._owner.diagnostics:
            return
        if self._first is None:
            self._first = result.gradient
        self._last = result.gradient

    def _note_displacement(self, request: At) -> None:
        moved = request.displacement
        if self._owner.diagnostics and moved is not None and not request.loss_only:
            self.report.displacement_norm = (moved if isinstance(moved, TensorList) else moved.dense()).norm()

    def _require_finite(self, loss: Tensor, gradient: TensorList) -> None:
        if self._scaler is not None:
            if not bool(torch.isfinite(gradient.norm())):
                self._gradients.give_back()
                raise _SkippedError
            return
        wanted = self._owner.check_finite
        if wanted is None:
            wanted = loss.device.type == "cpu"
        if wanted and not bool(torch.isfinite(loss)):
            where = "at the weights" if not self._owner.weights.displaced else "at the displaced weights"
            radii = sorted({float(rho) for rho in self._owner.group_values("rho")})
            raise NonFiniteError(
                f"The loss {where} is {float(loss)} in step {self._number}, with rho "
                f"{', '.join(f'{r:g}' for r in radii)}; the weights are as {'after' if self._applied else 'before'} "
                "the step. "
                "Lower the learning rate or rho."
            )

    # -- finishing --------------------------------------------------------------------------------

    def _place(self, outcome: Outcome | None) -> None:
        """Put the gradient of the base step into ``.grad``, scaled as the loss is."""
        owner = self._owner
        self._agree()
        if outcome is None:
            owner.memory.commit()
            return
        owner.weights.restore()
        update = resolved(outcome)
        self._diagnose()
        direction = average_over_ranks(owner, update.gradient)
        lr = update.lr(direction) if callable(update.lr) else update.lr
        if not (update.is_clipped or self._is_staged):
            # Not in place: the rule may have remembered the vector.
            direction = owner.clipped(direction)
        scale = 1.0 if self._scaler is None else self._scaler.get_scale()
        if scale != 1.0:
            direction = direction * scale
        elif self._is_staged:
            # Whoever clips it does so in place.
            direction = direction.clone()
        self._gradients.put(direction)
        self._pending = replace(update, lr=lr, gradient=TensorList([]))

    def _take(self, update: Update) -> None:
        owner = self._owner
        scaler = None if self._is_staged else self._scaler
        if scaler is not None:
            scaler.unscale_(owner.base_optimizer)
        with LearningRate(owner.base_optimizer, update.lr):
            if scaler is None:
                owner.base_optimizer.step()
            else:
                scaler.step(owner.base_optimizer)
        if update.decoupled is not None:
            decouple(owner, average_over_ranks(owner, update.decoupled))
        if update.then is not None:
            update.then()
        owner.memory.remember_number("step", owner.t)
        owner.memory.commit()
        self._applied = True

    def _agree(self) -> None:
        """Stop where another rank has: passes are not in step under ``sync="local"``, so it is asked once, after them.

        Raises:
            NonFiniteError: there, without a scaler.
        """
        if on_every_rank(self._owner, True):
            return
        self._told = True
        if self._scaler is not None:
            if not self._applied:
                self._gradients.spoil()  # the scalers of all ranks must do the same
            raise _SkippedError
        raise NonFiniteError(
            f"A loss on another rank is not finite in step {self._number}; the weights are as "
            f"{'after' if self._applied else 'before'} the step. Lower the learning rate or rho."
        )

    def _skip(self) -> None:
        self._owner.weights.restore()
        if self._applied:
            # The step was taken; what overflowed is what the next one was to start from, which it does without.
            self._gradients.clear()
            return
        self.report.skipped = True
        if self._is_staged:
            return  # the caller's scaler finds them
        # The gradients are left as they came, not finite: the scaler finds them so, takes no step and lowers its scale.
        self._scaler.unscale_(self._owner.base_optimizer)
        self._scaler.step(self._owner.base_optimizer)

    def _diagnose(self) -> None:
        if self._first is None or self._last is None:
            return
        report = self.report
        report.gradient_norm, report.perturbed_gradient_norm = self._first.norm(), self._last.norm()
        product = (report.gradient_norm * report.perturbed_gradient_norm).clamp_min(self._owner.eps)
        report.cosine = self._first.dot(self._last) / product

    def _synchronised(self) -> AbstractContextManager[Any]:
        return without_gradient_averaging(self._owner) if acts_locally(self._owner) else nullcontext()


class _Mean:
    """A weighted sum of losses, None where one is unknown."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._known = True

    def add(self, loss: Tensor | None, share: float) -> Tensor | None:
        """Add one and return the sum so far."""
        if loss is None:
            self._known = False
        else:
            self._total = loss * share if self._total is None else self._total + loss * share
        return self._total if self._known else None


def _frozen(parameters: Sequence[Tensor], frozen: Sequence[bool] | None) -> AbstractContextManager[Any]:
    if frozen is None:
        return nullcontext()
    stack = ExitStack()
    for parameter, still in zip(parameters, frozen, strict=True):
        if still:
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_, True)
    return stack


def _shard(shards: Sequence[tuple[Pass, float]], index: int, name: str) -> Pass:
    if index >= len(shards):
        raise ValueError(
            f"closure must be a list of at least {index + 1} closures for {name}; got {len(shards)}. "
            "Give it one closure for each batch."
        )
    return shards[index][0]

"""The engine under every sharpness-aware optimizer: it moves, evaluates, restores, steps; a rule says where."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeAlias, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from hessprobe import checks
from hessprobe.optim.engine import randomness
from hessprobe.optim.engine.arguments import explained, require_base, shard_shares, split_call
from hessprobe.optim.engine.closures import ClosureKind, Pass, passes_of
from hessprobe.optim.engine.execution import Execution
from hessprobe.optim.engine.gradients import Accumulated, Leftovers
from hessprobe.optim.engine.manual import StepsByHand, itself
from hessprobe.optim.engine.memory import Memory
from hessprobe.optim.engine.plain import plain_step, refuse_scaler_step
from hessprobe.optim.engine.ranks import require_wrapped
from hessprobe.optim.engine.requests import Displacement, Rule, StepReport
from hessprobe.optim.engine.tensors import Scalar, TensorList, any_sharded, prefers_foreach, read_on_cpu
from hessprobe.optim.engine.weights import Weights
from hessprobe.optim.schedules import Schedule

Closures: TypeAlias = Callable[..., Any] | Sequence[Callable[..., Any]]


class SharpnessAware(StepsByHand, torch.optim.Optimizer):
    """A ``torch.optim.Optimizer`` around another: gradients are taken where a rule wants them, the base takes the step.

    It shares ``param_groups`` and ``state`` with the base optimizer, so learning-rate schedulers act on both and
    ``state_dict()`` has the ordinary two keys: a checkpoint of plain SGD or AdamW loads into it, and back. Groups may
    carry their own ``rho`` and ``perturb=False``.

    Subclasses define ``rule``: a generator that yields ``At`` (where to evaluate) and returns the gradient for the
    base.

    Args:
        base_optimizer: any constructed optimizer that takes its gradients from ``.grad``.
        rho: radius >= 0 of the displacement, in the norm of all perturbed parameters together; or a schedule
            ``(t, lr) -> rho`` (see ``hessprobe.optim.schedules``).
        model: the module whose BatchNorm statistics and other buffers are to be updated once a step; without it every
            pass updates them.
        seed: of a rule's own random draws, >= 0; they depend on seed and step number only.
        rng: ``"fresh"``, or ``"same"`` to replay the global generators, so that every pass has the same dropout masks.
        accumulate: with a list of closures, ``"global"`` (one displacement from the mean gradient) or
            ``"per_microbatch"`` (one for each closure: m-sharpness).
        sync: under DistributedDataParallel, ``"global"`` or ``"local"`` (every rank displaces along its own gradient,
            and what enters the update is averaged); for the latter ``model`` must be the wrapped module.
        foreach: fused arithmetic; by default where it is faster.
        diagnostics: also compute the norms and the cosine of ``last``, for two more reads of the gradients.
        check_finite: refuse a nan or infinite loss before anything changes; by default on a CPU, where that is free.
        eps: added to norms that divide.

    Attributes:
        base_optimizer: the wrapped one.
        last: what the last step did, a ``StepReport``.
        closure_kind: which closure ``step`` takes, see ``hessprobe.optim.engine.closures.Pass``.
        needs_loss: whether ``step`` must be given ``loss=``.
        vectors: names of the vectors the rule remembers.
        numbers: names and first values of the numbers it remembers.

    Raises:
        TypeError: ``base_optimizer`` is not an optimizer, or is one that calls its closure itself (LBFGS).
        ValueError: rho negative or nan, or an option outside its choices.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import SAM, SharpnessAware
        >>> opt = SAM(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1), rho=0.5)
        >>> isinstance(opt, SharpnessAware), isinstance(opt, torch.optim.Optimizer), opt.param_groups[0]["rho"]
        (True, True, 0.5)
    """

    closure_kind: ClosureKind = "backward"
    needs_loss: ClassVar[bool] = False
    # Whether the base may be handed the sparse gradients of embeddings.
    takes_sparse: ClassVar[bool] = True
    vectors: tuple[str, ...] = ()
    numbers: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    # Whether a closure or a step by hand was ever given, or it was said that none was.
    rule_in_use: bool = False
    # GradScaler.step then hands over scale and found_inf, which is how its calls are told from a user's own.
    _step_supports_amp_scaling = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = explained(cls.__init__)  # type: ignore[method-assign]  # of the same signature

    @explained
    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        model: nn.Module | None = None,
        seed: int = 0,
        rng: str = "fresh",
        accumulate: str = "global",
        sync: str = "global",
        foreach: bool | None = None,
        diagnostics: bool = False,
        check_finite: bool | None = None,
        eps: float = 1e-12,
    ) -> None:
        self.base_optimizer = require_base(base_optimizer)
        self._rho_schedule = rho if callable(rho) else None
        initial = rho(1, base_optimizer.param_groups[0].get("lr", 0.0)) if callable(rho) else rho
        self._own_defaults = {"rho": checks.real("rho", initial, low=0), "perturb": True}
        self._ready = False
        super().__init__(base_optimizer.param_groups, {**base_optimizer.defaults, **self._own_defaults})
        self._ready = True
        self.model, self.seed, self.eps = model, checks.resolve_seed(seed), checks.real("eps", eps, low=0)
        self.rng = checks.one_of("rng", rng, ("fresh", "same"))
        self.accumulate = checks.one_of("accumulate", accumulate, ("global", "per_microbatch"))
        self.sync = checks.one_of("sync", sync, ("global", "local"))
        self.foreach, self.diagnostics, self.check_finite = foreach, diagnostics, check_finite
        self.memory, self.weights, self.last = Memory(base_optimizer), Weights(), StepReport()
        self._staged: Execution | None = None
        self._manual = self._phase = None
        self._layout: list[tuple[Tensor, dict[str, Any]]] = []
        self._spans: list[tuple[dict[str, Any], int]] = []
        self._trainable: list[Tensor] = []
        self._draws = 0
        self._use_foreach = False
        self._clip_grad_norm: float | None = None
        self._leftovers = Leftovers()
        self._fill_groups()
        # What is there already may have been used by the base.
        self._leftovers.note([p for group in self.param_groups for p in group["params"]])

    @classmethod
    def from_params(cls, params: ParamsT, base_optimizer: type[torch.optim.Optimizer], **arguments: Any) -> Self:
        """Return the optimizer around a base that is made here, in the one call that other packages have.

        ``SAM.from_params(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9, rho=0.05)`` is
        ``SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.05)``.

        Args:
            params: parameters or parameter groups.
            base_optimizer: a class of ``torch.optim``, or a function that makes one.
            **arguments: of this class where it has one of that name, else of the base.

        Raises:
            TypeError: this class owns its update, or an argument is of neither.
        """
        base, options = split_call(cls, params, base_optimizer, arguments)
        return cls(base, **options)

    @abstractmethod
    def rule(self) -> Rule:
        """Yield where to evaluate, return the gradient for the base optimizer (or an ``Update``)."""

    # -- what a rule uses --------------------------------------------------------------------------------

    @property
    def t(self) -> int:
        """Number of this step, from 1."""
        return int(self.memory.number("step")) + 1

    def ascent(self, direction: TensorList, norm: Scalar | None = None, radius: float | None = None) -> Displacement:
        """Return e = rho direction / (norm + eps): length rho along ``direction`` in the perturbed parameters.

        Args:
            direction: where to.
            norm: what to divide by; by default the norm of ``direction`` over the perturbed parameters.
            radius: in place of the groups' rho.
        """
        if norm is None:
            norm = self.perturbed(direction).norm()
        inverse = 1.0 / (norm + self.eps)
        return self.displacement(direction, inverse, radius)

    def displacement(self, direction: TensorList, factor: Scalar = 1.0, radius: float | None = None) -> Displacement:
        """Return e = rho factor direction, zero in groups with ``perturb=False``."""
        factors: list[Scalar] = []
        used: set[float] = set()
        for group, count in self._spans:
            rho = 0.0 if not group["perturb"] else group["rho"] if radius is None else radius
            used.add(rho)
            factors += [read_on_cpu(rho * factor)] * count
        return Displacement(direction, factors, is_uniform=len(used) == 1)

    def clipped(self, gradient: TensorList) -> TensorList:
        """Return ``gradient`` with a norm of at most this step's ``clip_grad_norm``; itself where there is none."""
        if self._clip_grad_norm is None:
            return gradient
        # The factor of torch.nn.utils.clip_grad_norm_.
        return gradient.times((self._clip_grad_norm / (gradient.norm() + 1e-6)).clamp_max(1.0))

    def clip_gradients(self, bound: float | None = None) -> None:
        """Clip ``.grad`` of all parameters together by ``bound``, by default this step's ``clip_grad_norm``."""
        bound = self._clip_grad_norm if bound is None else bound
        if bound is not None:
            nn.utils.clip_grad_norm_(self.parameters(), bound)

    def perturbed(self, vector: TensorList) -> TensorList:
        """Return the part of ``vector`` in groups that are perturbed."""
        if all(group["perturb"] for group, _ in self._spans):
            return vector
        keep = [bool(group["perturb"]) for _, group in self._layout]
        return TensorList([t for t, k in zip(vector.tensors, keep, strict=True) if k], vector.foreach)

    def group_values(self, name: str, default: Any = None) -> list[Any]:
        """Return an entry of each tensor's parameter group."""
        return [group.get(name, default) for _, group in self._layout]

    def parameters(self) -> list[Tensor]:
        """Return the trainable parameters, in the order of every ``TensorList``."""
        return self._trainable

    def recall(self, name: str) -> TensorList | None:
        """Return a remembered vector, or None before the first."""
        return self.memory.vector(name, self.parameters(), self.fused())

    def remember(self, name: str, value: TensorList) -> None:
        """Keep a vector for the next step, once this one has gone through."""
        self.memory.remember_vector(name, value, self.parameters())

    def forget(self, name: str) -> None:
        """Have no such vector in the next step, once this one has gone through."""
        self.memory.forget_vector(name)

    def generator(self) -> torch.Generator:
        """Return a fresh generator for the next random draw of this step."""
        self._draws += 1
        device = self._layout[0][0].device if self._layout else torch.device("cpu")
        return randomness.generator(self.seed, self.t, self._draws, device)

    # -- the optimizer --------------------------------------------------------------------------------

    @overload  # type: ignore[override]  # a list of closures as well
    def step(self, closure: None = None, *, clip_grad_norm: float | None = None) -> None: ...

    @overload
    def step(
        self,
        closure: Closures | None = None,
        *,
        loss: Callable[[], Tensor] | None = None,
        scaler: Any = None,
        clip_grad_norm: float | None = None,
        weights: Sequence[float] | None = None,
    ) -> Tensor: ...

    def step(
        self,
        closure: Closures | None = None,
        *,
        loss: Callable[[], Tensor] | None = None,
        scaler: Any = None,
        clip_grad_norm: float | None = None,
        weights: Sequence[float] | None = None,
    ) -> Tensor | None:
        """Take one step and return the loss at the first point evaluated (the clean loss).

        Args:
            closure: zeroes the gradients, computes the loss, calls backward, returns the loss; or a list of them, one
                for each shard of the batch. None ends a step that ``evaluate``, ``first_step`` or ``ascend`` has begun;
                where none is, it takes a plain base step on the present gradients, and warns of it once where the rule
                has never been used (``PlainStepWarning``).
            loss: forward only, returns the loss with its graph: for rules that evaluate losses or curvature; in place
                of ``closure`` it is enough by itself.
            scaler: the ``GradScaler`` that the closure scales its loss with; call ``scaler.update()`` after the step.
            clip_grad_norm: bound > 0 on the norm of what the base optimizer is given: the rule's direction d, for most
                rules a combination of gradients at several points, for those that own their update the preconditioned
                direction. Gradients that only say where to evaluate are not clipped. WSAM and Lookbehind clip several
                gradients a step, see there.
            weights: of the shards, summing to 1; equal by default.

        Raises:
            NonFiniteError: the loss of a pass is nan or infinite (without scaler); the weights are as they were.
            ValueError: a backward before it has left gradients that the closure does not clear: a list of closures
                accumulates.
            RuntimeError: a step has been begun, and a closure calls backward or the rule wants more evaluations.
            TypeError, ValueError: the closure is not of the kind that this rule needs.
        """
        refuse_scaler_step(self, closure)
        with self._leftovers.noting(lambda: self._trainable):
            if self._is_ended_by(closure, loss):
                self._end_step(clip_grad_norm)
                return None
            return self._execution(closure, loss, scaler, clip_grad_norm, weights).step()

    def evaluate(
        self,
        closure: Closures | None = None,
        *,
        loss: Callable[[], Tensor] | None = None,
        scaler: Any = None,
        clip_grad_norm: float | None = None,
        weights: Sequence[float] | None = None,
    ) -> Tensor | None:
        """Do all of ``step(closure)`` but the base step, for training loops that clip and step by themselves.

        Afterwards the weights are where they were and ``.grad`` holds what the base optimizer is to be given, so
        that such a loop finds what it expects: it may clip it, unscale it and read its norm, and takes the step with
        ``opt.step()`` or ``scaler.step(opt)``. A step that has been begun and not taken is forgotten here.

        Args:
            closure: see ``step``.
            loss: see ``step``.
            scaler: the ``GradScaler`` that the closure scales its loss with; ``.grad`` is scaled then.
            clip_grad_norm: what the caller will clip with: only rules that clip several gradients (WSAM, Lookbehind)
                look at it.
            weights: see ``step``.

        Returns:
            The loss at the first point evaluated.

        Raises:
            As ``step``.
        """
        owner = itself(self)
        if owner._staged is not None:
            owner.memory.discard()
            owner._staged = None
        with owner._leftovers.noting(lambda: owner._trainable):
            run = owner._execution(closure, loss, scaler, clip_grad_norm, weights, is_staged=True)
            value = run.evaluate()
            owner._staged = run
            # A scaler then steps only where it has found no overflow, as with every plain optimizer.
            owner._step_supports_amp_scaling = False
            return value

    def _end_step(self, clip_grad_norm: float | None) -> None:
        if self._staged is not None:
            if clip_grad_norm is not None:
                self.clip_gradients(clip_grad_norm)
            run, self._staged = self._staged, None
            del self._step_supports_amp_scaling
            run.finish()
        elif self._manual is not None:
            self._end_manual_step(clip_grad_norm)
        else:
            plain_step(self, clip_grad_norm)

    def _execution(
        self,
        closure: Closures | None,
        loss: Callable[[], Tensor] | None,
        scaler: Any,
        clip_grad_norm: float | None,
        weights: Sequence[float] | None,
        is_staged: bool = False,
    ) -> Execution:
        self.rule_in_use, self._clip_grad_norm = True, clip_grad_norm
        self.prepare()
        require_wrapped(self)
        passes = self._passes(closure, loss, scaler)
        accumulated = Accumulated(self._trainable) if self._leftovers.are_fresh(self._trainable) else None
        if accumulated is not None and (closure is None or self.closure_kind != "backward"):
            accumulated.refuse(type(self).__name__)  # no closure is there to clear them
        run = Execution(self, passes, shard_shares(weights, len(passes)), scaler, accumulated, is_staged)
        self.last = run.report
        return run

    def prepare(self) -> None:
        """Bind the step to the present parameters, groups and radius."""
        members = [(group, [p for p in group["params"] if p.requires_grad]) for group in self.param_groups]
        self._layout = [(p, group) for group, own in members for p in own]
        self._spans = [(group, len(own)) for group, own in members if own]
        self._trainable = [p for p, _ in self._layout]
        self._draws = 0
        # Fused calls do not know DTensors.
        wanted = prefers_foreach(self._trainable) if self.foreach is None else self.foreach
        self._use_foreach = wanted and not any_sharded(self._trainable)
        if self._rho_schedule is not None:
            for group in self.param_groups:
                group["rho"] = self._rho_schedule(self.t, float(group.get("lr", 0.0)))
        self.weights.bind(self.parameters(), self.fused())

    def _passes(self, closure: Any, loss: Callable[[], Tensor] | None, scaler: Any) -> list[Pass]:
        """Return the passes of a step."""
        return passes_of(self, closure, loss, scaler)

    def fused(self) -> bool:
        """Return whether arithmetic is done on all tensors at once."""
        return self._use_foreach

    # -- shared with the base --------------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups."""
        return self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if getattr(self, "_ready", False):
            self.base_optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The base optimizer's state."""
        return self.base_optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        if getattr(self, "_ready", False):
            self.base_optimizer.state = state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to both; ``rho`` and ``perturb`` are filled in where it has none."""
        if self._ready:
            self.base_optimizer.add_param_group(param_group)
            self._fill_groups()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state of this optimizer, or of the plain base optimizer."""
        self.base_optimizer.load_state_dict(dict(state_dict))
        self._fill_groups()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        # Graphs and closures of a step under way, and snapshots, are not part of the optimizer.
        state.update(
            _manual=None,
            _phase=None,
            _staged=None,
            weights=Weights(),
            _layout=[],
            _spans=[],
            _trainable=[],
            last=StepReport(),
        )
        del state["_leftovers"]
        state.pop("_step_supports_amp_scaling", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "base_optimizer" in state:
            self.__dict__.update(state, _leftovers=Leftovers())
            self._leftovers.forget()
            self._patch_step_function()
        else:
            super().__setstate__(state)

    def _fill_groups(self) -> None:
        # Loaders fill the entries that they find: all of them are there from the start.
        self.memory.reserve_numbers({"step": 0, **self.numbers, **{f"has_{name}": False for name in self.vectors}})
        for group in self.param_groups:
            for name, value in self._own_defaults.items():
                group.setdefault(name, value)
            checks.real("rho", group["rho"], low=0)

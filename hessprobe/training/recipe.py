"""Everything that decides a training run, from arguments or from TOML files, and its learning rate over the steps."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from hessprobe import checks
from hessprobe.errors import about
from hessprobe.objective.base import LOSSES
from hessprobe.training import optimizers

LR_SCHEDULES = ("constant", "cosine", "multistep")
RHO_SCHEDULES = ("constant", "linear", "cosine", "like-lr")


def lr_factor(
    schedule: str, step: int, steps: int, *, warmup: int = 0, milestones: Sequence[float] = (), gamma: float = 0.1
) -> float:
    """Return what the peak learning rate is multiplied by in step ``step``.

        warm-up:    (step + 1)/warmup for step < warmup; after it, with x = (step - warmup)/(steps - warmup),
        constant:   1
        cosine:     (1 + cos(pi x))/2
        multistep:  gamma^(number of milestones m with step >= m steps)

    Args:
        schedule: a name in ``LR_SCHEDULES``.
        step: from 0; ``steps`` itself is allowed and gives the factor after the last step.
        steps: length of the run, >= 0.
        warmup: steps of warm-up, 0 <= warmup <= steps.
        milestones: shares of the run, in (0, 1).
        gamma: in (0, 1].
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "cosine" and steps > warmup:
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    if schedule == "multistep":
        return float(gamma ** sum(step >= round(share * steps) for share in milestones))
    return 1.0


AMP = ("off", "bf16", "fp16")


@dataclass(frozen=True)
class Recipe:
    """What to train and how: two runs of one recipe on one machine give the same weights, bit for bit.

    Attributes:
        model: name and arguments, as on the command line: ``"mlp"``, ``"resnet18:width=32"``.
        data: a name that ``load_dataset`` takes; empty where the user has to give it.
        subset: share in (0, 1] of the training examples of every class that are used.
        label_noise: share in [0, 1] of the training labels that are made wrong.
        data_seed: which examples and labels these are, >= 0; apart from ``seed``, so that runs of several seeds share
            their data.
        crop: images are padded by this many black pixels and cropped back at random; 0 leaves them.
        flip: whether images are mirrored at random.
        optimizer: an optimizer of torch by its name in small letters (``"sgd"``, ``"adamw"``, ``"rmsprop"``), or a name
            in ``hessprobe.optim.available()``.
        base: the one of torch inside a sharpness-aware one; None is ``"sgd"``.
        base_args: further arguments of the one of torch, such as ``{"betas": [0.9, 0.95]}``.
        rho: radius >= 0; None takes the optimizer's usual one.
        rho_schedule: ``"constant"``, ``"linear"`` or ``"cosine"`` (from rho to rho_min over all steps), ``"like-lr"``.
        rho_min: radius >= 0 at the end of a schedule.
        optimizer_args: further arguments of a sharpness-aware optimizer.
        epochs: passes over the training data, >= 0 (0 keeps the initial weights).
        lr: peak learning rate > 0; None takes the optimizer's usual one.
        batch_size: examples a step, >= 1; the last batch of an epoch may be smaller.
        accumulate: parts >= 1 that a batch is evaluated in, one after the other, to save memory.
        momentum: in [0, 1), for sgd.
        nesterov: whether that momentum looks ahead.
        weight_decay: >= 0, as the optimizer defines it (an L2 term for sgd, decoupled for adamw).
        decay: ``"all"``, or ``"matrices"`` where biases and the scales and shifts of normalization layers (tensors of
            one dimension) do not decay.
        clip_grad_norm: bound > 0 on the gradient's norm; None does not clip.
        schedule: ``"cosine"`` (from lr down to 0), ``"multistep"`` or ``"constant"``.
        warmup: epochs >= 0, fewer than ``epochs``, over which the learning rate rises linearly to lr.
        milestones: shares of the run, in (0, 1), at which multistep multiplies the learning rate by ``gamma``.
        gamma: in (0, 1].
        amp: ``"off"``, ``"bf16"`` or ``"fp16"`` (with a ``GradScaler``).
        loss: a name in ``losses.REGISTRY``.
        seed: of initial weights, shuffling, crops and the optimizer's own draws, >= 0.

    Raises:
        TypeError, ValueError: a value of the wrong type or outside its range, or two that contradict each other.
    """

    model: str = "mlp"
    data: str = "digits"
    subset: float = 1.0
    label_noise: float = 0.0
    data_seed: int = 0
    crop: int = 0
    flip: bool = False
    optimizer: str = "sgd"
    base: str | None = None
    base_args: Mapping[str, Any] = field(default_factory=dict)
    rho: float | None = None
    rho_schedule: str = "constant"
    rho_min: float = 0.0
    optimizer_args: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 30
    lr: float | None = None
    batch_size: int = 32
    accumulate: int = 1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decay: str = "all"
    clip_grad_norm: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.0
    milestones: Sequence[float] = (0.5, 0.75)
    gamma: float = 0.1
    amp: str = "off"
    loss: str = "cross-entropy"
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_texts()
        self._check_data()
        self._check_optimizer()
        self._check_schedule()
        checks.positive_int("epochs", self.epochs, minimum=0)
        checks.positive_int("batch_size", self.batch_size)
        checks.positive_int("accumulate", self.accumulate)
        if self.accumulate > self.batch_size:
            raise ValueError(
                about(
                    "accumulate",
                    f"must be at most batch_size = {self.batch_size}; got {self.accumulate}. Take fewer parts.",
                )
            )
        checks.one_of("amp", self.amp, AMP)
        checks.one_of("loss", self.loss, LOSSES)
        checks.resolve_seed(self.seed)

    @property
    def sharpness_aware(self) -> bool:
        """Whether the optimizer is a registered sharpness-aware one."""
        return self.optimizer not in optimizers.BASES

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-friendly values."""
        values = dataclasses.asdict(self)
        arguments = {name: dict(getattr(self, name)) for name in ("optimizer_args", "base_args")}
        return {**values, **arguments, "milestones": list(self.milestones)}

    def _check_texts(self) -> None:
        for name in ("model", "data", "optimizer", "rho_schedule", "schedule", "amp", "loss", "decay"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(about(name, f"must be text; got {getattr(self, name)!r}. Put it in quotes."))

    def _check_data(self) -> None:
        checks.real("subset", self.subset, low=0, low_open=True, high=1, hint="0.1 keeps a tenth.")
        checks.real("label_noise", self.label_noise, low=0, high=1, hint="0.2 makes a fifth of the labels wrong.")
        checks.resolve_seed(self.data_seed)
        checks.positive_int("crop", self.crop, minimum=0)
        if not isinstance(self.flip, bool):
            raise TypeError(about("flip", f"must be true or false; got {self.flip!r}. Leave it out for false."))

    def _check_optimizer(self) -> None:
        checks.one_of("optimizer", self.optimizer, optimizers.names())
        plain = None if self.sharpness_aware else self.optimizer
        base = checks.one_of("base", self.base or plain or "sgd", optimizers.BASES)
        if plain and base != plain:
            raise ValueError(
                about("base", f"must be left out for the plain optimizer {plain}; got {base!r}. Give one of them.")
            )
        self._set("base", base)
        lr = optimizers.default_lr(self.optimizer, base) if self.lr is None else self.lr
        self._set("lr", checks.real("lr", lr, low=0, low_open=True))
        checks.real("momentum", self.momentum, low=0, high=1, high_open=True)
        checks.real("weight_decay", self.weight_decay, low=0)
        if self.clip_grad_norm is not None:
            checks.real("clip_grad_norm", self.clip_grad_norm, low=0, low_open=True)
        for name in ("optimizer_args", "base_args"):
            given = getattr(self, name)
            if not isinstance(given, Mapping):
                raise TypeError(about(name, f"must be a table of names and values; got {given!r}."))
        self._check_base(base)
        optimizers.check_arguments(self.optimizer, self.optimizer_args)
        self._check_radius()

    def _check_base(self, base: str) -> None:
        if not isinstance(self.nesterov, bool):
            raise TypeError(about("nesterov", f"must be true or false; got {self.nesterov!r}. Leave it out for false."))
        checks.one_of("decay", self.decay, ("all", "matrices"))
        if self.base_args and self.sharpness_aware and optimizers.owns_its_update(self.optimizer):
            raise ValueError(
                about(
                    "base_args",
                    f"must be left out for {self.optimizer}, which owns its update; got {', '.join(self.base_args)}. "
                    "Use optimizer_args.",
                )
            )
        optimizers.check_base_arguments(base, self.base_args)
        if self.nesterov and not (self.momentum and self._takes("nesterov")):
            raise ValueError(
                about("nesterov", "must be left out without the momentum of sgd; got true. Set a momentum.")
            )
        if self.weight_decay and not self._takes("weight_decay"):
            owner = self.optimizer if self.sharpness_aware and optimizers.owns_its_update(self.optimizer) else base
            raise ValueError(
                about("weight_decay", f"must be left out for {owner}, which has none; got {self.weight_decay:g}.")
            )
        if self.decay != "all" and not self.weight_decay:
            raise ValueError(
                about("decay", f"must be left out without weight_decay; got {self.decay!r}. Set a weight_decay.")
            )

    def _takes(self, name: str) -> bool:
        return optimizers.takes(self.optimizer, self.base or "sgd", name)

    def _check_radius(self) -> None:
        checks.one_of("rho_schedule", self.rho_schedule, RHO_SCHEDULES)
        checks.real("rho_min", self.rho_min, low=0)
        if not (self.sharpness_aware and optimizers.takes_rho(self.optimizer)):
            if self.rho is not None or self.rho_schedule != "constant":
                given = "rho" if self.rho is not None else "rho_schedule"
                raise ValueError(
                    about(
                        given,
                        f"must be left out for {self.optimizer}, which has no radius; got {getattr(self, given)!r}. "
                        "Choose a sharpness-aware optimizer, such as sam.",
                    )
                )
            return
        rho = optimizers.default_rho(self.optimizer) if self.rho is None else self.rho
        self._set("rho", None if rho is None else checks.real("rho", rho, low=0))
        if rho is None and self.rho_schedule != "constant":
            raise ValueError(
                about("rho", f"must be given with rho_schedule {self.rho_schedule!r}; got none. Add a radius.")
            )

    def _check_schedule(self) -> None:
        checks.one_of("schedule", self.schedule, LR_SCHEDULES)
        checks.real("warmup", self.warmup, low=0)
        if self.warmup and not self.warmup < self.epochs:
            raise ValueError(about("warmup", f"must be below epochs = {self.epochs}; got {self.warmup:g}. Shorten it."))
        if isinstance(self.milestones, str) or not isinstance(self.milestones, Sequence):
            raise TypeError(about("milestones", f"must be a list of numbers in (0, 1); got {self.milestones!r}."))
        for share in self.milestones:
            checks.real("milestones", share, low=0, low_open=True, high=1, high_open=True, hint="0.5 is halfway.")
        self._set("milestones", tuple(float(share) for share in self.milestones))
        checks.real("gamma", self.gamma, low=0, low_open=True, high=1)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


_SUFFIX = ".toml"


def shipped() -> list[str]:
    """Return the names of the recipes that come with the package, sorted."""
    folder = resources.files("hessprobe.training") / "recipes"
    return sorted(entry.name.removesuffix(_SUFFIX) for entry in folder.iterdir() if entry.name.endswith(_SUFFIX))


_LARGEST = 1 << 16


def read_recipe(source: str | Path) -> dict[str, Any]:
    """Return the values that a recipe sets, so that others can be put over them: ``Recipe(**{**values, ...})``.

    Args:
        source: a name in ``shipped()``, or the path of a TOML file whose keys are fields of ``Recipe``.

    Raises:
        ValueError: no such recipe, not TOML, or an unknown key; the message names the nearest one.
    """
    name, values = str(source), _parse(source)
    fields = [each.name for each in dataclasses.fields(Recipe)]
    for key in values:
        if key not in fields:
            near = checks.nearest(key, fields)
            raise ValueError(f"{name} has the unknown key {key!r}.{near} Known: {', '.join(fields)}.")
    return values


def load_recipe(source: str | Path, **changes: Any) -> Recipe:
    """Return a recipe with some of its values changed.

    Raises:
        TypeError, ValueError: see ``read_recipe`` and ``Recipe``.
    """
    return Recipe(**{**read_recipe(source), **changes})


def _parse(source: str | Path) -> dict[str, Any]:
    name = str(source)
    try:
        return tomllib.loads(_text(source))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name} is not TOML: {error}. Write lines of 'key = value'.") from error
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply. Write lines of 'key = value'.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text. Write lines of 'key = value'.") from error


def _text(source: str | Path) -> str:
    name, known = str(source), shipped()
    if name in known:
        return (resources.files("hessprobe.training") / "recipes" / f"{name}{_SUFFIX}").read_text("utf-8")
    path = Path(source)
    if not path.is_file():
        near = checks.nearest(name, known)
        raise ValueError(
            about("recipe", f"must be a TOML file that exists or one of {', '.join(known)}; got {name!r}.{near}")
        )
    if path.stat().st_size > _LARGEST:
        raise ValueError(
            about("recipe", f"must be at most {_LARGEST:,} bytes; got {name!r} of {path.stat().st_size:,}.")
        )
    return path.read_text("utf-8")

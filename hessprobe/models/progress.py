"""Where in its run a checkpoint of another program stands, and how its next step would be made.

The checkpoints in a folder of a run, in the order of their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hessprobe.errors import CheckpointError
from hessprobe.models.files import ENDINGS, is_distributed, read_settings, weight_files
from hessprobe.models.pretrained import read_config

_STEPS = ("global_step", "step", "steps", "iteration", "iter", "iter_num")
_OPTIMIZERS = ("optimizer_states", "optimizer_state_dict", "optimizer", "optim", "opt")
_TRAINER = "trainer_state.json"


@dataclass(frozen=True)
class Progress:
    """What a checkpoint says of its run; None and empty where it does not.

    Attributes:
        step: steps done.
        epoch: passes over the data done.
        lr: of the next step.
        recipe: of the optimizer, as ``hessprobe.tracking.stability.rule_of_recipe`` takes it.
    """

    step: int | None = None
    epoch: int | None = None
    lr: float | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)


def read_progress(path: str | Path) -> Progress:
    """Return what a checkpoint says of its run.

    Read are ``trainer_state.json`` and ``optimizer.pt`` of the ``Trainer``, and, in files of ``torch.save``, the usual
    names of the step and of the optimizer's state (Lightning's too). A file that cannot be read says nothing.
    """
    place = Path(path)
    if place.is_dir():
        return _of_trainer(place)
    if place.suffix == ".safetensors":
        return Progress()
    try:
        tree = read_settings(place)
    except CheckpointError:
        return Progress()
    if not isinstance(tree, Mapping):
        return Progress()
    step = next((tree[key] for key in _STEPS if _is_count(tree.get(key))), None)
    epoch = tree.get("epoch")
    state = next((tree[key] for key in _OPTIMIZERS if tree.get(key)), None)
    lr, recipe = _rule(state[0] if isinstance(state, list) else state)
    return Progress(step, epoch if _is_count(epoch) else None, lr, recipe)


def _of_trainer(folder: Path) -> Progress:
    state = read_config(folder / _TRAINER)
    step, epoch = state.get("global_step"), state.get("epoch")
    history = [each for each in state.get("log_history") or [] if isinstance(each, dict) and "learning_rate" in each]
    lr: float | None = None
    recipe: dict[str, Any] = {}
    if (folder / "optimizer.pt").is_file():
        try:
            lr, recipe = _rule(read_settings(folder / "optimizer.pt"))
        except CheckpointError:
            # The rate stands in the history too.
            lr = None
    if lr is None and history:
        lr = float(history[-1]["learning_rate"])
    return Progress(step if _is_count(step) else None, int(epoch) if epoch else None, lr, recipe)


def _rule(state: Any) -> tuple[float | None, dict[str, Any]]:
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    if not isinstance(groups, list) or not groups or not isinstance(groups[0], Mapping):
        return None, {}
    group, lr = groups[0], groups[0].get("lr")
    lr = float(lr) if lr is not None else None
    if "momentum" in group and "nesterov" in group and "dampening" in group:
        keys = ("momentum", "dampening", "nesterov", "weight_decay")
        return lr, {"optimizer": "sgd", "base": "sgd", **{key: group.get(key) for key in keys}}
    return lr, {"optimizer": "sgd", "base": "Adam" if "betas" in group else "the optimizer"}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


NUMBER = re.compile(r"(\d+)(?!.*\d)")
_RESUME = "-resume"
# What programs write beside the weights.
_BESIDE = re.compile(r"^(optimizer|scheduler|scaler|rng_state|training_args|random_states|hessprobe-tracker)")


def is_checkpoint_folder(path: str | Path) -> bool:
    """Return whether a folder is one checkpoint: of ``save_pretrained``, the ``Trainer`` or torch's distributed one.

    Raises:
        CheckpointError: an index in it that cannot be read.
    """
    return Path(path).is_dir() and (is_distributed(path) or bool(weight_files(path)))


def checkpoints_in(folder: str | Path) -> list[Path]:
    """Return the checkpoints in a folder: files of weights, and folders that are one, by the last number in their name.

    States of optimizers and schedulers are left alone; so is a checkpoint of the end beside numbered folders
    (``checkpoint-500``), which the ``Trainer`` writes again under no number.

    Raises:
        CheckpointError: an index of a sharded checkpoint that cannot be read.
    """
    inside = list(Path(folder).iterdir())
    folders = [each for each in inside if is_checkpoint_folder(each) and NUMBER.search(each.name)]
    files = [each for each in inside if each.is_file() and each.suffix in ENDINGS and not _BESIDE.match(each.name)]
    found = folders or [each for each in files if not each.stem.endswith(_RESUME)]
    return sorted(found, key=_place)


def _place(path: Path) -> tuple[float, str]:
    number = NUMBER.search(path.stem if path.is_file() else path.name)
    return (float("inf") if number is None else int(number[1]), path.name)

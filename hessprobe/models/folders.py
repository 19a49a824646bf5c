"""The checkpoints in a folder of a run, in the order of their numbers."""

from __future__ import annotations

import re
from pathlib import Path

from hessprobe.models.files import ENDINGS, is_distributed, weight_files

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

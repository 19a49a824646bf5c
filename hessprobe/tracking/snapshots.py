"""The checkpoints of a run, found and put in the order of their steps.

Which processes of a distributed training measure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hessprobe.errors import CheckpointError, DataError, UnsupportedError
from hessprobe.models.files import path_sha256
from hessprobe.models.progress import NUMBER, Progress, checkpoints_in, is_checkpoint_folder, read_progress
from hessprobe.training import checkpoint
from hessprobe.vectors import ParameterLayout, require_same

_OWN_ENDINGS = (".pt", ".pth", ".safetensors")
_SCORES = ("train_accuracy", "test_accuracy", "train_loss", "test_loss")
# Where the data lie may change between two runs of one recipe.
_FREE = ("data",)


@dataclass(frozen=True)
class Snapshot:
    """A saved checkpoint and where in its run it stands.

    Attributes:
        path: the file.
        sha256: of its bytes.
        step: steps done.
        epoch: passes over the data done, or None.
        lr: of the last step, or of the first where none is done; None where the file does not say.
        rho: likewise.
        recipe: of the run, empty where the file does not say.
        scores: accuracies and losses on both splits that the file records.
        data: content hash of the training data, "" where the file does not say.
    """

    path: str
    sha256: str
    step: int
    epoch: int | None = None
    lr: float | None = None
    rho: float | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    data: str = ""


@dataclass(frozen=True)
class _Read:
    snapshot: Snapshot
    layout: ParameterLayout
    weights: str
    model: Any


def find_snapshots(paths: Sequence[str | Path], *, plain: bool = False) -> tuple[list[Snapshot], list[str]]:
    """Return the checkpoints of one run in the order of their steps, and remarks.

    Args:
        paths: a folder; or the checkpoint that a run wrote at its end (``hessprobe train --out``), with those it wrote
            on the way beside it; or the files themselves.
        plain: the files are those of other programs, or anything that the user's own function reads: their step is what
            they say themselves (Lightning, the ``Trainer``), or the last number in their name, or their place in
            ``paths`` where one has none. Learning rates are those of the optimizer's state beside them.

    Raises:
        ValueError: none, or a single one; or files of different architectures (names the tensor).
        CheckpointError: a file that cannot be read or does not say its step, or files of several runs.
        DataError: files trained on different data.
    """
    files = [Path(path) for path in paths]
    given = len(files) > 1
    chosen = files if given else _in_folder(files[0], plain) if files and files[0].is_dir() else _of_run(files)
    chosen = list(dict.fromkeys(chosen))
    if plain:
        found, notes = _plain(chosen)
    else:
        found, notes = _recorded(chosen, strict=given or not files[0].is_dir(), several=given)
    if len(found) < 2:
        where = ", ".join(map(str, files))
        count = f"none in {where}" if not found else f"one, {found[0].path}"
        raise ValueError(
            f"checkpoints must be at least two of one run; got {count}. Train with --save-every, or measure a single "
            "one with hessprobe measure."
        )
    return sorted(found, key=lambda each: each.step), notes


def _in_folder(folder: Path, plain: bool) -> list[Path]:
    found = checkpoints_in(folder)
    own = [path for path in found if path.is_file() and path.suffix in _OWN_ENDINGS]
    if found and not plain and not own:
        raise CheckpointError(
            f"{folder} holds checkpoints of another program, such as {found[0].name}. Say what they are: --data, and "
            "--model where they are not folders of transformers; or --objective."
        )
    return found if plain else own


def _of_run(files: Sequence[Path]) -> list[Path]:
    """Return what lies beside the file at the end of a run; the file itself may not be there yet."""
    if not files:
        return []
    last = files[0]
    marked = re.compile(re.escape(last.stem) + r"-epoch-\d+" + re.escape(last.suffix))
    folder = last.parent
    beside = sorted(path for path in folder.iterdir() if marked.fullmatch(path.name)) if folder.is_dir() else []
    if not beside:
        return [checkpoint.require_file(last)]
    return [*beside, *([last] if last.exists() else [])]


def _plain(files: Sequence[Path]) -> tuple[list[Snapshot], list[str]]:
    said = {path: read_progress(_existing(path)) for path in files}
    told = {path: progress.step for path, progress in said.items()}
    named = {path: _number(path) for path in files}
    notes: list[str] = []
    for steps in (told, named):
        if None not in steps.values() and len(set(steps.values())) == len(files):
            break
    else:
        if None in told.values():
            notes.append("steps are the order of the files, whose names do not all have a number of their own")
            steps = {path: index for index, path in enumerate(files)}
        else:
            # Lightning writes its last checkpoint a second time.
            first = {step: path for path, step in reversed(told.items())}
            steps = {path: step for path, step in told.items() if first[step] == path}
            notes += [f"{path} is left out: it is of the step of another" for path in files if path not in steps]
    return [_of_plain(path, int(step or 0), said[path]) for path, step in steps.items()], notes


def _of_plain(path: Path, step: int, said: Progress) -> Snapshot:
    return Snapshot(str(path), path_sha256(path), step, said.epoch, said.lr, recipe=dict(said.recipe))


def _number(path: Path) -> int | None:
    found = NUMBER.search(path.name if path.is_dir() else path.stem)
    return None if found is None else int(found[1])


def _existing(path: Path) -> Path:
    return path if is_checkpoint_folder(path) else checkpoint.require_file(path)


def _recorded(files: Sequence[Path], strict: bool, several: bool) -> tuple[list[Snapshot], list[str]]:
    notes: list[str] = []
    read: list[_Read] = []
    for path in files:
        if not strict and not checkpoint.is_checkpoint(path):
            notes.append(f"{path} is left out: it is no checkpoint of hessprobe train")
            continue
        read.append(_read(path))
    if read:
        require_same([each.layout for each in read], [each.snapshot.path for each in read])
        _require_same_data(read)
        if not several:
            _require_one_run(read)
    kept: dict[int, _Read] = {}
    for each in read:
        twin = kept.setdefault(each.snapshot.step, each)
        if twin is each:
            continue
        if twin.weights != each.weights:
            raise CheckpointError(
                f"{twin.snapshot.path} and {each.snapshot.path} are both of step {each.snapshot.step} with different "
                "weights. Name the checkpoints of one run."
            )
    return [each.snapshot for each in kept.values()], notes


def _read(path: Path) -> _Read:
    content = checkpoint.read_torch_file(path)
    known = isinstance(content, Mapping) and content.get("format") == checkpoint.FORMAT
    if not known or not all(isinstance(content.get(key), Mapping) for key in ("metrics", "state_dict", "data")):
        # This says what is wrong with the file, in the words of every other command.
        checkpoint.load_checkpoint(path)
        raise CheckpointError(f"{path} lacks an entry that places it in its run. Save it again with save_checkpoint.")
    metrics = content["metrics"]
    step = metrics.get("steps")
    if isinstance(step, bool) or not isinstance(step, int):
        raise CheckpointError(
            f"{path} does not say at which step it was saved (metrics['steps']). Write it with hessprobe train."
        )
    state: Mapping[str, Tensor] = content["state_dict"]
    lr, rho = _rates(content)
    snapshot = Snapshot(
        path=str(path),
        sha256=checkpoint.file_sha256(path),
        step=step,
        epoch=metrics.get("epochs"),
        lr=lr,
        rho=rho,
        recipe=dict(content.get("recipe") or {}),
        scores={key: float(metrics[key]) for key in _SCORES if key in metrics},
        data=str(content["data"].get("sha256") or ""),
    )
    return _Read(snapshot, ParameterLayout.of(state), _digest(state), content.get("model"))


def _rates(content: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return lr and rho of the last step; of the coming one, which the optimizer holds, where none is done."""
    curve = content["metrics"].get("curve") or []
    if curve:
        return curve[-1].get("lr"), curve[-1].get("rho")
    state = dict(content.get("optimizer") or {}).get("state") or {}
    groups = dict(state).get("param_groups") or [{}]
    return groups[0].get("lr"), groups[0].get("rho")


def _digest(state: Mapping[str, Tensor]) -> str:
    hasher = hashlib.sha256()
    for name, tensor in state.items():
        hasher.update(name.encode())
        # As bytes, because NumPy knows no bfloat16.
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def _require_same_data(read: Sequence[_Read]) -> None:
    first = read[0].snapshot
    for each in read[1:]:
        if each.snapshot.data != first.data:
            raise DataError(
                f"{each.snapshot.path} was trained on other data than {first.path} (hash {each.snapshot.data[:12]}, "
                f"not {first.data[:12]}). Name the checkpoints of one run."
            )


def _require_one_run(read: Sequence[_Read]) -> None:
    first = read[0].snapshot
    for each in read[1:]:
        other = each.snapshot
        for key in dict.fromkeys((*first.recipe, *other.recipe)):
            if key not in _FREE and first.recipe.get(key) != other.recipe.get(key):
                raise CheckpointError(
                    f"{other.path} is of another run than {first.path}: its {key} is {other.recipe.get(key)!r}, not "
                    f"{first.recipe.get(key)!r}. Name the last checkpoint of one run, or the files themselves."
                )


def measures_here(model: nn.Module) -> bool:
    """Return False on all ranks but the first of a module wrapped for DDP, and True everywhere else.

    All ranks hold the same weights, and measuring speaks to none of them: what the first one finds is what each would.
    """
    if not dist.is_available() or not dist.is_initialized():
        return True
    wrappers = (each for each in model.modules() if isinstance(each, nn.parallel.DistributedDataParallel))
    # At most one, on the outside or inside what torch.compile makes; its group need not be of all processes.
    return all(dist.get_rank(wrapper.process_group) == 0 for wrapper in wrappers)


def require_unsharded(model: nn.Module) -> None:
    """Refuse a model whose parameters are sharded over ranks: gathering them takes all ranks at once.

    Raises:
        UnsupportedError: names the first such parameter or module.
    """
    sharded = [f"module {name or 'itself'!r}" for name, each in model.named_modules() if _is_fsdp(each)]
    # A DTensor, told by what it alone has: importing its class takes a second.
    sharded += [f"parameter {name!r}" for name, each in model.named_parameters() if hasattr(each, "placements")]
    if sharded:
        raise UnsupportedError(
            f"The {sharded[0]} is sharded over ranks (FSDP), and a tracker measures on one of them. Measure saved "
            "checkpoints with hessprobe track instead."
        )


def _is_fsdp(module: nn.Module) -> bool:
    return any(each.__name__ == "FullyShardedDataParallel" for each in type(module).__mro__)

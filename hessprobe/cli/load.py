"""From what the command line names to a risk that can be measured."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from hessprobe.cli import code, foreign
from hessprobe.cli.failures import UsageError, as_usage, say
from hessprobe.cli.trust import require_trusted_data
from hessprobe.errors import CheckpointError, HessprobeError
from hessprobe.models.opened import Opened
from hessprobe.models.spec import AS_FOUND, Opening
from hessprobe.models.triple import risk_of
from hessprobe.objective import EmpiricalRisk
from hessprobe.training.checkpoint import (
    RISK_BATCH_SIZE,
    WHOSE_WEIGHTS,
    Checkpoint,
    file_sha256,
    is_checkpoint,
    load_checkpoint,
)
from hessprobe.training.weights import require_file


@dataclass(frozen=True)
class Source:
    """Where the risk comes from, as the command line says it.

    Attributes:
        checkpoint: path of a checkpoint or of plain weights, or None.
        objective: ``file.py:function``, or None.
        model: model of plain weights, or None.
        data: data of plain weights, or None.
        opening: how files of other libraries are read.
        quiet: keeps what a reader should know of such a file to the record.
        split, examples, batch_size, params, batchnorm, seed, device, dtype: as in ``Checkpoint.risk``; None where the
            user left the choice to the program.
    """

    checkpoint: str | None = None
    objective: str | None = None
    model: str | None = None
    data: str | None = None
    split: str | None = None
    examples: int | None = None
    batch_size: int | None = None
    params: tuple[str, ...] = ()
    batchnorm: str | None = None
    seed: int = 0
    device: str | None = None
    dtype: str | None = None
    opening: Opening = AS_FOUND
    quiet: bool = False


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        risk: loss as a function of the parameters.
        title: one line for a reader.
        checkpoint: entry of the record, or None.
        data: entry of the record.
    """

    risk: EmpiricalRisk
    title: str
    checkpoint: dict[str, Any] | None
    data: dict[str, Any]


def load_subject(source: Source) -> Subject:
    """Return the risk that ``source`` names.

    Raises:
        UsageError: options that contradict each other or name what does not exist.
        HessprobeError: a file that is missing or cannot be used, or a risk that cannot be measured.
        QuotedError: the user's own file failed.
    """
    if source.objective is not None:
        return _from_objective(source)
    opened = _open(source)
    if isinstance(opened, Opened):
        return _from_foreign(opened, source)
    split = source.split or "train"
    with as_usage():
        risk = opened.risk(
            split, source.examples, source.batch_size or RISK_BATCH_SIZE, seed=source.seed, **_measured(source)
        )
    described = risk.describe()
    data = {
        "name": opened.data.name,
        "sha256": opened.data.sha256,
        "split": split,
        "fingerprint": risk.fingerprint(),
        **described,
    }
    count = described.get("examples", source.examples)
    title = f"{source.checkpoint}: {opened.model_name}, {risk.dim:,} parameters, {count} examples ({split})"
    return Subject(risk, title, describe_checkpoint(opened), data)


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a record says about a checkpoint."""
    return {
        "path": checkpoint.path,
        "sha256": checkpoint.sha256,
        "model": {"name": checkpoint.model_name, "arguments": checkpoint.model_arguments},
        "parameters": checkpoint.n_parameters,
        "data": {key: value for key, value in checkpoint.data.as_dict().items() if value is not None},
        "loss": checkpoint.loss,
        "recipe": checkpoint.recipe,
        "optimizer": checkpoint.optimizer.get("name"),
        "metrics": {key: value for key, value in checkpoint.metrics.items() if not isinstance(value, list)},
        "versions": checkpoint.versions,
    }


def resolve_device(name: str | None) -> torch.device:
    """Return a device that exists; by default the first CUDA device, or the CPU where there is none.

    Raises:
        UsageError: no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    present = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device must be a device of this machine ({', '.join(present)}); got {name!r}.") from error
    return device


def _open(source: Source) -> Checkpoint | Opened:
    path = source.checkpoint
    spec = foreign.spec_of(source)
    if spec is None:
        if not path:
            raise UsageError("CKPT must be given; got none. Name a checkpoint, or pass --objective file.py:function.")
        if source.data is not None:
            raise UsageError("--model and --data must be given together; got one of them. Plain weights need both.")
        if path.endswith(".safetensors"):
            raise UsageError(f"{require_file(path)} is plain weights: it names no model and data. {WHOSE_WEIGHTS}")
        checkpoint = load_checkpoint(path)
        _refuse_opening(source, f"{path}, which names its own model, data and loss")
        return require_trusted_data(checkpoint)
    if path is not None:
        if not Path(path).is_dir() and is_own_file(path):
            raise UsageError(f"--model and --data are for plain weights, but {path} names its own. Leave them out.")
        if source.data is None and source.model is not None:
            raise UsageError("--model and --data must be given together; got one of them. Plain weights need both.")
        if foreign.is_own(spec, source):
            checkpoint, notes = foreign.open_own(spec, source)
            _tell(source, notes)
            return checkpoint
    return foreign.open_foreign(spec, source)


def _refuse_opening(source: Source, what: str) -> None:
    given = [each.name for each in fields(Opening) if getattr(source.opening, each.name) != each.default]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{flags} must be left out for {what}.")


def is_own_file(path: str) -> bool:
    """Return whether a file is a checkpoint of hessprobe.

    Raises:
        CheckpointError: missing or empty.
    """
    require_file(path)
    try:
        return is_checkpoint(path)
    except CheckpointError:
        # Whatever it is: reading it as weights says so.
        return False


def _from_foreign(opened: Opened, source: Source) -> Subject:
    with as_usage():
        risk, said = opened.risk(
            split=source.split,
            examples=source.examples,
            batch_size=source.batch_size,
            seed=source.seed,
            **_measured(source),
        )
    notes = (*opened.notes, *said)
    _tell(source, notes)
    described, split = risk.describe(), source.split or foreign.default_split(opened)
    data = {
        "name": source.data,
        "split": split,
        "fingerprint": risk.fingerprint(),
        **described,
        "notes": [*notes, *described["notes"]],
    }
    where = source.checkpoint or opened.name
    model = "" if where == opened.name else f"{opened.name}, "
    title = f"{where}: {model}{risk.dim:,} parameters, {risk.n_examples} examples ({split})"
    return Subject(risk, title, foreign.describe(opened, source.checkpoint, risk.dim), data)


def _refuse(source: Source, names: tuple[str, ...], why: str) -> None:
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(source, name)]
    if given:
        raise UsageError(f"{', '.join(given)} cannot go with {why}")


def _measured(source: Source) -> dict[str, Any]:
    return {
        "params": list(source.params) or None,
        "dtype": None if source.dtype is None else getattr(torch, source.dtype),
        "device": resolve_device(source.device),
        "batchnorm": source.batchnorm or "eval",
    }


def _tell(source: Source, notes: tuple[str, ...]) -> None:
    for note in () if source.quiet else notes:
        say(f"note: {note}")


def _from_objective(source: Source) -> Subject:
    _refuse(source, ("model", "data"), "--objective. Decide it inside the function.")
    _refuse_opening(source, "--objective, which decides it inside the function")
    path, _, name = str(source.objective).rpartition(":")
    function = code.function_of_file("--objective", path, name)
    takes_checkpoint = bool(inspect.signature(function).parameters)
    if takes_checkpoint and source.checkpoint is None:
        raise UsageError(f"CKPT must be given: {name} of {path} takes its path; got none.")
    if not takes_checkpoint and source.checkpoint is not None:
        raise UsageError(f"{name} of {path} takes no argument, so CKPT must not be given; got {source.checkpoint!r}.")
    try:
        risk = made = function(source.checkpoint) if takes_checkpoint else function()
    except HessprobeError:
        raise
    except Exception as error:
        raise code.failed(f"{source.objective} failed", path, error) from error
    if isinstance(risk, tuple) and len(risk) == 3:
        with as_usage():
            risk = risk_of(
                risk,
                split=source.split,
                examples=source.examples,
                batch_size=source.batch_size,
                seed=source.seed,
                **_measured(source),
            )
    if not isinstance(risk, EmpiricalRisk):
        raise HessprobeError(
            f"{source.objective} must return (model, loss, data) or an EmpiricalRisk; got {type(risk).__name__}."
        )
    if risk is made:
        fixed = ("split", "examples", "batch_size", "batchnorm", "dtype", "device", "params")
        _refuse(source, fixed, "an EmpiricalRisk. Decide it inside the function, or return (model, loss, data).")
    title = f"{source.objective}: {risk.dim:,} parameters"
    checkpoint = None
    if source.checkpoint is not None and Path(source.checkpoint).is_file():
        checkpoint = {"path": source.checkpoint, "sha256": file_sha256(source.checkpoint)}
    origin = {"objective": source.objective, "objective_sha256": file_sha256(path)}
    return Subject(risk, title, checkpoint, {**origin, "fingerprint": risk.fingerprint(), **risk.describe()})

"""From what the command line names to a risk that can be measured."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from hessprobe.cli import code, outputs, threads
from hessprobe.cli.failures import UsageError, as_usage, say
from hessprobe.cli.source import Asked
from hessprobe.errors import CheckpointError, HessprobeError
from hessprobe.models.opened import Opened
from hessprobe.models.spec import Opening
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

_BUILT_IN = ("digits", "synthetic")


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


def load_subject(request: Asked, checkpoint: str | None, *, quiet: bool = False) -> Subject:
    """Return the risk that a command measures.

    Args:
        request: the options.
        checkpoint: path of a checkpoint or of plain weights, or None; the command's own, or another of a series.
        quiet: keeps what a reader should know of a file of another library to the record.

    Raises:
        UsageError: options that contradict each other or name what does not exist.
        HessprobeError: a file that is missing or cannot be used, or a risk that cannot be measured.
        QuotedError: the user's own file failed.
    """
    threads.settle()
    if request.objective is not None:
        return _from_objective(request, checkpoint)
    opened = _open(request, checkpoint, quiet)
    if isinstance(opened, Opened):
        return _from_foreign(opened, request, checkpoint, quiet)
    split = request.split or "train"
    with as_usage():
        risk = opened.risk(
            split, request.examples, request.batch_size or RISK_BATCH_SIZE, seed=request.seed, **_measured(request)
        )
    described = risk.describe()
    data = {
        "name": opened.data.name,
        "sha256": opened.data.sha256,
        "split": split,
        "fingerprint": risk.fingerprint(),
        **described,
    }
    count = described.get("examples", request.examples)
    title = f"{checkpoint}: {opened.model_name}, {risk.dim:,} parameters, {count} examples ({split})"
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


def _open(request: Asked, path: str | None, quiet: bool) -> Checkpoint | Opened:
    if request.model is None and not (path and Path(path).is_dir()):
        spec = None
    else:
        from hessprobe.cli import foreign

        spec = foreign.spec_of(request, path)
    if spec is None:
        if not path:
            raise UsageError("CKPT must be given; got none. Name a checkpoint, or pass --objective file.py:function.")
        if request.data is not None:
            raise UsageError("--model and --data must be given together; got one of them. Plain weights need both.")
        if path.endswith(".safetensors"):
            raise UsageError(f"{require_file(path)} is plain weights: it names no model and data. {WHOSE_WEIGHTS}")
        checkpoint = load_checkpoint(path)
        _refuse_opening(request, f"{path}, which names its own model, data and loss")
        return _require_trusted_data(checkpoint)
    if path is not None:
        if not Path(path).is_dir() and is_own_file(path):
            raise UsageError(f"--model and --data are for plain weights, but {path} names its own. Leave them out.")
        if request.data is None and request.model is not None:
            raise UsageError("--model and --data must be given together; got one of them. Plain weights need both.")
        if foreign.is_own(spec, request):
            checkpoint, notes = foreign.open_own(spec, request, path)
            _tell(notes, quiet)
            return checkpoint
    return foreign.open_foreign(spec, request, path)


def _require_trusted_data(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose data are made by this package, or whose choice ``--trust-data`` accepts.

    A file from elsewhere must not open paths of this machine, nor go to the network.

    Raises:
        UsageError: it names a path or a data set of the network.
    """
    name = checkpoint.data.name
    if name.partition(":")[0] in _BUILT_IN or outputs.current().trust_data:
        return checkpoint
    raise UsageError(
        f"{checkpoint.path} asks for the data {name!r}, which lie outside hessprobe. Pass --trust-data if you made it "
        "or know where it comes from."
    )


def _refuse_opening(request: Asked, what: str) -> None:
    given = [each.name for each in fields(Opening) if getattr(request.opening, each.name) != each.default]
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


def _from_foreign(opened: Opened, request: Asked, path: str | None, quiet: bool) -> Subject:
    from hessprobe.cli import foreign

    with as_usage():
        risk, said = opened.risk(
            split=request.split,
            examples=request.examples,
            batch_size=request.batch_size,
            seed=request.seed,
            **_measured(request),
        )
    notes = (*opened.notes, *said)
    _tell(notes, quiet)
    described, split = risk.describe(), request.split or foreign.default_split(opened)
    data = {
        "name": request.data,
        "split": split,
        "fingerprint": risk.fingerprint(),
        **described,
        "notes": [*notes, *described["notes"]],
    }
    where = path or opened.name
    model = "" if where == opened.name else f"{opened.name}, "
    title = f"{where}: {model}{risk.dim:,} parameters, {risk.n_examples} examples ({split})"
    return Subject(risk, title, foreign.describe(opened, path, risk.dim), data)


def _refuse(request: Asked, names: tuple[str, ...], why: str) -> None:
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(request, name)]
    if given:
        raise UsageError(f"{', '.join(given)} cannot go with {why}")


def _measured(request: Asked) -> dict[str, Any]:
    return {
        "params": list(request.params or ()) or None,
        "dtype": None if request.dtype is None else getattr(torch, request.dtype),
        "device": resolve_device(request.device),
        "batchnorm": request.batchnorm or "eval",
    }


def _tell(notes: tuple[str, ...], quiet: bool) -> None:
    for note in () if quiet else notes:
        say(f"note: {note}")


def _from_objective(request: Asked, checkpoint: str | None) -> Subject:
    _refuse(request, ("model", "data"), "--objective. Decide it inside the function.")
    _refuse_opening(request, "--objective, which decides it inside the function")
    path, _, name = str(request.objective).rpartition(":")
    function = code.function_of_file("--objective", path, name)
    takes_checkpoint = bool(inspect.signature(function).parameters)
    if takes_checkpoint and checkpoint is None:
        raise UsageError(f"CKPT must be given: {name} of {path} takes its path; got none.")
    if not takes_checkpoint and checkpoint is not None:
        raise UsageError(f"{name} of {path} takes no argument, so CKPT must not be given; got {checkpoint!r}.")
    try:
        risk = made = function(checkpoint) if takes_checkpoint else function()
    except HessprobeError:
        raise
    except Exception as error:
        raise code.failed(f"{request.objective} failed", path, error) from error
    if isinstance(risk, tuple) and len(risk) == 3:
        with as_usage():
            risk = risk_of(
                risk,
                split=request.split,
                examples=request.examples,
                batch_size=request.batch_size,
                seed=request.seed,
                **_measured(request),
            )
    if not isinstance(risk, EmpiricalRisk):
        raise HessprobeError(
            f"{request.objective} must return (model, loss, data) or an EmpiricalRisk; got {type(risk).__name__}."
        )
    if risk is made:
        fixed = ("split", "examples", "batch_size", "batchnorm", "dtype", "device", "params")
        _refuse(request, fixed, "an EmpiricalRisk. Decide it inside the function, or return (model, loss, data).")
    title = f"{request.objective}: {risk.dim:,} parameters"
    weights = None
    if checkpoint is not None and Path(checkpoint).is_file():
        weights = {"path": checkpoint, "sha256": file_sha256(checkpoint)}
    origin = {"objective": request.objective, "objective_sha256": file_sha256(path)}
    return Subject(risk, title, weights, {**origin, "fingerprint": risk.fingerprint(), **risk.describe()})

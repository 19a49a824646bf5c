"""From what the command line names to a risk that can be measured."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hessprobe.cli import options
from hessprobe.cli.failures import QuotedError, UsageError, as_usage
from hessprobe.cli.trust import require_trusted_data
from hessprobe.errors import HessprobeError
from hessprobe.objective import EmpiricalRisk
from hessprobe.training.checkpoint import (
    RISK_BATCH_SIZE,
    WHOSE_WEIGHTS,
    Checkpoint,
    file_sha256,
    foreign_checkpoint,
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
    if not source.checkpoint:
        raise UsageError("CKPT must be given; got none. Name a checkpoint, or pass --objective file.py:function.")
    checkpoint = _open(source)
    split = source.split or "train"
    with as_usage():
        risk = checkpoint.risk(
            split,
            source.examples,
            source.batch_size or RISK_BATCH_SIZE,
            list(source.params) or None,
            dtype=None if source.dtype is None else getattr(torch, source.dtype),
            device=resolve_device(source.device),
            batchnorm=source.batchnorm or "eval",
            seed=source.seed,
        )
    described = risk.describe()
    data = {
        "name": checkpoint.data.name,
        "sha256": checkpoint.data.sha256,
        "split": split,
        "fingerprint": risk.fingerprint(),
        **described,
    }
    count = described.get("examples", source.examples)
    title = f"{source.checkpoint}: {checkpoint.model_name}, {risk.dim:,} parameters, {count} examples ({split})"
    return Subject(risk, title, describe_checkpoint(checkpoint), data)


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


def _open(source: Source) -> Checkpoint:
    path = str(source.checkpoint)
    if source.model is None and source.data is None:
        if path.endswith(".safetensors"):
            raise UsageError(f"{require_file(path)} is plain weights: it names no model and data. {WHOSE_WEIGHTS}")
        return require_trusted_data(load_checkpoint(path))
    if is_checkpoint(path):
        raise UsageError(f"--model and --data are for plain weights, but {path} names its own. Leave them out.")
    if source.model is None or source.data is None:
        raise UsageError("--model and --data must be given together; got one of them. Plain weights need both.")
    name, arguments = options.parse_model(source.model)
    with as_usage():
        return foreign_checkpoint(path, name, arguments, source.data)


def _from_objective(source: Source) -> Subject:
    fixed = ("model", "data", "split", "examples", "batch_size", "batchnorm", "dtype", "device", "params")
    given = [f"--{name.replace('_', '-')}" for name in fixed if getattr(source, name)]
    if given:
        raise UsageError(f"{', '.join(given)} cannot go with --objective. Decide it inside the function.")
    path, _, name = str(source.objective).rpartition(":")
    function = _function(path, name)
    takes_checkpoint = bool(inspect.signature(function).parameters)
    if takes_checkpoint and source.checkpoint is None:
        raise UsageError(f"CKPT must be given: {name} of {path} takes its path; got none.")
    if not takes_checkpoint and source.checkpoint is not None:
        raise UsageError(f"{name} of {path} takes no argument, so CKPT must not be given; got {source.checkpoint!r}.")
    try:
        risk = function(source.checkpoint) if takes_checkpoint else function()
    except HessprobeError:
        raise
    except Exception as error:
        raise _failed(f"{source.objective} failed", path, error) from error
    if not isinstance(risk, EmpiricalRisk):
        raise HessprobeError(f"{source.objective} must return an EmpiricalRisk; got {type(risk).__name__}.")
    title = f"{source.objective}: {risk.dim:,} parameters"
    checkpoint = None
    if source.checkpoint is not None and Path(source.checkpoint).is_file():
        checkpoint = {"path": source.checkpoint, "sha256": file_sha256(source.checkpoint)}
    origin = {"objective": source.objective, "objective_sha256": file_sha256(path)}
    return Subject(risk, title, checkpoint, {**origin, "fingerprint": risk.fingerprint(), **risk.describe()})


def _function(path: str, name: str) -> Any:
    if not (path and name):
        raise UsageError("--objective must be FILE.py:FUNCTION; got no ':'. For example: --objective risks.py:make.")
    if not Path(path).is_file():
        # As of a checkpoint: a file that is missing is a failure of the work.
        raise HessprobeError(f"--objective must name an existing file; got {path!r}. Check the path.")
    module_name = f"_hessprobe_objective_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--objective must name a Python file (.py); got {path!r}.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by name while the file runs; its neighbours can be imported.
    sys.modules[module_name] = module
    sys.path.insert(0, str(Path(path).resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _failed(f"{path} failed to load", path, error) from error
    finally:
        sys.path.pop(0)
    functions = tuple(key for key, value in vars(module).items() if callable(value))
    if name not in functions:
        raise UsageError(f"{path} has no function {name!r}.{options.nearest(name, functions)}")
    return getattr(module, name)


def _failed(what: str, path: str, error: Exception) -> QuotedError:
    """Return the failure of the user's file at ``path``, with the innermost line of the user's own code."""
    folder = Path(path).resolve().parent
    own = [each for each in traceback.extract_tb(error.__traceback__) if Path(each.filename).resolve().parent == folder]
    place = (error.filename, error.lineno) if isinstance(error, SyntaxError) else None
    place = (own[-1].filename, own[-1].lineno) if place is None and own else place
    where = f" at {place[0]}:{place[1]}" if place else ""
    name = type(error).__name__
    return QuotedError(f"{what}{where}: {name}: {str(error).rstrip('.')}. --debug shows the traceback.")

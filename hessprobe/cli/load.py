"""From what the command line names to a risk that can be measured.

Models, weights and data of other libraries, as the command line names them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hessprobe import checks
from hessprobe.cli import code, options, outputs, process
from hessprobe.cli.options import Asked
from hessprobe.cli.process import UsageError, as_usage, note
from hessprobe.errors import CheckpointError, HessprobeError
from hessprobe.models import build, data, fitting, images, pretrained
from hessprobe.models.files import path_sha256, read_contents
from hessprobe.models.images import Examples
from hessprobe.models.opened import Opened
from hessprobe.models.spec import LOSSES, ZOO, ModelSpec, Opening, parse_spec
from hessprobe.models.triple import risk_of
from hessprobe.objective import EmpiricalRisk
from hessprobe.training import models as zoo
from hessprobe.training.checkpoint import (
    RISK_BATCH_SIZE,
    WHOSE_WEIGHTS,
    Checkpoint,
    file_sha256,
    foreign_checkpoint,
    is_checkpoint,
    load_checkpoint,
    require_file,
)

# Names of hessprobe's networks that other libraries have too.
_SHARED = {"resnet18": ("torchvision", "timm")}


def spec_of(request: Asked, path: str | None) -> ModelSpec | None:
    """Return what ``--model`` names, or what the folder CKPT is by itself; None for neither.

    Raises:
        UsageError: it cannot be read.
    """
    if request.model is not None:
        with as_usage():
            return parse_spec(request.model)
    kind = None if path is None else pretrained.kind_of_folder(path)
    return None if kind is None else ModelSpec(f"{kind}:{path}", kind, str(path))


def is_own(spec: ModelSpec, request: Asked) -> bool:
    """Return whether weights, data and loss are those of a network of hessprobe, trained elsewhere."""
    return spec.kind == ZOO and data.is_data_set(str(request.data)) and replace(request.opening, key=None) == Opening()


def open_own(spec: ModelSpec, request: Asked, path: str) -> tuple[Checkpoint, tuple[str, ...]]:
    """Return the weights of a network of hessprobe as a checkpoint, and what a reader should know.

    Raises:
        UsageError: an unknown model, argument or data.
        CheckpointError: the weights do not fit; where the name is that of another library too, says so.
    """
    said: list[tuple[str, ...]] = []

    def place(model: nn.Module) -> None:
        said.append(_placed(model, path, request.opening.key)[0])

    try:
        with as_usage():
            checkpoint = foreign_checkpoint(path, spec.name, spec.arguments, str(request.data), place)
    except CheckpointError as error:
        raise _with_libraries(error, spec) from error
    return checkpoint, said[-1]


def open_foreign(spec: ModelSpec, request: Asked, path: str | None) -> Opened:
    """Return a network of another library with its weights and data.

    Raises:
        UsageError: options that contradict each other or name what does not exist.
        HessprobeError: a file that is missing or cannot be used, or a library that is not installed.
        QuotedError: the user's own code failed.
    """
    if request.data is None:
        raise UsageError(f"--data must be given with --model {spec.text}; got none. Choose {data.KINDS}.")
    if spec.kind in ("transformers", "peft"):
        return _open_pretrained(spec, request, path)
    with as_usage():
        model, examples, said = _with_data(spec, request)
    notes: tuple[str, ...] = ()
    origin: dict[str, Any] = {}
    if path is not None:
        try:
            notes, origin = _placed(model, path, request.opening.key)
        except CheckpointError as error:
            raise _with_libraries(error, spec) from error
    elif spec.kind == ZOO or (spec.kind in ("torchvision", "timm") and not _loads_itself(spec)):
        raise UsageError(f"CKPT must be given with --model {spec.text}, which has no weights; got none. Name the file.")
    else:
        model.float()
        notes = (f"weights as {spec.text} makes them",)
    return Opened(model.eval(), spec.text, examples, _loss(request.opening), origin, (*notes, *said))


def _open_pretrained(spec: ModelSpec, request: Asked, path: str | None) -> Opened:
    opening = request.opening
    other = path is not None and Path(path).resolve() != Path(spec.name).resolve()
    # A folder of the same library holds a network of its own; of any other file the weights alone are taken.
    folder = str(path) if other and pretrained.kind_of_folder(str(path)) == spec.kind else spec.name
    loose = other and folder == spec.name
    origin: dict[str, Any] = {}
    with as_usage():
        build.only_arguments(spec, ("base",) if spec.kind == "peft" else ())
        if spec.kind == "peft":
            base = spec.arguments.get("base")
            model, task, notes = pretrained.open_adapter(folder, opening.task, None if base is None else str(base))
        else:
            model, task, notes = pretrained.open_pretrained(folder, opening.task, weights=not loose)
    if loose:
        placed, origin = _placed(model, str(path), opening.key)
        notes = (*notes, *placed)
    else:
        origin = {"path": folder, "sha256": path_sha256(folder), "format": f"{spec.kind} folder"}
    with as_usage():
        examples = data.load_for(model, spec.name, task, str(request.data), opening)
    return Opened(model.eval(), spec.text, examples, _loss(opening), origin, (*notes, f"task: {task}"))


def _with_data(spec: ModelSpec, request: Asked) -> tuple[nn.Module, Any, tuple[str, ...]]:
    if spec.kind != ZOO:
        model = _model(spec)
        return model, *data.load(str(request.data), request.opening, images.usual_of(spec.kind, model))
    examples, said = data.load(str(request.data), request.opening)
    checks.one_of("model", spec.name, zoo.REGISTRY)
    implied = getattr(examples, "implied_arguments", {})
    return zoo.build_model(spec.name, zoo.complete_arguments(spec.name, spec.arguments, implied)), examples, said


def _model(spec: ModelSpec) -> nn.Module:
    if spec.kind == "torchvision":
        return build.build_torchvision(spec)
    if spec.kind == "timm":
        return build.build_timm(spec)
    if spec.kind == "file":
        factory = code.function_of_file("--model", spec.place, spec.name)
        return _of_user(factory, spec, spec.place)
    return _of_user(code.function_of_module("--model", spec.place, spec.name), spec, "")


def _of_user(factory: Callable[..., Any], spec: ModelSpec, path: str) -> nn.Module:
    if isinstance(factory, type) and not issubclass(factory, nn.Module):
        raise UsageError(f"--model {spec.text} must make a torch.nn.Module; {spec.name} is a {factory.__name__}.")
    try:
        return build.construct(factory, spec)
    except (ValueError, HessprobeError):
        raise
    except Exception as error:
        raise code.failed(f"--model {spec.text} failed", path, error) from error


def _placed(model: nn.Module, path: str, key: str | None) -> tuple[tuple[str, ...], dict[str, Any]]:
    contents = read_contents(path)
    found = fitting.find_weights(model, contents.tree, path, key)
    notes = fitting.place_weights(model, found, path)
    return notes, {"path": path, "sha256": contents.sha256(), "format": contents.format}


def _loads_itself(spec: ModelSpec) -> bool:
    return bool(spec.arguments.get("weights") or spec.arguments.get("pretrained"))


def _loss(opening: Opening) -> Any:
    text = opening.loss
    if text is None or text in LOSSES:
        return text
    place, colon, name = text.rpartition(":")
    if not colon:
        close = checks.nearest(text, LOSSES)
        raise UsageError(f"--loss must be one of {', '.join(LOSSES)}, or file.py:function; got {text!r}.{close}")
    found = code.function_of_file if place.endswith(".py") else code.function_of_module
    return found("--loss", place, name)


def _with_libraries(error: CheckpointError, spec: ModelSpec) -> CheckpointError:
    libraries = _SHARED.get(spec.name, ()) if spec.kind == ZOO else ()
    if not libraries:
        return error
    others = " or ".join(f"--model {library}:{spec.name}" for library in libraries)
    return CheckpointError(f"{error} {spec.name!r} is hessprobe's own network here; for another library's: {others}.")


def describe(opened: Opened, path: str | None, parameters: int) -> dict[str, Any]:
    """Return what a record says about a network of another library."""
    return {
        "path": path or opened.name,
        **(opened.origin or {}),
        "model": {"name": opened.name, "arguments": {}},
        "parameters": parameters,
        "loss": opened.loss if isinstance(opened.loss, str) else getattr(opened.loss, "__name__", None),
    }


def default_split(opened: Opened) -> str:
    """Return the part of the data that is measured where none is asked for."""
    return opened.data.default_split if isinstance(opened.data, Examples) else "train"


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
    process.settle_threads()
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
    mend = f"Write --device {present[-1].partition(':')[0]}, or leave it out."
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        none = " torch sees no GPU here." if name.startswith(("cuda", "gpu")) and len(present) == 1 else ""
        raise UsageError(
            f"--device must be a device of this machine ({', '.join(present)}); got {name!r}.{none} {mend}"
        ) from error
    return device


def _open(request: Asked, path: str | None, quiet: bool) -> Checkpoint | Opened:
    if path is not None:
        options.refuse_record(path)
    own = request.model is None and not (path and Path(path).is_dir())
    spec = None if own else spec_of(request, path)
    if spec is None:
        if not path:
            raise UsageError("CKPT must be given; got none. Name a checkpoint, or pass --objective file.py:function.")
        if request.data is not None and Path(path).is_file() and is_own_file(path):
            raise UsageError(f"--data must be left out for {path}, which names its own; got {request.data!r}.")
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
        if is_own(spec, request):
            checkpoint, notes = open_own(spec, request, path)
            _tell(notes, quiet)
            return checkpoint
    return open_foreign(spec, request, path)


def _require_trusted_data(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose data are made by this package, or whose choice ``--trust-data`` accepts.

    A file from elsewhere must not open paths of this machine, nor go to the network.

    Raises:
        UsageError: it names a path or a data set of the network.
    """
    name = checkpoint.data.name
    if name.partition(":")[0] in _BUILT_IN or outputs.current_invocation().trust_data:
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
    described, split = risk.describe(), request.split or default_split(opened)
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
    return Subject(risk, title, describe(opened, path, risk.dim), data)


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
    for each in () if quiet else notes:
        note(each)


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

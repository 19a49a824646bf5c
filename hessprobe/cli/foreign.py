"""Models, weights and data of other libraries, as the command line names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from hessprobe import checks
from hessprobe.cli import code
from hessprobe.cli.failures import UsageError, as_usage
from hessprobe.cli.source import Asked
from hessprobe.errors import CheckpointError, HessprobeError
from hessprobe.models import build, data, fitting, images, pretrained
from hessprobe.models.files import path_sha256, read_contents
from hessprobe.models.images import Examples
from hessprobe.models.opened import Opened
from hessprobe.models.spec import LOSSES, ZOO, ModelSpec, Opening, parse_spec
from hessprobe.training import models as zoo
from hessprobe.training.checkpoint import Checkpoint, foreign_checkpoint

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

"""Networks of other libraries by their names, imported only when named."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hessprobe import checks
from hessprobe.errors import UnsupportedError
from hessprobe.models.spec import ModelSpec
from hessprobe.training.models import seeded

_INSTALL = {
    "torchvision": "torchvision",
    "timm": "timm",
    "transformers": "'hessprobe[hf]'",
    "peft": "peft",
    "datasets": "'hessprobe[hf]'",
    "lightning": "pytorch-lightning",
}


def require(library: str, what: str) -> Any:
    """Return a library, imported now.

    Args:
        library: its name.
        what: what needs it, for the message.

    Raises:
        UnsupportedError: it is not installed, or does not fit the installed torch.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        package = library.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        reason = "which is not installed" if missing else f"which cannot be imported here ({error})"
        raise UnsupportedError(
            f"{what} needs the package {package}, {reason}. Install it with: pip install {_INSTALL[package]}"
        ) from error


def build_torchvision(spec: ModelSpec) -> nn.Module:
    """Return a network of torchvision without weights, e.g. ``torchvision:resnet18?num_classes=10``.

    Raises:
        UnsupportedError: torchvision is not installed.
        ValueError: no such network, or an argument that it refuses.
    """
    library = require("torchvision", f"--model {spec.text}")
    known = library.models.list_models()
    name = checks.one_of("--model torchvision:NAME", spec.name, known)
    return construct(library.models.get_model, spec, name, weights=None, **_backbone(library, name))


def build_timm(spec: ModelSpec) -> nn.Module:
    """Return a network of timm without weights, e.g. ``timm:vit_tiny_patch16_224?num_classes=10``.

    Raises:
        UnsupportedError: timm is not installed.
        ValueError: no such network, or an argument that it refuses.
    """
    library = require("timm", f"--model {spec.text}")
    name = spec.name if "." in spec.name else checks.one_of("--model timm:NAME", spec.name, library.list_models())
    return construct(library.create_model, spec, name, pretrained=False)


def construct(factory: Any, spec: ModelSpec, *positional: Any, **fixed: Any) -> nn.Module:
    """Return ``factory(*positional, **fixed, **arguments of spec)`` on the CPU with fixed random numbers.

    Raises:
        ValueError: the factory refuses the arguments, or returns something else than a network.
    """
    _require_arguments(factory, spec)
    with seeded(0, torch.device("cpu")):
        model = factory(*positional, **{**fixed, **spec.arguments})
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"--model {spec.text} must make a torch.nn.Module; got {type(model).__name__}. Return the network."
        )
    return model


def only_arguments(spec: ModelSpec, known: tuple[str, ...]) -> None:
    """Refuse arguments of a specification that are not known.

    Raises:
        ValueError: names the first.
    """
    for key in spec.arguments:
        if key not in known:
            mend = f"Known is {', '.join(known)}." if known else "It takes none: its folder says everything."
            raise ValueError(f"--model {spec.text} has no argument {key!r}. {mend}")


def _require_arguments(factory: Any, spec: ModelSpec) -> None:
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return
    for key in spec.arguments:
        checks.one_of(f"argument of --model {spec.text}", key, parameters)


def _backbone(library: Any, name: str) -> dict[str, Any]:
    # Detectors and segmenters would fetch the weights of their backbone.
    builder = library.models.get_model_builder(name)
    return {"weights_backbone": None} if "weights_backbone" in inspect.signature(builder).parameters else {}

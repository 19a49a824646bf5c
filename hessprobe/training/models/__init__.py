"""The model zoo: a name and JSON-friendly arguments stand for an architecture."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hessprobe import checks
from hessprobe.training.models.convolutional import CNN, VGG
from hessprobe.training.models.mlp import MLP
from hessprobe.training.models.residual import ResNet, WideResNet, resnet18
from hessprobe.training.models.transformers import GPT, ViT

__all__ = [
    "CNN",
    "GPT",
    "MLP",
    "REGISTRY",
    "VGG",
    "ModelEntry",
    "ResNet",
    "ViT",
    "WideResNet",
    "build_model",
    "complete_arguments",
]


@dataclass(frozen=True)
class ModelEntry:
    """One architecture of the zoo.

    Attributes:
        build: makes the module from keyword arguments that JSON can hold.
        layout: what an input is: ``"vector"``, ``"image"`` or ``"tokens"``.
    """

    build: Callable[..., nn.Module]
    layout: str


REGISTRY: dict[str, ModelEntry] = {
    "mlp": ModelEntry(MLP, "vector"),
    "cnn": ModelEntry(CNN, "image"),
    "resnet": ModelEntry(ResNet, "image"),
    "resnet18": ModelEntry(resnet18, "image"),
    "wide-resnet": ModelEntry(WideResNet, "image"),
    "vgg": ModelEntry(VGG, "image"),
    "vit": ModelEntry(ViT, "image"),
    "gpt": ModelEntry(GPT, "tokens"),
}


def complete_arguments(name: str, given: Mapping[str, Any], implied: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of a model: the given ones, then what the data imply, then the defaults.

    Args:
        name: a name in ``REGISTRY``.
        given: arguments chosen by the user.
        implied: arguments that follow from the data (``in_features``, ``n_classes``, ...); those the model does not
            have are left out.

    Raises:
        ValueError: unknown model or argument; the message names the nearest one.
    """
    entry = REGISTRY[checks.one_of("model", name, REGISTRY)]
    parameters = inspect.signature(entry.build).parameters
    for key in given:
        checks.one_of(f"argument of model {name!r}", key, parameters)
    defaults = {key: parameter.default for key, parameter in parameters.items()}
    fitting = {key: value for key, value in implied.items() if key in parameters}
    merged = {**defaults, **fitting, **given}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in merged.items()}


def build_model(name: str, arguments: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """Return a freshly initialised model on the CPU; the same seed gives the same weights.

    Raises:
        ValueError: unknown model or argument, or an argument out of range.
        TypeError: an argument of the wrong type.
    """
    complete = complete_arguments(name, arguments, {})
    with seeded(seed, torch.device("cpu")):
        return REGISTRY[name].build(**complete)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the default generators of the CPU and ``device`` inside the block, and put them back after it."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        # torch.manual_seed would reseed every device, and fork_rng restores only those it was given.
        torch.default_generator.manual_seed(seed)
        for each in cuda:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        yield

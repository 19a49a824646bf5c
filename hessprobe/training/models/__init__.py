"""The model zoo: a name and JSON-friendly arguments stand for an architecture."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hessprobe import checks
from hessprobe.training.models.convolutional import CNN, VGG
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


ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
NORMS: dict[str, type[nn.Module] | None] = {"none": None, "layer": nn.LayerNorm, "batch": nn.BatchNorm1d}


class MLP(nn.Module):
    """x -> W_L s(... s(N(W_1 x + b_1)) ...) + b_L on inputs flattened to vectors; N is the identity by default.

    Args:
        in_features: length of a flattened input, >= 1.
        hidden: widths of the hidden layers, each >= 1; empty gives a linear model.
        n_classes: number of outputs, >= 1.
        activation: ``"relu"``, ``"tanh"`` or ``"gelu"``; relu is piecewise linear, so that its Hessian is that of the
            loss along the active pieces, the other two are smooth.
        norm: ``"none"``, ``"layer"`` or ``"batch"``: a normalization layer before every activation.

    Raises:
        TypeError, ValueError: a width that is not a positive integer, or an unknown activation or norm.
    """

    def __init__(
        self,
        in_features: int = 64,
        hidden: Sequence[int] | int = (128, 64),
        n_classes: int = 10,
        activation: str = "relu",
        norm: str = "none",
    ) -> None:
        super().__init__()
        hint = "Give each layer at least one unit."
        first, last = (
            checks.positive_int(name, size, hint=hint)
            for name, size in (("in_features", in_features), ("n_classes", n_classes))
        )
        widths = [first, *checks.positive_ints("hidden", hidden, hint), last]
        make = ACTIVATIONS[checks.one_of("activation", activation, ACTIVATIONS)]
        normalize = NORMS[checks.one_of("norm", norm, NORMS)]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths[:-1]):
            layers += [nn.Linear(before, after), *([normalize(after)] if normalize else []), make()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: (B, ...) -> (B, n_classes)."""
        logits: Tensor = self.layers(x.flatten(1))
        return logits


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

"""Convolutional networks with BatchNorm for small images: a small one, and the VGG family."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hessprobe import checks
from hessprobe.errors import about
from hessprobe.training.models.residual import initialise_convolutions


class CNN(nn.Module):
    """Stages of 3x3 convolution, BatchNorm, relu; the resolution halves between stages; global mean; linear head.

    Args:
        in_channels: channels of the images, >= 1.
        widths: channels of each stage, each >= 1; images must be at least 2^(stages - 1) pixels wide and high.
        n_classes: number of outputs, >= 1.

    Raises:
        TypeError, ValueError: a width that is not a positive integer, or no stage.
    """

    def __init__(self, in_channels: int = 1, widths: Sequence[int] | int = (16, 32), n_classes: int = 10) -> None:
        super().__init__()
        hint = "Give each layer at least one channel."
        stages = checks.positive_ints("widths", widths, hint)
        if not stages:
            raise ValueError("widths must be at least one number of channels; got []. Give e.g. widths=16-32.")
        checks.positive_int("in_channels", in_channels, hint=hint)
        checks.positive_int("n_classes", n_classes, hint=hint)
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(zip([in_channels, *stages], stages, strict=False)):
            stride = 1 if index == 0 else 2
            layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(after)]
            layers.append(nn.ReLU())
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(stages[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: (B, in_channels, h, w) -> (B, n_classes)."""
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


# Convolutions in each of the five stages.
STAGES: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_MULTIPLES = (1, 2, 4, 8, 8)


class VGG(nn.Module):
    """Five stages of 3x3 convolution, BatchNorm, relu; a 2x2 maximum after each; global mean; linear head.

    Stages after which the image would be smaller than one pixel have no maximum, so that images of 8 pixels fit too.
    The defaults are VGG-16 on CIFAR-10 with one linear layer: 14,724,042 parameters.

    Args:
        depth: 11, 13, 16 or 19, counting the three linear layers of the original.
        width: channels of the first stage, >= 1; the others have 2, 4, 8 and 8 times as many.
        in_channels: channels of the images, >= 1.
        image_size: pixels, one number for square images or height and width, each >= 1.
        n_classes: number of outputs, >= 1.

    Raises:
        TypeError, ValueError: an unknown depth, or a size that is not a positive integer.

    References:
        Simonyan, Zisserman (2015), "Very deep convolutional networks for large-scale image recognition".
    """

    def __init__(
        self,
        depth: int = 16,
        width: int = 64,
        in_channels: int = 3,
        image_size: Sequence[int] | int = 32,
        n_classes: int = 10,
    ) -> None:
        super().__init__()
        if depth not in STAGES:
            raise ValueError(f"depth must be one of 11, 13, 16, 19; got {depth!r}. Take 11 for the smallest.")
        side = min(sides(image_size))
        for name, size in {"width": width, "in_channels": in_channels, "n_classes": n_classes}.items():
            checks.positive_int(name, size)
        layers: list[nn.Module] = []
        channels = in_channels
        for count, multiple in zip(STAGES[depth], _MULTIPLES, strict=True):
            for _ in range(count):
                after = width * multiple
                layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
                channels = after
            if side >= 2:
                layers.append(nn.MaxPool2d(2))
                side //= 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, n_classes)
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: (B, in_channels, h, w) -> (B, n_classes)."""
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


def sides(image_size: Sequence[int] | int) -> tuple[int, int]:
    """Return (height, width) of ``image_size``, one number or two.

    Raises:
        TypeError, ValueError: not one or two positive integers.
    """
    both = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
    if len(both) != 2:
        raise ValueError(
            about("image_size", f"must be one number, or height and width; got {image_size!r}. Give e.g. 32.")
        )
    return checks.positive_int("image_size", both[0]), checks.positive_int("image_size", both[1])

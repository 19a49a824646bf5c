"""Small convolutional network with BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hessprobe import checks


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

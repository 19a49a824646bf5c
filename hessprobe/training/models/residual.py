"""Residual networks for small images: the CIFAR family, ResNet-18 with a 3x3 stem, wide residual networks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from hessprobe import checks


class ResidualBlock(nn.Module):
    """relu(BN(conv(relu(BN(conv x)))) + shortcut(x)), both convolutions 3x3.

    The shortcut is the identity, or a strided 1x1 convolution with BatchNorm where the shape changes (option B of the
    reference).

    References:
        He, Zhang, Ren, Sun (2016), "Deep residual learning for image recognition", sections 3.3 and 4.2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            project = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, ceil(h / stride), ceil(w / stride)) for (B, in_channels, h, w)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, stages of residual blocks of widths w, 2w, 4w, ..., global mean, linear head.

    The defaults are ResNet-20 for CIFAR-10: 6 * blocks + 2 layers and 272,474 parameters.

    Args:
        blocks: residual blocks a stage, >= 1 (3, 5, 7, 9, 18 give ResNet-20, 32, 44, 56, 110).
        width: channels of the first stage, >= 1.
        in_channels: channels of the images, >= 1.
        n_classes: number of outputs, >= 1.
        stages: number of stages, >= 1; the resolution halves between them.

    Raises:
        TypeError, ValueError: a size that is not a positive integer.

    References:
        He, Zhang, Ren, Sun (2016), "Deep residual learning for image recognition", section 4.2.
    """

    def __init__(
        self, blocks: int = 3, width: int = 16, in_channels: int = 3, n_classes: int = 10, stages: int = 3
    ) -> None:
        super().__init__()
        sizes = {"blocks": blocks, "width": width, "in_channels": in_channels, "n_classes": n_classes, "stages": stages}
        for name, size in sizes.items():
            checks.positive_int(name, size)
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        parts: list[nn.Module] = []
        channels = width
        for stage in range(stages):
            after = width * 2**stage
            for block in range(blocks):
                parts.append(ResidualBlock(channels, after, stride=2 if stage and not block else 1))
                channels = after
        self.stages = nn.Sequential(*parts)
        self.head = nn.Linear(channels, n_classes)
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: (B, in_channels, h, w) -> (B, n_classes)."""
        y = functional.relu(self.bn(self.stem(x)))
        logits: Tensor = self.head(self.stages(y).mean((2, 3)))
        return logits


def resnet18(width: int = 64, in_channels: int = 3, n_classes: int = 10) -> ResNet:
    """Return ResNet-18 with a 3x3 stem and no pooling, as papers on CIFAR use it: 11,173,962 parameters.

    Args:
        width: channels of the first of the four stages, >= 1.
        in_channels: channels of the images, >= 1.
        n_classes: number of outputs, >= 1.
    """
    return ResNet(blocks=2, width=width, in_channels=in_channels, n_classes=n_classes, stages=4)


def initialise_convolutions(module: nn.Module) -> None:
    """Draw the weights of all convolutions as He et al. do, the variance being 2 / fan_out."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


_STAGES = 3
_FIRST_WIDTH = 16


class PreActivationBlock(nn.Module):
    """shortcut + conv(dropout(relu(BN(conv(relu(BN x)))))), both convolutions 3x3.

    Where the shape changes the shortcut is a strided 1x1 convolution of relu(BN x), else x itself.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.projection: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.projection = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, ceil(h / stride), ceil(w / stride)) for (B, in_channels, h, w)."""
        active = functional.relu(self.bn1(x))
        y = self.dropout(functional.relu(self.bn2(self.conv1(active))))
        shortcut = x if self.projection is None else self.projection(active)
        result: Tensor = self.conv2(y) + shortcut
        return result


class WideResNet(nn.Module):
    """WRN-depth-widen: a 3x3 stem, three stages of pre-activation blocks of widths 16k, 32k, 64k, BN, global mean.

    The defaults are WRN-28-10: 36,479,194 parameters on CIFAR-10.

    Args:
        depth: number of layers, 6n + 4 for n >= 1 blocks a stage (10, 16, 22, 28, 40).
        widen: k, >= 1.
        dropout: rate inside the blocks, in [0, 1).
        in_channels: channels of the images, >= 1.
        n_classes: number of outputs, >= 1.

    Raises:
        TypeError, ValueError: a size that is not a positive integer, or a depth that is not 6n + 4.

    References:
        Zagoruyko, Komodakis (2016), "Wide residual networks".
    """

    def __init__(
        self, depth: int = 28, widen: int = 10, dropout: float = 0.0, in_channels: int = 3, n_classes: int = 10
    ) -> None:
        super().__init__()
        sizes = {"depth": depth, "widen": widen, "in_channels": in_channels, "n_classes": n_classes}
        for name, size in sizes.items():
            checks.positive_int(name, size)
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6n + 4 for n >= 1; got {depth}. Take 10, 16, 22, 28 or 40.")
        checks.real("dropout", dropout, low=0, high=1, high_open=True)
        self.stem = nn.Conv2d(in_channels, _FIRST_WIDTH, 3, padding=1, bias=False)
        parts: list[nn.Module] = []
        channels = _FIRST_WIDTH
        for stage in range(_STAGES):
            after = _FIRST_WIDTH * widen * 2**stage
            for block in range((depth - 4) // 6):
                parts.append(PreActivationBlock(channels, after, 2 if stage and not block else 1, dropout))
                channels = after
        self.stages = nn.Sequential(*parts)
        self.bn = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, n_classes)
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: (B, in_channels, h, w) -> (B, n_classes)."""
        y = functional.relu(self.bn(self.stages(self.stem(x))))
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits

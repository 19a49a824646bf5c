"""Multi-layer perceptron."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from hessprobe import checks

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

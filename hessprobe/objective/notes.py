"""What a risk changed to be measurable, in sentences for records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from hessprobe.objective import modes
from hessprobe.objective.weighting import LossRule

_STATISTICS = {"eval": "with its running statistics", "batch": "with the statistics of each batch"}


@dataclass
class Noted:
    """What has been seen of an evaluation.

    Attributes:
        switched: how many modules of each kind were in train mode, and are not while the loss is evaluated.
        attention: the fused kernels of attention were switched off.
        checkpointed: activation checkpointing was switched off.
    """

    switched: dict[str, int]
    attention: bool = False
    checkpointed: bool = False

    def see_checkpoint(self) -> None:
        """Note that the model would have checkpointed a part of itself."""
        self.checkpointed = True

    def sentences(self, module: nn.Module, batchnorm: str) -> Iterator[str]:
        """Yield what was changed in ``module``."""
        if self.switched:
            counted = " and ".join(f"{count} {kind}" for kind, count in self.switched.items())
            few = sum(self.switched.values()) == 1
            yield f"{counted} {'module' if few else 'modules'} in train mode measured in evaluation mode"
        if self.attention:
            yield "attention switched to the math kernel (the fused kernels have no second derivative)"
        if self.checkpointed:
            yield "activation checkpointing off (it would differentiate at the module's own parameters)"
        if modes.batchnorms(module):
            yield f"BatchNorm {_STATISTICS.get(batchnorm, 'recalibrated on these data, then held fixed')}"
        if any(getattr(layer, "padding_idx", None) is not None for layer in module.modules()):
            yield "rows of padding_idx have their true gradient (torch replaces it by zero)"


def train_modes(module: nn.Module, batchnorm: str) -> dict[str, int]:
    """Return how many modules behave otherwise in train mode, in which they are, than they will be measured."""
    training = [member for member in module.modules() if member.training]
    found = {
        "Dropout": sum(_drops(member) for member in training),
        "BatchNorm": sum(isinstance(member, _BatchNorm) for member in training) if batchnorm != "batch" else 0,
    }
    return {kind: count for kind, count in found.items() if count}


def unreduced(rule: LossRule | None, n_examples: int, n_units: float) -> tuple[str, ...]:
    """Return the sentence on a loss that torch would not have averaged; none where it is a mean.

    Args:
        rule: of the loss, None where the model or ``forward`` computes it.
        n_examples: number of examples.
        n_units: what the loss is divided by.
    """
    if rule is None or rule.reduction == "mean":
        return ()
    whole = rule.reduction == "none" and rule.elementwise
    units = "all elements" if whole else "examples" if n_units == n_examples else "counted targets"
    said = f"{rule.name}(reduction={rule.reduction!r}) is measured as the mean over {units}"
    if rule.reduction == "sum":
        said += f": the loss and the Hessian of the sum are {n_units:.12g} times as large"
    return (said,)


def _drops(member: nn.Module) -> bool:
    # Attention and recurrent networks drop by a number of their own.
    rate = member.p if isinstance(member, _DropoutNd) else getattr(member, "dropout", 0)
    return isinstance(rate, Real) and float(rate) > 0

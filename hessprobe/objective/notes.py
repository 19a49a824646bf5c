"""What a risk changed to be measurable, in sentences for records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from hessprobe.objective import modes
from hessprobe.objective.determinism import CallWatch
from hessprobe.objective.weighting import LossRule

# Modules that a sentence names.
_NAMED = 3

_STATISTICS = {"eval": "with its running statistics", "batch": "with the statistics of each batch"}


@dataclass
class Noted:
    """What has been seen of an evaluation.

    Attributes:
        switched: names of the modules of each kind that were in train mode, and are not while the loss is evaluated.
        functional: forward calls a dropout function, in a model that was in train mode, and it drops nothing.
        attention: the fused kernels of attention were switched off.
        checkpointed: activation checkpointing was switched off.
    """

    switched: dict[str, list[str]]
    functional: bool = False
    attention: bool = False
    checkpointed: bool = False

    def see_checkpoint(self) -> None:
        """Note that the model would have checkpointed a part of itself."""
        self.checkpointed = True

    def modes(self) -> Iterator[str]:
        """Yield what was in train mode and was measured in evaluation mode: the number is not that of training."""
        if self.switched:
            counted = " and ".join(f"{len(names)} {kind}" for kind, names in self.switched.items())
            names = [name for members in self.switched.values() for name in members]
            listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
            one = len(names) == 1
            yield f"{counted} {'module' if one else 'modules'} in train mode measured in evaluation mode ({listed})"
        if self.functional:
            yield "dropout called in forward of a model in train mode measured in evaluation mode"

    def sentences(self, module: nn.Module, batchnorm: str) -> Iterator[str]:
        """Yield what was changed in ``module`` to have a second derivative, and how BatchNorm was measured."""
        if self.attention:
            yield "attention switched to the math kernel (the fused kernels have no second derivative)"
        if self.checkpointed:
            yield "activation checkpointing off (it would differentiate at the module's own parameters)"
        if modes.batchnorms(module):
            yield f"BatchNorm {_STATISTICS.get(batchnorm, 'recalibrated on these data, then held fixed')}"
        if any(getattr(layer, "padding_idx", None) is not None for layer in module.modules()):
            yield "rows of padding_idx have their true gradient (torch replaces it by zero)"


def train_modes(module: nn.Module, batchnorm: str) -> dict[str, list[str]]:
    """Return the names of modules that behave otherwise in train mode, in which they are, than they will be measured.

    Args:
        module: the model.
        batchnorm: how BatchNorm is measured; ``"batch"`` is its train mode.
    """
    found: dict[str, list[str]] = {"Dropout": [], "BatchNorm": []}
    for name, member in module.named_modules():
        if not member.training:
            continue
        if _drops(member):
            found["Dropout"].append(name or "the model itself")
        elif isinstance(member, _BatchNorm) and batchnorm != "batch":
            found["BatchNorm"].append(name or "the model itself")
    return {kind: names for kind, names in found.items() if names}


@contextmanager
def functional_dropout(module: nn.Module, watch: CallWatch) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether dropout was called inside by something else than a dropout module.

    Args:
        module: the model.
        watch: sees the calls.
    """
    by_modules = [0]

    def count(member: nn.Module, _: object) -> None:
        by_modules[0] += _drops(member)

    handles = [m.register_forward_pre_hook(count) for m in module.modules() if isinstance(m, _DropoutNd)]
    try:
        yield lambda: watch.dropped > by_modules[0]
    finally:
        for handle in handles:
            handle.remove()


def own_parameters(loss: object, module: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters of a loss that are none of the model's."""
    if not isinstance(loss, nn.Module):
        return []
    known = {id(parameter) for parameter in module.parameters()}
    return [p for p in loss.parameters() if p.requires_grad and id(p) not in known]


def held_by_the_loss(loss: object, module: nn.Module) -> tuple[str, ...]:
    """Return the sentence on trainable parameters that the loss holds and the model does not.

    Args:
        loss: as it was passed.
        module: the model.
    """
    count = sum(parameter.numel() for parameter in own_parameters(loss, module))
    return (
        ()
        if count == 0
        else (f"the loss {type(loss).__name__} has {count} trainable parameters of its own, which are held constant",)
    )


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
    # Attention and recurrent networks drop by a number of their own; stochastic depth is a class of other libraries.
    rates = [member.p] if isinstance(member, _DropoutNd) else [getattr(member, "dropout", 0)]
    if type(member).__name__ in ("DropPath", "StochasticDepth", "DropBlock2d"):
        rates += [getattr(member, name, 0) for name in ("drop_prob", "p")]
    return any(isinstance(rate, Real) and float(rate) > 0 for rate in rates)

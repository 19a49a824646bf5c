"""A network of another library with its weights and data: ready to be measured.

Losses by name, and targets in the form that each of them takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprobe.errors import UnsupportedError
from hessprobe.models.images import Examples, of_data_set
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.base import logits_of, token_cross_entropy
from hessprobe.training.datasets import DataSet

Loss = Callable[[Any, Any], Tensor]

_BY_NAME: dict[str, Loss] = {
    "cross-entropy": F.cross_entropy,
    "nll": F.nll_loss,
    "mse": F.mse_loss,
    "bce-logits": F.binary_cross_entropy_with_logits,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
}
_ELEMENTWISE = ("mse", "bce-logits", "l1", "huber")


def loss_for(name: str, outputs: Tensor) -> Loss:
    """Return a mean loss by name for outputs of this shape.

    Args:
        name: of ``LOSSES`` but ``"model"``.
        outputs: of the network on a batch; with (n, T, C) the cross-entropy is that of every token.
    """
    return token_cross_entropy if name == "cross-entropy" and outputs.ndim == 3 else _BY_NAME[name]


def default_name(targets: Tensor) -> str:
    """Return the loss that targets stand for by themselves: cross-entropy for class labels.

    Raises:
        ValueError: numbers, which several losses take.
    """
    if not targets.is_floating_point():
        return "cross-entropy"
    raise ValueError("--loss must be given for targets that are no class labels. Choose mse, l1, huber or bce-logits.")


def fit_targets(name: str, outputs: Tensor, targets: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Return targets in the dtype and shape that a loss takes, and what was changed.

    Losses of two equal shapes get floating-point targets, and (n,) becomes (n, 1) beside outputs (n, 1): broadcast
    against each other they would be another loss.

    Args:
        name: of ``LOSSES``.
        outputs: of the network on a batch.
        targets: all of them.
    """
    if name not in _ELEMENTWISE:
        return targets, ()
    targets = targets.to(outputs.dtype)
    if outputs.shape[1:] == (*targets.shape[1:], 1):
        return targets.unsqueeze(-1), ("targets made (n, 1) like the outputs",)
    return targets, ()


# Ten or more batches of a small data set: enough for the spread between batches to be an error bar.
BATCH_SIZE = 256
# Of images and texts at the size that other libraries' networks take.
LARGE_BATCH_SIZE = 32
_LARGE = 3 * 64 * 64


@dataclass(frozen=True)
class Opened:
    """A network of another library and what it is measured on.

    Attributes:
        model: with its weights, on the CPU.
        name: of the model, as it was asked for.
        data: what it is measured on.
        loss: a name of ``LOSSES``, or a function ``(outputs, targets) -> scalar``, or None for the usual one.
        origin: entries of the record: path, sha256, format.
        notes: what a reader should know of how it was opened.
    """

    model: nn.Module
    name: str
    data: Examples | DataSet
    loss: str | Callable[[Any, Any], Tensor] | None = None
    origin: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def risk(
        self,
        *,
        split: str | None = None,
        examples: int | None = None,
        batch_size: int | None = None,
        params: Any = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        batchnorm: str = "eval",
        seed: int = 0,
    ) -> tuple[EmpiricalRisk, tuple[str, ...]]:
        """Return the mean loss over the data as a function of the parameters, and what a reader should know of it.

        Args:
            split: see ``Examples.batches``.
            examples: likewise.
            seed: likewise.
            batch_size: examples a batch; 256 by default, 32 of texts and of images of 64 x 64 pixels or more.
            params: as in ``EmpiricalRisk``.
            batchnorm: likewise.
            dtype: floating dtype of parameters and inputs; that of the model by default.
            device: where to compute.

        Raises:
            ValueError: an argument outside its range, or data that the network does not take.
            UnsupportedError: the network computes a loss of its own that is not recognised.
        """
        model = self.model.to(dtype=dtype).eval()
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        data = self._fitted(model, own)
        notes = list(data.notes)
        head = data.batches(None, None, 1, dtype=own)[0]
        keyed = isinstance(head, Mapping)
        loss: Any = self.loss
        if loss is None and not keyed:
            loss = default_name(data.targets)
            notes.append(f"loss: {loss}, as the targets are class labels")
        if isinstance(loss, str) and loss != "model":
            outputs = _outputs(model, head)
            targets, said = fit_targets(loss, outputs, data.targets)
            data, loss = replace(data, targets=targets), loss_for(loss, outputs)
            notes += said
        elif loss == "model":
            loss = None
        size = batch_size or (LARGE_BATCH_SIZE if keyed or _row(data.inputs) >= _LARGE else BATCH_SIZE)
        parts = data.batches(split, examples, size, seed=seed, dtype=own)
        place = torch.device(device)
        parts = [_moved(part, place) for part in parts]
        return EmpiricalRisk(model.to(place), loss, parts, params, batchnorm=batchnorm), tuple(notes)

    def _fitted(self, model: nn.Module, dtype: torch.dtype) -> Examples:
        """Return the data as the network takes them: images as they are where it runs on them, else as vectors."""
        if isinstance(self.data, Examples):
            return self.data
        layouts = ("tokens",) if self.data.is_text else ("image", "vector")
        failure: Exception | None = None
        for layout in layouts:
            data = of_data_set(self.data, layout)
            try:
                _outputs(model, data.batches("all", 1, 1, dtype=dtype)[0])
            except ValueError as error:
                failure = failure or error
            else:
                said = ("each image as a vector",) if layout == "vector" else ()
                return replace(data, notes=(*data.notes, *said))
        raise ValueError(str(failure)) from failure


def _outputs(model: nn.Module, batch: Any) -> Tensor:
    """Return the outputs on a batch.

    Raises:
        ValueError: the network does not take it.
        UnsupportedError: the outputs are not one tensor.
    """
    inputs = batch[0] if isinstance(batch, tuple) else {key: value for key, value in batch.items() if key != "labels"}
    try:
        with torch.no_grad():
            outputs = logits_of(model(**inputs) if isinstance(inputs, dict) else model(inputs))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError, KeyError) as error:
        named = inputs.items() if isinstance(inputs, dict) else (("inputs", inputs),)
        got = ", ".join(f"{name} {tuple(value.shape)} {value.dtype}" for name, value in named)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"data must be what the model takes; got {got}, and it answered: {reason.rstrip('.')}. "
            "Check --data, --image-size and the arguments in --model."
        ) from error
    if not isinstance(outputs, Tensor):
        raise UnsupportedError(
            f"The model returns a {type(outputs).__name__}, not one tensor or something with logits. "
            "Make the risk in Python and name it with --objective file.py:function."
        )
    return outputs


def _row(inputs: Any) -> int:
    return int(inputs[0].numel())


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Mapping):
        return {key: value.to(device) for key, value in batch.items()}
    return tuple(each.to(device) for each in batch)

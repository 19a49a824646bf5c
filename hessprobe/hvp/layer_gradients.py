r"""Gradients of single examples inside one layer, as factors: their norms need no gradient written out.

A parameter of a layer is used at T positions of every example (tokens, pixels; 1 in a plain network). With a_t what
goes in and b_t the slope of the loss at what comes out, an example's gradient is

    weight of a linear or convolutional layer:    sum_t b_t a_t^T    (a_t the unfolded patch of a convolution)
    embedding:                                    sum_t e(token_t) b_t^T
    bias, and scale or shift of a norm layer:     sum_t b_t,    sum_t b_t * xhat_t

and the squared norm of the first is

    |sum_t b_t a_t^T|^2 = sum_{t,t'} (a_t . a_t') (b_t . b_t')        T^2 (p + q) multiplications, or
                        = |A^T B|_F^2                                 T p q,

whichever is cheaper; |a|^2 |b|^2 for T = 1.

References:
    Goodfellow (2015), "Efficient per-example gradient computations"; Rochette, Manoel, Tramel (2019), "Efficient
    per-example gradient computations in convolutional neural networks"; Li, Tramer, Liang, Hashimoto (2022), "Large
    language models can be strong differentially private learners" (positions, and embeddings).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprobe.vectors import entries_within

# Entries that the factors and products of one layer may hold at once.
_CHUNK = 1 << 24


class Use(ABC):
    """What one use of a parameter contributes to the gradient of each example, for D directions in output space."""

    @abstractmethod
    def squares(self) -> Tensor:
        """Return the squared norms of every example's gradient, fp64 (D, B)."""

    @abstractmethod
    def total(self) -> Tensor:
        """Return the sum of the gradients over all examples for the first direction, in the shape of the parameter."""


@dataclass(frozen=True)
class Vectors(Use):
    """Gradients written out as rows (B, n) a direction, of a parameter of n entries."""

    rows: list[Tensor]
    shape: torch.Size

    def squares(self) -> Tensor:
        """See ``Use``."""
        return torch.stack([rows.double().square().sum(1) for rows in self.rows])

    def total(self) -> Tensor:
        """See ``Use``."""
        return self.rows[0].sum(0).view(self.shape)


@dataclass(frozen=True)
class Outer(Use):
    """Gradients sum_t b_t a_t^T, a block for each of G groups.

    Attributes:
        inputs: from a slice of k examples to a (k, G, T, p).
        slopes: from a slice of k examples to b (k, G, T, q), one a direction.
        examples: B.
        sizes: (G, T, p, q).
        shape: of the parameter, G q p entries in this order.
    """

    inputs: Callable[[slice], Tensor]
    slopes: Callable[[slice], list[Tensor]]
    examples: int
    sizes: tuple[int, int, int, int]
    shape: torch.Size

    def squares(self) -> Tensor:
        """See ``Use``."""
        _, positions, p, q = self.sizes
        gram = positions * (p + q) <= p * q
        found = []
        for part in self.parts(2 * positions**2 if gram else p * q):
            a, slopes = self.inputs(part), self.slopes(part)
            if positions == 1:
                own = a.square().sum((2, 3)).double()
                squares = [own * b.square().sum((2, 3)).double() for b in slopes]
            elif gram:
                products = a @ a.mT
                squares = [(products * (b @ b.mT)).sum((2, 3)).double() for b in slopes]
            else:
                squares = [(b.mT @ a).square().sum((2, 3)).double() for b in slopes]
            found.append(torch.stack([each.sum(1) for each in squares]))
        return torch.cat(found, dim=1)

    def total(self) -> Tensor:
        """See ``Use``."""
        groups, _, p, q = self.sizes
        parts = []
        for part in self.parts(0):
            a, b = self.inputs(part), self.slopes(part)[0]
            parts.append(b.transpose(0, 1).reshape(groups, -1, q).mT @ a.transpose(0, 1).reshape(groups, -1, p))
        return torch.stack(parts).sum(0).reshape(self.shape)

    def parts(self, more: int) -> list[slice]:
        """Return slices of examples whose factors, and ``more`` entries a group, fit together in memory."""
        groups, positions, p, q = self.sizes
        rows = max(1, entries_within(_CHUNK) // (groups * (positions * (p + q) + more)))
        return [slice(start, min(start + rows, self.examples)) for start in range(0, self.examples, rows)]


@dataclass(frozen=True)
class Rows(Use):
    """Gradients of an embedding: the slope b_t is added to the row of token t.

    Attributes:
        tokens: (B, T) integers.
        slopes: (B, T, n) a direction.
        shape: of the embedding, (V, n).
    """

    tokens: Tensor
    slopes: list[Tensor]
    shape: torch.Size

    def squares(self) -> Tensor:
        """See ``Use``."""
        owner = torch.arange(len(self.tokens), device=self.tokens.device)[:, None]
        keys, where = torch.unique(owner * self.shape[0] + self.tokens, return_inverse=True)
        found = []
        for slopes in self.slopes:
            rows = slopes.new_zeros(len(keys), self.shape[1])
            rows.index_add_(0, where.flatten(), slopes.flatten(0, 1))
            squares = torch.zeros(len(self.tokens), dtype=torch.float64, device=rows.device)
            found.append(squares.index_add_(0, keys // self.shape[0], rows.double().square().sum(1)))
        return torch.stack(found)

    def total(self) -> Tensor:
        """See ``Use``."""
        return self.slopes[0].new_zeros(self.shape).index_add_(0, self.tokens.flatten(), self.slopes[0].flatten(0, 1))


def joint_squares(uses: Sequence[Use]) -> Tensor | None:
    """Return the squared norms (D, B) of the sums of one parameter's uses; None for kinds without a rule together."""
    if len(uses) == 1:
        return uses[0].squares()
    vectors = [use for use in uses if isinstance(use, Vectors)]
    rows = [use for use in uses if isinstance(use, Rows)]
    outers = [use for use in uses if isinstance(use, Outer)]
    if len(vectors) == len(uses):
        rows_of = zip(*(use.rows for use in vectors), strict=True)
        return Vectors([torch.stack(each).sum(0) for each in rows_of], vectors[0].shape).squares()
    if vectors or any(use.sizes[0] != 1 for use in outers):
        return None
    total = torch.zeros((), dtype=torch.float64)
    if rows:
        slopes = [torch.cat(each, 1) for each in zip(*(use.slopes for use in rows), strict=True)]
        embedding = Rows(torch.cat([use.tokens for use in rows], 1), slopes, rows[0].shape)
        total = total + embedding.squares()
    if outers:
        layer = _joined(outers)
        total = total + layer.squares()
    return total + 2 * _cross(embedding, layer) if rows and outers else total


def _joined(uses: Sequence[Outer]) -> Outer:
    groups, _, p, q = uses[0].sizes

    def inputs(part: slice) -> Tensor:
        return torch.cat([use.inputs(part) for use in uses], 2)

    def slopes(part: slice) -> list[Tensor]:
        return [torch.cat(each, 2) for each in zip(*(use.slopes(part) for use in uses), strict=True)]

    sizes = (groups, sum(use.sizes[1] for use in uses), p, q)
    return Outer(inputs, slopes, uses[0].examples, sizes, uses[0].shape)


def _cross(rows: Rows, outer: Outer) -> Tensor:
    """Return the dot products (D, B) of the gradients of an embedding and of the output layer tied to it.

    sum_{t,t'} (e(token_t) . b_t') (slope_t . a_t') with b_t' of the size of the vocabulary: an entry of it is read.
    """
    positions, tokens = outer.sizes[1], rows.tokens.shape[1]
    found = []
    for part in outer.parts(2 * positions * tokens):
        a = outer.inputs(part)[:, 0]
        where = rows.tokens[part][:, None, :].expand(-1, positions, -1)
        pairs = zip(outer.slopes(part), rows.slopes, strict=True)
        own = [(b[:, 0].gather(2, where) * (a @ slope[part].mT)).sum((1, 2)).double() for b, slope in pairs]
        found.append(torch.stack(own))
    return torch.cat(found, dim=1)


# -- layers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One call of a layer.

    Attributes:
        module: the layer.
        inputs: what it was given, examples first: (B, ..., p), or tokens (B, ...).
        normalised: of a norm layer, its input after normalisation; else None.
    """

    module: nn.Module
    inputs: Tensor
    normalised: Tensor | None = None


_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.RMSNorm)
_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding, *_NORMS)


def has_rule(module: nn.Module) -> bool:
    """Return whether ``use_of`` knows the parameters of this layer, as it is evaluated (``objective.modes``)."""
    if type(module) not in _PLAIN:
        return False
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) or (
        not module.training and module.running_mean is not None
    )


def normalised(module: nn.Module, inputs: Tensor) -> Tensor | None:
    """Return xhat of a norm layer, as the module would scale and shift it; None for other layers.

    Inside the forward call, where the module holds the statistics that it is evaluated with.
    """
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(inputs, module.normalized_shape, None, None, module.eps)
    if isinstance(module, nn.RMSNorm):
        return F.rms_norm(inputs, module.normalized_shape, None, module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(inputs, module.num_groups, None, None, module.eps)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return F.batch_norm(inputs, module.running_mean, module.running_var, None, None, False, 0.0, module.eps)
    return None


def use_of(layer: Layer, kind: str, slopes: list[Tensor], shape: torch.Size) -> Use:
    """Return what a layer's parameter contributes.

    Args:
        layer: with a module of which ``has_rule`` holds.
        kind: ``"weight"`` or ``"bias"``.
        slopes: (B, ...) of the loss at what the layer returned, one a direction.
        shape: of the parameter.
    """
    module, inputs, scaled, examples = layer.module, layer.inputs, layer.normalised, len(slopes[0])
    if scaled is not None:
        rows = [slope * scaled for slope in slopes] if kind == "weight" else slopes
        return Vectors([_to_shape(each, module, shape) for each in rows], shape)
    if isinstance(module, nn.Embedding):
        tokens = inputs.reshape(examples, -1)
        return Rows(tokens, [slope.reshape(*tokens.shape, shape[1]) for slope in slopes], shape)
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        if kind == "bias":
            return Vectors([slope.flatten(2).sum(2) for slope in slopes], shape)
        return _convolution(module, inputs, slopes, shape)
    bs = [slope.reshape(examples, 1, -1, slope.shape[-1]) for slope in slopes]
    if kind == "bias":
        return Vectors([b[:, 0].sum(1) for b in bs], shape)
    a = inputs.reshape(examples, 1, -1, inputs.shape[-1])
    sizes = (1, a.shape[2], a.shape[3], bs[0].shape[3])
    return Outer(lambda part: a[part], lambda part: [b[part] for b in bs], examples, sizes, shape)


def _to_shape(rows: Tensor, module: nn.Module, shape: torch.Size) -> Tensor:
    """Sum (B, ...) over all but the examples and the axes of a norm layer's parameter: (B, n)."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return rows.reshape(len(rows), -1, shape.numel()).sum(1)
    return rows.flatten(2).sum(2) if rows.dim() > 2 else rows


def _convolution(module: nn.Conv1d | nn.Conv2d, inputs: Tensor, slopes: list[Tensor], shape: torch.Size) -> Outer:
    groups = module.groups
    if isinstance(module, nn.Conv1d):
        inputs = inputs[:, :, None]
    where: dict[str, Any] = {
        name: _pair(getattr(module, name), fill)
        for name, fill in (("kernel_size", 1), ("dilation", 1), ("padding", 0), ("stride", 1))
    }
    p, q, positions = shape[1:].numel(), shape[0] // groups, slopes[0][0, 0].numel()

    def patches(part: slice) -> Tensor:
        unfolded = F.unfold(inputs[part], **where)
        return unfolded.view(len(unfolded), groups, p, positions).mT

    def cut(part: slice) -> list[Tensor]:
        return [slope[part].reshape(-1, groups, q, positions).mT for slope in slopes]

    return Outer(patches, cut, len(inputs), (groups, positions, p, q), shape)


def _pair(given: Any, fill: int) -> tuple[int, int]:
    values = tuple(given)
    return (fill, values[0]) if len(values) == 1 else (values[0], values[1])

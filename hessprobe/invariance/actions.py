"""What a transform does to named tensors: factors along an axis, or a new order of its entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# The tensors of a model by dotted name; the eps of a norm layer stands as "<layer>.eps", a scalar.
State = dict[str, Tensor]

_UNTOUCHED = -1


@dataclass(frozen=True, eq=False)
class Touch:
    """How one tensor follows the factors c of a site.

    Attributes:
        name: of the tensor.
        power: the tensor is multiplied by c^power (1: it makes what is scaled, -1: it takes it, 2: a variance).
        axis: along which the units lie, or None where the whole tensor has one factor.
        labels: unit 0 .. n-1 of each entry of the axis, -1 for entries that stay; None: entry i is unit i.
    """

    name: str
    power: int
    axis: int | None = None
    labels: Tensor | None = None

    def scaled(self, tensor: Tensor, factors: Tensor) -> Tensor:
        """Return the tensor times c^power; ``factors`` (n,) fp64."""
        if self.axis is None:
            return tensor * float(factors[0]) ** self.power
        labels = self.unit_labels(tensor)
        along = factors.to(tensor.device)[labels.clamp_min(0)] ** self.power
        along = torch.where(labels == _UNTOUCHED, torch.ones_like(along), along)
        return tensor * self._spread(along, tensor).to(tensor.dtype)

    def permuted(self, tensor: Tensor, order: Tensor) -> Tensor:
        """Return the tensor with the entries of unit ``order[i]`` in the place of those of unit i."""
        if self.axis is None:
            raise ValueError(f"axis must be given to permute {self.name}; got None. Name the axis of the units.")
        labels = self.unit_labels(tensor)
        where = torch.arange(len(labels), device=labels.device)
        for unit, other in enumerate(order.tolist()):
            where[labels == unit] = torch.nonzero(labels == other)[:, 0]
        return tensor.index_select(self.axis, where)

    def unit_labels(self, tensor: Tensor) -> Tensor:
        """Return the unit of each entry of the axis, -1 for entries that stay."""
        if self.labels is not None:
            return self.labels.to(tensor.device)
        return torch.arange(tensor.shape[self.axis or 0], device=tensor.device)

    def _spread(self, along: Tensor, tensor: Tensor) -> Tensor:
        shape = [1] * tensor.ndim
        shape[self.axis or 0] = -1
        return along.view(shape)


@dataclass(frozen=True, eq=False)
class Site:
    """One place of a network where a transform can act.

    Attributes:
        kind: of the transform, a name in ``TRANSFORMS``.
        where: the layers on both sides, in words.
        touches: the tensors that change.
        size: number n of units with a factor each; 1 where there is one factor for all.
    """

    kind: str
    where: str
    touches: tuple[Touch, ...]
    size: int

    def move(self, state: State, strength: float, generator: torch.Generator, turn: int = 0) -> State:
        """Return the state after the transform.

        Args:
            state: all tensors of the model; left as it is.
            strength: s > 0, the largest factor; without meaning for permutations.
            generator: of the random factors or the random order (never the order as it is), on the CPU.
            turn: number of the site; where it is odd one factor for all is 1/s, so that layers in a row all change.
        """
        if self.kind == "permutation":
            order = torch.randperm(self.size, generator=generator)
            if bool((order == torch.arange(self.size)).all()):
                order = order.roll(1)
            return self.reordered(state, order)
        factors = self.factors(strength, generator, turn)
        return self._applied(state, lambda touch, tensor: touch.scaled(tensor, factors))

    def reordered(self, state: State, order: Tensor) -> State:
        """Return the state with unit ``order[i]`` in the place of unit i; ``order`` (n,)."""
        return self._applied(state, lambda touch, tensor: touch.permuted(tensor, order))

    def factors(self, strength: float, generator: torch.Generator, turn: int = 0) -> Tensor:
        """Return c (n,) fp64: s or 1/s for one unit; else s^e with random exponents e of mean 0 and max |e| = 1.

        The product of the factors is then 1. Where every unit has as many weights as the others the transform
        preserves volume.
        """
        if self.size == 1:
            alternate = self.kind == "layer-rescaling" and turn % 2
            return torch.tensor([1 / strength if alternate else strength], dtype=torch.float64)
        exponents = 2 * torch.rand(self.size, generator=generator, dtype=torch.float64) - 1
        exponents -= exponents.mean()
        exponents /= exponents.abs().max()
        return torch.as_tensor(strength, dtype=torch.float64) ** exponents

    def _applied(self, state: State, change: Callable[[Touch, Tensor], Tensor]) -> State:
        moved = dict(state)
        for touch in self.touches:
            # Running statistics are absent where BatchNorm takes those of each batch.
            if touch.name in moved:
                moved[touch.name] = change(touch, moved[touch.name])
        return moved

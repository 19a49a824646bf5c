"""Random numbers of a step: the same dropout masks in all passes, and draws of a rule that a resumed run repeats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hessprobe.optim.engine.tensors import TensorList, part_of

# Odd constants of splitmix64: they spread consecutive (seed, step, draw) over all seeds.
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class GlobalState:
    """The state of torch's global generators on the CPU and on the devices in use."""

    def __init__(self, devices: set[torch.device]) -> None:
        self._cuda = sorted(d.index or 0 for d in devices if d.type == "cuda")
        self._cpu_state = torch.get_rng_state()
        self._cuda_states = [torch.cuda.get_rng_state(index) for index in self._cuda]

    def restore(self) -> None:
        """Set the generators back to this state."""
        torch.set_rng_state(self._cpu_state)
        for index, state in zip(self._cuda, self._cuda_states, strict=True):
            torch.cuda.set_rng_state(state, index)


class Replay:
    """Gives every later pass over a shard the random numbers of its first one.

    Args:
        devices: of the parameters.
    """

    def __init__(self, devices: set[torch.device]) -> None:
        self._devices = devices
        self._starts: dict[int, GlobalState] = {}

    def begin(self, shard: int) -> GlobalState | None:
        """Set the generators for a pass; return the state to go back to after it, None after a first pass."""
        if shard not in self._starts:
            self._starts[shard] = GlobalState(self._devices)
            return None
        now = GlobalState(self._devices)
        self._starts[shard].restore()
        return now


@contextmanager
def replayed(replay: Replay | None, shard: int) -> Iterator[None]:
    """Run a pass over ``shard`` with its own random numbers; the step as a whole advances the generators once."""
    after = None if replay is None else replay.begin(shard)
    try:
        yield
    finally:
        if after is not None:
            after.restore()


def generator(seed: int, step: int, draw: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator of draw number ``draw`` of step ``step``: a function of these numbers alone.

    Nothing has to be saved to resume a run exactly, and the global generator is never touched.
    """
    state = seed & _MASK
    for number in (step, draw):
        state = ((state ^ (number & _MASK)) * _GOLDEN + _GOLDEN) & _MASK
        state ^= state >> 29
    return torch.Generator(device).manual_seed(state >> 1)


def normal_like(vector: TensorList, source: torch.Generator) -> TensorList:
    """Return independent standard normal entries, one draw over all parameters."""
    return vector.map(
        lambda t: _laid_out(torch.randn(t.shape, generator=source, device=source.device, dtype=_draw_dtype(t)), t)
    )


def uniform_like(vector: TensorList, source: torch.Generator, half_width: float = 1.0) -> TensorList:
    """Return independent entries uniform in [-half_width, half_width]."""

    def one(t: Tensor) -> Tensor:
        unit = _laid_out(torch.rand(t.shape, generator=source, device=source.device, dtype=_draw_dtype(t)), t)
        return unit.mul_(2 * half_width).sub_(half_width)

    return vector.map(one)


def _laid_out(drawn: Tensor, like: Tensor) -> Tensor:
    # Every rank draws the whole and keeps its part: the numbers are those of one process.
    return part_of(drawn.to(device=like.device, dtype=like.dtype), like)


def _draw_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32

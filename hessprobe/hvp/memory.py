"""How much memory there is, and how much of it products may keep."""

from __future__ import annotations

from pathlib import Path

import torch

from hessprobe import checks
from hessprobe.hvp import ranks, replay

# Share of the free memory that kept products may take by default; the rest is for probes, bases and the work itself.
DEFAULT_SHARE = 0.5


def available_bytes(device: torch.device) -> int:
    """Return the bytes that can still be allocated on ``device`` (a CPU: without swapping)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + reserved)
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) * 1024, _cgroup_room())
    return 4 * 2**30


def budget_bytes(memory: int | None, device: torch.device) -> int:
    """Return ``memory`` in bytes, or the default share of what is free on ``device``.

    Ranks on one machine, whose CPU they share, have it between them.

    Raises:
        TypeError, ValueError: ``memory`` is not a positive integer.
    """
    if memory is not None:
        return checks.positive_int("memory", memory, hint="Give a number of bytes.")
    sharing = 1 if device.type == "cuda" else ranks.on_this_machine()
    return int(DEFAULT_SHARE * available_bytes(device) / sharing)


class MemoryBudget:
    """Bytes that products may keep; everybody who is given the same one shares it.

    Args:
        memory: bytes; the default share of what is free on ``device`` where None.
        device: where the products lie.

    Raises:
        TypeError, ValueError: ``memory`` is not a positive integer.
    """

    def __init__(self, memory: int | None, device: torch.device) -> None:
        self.total = int(
            replay.value(replay.place("memory"), lambda: ranks.agreed(lambda: budget_bytes(memory, device)))
        )
        self._taken = 0

    @property
    def room(self) -> int:
        """Bytes that nobody has taken."""
        return self.total - self._taken

    def take(self, nbytes: int) -> bool:
        """Take ``nbytes`` for good and return True; take nothing and return False where there is less room."""
        if nbytes > self.room:
            return False
        self._taken += nbytes
        return True

    def give_back(self, nbytes: int) -> None:
        """Return what was taken."""
        self._taken -= nbytes


def words(nbytes: float) -> str:
    """Return a size for a message, e.g. ``"1.5 GB"``."""
    for unit in ("B", "KB", "MB", "GB"):
        if nbytes < 1024 or unit == "GB":
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return ""


def _cgroup_room() -> int:
    limit = _lines("/sys/fs/cgroup/memory.max")
    used = _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].strip().isdigit():
        return max(int(limit[0]) - int(used[0]), 0)
    return 2**62


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []

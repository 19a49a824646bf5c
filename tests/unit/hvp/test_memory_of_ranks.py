"""Ranks on one machine have its free memory between them."""

from __future__ import annotations

import pytest
import torch

from hessprobe.hvp import pool

CPU = torch.device("cpu")


@pytest.mark.parametrize(("count", "local", "sharing"), [(4, "2", 2), (4, None, 4), (1, "1", 1)])
def test_free_memory_is_shared_out(
    monkeypatch: pytest.MonkeyPatch, count: int, local: str | None, sharing: int
) -> None:
    monkeypatch.setattr(pool, "available_bytes", lambda _: 8_000_000)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    token = pool._active.set(pool.Ranks(None, 0, count))  # type: ignore[arg-type]  # nothing is sent
    try:
        assert pool.budget_bytes(None, CPU) == 4_000_000 // sharing
        # What was asked for is nobody else's.
        assert pool.budget_bytes(1_000, CPU) == 1_000
    finally:
        pool._active.reset(token)
    assert pool.budget_bytes(None, CPU) == 4_000_000

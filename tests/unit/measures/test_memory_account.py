"""What estimators have alive at once, counted, is within what vectors may take.

The products of the operator here hold nothing beside their result: all that is counted is the estimators' own.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import hessprobe as hp
from hessprobe import vectors
from hessprobe.errors import NumericalWarning
from hessprobe.estimators import law, xtrace
from hessprobe.operators.base import LinearOperator
from hessprobe.vectors import vectors_within

DIM, TERMS = 40_000, 16
ROW = 4 * DIM
LANCZOS = sys.modules[hp.krylov.lanczos.__module__]
EIGSH, RESTART = (sys.modules[f"hessprobe.krylov.{name}"] for name in ("eigsh", "restart"))
IN_A_PRODUCT = 4
PIECES = [(vectors, "_CHUNK"), (law, "_PIECE"), (LANCZOS, "_CPU_CHUNK"), (LANCZOS, "_COLUMNS"), (xtrace, "_BATCH")]


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are made inside and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation, and note what it has made."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key)
        return result

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


class Terms(LinearOperator):
    """A diagonal matrix as the mean of ``TERMS`` of them: its trace and its norm take many probes."""

    def __init__(self, scale: float = 1.0, terms: int = TERMS, decay: float = 0.3) -> None:
        self.dim, self.dtype, self.device = DIM, torch.float32, torch.device("cpu")
        self.n_terms, self._scale, self._decay = terms, scale, decay
        self._values = scale * torch.arange(1.0, DIM + 1) ** -decay
        # Not a diagonal matrix, of which one probe knows the trace: neighbours are exchanged.
        self._off = 0.5 * self._values.view(-1, 2).mean(1).repeat_interleave(2)

    def _matvecs(self, V: Tensor) -> Tensor:
        swapped = V.view(len(V), -1, 2).flip(2).view_as(V)
        return swapped.mul_(self._off).addcmul_(V, self._values)

    def terms(self) -> Iterator[tuple[float, LinearOperator]]:
        """Yield terms that differ by a factor."""
        if self.n_terms == 1:
            yield 1.0, self
            return
        for index in range(self.n_terms):
            yield 1 / self.n_terms, Terms(1 + (index - (self.n_terms - 1) / 2) / 20, 1, self._decay)


QUESTIONS: dict[str, Callable[[LinearOperator], Any]] = {
    "frob": lambda A: hp.frobenius_norm(A, rtol=0.02),
    "frob, decaying": lambda A: hp.frobenius_norm(A, rtol=0.02),
    "frob, fixed": lambda A: hp.frobenius_norm(A, n_probes=60),
    "trace": lambda A: hp.trace(A, rtol=0.005),
    "trace, decaying": lambda A: hp.trace(A, rtol=0.02),
    "trace, one term": lambda A: hp.trace(A, rtol=0.005),
    "diagonal": lambda A: hp.diagonal(A, n_probes=20),
    "lambda-max": lambda A: hp.eigsh(A, 1, "largest", rtol=0.1),
    "both ends": lambda A: hp.eigsh(A, 2, "both", rtol=None, tol=0.1, verify=False),
    "density": lambda A: hp.spectral_density(A, n_probes=4, steps=8),
    "logdet": lambda A: hp.logdet(A, shift=0.1, n_probes=4, steps=8),
}


@pytest.mark.parametrize("rows", [40, 100])
@pytest.mark.parametrize("question", QUESTIONS)
def test_what_is_alive_is_within_the_room_for_vectors(
    question: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pieces are as large beside these vectors as they are beside those of a network.
    for module, name in PIECES:
        monkeypatch.setattr(module, name, 1 << 12)
    A = Terms(terms=1 if "one term" in question else TERMS, decay=1.0 if "decaying" in question else 0.3)
    with warnings.catch_warnings(), vectors_within(rows * ROW):
        warnings.simplefilter("ignore", NumericalWarning)
        with Live() as live:
            QUESTIONS[question](A)
    # A product in the making is not the estimators' own (``pool.shares``).
    assert live.peak <= (1.1 * rows + IN_A_PRODUCT) * ROW


def test_of_a_model_too_large_for_a_long_basis_few_vectors_are_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in PIECES:
        monkeypatch.setattr(module, name, 1 << 12)
    monkeypatch.setattr(EIGSH, "_BASIS", 2 * DIM)
    monkeypatch.setattr(RESTART, "_WIDE", 2 * DIM)
    with Live() as live:
        found = hp.eigsh(Terms(), 1, "largest", rtol=0.1)
    assert found.converged.all()
    assert live.peak <= 12.5 * ROW

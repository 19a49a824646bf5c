"""Other threads of the process while a module is measured: nothing of theirs is rewound, nothing wrong is read."""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from hessprobe.errors import UnsupportedError

_GUARD = -1  # torch numbers its hooks from 0

_lock = threading.Lock()
_owners: dict[int, tuple[int, int]] = {}


@contextmanager
def owned(roots: Sequence[nn.Module]) -> Iterator[None]:
    """Let this thread alone evaluate modules inside; a call of a root from another thread raises there.

    Use it inside what puts the modules' tables back, as it leaves a hook on the roots. Modules that hold no tensor
    (most losses) can be shared by threads.

    Args:
        roots: what is called; their submodules are this thread's as well.

    Raises:
        UnsupportedError: another thread measures one of them.
    """
    here = threading.get_ident()
    roots = [root for root in roots if next(chain(root.parameters(), root.buffers()), None) is not None]
    members = list({id(member): member for root in roots for member in root.modules()}.values())
    with _lock:
        for member in members:
            if _owners.get(id(member), (here, 0))[0] != here:
                raise UnsupportedError(_busy(member))
        for member in members:
            _owners[id(member)] = (here, _owners.get(id(member), (here, 0))[1] + 1)
    try:
        for root in roots:
            if "_forward_pre_hooks" in root.__dict__:
                hooks = OrderedDict(root.__dict__["_forward_pre_hooks"])
                hooks[_GUARD] = _refuse_others(here)
                root.__dict__["_forward_pre_hooks"] = hooks
        yield
    finally:
        with _lock:
            for member in members:
                thread, depth = _owners.pop(id(member))
                if depth > 1:
                    _owners[id(member)] = (thread, depth - 1)


@contextmanager
def random_state(device: torch.device, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Put the random states of torch (CPU and ``device``), NumPy and Python back on leaving.

    Where the process has other threads, the states that all of them share stay as they are: what advanced them may be
    the draws of another thread, which would be repeated. Daemon threads do not count: those of notebooks and progress
    bars wait for input and time, and draw nothing.

    Args:
        device: where the parameters lie.
        generators: further ones, of the measuring thread alone.
    """
    alone = _alone()
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    own = [(generator, generator.get_state()) for generator in generators]
    try:
        yield
    finally:
        if alone and _alone():
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002 - the global state is put back, never drawn from
            torch.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, device)
        for generator, state in own:
            generator.set_state(state)


def _alone() -> bool:
    here = threading.current_thread()
    return all(thread is here or thread.daemon for thread in threading.enumerate())


def _refuse_others(owner: int) -> Any:
    def check(module: nn.Module, _: Any) -> None:
        if threading.get_ident() != owner:
            raise UnsupportedError(_busy(module))

    return check


def _busy(module: nn.Module) -> str:
    return (
        f"{type(module).__name__} must not be used while another thread measures it, as it holds other weights for the "
        "time being. Wait for that thread, or measure a copy.deepcopy of the module."
    )

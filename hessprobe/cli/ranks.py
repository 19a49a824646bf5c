"""A command under ``torchrun``: the ranks share its products out, and one of them speaks and writes.

Every rank runs the whole command on the same arguments. Those beside the first are silent, and write what they would
write into a folder of their own that goes with them, so that no code below has to know on which rank it runs.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

# Commands whose time goes into products.
SHARED = frozenset({"measure", "sharpness", "compare", "track"})

_TIMEOUT = timedelta(minutes=30)


def count() -> int:
    """Return how many processes ``torchrun`` has started, 1 where it has not."""
    if "RANK" not in os.environ:
        return 1
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Return whether this process prints and writes."""
    return count() == 1 or os.environ["RANK"] == "0"


@contextmanager
def joined(command: str, arguments: Mapping[str, Any], outputs: frozenset[str]) -> Iterator[dict[str, Any]]:
    """Run ``command`` inside the block with the ranks that ``torchrun`` has started; yield the arguments to give it.

    Args:
        command: its name.
        arguments: what it was called with.
        outputs: those that name files to be written.

    Raises:
        ValueError: the command shares nothing out.
    """
    if count() == 1:
        yield dict(arguments)
        return
    if command not in SHARED:
        raise ValueError(
            f"{command} must be run by one process; got {count()} of torchrun. Start it without torchrun; "
            f"{', '.join(sorted(SHARED))} share their work out over ranks."
        )
    import torch
    import torch.distributed as dist

    from hessprobe.hvp import ranks

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_TIMEOUT)
    try:
        with ExitStack() as stack:
            mine = dict(arguments) if speaks() else _aside(arguments, outputs, stack)
            # The journal of a stopped run is read by all before one of them goes on writing it.
            dist.barrier()
            stack.enter_context(ranks.shared_out(cast(Any, dist.group.WORLD)))
            yield mine
            dist.barrier()
    finally:
        # What outlives the group and speaks through it makes torch abort at the end of the process.
        gc.collect()
        dist.destroy_process_group()


def _aside(arguments: Mapping[str, Any], outputs: frozenset[str], stack: ExitStack) -> dict[str, Any]:
    """Return the arguments with every output in a folder that is removed at the end, beside copies of what is there."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hessprobe-rank-")))
    nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # the stack closes it
    stack.enter_context(nowhere)
    stack.enter_context(redirect_stdout(nowhere))
    stack.enter_context(redirect_stderr(nowhere))
    mine = dict(arguments)
    for name in sorted(outputs & set(arguments)):
        given = arguments[name]
        if not isinstance(given, str) or given == "-":
            continue
        place = folder / name
        place.mkdir()
        path = Path(given)
        mine[name] = str(place / path.name)
        if path.parent.is_dir():
            # The file itself, its journal, what is kept of a track.
            for there in path.parent.iterdir():
                if there.is_file() and (there.name == path.name or there.name.startswith(f"{path.name}.")):
                    shutil.copyfile(there, place / there.name)
    return mine


def prefix() -> str:
    """Return what stands before a message of this process, so that it is known whose it is."""
    return "" if speaks() else f"rank {os.environ['RANK']}: "

"""Which processes of a distributed training measure."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn

from hessprobe.errors import UnsupportedError


def measures_here(model: nn.Module) -> bool:
    """Return False on all ranks but the first of a module wrapped for DDP, and True everywhere else.

    All ranks hold the same weights, and measuring speaks to none of them: what the first one finds is what each would.
    """
    if not dist.is_available() or not dist.is_initialized():
        return True
    wrappers = (each for each in model.modules() if isinstance(each, nn.parallel.DistributedDataParallel))
    # At most one, on the outside or inside what torch.compile makes; its group need not be of all processes.
    return all(dist.get_rank(wrapper.process_group) == 0 for wrapper in wrappers)


def require_unsharded(model: nn.Module) -> None:
    """Refuse a model whose parameters are sharded over ranks: gathering them takes all ranks at once.

    Raises:
        UnsupportedError: names the first such parameter or module.
    """
    sharded = [f"module {name or 'itself'!r}" for name, each in model.named_modules() if _is_fsdp(each)]
    # A DTensor, told by what it alone has: importing its class takes a second.
    sharded += [f"parameter {name!r}" for name, each in model.named_parameters() if hasattr(each, "placements")]
    if sharded:
        raise UnsupportedError(
            f"The {sharded[0]} is sharded over ranks (FSDP), and a tracker measures on one of them. Measure saved "
            "checkpoints with hessprobe track instead."
        )


def _is_fsdp(module: nn.Module) -> bool:
    return any(each.__name__ == "FullyShardedDataParallel" for each in type(module).__mro__)

"""Models and data that are spread over ranks: what one rank holds is not what is to be measured."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from hessprobe.errors import DataError, UnsupportedError

_WHOLE = (
    "Gather its state (torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True), load "
    "it into the same model without sharding, and measure that"
)
# Of accelerate: loaders that hand every process its own batches.
_SHARDS = ("DataLoaderShard", "DataLoaderDispatcher", "BatchSamplerShard", "IterableDatasetShard")


def require_whole_module(module: nn.Module) -> None:
    """Refuse a module whose parameters are spread over ranks, before anything in it is touched.

    Asked by name, as the classes take a second to import and nobody has them who has not imported them.

    Raises:
        UnsupportedError: FSDP1, FSDP2 or tensor parallelism; names the module or parameter.
    """
    for name, member in module.named_modules():
        if type(member).__name__ == "FullyShardedDataParallel":
            raise UnsupportedError(
                f"module must hold whole parameters; got FullyShardedDataParallel at {name or 'the top'}. {_WHOLE}."
            )
    for name, parameter in module.named_parameters():
        if type(parameter).__name__ == "DTensor" or type(parameter.data).__name__ == "DTensor":
            raise UnsupportedError(
                f"module must hold whole parameters; got the distributed tensor {name!r} (fully_shard or tensor "
                f"parallelism). {_WHOLE}."
            )


def require_whole_data(data: Any) -> None:
    """Refuse a loader that gives this rank its share of the data alone.

    Raises:
        DataError: the risk would be that of the share, another on every rank.
    """
    batch_sampler = getattr(data, "batch_sampler", None) if isinstance(data, DataLoader) else None
    samplers = (getattr(data, "sampler", None), getattr(batch_sampler, "sampler", None))
    for sampler in samplers:
        if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
            raise DataError(
                f"data must be all of the data; got the share of rank {sampler.rank} of {sampler.num_replicas} "
                "(DistributedSampler). Pass a DataLoader of the whole set without it."
            )
    for part in (data, batch_sampler, getattr(data, "dataset", None)):
        if type(part).__name__ in _SHARDS and _processes(part) > 1:
            raise DataError(
                f"data must be all of the data; got the share of one process ({type(part).__name__}). "
                "Pass a DataLoader that was not prepared."
            )


def _processes(part: Any) -> int:
    state = getattr(part, "state", part)
    return int(getattr(state, "num_processes", 1))

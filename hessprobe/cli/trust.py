"""What a checkpoint may choose: a file from elsewhere must not open paths of this machine, nor go to the network."""

from __future__ import annotations

from hessprobe.cli import outputs
from hessprobe.cli.failures import UsageError
from hessprobe.training.checkpoint import Checkpoint

_BUILT_IN = ("digits", "synthetic")


def require_trusted_data(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose data are made by this package, or whose choice ``--trust-data`` accepts.

    Raises:
        UsageError: it names a path or a data set of the network.
    """
    name = checkpoint.data.name
    if name.partition(":")[0] in _BUILT_IN or outputs.current().trust_data:
        return checkpoint
    raise UsageError(
        f"{checkpoint.path} asks for the data {name!r}, which lie outside hessprobe. Pass --trust-data if you made it "
        "or know where it comes from."
    )

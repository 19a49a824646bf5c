"""The trace of a matrix that is itself drawn at random: the mean over independent draws, with their spread as error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from hessprobe import checks
from hessprobe.errors import UnsupportedError
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.operators import LinearOperator


def mean_of_draws(
    draws: Sequence[LinearOperator], one: Callable[[LinearOperator, int], Estimate], seed: int
) -> Estimate:
    """Return the mean of a linear functional over draws of a matrix.

    With draws and probes of their own the K numbers are independent and alike, each unbiased, so that their spread over
    sqrt(K) is the standard error of the mean, draws and probes together, with K - 1 degrees of freedom.

    Args:
        draws: K >= 2 independent matrices of one law.
        one: the estimate for a matrix and a seed of probes.
        seed: the draws' seeds of probes are drawn from it.

    Raises:
        UnsupportedError: one draw, whose error cannot be known.
    """
    count = len(draws)
    if count < 2:
        raise UnsupportedError(
            "The trace of a matrix made of one draw of labels has an error that nothing tells. Pass n_draws of at "
            "least 2 (8 or more for an error that is known well), or use Fisher(risk), which is exact."
        )
    # Seeds that follow each other would share most of their probes with the next call's.
    source = torch.Generator().manual_seed(seed)
    found = [one(draw, checks.resolve_seed(source)) for draw in draws]
    value = math.fsum(estimate.value for estimate in found) / count
    variance = math.fsum((estimate.value - value) ** 2 for estimate in found) / (count - 1)
    told = [estimate.errors for estimate in found if estimate.errors.data is not None]
    # Of the same data: draws do not make it smaller.
    largest = max(told, key=lambda errors: errors.data or 0.0) if len(told) == count else ErrorParts()
    first = found[0]
    return replace(
        first,
        value=value,
        errors=ErrorParts(
            probe=math.sqrt(variance / count),
            data=largest.data,
            solver=max(estimate.errors.solver for estimate in found),
            data_df=largest.data_df,
        ),
        df=count - 1,
        kind="estimate",
        samples=count,
        method=f"{first.method}, {count} draws of labels",
        matvecs=math.fsum(estimate.matvecs for estimate in found),
        seconds=math.fsum(estimate.seconds for estimate in found),
        flags=tuple(dict.fromkeys(flag for estimate in found for flag in estimate.flags)),
        bracket=None,
        influence=None,
        details={},
    )

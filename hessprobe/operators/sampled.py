"""A trace that was estimated without products with probes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SampledTrace:
    """A trace estimated by other means than products with probes.

    Attributes:
        value: the estimate, unbiased.
        std_error: its standard error.
        df: degrees of freedom of ``std_error``.
        cost: in products.
    """

    value: float
    std_error: float
    df: float
    cost: float

"""Symmetric matrices known by their products: the interface, dense and foreign ones, counting, algebra."""

from hessprobe.operators.algebra import BlockDiagonal, Congruence, Deflated, Grouped, Reordered, Shifted
from hessprobe.operators.base import Block, Combination, ExactTrace, LinearOperator, SampledTrace
from hessprobe.operators.wrapped import (
    Counted,
    DenseOperator,
    SomeTerms,
    Tally,
    WrappedOperator,
    aslinearoperator,
    settled,
)

__all__ = [
    "Block",
    "BlockDiagonal",
    "Combination",
    "Congruence",
    "Counted",
    "Deflated",
    "DenseOperator",
    "ExactTrace",
    "Grouped",
    "LinearOperator",
    "Reordered",
    "SampledTrace",
    "Shifted",
    "SomeTerms",
    "Tally",
    "WrappedOperator",
    "aslinearoperator",
    "settled",
]

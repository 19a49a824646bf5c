"""Symmetric matrices known by their products: the interface, dense and foreign ones, counting, algebra."""

from hessprobe.operators.algebra import Block, BlockDiagonal, Combination, Congruence, Deflated, Shifted
from hessprobe.operators.base import LinearOperator, SampledTrace
from hessprobe.operators.counted import Counted, Tally
from hessprobe.operators.dense import DenseOperator, WrappedOperator, aslinearoperator, settled
from hessprobe.operators.reordered import Reordered

__all__ = [
    "Block",
    "BlockDiagonal",
    "Combination",
    "Congruence",
    "Counted",
    "Deflated",
    "DenseOperator",
    "LinearOperator",
    "Reordered",
    "SampledTrace",
    "Shifted",
    "Tally",
    "WrappedOperator",
    "aslinearoperator",
    "settled",
]

"""A loss on a flat parameter vector: the interface, the bridge from modules, and analytic examples."""

from hessprobe.objective.analytic import Quadratic, Rosenbrock, Saddle, ScaleInvariantProduct
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.objective.empirical import EmpiricalRisk
from hessprobe.objective.selection import select_parameters
from hessprobe.objective.terms import EmpiricalBatch, ForwardBatch

__all__ = [
    "BatchLoss",
    "EmpiricalBatch",
    "EmpiricalRisk",
    "ForwardBatch",
    "Objective",
    "Quadratic",
    "Rosenbrock",
    "Saddle",
    "ScaleInvariantProduct",
    "select_parameters",
]

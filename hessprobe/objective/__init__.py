"""A loss on a flat parameter vector: the interface, the bridge from modules, and analytic examples."""

from hessprobe.objective.analytic import Quadratic, Rosenbrock, Saddle, ScaleInvariantProduct
from hessprobe.objective.base import BatchLoss, Objective
from hessprobe.objective.batches import EmpiricalBatch, ForwardBatch
from hessprobe.objective.empirical import EmpiricalRisk
from hessprobe.objective.modes import select_parameters
from hessprobe.objective.vocabulary import causal_lm_forward, linear_cross_entropy

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
    "causal_lm_forward",
    "linear_cross_entropy",
    "select_parameters",
]

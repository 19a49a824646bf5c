"""The engine under every sharpness-aware optimizer."""

from hessprobe.optim.engine.arguments import EngineOptions
from hessprobe.optim.engine.optimizer import SharpnessAware
from hessprobe.optim.engine.requests import Apply, At, Curvature, Displacement, Evaluation, Rule, StepReport, Update
from hessprobe.optim.engine.tensors import TensorList

__all__ = [
    "Apply",
    "At",
    "Curvature",
    "Displacement",
    "EngineOptions",
    "Evaluation",
    "Rule",
    "SharpnessAware",
    "StepReport",
    "TensorList",
    "Update",
]

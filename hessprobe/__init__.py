"""hessprobe: how sharp is a minimum, with the error and the cost of every number.

Names are loaded on first use, so that importing the package, and ``hessprobe --help``, need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hessprobe import measures as measures
    from hessprobe import optim
    from hessprobe.comparison.comparing import Comparison, compare
    from hessprobe.errors import HessprobeError, NumericalWarning
    from hessprobe.estimate import ErrorParts, Estimate
    from hessprobe.estimators.diagonal import diagonal
    from hessprobe.estimators.frobenius import effective_rank, frobenius_norm
    from hessprobe.estimators.logdet import logdet
    from hessprobe.estimators.sketch import SpectralSketch
    from hessprobe.estimators.spectral_density import spectral_density
    from hessprobe.estimators.sweep import spectral_sketch
    from hessprobe.estimators.trace import trace
    from hessprobe.hvp import Fisher, GaussNewton, Hessian
    from hessprobe.hvp.hessian import hvp
    from hessprobe.krylov.eigenpairs import Eigenpairs
    from hessprobe.krylov.eigsh import eigsh, lambda_max
    from hessprobe.krylov.solve import Solution, solve
    from hessprobe.landscape.compute import landscape
    from hessprobe.landscape.result import Landscape
    from hessprobe.measures.context import MeasureSettings
    from hessprobe.measures.registry import measure
    from hessprobe.objective import EmpiricalRisk
    from hessprobe.operators import LinearOperator, aslinearoperator
    from hessprobe.report.plotting import plot
    from hessprobe.tracking.tracker import SharpnessTracker
    from hessprobe.training.checkpoint import load_checkpoint, save_checkpoint

__version__ = "0.1.0"

_HOMES = {
    "Comparison": "comparison",
    "Eigenpairs": "krylov",
    "EmpiricalRisk": "objective",
    "ErrorParts": "estimate",
    "Estimate": "estimate",
    "Fisher": "hvp",
    "GaussNewton": "hvp",
    "Hessian": "hvp",
    "HessprobeError": "errors",
    "Landscape": "landscape",
    "LinearOperator": "operators",
    "MeasureSettings": "measures",
    "NumericalWarning": "errors",
    "SharpnessTracker": "tracking",
    "Solution": "krylov",
    "SpectralSketch": "estimators",
    "aslinearoperator": "operators",
    "compare": "comparison",
    "diagonal": "estimators",
    "effective_rank": "estimators",
    "eigsh": "krylov",
    "frobenius_norm": "estimators",
    "lambda_max": "krylov",
    "load_checkpoint": "training.checkpoint",
    "logdet": "estimators",
    "measure": "measures",
    "plot": "report.plotting",
    "save_checkpoint": "training.checkpoint",
    "solve": "krylov",
    "spectral_density": "estimators",
    "spectral_sketch": "estimators",
    "trace": "estimators",
}

# Packages that are public by their own name; ``hvp`` and ``landscape`` are also functions.
_PACKAGES = ("hvp", "landscape", "measures", "optim")

__all__ = [
    "Comparison",
    "Eigenpairs",
    "EmpiricalRisk",
    "ErrorParts",
    "Estimate",
    "Fisher",
    "GaussNewton",
    "Hessian",
    "HessprobeError",
    "Landscape",
    "LinearOperator",
    "MeasureSettings",
    "NumericalWarning",
    "SharpnessTracker",
    "Solution",
    "SpectralSketch",
    "aslinearoperator",
    "compare",
    "diagonal",
    "effective_rank",
    "eigsh",
    "frobenius_norm",
    "hvp",
    "lambda_max",
    "landscape",
    "load_checkpoint",
    "logdet",
    "measure",
    "optim",
    "plot",
    "save_checkpoint",
    "solve",
    "spectral_density",
    "spectral_sketch",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

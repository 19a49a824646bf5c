"""Estimators: functionals of an operator from a few products, each with its error and its cost."""

from hessprobe.estimators.budget import Progress, required_samples
from hessprobe.estimators.density import Density
from hessprobe.estimators.diagonal import DiagonalEstimate, diagonal
from hessprobe.estimators.frobenius import effective_rank, frobenius_norm
from hessprobe.estimators.logdet import logdet
from hessprobe.estimators.sketch import SpectralSketch
from hessprobe.estimators.spectral_density import spectral_density
from hessprobe.estimators.sweep import spectral_sketch
from hessprobe.estimators.trace import trace
from hessprobe.estimators.xtrace import Deflation, deflation

__all__ = [
    "Deflation",
    "Density",
    "DiagonalEstimate",
    "Progress",
    "SpectralSketch",
    "deflation",
    "diagonal",
    "effective_rank",
    "frobenius_norm",
    "logdet",
    "required_samples",
    "spectral_density",
    "spectral_sketch",
    "trace",
]

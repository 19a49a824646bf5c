"""Krylov methods on symmetric operators."""

from hessprobe.krylov.blockwise import BlockEigenvalues, block_lambda_max
from hessprobe.krylov.certificates import Ends, SpectrumBounds
from hessprobe.krylov.eigenpairs import Eigenpairs, Progress
from hessprobe.krylov.eigsh import eigsh, lambda_max
from hessprobe.krylov.lanczos import LanczosRun, lanczos
from hessprobe.krylov.quadrature import QuadratureRule, gauss, gauss_radau
from hessprobe.krylov.solve import Solution, solve

__all__ = [
    "BlockEigenvalues",
    "Eigenpairs",
    "Ends",
    "LanczosRun",
    "Progress",
    "QuadratureRule",
    "Solution",
    "SpectrumBounds",
    "block_lambda_max",
    "eigsh",
    "gauss",
    "gauss_radau",
    "lambda_max",
    "lanczos",
    "solve",
]

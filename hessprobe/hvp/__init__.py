"""Products with the curvature matrices of an objective: engines, and the operators built on them."""

from hessprobe.hvp.fisher import Fisher
from hessprobe.hvp.functional import FunctionalPart
from hessprobe.hvp.gauss_newton import GaussNewton
from hessprobe.hvp.hessian import ENGINES, Hessian

__all__ = ["ENGINES", "Fisher", "FunctionalPart", "GaussNewton", "Hessian"]

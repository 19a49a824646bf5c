"""Products with the curvature matrices of an objective: engines, and the operators built on them.

The package is also the function ``hvp``: ``hessprobe.hvp(risk, v)``.
"""

from hessprobe.callable_package import make_callable
from hessprobe.hvp.fisher import Fisher
from hessprobe.hvp.functional import FunctionalPart
from hessprobe.hvp.gauss_newton import GaussNewton
from hessprobe.hvp.hessian import ENGINES, Hessian, hvp

__all__ = ["ENGINES", "Fisher", "FunctionalPart", "GaussNewton", "Hessian", "hvp"]

make_callable(__name__)

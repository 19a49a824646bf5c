"""The same tests on every tool: cases in which curvature and SAM tools were seen to be wrong without a word.

A *case* builds a small problem, asks a tool for one quantity, and compares it with a truth that no tool computed. A
*tool* is a dictionary from quantities to functions of a problem: an adapter of a few lines for each package. ``CASES``
and ``SAM_CASES`` are the tables: adding a case is one row, adding a package one adapter in ``peers`` or ``sam_tools``.
``hessprobe bench --conformance`` holds every tool that is installed to every case.
"""

from hessprobe.benchmarks.conformance.case import QUANTITIES, RULES, Case, Problem, Tool, Verdict, check
from hessprobe.benchmarks.conformance.own import HESSPROBE
from hessprobe.benchmarks.conformance.sam_table import SAM_CASES
from hessprobe.benchmarks.conformance.table import CASES
from hessprobe.benchmarks.conformance.training import SAM_QUANTITIES

__all__ = [
    "CASES",
    "HESSPROBE",
    "QUANTITIES",
    "RULES",
    "SAM_CASES",
    "SAM_QUANTITIES",
    "Case",
    "Problem",
    "Tool",
    "Verdict",
    "check",
]

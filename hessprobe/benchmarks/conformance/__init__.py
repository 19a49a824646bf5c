"""The same tests on every tool: cases in which curvature tools were seen to give a wrong number without a word.

A *case* builds a small problem, asks a tool for one quantity, and compares it with a truth that no tool computed. A
*tool* is a dictionary from quantities to functions of a problem: an adapter of a few lines for each package. ``CASES``
is the table: adding a case is one row.
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

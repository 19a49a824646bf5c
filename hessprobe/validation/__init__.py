"""Claims of papers, and of this program's own methods, held against measurement.

A claim predicts a number; a check measures it; the verdict follows from the standard error, or from the bound or
tolerance that the theorem gives. Nothing here is tuned to pass: a claim that fails stays in the table with its numbers.
"""

from hessprobe.validation.claim import Claim, Curve, Finding, Outcome, Part, Series
from hessprobe.validation.registry import claims, examine, run, select

__all__ = ["Claim", "Curve", "Finding", "Outcome", "Part", "Series", "claims", "examine", "run", "select"]

"""How often intervals hold the truth: every estimator on matrices drawn from wide families, in a record that is kept.

A *trial* runs one estimator once and answers one or more *questions* (the trace, each of its layers); a *cell* is a
question on one family of matrices with one number of probes, over some hundred seeds.
"""

from hessprobe.validation.coverage.study import Settings, Study, units
from hessprobe.validation.coverage.table import HEADER, failing, markdown, summary_rows
from hessprobe.validation.coverage.trials import TRIALS, questions, select

__all__ = [
    "HEADER",
    "TRIALS",
    "Settings",
    "Study",
    "failing",
    "markdown",
    "questions",
    "select",
    "summary_rows",
    "units",
]

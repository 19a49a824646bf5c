"""What can be tracked; importable without torch, so that the command line can check it at once."""

from hessprobe.measures.table import DEFAULT, NAMES, Names

# Measures that are one number: along a run there is no room for more.
TRACKED = Names(NAMES, lambda entry: not entry.number)
RTOL = 0.05
# Found at every point: the edge of stability is about it.
ALWAYS = "lambda-max"
# What the edge of stability of Adam is about.
PRECONDITIONED = "preconditioned-lambda-max"

__all__ = ["ALWAYS", "DEFAULT", "PRECONDITIONED", "RTOL", "TRACKED"]

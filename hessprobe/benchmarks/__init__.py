"""Timings measured side by side in one run."""

from hessprobe.benchmarks.cases import CASES, Case
from hessprobe.benchmarks.products import Timing, time_products

__all__ = ["CASES", "Case", "Timing", "time_products"]

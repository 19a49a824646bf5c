"""Figures, made from records alone. Matplotlib is loaded when the first one is drawn."""

from hessprobe.looks import FORMATS
from hessprobe.report.figures.dispatch import figures_across, figures_of
from hessprobe.report.figures.drawn import Drawn

__all__ = ["FORMATS", "Drawn", "figures_across", "figures_of"]

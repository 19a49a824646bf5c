"""Figures made from records, and from nothing else. Nothing here loads matplotlib before it draws."""

from hessprobe.report.figures.dispatch import figures_across, figures_of
from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.style import FORMATS

__all__ = ["FORMATS", "Drawn", "figures_across", "figures_of"]

"""Figures made from records, and from nothing else. Nothing here loads matplotlib before it draws."""

from hessprobe.looks import FORMATS
from hessprobe.report.figures.dispatch import figures_across, figures_of
from hessprobe.report.figures.drawn import Drawn

__all__ = ["FORMATS", "Drawn", "figures_across", "figures_of"]

"""Sizes, styles and file kinds of figures; light, for the command line reads them for its help."""

FORMATS = ("png", "svg", "pdf")
STYLES = ("paper", "screen", "dark")
# Inches: one column and two of a journal, the least in which labels of 7 points have room, the widest page.
COLUMN, PAGE, NARROWEST, WIDEST = 3.25, 6.75, 2.0, 20.0

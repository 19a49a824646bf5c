"""Keyboard mathematics as print has it."""

from __future__ import annotations

import pytest
from matplotlib.mathtext import MathTextParser

from hessprobe.report.figures.symbols import length, printed

RHO = "\u03c1"


def script(mark, text):
    return rf"{mark}{{\mathregular{{{text}}}}}"


@pytest.mark.parametrize(
    ("typed", "seen"),
    [
        ("|R_rho - S|", f"|R${script('_', RHO)}$ \u2212 S|"),
        ("||H||_F^2/2 + g.grad Tr H", f"\u2016H\u2016${script('_', 'F')}{script('^', '2')}$/2 + g\u00b7\u2207Tr H"),
        ("lambda_max <= 2/eta", f"\u03bb${script('_', 'max')}$ \u2264 2/\u03b7"),
        ("rho^(2L) and rho^2, D^-1", f"\u03c1${script('^', '2L')}$ and \u03c1\u00b2, D\u207b\u00b9"),
        ("sum_i (1 - c_i^k)^2", f"\u03a3${script('_', 'i')}$ (1 \u2212 c${script('_', 'i')}{script('^', 'k')}$)\u00b2"),
        ("w*_i -> exp(-3l)", f"w*${script('_', 'i')}$ \u2192 exp(\u22123l)"),
        ("dX/dtau = -P grad lambda_1", f"dX/d\u03c4 = \u2212P \u2207\u03bb${script('_', '1')}$"),
        ("m << d, sqrt(b/T), 1 ... d", "m \u226a d, \u221a(b/T), 1 \u2026 d"),
        # Words, names and numbers keep their letters.
        ("the delta method of the Det-SAM, beta-like", "the delta method of the Det-SAM, beta-like"),
        ("evaluate_from_losses at 1e-6 is theta-free", "evaluate_from_losses at 1e-6 is theta-free"),
        ("a network's meta-data, d - 1", "a network's meta-data, d \u2212 1"),
        ("it costs 3 $", r"it costs 3 \$"),
    ],
)
def test_what_is_typed_is_printed(typed, seen):
    assert printed(typed) == seen
    # matplotlib can set it.
    MathTextParser("path").parse(seen.replace(r"\$", ""))


def test_the_length_is_that_of_what_is_seen():
    assert length(printed("|R_rho - S|")) == len("|Rr - S|")
    assert length(printed("rho^(2L) and rho^2")) == len("r2L and r2")

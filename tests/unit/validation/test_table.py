from __future__ import annotations

from hessprobe.validation import Claim, Finding, examine
from hessprobe.validation.claim import below
from hessprobe.validation.table import markdown


def test_a_norm_in_a_label_does_not_end_the_cell():
    claim = Claim("a/b", "It holds.", "nobody", lambda: Finding((below("mean ||Aw||^2, |l|", 1.0, 0.5),)))
    text = markdown([examine(claim).row()], {}, {"torch": "2", "threads": 1, "device": "cpu"})
    (line,) = [line for line in text.splitlines() if "mean" in line]
    assert line.startswith(r"| mean \|\|Aw\|\|^2, \|l\| | <= 1 | 0.5 |")
    assert line.replace(r"\|", "").count("|") == 6

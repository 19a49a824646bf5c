"""The first thing on the page: one sentence a comparison, one table, nothing that a line may break."""

from __future__ import annotations

import pytest
from page_records import TRACKED, claim, estimate, point, record, write

from hessprobe.report.document import Table
from hessprobe.report.figures.style import BLUE, DARK, OVER_DARK, adaptive
from hessprobe.report.html import sections
from hessprobe.report.sections import verdict
from hessprobe.report.sections.page import Page
from hessprobe.report.sources import gather


def value(checkpoint, measure, number, error=0.01, data=0.2):
    errors = {"probe": error, "data": data, "solver": 0.0}
    about = {"measure": measure, "checkpoint": checkpoint, "operator": "hessian", "unit": "curvature"}
    return {**estimate(number, error), **about, "notes": [], "engine": "x", "errors": errors}


def difference(checkpoint, measure, number, said, beyond=None, stands=True):
    about = {"measure": measure, "checkpoint": checkpoint, "baseline": "sgd", "verdict": said, "stands": stands}
    more = {"beyond_data": beyond, "p": 0.01, "independent_std_error": 0.1, "correlation": None, "gain": None}
    return {**estimate(number, 0.01), **about, **more}


def page(folder, differences, values):
    made = record("compare", values, differences=differences, baseline="sgd", checkpoints=[], correlations=None)
    return Page(gather(write(folder, a=made)))


VALUES = [value(name, measure, number)
          for measure, base in (("lambda-max", 2.0), ("trace", 20.0), ("frob", 4.0), ("lambda-min", -0.5))
          for name, number in (("sgd", base), ("sam", 0.79 * base))]  # fmt: skip


def said(folder, *differences):
    return [text.replace("\u00a0", " ") for text in verdict.sentences(page(folder, differences, VALUES))]


def test_a_comparison_is_one_sentence_with_what_holds_on_other_data(tmp_path):
    assert said(
        tmp_path,
        difference("sam", "lambda-max", -0.42, "flatter", True),
        difference("sam", "trace", -3.4, "flatter", False),
        difference("sam", "frob", -0.01, "within error"),
    ) == ["sam is flatter than sgd: lambda-max \u221221 % (holds on other data), trace \u221217 % "
          "(may vanish on other data); frob: not resolved."]  # fmt: skip


def test_directions_that_differ_are_said_each_and_nothing_resolved_is_no_verdict(tmp_path):
    both = said(
        tmp_path,
        difference("sam", "lambda-max", 0.42, "sharper", stands=False),
        difference("sam", "trace", -3.4, "flatter"),
        difference("sam", "lambda-min", -0.25, "lower"),
    )
    assert both == [
        "sam differs from sgd: lambda-max +21 % (sharper, not for all differences together), "
        "trace \u221217 % (flatter), lambda-min \u22120.25 (lower)."
    ]
    neither = [difference("sam", "trace", 0.1, "undecided"), difference("sam", "frob", 0.0, "within error")]
    assert said(tmp_path, *neither) == ["sam and sgd cannot be told apart: trace, frob: not resolved."]


def test_the_table_has_both_errors_and_the_difference_and_no_number_that_breaks(tmp_path):
    made = page(tmp_path, [difference("sam", "trace", -4.2, "flatter", True)], VALUES)
    (table,) = [block for block in verdict.build(made).blocks if isinstance(block, Table)]
    assert [column.name for column in table.columns] == ["checkpoint", "lambda-max", "trace", "frob", "lambda-min"]
    sgd, sam = table.rows
    assert sam[2].text == "15.800\u00a0±\u00a00.010"
    assert sam[2].note == "data\u00a0±\u00a00.20"
    assert (sam[2].said, sam[2].tone) == ("\u25bc\u00a0\u221221\u00a0%,\u00a0flatter", "good")
    assert (sgd[2].note, sgd[2].said) == ("data\u00a0±\u00a00.20", "")
    assert not any(" " in cell.text for row in table.rows for cell in row[1:])
    assert sections(made)[0].id == "verdict"


@pytest.mark.parametrize(("said", "beyond", "stands", "tone"), [
    ("flatter", False, True, "weak"), ("flatter", True, False, "weak"), ("within error", True, True, "weak"),
    ("sharper", True, True, "bad"), ("lower", True, True, ""),
])  # fmt: skip
def test_the_tone_of_a_difference_is_weak_where_it_may_not_hold(tmp_path, said, beyond, stands, tone):
    made = page(tmp_path, [difference("sam", "trace", -4.2, said, beyond, stands)], VALUES)
    (table,) = [block for block in verdict.build(made).blocks if isinstance(block, Table)]
    assert table.rows[1][2].tone == tone
    assert table.stacks


def test_a_single_checkpoint_has_its_numbers_in_one_sentence(tmp_path):
    shown = (("lambda-max", 2.5), ("trace", 18.0), ("density", 1e-3))
    rows = [{**value("x", name, number), "checkpoint": None} for name, number in shown]
    alone = Page(gather(write(tmp_path, a=record("measure", rows, checkpoint="runs/sgd.pt"))))
    (sentence,) = verdict.sentences(alone)
    assert sentence.replace("\u00a0", " ").endswith(": lambda-max 2.500 ± 0.010, trace 18.000 ± 0.010.")
    (table,) = [block for block in verdict.build(alone).blocks if isinstance(block, Table)]
    names = [column.name.replace("\u00a0", " ") for column in table.columns]
    assert names == ["measure", "value ± measurement", "± data", "95 % interval"]
    texts = [cell.text.replace("\u00a0", " ") for cell in table.rows[0]]
    assert texts == ["lambda-max", "2.500 ± 0.010", "± 0.20", "2.480 to 2.520"]
    assert table.rows[0][0].note.startswith("largest eigenvalue")
    assert table.rows[2][0].note.startswith("median of the distribution of the eigenvalues")
    first = sections(alone)[0]
    assert (first.id, first.title) == ("verdict", "The answer")
    assert verdict.build(Page(gather(write(tmp_path, b=record("train", []))))) is None


def test_a_run_has_its_beginning_its_peak_and_its_end(tmp_path):
    made = record("track", [point(0, 1.5), point(45, 9.0), point(90, 6.0)], checkpoint=None, arguments=TRACKED)
    run = Page(gather(write(tmp_path, a=made)))
    (sentence,) = verdict.sentences(run)
    assert sentence.replace("\u00a0", " ").endswith(
        "run over 3 checkpoints: lambda-max from 1.5 to 6 (at most 9, step 45), trace from 4.5 to 18 (at most 27, "
        "step 45)."
    )
    _, table = verdict.build(run).blocks
    assert [column.name for column in table.columns] == ["measure", "first", "largest", "last"]
    cells = [(cell.sort, cell.note) for cell in table.rows[0][1:]]
    assert cells == [(1.5, "step\u00a00"), (9.0, "step\u00a045"), (6.0, "step\u00a090")]


def test_what_else_was_done_is_the_answer_where_nothing_was_measured(tmp_path):
    alone = Page(gather(write(tmp_path, a=record("validate", [claim()], checkpoint="", arguments={}))))
    assert "1 claims: 1 hold" in " ".join(verdict.sentences(alone))
    assert sections(alone)[0].id == "verdict"


@pytest.mark.parametrize("attribute", ['style="stroke: #0072b2"', 'style="fill: #0072b2; opacity: 0.3"'])
def test_an_image_follows_the_colors_of_its_page_but_for_what_lies_over_a_map(attribute):
    svg = f'<svg><defs><style>*{{}}</style></defs><path {attribute}/><path style="stroke: {OVER_DARK}"/></svg>'
    text = adaptive(svg.encode()).decode()
    index = list(DARK).index(BLUE)
    assert f": var(--c{index})" in text.rpartition("</defs>")[2]
    assert f'"stroke: {OVER_DARK}"' in text
    curve = adaptive(b'<svg><defs/><path d="M 12.345678 4.5 L 0.129 7"/><text y="1.23456"/></svg>').decode()
    assert 'd="M 12.34 4.5 L 0.12 7"' in curve
    assert 'y="1.23456"' in curve
    light, _, dark = text.partition("@media (prefers-color-scheme:dark)")
    assert f"--c{index}:{BLUE}" in light
    assert f"--c{index}:{DARK[BLUE]}" in dark
    assert "text{fill:var(--c" in light

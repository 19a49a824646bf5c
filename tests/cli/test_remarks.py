from __future__ import annotations

import pytest

from hessprobe.cli import render


def row(measure="trace", **changes):
    return {"measure": measure, "flags": [], "notes": [], "engine": "", **changes}


def layer(error, solver=0.0):
    ends = [1.0 - error - solver, 1.0 + error + solver]
    return {"value": 1.0, "std_error": error, "interval": ends, "errors": {"solver": solver}, "kind": "estimate"}


def test_a_plain_number_has_no_remark():
    assert render.remarks(row()) == []


def test_flags_and_notes_are_sentences_in_options():
    said = render.remarks(row(flags=["not-converged"], notes=["Raise max_matvecs or tol."]))
    assert said == [
        "some eigenvalue has not converged; the interval allows for that",
        "Their intervals allow for that; fewer by --k, or --dtype float64 in place of float32, may converge.",
    ]


@pytest.mark.parametrize(
    ("measure", "sentence"),
    [
        ("density", "the number is the median eigenvalue; "),
        ("diagonal", "the number is the mean diagonal entry, trace / d; "),
    ],
)
def test_what_is_more_than_a_number_says_what_its_number_is(measure, sentence):
    assert render.remarks(row(measure)) == [sentence + "--json has the rest"]


def test_layers_say_which_values_are_exact():
    both = row(layers={"a": layer(0.0), "b": layer(0.0)})
    assert render.remarks(both) == ["the values of all layers are exact up to rounding"]
    one = row(layers={"a": layer(0.0), "b": layer(0.1), "c": layer(0.0, solver=0.1)})
    assert render.remarks(one) == ["the values of a are exact up to rounding"]
    assert render.remarks(row(layers={"b": layer(0.1)})) == []


def test_all_eigenvalues_are_listed_once_with_their_errors():
    arrays = {"eigenvalues": {"values": [2.5, 1.25]}, "eigenvalue_errors": {"values": [0.001, 0.01]}}
    rows = [row("lambda-max", arrays=arrays), row("spectral-norm", arrays=arrays)]
    assert render.eigenvalue_lines(rows, "±") == [
        "2 eigenvalues, largest first, each with its error:",
        "  2.5000 ± 0.0010",
        "  1.250 ± 0.010",
    ]
    single = {name: {"values": entry["values"][:1]} for name, entry in arrays.items()}
    assert render.eigenvalue_lines([row("lambda-max", arrays=single), row()], "±") == []


def test_engines_are_named_as_on_the_command_line_and_only_where_one_ran():
    rows = [
        row(engine="double_backward (linearized: slower)"),
        row(engine="auto"),
        row(engine="double_backward"),
        row(),
    ]
    assert list(render.engines(rows)) == ["double-backward"]


@pytest.mark.parametrize(
    ("measure", "errors", "fix"),
    [
        ("frob", {"probe": 0.1, "solver": 0.0}, "pass more --probes than it took, or a larger --rtol"),
        (
            "logdet",
            {"probe": 0.1, "solver": 0.2},
            "more --probes do not help, a larger --shift or --dtype float64 in place of float32 may",
        ),
        (
            "lambda-max",
            {"probe": 0.0, "solver": 0.2},
            "more --probes do not help, --dtype float64 in place of float32 may",
        ),
    ],
)
def test_a_missed_tolerance_says_what_helps(measure, errors, fix):
    (said,) = render.remarks(row(measure, flags=["tolerance-missed"], errors=errors))
    assert said.startswith(f"the interval is wider than --rtol asks for; {fix}")

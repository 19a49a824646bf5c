from __future__ import annotations

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hessprobe.cli import render
from hessprobe.records import typed
from hessprobe.records.typed import Measured, Number


def terminal(width):
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False)


def row(measure="trace", value=0.30612345, error=0.00091, half=0.0018, **changes):
    base = {
        "measure": measure,
        "value": value,
        "std_error": error,
        "errors": {"probe": error, "data": None, "solver": 0.0},
        "interval": [value - half, value + half],
        "confidence": 0.95,
        "matvecs": 57,
        "seconds": 1.234,
        "method": "hutchinson+ggn",
        "kind": "estimate",
    }
    return {**base, **changes}


def result_cells(row, **how):
    return render.result_cells(Number.of(row), **how)


def error_cells(row, **how):
    return render.error_cells(Number.of(row), **how)


def results_table(rows, confidence, console):
    render.results_table([typed.read(Measured, each, "the row") for each in rows], confidence, console)


def layers_table(row, console):
    render.layers_table(typed.read(Measured, row, "the row"), console)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.30612345, 0.00091, "0.30612 ± 0.00091"),
        (12345.678, 23.4, "12346 ± 23"),
        (12345.678, 230.0, "12346 ± 230"),
        (-3.2e-07, 1.23e-09, "-3.200e-07 ± 1.2e-09"),
        (9.9996, 0.012, "10.000 ± 0.012"),
        (1.0, 2.5, "1.0 ± 2.5"),
        (0.0, 0.02, "0.000 ± 0.020"),
        (23.456789012, 1e-9, "23.4568 ± 1.0e-09"),
        (1.5e9, 2e7, "1.500e+09 ± 2.0e+07"),
        (23.456789012, 0.0, "23.4568"),
        (0.0, 0.0, "0"),
        (None, None, "nan"),
        (math.nan, 0.1, "nan ± 0.10"),
        (2.0, math.inf, "2.00000 ± inf"),
    ],
)
def test_numbers_show_the_digits_that_the_error_leaves(value, error, text):
    assert render.with_error(value, error) == text


@given(st.floats(-1e30, 1e30), st.floats(1e-30, 1e30))
def test_the_text_stays_within_the_error_of_the_number(value, error):
    shown, uncertainty = map(float, render.with_error(value, error).split(" ± "))
    assert abs(shown - value) <= max(0.05 * error, 1e-5 * abs(value))
    assert abs(uncertainty - error) <= 0.06 * error


def test_error_of_an_exact_path_is_the_bound_of_the_solver():
    exact = row(error=0.0, errors={"probe": 0.0, "data": None, "solver": 1e-4})
    assert result_cells(exact)[0] == "0.30612 ± 0.00010"
    drowned = row(error=3e-17, errors={"probe": 3e-17, "data": None, "solver": 1e-4})
    assert result_cells(drowned)[0] == "0.30612 ± 0.00010"
    bare = row(error=0.0, errors={"probe": 0.0, "data": None, "solver": 0.0}, kind="exact")
    assert result_cells(bare)[:2] == ["0.306123", "exact"]
    assert result_cells(row(kind="lower bound"))[0] == ">= 0.30612 ± 0.00091"


ALL = ["lambda-max", "lambda-min", "spectral-norm", "trace", "frob", "logdet", "density", "diagonal", "effective-rank"]
ALL += ["effective-dimension"]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize(("value", "error"), [(0.306123456, 0.00091), (-1.23456789e-7, 3.4e-13), (123456.7, 0.001)])
def test_no_number_is_wrapped_or_cut_at_any_width(width, value, error):
    console = terminal(width)
    rows = [row(name, value, error, 2 * error) for name in ALL]
    results_table(rows, 0.95, console)
    text = console.file.getvalue()
    cells, short = ([*error_cells(rows[0], digits=n)[:2], *result_cells(rows[0], digits=n)[1:]] for n in (6, 5))
    names = ("value", "meas", "interval", "prod", "sec")
    header = text.splitlines()[0]
    for name, full, shorter in zip(names, cells, (*short[:4], "1.2"), strict=True):
        if name in header or name == "value" or "method" in text:
            assert max(text.count(full), text.count(shorter)) >= len(rows), full
    assert ("interval" in header) != (
        "intervals need a wider terminal, or --json" in " ".join(text.split())
    ) or "method:" in text
    assert "…" not in text
    if width >= 80:
        assert max(map(len, text.splitlines())) <= width


def test_80_columns_hold_the_table_and_120_the_method_too():
    errors = {"probe": 0.00091, "data": 0.12, "solver": 0.0}
    rows = [row(name, errors=errors) for name in ("lambda-max", "effective-dimension")]
    narrow, wide = terminal(80), terminal(120)
    results_table(rows, 0.95, narrow)
    results_table(rows, 0.95, wide)
    lines = narrow.file.getvalue().splitlines()
    assert lines[4:] == [
        "± measurement: standard error of the number for these data",
        "± data: standard error from the data being a sample (jackknife over examples)",
    ]
    assert lines[0].split() == ["measure", "value", "±", "meas.", "±", "data", "95%", "interval", "prod.", "sec."]
    assert "hutchinson+ggn" not in narrow.file.getvalue()
    assert wide.file.getvalue().count("hutchinson+ggn") == 2


def test_80_columns_hold_long_numbers_of_the_longest_name():
    console = terminal(80)
    exact = {
        "std_error": 0.0,
        "errors": {"probe": 0.0, "data": None, "solver": 8.2e-6},
        "method": "thick-restart-lanczos",
    }
    rows = [row("spectral-norm", -0.0154393, 0.0, 8.2e-6, **exact), row("effective-dimension", matvecs=64768)]
    results_table(rows, 0.95, console)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 5
    assert "-0.015439" in lines[2]
    assert "± 8.2e-06" in lines[2]
    assert "0.30432 to 0.30792" in lines[3]


@pytest.mark.parametrize(
    ("count", "text"), [(107.3333, "107.3"), (103.00000000001, "103"), (64768.4, "64768"), (0.0, "0"), (None, "nan")]
)
def test_products_are_counted_plainly(count, text):
    assert result_cells(row(matvecs=count))[2] == text


def test_piped_table_is_plain_text():
    console = Console(file=io.StringIO(), width=20)
    results_table([row()], 0.9, console)
    assert console.file.getvalue().splitlines() == [
        "measure  value    ± measurement  90% interval        products  seconds  method",
        "trace    0.30612  ± 0.00091      0.30432 to 0.30792  57        1.23     hutchinson+ggn",
        "± measurement: standard error of the number for these data",
    ]


def test_both_errors_are_shown_and_what_they_are_is_said():
    console = Console(file=io.StringIO(), width=20)
    errors = {"probe": 0.00091, "data": 0.0234, "solver": 0.0}
    top = row("lambda-max", 0.61, 0.0, errors={"probe": 0.0, "data": 0.15, "solver": 0.006}, kind="bracket")
    top |= {"bracket": [0.61 - 1e-9, 0.616], "interval": [0.61, 0.616], "bracket_confidence": 0.995}
    bottom = {**top, "value": -0.2, "bracket": [-0.21, -0.2], "measure": "lambda-min"}
    exact = row("frob", error=0.0, errors={"probe": 0.0, "data": None, "solver": 0.0}, kind="exact")
    results_table([row(errors=errors), top, bottom, exact, row(kind="lower bound")], 0.95, console)
    lines = [line.split("  ") for line in console.file.getvalue().splitlines()]
    cells = [[cell.strip() for cell in line if cell][1:4] for line in lines[1:6]]
    assert cells == [
        ["0.30612", "± 0.00091", "± 0.023"],
        ["0.6100", "+0.0060", "± 0.15"],
        ["-0.2000", "-0.0100", "± 0.15"],
        ["0.306123", "exact", "-"],
        [">= 0.30612", "± 0.00091", "-"],
    ]
    assert lines[6:] == [
        ["± measurement: standard error of the number for these data"],
        ["± data: standard error from the data being a sample (jackknife over examples)"],
        ["+ or - alone: a bracket, which holds the eigenvalue with probability 99.5 %"],
    ]


def test_a_data_error_of_zero_is_known_and_shown():
    assert error_cells(row(errors={"probe": 0.00091, "data": 0.0, "solver": 0.0}))[2] == "± 0"
    assert error_cells(row())[2] == "-"
    assert error_cells(row(), data=False) == ["0.30612", "± 0.00091"]


def test_ascii_output_has_no_plus_minus_sign():
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=80)
    results_table([row()], 0.95, console)
    console.file.flush()
    assert b"0.30612  +/- 0.00091" in console.file.buffer.getvalue()


def test_layers_have_their_own_table():
    console = terminal(80)
    layers_table(row(layers={"layers.0.weight": row(), "layers.0.bias": row(value=0.01)}), console)
    text = console.file.getvalue()
    assert "trace of" in text
    assert "value  ± measurement        95% interval" in text
    assert "0.01000      ± 0.00091  0.00820 to 0.01180" in text


@pytest.mark.parametrize(("width", "kept"), [(80, 5), (56, 4), (40, 3)])
def test_layers_have_their_data_error(width, kept):
    errors = {"probe": 0.00091, "data": 0.0234, "solver": 0.0}
    console = terminal(width)
    layers_table(row(layers={"0.weight": row(errors=errors), "0.bias": row(value=0.01)}), console)
    lines = console.file.getvalue().splitlines()
    cells = ["0.weight", "0.30612", "± 0.00091", "± 0.023", "0.30432 to 0.30792"]
    assert lines[2].split() == " ".join(cells[:kept]).split()
    assert ("± data" in lines[0]) == (kept > 3)
    assert lines[3].split()[4:5] == (["-"] if kept > 3 else [])


def test_ten_measures_are_a_table_from_60_columns_on_and_keep_their_interval_from_80_on():
    rows = [row(name) for name in ALL]
    rows[1] = row("lambda-min", -0.00344172, 0.0, 1.7e-7, errors={"probe": 0.0, "data": None, "solver": 1.7e-7})
    rows[5] = row("logdet", -118696.2, 4.5, 10.8, matvecs=1552.3, seconds=5.03)
    for width, kept in ((60, ["value", "prod."]), (80, ["value", "± meas.", "interval", "prod."])):
        console = terminal(width)
        results_table(rows, 0.95, console)
        lines = console.file.getvalue().splitlines()
        assert [line.split()[0] for line in lines[2:12]] == ALL
        assert max(map(len, lines)) <= width
        assert all(word in lines[0] for word in kept)
        assert "-118696" in lines[7]
        assert "± 4 " in lines[7]
        assert len(lines) == (14 if width == 60 else 13)


def test_layers_without_error_are_exact():
    console = terminal(80)
    none = {"probe": 0.0, "data": None, "solver": 0.0}
    layers_table(row(layers={"a": row(error=0.0, errors=none), "b": row()}), console)
    lines = console.file.getvalue().splitlines()
    assert lines[2].split() == ["a", "0.306123", "exact", "exact"]
    assert "0.30432 to 0.30792" in lines[3]

from __future__ import annotations

import pytest

from hessprobe.report import typography


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("1.2e-06", "1.2\u202f\u00d7\u202f10⁻⁶"),
        ("-3.40e+12", "\u22123.40\u202f\u00d7\u202f10¹²"),
        ("-0.5", "\u22120.5"),
        ("-.5", "\u2212.5"),
        ("0.25", "0.25"),
        ("nan", "nan"),
        ("z = -1.20", "z = \u22121.20"),
        ("1e100", "1\u202f\u00d7\u202f10¹⁰⁰"),
        # No numbers: a name keeps its hyphen and its letters.
        ("frob-2e5", "frob-2\u202f\u00d7\u202f10⁵"),
        ("sam-1", "sam-1"),
    ],
)
def test_numbers_are_set_as_in_print(text, printed):
    assert typography.pretty(text) == printed


def test_value_error_and_interval_have_the_digits_that_the_error_leaves():
    assert typography.numbers(0.1522803, 1.2e-6, 0.152279, 0.1522819) == [
        "0.152280",
        "1.2\u202f\u00d7\u202f10⁻⁶",
        "0.152279",
        "0.152282",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(8, "8"), (34.2, "34.2"), (1234.6, "1,235"), (0.5, "0.5"), (None, "not finite"), (100.4, "100")]
)
def test_counts(value, text):
    assert typography.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.66, "2.7\u00a0s"),
        (0.104, "0.10\u00a0s"),
        (0.996, "1.0\u00a0s"),
        (150, "2.5\u00a0min"),
        (0.0068, "6.8\u00a0ms"),
        (0.0611, "61\u00a0ms"),
        (0.00015, "150\u00a0µs"),
        (None, "unknown"),
        (59.99, "60\u00a0s"),
    ],
)
def test_times(value, text):
    assert typography.seconds(value) == text


def test_one_power_of_ten_for_both_ends_of_an_interval():
    low, high = typography.pretty("6.86e-07"), typography.pretty("7.92e-07")
    assert typography.joined(low, high, " to ") == "(6.86 to 7.92)\u202f\u00d7\u202f10⁻⁷"
    assert typography.joined(low, typography.pretty("1.02e-06"), " to ") is None
    assert typography.joined("0.1", "0.2", " to ") is None


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (7.39e-7, 2.6e-8, "(7.39 ± 0.26)\u202f\u00d7\u202f10⁻⁷"),
        (-7.39e-7, 2.6e-8, "(\u22127.39 ± 0.26)\u202f\u00d7\u202f10⁻⁷"),
        # An error beyond the last digit is not rounded to it.
        (9.3228e-4, 7.6e-10, None),
        (0.5, 0.01, None),
        (7.39e-7, 0.0, None),
        (None, None, None),
    ],
)
def test_one_power_of_ten_for_value_and_error(value, error, text):
    assert typography.combined(value, error) == text


def test_steady_numbers_keep_their_zeros():
    assert [typography.steady(value) for value in (1.0, 0.0551, 2.1, None)] == [
        "1.000",
        "0.05510",
        "2.100",
        "not finite",
    ]
    assert typography.steady(15.0562, 0.58) == "15.06"
    assert typography.share(0.967) == "96.70\u00a0%"


def test_lists_in_a_sentence():
    assert [typography.listed(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]

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
    [(2.66, "2.66\u00a0s"), (150, "2.5\u00a0min"), (0.0002, "0.2\u00a0ms"), (None, "unknown"), (59.99, "60\u00a0s")],
)
def test_times(value, text):
    assert typography.seconds(value) == text


def test_lists_in_a_sentence():
    assert [typography.listed(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]

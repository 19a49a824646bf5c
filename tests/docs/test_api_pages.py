"""The pages of the API hold every public name, each once, and the site loads nothing from elsewhere."""

from __future__ import annotations

import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

import hessprobe
import hessprobe.optim

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS / "hooks"))
import api  # noqa: E402
import offline  # noqa: E402


@pytest.mark.parametrize(
    ("page", "package", "elsewhere"),
    [("api.md", hessprobe, {"optim"}), ("api-optim.md", hessprobe.optim, set())],
)
def test_every_public_name_has_its_place(page, package, elsewhere):
    named = api.names_on((DOCS / page).read_text(encoding="utf-8"))
    assert set(named) == {package.__name__}
    assert Counter(named[package.__name__]) == Counter(set(package.__all__) - elsewhere)


@pytest.mark.parametrize("package", [hessprobe, hessprobe.optim])
def test_the_address_of_a_name_is_that_of_the_same_object(package):
    for name in set(package.__all__) - {"optim"}:
        module, _, attribute = api.address(package.__name__, name).rpartition(".")
        found, public = getattr(import_module(module), attribute), getattr(package, name)
        assert found is public or found is getattr(public, name)
        assert attribute == name


def test_names_are_put_in_as_directives():
    text = api.on_page_markdown("before\n\n<!-- api: hessprobe: trace\nEstimate -->\n\nafter")
    first, second = (f"::: {each.__module__}.{each.__name__}" for each in (hessprobe.trace, hessprobe.Estimate))
    assert text == f"before\n\n{first}\n\n{second}\n\nafter"


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<a href="https://example.org">paper</a><img src="a.png"><script src="b.js"></script>', []),
        ('<script defer src="https://unpkg.com/shim"></script>', ["https://unpkg.com/shim"]),
        ('<link rel="stylesheet" href="//fonts.example/css">', ["//fonts.example/css"]),
        ('<img alt="x" src="http://example.org/a.png">', ["http://example.org/a.png"]),
    ],
)
def test_what_a_page_would_load_from_other_hosts(html, found):
    assert offline.requests_of(html) == found

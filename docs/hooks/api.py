"""The pages of the API name what is public; where each name is defined is looked up when the site is built."""

from __future__ import annotations

import re
from importlib import import_module
from types import ModuleType
from typing import Any

# <!-- api: hessprobe: trace Hessian -->
_MARK = re.compile(r"<!-- api: (?P<package>[\w.]+): (?P<names>[\w\s]+?) -->")


def address(package: str, name: str) -> str:
    """Return the dotted path of the module that defines the public ``name``, and the name there."""
    found = getattr(import_module(package), name)
    if isinstance(found, ModuleType):
        # A package that bears the name of its function, see hessprobe.callable_package.
        found = getattr(found, name)
    return f"{found.__module__}.{found.__qualname__}"


def names_on(markdown: str) -> dict[str, list[str]]:
    """Return the public names that a page asks for, by package."""
    named: dict[str, list[str]] = {}
    for mark in _MARK.finditer(markdown):
        named.setdefault(mark["package"], []).extend(mark["names"].split())
    return named


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the documentation of each name where a page asks for it."""

    def blocks(mark: re.Match[str]) -> str:
        return "\n\n".join(f"::: {address(mark['package'], name)}" for name in mark["names"].split())

    return _MARK.sub(blocks, markdown)

"""Names that are loaded on first use: there for tab completion before, and all of them to be had."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pkgutil import iter_modules

import pytest

import hessprobe

PACKAGES = ["hessprobe", *(f"hessprobe.{each.name}" for each in iter_modules(hessprobe.__path__) if each.ispkg)]


@pytest.mark.parametrize("name", PACKAGES)
def test_names_loaded_on_first_use_are_listed_and_there(name: str) -> None:
    package = import_module(name)
    if "__getattr__" in vars(package):
        assert "__dir__" in vars(package)
    listed = getattr(package, "__all__", ())
    assert set(listed) <= set(dir(package))
    for each in dir(package):
        assert hasattr(package, each), each
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_the_kind'"):
        _ = package.nothing_of_the_kind


def test_completion_needs_no_torch() -> None:
    code = "import sys, hessprobe; assert 'measure' in dir(hessprobe); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

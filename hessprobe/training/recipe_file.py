"""Recipes in TOML files, those shipped with the package among them."""

from __future__ import annotations

import dataclasses
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from hessprobe import checks
from hessprobe.training.recipe import Recipe

_SUFFIX = ".toml"


def shipped() -> list[str]:
    """Return the names of the recipes that come with the package, sorted."""
    folder = resources.files("hessprobe.training") / "recipes"
    return sorted(entry.name.removesuffix(_SUFFIX) for entry in folder.iterdir() if entry.name.endswith(_SUFFIX))


_LARGEST = 1 << 16


def read_recipe(source: str | Path) -> dict[str, Any]:
    """Return the values that a recipe sets, so that others can be put over them: ``Recipe(**{**values, ...})``.

    Args:
        source: a name in ``shipped()``, or the path of a TOML file whose keys are fields of ``Recipe``.

    Raises:
        ValueError: no such recipe, not TOML, or an unknown key; the message names the nearest one.
    """
    name, values = str(source), _parse(source)
    fields = [each.name for each in dataclasses.fields(Recipe)]
    for key in values:
        if key not in fields:
            near = checks.nearest(key, fields)
            raise ValueError(f"{name} has the unknown key {key!r}.{near} Known: {', '.join(fields)}.")
    return values


def load_recipe(source: str | Path, **changes: Any) -> Recipe:
    """Return a recipe with some of its values changed.

    Raises:
        TypeError, ValueError: see ``read_recipe`` and ``Recipe``.
    """
    return Recipe(**{**read_recipe(source), **changes})


def _parse(source: str | Path) -> dict[str, Any]:
    name = str(source)
    try:
        return tomllib.loads(_text(source))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name} is not TOML: {error}. Write lines of 'key = value'.") from error
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply. Write lines of 'key = value'.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text. Write lines of 'key = value'.") from error


def _text(source: str | Path) -> str:
    name, known = str(source), shipped()
    if name in known:
        return (resources.files("hessprobe.training") / "recipes" / f"{name}{_SUFFIX}").read_text("utf-8")
    path = Path(source)
    if not path.is_file():
        near = checks.nearest(name, known)
        raise ValueError(f"recipe must be a TOML file that exists or one of {', '.join(known)}; got {name!r}.{near}")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"recipe must be at most {_LARGEST:,} bytes; got {name!r} of {path.stat().st_size:,}.")
    return path.read_text("utf-8")

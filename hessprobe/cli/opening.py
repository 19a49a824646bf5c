"""The options about files of other libraries, given to every command that opens one."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Annotated, Any

import typer

from hessprobe.cli import options
from hessprobe.models.spec import LOSSES, NORMALIZATIONS, TASKS, Opening

_PANEL = "Files of other libraries"


def _option(kind: Any, flag: str, help: str, metavar: str | None = None) -> Any:
    return Annotated[kind, typer.Option(flag, metavar=metavar, help=help, rich_help_panel=_PANEL)]


_OPTIONS: dict[str, Any] = {
    "task": _option(str | None, "--task", f"Of a transformers model: {', '.join(TASKS)}.", "NAME"),
    "key": _option(str | None, "--key", "Entry of the file that holds the weights, e.g. state_dict_ema.", "NAME"),
    "loss": _option(str | None, "--loss", f"{', '.join(LOSSES)}, or file.py:function.", "NAME"),
    "image_size": _option(
        int | None, "--image-size", "Scale images to this shorter side and cut a square of it.", "PIXELS"
    ),
    "normalize": _option(
        str | None,
        "--normalize",
        f"Mean and deviation of the channels: {', '.join(NORMALIZATIONS)} (by default own: those of the data).",
        "NAME",
    ),
    "text_column": _option(str | None, "--text-column", "Column or key of the texts.", "NAME"),
    "label_column": _option(str | None, "--label-column", "Column, key or array of the targets.", "NAME"),
    "tokenizer": _option(str | None, "--tokenizer", "Folder of the tokenizer; by default the model's.", "FOLDER"),
    "context": _option(int | None, "--context", "Tokens in an example.", "N"),
    "pack": _option(bool, "--pack", "Join the texts and cut them into examples of --context tokens."),
}


def opens_foreign(command: Callable[..., None]) -> Callable[..., None]:
    """Return ``command`` with these options, which it receives together as ``opening``."""
    hints = typing.get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    own = [each.replace(annotation=hints[name]) for name, each in signature.parameters.items() if name != "opening"]
    defaults = {each.name: each.default for each in fields(Opening)}
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, keyword, default=defaults[name], annotation=kind) for name, kind in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        opening = Opening(**{name: kwargs.pop(name) for name in _OPTIONS if name in kwargs})
        command(*args, opening=opening, **kwargs)

    as_any: Any = run
    as_any.__signature__ = signature.replace(parameters=[*own, *added])
    as_any.__annotations__ = {each.name: each.annotation for each in (*own, *added)}
    return run


def check_opening(opening: Opening) -> None:
    """Refuse what can be refused of these options before anything heavy is loaded.

    Raises:
        UsageError: a name that does not exist, or a number outside its range.
    """
    for flag, value, known in (("--task", opening.task, TASKS), ("--normalize", opening.normalize, NORMALIZATIONS)):
        if value is not None:
            options.choice(flag, value, known)
    options.at_least("--image-size", opening.image_size, 1)
    options.at_least("--context", opening.context, 2)


def arguments_of(request: Any) -> dict[str, Any]:
    """Return the options of a request for its record, these beside the others."""
    given: dict[str, Any] = asdict(request)
    opening = given.pop("opening", {})
    return {**given, **opening}

"""``hessprobe info``: what a checkpoint says about itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe.cli import options
from hessprobe.cli.skeleton import deliver

if TYPE_CHECKING:
    from rich.console import Console


def info(
    ckpt: Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint, or a file or folder of weights.")],
    json: options.Json = None,
    debug: options.Debug = False,  # noqa: ARG001  # read by guarded
) -> None:
    """Show what a checkpoint says about itself: model, data, recipe, metrics, versions, hash.

    Of weights that another program saved: format, tensors, modules, dtype, and the command that measures them.
    """
    run(ckpt, json)


def run(ckpt: str, json: str | None) -> None:
    """Print the description of the checkpoint, and write it as a record where asked."""
    options.check_outputs(json=json)
    options.refuse_record(ckpt)

    from hessprobe import report
    from hessprobe.cli import render

    described = _described(ckpt)
    record = report.build_record("info", [], arguments={"ckpt": ckpt}, seed=None, checkpoint=described)

    def show(console: Console) -> None:
        lines = list(_flat(described, ""))
        width = max(len(name) for name, _ in lines)
        for name, value in lines:
            render.print_line(console, f"{name.ljust(width)}  {value}")

    deliver(record, json, show)


def _described(ckpt: str) -> dict[str, Any]:
    from hessprobe.cli.load import describe_checkpoint, is_own_file
    from hessprobe.models.sight import describe_file
    from hessprobe.training import load_checkpoint

    if Path(ckpt).is_dir() or not is_own_file(ckpt):
        return describe_file(ckpt)
    return describe_checkpoint(load_checkpoint(ckpt))


def _flat(entry: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in entry.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", f"{value:.6g}" if isinstance(value, float) else str(value)

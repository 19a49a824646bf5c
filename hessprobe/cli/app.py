"""The program: commands, version, entry point."""

from __future__ import annotations

from typing import Annotated

import typer

from hessprobe.cli.commands.bench import bench
from hessprobe.cli.commands.info import info
from hessprobe.cli.commands.measure import measure
from hessprobe.cli.commands.train import train
from hessprobe.cli.failures import guarded

app = typer.Typer(
    name="hessprobe",
    help="Measure the curvature of trained networks: every number with its error and its cost.",
    epilog="Exit codes: 0 done, 1 the work failed, 2 wrong usage, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"hessprobe {version('hessprobe')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Measure the curvature of trained networks: every number with its error and its cost."""


app.command()(guarded(train))
app.command()(guarded(measure))
app.command()(guarded(info))
app.command()(guarded(bench))


def main() -> None:
    """Run the program on the arguments of the process."""
    app(prog_name="hessprobe")

"""The program: commands, version, entry point."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hessprobe.cli import process, settings, usage
from hessprobe.cli.commands.bench import bench
from hessprobe.cli.commands.compare import compare
from hessprobe.cli.commands.demo import demo
from hessprobe.cli.commands.doctor import doctor
from hessprobe.cli.commands.info import info
from hessprobe.cli.commands.invariance import invariance
from hessprobe.cli.commands.landscape import landscape
from hessprobe.cli.commands.measure import measure
from hessprobe.cli.commands.plot import plot
from hessprobe.cli.commands.repeat import repeat_
from hessprobe.cli.commands.report import report
from hessprobe.cli.commands.sharpness import sharpness
from hessprobe.cli.commands.track import track
from hessprobe.cli.commands.train import train
from hessprobe.cli.commands.validate import validate
from hessprobe.cli.process import guarded

app = typer.Typer(
    name="hessprobe",
    help="Measure the curvature of trained networks: every number with its error and its cost.",
    epilog="Exit codes: 0 done, 1 the work failed, 2 wrong usage, 130 interrupted, 143 terminated.",
    no_args_is_help=True,
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
app.command()(guarded(invariance))
app.command()(guarded(sharpness))
app.command()(guarded(landscape))
app.command()(guarded(track))
app.command()(guarded(compare))
app.command()(guarded(plot))
app.command()(guarded(info))
app.command()(guarded(bench))
app.command()(guarded(validate))
app.command()(guarded(report))
app.command()(guarded(demo))
app.command()(guarded(doctor))
app.command()(guarded(repeat_))


def main(last: bool = False) -> None:
    """Run the program on the arguments of the process.

    Args:
        last: nothing but the end of the process follows; see ``process.handled``.

    Raises:
        SystemExit: always, with the exit code.
    """
    process.prepare()
    with process.handled(last):
        code = _run()
    sys.exit(process.exit_code(code))


def _run() -> int:
    group = typer.main.get_command(app)
    try:
        line = settings.merged(sys.argv[1:], group)
    except process.UsageError as error:
        process.say(f"error: {error}")
        return process.WRONG_USAGE
    try:
        with process.naming(line.named):
            code = app(list(line.words), prog_name="hessprobe", standalone_mode=False)
    except usage.ParserError as error:
        if usage.is_help(error):
            typer.echo(str(error))
        else:
            process.say(f"error: {line.named(usage.sentence(error, line.words, group))}")
        return process.WRONG_USAGE
    except typer.Abort:
        return process.FAILED
    except KeyboardInterrupt:
        return process.INTERRUPTED
    return code if isinstance(code, int) else process.OK

"""How failures reach the user: one line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, cast

import typer

from hessprobe.cli import outputs, process, ranks, threads
from hessprobe.cli.process import shown
from hessprobe.cli.wording import said_by

OK = 0
FAILED = 1
WRONG_USAGE = 2
INTERRUPTED = process.INTERRUPTED

_Parameters = ParamSpec("_Parameters")


class UsageError(Exception):
    """The command line asks for something that does not exist or makes no sense."""


class QuotedError(Exception):
    """A failure inside the user's own file, whose message speaks Python, not options."""


@contextmanager
def as_usage() -> Iterator[None]:
    """Turn the argument errors of the library into usage errors inside the block."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(*error.args[:1]) from error


def guarded(command: Callable[_Parameters, None]) -> Callable[_Parameters, None]:
    """Return ``command`` with every failure turned into one line on stderr and an exit code.

    The traceback is shown where the command's ``debug`` argument is true. What a command is given beside
    its own options is in ``hessprobe.cli.outputs``.
    """
    added = outputs.added_options(command.__name__, inspect.signature(command).parameters)

    @functools.wraps(command)
    def run(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> None:
        debug = bool(kwargs.get("debug"))
        given = {name: kwargs.pop(name, outputs.DEFAULTS.get(name, False)) for name in added}
        with _one_line_warnings(debug), outputs.invocation(command.__name__, kwargs, **given):
            try:
                with as_usage():
                    threads.check(outputs.current().threads)
                with ranks.joined(command.__name__, kwargs, outputs.NAMES) as mine:
                    cast(Any, command)(*args, **mine)
            except (typer.Exit, typer.Abort, BrokenPipeError):
                raise
            except KeyboardInterrupt:
                say("interrupted")
                raise typer.Exit(INTERRUPTED) from None
            except Exception as error:
                if process.asked():
                    say("interrupted")
                    raise typer.Exit(INTERRUPTED) from None
                if not ranks.speaks() and _is_wrong_usage(error):
                    raise typer.Exit(WRONG_USAGE) from None
                fail(error, debug)

    return _with_options(run, added)


def _with_options(command: Callable[_Parameters, None], added: Mapping[str, Any]) -> Callable[_Parameters, None]:
    if not added:
        return command
    signature = inspect.signature(command, eval_str=True)
    *others, last = signature.parameters.values()
    usual = outputs.DEFAULTS
    more = [
        inspect.Parameter(name, last.kind, default=usual.get(name, False), annotation=each)
        for name, each in added.items()
    ]
    changed = cast(Any, command)
    changed.__signature__ = signature.replace(parameters=[*others, *more, last])
    changed.__annotations__ = {each.name: each.annotation for each in (*others, *more, last)}
    return command


def fail(error: Exception, debug: bool) -> None:
    """Say what went wrong and leave with the exit code that fits.

    Raises:
        typer.Exit: always.
    """
    say(f"{ranks.prefix()}error: {one_line(error)}")
    if debug:
        traceback.print_exception(error)
    raise typer.Exit(WRONG_USAGE if _is_wrong_usage(error) else FAILED) from None


def ended_by(error: BaseException) -> BaseException:
    """Return what ended the work: the user's wish to leave, also where foreign code made something else of it."""
    return KeyboardInterrupt() if process.asked() else error


def leave(failure: BaseException | None, debug: bool) -> None:
    """Leave with the exit code of what ended the work early, once everything known is written; None goes on.

    Raises:
        typer.Exit: something did.
    """
    if isinstance(failure, KeyboardInterrupt):
        raise typer.Exit(INTERRUPTED)
    if isinstance(failure, Exception):
        fail(failure, debug)


def entries(failure: BaseException | None) -> dict[str, Any]:
    """Return the ``flags`` and ``errors`` of a record whose work ended with ``failure``, or with nothing."""
    if failure is None or isinstance(failure, KeyboardInterrupt):
        return {"flags": () if failure is None else ("interrupted",), "errors": None}
    return {"flags": ("failed",), "errors": (one_line(failure),)}


def say(message: str) -> None:
    """Print one line on stderr."""
    # Where nobody reads them any more, messages end nothing.
    with contextlib.suppress(BrokenPipeError, ValueError):
        print(f"hessprobe: {shown(message)}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """Return what ``error`` says on one line; a lack of memory with the options that need less of it."""
    needed = _bytes_wanted(error)
    if needed is not None:
        return (
            f"not enough memory: {needed} more was needed. Pass a smaller --batch-size, a --memory below what is free "
            "(products are then made in smaller pieces), or fewer --examples."
        )
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = _os_sentence(error)
    else:
        text = " ".join((str(error) if isinstance(error, QuotedError) else said_by(error)).split())
    expected = isinstance(error, (UsageError, QuotedError, ValueError, TypeError, OSError)) or _is_ours(error)
    return text if expected and text else f"{type(error).__name__}: {text} (--debug shows where)"


def _os_sentence(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    mend = "Free some space, or choose another folder" if full else "Check the path and its permissions"
    return f"{error.filename} cannot be {'written' if full else 'used'}: {error.strerror}. {mend}."


def _is_wrong_usage(error: Exception) -> bool:
    from hessprobe.errors import PlainWeightsError

    # Nothing is wrong with such a file: options that say whose weights they are were left out.
    return isinstance(error, UsageError | PlainWeightsError)


def _is_ours(error: BaseException) -> bool:
    from hessprobe.errors import HessprobeError

    return isinstance(error, HessprobeError)


def _bytes_wanted(error: BaseException) -> str | None:
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError":
        found = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
        return found.group(1) if found else "some"
    if isinstance(error, MemoryError):
        return "some"
    found = re.search(r"DefaultCPUAllocator: .*?you tried to allocate (\d+) bytes", text)
    return f"{int(found.group(1)) / 1e9:.3g} GB" if found else None


@contextmanager
def _one_line_warnings(debug: bool) -> Iterator[None]:
    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        # Warnings of other libraries are for whoever works on this program, not for whoever uses it.
        if debug or category.__module__.startswith("hessprobe"):
            where = f" ({filename}:{lineno})" if debug else ""
            said = said_by(message) if isinstance(message, Warning) else message
            say(f"warning: {said}{where}")

    with warnings.catch_warnings():
        warnings.showwarning = cast(Any, show)
        yield

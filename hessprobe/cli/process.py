"""The process of a command: its streams, what ends it, its threads and ranks, and how failures reach the user.

**Ends.** The streams are there, able to show any text, and out of reach of what a file says. The first Ctrl-C or
SIGTERM ends the work so that what is known is shown; further ones do not interrupt that output. A failure is one line
on stderr and an exit code.

**Ranks.** Under ``torchrun`` the ranks share the products out, and one of them speaks and writes. Every rank runs the
whole command on the same arguments. Those beside the first are silent, and write what they would write into a folder of
their own that goes with them, so that no code below has to know on which rank it runs.

**Threads.** As many as ``--threads`` says, or as a short trial finds the fastest. On a machine that others keep busy
the threads of one operation wait for each other, by spinning, until the last has been given a core: a product of the
digits network, 2 to 3 ms of one core, took 15 to 100 ms on two busy ones, and ``train`` 271 s in place of 1.3. An idle
machine gains from threads where operations are large. Neither is known but by trying. Left out: the load average, which
lags by a minute and does not say what a large operation gains, and a trial of the network itself, which takes seconds
where it matters most.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import gc
import inspect
import itertools
import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, cast

import typer

from hessprobe.cli.outputs import (
    DEFAULTS,
    NAMES,
    SHARED,
    Invocation,
    added_options,
    clear,
    current_invocation,
    default_figure,
    invocation,
)
from hessprobe.cli.wording import said_by

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM

_ENDING = b"hessprobe: ending; press Ctrl-C again to quit at once\n"
_LEAVE, _LEAVE_HARD = 3, 4

# Control characters of ASCII and Latin-1, but for the tab: they move the cursor, color, or rename the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass
class _State:
    # How often the process was asked to end, by what first, and whether work is going on that must not be interrupted.
    asked: int = 0
    first: int = 0
    shielded: bool = False


_state = _State()


def prepare() -> None:
    """Open what is closed on nothing, and let every stream escape what its encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Closed by who started the process; without this its messages would go to the other stream.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # for the process's life
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def shown(text: str) -> str:
    r"""Return ``text`` on one line with control characters written out (``\x1b``), as it may come from a file."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def at_words(text: str, width: int) -> list[str]:
    """Return a line as lines of at most ``width`` characters, broken between words; a longer word stays whole."""
    if len(text) <= width:
        return [text]
    rules: dict[str, bool] = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, width, subsequent_indent="  ", **rules)  # type: ignore[arg-type]


@contextmanager
def handled(last: bool = False) -> Iterator[None]:
    """Take Ctrl-C and SIGTERM over for the block.

    The first raises KeyboardInterrupt (SIGTERM too); the second only says that the end is near, as what is known is
    being printed and written by then; the third leaves at once, without a traceback. A signal that is ignored when the
    block begins (``nohup``) stays ignored.

    Args:
        last: the process ends after the block, whose outcome decides the exit code: signals are ignored from then on.
    """
    global _state
    _state = _State()
    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) != signal.SIG_IGN]
        before = {number: signal.signal(number, _on_signal) for number in numbers}
    try:
        yield
    finally:
        _state.shielded = True
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if last else handler)
            # While the interpreter takes itself down, a signal could only change the exit code or show a traceback.
            atexit.register(signal.signal, number, signal.SIG_IGN)


@contextmanager
def shielded() -> Iterator[None]:
    """Let the block, which writes what is known, run to its end although the user asks to leave meanwhile.

    Raises:
        SystemExit: at the end of the block, where the user asked during it and not before.
    """
    asked_before = _state.asked
    _state.shielded = True
    try:
        yield
    finally:
        _state.shielded = False
    if _state.asked and not asked_before:
        raise SystemExit(exit_code(INTERRUPTED))


def asked() -> bool:
    """Return whether the user has asked for an end, also where foreign code has swallowed the exception.

    Compiled code that imports modules does: what follows then fails in strange ways, or goes on as if nothing were.
    """
    return _state.asked > 0


def exit_code(code: int) -> int:
    """Return ``code``, or that of a termination where SIGTERM and not Ctrl-C was what ended the work."""
    return TERMINATED if code == INTERRUPTED and _state.first == signal.SIGTERM else code


def _on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signature of handlers
    _state.asked += 1
    _state.first = _state.first or number
    if _state.asked == 1 and not _state.shielded:
        raise KeyboardInterrupt
    if _state.asked == _LEAVE - 1:
        # Not print: its buffer may be what the signal interrupts.
        os.write(2, _ENDING)
    if _state.asked == _LEAVE:
        raise SystemExit(exit_code(INTERRUPTED))
    if _state.asked >= _LEAVE_HARD:
        os._exit(exit_code(INTERRUPTED))


# Numbers the groups that this process has joined.
_joined = itertools.count()


def rank_count() -> int:
    """Return how many processes ``torchrun`` has started, 1 where it has not."""
    if "RANK" not in os.environ:
        return 1
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Return whether this process prints and writes."""
    return rank_count() == 1 or os.environ["RANK"] == "0"


@contextmanager
def joined_ranks(command: str, arguments: Mapping[str, Any], outputs: frozenset[str]) -> Iterator[dict[str, Any]]:
    """Run ``command`` inside the block with the ranks that ``torchrun`` has started; yield the arguments to give it.

    Args:
        command: its name.
        arguments: what it was called with.
        outputs: those that name files to be written.

    Raises:
        ValueError: the command shares nothing out.
    """
    if rank_count() == 1:
        yield dict(arguments)
        return
    if command not in SHARED:
        raise ValueError(
            f"{command} must be run by one process; got {rank_count()} of torchrun. Start it without torchrun; "
            f"{', '.join(sorted(SHARED))} share their work out over ranks."
        )
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from hessprobe.hvp import pool
    from hessprobe.hvp.answering import Watchman, answered

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # A store of its own for every command: what an earlier group of the same ranks has left in it would be taken for
    # news of this one.
    seconds = current_invocation().timeout
    with answered(seconds):
        store, rank, count = next(rendezvous("env://", timeout=timedelta(seconds=seconds)))
        store = PrefixStore(f"hessprobe-{next(_joined)}", store)
        watch = Watchman(store, rank, count, seconds)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, timeout=watch.patience, store=store, rank=rank, world_size=count)
    try:
        with ExitStack() as stack, _watched(watch):
            mine = dict(arguments)
            if not speaks():
                if "out" in mine and mine["out"] is None:
                    mine["out"] = default_figure(command, mine)
                mine = _aside(mine, outputs, stack)
            # The journal of a stopped run is read by all before one of them goes on writing it.
            dist.barrier()
            stack.enter_context(pool.shared_out(cast(Any, dist.group.WORLD), watch))
            yield mine
            dist.barrier()
    finally:
        # What outlives the group and speaks through it makes torch abort at the end of the process.
        gc.collect()
        dist.destroy_process_group()


# Who says which ranks have ended, while there are several.
_watchman: ContextVar[Any] = ContextVar("watchman", default=None)


@contextmanager
def _watched(watch: Any) -> Iterator[None]:
    """Let the other ranks see that this one lives, and ``ended_by`` ask for them, inside the block.

    Raises:
        RanksError: an operation of all ranks has failed inside, and one of them is lost.
    """
    from hessprobe.hvp.answering import answered

    token = _watchman.set(watch)
    left: list[typer.Exit] = []
    try:
        with watch, answered(None, watch):
            try:
                yield
            except typer.Exit as done:
                left.append(done)  # it is a RuntimeError, and what went wrong has been said
        if left:
            raise left[0]
    finally:
        _watchman.reset(token)


def check_timeout(seconds: float) -> None:
    """Refuse what no rank can keep to.

    Raises:
        ValueError: below a second, or not finite.
    """
    if not 1 <= seconds < float("inf"):
        raise ValueError(f"--timeout must be a number of seconds, 1 or more; got {seconds:g}. Leave it out for 1800.")


def _aside(arguments: Mapping[str, Any], outputs: frozenset[str], stack: ExitStack) -> dict[str, Any]:
    """Return the arguments with every output in a folder that is removed at the end, beside copies of what is there."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hessprobe-rank-")))
    nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # the stack closes it
    stack.enter_context(nowhere)
    stack.enter_context(redirect_stdout(nowhere))
    stack.enter_context(redirect_stderr(nowhere))
    mine = dict(arguments)
    for name in sorted(outputs & set(arguments)):
        given = arguments[name]
        if not isinstance(given, str) or given == "-":
            continue
        place = folder / name
        place.mkdir()
        path = Path(given)
        mine[name] = str(place / path.name)
        if path.parent.is_dir():
            # The file itself, its journal, what is kept of a track, the state of a stopped training.
            names = (path.name, f"{path.stem}-resume{path.suffix}")
            for there in path.parent.iterdir():
                if there.is_file() and (there.name in names or there.name.startswith(f"{path.name}.")):
                    shutil.copyfile(there, place / there.name)
    return mine


def rank_prefix() -> str:
    """Return what stands before a message of this process, so that it is known whose it is."""
    return "" if speaks() else f"rank {os.environ['RANK']}: "


AUTO = "auto"

# Seconds that the trial takes at most, and how often each number has its turn.
_LONGEST, _ROUNDS = 0.15, 12
# More threads must be this many times as fast as fewer: they take cores from others.
_WORTH = 1.15

_settled: list[int] = []


def check_threads(threads: str) -> None:
    """Refuse what is no number of threads.

    Raises:
        ValueError: neither a whole number >= 1 nor ``auto``.
    """
    if threads != AUTO and not (threads.isascii() and threads.isdigit() and int(threads) >= 1):
        raise ValueError(
            f"--threads must be a whole number, 1 or more, or auto; got {threads!r}. Leave it out to have it chosen."
        )


def settle_threads(before: int | None = None) -> int:
    """Let torch compute with the threads that the command was given, and return their number.

    With ``auto`` one trial serves the process, and never takes more threads than torch has by itself: one a core, or
    what the environment says.

    Args:
        before: those of the run that is gone on with, which ``auto`` then takes: their number decides how sums round.
    """
    import torch

    asked = current_invocation().threads
    if asked == AUTO and before is not None:
        torch.set_num_threads(before)
        _settled[:] = [before]
    elif asked != AUTO:
        torch.set_num_threads(int(asked))
        _settled[:] = [int(asked)]
    elif not _settled:
        torch.set_num_threads(_fastest(torch.get_num_threads()))
        _settled[:] = [torch.get_num_threads()]
    return _settled[0]


def threads_identity() -> int | str:
    """Return what a stopped run is known by: a number that was asked for, or that it was left open."""
    asked = current_invocation().threads
    return asked if asked == AUTO else int(asked)


def _fastest(most: int) -> int:
    if most < 2:
        return most
    import torch

    left, right = torch.rand(256, 256), torch.rand(256, 256)

    def work(threads: int) -> None:
        torch.set_num_threads(threads)
        # A matrix product and passes over memory, of the sizes that a layer of a small network has.
        (left @ right).relu_().add_(left).sum()

    counts = [most, *(2**power for power in range(most.bit_length()) if 2**power < most)]
    return choose(counts, work, time.perf_counter)


def choose(counts: list[int], work: Callable[[int], None], clock: Callable[[], float]) -> int:
    """Return the number of threads with the least time in all, fewer where they are nearly as fast.

    All numbers have their turn in every round, so that a moment in which the machine is busy slows none alone; means
    count, not the fastest rounds, as waiting is what is to be found out.

    Args:
        counts: numbers of threads.
        work: does the same work with so many threads.
        clock: seconds.
    """
    spent = dict.fromkeys(counts, 0.0)
    for count in counts:
        work(count)  # threads are started
    began = clock()
    for _ in range(_ROUNDS):
        for count in counts:
            start = clock()
            work(count)
            spent[count] += clock() - start
        if clock() - began > _LONGEST:
            break
    return _fewest(spent)


def _fewest(spent: Mapping[int, float]) -> int:
    best, *others = sorted(spent)
    for count in others:
        if spent[count] * _WORTH < spent[best]:
            best = count
    return best


OK = 0
FAILED = 1
WRONG_USAGE = 2
# EX_TEMPFAIL of sysexits.h: the same command may well succeed when it is started again.
RANK_LOST = 75

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
    its own options is in ``hessprobe.cli.process``.
    """
    added = added_options(command.__name__, inspect.signature(command).parameters)

    @functools.wraps(command)
    def run(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> None:
        debug = bool(kwargs.get("debug"))
        given = {name: kwargs.pop(name, DEFAULTS.get(name, False)) for name in added}
        with _one_line_warnings(debug), invocation(command.__name__, kwargs, **given):
            try:
                with as_usage():
                    check_threads(current_invocation().threads)
                    check_timeout(current_invocation().timeout)
                    _require_one(current_invocation())
                began = time.perf_counter()
                with joined_ranks(command.__name__, kwargs, NAMES) as mine:
                    cast(Any, command)(*args, **mine)
                detail(f"{command.__name__} took {time.perf_counter() - began:.1f} s")
            except (typer.Exit, typer.Abort, BrokenPipeError):
                raise
            except KeyboardInterrupt as error:
                if isinstance(lost := ended_by(error), Exception):
                    fail(lost, debug)
                say("interrupted")
                raise typer.Exit(INTERRUPTED) from None
            except Exception as error:
                if asked() and not _is_lost(error):
                    say("interrupted")
                    raise typer.Exit(INTERRUPTED) from None
                fail(error, debug)

    return _with_options(run, added)


def _with_options(command: Callable[_Parameters, None], added: Mapping[str, Any]) -> Callable[_Parameters, None]:
    if not added:
        return command
    signature = inspect.signature(command, eval_str=True)
    given = list(signature.parameters.values())
    others, last = given[:-1], given[-1:]
    usual, kind = DEFAULTS, last[0].kind if last else inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter(name, kind, default=usual.get(name, False), annotation=each) for name, each in added.items()
    ]
    changed = cast(Any, command)
    changed.__signature__ = signature.replace(parameters=[*others, *more, *last])
    changed.__annotations__ = {each.name: each.annotation for each in (*others, *more, *last)}
    return command


# How a message about an option that was not typed names it instead.
_named: ContextVar[Callable[[str], str]] = ContextVar("named", default=str)  # a function


@contextmanager
def naming(named: Callable[[str], str]) -> Iterator[None]:
    """Pass what went wrong through ``named`` inside the block before it is said."""
    token = _named.set(named)
    try:
        yield
    finally:
        _named.reset(token)


def fail(error: Exception, debug: bool) -> None:
    """Say what went wrong and leave with the exit code that fits; wrong usage is said by one rank alone.

    Raises:
        typer.Exit: always.
    """
    code = RANK_LOST if _is_lost(error) else WRONG_USAGE if _is_wrong_usage(error) else FAILED
    if code == WRONG_USAGE and not speaks():
        raise typer.Exit(code) from None
    # Of the silent ranks too: what befell one of them, or that it has lost another, it may be the only one to know.
    with contextlib.nullcontext() if speaks() else redirect_stderr(sys.__stderr__ or sys.stderr):
        say(f"{rank_prefix()}error: {_named.get()(one_line(error))}")
        if debug:
            traceback.print_exception(error)
    raise typer.Exit(code) from None


def ended_by(error: BaseException) -> BaseException:
    """Return what ended the work: the user's wish to leave, also where foreign code made something else of it.

    A launcher ends all ranks where one has died: then that is what ended it.
    """
    if _is_lost(error) or not asked():
        return error
    watch = _watchman.get()
    lost = watch.lost() if watch is not None and _state.first == signal.SIGTERM else None
    return KeyboardInterrupt() if lost is None else lost


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


def _require_one(run: Invocation) -> None:
    if run.quiet and run.verbose:
        raise ValueError("--quiet must be given without --verbose; got both. Leave one of them out.")


def note(message: str) -> None:
    """Say what a reader may want to know and nobody must, unless ``--quiet`` was given."""
    if not current_invocation().quiet:
        say(f"note: {message}")


def detail(message: str) -> None:
    """Say what is done, where ``--verbose`` was given."""
    if current_invocation().verbose:
        say(message)


def say(message: str) -> None:
    """Print one line on stderr; on a terminal that is too narrow for it several, broken between words."""
    # Where nobody reads them any more, messages end nothing.
    with contextlib.suppress(BrokenPipeError, ValueError):
        clear()
        line = f"hessprobe: {shown(message)}"
        width = shutil.get_terminal_size().columns if sys.stderr.isatty() else len(line)
        print("\n".join(at_words(line, width)), file=sys.stderr)


def one_line(error: BaseException) -> str:
    """Return what ``error`` says on one line; a lack of memory with the options that need less of it."""
    needed = _bytes_wanted(error)
    if needed is not None:
        return (
            f"not enough memory: {needed} more was needed. Pass a smaller --batch-size, a --memory below what is free "
            "(products are then made in smaller pieces), or fewer --examples."
        )
    if isinstance(error, OSError) and error.strerror and (error.filename is not None or error.errno in _FULL):
        text = _os_sentence(error)
    else:
        text = " ".join((str(error) if isinstance(error, QuotedError) else said_by(error)).split())
    expected = isinstance(error, (UsageError, QuotedError, ValueError, TypeError, OSError)) or _is_ours(error)
    return text if expected and text else f"{type(error).__name__}: {text} (--debug shows where)"


_FULL = (errno.ENOSPC, errno.EDQUOT)


def _os_sentence(error: OSError) -> str:
    full = error.errno in _FULL
    mend = "Free some space, or choose another folder" if full else "Check the path and its permissions"
    # Files are written by name; what has none is where the program prints.
    where = "standard output" if error.filename is None else error.filename
    return f"{where} cannot be {'written' if full else 'used'}: {error.strerror}. {mend}."


def _is_wrong_usage(error: Exception) -> bool:
    from hessprobe.errors import PlainWeightsError

    # Nothing is wrong with such a file: options that say whose weights they are were left out.
    return isinstance(error, UsageError | PlainWeightsError)


def _is_lost(error: BaseException) -> bool:
    from hessprobe.errors import RanksError

    return isinstance(error, RanksError)


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

"""What a run writes and where: outputs that name no input and replace nothing of others, and progress on stderr.

Progress is bars or one line where a person is watching, a plain line a minute where nobody is.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe import files
from hessprobe.files import Lock, check_output

if TYPE_CHECKING:
    from hessprobe.progress import Update


# The arguments of commands that are written to; all others can only name what is read.
NAMES = frozenset({"json", "csv", "out", "interactive", "markdown", "report"})

Force = Annotated[
    bool,
    typer.Option("--force", help="Replace output files that hessprobe did not write.", rich_help_panel="Output"),
]

# Commands whose products are written down beside their record.
RESUMABLE = frozenset({"measure", "sharpness", "compare", "invariance", "validate", "repeat"})

Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on from the journal that a stopped run of this command left beside --json, to the same numbers.",
        rich_help_panel="Output",
    ),
]

TrustData = Annotated[
    bool,
    typer.Option(
        "--trust-data",
        help="Let a checkpoint name its data by a path or a name on the network.",
        rich_help_panel="What is measured",
    ),
]

Threads = Annotated[
    str,
    typer.Option(
        "--threads",
        metavar="N|auto",
        help="Threads to compute with; auto tries for a moment which number is the fastest.",
        rich_help_panel="How it is computed",
    ),
]

# Commands whose time goes into products, steps of training or points, which ranks can share.
SHARED = frozenset({"measure", "sharpness", "compare", "track", "train", "landscape", "invariance"})

Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        help="Of several ranks: how long one may be waited for; then all others end with what is known.",
        rich_help_panel="How it is computed",
    ),
]

Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="No progress and no notes: results, warnings and errors.", rich_help_panel="Output"
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Also say what is done, and how long it took, on stderr.", rich_help_panel="Output"
    ),
]

Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        help="Options from a file; those typed count first, then HESSPROBE_* variables.",
        rich_help_panel="Output",
    ),
]

# Of the options that commands are given beside their own; False where nothing else is said.
DEFAULTS: dict[str, Any] = {"threads": "auto", "config": None, "timeout": 1800.0}

_HEAD = 4096
# Nothing that is recognised by its content is larger.
_LARGEST = 2**26
_RECORD = re.compile(rb'\A\s*\{\s*"schema":\s*"hessprobe\.')
_TABLE = re.compile(rb"\A(?:measure,operator,|step,epoch,checkpoint,)")
_TIMES = re.compile(rb"torch \S+, \d+ threads, ")
_PAGE = re.compile(rb'content="hessprobe"|hessprobe-landscape')
_FIGURE = re.compile(rb"\A(?:\x89PNG|<\?xml|%PDF).*hessprobe", re.DOTALL)
_CHECKPOINT = re.compile(rb"hessprobe\.checkpoint")
_SIGNS = {"json": _RECORD, "csv": _TABLE, "markdown": _TIMES, "interactive": _PAGE, "report": _PAGE}


@dataclass(frozen=True)
class Invocation:
    """One run of a command.

    Attributes:
        command: its name.
        inputs: the files that its arguments name, resolved.
        force: whether files that are not ours may be replaced.
        held: the locks on its outputs.
        resume: whether to go on from the journal of a stopped run.
        lent: outputs of a command that runs this one inside itself.
        within: name of that command, or nothing.
        trust_data: whether a checkpoint may name data outside the package.
        threads: a number, or ``"auto"``.
        timeout: seconds that one of several ranks may be waited for.
        config: the file of ``--config``; its options stand among those typed by now.
        quiet: no progress and no notes.
        verbose: say what is done.
    """

    command: str = ""
    inputs: frozenset[Path] = frozenset()
    force: bool = False
    held: dict[Path, Lock | None] = field(default_factory=dict)
    resume: bool = False
    lent: frozenset[Path] = frozenset()
    within: str = ""
    trust_data: bool = False
    threads: str = "auto"
    timeout: float = 1800.0
    config: str | None = None
    quiet: bool = False
    verbose: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether it goes on from what a stopped run of it left without being told to, as a part of demo does."""
        return self.within == "demo"


_current: ContextVar[Invocation] = ContextVar("invocation", default=Invocation())  # noqa: B039  # it is frozen


@contextmanager
def invocation(command: str, arguments: Mapping[str, Any], **added: Any) -> Iterator[None]:
    """Let ``check`` know, inside the block, what the command was given; its outputs are its own until the end.

    Args:
        command: its name.
        arguments: what it was called with.
        added: values of the options in ``added_options``.
    """
    outer = _current.get()
    lent = outer.lent | frozenset(outer.held)
    # Commands that run others (demo, repeat) are as quiet as they are asked to be.
    added = {**added, **{name: True for name in ("quiet", "verbose") if getattr(outer, name)}}
    run = Invocation(command, frozenset(_inputs(arguments)), lent=lent, within=outer.command, **added)
    token = _current.set(run)
    try:
        yield
    finally:
        _current.reset(token)
        for lock in run.held.values():
            if lock is not None:
                lock.release()


def added_options(command: str, parameters: Collection[str]) -> dict[str, Any]:
    """Return the options that a command is given beside its own parameters, by what it does, with their types."""
    fitting = {
        "force": (bool(NAMES & set(parameters)), Force),
        "resume": (command in RESUMABLE, Resume),
        "trust_data": ("split" in parameters, TrustData),
        "threads": ("device" in parameters, Threads),
        "timeout": (command in SHARED, Timeout),
        "config": (True, Config),
        "quiet": (True, Quiet),
        "verbose": (True, Verbose),
    }
    return {name: option for name, (fits, option) in fitting.items() if fits}


def default_figure(command: str, given: Mapping[str, Any]) -> str | None:
    """Return where ``command`` draws where ``--out`` was left out; None where it then draws nothing.

    Args:
        command: its name.
        given: its arguments.
    """
    if command == "landscape" and given.get("interactive") is None:
        return f"{Path(given.get('ckpt') or 'objective').stem}-{given['directions']}.png"
    if command == "track":
        base = Path(given["run_dir"][0])
        return f"{base.resolve().name if base.is_dir() or not base.suffix else base.stem}-track.png"
    return None


def current_invocation() -> Invocation:
    """Return what is running; one without a name where no command is."""
    return _current.get()


def check_target(name: str, path: str, sign: re.Pattern[bytes] | None = None) -> None:
    """Prove that an output can be written, and that nothing is lost when it is.

    Args:
        name: of the argument, as in ``NAMES``.
        path: the file to be written.
        sign: what files of ours hold; by default as the name and the ending say.

    Raises:
        ValueError: see ``files.check_output``; or the command reads that file, or it is there and not what this command
            writes there, and ``--force`` was not given; or another process is going to write it.
    """
    run = _current.get()
    if Path(os.path.realpath(path)) in run.inputs:
        raise ValueError(f"--{name} must be another file than those that are read; got {path!r} for both. Rename it.")
    target = check_output(f"--{name}", path)
    if not run.force and target.is_file() and not _is_our_output(name, target, run.command, sign):
        raise ValueError(
            f"--{name} must not replace a file that hessprobe did not write there; got {path!r}. Choose another name, "
            "or pass --force."
        )
    _keep(run, name, target)


def _keep(run: Invocation, name: str, target: Path) -> None:
    place = Path(os.path.realpath(target))
    # What is no file (/dev/null) can be written by many.
    if not run.command or place in run.lent or place in run.held or (place.exists() and not place.is_file()):
        return
    try:
        run.held[place] = files.take(place)
    except BlockingIOError as error:
        raise ValueError(
            f"--{name} must not be the output of another run that goes on; got {str(target)!r}. Wait for that run, or "
            "choose another name."
        ) from error


def _inputs(arguments: Mapping[str, Any]) -> Iterator[Path]:
    for name, value in arguments.items():
        for text in value if isinstance(value, (list, tuple)) else [value]:
            if name in NAMES or not isinstance(text, str):
                continue
            # FILE.py:FUNCTION and KIND:FILE name files too.
            for part in {text, text.rpartition(":")[0], text.partition(":")[2]} - {""}:
                if _is_file(part):
                    yield Path(os.path.realpath(part))


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def _is_our_output(name: str, path: Path, command: str, sign: re.Pattern[bytes] | None = None) -> bool:
    if name == "out" and command == "train":
        return is_checkpoint(path)
    sign = sign or _SIGNS.get(name, _FIGURE if path.suffix.lower() in (".png", ".svg", ".pdf") else _PAGE)
    try:
        if path.stat().st_size > _LARGEST:
            return False
        content = path.read_bytes()
    except OSError:
        return False
    return not content or sign.search(content) is not None


def is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint of ours, or an empty one."""
    try:
        if not path.stat().st_size:
            return True
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            return any(_CHECKPOINT.search(archive.open(name).read(_HEAD)) for name in pickles)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError):
        return False


# To the start of the line, which is then emptied.
_CLEAR = "\r\x1b[2K"
_STARTING = "starting ..."
_MINUTE = 60.0


@dataclass
class _State:
    # Whether the line of ``starting`` stands on the terminal.
    stands: bool = False


_state = _State()


@contextmanager
def starting() -> Iterator[None]:
    """Show one line while the block loads what is needed, which takes seconds; it is gone at the first message."""
    if sys.stderr.isatty() and not current_invocation().quiet:
        sys.stderr.write(_STARTING)
        sys.stderr.flush()
        _state.stands = True
    try:
        yield
    finally:
        clear()


def clear() -> None:
    """Empty the line of ``starting``, where it stands, for what is written in its place."""
    if _state.stands:
        _state.stands = False
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()


@contextmanager
def progress_bars() -> Iterator[Update]:
    """Yield ``update(stage, done, total, remark)``, which draws one bar a stage that never goes back.

    Off a terminal a line is written once a minute, from the first minute on. With ``--quiet`` there is nothing.
    """
    from hessprobe import progress

    if current_invocation().quiet:
        yield lambda *_: None
        return
    if sys.stderr.isatty():
        with progress.progress_bars(True, waiting="starting") as update:
            yield update
        return
    say, stages = _now_and_then(_MINUTE), list[progress.Stages]()

    def write(stage: str, done: float, total: float | None, remark: str) -> None:
        def line() -> str:
            # Most runs are over before the first line.
            stages.extend([] if stages else [progress.Stages()])
            name, share = stages[0].at(stage, done, total)
            how_far = f"{done:g} done" if share is None else f"{share:.0%}"
            return f"{name}: {how_far}{f', {remark}' if remark else ''}"

        say(line)

    yield write


@contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """Yield ``say(text)``, which shows one line on stderr in place of the one before; it is gone when the block ends.

    Off a terminal a line is written once a minute, from the first minute on: a long run shows that it goes on.
    """
    if current_invocation().quiet:
        yield lambda _: None
        return
    if not sys.stderr.isatty():
        yield _now_and_then(_MINUTE)
        return

    def say(text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"{_CLEAR}{text[:width]}")
        sys.stderr.flush()

    try:
        yield say
    finally:
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()


def _now_and_then(seconds: float) -> Callable[[str | Callable[[], str]], None]:
    last = time.monotonic()

    def say(text: str | Callable[[], str]) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            sys.stderr.write(f"{text if isinstance(text, str) else text()}\n")
            sys.stderr.flush()

    return say

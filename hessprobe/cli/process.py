"""The process: its streams, and what ends it.

The streams are there, able to show any text, and out of reach of what a file says. The first Ctrl-C or SIGTERM ends the
work so that what is known is shown; further ones do not interrupt that output.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

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

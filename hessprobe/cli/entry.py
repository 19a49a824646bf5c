"""Where the program starts: nothing is imported before Ctrl-C and SIGTERM end it without a traceback."""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Run the program on the arguments of the process; a signal while it is being loaded ends it at once.

    Raises:
        SystemExit: always, with the exit code.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _leave)

    from hessprobe.cli.app import main as run

    run(last=True)


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signature of handlers
    # Not SystemExit: half-imported modules turn it into strange errors, and nothing can be lost yet.
    os._exit(128 + number)

"""The three streams of the process: there, able to show any text, and out of reach of what a file says."""

from __future__ import annotations

import os
import re
import sys

# Control characters of ASCII and Latin-1, but for the tab: they move the cursor, color, or rename the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


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

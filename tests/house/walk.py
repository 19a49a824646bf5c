"""What a number meets on its way: the files and functions of hessprobe that are entered, the classes that hold it.

``python tests/house/walk.py ckpt.pt --measure frob`` tells them for ``hessprobe measure ckpt.pt --measure frob``. What
runs while a module is being imported is no part of the way.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import hessprobe

HOME = f"{Path(hessprobe.__file__).parent}/"


@dataclass
class Walk:
    """Files and functions that were entered, and what was made on the way.

    Attributes:
        files: below the package.
        functions: file and qualified name.
        made: every object of a class of the package.
        code: what the command left with, 0 or None where it went well.
    """

    files: set[str] = field(default_factory=set)
    functions: set[tuple[str, str]] = field(default_factory=set)
    made: list[object] = field(default_factory=list)
    code: object = None

    @property
    def folders(self):
        """How many files of each folder were entered, most first."""
        return Counter(str(Path(name).parent) for name in self.files).most_common()

    def holders(self, value):
        """Return the classes of which an object holds ``value``, itself or in what it holds, in order of making."""
        names = [f"{type(one).__module__}.{type(one).__qualname__}" for one in self.made if _holds(one, value, set())]
        return list(dict.fromkeys(names))


def walk(run):
    """Call ``run()`` and return its ``Walk``."""
    found, loading = Walk(), 0

    def note(frame, event, _):
        nonlocal loading
        code = frame.f_code
        if code.co_name == "<module>":
            loading += {"call": 1, "return": -1}.get(event, 0)
        if event != "call" or loading:
            return
        if code.co_name == "__init__":
            # That of a dataclass lies in no file.
            one = frame.f_locals[code.co_varnames[0]]
            if type(one).__module__.startswith("hessprobe."):
                found.made.append(one)
        if code.co_filename.startswith(HOME):
            name = code.co_filename.removeprefix(HOME)
            found.files.add(name)
            found.functions.add((name, code.co_qualname))

    sys.setprofile(note)
    try:
        found.code = run()
    except SystemExit as error:
        found.code = error.code
    finally:
        sys.setprofile(None)
    return found


def walk_of(command, *words):
    """Return the walk of ``hessprobe COMMAND WORDS``, from the words of the command line to what it prints."""
    from hessprobe.cli import app

    sys.argv = ["hessprobe", command, *words]
    return walk(app.main)


def value_of(found):
    """Return the first number that was measured."""
    (first, *_) = (one for one in found.made if type(one).__name__ == "Result")
    return first.estimate.value


def _holds(one, value, seen):
    if isinstance(one, float):
        return one == value
    if id(one) in seen:
        return False
    seen.add(id(one))
    if isinstance(one, Mapping):
        return any(_holds(each, value, seen) for each in one.values())
    if isinstance(one, (list, tuple)):
        return any(_holds(each, value, seen) for each in one)
    if not type(one).__module__.startswith("hessprobe."):
        return False
    parts = [*getattr(one, "__dict__", {}).values()]
    parts += [getattr(one, name, None) for name in getattr(type(one), "__slots__", ())]
    return any(_holds(each, value, seen) for each in parts)


if __name__ == "__main__":
    found = walk_of("measure", *sys.argv[1:])
    print()
    for name in sorted(found.files):
        entered = sorted(function for file, function in found.functions if file == name)
        print(f"{name}: {len(entered)}: {', '.join(entered)}")
    print()
    for folder, count in found.folders:
        print(f"{count:3} files of {folder}")
    print()
    holders = found.holders(value_of(found))
    for name in holders:
        print(f"held by {name}")
    print(f"{len(found.files)} files, {len(found.functions)} functions, held by {len(holders)} classes")
    sys.exit(found.code)

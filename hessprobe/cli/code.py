"""Functions of the user's own files and packages: found by name, and their failures told in their own words."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

from hessprobe.cli import options
from hessprobe.cli.process import QuotedError, UsageError
from hessprobe.errors import HessprobeError


def function_of_file(option: str, path: str, name: str) -> Any:
    """Return a function of a Python file; runs the file.

    Args:
        option: that names it, for messages.
        path: of the file.
        name: of the function.

    Raises:
        UsageError: not ``FILE.py:FUNCTION``, or no such function.
        HessprobeError: no such file.
        QuotedError: the file failed.
    """
    if not (path and name):
        raise UsageError(f"{option} must be FILE.py:FUNCTION; got no ':'. For example: {option} risks.py:make.")
    if not Path(path).is_file():
        # As of a checkpoint: a file that is missing is a failure of the work.
        raise HessprobeError(f"{option} must name an existing file; got {path!r}. Check the path.")
    module_name = f"_hessprobe_objective_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{option} must name a Python file (.py); got {path!r}.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by name while the file runs; its neighbours can be imported.
    sys.modules[module_name] = module
    sys.path.insert(0, str(Path(path).resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise failed(f"{path} failed to load", path, error) from error
    finally:
        sys.path.pop(0)
    return _member(module, path, name)


def function_of_module(option: str, module_name: str, name: str) -> Any:
    """Return a function or class of an importable module; the folder of work counts, as with ``python -m``.

    Raises:
        UsageError: no such module or function.
        QuotedError: the module failed.
    """
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise UsageError(
                f"{option} names the module {module_name!r}, which is neither installed nor in this folder. Install "
                "it, or write file.py:function."
            ) from error
        raise failed(f"{module_name} failed to load", "", error) from error
    except Exception as error:
        raise failed(f"{module_name} failed to load", "", error) from error
    finally:
        sys.path.pop(0)
    return _member(module, module_name, name)


def failed(what: str, path: str, error: Exception) -> QuotedError:
    """Return the failure of the user's file at ``path``, with the innermost line of the user's own code."""
    folder = Path(path).resolve().parent
    own = [each for each in traceback.extract_tb(error.__traceback__) if Path(each.filename).resolve().parent == folder]
    place = (error.filename, error.lineno) if isinstance(error, SyntaxError) else None
    place = (own[-1].filename, own[-1].lineno) if place is None and own else place
    where = f" at {place[0]}:{place[1]}" if place else ""
    name = type(error).__name__
    return QuotedError(f"{what}{where}: {name}: {str(error).rstrip('.')}. --debug shows the traceback.")


def _member(module: Any, where: str, name: str) -> Any:
    functions = tuple(key for key, value in vars(module).items() if callable(value))
    if name not in functions:
        raise UsageError(f"{where} has no function {name!r}.{options.nearest(name, functions)}")
    return getattr(module, name)

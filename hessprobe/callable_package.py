"""A package that bears the name of its main function and can be called as that: ``hp.hvp(risk, v)``.

Python binds a subpackage to its name in the parent on import, in place of a function of the same name.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A module whose call is that of the function ``name.name``, loaded when called."""

    def _function(self) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())


def make_callable(name: str) -> None:
    """Let the loaded module ``name`` (its ``__name__``) be called as its function of the same last name."""
    sys.modules[name].__class__ = CallablePackage

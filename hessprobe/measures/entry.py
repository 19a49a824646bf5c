"""What there is to say of a measure, all of it in one entry; importable without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

# What the functions of measures ask of a context, where it is computed once for all of them; see ``Context``.
NEEDS = ("eigenpairs", "both ends", "trace", "norm", "ratio", "sweep", "diagonal", "adaptive", "matrix", "draws")
# Settings that not every measure reads; see ``MeasureSettings``.
OPTIONS = ("rtol", "n_probes", "k", "shift", "radius")
# Transforms of the parameters that keep the function of a network.
INVARIANCES = ("permutation", "rescaling")
# How a number is drawn; layers are drawn wherever there are some.
# "bar": beside the same number of other matrices; "eigenvalues" and "density": the arrays found with it.
DRAWN = ("bar", "eigenvalues", "density")
ADDING = ("sum", "shares", "apart")

UNIVERSAL_PREFIX = "universal:"
# The whole matrix is written out and diagonalized up to this size.
DENSE_LIMIT = 1024
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Layers:
    r"""How the values that a measure gives to each parameter tensor belong together.

    Attributes:
        adding: ``"sum"``: they add up to the number; ``"shares"``: to 1; ``"apart"``: not at all, each is the number
            of one block alone.
        symbol: of such a value in a figure, e.g. ``r"share of $\Vert A\Vert_F^2$"``.
        of: what the values are parts of, in a figure.
    """

    adding: str
    symbol: str
    of: str

    def __post_init__(self) -> None:
        _require_known("adding", self.adding, ADDING)


@dataclass(frozen=True)
class Entry:
    r"""One named measure of a curvature matrix A with eigenvalues lambda_1 >= ... >= lambda_d.

    Attributes:
        name: on the command line, in Python and in records.
        function: takes a ``Context`` and returns an ``Estimate``, or an ``Answer`` with arrays and notes; or where it
            is, ``"package.module:function"``, which is imported when the measure is first taken.
        unit: of the value; ``"curvature"`` is loss per squared parameter.
        meaning: one sentence.
        reference: author, year.
        words: the measure in a sentence, before "of the Hessian"; the name by default.
        symbol: of the measure in a figure, TeX allowed; the name by default.
        short: header of a narrow column of a terminal; the name by default.
        number: what the one number is of a measure that is more than a number, empty for the others.
        needs: in ``NEEDS``: what it rests on of what a context shares. The products of that are counted once, those of
            a measure without needs are its own.
        options: in ``OPTIONS``: the settings that change its number.
        invariances: in ``INVARIANCES``: what leaves it unchanged whatever the network.
        layers: how its values by layer belong together; None where it has none.
        drawn: in ``DRAWN``.
        sharper: whether a larger value means a loss that rises faster around the weights; else it is merely higher.
        extensive: whether it adds up over parameters, so that larger networks have more of it.
        logarithmic: whether it is a logarithm, so that two values are compared by their difference.

    Raises:
        TypeError, ValueError: a word of a list that is not known.
    """

    name: str
    function: Callable[[Any], Any] | str
    unit: str
    meaning: str
    reference: str = ""
    words: str = ""
    symbol: str = ""
    short: str = ""
    number: str = ""
    needs: Collection[str] = ()
    options: Collection[str] = ()
    invariances: Collection[str] = ()
    layers: Layers | None = None
    drawn: Collection[str] = ("bar",)
    sharper: bool = False
    extensive: bool = False
    logarithmic: bool = False

    def __post_init__(self) -> None:
        for name, known in (("needs", NEEDS), ("options", OPTIONS), ("invariances", INVARIANCES), ("drawn", DRAWN)):
            given = getattr(self, name)
            if isinstance(given, str):
                raise TypeError(f"{name} must be several of {', '.join(known)}; got {given!r}. Write ({given!r},).")
            for each in given:
                _require_known(name, each, known)
            object.__setattr__(self, name, frozenset(given))
        for name in ("words", "symbol", "short"):
            object.__setattr__(self, name, getattr(self, name) or self.name)

    def require_complete(self) -> None:
        """Refuse what no measure of the table may be.

        Raises:
            TypeError, ValueError: a name that cannot be typed, no function, or nothing said of unit or meaning.
        """
        if not (isinstance(self.name, str) and _NAME.fullmatch(self.name)):
            raise ValueError(
                f"name must be lower-case words joined by hyphens; got {self.name!r}. Write for example 'stable-rank'."
            )
        if not (callable(self.function) or (isinstance(self.function, str) and ":" in self.function)):
            raise TypeError(
                f"function must be a function of a context; got {self.function!r}. Pass one, or where it is: "
                "'package.module:function'."
            )
        for name, value in (("unit", self.unit), ("meaning", self.meaning)):
            if not (isinstance(value, str) and value):
                raise ValueError(f"{name} must be a text; got {value!r}. Say it in the words that a reader is to see.")

    @property
    def universal(self) -> bool:
        """Whether it is a (phi, psi, mu) measure, sampled beside the Hessian-based estimate of the same quantity."""
        return self.name.startswith(UNIVERSAL_PREFIX)

    @property
    def of_eigenpairs(self) -> bool:
        """Whether it is read off extreme eigenpairs, whose vectors then serve other measures."""
        return bool(self.needs) and frozenset(self.needs) <= {"eigenpairs", "both ends"}


def _require_known(name: str, value: Any, known: tuple[str, ...]) -> None:
    # As checks.one_of, which needs torch.
    if value not in known:
        close = get_close_matches(str(value), known, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}.{hint}")


class Names(Mapping[str, Entry]):
    """The entries of the table that satisfy a condition, by name; it follows what is registered later.

    Args:
        table: all entries.
        holds: the condition.
    """

    def __init__(self, table: Mapping[str, Entry], holds: Callable[[Entry], bool]) -> None:
        self._table, self._holds = table, holds

    def __getitem__(self, name: str) -> Entry:
        entry = self._table[name]
        if not self._holds(entry):
            raise KeyError(name)
        return entry

    def __iter__(self) -> Iterator[str]:
        return (name for name, entry in self._table.items() if self._holds(entry))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Names({', '.join(self)})"

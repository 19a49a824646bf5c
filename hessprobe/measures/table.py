"""The table of measures, one entry each; importable without torch.

The command line, records, pages, figures, comparison, tracking and the check of invariance read the entry, and nothing
else knows a measure by its name. A new measure is one function and one entry, see ``register``.

What there is to say of a measure, all of it in one entry; importable without torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any

from hessprobe.universal.names import MEANINGS, PAPER

# What the functions of measures ask of a context, where it is computed once for all of them; see ``Context``.
NEEDS = (
    "eigenpairs",
    "both ends",
    "trace",
    "norm",
    "ratio",
    "sweep",
    "diagonal",
    "adaptive",
    "matrix",
    "draws",
    "optimizer",
    "blocks",
)
# Settings that not every measure reads; see ``MeasureSettings``.
OPTIONS = ("rtol", "n_probes", "k", "shift", "radius")
# Transforms of the parameters that keep the function of a network.
INVARIANCES = ("permutation", "rescaling")
# How a number is drawn; layers are drawn wherever there are some.
# "bar": beside the same number of other matrices; "eigenvalues" and "density": the arrays found with it.
DRAWN = ("bar", "eigenvalues", "density")
# Groups of parameters whose diagonal blocks are measured.
GROUPINGS = ("module", "layer", "head")
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
        function: takes a ``Context`` and returns an ``Estimate``, or a ``Result`` with arrays and notes; or where it
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


_SPECTRUM, _SAMPLES = ("rtol", "k"), ("rtol", "n_probes")
_SUM = Layers("sum", "trace", "trace")
_SHARES = Layers("shares", r"share of $\Vert A\Vert_F^2$", r"$\Vert A\Vert_F^2$")
_APART = Layers("apart", r"block's $\lambda_{\max}$", r"$\lambda_{\max}$")
# The same of C A C with C = diag|w|.
_ADAPTIVE_SUM = Layers("sum", "adaptive trace", "adaptive trace")
_ADAPTIVE_SHARES = Layers("shares", r"share of $\Vert CAC\Vert_F^2$", r"$\Vert CAC\Vert_F^2$")
_ADAPTIVE_APART = Layers("apart", r"block's adaptive $\lambda_{\max}$", r"adaptive $\lambda_{\max}$")
_BLOCK_NORMS = Layers("apart", r"block's $\Vert A\Vert_F$", r"$\Vert A\Vert_F$")
_PRECONDITIONED_APART = Layers("apart", r"block's preconditioned $\lambda_{\max}$", r"preconditioned $\lambda_{\max}$")


def _own(name: str, function: str, unit: str, meaning: str, reference: str, **more: Any) -> Entry:
    return Entry(name, f"hessprobe.measures.registry:{function}", unit, meaning, reference, **more)


_BUILT_IN = (
    _own(
        "lambda-max",
        "lambda_max",
        "curvature",
        "largest eigenvalue: the curvature of the sharpest direction",
        "Wu and Simon (2000)",
        words="largest eigenvalue",
        symbol=r"$\lambda_{\max}$",
        needs=("eigenpairs",),
        options=_SPECTRUM,
        invariances=("permutation",),
        layers=_APART,
        drawn=("bar", "eigenvalues"),
        sharper=True,
    ),
    _own(
        "lambda-min",
        "lambda_min",
        "curvature",
        "smallest eigenvalue: negative away from a local minimum",
        "Wu and Simon (2000)",
        words="smallest eigenvalue",
        symbol=r"$\lambda_{\min}$",
        needs=("eigenpairs", "both ends"),
        options=_SPECTRUM,
        invariances=("permutation",),
        drawn=("bar", "eigenvalues"),
    ),
    _own(
        "spectral-norm",
        "spectral_norm",
        "curvature",
        "largest |eigenvalue|",
        "Wu and Simon (2000)",
        words="spectral norm",
        short="||A||",
        needs=("eigenpairs", "both ends"),
        options=_SPECTRUM,
        invariances=("permutation",),
        drawn=("bar", "eigenvalues"),
        sharper=True,
    ),
    _own(
        "trace",
        "trace",
        "curvature",
        "sum of the eigenvalues: d times the mean curvature of a random direction",
        "Hutchinson (1990)",
        needs=("trace",),
        options=_SAMPLES,
        invariances=("permutation",),
        layers=_SUM,
        sharper=True,
        extensive=True,
    ),
    _own(
        "frob",
        "frob",
        "curvature",
        "Frobenius norm: root of the sum of squared eigenvalues",
        "Avron and Toledo (2011)",
        words="Frobenius norm",
        symbol="Frobenius",
        needs=("norm",),
        options=_SAMPLES,
        invariances=("permutation",),
        layers=_SHARES,
        sharper=True,
        extensive=True,
    ),
    _own(
        "block-frob",
        "block_frob",
        "curvature",
        "Frobenius norm of the block diagonal, by parameter tensor or --group; the rest of frob lies between blocks",
        "Martens and Grosse (2015)",
        words="Frobenius norm of the block diagonal",
        symbol="block Frobenius",
        needs=("blocks",),
        options=_SAMPLES,
        invariances=("permutation",),
        layers=_BLOCK_NORMS,
        sharper=True,
        extensive=True,
    ),
    _own(
        "logdet",
        "logdet",
        "nats",
        "log det(A + s I) for a positive semidefinite A, 1/2 log det(A^2 + s^2 I) for the Hessian",
        "Ubaru, Chen and Saad (2017)",
        words="log-determinant",
        needs=("sweep",),
        options=(*_SAMPLES, "shift"),
        invariances=("permutation",),
        drawn=(),
        sharper=True,
        extensive=True,
        logarithmic=True,
    ),
    _own(
        "density",
        "density",
        "curvature",
        "distribution of the eigenvalues; the record holds the curve with its band, quantiles, and shares",
        "Chen et al. (2021)",
        words="median eigenvalue",
        number="the median eigenvalue",
        needs=("sweep",),
        options=_SAMPLES,
        invariances=("permutation",),
        drawn=("density",),
    ),
    _own(
        "diagonal",
        "diagonal",
        "curvature",
        "mean diagonal entry, trace / d; the record holds every entry with its error",
        "Bekas et al. (2007)",
        words="mean diagonal entry",
        number="the mean diagonal entry, trace / d",
        needs=("trace", "diagonal"),
        options=_SAMPLES,
        invariances=("permutation",),
        drawn=(),
        sharper=True,
    ),
    _own(
        "effective-rank",
        "effective_rank",
        "eigenvalues",
        "trace^2 / Frobenius^2: how many equal eigenvalues would give both",
        "Roy and Vetterli (2007)",
        words="effective rank",
        symbol="eff. rank",
        short="eff. rank",
        needs=("trace", "norm", "ratio"),
        options=_SAMPLES,
        invariances=("permutation",),
        extensive=True,
    ),
    _own(
        "effective-dimension",
        "effective_dimension",
        "eigenvalues",
        "directions sharper than the damping s: sum of l / (l + s) over eigenvalues, for the Hessian l^2 / (l^2 + s^2)",
        "MacKay (1992)",
        words="effective dimension",
        needs=("sweep",),
        options=(*_SAMPLES, "shift"),
        invariances=("permutation",),
        extensive=True,
    ),
    _own(
        "adaptive-lambda-max",
        "adaptive_lambda_max",
        "loss",
        "largest eigenvalue of diag|w| H diag|w|",
        "Kwon et al. (2021)",
        words="largest adaptive eigenvalue",
        symbol=r"adaptive $\lambda_{\max}$",
        needs=("adaptive",),
        options=("rtol",),
        invariances=("permutation", "rescaling"),
        layers=_ADAPTIVE_APART,
        sharper=True,
    ),
    _own(
        "adaptive-trace",
        "adaptive_trace",
        "loss",
        "trace of diag|w| H diag|w|: mean of u^T H u over u = w * z, a product measure that moves with w",
        "Kwon et al. (2021)",
        words="adaptive trace",
        needs=("adaptive",),
        options=_SAMPLES,
        invariances=("permutation", "rescaling"),
        layers=_ADAPTIVE_SUM,
        sharper=True,
        extensive=True,
    ),
    _own(
        "adaptive-frob",
        "adaptive_frob",
        "loss",
        "Frobenius norm of diag|w| H diag|w|: from the variance of u^T H u, u = w * z, z ~ N(0, I)",
        "Kwon et al. (2021)",
        words="adaptive Frobenius norm",
        needs=("adaptive",),
        options=_SAMPLES,
        invariances=("permutation", "rescaling"),
        layers=_ADAPTIVE_SHARES,
        sharper=True,
        extensive=True,
    ),
    _own(
        "preconditioned-lambda-max",
        "preconditioned_lambda_max",
        "1 / learning rate",
        "largest eigenvalue of P^-1/2 H P^-1/2, P of Adam's step: stable up to (2 + 2 beta1) / ((1 - beta1) lr)",
        "Cohen et al. (2022)",
        words="largest preconditioned eigenvalue",
        symbol=r"preconditioned $\lambda_{\max}$",
        short="preconditioned",
        needs=("optimizer",),
        options=("rtol",),
        invariances=("permutation",),
        layers=_PRECONDITIONED_APART,
        sharper=True,
    ),
    _own(
        "pseudo-logdet",
        "pseudo_logdet",
        "nats",
        "sum of log |eigenvalue| over the eigenvalues of H that are not zero to rounding",
        "Horn and Johnson (2013)",
        words="log-pseudo-determinant",
        needs=("matrix",),
        invariances=("permutation",),
        drawn=(),
        sharper=True,
        extensive=True,
        logarithmic=True,
    ),
)

# Of a (phi, psi, mu) measure at one fixed direction no number of probes matters; others take the shift for an exponent.
_FIXED, _SHIFTED = ("worst", "ascent"), ("logdet", "det", "log-exp")


def _universal(name: str) -> Entry:
    options = ("radius",) if name in _FIXED else (*_SAMPLES, "radius", *(("shift",) if name in _SHIFTED else ()))
    return Entry(
        UNIVERSAL_PREFIX + name,
        "hessprobe.measures.universal:measured",
        MEANINGS[name].unit,
        MEANINGS[name].meaning,
        PAPER,
        needs=("draws",),
        options=options,
        invariances=("permutation",),
        drawn=(),
    )


_TABLE: dict[str, Entry] = {entry.name: entry for entry in (*_BUILT_IN, *(_universal(name) for name in MEANINGS))}
_RESERVED = frozenset(_TABLE)

# All measures; those that are not written as (phi, psi, mu), and those that are, each beside the Hessian-based estimate
# of the same quantity.
TABLE = Names(_TABLE, lambda entry: True)
NAMES = Names(_TABLE, lambda entry: not entry.universal)
UNIVERSAL = Names(_TABLE, lambda entry: entry.universal)
DEFAULT = ("lambda-max", "trace", "frob")


def register(entry: Entry, *, replace: bool = False) -> Entry:
    """Add a measure to the table: from then on its name is known wherever a measure is named.

    Its function takes a ``Context`` and returns an ``Estimate``, or a ``Result`` with arrays and notes. A context has
    the operator ``A``, the ``risk``, the ``settings``, and what measures share, computed when first asked for:
    ``eigenpairs``, ``trace``, ``frobenius``, ``sketch``, ``diagonal()``.

    In a notebook or a program the name is known from here on. For the command line, a file that registers measures and
    ends in ``from hessprobe.cli.app import main; main()`` is the program with them:
    ``python mine.py measure ckpt.pt -m mean-curvature``.

    Args:
        entry: function, unit, one sentence, and what else the table says of it.
        replace: take the place of a measure of this name that was registered before, as a notebook's cell does that is
            run again.

    Returns:
        The entry.

    Raises:
        TypeError, ValueError: no ``Entry``, one that lacks something, or a name that is taken.

    Examples:
        >>> import hessprobe as hp
        >>> def mean_curvature(context):
        ...     return context.trace.scaled(1 / context.A.dim)
        >>> entry = hp.measures.Entry(
        ...     "mean-curvature",
        ...     mean_curvature,
        ...     unit="curvature",
        ...     meaning="mean curvature of a random direction, trace / d",
        ...     needs=("trace",),
        ...     options=("rtol", "n_probes"),
        ... )
        >>> hp.measures.register(entry).name
        'mean-curvature'
        >>> "mean-curvature" in hp.measures.NAMES
        True
        >>> hp.measures.unregister("mean-curvature")
    """
    if not isinstance(entry, Entry):
        raise TypeError(f"entry must be an Entry; got {type(entry).__name__}. Make one with hessprobe.measures.Entry.")
    entry.require_complete()
    if entry.name in _RESERVED or (entry.name in _TABLE and not replace):
        more = "" if entry.name in _RESERVED else ", or pass replace=True"
        raise ValueError(f"name must be one that no measure has yet; got {entry.name!r}. Choose another{more}.")
    _TABLE[entry.name] = entry
    # The (phi, psi, mu) measures stay last.
    for name in tuple(UNIVERSAL):
        _TABLE[name] = _TABLE.pop(name)
    return entry


def unregister(name: str) -> None:
    """Take a measure out of the table that ``register`` has put there.

    Raises:
        ValueError: no such measure.
    """
    if name in _RESERVED or name not in _TABLE:
        known = ", ".join(each for each in _TABLE if each not in _RESERVED) or "none"
        raise ValueError(f"name must be that of a registered measure ({known}); got {name!r}.")
    del _TABLE[name]


def function_of(entry: Entry) -> Callable[[Any], Any]:
    """Return the function of a measure, imported where the entry only says where it is."""
    if callable(entry.function):
        return entry.function
    module, _, name = entry.function.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    # The (phi, psi, mu) measures have one function, which is told which of them is meant.
    return partial(function, name=entry.name) if entry.universal else function


def entry_of(name: str) -> Entry:
    """Return the entry of a measure; one that says nothing for a name that is not in the table.

    A record may hold a measure that was registered where it was made, and is not here.
    """
    return TABLE[name] if name in TABLE else Entry(name, "", "", "")


def taking(option: str, table: Mapping[str, Entry] = TABLE) -> tuple[str, ...]:
    """Return the names of the measures whose number depends on a setting, in the order of the table."""
    return tuple(name for name, entry in table.items() if option in entry.options)

"""What every command that measures a checkpoint is asked in the same words: which network, which data, where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from hessprobe.cli import options
from hessprobe.cli.failures import as_usage
from hessprobe.cli.opening import check_opening

if TYPE_CHECKING:
    from hessprobe.cli.load import Source
    from hessprobe.measures import MeasureSettings
    from hessprobe.models.spec import Opening

_CHOICES = {"split": options.SPLITS, "batchnorm": options.BATCHNORMS, "dtype": options.DTYPES}
_SMALLEST = {"examples": 1, "batch_size": 1, "seed": 0}


class Asked(Protocol):
    """The options of a command that say what is measured; see ``hessprobe.cli.options``."""

    @property
    def params(self) -> list[str] | None: ...  # noqa: D102  # a field
    @property
    def memory(self) -> str | None: ...  # noqa: D102  # a field
    @property
    def opening(self) -> Opening: ...  # noqa: D102  # a field


def check_source(request: Asked) -> None:
    """Refuse what can be refused of these options before anything heavy is loaded.

    Raises:
        UsageError: a name that does not exist, a number outside its range, a size that cannot be read.
    """
    for name, known in _CHOICES.items():
        value = getattr(request, name)
        if value is not None:
            options.choice(f"--{name}", value, known)
    for name, minimum in _SMALLEST.items():
        options.at_least(f"--{name.replace('_', '-')}", getattr(request, name), minimum)
    options.parse_memory(request.memory)
    check_opening(request.opening)


def source_of(request: Asked, checkpoint: str | None, *, quiet: bool = False) -> Source:
    """Return what ``load_subject`` needs to make the risk that the options describe.

    Args:
        request: the options.
        checkpoint: the file; the command's own, or another of a series.
        quiet: what a reader should know of a file of another library was said before, of another of the series.
    """
    from hessprobe.cli.load import Source

    alike = (
        "objective",
        "model",
        "data",
        "split",
        "examples",
        "batch_size",
        "batchnorm",
        "seed",
        "device",
        "dtype",
        "opening",
    )
    given = {name: getattr(request, name) for name in alike}
    return Source(checkpoint=checkpoint, params=tuple(request.params or ()), quiet=quiet, **given)


class Measured(Asked, Protocol):
    """The options of a command that measures; see ``hessprobe.cli.options``."""

    @property
    def operator(self) -> str: ...  # noqa: D102  # a field
    @property
    def engine(self) -> str: ...  # noqa: D102  # a field
    @property
    def seed(self) -> int: ...  # noqa: D102  # a field
    @property
    def confidence(self) -> float: ...  # noqa: D102  # a field
    @property
    def data_error(self) -> bool: ...  # noqa: D102  # a field


def settings_of(request: Measured, **size: Any) -> MeasureSettings:
    """Return how to measure, as the options describe it.

    Args:
        request: the options.
        size: what else ``MeasureSettings`` takes: how many probes, to what tolerance, with what damping.

    Raises:
        UsageError: the operator has no such engine, or a number is outside its range.
    """
    from hessprobe.measures import MeasureSettings

    engine = engine_of(request.engine, request.operator)
    with as_usage():
        return MeasureSettings(
            operator=request.operator,
            seed=request.seed,
            engine=engine,
            memory=options.parse_memory(request.memory),
            confidence=request.confidence,
            data_error=request.data_error,
            **size,
        )


def engine_of(name: str, operator: str = "hessian") -> str:
    """Return ``--engine`` as the engines are named in Python.

    Raises:
        UsageError: the operator has no such engine.
    """
    from hessprobe.hvp import gauss_newton, hessian

    engines = (hessian if operator == "hessian" else gauss_newton).ENGINES
    known = tuple(each.replace("_", "-") for each in ("auto", *engines))
    return options.choice("--engine", name.replace("_", "-"), known).replace("-", "_")

"""What every command that measures a checkpoint is asked in the same words: which network, which data, where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from hessprobe.cli import options
from hessprobe.cli.failures import as_usage
from hessprobe.models.spec import NORMALIZATIONS, TASKS, Opening

if TYPE_CHECKING:
    from hessprobe.measures import MeasureSettings

_CHOICES = {"split": options.SPLITS, "batchnorm": options.BATCHNORMS, "dtype": options.DTYPES}
_SMALLEST = {"examples": 1, "batch_size": 1, "seed": 0}


class Asked(Protocol):
    """The options of a command that say what is measured; None where the user left the choice to the program."""

    @property
    def objective(self) -> str | None: ...  # noqa: D102  # a field
    @property
    def model(self) -> str | None: ...  # noqa: D102  # a field
    @property
    def data(self) -> str | None: ...  # noqa: D102  # a field
    @property
    def split(self) -> str | None: ...  # noqa: D102  # a field
    @property
    def examples(self) -> int | None: ...  # noqa: D102  # a field
    @property
    def params(self) -> list[str] | None: ...  # noqa: D102  # a field
    @property
    def batchnorm(self) -> str | None: ...  # noqa: D102  # a field
    @property
    def seed(self) -> int: ...  # noqa: D102  # a field
    @property
    def batch_size(self) -> int | None: ...  # noqa: D102  # a field
    @property
    def device(self) -> str | None: ...  # noqa: D102  # a field
    @property
    def dtype(self) -> str | None: ...  # noqa: D102  # a field
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
    _check_opening(request.opening)


def _check_opening(opening: Opening) -> None:
    """Refuse what can be refused of these options before anything heavy is loaded.

    Raises:
        UsageError: a name that does not exist, or a number outside its range.
    """
    for flag, value, known in (("--task", opening.task, TASKS), ("--normalize", opening.normalize, NORMALIZATIONS)):
        if value is not None:
            options.choice(flag, value, known)
    options.at_least("--image-size", opening.image_size, 1)
    options.at_least("--context", opening.context, 2)


class Measured(Asked, Protocol):
    """The options of a command that measures; see ``hessprobe.cli.options``."""

    @property
    def operator(self) -> str: ...  # noqa: D102  # a field
    @property
    def engine(self) -> str: ...  # noqa: D102  # a field
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

"""Options that commands share, and how their values are read. Nothing here imports torch.

- what every command that measures a checkpoint is asked in the same words: which network, which data, where;
- a record where a checkpoint belongs, or a checkpoint where a record does, told by the command that takes it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from hessprobe import files
from hessprobe.cli import completion, meanings, outputs
from hessprobe.cli.process import UsageError, as_usage
from hessprobe.errors import CheckpointError
from hessprobe.looks import NARROWEST, STYLES, WIDEST
from hessprobe.measures import DEFAULT, NAMES, TABLE, UNIVERSAL
from hessprobe.measures.table import GROUPINGS
from hessprobe.models.spec import LOSSES, NORMALIZATIONS, TASKS, Opening, parse_pairs

if TYPE_CHECKING:
    from hessprobe.measures.context import MeasureSettings


DEFAULT_MEASURES = DEFAULT
DEFAULT_RTOL = 0.01
OPERATORS = ("hessian", "ggn", "fisher")
# The functional part is measured beside the others, not in their place: of itself it says nothing about sharpness.
ANY_OPERATOR = (*OPERATORS, "functional")
SPLITS = ("train", "test", "all")
BATCHNORMS = ("eval", "batch", "recalibrate")
DTYPES = ("float32", "float64")

_MEMORY_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}

# So few bytes hold no batch: a unit was forgotten.
_FEWEST_BYTES = 10_000

_INPUT, _NUMBERS, _COMPUTE, _OUTPUT = "What is measured", "How well", "How it is computed", "Output"
_FOREIGN = "Files of other libraries"


def option(
    *names: str,
    help: str,
    panel: str | None = None,
    metavar: str | None = None,
    complete: completion.Complete | None = None,
) -> Any:
    """Return a ``typer.Option`` under a heading of ``--help``, whose values the shell may complete."""
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar, autocompletion=complete)


Seed = Annotated[int, option("--seed", help="Seed of all randomness, 0 or more.", panel=_NUMBERS)]
Device = Annotated[
    str | None,
    option(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; by default cuda where there is one.", panel=_COMPUTE
    ),
]
Debug = Annotated[bool, option("--debug", help="Show the traceback of a failure.", panel=_OUTPUT)]
Json = Annotated[
    str | None,
    option(
        "--json", metavar="FILE|-", help="Write the JSON record; with '-' to stdout and nothing else.", panel=_OUTPUT
    ),
]
Csv = Annotated[str | None, option("--csv", metavar="FILE", help="Write the numbers as CSV.", panel=_OUTPUT)]

Width = Annotated[
    float | None,
    option(
        "--width",
        metavar="INCHES",
        help="Width of the figure: 3.25 for one column of a journal, 6.75 for two; its own by default.",
        panel=_OUTPUT,
    ),
]
FigureStyle = Annotated[
    str, option("--style", metavar="NAME", help=f"Look of the figure: {', '.join(STYLES)}.", panel=_OUTPUT)
]

Figure = Annotated[
    str | None,
    option(
        "--out",
        metavar="FILE",
        help="Draw what was found: png, svg or pdf; further figures and their numbers as CSV go beside it.",
        panel=_OUTPUT,
    ),
]
PageFile = Annotated[
    str | None,
    option("--report", metavar="FILE", help="Write a page (HTML) about it: numbers, figures, commands.", panel=_OUTPUT),
]

Checkpoint = Annotated[
    str | None, typer.Argument(metavar="[CKPT]", help="A checkpoint of hessprobe train, or plain weights.")
]
Measures = Annotated[
    list[str] | None,
    option(
        "--measure",
        "-m",
        metavar="NAME",
        panel=_INPUT,
        complete=completion.measures_of(TABLE),
        help=f"What to measure; repeat it for more, or put commas between. One of {', '.join(NAMES)}, or a measure "
        f"{', '.join(UNIVERSAL)}. Default: {', '.join(DEFAULT_MEASURES)}.",
    ),
]
Operator = Annotated[
    str,
    option(
        "--operator",
        metavar="NAME",
        help="Matrix to measure: hessian, ggn or fisher.",
        panel=_INPUT,
        complete=completion.one_of(OPERATORS),
    ),
]
AnyOperator = Annotated[
    str,
    option(
        "--operator",
        metavar="NAME",
        help="Matrix to measure: hessian, ggn, fisher, or functional, the Hessian less ggn.",
        panel=_INPUT,
        complete=completion.one_of(ANY_OPERATOR),
    ),
]
Split = Annotated[
    str | None,
    option(
        "--split",
        metavar="NAME",
        help="Data: train (the default), test or all.",
        panel=_INPUT,
        complete=completion.one_of(SPLITS),
    ),
]
Examples = Annotated[
    int | None, option("--examples", metavar="N", help="Measure on N random examples of the split.", panel=_INPUT)
]
Params = Annotated[
    list[str] | None,
    option("--params", metavar="GLOB", help="Only parameters of this name, e.g. 'layers.0.*'.", panel=_INPUT),
]
BatchNorm = Annotated[
    str | None,
    option("--batchnorm", metavar="MODE", help="BatchNorm: eval (the default), batch or recalibrate.", panel=_INPUT),
]
ObjectiveSpec = Annotated[
    str | None,
    option(
        "--objective",
        metavar="FILE.py:FUNCTION",
        help="Measure the (model, loss, data) or the EmpiricalRisk that this function returns; where it takes an "
        "argument, that is the path CKPT. "
        "It runs the file's code.",
        panel=_INPUT,
    ),
]
ForeignModel = Annotated[
    str | None,
    option(
        "--model",
        metavar="SPEC",
        help="Model of weights from elsewhere: mlp:hidden=128-64 of hessprobe, torchvision:NAME, timm:NAME, "
        "transformers:FOLDER, peft:FOLDER, package.module:factory or file.py:factory, these with ?key=value&...",
        panel=_INPUT,
    ),
]
ForeignData = Annotated[
    str | None,
    option(
        "--data",
        metavar="SPEC",
        help="Data of weights from elsewhere: a name such as digits, npz:FILE, csv:FILE, or a folder of class folders.",
        panel=_INPUT,
    ),
]
PerLayer = Annotated[bool, option("--per-layer", help="Also measure each parameter tensor's part.", panel=_INPUT)]
PerBatch = Annotated[
    bool,
    option("--per-batch", help="Also the largest eigenvalue of every mini-batch, and its distribution.", panel=_INPUT),
]
Group = Annotated[
    str | None,
    option("--group", metavar="NAME", help=f"Also measure the block of each {', '.join(GROUPINGS)}.", panel=_INPUT),
]
K = Annotated[
    int | None, option("--k", metavar="K", help="Number of eigenvalues at each end; 1 by default.", panel=_NUMBERS)
]
Shift = Annotated[
    float | None,
    option("--shift", metavar="S", help="Damping of logdet and effective-dimension, above 0.", panel=_NUMBERS),
]
Radius = Annotated[
    float | None,
    option("--radius", metavar="RHO", help="Measure universal:NAME from losses alone at this radius.", panel=_NUMBERS),
]
Rtol = Annotated[
    float | None,
    option(
        "--rtol",
        metavar="R",
        help=f"Half-width of the intervals to reach, relative to the value; {DEFAULT_RTOL:g} by default.",
        panel=_NUMBERS,
    ),
]
Probes = Annotated[
    int | None, option("--probes", metavar="N", help="Number of random probes, in place of --rtol.", panel=_NUMBERS)
]
Confidence = Annotated[
    float, option("--confidence", metavar="C", help="Level of the intervals, in (0, 1).", panel=_NUMBERS)
]
DataError = Annotated[
    bool,
    option(
        "--data-error/--no-data-error",
        help="Tell the error that comes from the data being a sample, beside that of the measurement.",
        panel=_NUMBERS,
    ),
]
BatchSize = Annotated[
    int | None,
    option(
        "--batch-size",
        metavar="N",
        help="Examples a batch; a loss that is a mean over examples stays the same whatever it is.",
        panel=_COMPUTE,
    ),
]
Dtype = Annotated[
    str | None,
    option(
        "--dtype",
        metavar="NAME",
        help="float32 or float64; default: that of the weights, at least float32.",
        panel=_COMPUTE,
        complete=completion.one_of(DTYPES),
    ),
]
Engine = Annotated[
    str, option("--engine", metavar="NAME", help="How products are made; auto times the choices.", panel=_COMPUTE)
]
Shard = Annotated[
    str | None,
    option(
        "--shard",
        metavar="fsdp",
        help="Spread the weights over the ranks of torchrun (FSDP2); products are differences of gradients then.",
        panel=_COMPUTE,
    ),
]
DryRun = Annotated[
    bool,
    option(
        "--dry-run",
        help="Measure on the first batch alone, and tell the time and the memory that all of the data would take.",
        panel=_COMPUTE,
    ),
]
Memory = Annotated[
    str | None,
    option(
        "--memory",
        metavar="SIZE",
        help="Memory that all of it may take beside network and data, e.g. 2GB; what does not fit is cut.",
        panel=_COMPUTE,
    ),
]


def _foreign(kind: Any, flag: str, help: str, metavar: str | None = None) -> Any:
    return Annotated[kind, typer.Option(flag, metavar=metavar, help=help, rich_help_panel=_FOREIGN)]


# How files of other libraries are read: the fields of ``Opening``.
OPENING: dict[str, Any] = {
    "task": _foreign(str | None, "--task", f"Of a transformers model: {', '.join(TASKS)}.", "NAME"),
    "key": _foreign(str | None, "--key", "Entry of the file that holds the weights, e.g. state_dict_ema.", "NAME"),
    "loss": _foreign(str | None, "--loss", f"{', '.join(LOSSES)}, or file.py:function.", "NAME"),
    "image_size": _foreign(
        int | None, "--image-size", "Scale images to this shorter side and cut a square of it.", "PIXELS"
    ),
    "normalize": _foreign(
        str | None,
        "--normalize",
        f"Mean and deviation of the channels: {', '.join(NORMALIZATIONS)} (by default own: those of the data).",
        "NAME",
    ),
    "text_column": _foreign(str | None, "--text-column", "Column or key of the texts.", "NAME"),
    "label_column": _foreign(str | None, "--label-column", "Column, key or array of the targets.", "NAME"),
    "tokenizer": _foreign(str | None, "--tokenizer", "Folder of the tokenizer; by default the model's.", "FOLDER"),
    "context": _foreign(int | None, "--context", "Tokens in an example.", "N"),
    "pack": _foreign(bool, "--pack", "Join the texts and cut them into examples of --context tokens."),
}


def choice(name: str, value: str, known: Collection[str]) -> str:
    """Return ``value`` if it is known.

    Raises:
        UsageError: it is not; the message names the one that is meant, or the nearest.
    """
    if value in known:
        return value
    meant = meanings.value(name, value, known)
    mend = nearest(value, known) if meant is None else f" Did you mean {meant!r}?"
    raise UsageError(f"{name} must be one of {', '.join(known)}; got {value!r}.{mend}")


def nearest(value: str, known: Collection[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or ``""``."""
    import difflib

    close = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def at_least(name: str, value: int | None, minimum: int) -> None:
    """Refuse an integer below ``minimum``; None passes.

    Raises:
        UsageError: it is smaller.
    """
    if value is not None and not value >= minimum:
        raise UsageError(f"{name} must be an integer >= {minimum}; got {value}.")


def positive(name: str, value: float | None, below: float = float("inf")) -> None:
    """Refuse a number outside ``(0, below)``; None passes, nan does not.

    Raises:
        UsageError: it is outside.
    """
    if value is not None and not 0 < value < below:
        words = "a finite number > 0" if below == float("inf") else f"a number in (0, {below:g})"
        percent = f" Write {value / 100:g} for {value:g} %." if 1 <= value <= 100 and below == 1 else ""
        raise UsageError(f"{name} must be {words}; got {value:g}.{percent}")


def figure_look(width: float | None, style: str) -> None:
    """Refuse a width or a style that no figure has; None passes.

    Raises:
        UsageError: it is none.
    """
    if width is not None and not NARROWEST <= width <= WIDEST:
        raise UsageError(
            f"--width must be in inches, {NARROWEST:g} to {WIDEST:g}; got {width:g}. "
            "One column of a journal is 3.25, two are 6.75."
        )
    choice("--style", style, STYLES)


def separated(values: list[str] | None, option: str = "--measure") -> list[str] | None:
    """Return what was given once with commas, or several times, one by one; what a parenthesis holds stays whole.

    Raises:
        UsageError: commas alone.
    """
    if not values:
        return None
    parts = [part.strip() for value in values for part in re.split(r",(?![^(]*\))", value) if part.strip()]
    if not parts:
        raise UsageError(f"{option} must name something; got {','.join(values)!r}. Leave it out for the default.")
    return parts


def parse_memory(text: str | None) -> int | None:
    """Return a size like ``2GB``, ``512 MiB`` or ``1000000`` in bytes; None for None.

    Raises:
        UsageError: not a size, or none at all.
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if found is None or (found.group(3) and not found.group(2)) or not float(found.group(1)) > 0:
        raise UsageError(f"--memory must be a size such as 2GB, 512MiB or a number of bytes > 0; got {text!r}.")
    if not found.group(2) and float(found.group(1)) < _FEWEST_BYTES:
        raise UsageError(
            f"--memory must be a size with its unit; got {text!r}, which is that many bytes. Write {text}GB."
        )
    units = _BINARY_UNITS if found.group(3) else _MEMORY_UNITS
    return int(float(found.group(1)) * units[found.group(2)])


def parse_model(text: str) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of ``NAME[:key=value,...]``; ``128-64`` is a list, other values are read as JSON.

    Raises:
        UsageError: an argument without ``=``.
    """
    name, _, listed = text.partition(":")
    with as_usage():
        return name, parse_pairs(text, listed, ",", "NAME or NAME:key=value,...")


def check_numbers(path: Path, columns: Sequence[str]) -> None:
    """Prove as ``check_outputs`` does that the numbers of a figure can be written; a table of these columns is ours.

    Raises:
        UsageError: see ``outputs.check``.
    """
    with as_usage():
        outputs.check_target("out", str(path), re.compile(rb"\A" + re.escape(",".join(columns).encode()) + rb"\n"))


def check_outputs(**paths: str | None) -> None:
    """Prove that every output can be written before any work is done; None passes, and ``-`` as ``json``.

    Raises:
        UsageError: see ``outputs.check``; or another output is ``-``, or two are the same file.
    """
    seen: dict[Path, str] = {}
    for name, path in paths.items():
        if path == "-" and name != "json":
            raise UsageError(f"--{name} must be a file; got '-'. Only the record (--json) can go to stdout.")
        if path is not None and path != "-":
            place = files.real(path)
            if place in seen:
                raise UsageError(
                    f"--{name} must be another file than --{seen[place]}; got {path!r} for both. Rename one."
                )
            seen[place] = name
            try:
                outputs.check_target(name, path)
            except ValueError as error:
                raise UsageError(str(error)) from error


_CHOICES = {"split": SPLITS, "batchnorm": BATCHNORMS, "dtype": DTYPES}
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
            choice(f"--{name}", value, known)
    for name, minimum in _SMALLEST.items():
        at_least(f"--{name.replace('_', '-')}", getattr(request, name), minimum)
    parse_memory(request.memory)
    _check_opening(request.opening)


def _check_opening(opening: Opening) -> None:
    """Refuse what can be refused of these options before anything heavy is loaded.

    Raises:
        UsageError: a name that does not exist, or a number outside its range.
    """
    for flag, value, known in (("--task", opening.task, TASKS), ("--normalize", opening.normalize, NORMALIZATIONS)):
        if value is not None:
            choice(flag, value, known)
    at_least("--image-size", opening.image_size, 1)
    at_least("--context", opening.context, 2)


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
    from hessprobe.measures.context import MeasureSettings

    engine = engine_of(request.engine, request.operator)
    with as_usage():
        return MeasureSettings(
            operator=request.operator,
            seed=request.seed,
            engine=engine,
            memory=parse_memory(request.memory),
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
    return choice("--engine", name.replace("_", "-"), known).replace("-", "_")


_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")
_HEAD = 4096
_RECORD = re.compile(rb'\A\s*\{\s*"schema":\s*"hessprobe\.')
_COMMAND = re.compile(rb'"command":\s*"([a-z-]+)"')
# How files of torch.save begin: a zip archive, or, before torch 1.6, a pickle.
_WEIGHTS = (b"PK\x03\x04", b"\x80\x02")


def require_records(paths: Iterable[str | Path]) -> None:
    """Refuse files of weights.

    Raises:
        UsageError: names the command that makes a record of the first one.
    """
    for path in map(Path, paths):
        if path.suffix in _CHECKPOINTS or _head(path).startswith(_WEIGHTS):
            made = shlex.join(["hessprobe", "measure", str(path), "--json", str(path.with_suffix(".json"))])
            raise UsageError(f"RECORD must be a record; got the checkpoint {str(path)!r}. Measure it first: {made}")


def refuse_record(path: str | Path) -> None:
    """Refuse a record of this program.

    Raises:
        UsageError: names the commands that show it.
    """
    head = _head(Path(path))
    if _RECORD.match(head):
        found = _COMMAND.search(head)
        of = f" of hessprobe {found[1].decode()}" if found else ""
        raise UsageError(
            f"CKPT must be a checkpoint; got the record {str(path)!r}{of}. See it with: "
            f"{shlex.join(['hessprobe', 'report', str(path)])}"
        )


def require_there(paths: Iterable[str | Path]) -> None:
    """Refuse a path at which there is nothing, before the first of several is measured.

    Raises:
        CheckpointError: names the first one.
    """
    for path in paths:
        if not Path(path).exists():
            raise CheckpointError(f"{path} does not exist. Check the path.")


def _head(path: Path) -> bytes:
    try:
        if not path.is_file():
            # A pipe may never say anything.
            return b""
        with path.open("rb") as file:
            return file.read(_HEAD)
    except (OSError, ValueError):
        # Missing or unreadable: whoever reads it says so.
        return b""

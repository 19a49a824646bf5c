"""``hessprobe track``: curvature along the saved checkpoints of a run, as a table, a figure and a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe.cli import failures, options, signals
from hessprobe.cli.opening import opens_foreign
from hessprobe.cli.source import check_source, settings_of, source_of
from hessprobe.models.spec import AS_FOUND, Opening
from hessprobe.tracking.names import DEFAULT, RTOL, TRACKED

if TYPE_CHECKING:
    from hessprobe.cli.load import Subject
    from hessprobe.measures import Event, MeasureSettings
    from hessprobe.measures.session import Start
    from hessprobe.tracking import Snapshot

_FORMATS = (".png", ".svg", ".pdf")
# What decides a number beside the checkpoint and the settings of the measures.
_DECIDING = ("objective", "model", "data", "split", "examples", "params", "batchnorm", "batch_size", "dtype", "seed")


@dataclass(frozen=True)
class Request:
    """The options of ``hessprobe track``; None where the user left the choice to the program."""

    run_dir: list[str]
    measure: list[str] | None
    k: int | None
    lr: float | None
    operator: str
    split: str | None
    examples: int | None
    params: list[str] | None
    batchnorm: str | None
    objective: str | None
    model: str | None
    data: str | None
    rtol: float | None
    probes: int | None
    confidence: float
    data_error: bool
    seed: int
    batch_size: int | None
    device: str | None
    dtype: str | None
    engine: str
    memory: str | None
    out: str | None
    json: str | None
    csv: str | None
    debug: bool
    opening: Opening = AS_FOUND

    @property
    def ckpt(self) -> str:
        """The first path, for what all commands share."""
        return self.run_dir[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The measures, the largest eigenvalue first, each once."""
        return tuple(dict.fromkeys(("lambda-max", *(options.separated(self.measure) or DEFAULT))))

    @property
    def figure(self) -> str:
        """Where the figure goes."""
        base = Path(self.ckpt)
        stem = base.resolve().name if base.is_dir() or not base.suffix else base.stem
        return self.out or f"{stem}-track.png"

    @property
    def store(self) -> str:
        """Where finished checkpoints are kept."""
        base = Path(self.figure)
        return str(base.with_name(f"{base.name}.npz"))

    @property
    def plain(self) -> bool:
        """Whether the files are anything but checkpoints of hessprobe train."""
        return self.objective is not None or self.model is not None or self.data is not None


@dataclass
class Outcome:
    """What has come out so far, kept whatever happens next.

    Attributes:
        rows: of the record, in order.
        count: checkpoints in all.
        reused: how many of the rows were found finished.
        title: of what is measured, "" where nothing was loaded.
        data: entry of the record, or None.
        device: where it was measured.
        notes: remarks for a reader.
        failure: what ended the work early, or None.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    reused: int = 0
    title: str = ""
    data: dict[str, Any] | None = None
    device: str = "cpu"
    notes: list[str] = field(default_factory=list)
    failure: BaseException | None = None

    @property
    def interrupted(self) -> bool:
        """Whether the user ended the work."""
        return isinstance(self.failure, KeyboardInterrupt)

    def take(self, row: dict[str, Any], path: str) -> None:
        """Add a finished row, of a file that may have moved since it was measured."""
        about = row["about"]
        self.title, self.data, self.device = about["title"], about["data"], about["device"]
        kept = {key: value for key, value in row.items() if key != "about"}
        self.rows.append({**kept, "checkpoint": path})


@opens_foreign
def track(
    run_dir: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_DIR",
            help="A folder of checkpoints of one run, the --out of hessprobe train --save-every, or the files.",
        ),
    ],
    measure: Annotated[
        list[str] | None,
        typer.Option(
            "--measure",
            "-m",
            metavar="NAME",
            rich_help_panel="What is measured",
            help=f"Beside lambda-max; repeat it for more, or put commas between. One of {', '.join(TRACKED)}. "
            f"Default: {', '.join(DEFAULT)}.",
        ),
    ] = None,
    k: options.K = None,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr",
            metavar="LR",
            rich_help_panel="What is measured",
            help="Learning rate, for the 2/lr line, where the checkpoints do not say it.",
        ),
    ] = None,
    operator: options.Operator = "hessian",
    split: options.Split = None,
    examples: options.Examples = None,
    params: options.Params = None,
    batchnorm: options.BatchNorm = None,
    objective: options.ObjectiveSpec = None,
    model: options.ForeignModel = None,
    data: options.ForeignData = None,
    rtol: Annotated[
        float | None,
        typer.Option(
            "--rtol",
            metavar="R",
            rich_help_panel="How well",
            help=f"Half-width of the intervals to reach, relative to the value; {RTOL:g} by default.",
        ),
    ] = None,
    probes: options.Probes = None,
    confidence: options.Confidence = 0.95,
    data_error: options.DataError = True,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    engine: options.Engine = "auto",
    memory: options.Memory = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="FILE",
            rich_help_panel="Output",
            help="Figure: png, svg or pdf; NAME-track.png by default. What is finished is kept beside it, in .npz.",
        ),
    ] = None,
    json: options.Json = None,
    csv: options.Csv = None,
    debug: options.Debug = False,
    opening: Opening = AS_FOUND,
) -> None:
    """Measure the checkpoints of a run in order, and draw them against the edge of stability.

    All share their data and probes, and each begins from the eigenvectors of the one before.
    An interrupted track goes on where it stopped when the same command is given again.

    Example: hessprobe track digits.pt --out digits-track.png
    """
    run(Request(**locals()))


def run(request: Request) -> None:
    """Measure and draw as asked; what is finished is kept, also when something ends the work early."""
    check(request)

    from hessprobe.tracking import find_snapshots

    settings = _settings(request)
    with failures.as_usage():
        snapshots, notes = find_snapshots(request.run_dir, plain=request.plain)
    outcome = Outcome(count=len(snapshots), notes=notes)
    try:
        collect(request, snapshots, settings, outcome)
    except (KeyboardInterrupt, Exception) as error:
        outcome.failure = failures.ended_by(error)
    from hessprobe.cli.commands.track_output import publish

    with signals.shielded():
        publish(request, outcome)
    failures.leave(outcome.failure, request.debug)


def check(request: Request) -> None:
    """Refuse what can be refused before anything heavy is loaded.

    Raises:
        UsageError: a name that does not exist, a number outside its range, an output that cannot be written.
    """
    for name in options.separated(request.measure) or ():
        options.choice("--measure", name, TRACKED)
    options.choice("--operator", request.operator, options.OPERATORS)
    options.positive("--rtol", request.rtol, below=1)
    options.positive("--confidence", request.confidence, below=1)
    options.positive("--lr", request.lr)
    options.at_least("--probes", request.probes, 2)
    options.at_least("--k", request.k, 1)
    check_source(request)
    if Path(request.figure).suffix.lower() not in _FORMATS:
        raise failures.UsageError(f"--out must end in {', '.join(_FORMATS)}; got {request.figure!r}.")
    from hessprobe.models.progress import is_checkpoint_folder

    for path in request.run_dir if len(request.run_dir) > 1 else ():
        if not Path(path).exists():
            raise failures.UsageError(f"RUN_DIR must exist; got {path!r}. Check the path.")
        if Path(path).is_dir() and not is_checkpoint_folder(path):
            raise failures.UsageError(
                f"RUN_DIR must be one folder, or the files of one run; got the folder {path!r} among others. "
                "Track one run at a time."
            )
    options.check_outputs(out=request.figure, json=request.json, csv=request.csv)


def collect(request: Request, snapshots: list[Snapshot], settings: MeasureSettings, outcome: Outcome) -> None:
    """Measure one checkpoint after the other; each is on disk when it is done."""
    from hessprobe.cli.progress import progress_bars
    from hessprobe.tracking.store import Store, point_key

    store = Store.open(request.store)
    deciding = _deciding(request, settings)
    keys = [point_key(each.sha256, {**deciding, "step": each.step}) for each in snapshots]
    # What another run or other settings left is of another point, or another number of parameters.
    begin = store.start if store.latest in keys else None
    worker = _Worker(request, settings, begin)
    with progress_bars() as update:
        for done, (key, snapshot) in enumerate(zip(keys, snapshots, strict=True)):

            def report(event: Event, done: int = done) -> None:
                if signals.asked():
                    raise KeyboardInterrupt
                share = 0.0 if not event.total else min(event.done / event.total, 1.0)
                update("checkpoints", done + 0.9 * share, len(snapshots), event.stage)

            row = store.rows.get(key)
            outcome.reused += row is not None
            if row is None:
                row = worker.measure(snapshot, report)
                store.add(key, row, worker.start)
            outcome.take(row, snapshot.path)
            update("checkpoints", done + 1, len(snapshots), "")


class _Worker:
    """Measures checkpoint after checkpoint, each from what the one before has left."""

    def __init__(self, request: Request, settings: MeasureSettings, start: Start | None) -> None:
        from hessprobe.measures.session import Start

        self._request, self._settings = request, settings
        self.start = start or Start()
        self._first: tuple[str, Any, str] | None = None

    def measure(self, snapshot: Snapshot, report: Callable[[Event], None]) -> dict[str, Any]:
        """Return the row of one checkpoint."""
        from hessprobe.cli.load import load_subject
        from hessprobe.report.track import point_row
        from hessprobe.tracking import measure_point, rule_of_recipe

        request = self._request
        subject = load_subject(source_of(request, snapshot.path, quiet=self._first is not None))
        self._require_comparable(snapshot, subject)
        lr = request.lr if request.lr is not None else snapshot.lr
        with failures.as_usage():
            point, self.start = measure_point(
                subject.risk,
                self._settings,
                request.names,
                step=snapshot.step,
                rule=rule_of_recipe(snapshot.recipe, lr, snapshot.rho, snapshot.step),
                start=self.start,
                report=report,
                lr=lr,
                epoch=snapshot.epoch,
                scores=snapshot.scores,
            )
        about = {"title": subject.title, "data": subject.data, "device": str(subject.risk.device)}
        return {
            **point_row(point, request.confidence, checkpoint=snapshot.path, sha256=snapshot.sha256),
            "about": about,
        }

    def _require_comparable(self, snapshot: Snapshot, subject: Subject) -> None:
        from hessprobe.errors import DataError
        from hessprobe.vectors import require_same

        found = (snapshot.path, subject.risk.layout, str(subject.data.get("fingerprint")))
        self._first = self._first or found
        name, layout, data = self._first
        require_same([layout, found[1]], [name, found[0]])
        if data != found[2]:
            raise DataError(f"{found[0]} is measured on other data than {name}. Return the same batches for both.")


def _deciding(request: Request, settings: MeasureSettings) -> dict[str, Any]:
    from hessprobe import __version__
    from hessprobe.training.checkpoint import file_sha256

    chosen = {name: getattr(request, name) for name in _DECIDING}
    chosen |= {name: value for name, value in asdict(request.opening).items() if value}
    how = {**asdict(settings), "memory": None, "names": list(request.names), "lr": request.lr}
    path = Path(str(request.objective).rpartition(":")[0])
    code = file_sha256(path) if request.objective is not None and path.is_file() else None
    return {**chosen, **how, "code": code, "version": __version__}


def _settings(request: Request) -> MeasureSettings:
    rtol = RTOL if request.rtol is None else request.rtol
    return settings_of(request, rtol=rtol, n_probes=request.probes, k=request.k or 1)

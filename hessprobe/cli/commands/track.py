"""``hessprobe track``: curvature along the saved checkpoints of a run, as a table, a figure and a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe.cli import completion, options, outputs, process, skeleton
from hessprobe.cli.options import check_source, settings_of
from hessprobe.cli.skeleton import Outcome, arguments_of, carry_out, declared, deliver, watched
from hessprobe.measures.table import entry_of
from hessprobe.models.spec import AS_FOUND, Opening
from hessprobe.tracking.names import ALWAYS, DEFAULT, PRECONDITIONED, RTOL, TRACKED

if TYPE_CHECKING:
    from rich.console import Console

    from hessprobe.cli.load import Subject
    from hessprobe.measures import MeasureSettings, Progress
    from hessprobe.measures.context import Start
    from hessprobe.tracking import Snapshot

    Inputs = tuple[list[Snapshot], MeasureSettings]

# What decides a number beside the checkpoint and the settings of the measures.
_DECIDING = ("objective", "model", "data", "split", "examples", "params", "batchnorm", "batch_size", "dtype", "seed")


@dataclass(frozen=True)
class TrackRequest:
    """The options of ``hessprobe track``; None where the user left the choice to the program."""

    run_dir: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_DIR",
            help="A folder of checkpoints of one run, the --out of hessprobe train --save-every, or the files.",
        ),
    ]
    measure: Annotated[
        list[str] | None,
        typer.Option(
            "--measure",
            "-m",
            metavar="NAME",
            autocompletion=completion.measures_of(TRACKED),
            rich_help_panel="What is measured",
            help=f"Beside {ALWAYS}; repeat it for more, or put commas between. One of {', '.join(TRACKED)}. "
            f"Default: {', '.join(DEFAULT)}.",
        ),
    ] = None
    k: options.K = None
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr",
            metavar="LR",
            rich_help_panel="What is measured",
            help="Learning rate, for the 2/lr line, where the checkpoints do not say it.",
        ),
    ] = None
    operator: options.Operator = "hessian"
    split: options.Split = None
    examples: options.Examples = None
    params: options.Params = None
    batchnorm: options.BatchNorm = None
    objective: options.ObjectiveSpec = None
    model: options.ForeignModel = None
    data: options.ForeignData = None
    rtol: Annotated[
        float | None,
        typer.Option(
            "--rtol",
            metavar="R",
            rich_help_panel="How well",
            help=f"Half-width of the intervals to reach, relative to the value; {RTOL:g} by default.",
        ),
    ] = None
    probes: options.Probes = None
    confidence: options.Confidence = 0.95
    data_error: options.DataError = True
    seed: options.Seed = 0
    batch_size: options.BatchSize = None
    device: options.Device = None
    dtype: options.Dtype = None
    engine: options.Engine = "auto"
    memory: options.Memory = None
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="FILE",
            rich_help_panel="Output",
            help="Figure: png, svg or pdf; NAME-track.png by default. What is finished is kept beside it, in .npz.",
        ),
    ] = None
    width: options.Width = None
    style: options.FigureStyle = "paper"
    report: options.PageFile = None
    json: options.Json = None
    csv: options.Csv = None
    debug: options.Debug = False
    opening: Opening = AS_FOUND

    @property
    def ckpt(self) -> str:
        """The first path, for what all commands share."""
        return self.run_dir[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The measures, the largest eigenvalue first, each once."""
        return tuple(dict.fromkeys((ALWAYS, *(options.separated(self.measure) or DEFAULT))))

    @property
    def figure(self) -> str:
        """Where the figure goes."""
        return self.out or str(outputs.default_figure("track", vars(self)))

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
class Tracked:
    """What has come out so far.

    Attributes:
        rows: of the record, in order.
        count: checkpoints in all.
        reused: how many of the rows were found finished.
        title: of what is measured, "" where nothing was loaded.
        data: entry of the record, or None.
        device: where it was measured.
        notes: remarks for a reader.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    reused: int = 0
    title: str = ""
    data: dict[str, Any] | None = None
    device: str = "cpu"
    notes: list[str] = field(default_factory=list)

    def take(self, row: dict[str, Any], path: str) -> None:
        """Add a finished row, of a file that may have moved since it was measured."""
        about = row["about"]
        self.title, self.data, self.device = about["title"], about["data"], about["device"]
        kept = {key: value for key, value in row.items() if key != "about"}
        self.rows.append({**kept, "checkpoint": path})


@declared(TrackRequest, opening=options.OPENING)
def track(request: TrackRequest) -> None:
    """Measure the checkpoints of a run in order, and draw them against the edge of stability.

    All share their data and probes, and each begins from the eigenvectors of the one before.
    An interrupted track goes on where it stopped when the same command is given again.

    Example: hessprobe track digits.pt --out digits-track.png
    """
    run(request)


def run(request: TrackRequest) -> None:
    """Measure and draw as asked; what is finished is kept, also when something ends the work early."""
    # Finished checkpoints are kept beside the figure, with a journal of the one that is under way.
    carry_out(request, check=check, opened=opened, collect=collect, publish=publish)


def check(request: TrackRequest) -> None:
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
    skeleton.check_drawing(request, request.figure)
    from hessprobe.models.progress import is_checkpoint_folder

    for path in request.run_dir if len(request.run_dir) > 1 else ():
        if not Path(path).exists():
            raise process.UsageError(f"RUN_DIR must exist; got {path!r}. Check the path.")
        if Path(path).is_dir() and not is_checkpoint_folder(path):
            raise process.UsageError(
                f"RUN_DIR must be one folder, or the files of one run; got the folder {path!r} among others. "
                "Track one run at a time."
            )
    options.check_outputs(out=request.figure, json=request.json, csv=request.csv, report=request.report)


def opened(request: TrackRequest) -> tuple[Inputs, Tracked]:
    """Return the checkpoints and how to measure them, and what is found, still empty."""
    from hessprobe.tracking import find_snapshots

    rtol = RTOL if request.rtol is None else request.rtol
    settings = settings_of(request, rtol=rtol, n_probes=request.probes, k=request.k or 1)
    with process.as_usage():
        snapshots, notes = find_snapshots(request.run_dir, plain=request.plain)
    return (snapshots, settings), Tracked(count=len(snapshots), notes=notes)


def collect(request: TrackRequest, inputs: Inputs, outcome: Outcome[Tracked]) -> None:
    """Measure one checkpoint after the other; each is on disk when it is done, and its products as they are made."""
    from hessprobe.measures import Progress
    from hessprobe.tracking.store import Store, point_key

    (snapshots, settings), tracked = inputs, outcome.found
    store = Store.open(request.store)
    deciding = _deciding(request, settings)
    keys = [point_key(each.sha256, {**deciding, "step": each.step}) for each in snapshots]
    # What another run or other settings left is of another point, or another number of parameters.
    begin = store.start if store.latest in keys else None
    worker = _Worker(request, settings, begin)
    with watched(outcome) as report:
        for done, (key, snapshot) in enumerate(zip(keys, snapshots, strict=True)):

            def within(event: Progress, done: int = done) -> None:
                share = 0.0 if not event.total else min(event.done / event.total, 1.0)
                report(Progress(done + 0.9 * share, len(snapshots), stage="checkpoints"), event.stage)

            row = store.rows.get(key)
            tracked.reused += row is not None
            if row is None:
                with skeleton.kept_by_itself(request.store, {"point": key, "after": store.latest}):
                    row = worker.measure(snapshot, within)
                    store.add(key, row, worker.start)
            tracked.take(row, snapshot.path)
            report(Progress(done + 1, len(snapshots), stage="checkpoints"))


class _Worker:
    """Measures checkpoint after checkpoint, each from what the one before has left."""

    def __init__(self, request: TrackRequest, settings: MeasureSettings, start: Start | None) -> None:
        from hessprobe.measures.context import Start

        self._request, self._settings = request, settings
        self.start = start or Start()
        self._first: tuple[str, Any, str] | None = None

    def measure(self, snapshot: Snapshot, report: Callable[[Progress], None]) -> dict[str, Any]:
        """Return the row of one checkpoint."""
        from hessprobe.cli.load import load_subject
        from hessprobe.report.track import point_row
        from hessprobe.tracking import measure_point, rule_of_recipe

        request = self._request
        subject = load_subject(request, snapshot.path, quiet=self._first is not None)
        self._require_comparable(snapshot, subject)
        lr = request.lr if request.lr is not None else snapshot.lr
        with process.as_usage():
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


def _deciding(request: TrackRequest, settings: MeasureSettings) -> dict[str, Any]:
    from hessprobe import __version__
    from hessprobe.training.checkpoint import file_sha256

    chosen = {name: getattr(request, name) for name in _DECIDING}
    chosen |= {name: value for name, value in asdict(request.opening).items() if value}
    how = {**asdict(settings), "memory": None, "names": list(request.names), "lr": request.lr}
    path = Path(str(request.objective).rpartition(":")[0])
    code = file_sha256(path) if request.objective is not None and path.is_file() else None
    return {**chosen, **how, "code": code, "version": __version__}


def publish(request: TrackRequest, inputs: Inputs, outcome: Outcome[Tracked]) -> None:  # noqa: ARG001  # as elsewhere
    """Draw the figure, write record and table of every finished checkpoint, and say what was found."""
    from hessprobe import report

    tracked = outcome.found
    record = report.build_record(
        "track",
        tracked.rows,
        arguments={**arguments_of(request), "measure": list(request.names)},
        seed=request.seed,
        device=tracked.device,
        data=tracked.data,
        files={"points": request.store, **({"figure": request.figure} if tracked.rows else {})},
        notes=[*tracked.notes, *_edge_notes(tracked.rows)],
        **process.entries(outcome.failure),
    )

    def files() -> list[str]:
        from hessprobe.report.track import write_track_csv

        if request.csv is not None:
            write_track_csv(request.csv, record)
        return skeleton.write_drawing(request, record, request.figure) if tracked.rows else []

    def show(console: Console) -> None:
        from hessprobe.cli import render

        if tracked.rows:
            what = f"{tracked.title.partition(': ')[2]}, " if tracked.title else ""
            render.print_line(console, f"{request.ckpt}: {what}{request.operator}, seed {request.seed}")
            track_table(tracked.rows, console)
        for text in _lines(request, outcome):
            render.print_line(console, text)

    deliver(record, request.json, show, files)


def track_table(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print one line a checkpoint; on a narrow terminal columns go, those that matter least first."""
    from hessprobe.cli import render
    from hessprobe.records.typed import Number

    sign = render.plus_minus_for(console)
    order = ["products", "|g|", "epoch", "test", "train", "lr", "align"]
    told = [Number.of(measured) for row in rows for measured in row["measures"].values()]
    layouts = []
    for data in (True, False) if render.tells_data(told) else (False,):
        columns, gone = _columns(rows, sign, data=data), set()
        for name in (None, *order):
            gone.add(name)
            kept = [title for title in columns if title not in gone]
            layouts.append((kept, [[columns[title][index] for title in kept] for index in range(len(rows))]))
    header = render.print_table(layouts, console) or layouts[0][0]
    shown = any(f"{sign} data" in title for title in header)
    for text in render.errors_legend(told, sign):
        if shown or not text.startswith(f"{sign} data"):
            render.print_line(console, text, style="dim")


def _columns(rows: Sequence[Mapping[str, Any]], sign: str, *, data: bool) -> dict[str, list[str]]:
    from hessprobe.cli import render
    from hessprobe.records.typed import Number

    columns = {"step": [str(row["step"]) for row in rows], "epoch": [_text(row["epoch"]) for row in rows]}
    columns |= {"lr": [_text(row["lr"], 3) for row in rows], "loss": [_text(row["loss"], 4) for row in rows]}
    columns["|g|"] = [_text(row["gradient_norm"], 3) for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row["measures"]))
    for name in names:
        title = f"{entry_of(name).short} {sign} meas.{f' {sign} data' if data else ''}"
        # What needs the optimizer's state has no value before its first step.
        known = [Number.of(row["measures"][name]) if name in row["measures"] else None for row in rows]
        columns[title] = ["" if each is None else render.both_errors(each, sign, data=data) for each in known]
    columns["2/lr"] = [_text(row["edge"]["plain"], 4) for row in rows]
    columns["SAM edge"] = [_text(row["edge"]["sharpness_aware"], 4) for row in rows]
    if PRECONDITIONED in names:
        columns["Adam edge"] = [_text(row["edge"].get("preconditioned"), 4) for row in rows]
    columns["align"] = [_text((row["alignment"] or {}).get("first"), 3) for row in rows]
    for split in ("train", "test"):
        columns[split] = [_percent(row["scores"].get(f"{split}_accuracy")) for row in rows]
    columns["products"] = [_text(row["matvecs"], 4) for row in rows]
    return {title: cells for title, cells in columns.items() if any(cells)}


def _lines(request: TrackRequest, outcome: Outcome[Tracked]) -> list[str]:
    tracked = outcome.found
    lines = [*tracked.notes, *_edge_notes(tracked.rows)]
    spent = sum(row["matvecs"] for row in tracked.rows)
    lines.append(f"{len(tracked.rows)} of {tracked.count} checkpoints, {spent:.0f} products in all")
    if tracked.reused:
        lines[-1] += f"; {tracked.reused} of them found in {request.store}"
    if outcome.ending:
        kept = f"what is finished is kept in {request.store}; the same command goes on from there"
        lines.append(f"{outcome.ending}; {kept}")
    return lines


def _edge_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    formulas = {row["edge"]["formula"] for row in rows if row["edge"]["formula"]}
    notes = [
        f"2/lr: the largest stable eigenvalue, here {formula}" for formula in sorted(formulas) if formula != "2/lr"
    ]
    if any(row["edge"]["sharpness_aware"] is not None for row in rows):
        notes.append("SAM edge: the same with SAM's ascent step, at the gradient norm of all measured data")
    if any(row["edge"].get("preconditioned") is not None and PRECONDITIONED in row["measures"] for row in rows):
        notes.append(f"Adam edge: the largest stable {PRECONDITIONED}, (2 + 2 beta1) / ((1 - beta1) lr)")
    missing: dict[str, int] = {}
    for row in rows:
        if row["edge"]["reason"]:
            missing[row["edge"]["reason"]] = missing.get(row["edge"]["reason"], 0) + 1
    advice = {"the learning rate is not known": "; pass --lr"}
    notes += [f"no 2/lr line at {count} checkpoints: {why}{advice.get(why, '')}" for why, count in missing.items()]
    return notes


def _text(number: float | None, digits: int = 6) -> str:
    return "" if number is None else f"{number:.{digits}g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"

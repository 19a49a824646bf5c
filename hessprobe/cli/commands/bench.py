"""``hessprobe bench``: what products, optimizer steps, trained optimizers and landscapes cost on this machine.

With ``--conformance``, whether this and other packages are right in the cases in which tools are wrong without a word.

The Markdown tables of ``hessprobe bench``, made from the rows of its record, few or all of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe.cli import options, process
from hessprobe.cli.skeleton import Outcome, carry_out, declared

if TYPE_CHECKING:
    import torch


_Row = dict[str, Any]


def count(rows: Sequence[_Row]) -> int:
    """Return how many results the rows hold; an optimizer that was timed and not yet trained is none."""
    return sum(row.get("seed", 0) is not None for row in rows)


def page(suite: str, rows: Sequence[_Row], *, rounds: int, seeds: int, incomplete: bool) -> str:
    """Return title and table of the suite, and a word that it is not all where it is not.

    Args:
        suite: ``"steps"``, ``"optimizers"``, ``"landscapes"``, ``"memory"``, ``"vocabulary"`` or ``"growth"``.
        rows: of the record.
        rounds: interleaved rounds that the medians are over.
        seeds: runs of every optimizer.
        incomplete: whether rows are missing.
    """
    title, table = {
        "steps": lambda: _steps_table(rows),
        "optimizers": lambda: _optimizers_table(rows, seeds),
        "landscapes": lambda: _landscapes_table(rows, rounds),
        "memory": lambda: _memory_table(rows),
        "vocabulary": lambda: _vocabulary_table(rows),
        "growth": lambda: _growth_table(rows),
    }[suite]()
    note = "Not complete: these were finished.\n\n" if incomplete else ""
    return f"# {title}\n\n{note}{table}"


def products(rows: Sequence[_Row], titles: dict[str, str], environment: dict[str, Any]) -> str:
    """Return the times of products as Markdown: a row a contestant, a column a network and block size."""
    sizes = sorted({row["vectors"] for row in rows})
    columns = [(name, size) for name in titles for size in sizes]
    cells = {(row["contestant"], row["case"], row["vectors"]): f"{row['ratio']:.2f}" for row in rows}
    lines = ["# Time of a Hessian-vector product, in gradients", ""]
    lines += ["| engine | " + " | ".join(f"{titles[name]}, {_words(size)}" for name, size in columns) + " |"]
    lines += ["|---" * (len(columns) + 1) + "|"]
    for contestant in dict.fromkeys(row["contestant"] for row in rows):
        figures = [cells[contestant, name, size] for name, size in columns]
        lines.append(f"| {contestant} | " + " | ".join(figures) + " |")
    gradients = {row["case"]: row["gradient_milliseconds"] for row in rows}
    lines += ["", "Gradient over 8 batches: " + ", ".join(f"{k} {v:.1f} ms" for k, v in gradients.items()) + "."]
    chosen = {row["case"]: row["note"].split(" (")[0] for row in rows if row["contestant"] == "auto"}
    lines.append("auto chose: " + ", ".join(f"{case} {engine}" for case, engine in chosen.items()) + ".")
    lines.append(
        "Medians of one interleaved run over a loader of 8 batches; per vector; what an engine keeps is kept. "
        f"torch {environment['torch']}, {environment['threads']} threads, {environment['device']}."
    )
    return "\n".join(lines) + "\n"


def _words(size: int) -> str:
    return "one vector" if size == 1 else f"{size} vectors"


def _steps_table(rows: Sequence[_Row]) -> tuple[str, str]:
    from hessprobe.benchmarks.optimizers import NETWORK

    contestants = list(dict.fromkeys(row["contestant"] for row in rows if row["case"] != NETWORK))
    cases = list(dict.fromkeys(row["case"] for row in rows if row["case"] != NETWORK))
    cell = {(row["case"], row["contestant"]): f"{row['milliseconds']:.1f} ({row['ratio']:.2f})" for row in rows}
    lines = ["Milliseconds (ratio to the fastest other package, same round), gradients given:", ""]
    lines += ["| tensors | " + " | ".join(contestants) + " |", "|---" + "|---:" * len(contestants) + "|"]
    lines += [f"| {case} | " + " | ".join(cell[case, one] for one in contestants) + " |" for case in cases]
    whole = [row for row in rows if row["case"] == NETWORK]
    if whole:
        lines += ["", f"{NETWORK}, milliseconds a step (ratio to two gradients and one SGD step, same round):", ""]
        lines += ["| " + " | ".join(row["contestant"] for row in whole) + " |", "|---:" * len(whole) + "|"]
        lines += ["| " + " | ".join(f"{row['milliseconds']:.0f} ({row['ratio']:.3f})" for row in whole) + " |"]
    return "Time of a SAM step", "\n".join(lines) + "\n"


def _optimizers_table(rows: Sequence[_Row], seeds: int) -> tuple[str, str]:
    from hessprobe.benchmarks import family, ranking

    head = (
        f"Digits MLP with LayerNorm, {family.EPOCHS} epochs, batch 32, {family.LABEL_NOISE:.0%} of the training labels "
        f"wrong, every optimizer at its defaults (base SGD, lr 0.1, momentum 0.9), {_runs(seeds)}. "
        "Test accuracy on true labels; curvature of the training loss, each estimate to "
        f"3 %. Time of a step: median ratio to SGD, interleaved, one process.\n\n"
        "Made by `hessprobe bench --suite optimizers --markdown FILE`.\n\n"
    )
    names = [field.name for field in fields(family.TrainedOptimizer)]
    trained = [row for row in rows if row["seed"] is not None]
    runs = [family.TrainedOptimizer(**{name: row[name] for name in names if name in row}) for row in trained]
    times = {row["optimizer"]: (row["time_of_a_step"], *row["time_quartiles"]) for row in rows}
    table = ranking.family_table(runs, times)
    for row in rows:
        if row["seed"] is None:
            table += f"| {row['optimizer']} | not finished | | | | {row['time_of_a_step']:.2f} |\n"
    if any(run.others for run in runs):
        table += "\nTest accuracy in four settings; ! marks a rule that ends below SGD:\n\n" + ranking.settings_table(
            runs
        )
        table += "\nRules that are made to lower a measure:\n\n" + ranking.flattening_table(runs)
    first = ranking.recommendation(runs, times)
    if first:
        head += f"## Which to try first\n\n{first}\n{ranking.flattening_verdict(runs)}\n## All of them\n\n"
    return "Every optimizer on noisy digits", head + table


def _runs(seeds: int) -> str:
    if seeds == 1:
        return "one seed, which leaves the spread between runs unknown (n/a)"
    return f"{seeds} seeds: mean ± standard error of the mean"


def _landscapes_table(rows: Sequence[_Row], rounds: int) -> tuple[str, str]:
    from hessprobe.benchmarks import landscapes

    lines = [
        "| network | contestant | seconds a plane | ms a point | ratio | quartiles |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {landscapes.CASES[row['case']].title} | {row['contestant']} | {row['seconds']:.2f} | "
        f"{row['milliseconds']:.2f} | {row['ratio']:.3f} | {_quartiles(row)} |"
        for row in rows
    ]
    size = landscapes.SIZE
    sizes = "; ".join(f"{case.title}: {case.size} x {case.size} points" for case in landscapes.CASES.values())
    lines += [
        "",
        f"A plane of {size} x {size} points, the loss at each; ratio to as many plain forward passes under no_grad, "
        f"medians over {rounds} interleaved rounds. hessprobe includes making the directions and choosing how "
        f"many points a pass holds. Timed were ({sizes}); the rest of the plane is the time of a point once more.",
    ]
    return "Time of a loss landscape", "\n".join(lines) + "\n"


def _memory_table(rows: Sequence[_Row]) -> tuple[str, str]:
    from hessprobe.benchmarks.memory import MB, SETTINGS

    lines = [
        "| network | measure | limit (MB) | peak (MB) | of the limit | vectors | seconds | value |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        title = f"{SETTINGS[row['case']].title}, {row['parameters'] / 1e6:.2f} M parameters"
        limit = "none" if row["limit"] is None else f"{row['limit'] / MB:.0f}"
        if row["peak"] is None:
            lines.append(f"| {title} | {row['measure']} | {limit} | | | | | {row['refused']} |")
            continue
        share = "" if row["limit"] is None else f"{row['peak'] / row['limit']:.0%}"
        low, high = row["interval"]
        lines.append(
            f"| {title} | {row['measure']} | {limit} | {row['peak'] / MB:.0f} | {share} | {row['vectors']:.1f} | "
            f"{row['seconds']:.1f} | {row['value']:.4g} ({low:.4g} to {high:.4g}), {row['products']:.0f} products |"
        )
    lines += [
        "",
        "Peak of the resident set of a process of its own above its start, when network, data and libraries are there; "
        "vectors: the same in units of the parameters. Intervals to 10 %, of 200 million parameters to 30 %. "
        "Where a limit is too small, what is said.",
    ]
    return "Memory of a measurement", "\n".join(lines) + "\n"


def _vocabulary_table(rows: Sequence[_Row]) -> tuple[str, str]:
    from hessprobe.benchmarks.memory import MB
    from hessprobe.benchmarks.vocabulary import CASES

    lines = [
        "| case | matrix | logits | gradient | first product | further | peak (MB) | of written out | error |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    out = {(row["case"], row["matrix"]): row["peak"] for row in rows if row["way"] == "written out"}
    for row in rows:
        whole = out.get((row["case"], row["matrix"]))
        peak = "" if row["peak"] is None else f"{row['peak'] / MB:.0f}"
        share = f"{row['peak'] / whole:.0%}" if row["peak"] and whole else ""
        lines.append(
            f"| {CASES[row['case']].title} | {row['matrix']} | {row['way']} | {row['gradient']:.2f} | "
            f"{row['first']:.2f} | {row['further']:.2f} | {peak} | {share} | {row['relative_error']:.1g} |"
        )
    lines += [
        "",
        "Time of the CPU in gradients of the loss written out, the least of 3 rounds side by side; a first product by "
        "double backward includes loss and gradient. Peak of the resident set of a process of its own above its start, "
        "during a first product. Error: of the product in float32, relative to that written out.",
    ]
    return "Products over a large vocabulary", "\n".join(lines) + "\n"


def _growth_table(rows: Sequence[_Row]) -> tuple[str, str]:
    from hessprobe.benchmarks.growth import page as growth_page

    return "How the time of a measurement grows", growth_page(rows)


def _quartiles(row: _Row) -> str:
    return "n/a" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"


_NAMES, _ANSWERED = ("mlp", "resnet20", "gpt"), ("a", "b", "c", "d")
_SUITES = (
    "products",
    "answers",
    "steps",
    "optimizers",
    "landscapes",
    "memory",
    "vocabulary",
    "conformance",
    "gpu",
    "growth",
)

Rows = list[dict[str, Any]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchRequest:
    """The options of ``hessprobe bench``."""

    suite: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="products: Hessian-vector products; answers: lambda_max, traces and norms of trained networks, from "
            "the question to the number; steps: SAM steps against other packages; "
            "optimizers: train and measure every optimizer; landscapes: points of a plane; memory: what a measurement "
            "takes, without a limit and with some; gpu: answers about networks that need one; growth: "
            "times over two decades of examples, parameters and probes; "
            "vocabulary: products over 50,000 words, logits written out and in "
            "chunks; conformance: the same cases on every tool that is installed.",
        ),
    ] = "products"
    conformance: Annotated[bool, typer.Option("--conformance", help="Short for --suite conformance.")] = False
    case: Annotated[
        list[str] | None,
        typer.Option(
            "--case",
            metavar="NAME",
            help="mlp, resnet20 or gpt; all by default. For memory also digits, gpt-50m, gpt-200m; for "
            "answers a to d; for vocabulary head-64, head-768, gpt2; for gpu resnet18, gpt-124m, gpt-1b.",
        ),
    ] = None
    peers: Annotated[
        bool,
        typer.Option("--peers", help="The suite answers, other packages beside hessprobe where they are installed."),
    ] = False
    gpu: Annotated[bool, typer.Option("--gpu", help="Short for --suite gpu, ten minutes on one card.")] = False
    tiny: Annotated[
        bool, typer.Option("--tiny", help="For gpu: small stand-ins, on any device, to see that it runs.")
    ] = False
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FOLDER",
            help="For answers and gpu: where cifar10-jpeg.tar.xz and tinyshakespeare.txt lie; by default handwritten "
            "digits, scaled up, and the source of a module of Python.",
        ),
    ] = None
    rounds: Annotated[int, typer.Option("--rounds", help="Interleaved rounds.")] = 9
    optimizer: Annotated[
        list[str] | None, typer.Option("--optimizer", metavar="NAME", help="For optimizers: which; all by default.")
    ] = None
    seeds: Annotated[int, typer.Option("--seeds", help="For optimizers: runs of each.")] = 3
    jobs: Annotated[int, typer.Option("--jobs", help="For optimizers and conformance: processes side by side.")] = 1
    device: options.Device = None
    json: options.Json = None
    markdown: Annotated[str | None, typer.Option("--markdown", metavar="FILE", help="Write the table as Markdown.")] = (
        None
    )
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from what a stopped run of this command left in, or beside, --json.")
    ] = False
    debug: options.Debug = False

    def __post_init__(self) -> None:
        if self.conformance and self.suite == "products":
            object.__setattr__(self, "suite", "conformance")
        if self.gpu and self.suite == "products":
            object.__setattr__(self, "suite", "gpu")
        if self.peers and self.suite == "products":
            object.__setattr__(self, "suite", "answers")

    @property
    def cases(self) -> tuple[str, ...]:
        """The networks on which products are timed, each once, in order."""
        return tuple(dict.fromkeys(self.case or _NAMES))

    @property
    def arguments(self) -> dict[str, Any]:
        """The options that the suite reads, for its record."""
        if self.suite == "products":
            return {"case": list(self.cases), "rounds": self.rounds, "device": self.device}
        if self.suite in ("memory", "vocabulary"):
            return {"suite": self.suite, "case": list(self.case or ())}
        if self.suite in ("answers", "gpu"):
            found = {"suite": self.suite, "case": list(self.case or ()), "peers": self.peers, "data": self.data}
            return found | ({"tiny": self.tiny, "device": self.device} if self.suite == "gpu" else {})
        names = ("suite", "rounds", "optimizers", "seeds", "jobs", "json", "markdown", "resume")
        return {name: getattr(self, name, self.optimizer or ()) for name in names}


@declared(BenchRequest)
def bench(request: BenchRequest) -> None:
    """Time Hessian-vector products, optimizer steps or points of landscapes, or hold tools to the same cases.

    Example: hessprobe bench --case mlp --rounds 5
    """
    # Runs of optimizers are kept in the record itself.
    facts = None if request.suite == "optimizers" else _facts
    carry_out(request, check=check, opened=opened, collect=collect, publish=publish, facts=facts)


def _facts(request: BenchRequest, device: torch.device) -> dict[str, Any]:  # noqa: ARG001  # as elsewhere
    return {"on": str(device)}


def check(request: BenchRequest) -> None:
    """Refuse what can be refused before anything heavy is loaded.

    Raises:
        UsageError: a name that does not exist, a number outside its range, an output that cannot be written.
    """
    options.choice("--suite", request.suite, _SUITES)
    if request.conformance and request.suite != "conformance":
        raise process.UsageError(
            f"--conformance is --suite conformance; got --suite {request.suite} as well. Give one of the two."
        )
    for option, given, suites in (
        ("--peers", request.peers, ("answers", "gpu")),
        ("--data", request.data, ("answers", "gpu")),
        ("--tiny", request.tiny, ("gpu",)),
        ("--gpu", request.gpu, ("gpu",)),
    ):
        if given and request.suite not in suites:
            names = " or ".join(suites)
            raise process.UsageError(f"{option} is for --suite {names}; got --suite {request.suite}. Leave it out.")
    if request.data is not None and not os.path.isdir(request.data):
        raise process.UsageError(f"--data must be a folder; got {request.data!r}. Check the path, or leave it out.")
    if request.suite == "products":
        for name in request.cases:
            options.choice("--case", name, _NAMES)
        options.at_least("--rounds", request.rounds, 1)
    else:
        options.at_least("--rounds", request.rounds, 2)
        options.at_least("--seeds", request.seeds, 1)
        options.at_least("--jobs", request.jobs, 1)
    options.check_outputs(json=request.json, markdown=request.markdown)
    if request.suite == "answers":
        for name in request.case or ():
            options.choice("--case", name, _ANSWERED)
    if request.suite == "gpu":
        from hessprobe.benchmarks import accelerator

        for name in request.case or ():
            options.choice("--case", name, tuple(accelerator.ASKED))
    if request.suite == "memory":
        from hessprobe.benchmarks import memory

        for name in request.case or ():
            options.choice("--case", name, tuple(memory.SETTINGS))
    if request.suite == "vocabulary":
        from hessprobe.benchmarks import vocabulary

        for name in request.case or ():
            options.choice("--case", name, tuple(vocabulary.CASES))
    if request.suite == "optimizers":
        from hessprobe.benchmarks import family

        known = tuple(family.optimizer_names())
        for name in request.optimizer or ():
            options.choice("--optimizer", name, known)


def opened(request: BenchRequest) -> tuple[torch.device, Rows]:
    """Return where it is timed, and the rows of the record, still none."""
    from hessprobe.cli.load import resolve_device

    process.settle_threads()
    if request.suite == "gpu":
        device = resolve_device(request.device)
        if device.type == "cpu" and not request.tiny:
            raise process.UsageError(
                "--suite gpu needs an accelerator, or it would take days; got the device cpu. Pass --tiny to see that "
                "it runs, or --suite answers for networks that a processor measures."
            )
        return device, []
    return resolve_device(request.device if request.suite == "products" else "cpu"), []


def collect(request: BenchRequest, device: torch.device, outcome: Outcome[Rows]) -> None:
    """Time or train as asked, adding rows as they come."""
    from hessprobe.cli.outputs import status_line

    suites = {
        "answers": _answers,
        "steps": _steps,
        "optimizers": _optimizers,
        "landscapes": _landscapes,
        "memory": _memory,
        "vocabulary": _vocabulary,
        "growth": _growth,
        "conformance": _conformance,
    }
    with status_line() as report:
        if request.suite == "products":
            _products(request, device, outcome.found, report)
        elif request.suite == "gpu":
            _gpu(request, device, outcome.found, report)
        else:
            suites[request.suite](request, outcome.found, report)


def publish(request: BenchRequest, device: torch.device, outcome: Outcome[Rows]) -> None:
    """Print the table, and write it and the record of everything that was finished."""
    from hessprobe import files, report

    rows, products = outcome.found, request.suite == "products"
    if rows or not products:
        ended: dict[str, Any] = process.entries(outcome.failure)
        if products:
            ended = {"flags": [outcome.ending] if outcome.ending else None}
        record = _record(request, device, rows, ended)
        text = _table(request, outcome, record["environment"]) if rows else ""
        if request.markdown is not None and text:
            files.write_atomically(request.markdown, lambda stream: stream.write(text.encode()))
        _write(request, record)
        sys.stdout.write(report.to_json(record) if request.json == "-" else text)
    if outcome.interrupted and products:
        timed = {row["case"] for row in rows}
        process.say(f"interrupted; not timed: {', '.join(name for name in request.cases if name not in timed)}")
    elif outcome.interrupted:
        where = f"; what is known is in {request.json}" if request.json not in (None, "-") else ""
        process.say(f"interrupted after {count(rows)} results{where}")


def _record(request: BenchRequest, device: Any, rows: Rows, ended: Mapping[str, Any]) -> dict[str, Any]:
    from hessprobe import report

    return report.build_record("bench", [], arguments=request.arguments, seed=0, device=device, timings=rows, **ended)


def _write(request: BenchRequest, record: dict[str, Any]) -> None:
    from hessprobe import report

    if request.json not in (None, "-"):
        report.write_record(str(request.json), record)


def _table(request: BenchRequest, outcome: Outcome[Rows], machine: dict[str, Any]) -> str:
    rows = outcome.found
    if request.suite == "conformance":
        from hessprobe.benchmarks.conformance.page import page as conformance_page

        return conformance_page(rows, _machine(machine), incomplete=outcome.failure is not None)
    if request.suite in ("answers", "gpu"):
        from hessprobe.benchmarks import accelerator
        from hessprobe.benchmarks.answers import page as answers_page

        networks = accelerator.networks(tiny=request.tiny) if request.suite == "gpu" else None
        return answers_page(rows, _machine(machine), incomplete=outcome.failure is not None, networks=networks)
    if request.suite == "products":
        from hessprobe.benchmarks import CASES

        timed = {row["case"] for row in rows}
        return products(rows, {name: CASES[name].title for name in request.cases if name in timed}, machine)
    text = page(request.suite, rows, rounds=request.rounds, seeds=request.seeds, incomplete=outcome.failure is not None)
    return f"{text}\n{_machine(machine)}\n"


def _machine(machine: dict[str, Any]) -> str:
    return f"torch {machine['torch']}, {machine['threads']} threads, {machine['device']}."


def _conformance(request: BenchRequest, rows: Rows, report: Say) -> None:
    from hessprobe.benchmarks.conformance import compare
    from hessprobe.hvp import engines

    known: dict[tuple[str, str], list[compare.Cell]] = {}
    for part, tool in compare.columns():
        if engines.decided(key := f"rows of {part}, {tool}"):
            known[part, tool] = [compare.Cell(**row) for row in engines.value(key, list)]
            rows.extend(cell.row() for cell in known[part, tool])

    def finished(tool: str, cells: Sequence[compare.Cell]) -> None:
        made = engines.value(f"rows of {cells[0].part}, {tool}", lambda: [cell.row() for cell in cells])
        rows.extend(made)
        report(f"{tool}: {len(cells)} cases")

    cells = compare.compare_tools(limit=compare.LIMIT, jobs=request.jobs, finished=finished, known=known)
    rows[:] = [cell.row() for cell in cells]


def _once(name: str, time: Callable[[], Iterable[Any]]) -> Rows:
    """Return the rows of what is timed, or those that a stopped run of this command has written down."""
    from hessprobe.hvp import engines

    def rows() -> Rows:
        with engines.unwritten():
            return [timing.row() for timing in time()]

    found: Rows = engines.value(f"rows of {name}", rows)
    return found


def _products(request: BenchRequest, device: torch.device, rows: Rows, report: Say) -> None:
    from hessprobe import benchmarks

    for name in request.cases:
        case = benchmarks.CASES[name]
        how: dict[str, Any] = {"rounds": request.rounds, "device": device, "report": report}
        rows += _once(name, partial(benchmarks.time_products, case, **how))


def _answers(request: BenchRequest, rows: Rows, report: Say) -> None:
    from hessprobe.benchmarks import answers

    folder = None if request.data is None else Path(request.data)
    for name in dict.fromkeys(request.case or _ANSWERED):
        network = answers.NETWORKS[name]
        how: dict[str, Any] = {"peers": request.peers, "folder": folder, "report": report}
        rows += _once(name, partial(answers.time_answers, network, **how))


def _gpu(request: BenchRequest, device: torch.device, rows: Rows, report: Say) -> None:
    from hessprobe.benchmarks import accelerator

    # Nothing is written down on the way: what takes ten minutes is begun anew.
    accelerator.follow(
        device,
        lambda answer: rows.append(answer.row()),
        cases=tuple(request.case or ()),
        tiny=request.tiny,
        peers=request.peers,
        folder=None if request.data is None else Path(request.data),
        report=report,
    )


def _growth(request: BenchRequest, rows: Rows, report: Say) -> None:  # noqa: ARG001  # as elsewhere
    from hessprobe.benchmarks import growth

    growth.measure(lambda grown: rows.append(grown.row()), report=report)


def _steps(request: BenchRequest, rows: Rows, report: Say) -> None:
    from hessprobe.benchmarks import optimizers

    for name in optimizers.SHAPES:
        report(f"parameters {name}")
        rows += _once(name, partial(optimizers.time_shapes, name, rounds=request.rounds))
    report(optimizers.NETWORK)
    rows += _once(optimizers.NETWORK, partial(optimizers.time_network, rounds=request.rounds))


def _optimizers(request: BenchRequest, rows: Rows, report: Say) -> None:
    from hessprobe.benchmarks import family

    names = list(dict.fromkeys(request.optimizer or ())) or family.optimizer_names()
    report("timing steps")
    times = family.time_optimizers(names, rounds=request.rounds)
    timed = {name: {"time_of_a_step": times[name][0], "time_quartiles": times[name][1:]} for name in names}

    def finished(run: family.TrainedOptimizer, done: int, total: int) -> None:
        rows.append({**run.row(), **timed[run.optimizer]})
        report(f"{done} of {total}: {run.optimizer}, seed {run.seed}")
        # What ends this program without a word leaves something to --resume from.
        _write(request, _record(request, "cpu", rows, {"flags": ["interrupted"]}))

    options_of_a_resumed_run: dict[str, Any] = {}
    if request.resume:
        known = _known(request.json)
        for run in known:
            if run.optimizer in timed and run.seed < request.seeds and run.epochs == family.EPOCHS:
                rows.append({**run.row(), **timed[run.optimizer]})
        options_of_a_resumed_run["known"] = known
    try:
        family.compare_optimizers(
            names, seeds=range(request.seeds), jobs=request.jobs, report=finished, **options_of_a_resumed_run
        )
    finally:
        order = {name: index for index, name in enumerate(names)}
        rows.sort(key=lambda row: (order[row["optimizer"]], row["seed"]))
        trained = {row["optimizer"] for row in rows}
        rows += [{"optimizer": name, "seed": None, **timed[name]} for name in names if name not in trained]


def _known(path: str | None) -> list[Any]:
    """Return the runs that a record of this suite holds, none where there is no such file."""
    from hessprobe import report
    from hessprobe.benchmarks import family

    if path in (None, "-") or not os.path.exists(str(path)):
        return []
    names = {each.name for each in fields(family.TrainedOptimizer)}
    rows = [row for row in report.read_record(str(path))["timings"] if row["seed"] is not None and "epochs" in row]
    return [family.TrainedOptimizer(**{key: row[key] for key in row if key in names}) for row in rows]


def _memory(request: BenchRequest, rows: Rows, report: Say) -> None:
    from hessprobe.benchmarks import memory

    for task in memory.tasks(request.case or memory.USUAL):
        rows += _once(f"{task}", partial(memory.follow, task, report))


def _vocabulary(request: BenchRequest, rows: Rows, report: Say) -> None:
    from hessprobe.benchmarks import vocabulary

    vocabulary.follow(request.case or tuple(vocabulary.CASES), lambda taken: rows.append(taken.row()), report)


def _landscapes(request: BenchRequest, rows: Rows, report: Say) -> None:
    from hessprobe.benchmarks import landscapes

    for name, case in landscapes.CASES.items():
        rows += _once(name, partial(landscapes.time_planes, case, rounds=request.rounds, report=report))

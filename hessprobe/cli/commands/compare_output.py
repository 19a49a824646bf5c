"""What ``hessprobe compare`` prints and records."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hessprobe import comparison, report
from hessprobe.cli import render
from hessprobe.cli.wording import flag_sentence, in_options
from hessprobe.comparison.differences import Line
from hessprobe.comparison.names import UNDECIDED, grows_with_size
from hessprobe.comparison.rescaling import rescaling_of
from hessprobe.report.comparison import difference_row, verdict_text, write_comparison_csv
from hessprobe.report.numbers import number_texts, row_error

if TYPE_CHECKING:
    from rich.console import Console

    from hessprobe.cli.commands.compare import Member, Outcome, Request

# Common probes that make a standard error smaller by less than this are no gain.
_NO_GAIN = 1.1


def publish(request: Request, outcome: Outcome) -> None:
    """Print the tables and write record and CSV of everything that is known."""
    record = make_record(request, outcome)
    try:
        if request.json not in (None, "-"):
            report.write_record(str(request.json), record)
        if request.csv is not None:
            write_comparison_csv(request.csv, record)
    finally:
        if request.json == "-":
            sys.stdout.write(report.to_json(record))
        else:
            _print(request, outcome, record)


def make_record(request: Request, outcome: Outcome) -> dict[str, Any]:
    """Return the record: values, differences, correlations, and what they mean."""
    known = [member for member in outcome.members if member.results]
    lines = _lines(request, known)
    rows = [
        {"checkpoint": member.label, **report.result_row(result, request.confidence)}
        for member in known
        for result in member.results
    ]
    rescaling = rescaling_of({member.label: member.rescalings for member in known}, request.names) if known else None
    flags = ["interrupted"] if outcome.interrupted else ["failed"] if outcome.broken else []
    return report.build_record(
        "compare",
        rows,
        arguments={**asdict(request), "measure": list(request.names)},
        seed=request.seed,
        device=outcome.device,
        data=known[0].data if known else None,
        checkpoints=[_member_row(member) for member in outcome.members],
        baseline=known[0].label if known else None,
        differences=[difference_row(line, request.confidence) for line in lines],
        rescaling=None if rescaling is None else {**asdict(rescaling), "sentence": rescaling.sentence},
        flags=flags,
        errors=outcome.broken or None,
    )


def _lines(request: Request, known: Sequence[Member]) -> list[Line]:
    if len(known) < 2:
        return []
    values = {member.label: {one.measure: one.estimate for one in member.results} for member in known}
    return comparison.compare(values, known[0].label, confidence=request.confidence)


def _member_row(member: Member) -> dict[str, Any]:
    return {
        "label": member.label,
        "path": member.path,
        "dim": member.dim or None,
        "checkpoint": member.checkpoint,
        "rescalings": None if member.rescalings is None else list(member.rescalings),
        "gaps": member.gaps or None,
        "errors": list(member.failures),
    }


def _print(request: Request, outcome: Outcome, record: Mapping[str, Any]) -> None:
    console = render.stdout_console()
    known = [member for member in outcome.members if member.results]
    if known:
        count = f"{request.probes} probes, the same for all"
        render.print_line(console, f"{known[0].title}, {request.operator}, seed {request.seed}, {count}")
        _table(record, console)
        for text in _remarks(record):
            render.print_line(console, text, style="dim")
    if outcome.failure is not None:
        render.print_line(console, "interrupted" if outcome.interrupted else "failed")


def _table(record: Mapping[str, Any], console: Console) -> None:
    sign = render.plus_minus_for(console)
    level = f"{100 * record['arguments']['confidence']:.4g}% interval"
    header = ["measure", "checkpoint", f"value {sign} error", level, f"difference's {level}", "verdict"]
    differences = {(row["checkpoint"], row["measure"]): row for row in record["differences"]}
    full = [
        _cells(row, differences.get((row["checkpoint"], name)), record, sign)
        for name in record["arguments"]["measure"]
        for row in record["results"]
        if row["measure"] == name
    ]
    columns = (range(6), (0, 1, 2, 4, 5), (0, 1, 2, 5), (0, 1, 5))
    layouts = [([header[i] for i in kept], [[row[i] for i in kept] for row in full]) for kept in columns]
    render.print_table(layouts, console)


def _cells(row: Mapping[str, Any], found: Mapping[str, Any] | None, record: Mapping[str, Any], sign: str) -> list[str]:
    shown, interval = render.result_cells(row, sign)[:2]
    cells = [row["measure"], row["checkpoint"], shown, interval]
    if found is None:
        return [*cells, "", "baseline" if row["checkpoint"] == record["baseline"] else ""]
    low, high = number_texts(found["value"], row_error(found), *found["interval"])[2:]
    return [*cells, f"{low} to {high}", verdict_text(found, sign)]


def _remarks(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the sentences under the table."""
    differences = record["differences"]
    yield from _multiplicity(record)
    yield from _pairing(differences)
    if record["rescaling"] is not None:
        yield record["rescaling"]["sentence"]
    sizes = {member["label"]: member["dim"] for member in record["checkpoints"] if member["dim"]}
    if len(set(sizes.values())) > 1:
        grown = [name for name in record["arguments"]["measure"] if grows_with_size(name)]
        listed = ", ".join(f"{label} {dim:,}" for label, dim in sizes.items())
        what = f"{', '.join(grown)} add up over them, so part of a difference is one of size" if grown else ""
        offer = "" if "diagonal" in record["arguments"]["measure"] else "; --measure diagonal is trace / d"
        yield f"parameters differ ({listed}): probes cannot be paired{'; ' + what if what else ''}{offer}"
    flagged: dict[str, list[str]] = {}
    for row in record["results"]:
        for flag in row["flags"]:
            flagged.setdefault(flag_sentence(flag), []).append(f"{row['measure']} of {row['checkpoint']}")
    for sentence, where in flagged.items():
        yield f"{', '.join(where)}: {in_options(sentence)}"


def _multiplicity(record: Mapping[str, Any]) -> Iterator[str]:
    judged = [row for row in record["differences"] if row["verdict"] != UNDECIDED]
    if len(judged) < 2:
        return
    confidence = record["arguments"]["confidence"]
    level, chance = f"{100 * confidence:.4g}%", len(judged) * (1 - confidence)
    alone = any(row["p"] is not None and not row["stands"] and row["verdict"] != "within error" for row in judged)
    text = f"{len(judged)} differences are judged at {level} each: where nothing differs, {chance:.2g} would seem to"
    yield text + (f"; those marked (alone) do not hold at {level} for all together (Holm)" if alone else "")


def _pairing(differences: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield how much common probes bring for each measure."""
    gains: dict[str, list[float]] = {}
    for row in differences:
        if row["gain"] is not None:
            gains.setdefault(row["measure"], []).append(row["gain"])
    helped = {name: own for name, own in gains.items() if max(own) >= _NO_GAIN}
    if helped:
        texts = [
            f"{name} {min(own):.2g}{f' to {max(own):.2g}' if len(own) > 1 else ''}" for name, own in helped.items()
        ]
        yield f"common probes make the errors of differences smaller, by a factor of: {', '.join(texts)}"
    idle = [name for name in gains if name not in helped]
    if idle:
        yield f"{', '.join(idle)}: common probes bring nothing, the sampling errors of these networks are uncorrelated"
    apart = list(dict.fromkeys(row["measure"] for row in differences if "not-paired" in row["flags"]))
    if apart:
        yield f"{', '.join(apart)}: samples cannot be paired, so the errors of both are added, a bound"

"""The tables of ``hessprobe compare``, from its record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hessprobe.cli import render
from hessprobe.cli.wording import flag_sentence, in_options
from hessprobe.comparison.differences import GAPS
from hessprobe.comparison.names import FEWEST, UNDECIDED, WITHIN, grows_with_size
from hessprobe.records.typed import number_texts
from hessprobe.report.comparison import ON_OTHER_DATA, verdict_text

if TYPE_CHECKING:
    from rich.console import Console

    from hessprobe.records.compare import CompareRecord, Correlation, Difference, Value


# Common probes that make a standard error smaller by less than this are no gain.
_NO_GAIN = 1.1
# What a narrow table says in place of ``ON_OTHER_DATA``; a sentence under it names these differences.
_BRIEFLY = " (data)"


def show(found: CompareRecord, names: Sequence[str], confidence: float, console: Console) -> None:
    """Print the tables of a comparison, and what belongs under them.

    Args:
        found: the record.
        names: of the measures, in the order of the rows.
        confidence: level of the intervals.
        console: where to.
    """
    _table(found, names, confidence, console)
    for text in _remarks(found, names, confidence):
        render.print_line(console, text, style="dim")
    if found.correlations is not None:
        render.print_line(console, "")
        _correlations(found.correlations, confidence, console)


def _table(found: CompareRecord, names: Sequence[str], confidence: float, console: Console) -> None:
    sign = render.plus_minus_for(console)
    numbers = [row.measured.number for row in found.results]
    header = ["measure", "checkpoint", *render.errors_header(numbers, sign)]
    last = len(header)
    header += [f"difference's {100 * confidence:.4g}% interval", "verdict"]
    differences = {(one.checkpoint, one.measure): one for one in found.differences}
    data = render.tells_data(numbers)
    full = [
        [
            name,
            row.checkpoint,
            *render.error_cells(row.measured.number, sign, data=data),
            *_judged(row, differences.get((row.checkpoint, name)), found.baseline, sign),
        ]
        for name in names
        for row in found.results
        if row.measured.measure == name
    ]
    brief = [[*row[:-1], row[-1].replace(ON_OTHER_DATA, _BRIEFLY)] for row in full]
    # The interval goes first, then words that stand under the table too; then the measurement's error, as the verdict
    # has that of the difference.
    both, one, value = [2, *range(3, last)], [2, *range(4, last)], [2]
    columns: tuple[tuple[list[list[str]], list[int]], ...]
    columns = ((full, both), (brief, both), (brief, one), (brief, value), (brief, []))
    layouts = [(header, full)]
    layouts += [_kept(header, rows, (0, 1, *kept, last + 1)) for rows, kept in columns]
    render.print_table(layouts, console)
    for text in render.errors_legend(numbers, sign):
        render.print_line(console, text, style="dim")


def _kept(header: list[str], rows: list[list[str]], kept: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _judged(row: Value, found: Difference | None, baseline: str | None, sign: str) -> list[str]:
    if found is None:
        return ["", "baseline" if row.checkpoint == baseline else ""]
    low, high = number_texts(found.number.value, found.number.error, *found.number.interval)[2:]
    return [f"{low} to {high}", verdict_text(found, sign)]


def _remarks(record: CompareRecord, names: Sequence[str], confidence: float) -> Iterator[str]:
    """Yield the sentences under the table."""
    differences = record.differences
    yield from _multiplicity(differences, confidence)
    yield from _other_data(differences)
    yield from _pairing(differences)
    if differences and record.rescaling is not None:
        yield record.rescaling.sentence
    sizes = {member.label: member.dim for member in record.checkpoints if member.dim}
    if len(set(sizes.values())) > 1:
        grown = [name for name in names if grows_with_size(name)]
        listed = ", ".join(f"{label} {dim:,}" for label, dim in sizes.items())
        what = f"{', '.join(grown)} add up over them, so part of a difference is one of size" if grown else ""
        offer = "" if "diagonal" in names else "; --measure diagonal is trace / d"
        yield f"parameters differ ({listed}): probes cannot be paired{'; ' + what if what else ''}{offer}"
    flagged: dict[str, list[str]] = {}
    for row in record.results:
        for flag in row.measured.number.flags:
            flagged.setdefault(flag_sentence(flag), []).append(f"{row.measured.measure} of {row.checkpoint}")
    for sentence, where in flagged.items():
        yield f"{', '.join(where)}: {in_options(sentence)}"


def _multiplicity(differences: Sequence[Difference], confidence: float) -> Iterator[str]:
    judged = [row for row in differences if row.verdict != UNDECIDED]
    if len(judged) < 2:
        return
    level, chance = f"{100 * confidence:.4g}%", len(judged) * (1 - confidence)
    alone = any(row.p is not None and not row.stands and row.verdict != WITHIN for row in judged)
    text = f"{len(judged)} differences are judged at {level} each: where nothing differs, {chance:.2g} would seem to"
    yield text + (f"; those marked (alone) do not hold at {level} for all together (Holm)" if alone else "")


def _other_data(differences: Sequence[Difference]) -> Iterator[str]:
    """Yield which differences might vanish on other data of this kind."""
    known = [row for row in differences if row.beyond_data is not None]
    lost: dict[str, list[str]] = {}
    for row in known:
        if not row.beyond_data:
            lost.setdefault(row.measure, []).append(row.checkpoint)
    if lost:
        texts = [f"{name} of {', '.join(labels)}" for name, labels in lost.items()]
        yield f"on other data of this kind these differences might vanish (jackknife over examples): {'; '.join(texts)}"
    elif known:
        which = "the difference is" if len(known) == 1 else f"all {len(known)} differences are"
        yield f"{which} also beyond what other data of this kind would change (jackknife over examples)"


def _pairing(differences: Sequence[Difference]) -> Iterator[str]:
    """Yield how much common probes bring for each measure."""
    gains: dict[str, list[float]] = {}
    for row in differences:
        if row.gain is not None:
            gains.setdefault(row.measure, []).append(row.gain)
    helped = {name: own for name, own in gains.items() if max(own) >= _NO_GAIN}
    if helped:
        texts = [
            f"{name} {min(own):.2g}{f' to {max(own):.2g}' if len(own) > 1 else ''}" for name, own in helped.items()
        ]
        yield f"common probes make the errors of differences smaller, by a factor of: {', '.join(texts)}"
    idle = [name for name in gains if name not in helped]
    if idle:
        why = "as the sampling errors of these networks are uncorrelated"
        yield f"{', '.join(idle)}: common probes give no variance reduction, {why}"
    apart = list(dict.fromkeys(row.measure for row in differences if "not-paired" in row.number.flags))
    if apart:
        yield f"{', '.join(apart)}: samples cannot be paired, so the errors of both are added, a bound"


def _correlations(rows: Sequence[Correlation], confidence: float, console: Console) -> None:
    """Print one line a measure and gap, and what the intervals are about."""
    if not rows:
        text = f"no correlation: fewer than {FEWEST} checkpoints have been measured and have recorded both losses"
        render.print_line(console, text)
        return
    level = f"{100 * confidence:.4g}% interval"
    header = ["measure", "gap", "Kendall's tau", level, "checkpoints", "verdict"]
    cells = [
        [
            row.measure,
            GAPS[row.gap],
            "nan" if row.tau is None else f"{row.tau:.2f}",
            "{:.2f} to {:.2f}".format(*row.interval),
            str(row.count),
            row.verdict if row.verdict == "no order shown" else f"{row.verdict} with the gap",
        ]
        for row in rows
    ]
    columns = (range(6), (0, 1, 2, 3, 5), (0, 1, 2, 5))
    layouts = [([header[i] for i in kept], [[row[i] for i in kept] for row in cells]) for kept in columns]
    render.print_table(layouts, console)
    for text in _correlation_remarks(rows):
        render.print_line(console, text, style="dim")


def _correlation_remarks(rows: Sequence[Correlation]) -> Iterator[str]:
    how = ", ".join(dict.fromkeys(row.method for row in rows))
    yield f"intervals ({how}) take the checkpoints for a random sample of all that could have been trained"
    close = {row.measure: row for row in rows if row.undecided}
    if close:
        texts = [f"{name} {row.undecided} of {row.pairs}" for name, row in close.items()]
        yield f"pairs of checkpoints whose order by the measure is within error: {', '.join(texts)}"
    if len(rows) > 1:
        chance = len(rows) * (1 - (rows[0].confidence or 0.0))
        yield f"{len(rows)} correlations are judged: where there is none, about {chance:.2g} would seem to be one"

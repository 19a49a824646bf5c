"""The Markdown tables of ``hessprobe bench``, made from the rows of its record, few or all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

_Row = dict[str, Any]


def count(rows: Sequence[_Row]) -> int:
    """Return how many results the rows hold; an optimizer that was timed and not yet trained is none."""
    return sum(row.get("seed", 0) is not None for row in rows)


def page(suite: str, rows: Sequence[_Row], *, rounds: int, seeds: int, incomplete: bool) -> str:
    """Return title and table of the suite, and a word that it is not all where it is not.

    Args:
        suite: ``"steps"``, ``"optimizers"`` or ``"landscapes"``.
        rows: of the record.
        rounds: interleaved rounds that the medians are over.
        seeds: runs of every optimizer.
        incomplete: whether rows are missing.
    """
    title, table = {
        "steps": lambda: _steps(rows),
        "optimizers": lambda: _optimizers(rows, seeds),
        "landscapes": lambda: _landscapes(rows, rounds),
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


def _steps(rows: Sequence[_Row]) -> tuple[str, str]:
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


def _optimizers(rows: Sequence[_Row], seeds: int) -> tuple[str, str]:
    from hessprobe.benchmarks import family

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
    table = family.family_table(runs, times)
    for row in rows:
        if row["seed"] is None:
            table += f"| {row['optimizer']} | not finished | | | | {row['time_of_a_step']:.2f} |\n"
    if any(run.others for run in runs):
        table += "\nTest accuracy in four settings; ! marks a rule that ends below SGD:\n\n" + family.settings_table(
            runs
        )
        table += "\nRules that are made to lower a measure:\n\n" + family.flattening_table(runs)
    first = family.recommendation(runs, times)
    if first:
        head += f"## Which to try first\n\n{first}\n{family.flattening_verdict(runs)}\n## All of them\n\n"
    return "Every optimizer on noisy digits", head + table


def _runs(seeds: int) -> str:
    if seeds == 1:
        return "one seed, which leaves the spread between runs unknown (n/a)"
    return f"{seeds} seeds: mean ± standard error of the mean"


def _landscapes(rows: Sequence[_Row], rounds: int) -> tuple[str, str]:
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


def _quartiles(row: _Row) -> str:
    return "n/a" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"

"""The figure of ``hessprobe track``: curvature along a run against the edge of stability, alignment, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.measures.table import entry_of
from hessprobe.report.figures.drawn import Drawn
from hessprobe.report.figures.fields import NUMBER, Floats, array, entry, floats, short, spread
from hessprobe.report.figures.scales import logarithmic
from hessprobe.report.figures.style import BLACK, BLUE, COLORS, GREEN, NARROW, PURPLE, SKY, VERMILION
from hessprobe.tracking.names import ALWAYS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A threshold is in the panel up to this many times its lowest value: it goes to infinity with a falling rate.
_REACH = 3.0
_MANY = 40

# Measures that stand above the accuracy in the figure of a paper.
_SHOWN = (ALWAYS, "trace")

_Panel = Callable[[Any], None]


def figures_of(record: Mapping[str, Any], folder: Path | None = None) -> list[Drawn]:  # noqa: ARG001  # as all modules
    """Return the figure of a record; see ``dispatch.figures_of``."""
    rows = record["results"]
    if not rows:
        return []
    for index, row in enumerate(rows):
        where = f"results[{index}],"
        for key, kind in (("step", int), ("edge", dict), ("measures", dict), ("scores", dict)):
            entry(row, key, kind, where)
    steps = floats([row["step"] for row in rows], "results, step,")
    panels = [_eigenvalues(rows, steps)]
    panels += [_measure(rows, steps, name) for name in _names(rows) if name != ALWAYS]
    panels += [_alignment(rows, steps), _loss(rows, steps)]
    if _scores(rows, "train_accuracy") is not None or _scores(rows, "test_accuracy") is not None:
        panels.append(_accuracy(rows, steps))
    title = _title(record)

    def draw(figure: Figure) -> None:
        columns = _columns(len(panels), figure.get_figwidth())
        axes = np.atleast_1d(figure.subplots(math.ceil(len(panels) / columns), columns, sharex=True)).ravel()
        for panel, axis in zip(panels, axes, strict=False):
            panel(axis)
            axis.grid()
            axis.tick_params(labelbottom=False)
        for axis in axes[len(panels) :]:
            axis.remove()
        for axis in axes[max(len(panels) - columns, 0) : len(panels)]:
            axis.set_xlabel("step")
            axis.tick_params(labelbottom=True)
            axis.locator_params(axis="x", nbins=6)
        figure.align_ylabels(axes[: len(panels)])
        figure.suptitle(title)

    def height(width: float) -> float:
        return 0.45 + (1.12 if width < NARROW else 1.5) * math.ceil(len(panels) / _columns(len(panels), width))

    whole = Drawn("track", "Curvature along training", _alt(rows), draw, (7.0, height(7.0)), height, _data(rows))
    parts = [_training({title: rows}), _overlap(rows, steps, title)]
    return [whole, *(each for each in parts if each is not None)]


def across(records: Sequence[Mapping[str, Any]]) -> list[Drawn]:
    """Return lambda_max, trace and test accuracy of several runs over each other; nothing of fewer than two."""
    runs: dict[str, Sequence[Mapping[str, Any]]] = {}
    for record in records:
        if record["command"] == "track" and record["results"]:
            name = _title(record)
            runs[name if name not in runs else f"{name}, {len(runs) + 1}"] = record["results"]
    found = _training(runs) if len(runs) > 1 else None
    return [found] if found is not None else []


def _training(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Drawn | None:
    """Return curvature above test accuracy along the steps, one color a run; None where no accuracy is known."""
    steps = {name: floats([row["step"] for row in rows], "results, step,") for name, rows in runs.items()}
    right = {name: _scores(rows, "test_accuracy") for name, rows in runs.items()}
    if all(values is None for values in right.values()):
        return None
    shared = [name for name in _SHOWN if all(name in row["measures"] for rows in runs.values() for row in rows)]
    measured = {(measure, name): _measured(rows, measure) for measure in shared for name, rows in runs.items()}
    colors = dict(zip(runs, COLORS * len(runs), strict=False))

    def draw(figure: Figure) -> None:
        axes = np.atleast_1d(figure.subplots(len(shared) + 1, 1, sharex=True))
        for axis, measure in zip(axes, shared, strict=False):
            for name in runs:
                values, reach = measured[measure, name]
                axis.errorbar(steps[name], values, yerr=reach, color=colors[name], label=name,
                              **_style(len(steps[name])))  # fmt: skip
            _limits(axis, np.concatenate([measured[measure, name][0] for name in runs]))
            axis.set_ylabel(entry_of(measure).symbol)
        for name, shares in right.items():
            if shares is not None:
                axes[-1].plot(steps[name], 100 * shares, color=colors[name], label=name, **_style(len(shares)))
        axes[-1].set(xlabel="step", ylabel="test acc. (%)")
        for axis in axes:
            axis.grid()
        axes[-1].locator_params(axis="x", nbins=6)
        figure.align_ylabels(axes)
        if len(runs) > 1:
            handles, labels = axes[-1].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper center", ncol=min(len(runs), 3))
        else:
            figure.suptitle(next(iter(runs)))

    def height(width: float) -> float:
        return 0.7 + (0.85 if width < NARROW else 1.1) * (len(shared) + 1)

    said = [
        f"{name}: {', '.join(f'{entry_of(each).words} {_ends(measured[each, name][0])}' for each in shared)}"
        + ("" if values is None else f", test accuracy {_ends(100 * values)} %")
        for name, values in right.items()
    ]
    data = [{"run": name, **row} for name, rows in runs.items() for row in _data(rows)]
    alt = f"Along training, {'; '.join(said)}."
    return Drawn("training", "Curvature and test accuracy along training", alt, draw, (4.2, height(4.2)), height, data)


def _overlap(rows: Sequence[Mapping[str, Any]], steps: Floats, title: str) -> Drawn | None:
    """Return how much of the gradient lies along the leading eigenvectors; None where it was not measured."""
    parts = [row.get("alignment") or {} for row in rows]
    if not any(part.get("first") is not None for part in parts):
        return None
    panel = _alignment(rows, steps)

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        panel(axis)
        axis.set(xlabel="step", ylabel="overlap with the gradient")
        axis.grid()
        figure.suptitle(title)

    data = [
        {"step": row["step"], "first": part.get("first"), "leading": part.get("space")}
        for row, part in zip(rows, parts, strict=True)
    ]
    first = _ends(floats([part.get("first") for part in parts], "alignment, first,"))
    alt = f"Cosine between the gradient and the first eigenvector along training, {first}; data for the leading ones."
    return Drawn("overlap", "Gradient and leading eigenvectors", alt, draw, (4.2, 2.6), lambda w: 1.0 + 0.38 * w, data)


def _ends(values: Floats) -> str:
    known = values[np.isfinite(values)]
    return f"{short(float(known[0]))} to {short(float(known[-1]))}" if len(known) else "not known"


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the measures of a run; one that needs an optimizer's state has no value before the first step."""
    return list(dict.fromkeys(name for row in rows for name in row["measures"]))


def _columns(count: int, width: float) -> int:
    return 1 if width < NARROW or count == 1 else 2


def _title(record: Mapping[str, Any]) -> str:
    """Return the run and how it was trained, as far as the record says it."""
    given = record["arguments"]
    paths = given.get("run_dir") or [given.get("ckpt") or "run"]
    recipe = (record.get("checkpoint") or {}).get("recipe") or {}
    return Path(str(paths[0])).name + (f" ({recipe['optimizer']})" if recipe.get("optimizer") else "")


def _data(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a checkpoint: every measure with its interval, thresholds, alignment, scores."""
    found = []
    for row in rows:
        line: dict[str, Any] = {"step": row["step"], "loss": row.get("loss")}
        for name, measured in row["measures"].items():
            low, high = measured["interval"]
            line |= {name: measured["value"], f"{name} low": low, f"{name} high": high}
        line |= {"threshold": row["edge"]["plain"], "SAM's threshold": row["edge"]["sharpness_aware"]}
        if row["edge"].get("preconditioned") is not None:
            line["Adam's threshold"] = row["edge"]["preconditioned"]
        line |= {f"alignment {key}": (row.get("alignment") or {}).get(key) for key in ("first", "space")}
        found.append(line | dict(row["scores"]))
    return found


def _style(count: int) -> dict[str, Any]:
    return {"marker": "o", "ms": 2.5 if count <= _MANY else 1.2}


def _measured(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[Floats, Floats]:
    """Return the values (n,) of a measure and how far their intervals reach, (2, n)."""
    triples = []
    for index, row in enumerate(rows):
        where = f"results[{index}], measures,"
        if name not in row["measures"] and "optimizer" in entry_of(name).needs:
            triples.append((math.nan,) * 3)
            continue
        triples.append(spread(entry(row["measures"], name, dict, where), f"{where} {name},"))
    values, below, above = np.array(triples, dtype=np.float64).T
    return values, np.stack([below, above])


def _edges(rows: Sequence[Mapping[str, Any]], key: str) -> Floats:
    return floats([entry(row["edge"], key, NUMBER, f"results[{i}], edge,") for i, row in enumerate(rows)], key)


def _eigenvalues(rows: Sequence[Mapping[str, Any]], steps: Floats) -> _Panel:
    values, reach = _measured(rows, ALWAYS)
    others = _further(rows)
    plain, aware = _edges(rows, "plain"), _edges(rows, "sharpness_aware")
    formula = next((row["edge"]["formula"] for row in rows if row["edge"].get("formula")), "2/lr")

    def draw(axis: Any) -> None:
        axis.errorbar(steps, values, yerr=reach, color=BLUE, label=r"$\lambda_{\max}$", zorder=3, **_style(len(steps)))
        for index, other in enumerate(others, 2):
            axis.plot(steps, other, color=SKY, lw=0.9, label="next" if index == 2 else None)
        known = np.concatenate([values, *others])
        lines = (
            (aware, VERMILION, "-.", "SAM's threshold"),
            (plain, BLACK, "--", f"threshold {formula}"),
        )
        for line, color, dash, label in lines:
            if not np.isfinite(line).any():
                continue
            # A falling rate sends it to infinity: its lowest part is in the panel, the rest leaves it at the top.
            lowest = float(np.nanmin(line))
            known = np.concatenate([known, line[np.isfinite(line) & (line <= _REACH * lowest)]])
            marker = "_" if len(steps) < 3 else None
            axis.plot(steps, line, color=color, ls=dash, lw=1.1, label=label, marker=marker)
        _limits(axis, known)
        axis.set_ylabel(r"$\lambda_{\max}$")
        _legend(axis)

    return draw


def _legend(axis: Any) -> None:
    """Put the legend above the panel, whose lines cross all of it."""
    from matplotlib.container import Container

    handles, _ = axis.get_legend_handles_labels()
    # What was measured before what it is compared with; intervals come last otherwise.
    handles.sort(key=lambda handle: not isinstance(handle, Container))
    axis.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2, borderpad=0.1,
                ncol=2, columnspacing=0.8, handlelength=1.9, labelspacing=0.2)  # fmt: skip


def _further(rows: Sequence[Mapping[str, Any]]) -> list[Floats]:
    """Return the second to k-th largest eigenvalues, (n,) each."""
    k = min((row.get("alignment") or {}).get("k", 1) for row in rows)
    if k < 2:
        return []
    stored = [
        array(row["measures"][ALWAYS], "eigenvalues", f"results[{index}], measures, {ALWAYS},")
        for index, row in enumerate(rows)
    ]
    return [np.array([each[place] for each in stored]) for place in range(1, k)]


def _limits(axis: Any, numbers: Floats) -> None:
    known = numbers[np.isfinite(numbers)]
    low, high = float(known.min()), float(known.max())
    if logarithmic(axis, "y", known):
        axis.set_ylim(low / 1.3, high * 1.3)
    else:
        room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
        axis.set_ylim(low - room, high + room)


def _measure(rows: Sequence[Mapping[str, Any]], steps: Floats, name: str) -> _Panel:
    values, reach = _measured(rows, name)
    needs = entry_of(name).needs
    color = GREEN if needs == {"trace"} else PURPLE if needs == {"norm"} else VERMILION
    edges = [row["edge"].get("preconditioned") if "optimizer" in needs else None for row in rows]
    line = floats(edges, f"results, edge, {name},")

    def draw(axis: Any) -> None:
        axis.errorbar(steps, values, yerr=reach, color=color, label=entry_of(name).symbol, **_style(len(steps)))
        if np.isfinite(line).any():
            axis.plot(steps, line, color=BLACK, ls="--", lw=1.1, label="threshold of Adam", marker="_")
            _legend(axis)
        known = np.concatenate([values, line])
        logarithmic(axis, "y", known[np.isfinite(known)])
        axis.set_ylabel(entry_of(name).symbol)

    return draw


def _alignment(rows: Sequence[Mapping[str, Any]], steps: Floats) -> _Panel:
    parts = [entry(row, "alignment", (dict, type(None)), f"results[{i}],") or {} for i, row in enumerate(rows)]
    k = max(part.get("k", 1) for part in parts)
    first, space = (floats([part.get(key) for part in parts], f"alignment, {key},") for key in ("first", "space"))

    def draw(axis: Any) -> None:
        axis.plot(steps, first, color=BLUE, label=r"$|\cos(g, v_1)|$", **_style(len(steps)))
        if k > 1:
            axis.plot(steps, space, color=SKY, label=f"with the {k} leading", **_style(len(steps)))
            _legend(axis)
        axis.set(ylim=(-0.03, 1.03), ylabel="alignment")

    return draw


def _loss(rows: Sequence[Mapping[str, Any]], steps: Floats) -> _Panel:
    loss = floats([entry(row, "loss", NUMBER, f"results[{i}],") for i, row in enumerate(rows)], "loss")
    test = _scores(rows, "test_loss")

    def draw(axis: Any) -> None:
        axis.plot(steps, loss, color=BLUE, label="measured data", **_style(len(steps)))
        if test is not None:
            axis.plot(steps, test, color=VERMILION, label="test", **_style(len(steps)))
            _legend(axis)
        logarithmic(axis, "y", loss)
        axis.set_ylabel("loss")

    return draw


def _accuracy(rows: Sequence[Mapping[str, Any]], steps: Floats) -> _Panel:
    lines = {name: _scores(rows, f"{name}_accuracy") for name in ("train", "test")}

    def draw(axis: Any) -> None:
        for (name, values), color in zip(lines.items(), COLORS, strict=False):
            if values is not None:
                axis.plot(steps, 100 * values, color=color, label=name, **_style(len(steps)))
        axis.set_ylabel("accuracy (%)")
        _legend(axis)

    return draw


def _scores(rows: Sequence[Mapping[str, Any]], name: str) -> Floats | None:
    values = [row["scores"].get(name) for row in rows]
    return None if all(value is None for value in values) else floats(values, f"scores, {name},")


def _alt(rows: Sequence[Mapping[str, Any]]) -> str:
    ends = [rows[0], rows[-1]] if len(rows) > 1 else [rows[0]]
    parts = []
    for name in _names(rows):
        values = [short(row["measures"][name]["value"]) for row in ends if name in row["measures"]]
        parts.append(f"{entry_of(name).words} {' to '.join(values)}")
    above = [
        row["step"]
        for row in rows
        if row["edge"]["plain"] is not None
        and row["measures"][ALWAYS]["value"] is not None
        and row["measures"][ALWAYS]["value"] > row["edge"]["plain"]
    ]
    known = sum(row["edge"]["plain"] is not None for row in rows)
    formula = next((row["edge"]["formula"] for row in rows if row["edge"].get("formula")), "2/lr")
    edge = f" The largest eigenvalue is above {formula} at {len(above)} of {known} points." if known else ""
    if any(row["edge"]["sharpness_aware"] is not None for row in rows):
        edge += f" SAM's threshold is the eigenvalue a with a (1 + rho a / |g|) = {formula}."
    steps = " to ".join(str(row["step"]) for row in ends)
    return f"Along steps {steps}, {len(rows)} points: {'; '.join(parts)}.{edge}"

"""What the runs of every optimizer say: tables, which to try first, which rules lower the measure they are made for."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from scipy import stats

from hessprobe.benchmarks.family import FIRST, FLATTENERS, MEASURES, PLAIN, SETTINGS, TrainedOptimizer, has_a_place

# Steps of SGD that a rule may cost to be called cheap.
_CHEAP = 1.6


def family_table(runs: Sequence[TrainedOptimizer], times: dict[str, tuple[float, float, float]]) -> str:
    """Return the comparison as Markdown: means over seeds, -+ the standard error of the mean.

    One run has no such error (``n/a``), and equal accuracies of several are no sign that there is none: they are shares
    of a few hundred examples.
    """
    lines = [
        "| optimizer | test accuracy % | lambda_max | trace | Frobenius | time of a step / SGD |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(run.optimizer for run in runs):
        own = [run for run in runs if run.optimizer == name]
        good = [run for run in own if not run.failure]
        if not good:
            lines.append(f"| {name} | diverged ({len(own)} of {len(own)}) | | | | {times[name][0]:.2f} |")
            continue
        cells = [_mean([100 * run.test_accuracy for run in good])]
        cells += [_mean([run.measures[m][0] for run in good], [run.measures[m][1] for run in good]) for m in MEASURES]
        note = f" ({len(own) - len(good)} of {len(own)} diverged)" if len(good) < len(own) else ""
        lines.append(f"| {name}{note} | " + " | ".join(cells) + f" | {times[name][0]:.2f} |")
    return "\n".join(lines) + "\n"


def settings_table(runs: Sequence[TrainedOptimizer]) -> str:
    """Return the test accuracies of every optimizer in every setting as Markdown, those below SGD marked.

    Marked with "!" where the mean lies below that of SGD by more than twice the standard error of the difference, and
    by more than one point.
    """
    lines = ["| optimizer | " + " | ".join(SETTINGS) + " |", "|---" + "|---:" * len(SETTINGS) + "|"]
    base = {setting: _accuracies(runs, "sgd", setting) for setting in SETTINGS}
    for name in dict.fromkeys(run.optimizer for run in runs):
        cells = []
        for setting in SETTINGS:
            values = _accuracies(runs, name, setting)
            if not has_a_place(name, setting):
                cells.append("has no normalization layer")
            elif any(math.isnan(value) for value in values):
                cells.append(f"diverged ({sum(map(math.isnan, values))} of {len(values)}) !")
            else:
                cells.append(_mean(values) + (" !" if _is_below(values, base[setting]) else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def flattening_table(runs: Sequence[TrainedOptimizer]) -> str:
    """Return, for the rules that are made to lower a measure, that measure beside SAM's and SGD's as Markdown.

    The last column is the mean over seeds of the ratio to SAM, with a 95 % interval by Student's t.
    """
    lines = ["| rule | measure | setting | SGD | SAM | rule | rule / SAM | accuracy, SAM | accuracy, rule |"]
    lines.append("|---|---|---|---:|---:|---:|---:|---:|---:|")
    for name, measure in FLATTENERS.items():
        for setting in SETTINGS:
            own = {who: _measured(runs, who, setting, measure) for who in ("sgd", "sam", name)}
            if not all(own.values()):
                continue
            cells = [_mean(list(own[who].values())) for who in ("sgd", "sam", name)]
            both = sorted(own["sam"].keys() & own[name].keys())
            ratio = _interval([own[name][seed] / own["sam"][seed] for seed in both])
            accuracy = [_mean(_accuracies(runs, who, setting)) for who in ("sam", name)]
            lines.append(f"| {name} | {measure} | {setting} | " + " | ".join([*cells, ratio, *accuracy]) + " |")
    return "\n".join(lines) + "\n"


def recommendation(runs: Sequence[TrainedOptimizer], times: dict[str, tuple[float, float, float]]) -> str:
    """Return which three rules to try first, and why, as Markdown; empty where SGD is missing or none is eligible.

    A rule is eligible that has run everywhere, diverges nowhere, is not marked below SGD in any setting, and lies above
    it on average by more than twice the standard error of the difference. The three are the one with the highest
    accuracy averaged over the settings; the highest among those that cost at most 1.6 steps of SGD; and the one with
    the lowest Frobenius norm among those within twice the standard error of the highest accuracy. Where none lies above
    SGD, those are eligible that do not lie below it by that much, and the three are the flattest, the flattest among
    the cheap ones, and the most accurate.
    """
    settings = [setting for setting in SETTINGS if any(_end(run, setting) for run in runs)]
    names = dict.fromkeys(run.optimizer for run in runs if run.optimizer not in PLAIN)
    gains = {name: _gain(runs, name, settings) for name in ("sgd", *names)}
    sound = {
        name: gain
        for name, gain in gains.items()
        if name in names and gain is not None and not _is_marked(runs, name, settings)
    }
    if gains.get("sgd") is None or not sound:
        return ""
    above = {name: gain for name, gain in sound.items() if gain[0] > 2 * gain[1]}
    level = {name: gain for name, gain in sound.items() if gain[0] >= -2 * gain[1]}
    eligible = above or level
    if not eligible:
        return ""
    cheap = [name for name in eligible if times[name][0] <= _CHEAP]
    flat = {name: _flatness(runs, name) for name in eligible}
    chosen: dict[str, str] = {}

    def choose(why: str, among: Iterable[str], worth: Callable[[str], float]) -> None:
        left = [name for name in among if name not in chosen]
        if left:
            chosen[max(left, key=worth)] = why

    def accuracy(name: str) -> float:
        return eligible[name][0]

    def flatness(name: str) -> float:
        return -flat[name]

    best = max(eligible, key=accuracy)
    close = [name for name in eligible if accuracy(best) - accuracy(name) <= 2 * eligible[best][1]]
    if above:
        choose("the highest accuracy", eligible, accuracy)
        choose("the highest accuracy among those that cost little more than SGD", cheap, accuracy)
        choose("the flattest among those of like accuracy", close, flatness)
    else:
        choose("the flattest", eligible, flatness)
        choose("the flattest among those that cost little more than SGD", cheap, flatness)
        choose("the highest accuracy", eligible, accuracy)
    lines = (
        []
        if above
        else ["No rule lies above SGD by more than its noise in these runs: what differs is how flat it ends.", ""]
    )
    lines.append("| try | because it has | test accuracy over SGD, points | Frobenius | time of a step / SGD |")
    lines.append("|---|---|---:|---:|---:|")
    for name, why in chosen.items():
        gain, error = eligible[name]
        lines.append(f"| {name} | {why} | {gain:+.1f} ± {error:.1f} | {flat[name]:.3g} | {times[name][0]:.2f} |")
    where = "one setting" if len(settings) == 1 else f"{len(settings)} settings"
    what = (
        "above SGD by more than their noise, and below it nowhere"
        if above
        else "not below SGD by more than their noise"
    )
    lines += [
        "",
        f"Means over {where} and the seeds, ± the standard error of the difference; SGD ends at a Frobenius norm of "
        f"{_flatness(runs, 'sgd'):.3g}. Of {len(names)} rules {len(eligible)} were eligible: {what}. The best of so "
        "many is favoured by chance by about two standard errors: these are where to begin, not winners.",
    ]
    return "\n".join(lines) + "\n"


def flattening_verdict(runs: Sequence[TrainedOptimizer]) -> str:
    """Return one sentence a rule that is made to lower a measure: where it does so below SAM at equal accuracy.

    It does where the 95 % interval of its measure over SAM's lies below 1 and its accuracy is not below SAM's by more
    than twice the standard error of the difference and one point.
    """
    lines = []
    for name, measure in FLATTENERS.items():
        judged = [(setting, _lowers(runs, name, measure, setting)) for setting in SETTINGS]
        known = [(setting, does) for setting, does in judged if does is not None]
        where = [setting for setting, does in known if does]
        if not known:
            continue
        if where:
            lines.append(f"- {name} lowers {measure} below SAM's at equal accuracy in {'; '.join(where)}.")
        else:
            lines.append(
                f"- **{name} does not lower {measure} below SAM's at equal accuracy in any of these settings.**"
            )
    return "\n".join(lines) + ("\n" if lines else "")


def _lowers(runs: Sequence[TrainedOptimizer], name: str, measure: str, setting: str) -> bool | None:
    own, sam = (_measured(runs, who, setting, measure) for who in (name, "sam"))
    both = sorted(own.keys() & sam.keys())
    if len(both) < 2:
        return None
    _, high = _bounds([own[seed] / sam[seed] for seed in both])
    return high < 1 and not _is_below(_accuracies(runs, name, setting), _accuracies(runs, "sam", setting))


def _gain(runs: Sequence[TrainedOptimizer], name: str, settings: Sequence[str]) -> tuple[float, float] | None:
    """Return mean and standard error of the accuracy over SGD's, None where a run is missing or alone."""
    gains, variances = [], []
    for setting in settings:
        own, base = _accuracies(runs, name, setting), _accuracies(runs, "sgd", setting)
        if min(len(own), len(base)) < 2 or any(map(math.isnan, [*own, *base])):
            return None
        gains.append(statistics.fmean(own) - statistics.fmean(base))
        variances.append(statistics.variance(own) / len(own) + statistics.variance(base) / len(base))
    return statistics.fmean(gains), math.sqrt(sum(variances)) / len(settings)


def _is_marked(runs: Sequence[TrainedOptimizer], name: str, settings: Sequence[str]) -> bool:
    return any(_is_below(_accuracies(runs, name, s), _accuracies(runs, "sgd", s)) for s in settings)


def _flatness(runs: Sequence[TrainedOptimizer], name: str) -> float:
    return statistics.fmean(_measured(runs, name, FIRST, "frob").values())


def _end(run: TrainedOptimizer, setting: str) -> dict[str, Any]:
    return run.row() if setting == FIRST else run.others.get(setting, {})


def _accuracies(runs: Sequence[TrainedOptimizer], name: str, setting: str) -> list[float]:
    return [100 * _end(run, setting).get("test_accuracy", math.nan) for run in runs if run.optimizer == name]


def _measured(runs: Sequence[TrainedOptimizer], name: str, setting: str, measure: str) -> dict[int, float]:
    ends = {run.seed: _end(run, setting).get("measures", {}) for run in runs if run.optimizer == name}
    return {seed: found[measure][0] for seed, found in ends.items() if measure in found}


def _is_below(values: Sequence[float], base: Sequence[float]) -> bool:
    if len(values) < 2 or len(base) < 2:
        return False
    error = math.sqrt(statistics.variance(values) / len(values) + statistics.variance(base) / len(base))
    return statistics.fmean(values) < statistics.fmean(base) - max(2 * error, 1.0)


def _interval(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    return "{:.2f} ({:.2f} to {:.2f})".format(mean, *_bounds(values))


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def _mean(values: Sequence[float], errors: Sequence[float] = ()) -> str:
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.4g} ± n/a"
    between = statistics.stdev(values) / math.sqrt(len(values))
    within = math.sqrt(sum(e * e for e in errors)) / len(values)
    error = max(between, within)
    if not error > 1e-9 * abs(mean):
        return f"{mean:.4g} (all {len(values)} equal)"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:.{min(digits, 6)}f} ± {error:.{min(digits, 6)}f}"

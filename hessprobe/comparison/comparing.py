"""Checkpoints side by side: every measure of each, and its difference to the first.

The measures of one checkpoint, made so that they can be subtracted from those of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hessprobe import checks, display, measures
from hessprobe.comparison.differences import Line, compare_values
from hessprobe.comparison.names import DEFAULT_MEASURES, MEASURES
from hessprobe.errors import HessprobeError
from hessprobe.estimate import Estimate
from hessprobe.estimators.budget import Progress
from hessprobe.measures.context import MeasureSettings, Result, settings_of
from hessprobe.objective import EmpiricalRisk
from hessprobe.progress import Show, progress_bars
from hessprobe.training.checkpoint import Checkpoint, load_checkpoint

Report = Callable[[Progress], None]


def measure_each(
    risk: EmpiricalRisk, names: Sequence[str], settings: MeasureSettings, report: Report = lambda event: None
) -> Iterator[Result | tuple[str, HessprobeError]]:
    """Yield the result of each measure as it is ready; of one that does not exist here its name and the reason.

    With a fixed number of probes and one seed all choices depend on the architecture alone: checkpoints of one
    architecture see the same probes, and ``compare`` subtracts their samples probe by probe.

    Args:
        risk: what is measured.
        names: of ``MEASURES``.
        settings: with ``n_probes``; the same for every checkpoint.
        report: told of progress.

    Raises:
        ValueError: an unknown name, or settings that leave the number of probes to each checkpoint.
    """
    for name in names:
        checks.one_of("measure", name, MEASURES)
    if settings.n_probes is None:
        raise ValueError(
            "settings.n_probes must be given to compare checkpoints; got None. A tolerance would choose another number "
            "for each, and their probes could not be paired."
        )
    absent: list[tuple[str, HessprobeError]] = []

    def missing(name: str, error: HessprobeError) -> None:
        absent.append((name, error))

    # Looked up at the call, where the command line's tests put theirs.
    yield from measures.measure_all(list(dict.fromkeys(names)), risk, settings, report, missing=missing)
    yield from absent


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What ``compare`` found.

    Attributes:
        values: by label of the checkpoint and name of the measure.
        lines: one for every measure and every checkpoint but the baseline, with the difference and its error.
        baseline: label of the checkpoint that the others are compared with.
        confidence: level of the intervals of differences.
        failures: why a measure of a checkpoint does not exist, by ``(label, measure)``.

    Examples:
        >>> import torch, hessprobe as hp
        >>> model = torch.nn.Linear(2, 2).double()
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]).double()
        >>> data = [(x, torch.tensor([0, 1, 0]))]
        >>> risk = hp.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), data)
        >>> other = hp.EmpiricalRisk(torch.nn.Linear(2, 2).double(), torch.nn.CrossEntropyLoss(), data)
        >>> hp.compare({"a": risk, "b": other}, measures=["trace", "frob"], n_probes=8, seed=0).values.keys()
        dict_keys(['a', 'b'])
    """

    values: Mapping[str, Mapping[str, Estimate]]
    lines: Sequence[Line]
    baseline: str
    confidence: float
    failures: Mapping[tuple[str, str], HessprobeError] = field(default_factory=dict)

    def __repr__(self) -> str:
        decided = sum(line.decided for line in self.lines)
        return (
            f"Comparison({', '.join(self.values)}; baseline={self.baseline!r}, {len(self.lines)} differences, "
            f"{decided} of them beyond their error)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return values and differences as plain data for JSON."""
        found: dict[str, Any] = display.plain(
            {
                "baseline": self.baseline,
                "confidence": self.confidence,
                "values": self.values,
                "differences": [
                    {
                        "measure": line.measure,
                        "checkpoint": line.label,
                        **line.difference.estimate.row(self.confidence),
                        "verdict": line.verdict,
                        "p": line.p,
                        "stands": line.stands,
                        "beyond_data": line.beyond_data,
                    }
                    for line in self.lines
                ],
                "failures": [{"checkpoint": a, "measure": b, "error": str(e)} for (a, b), e in self.failures.items()],
            }
        )
        return found

    def plot(self) -> Any:
        """Return the axes of a matplotlib figure of the differences with their intervals, one panel a measure.

        Raises:
            ValueError: no difference to draw.
        """
        return display.draw(self)

    def _repr_html_(self) -> str:
        rows = []
        for line in self.lines:
            low, high = line.difference.estimate.interval(self.confidence)
            value = self.values[line.label][line.measure]
            rows.append((line.measure, line.label, f"{value:.5g}", f"{low:.4g} to {high:.4g}", line.verdict))
        level = f"{100 * self.confidence:.4g}% interval"
        header = ("measure", "checkpoint", "value", f"difference to {self.baseline}, {level}", "verdict")
        return display.html_table(rows, header=header)


def compare(
    risks: Mapping[str, EmpiricalRisk | Checkpoint | str | Path] | Sequence[EmpiricalRisk | Checkpoint | str | Path],
    *,
    measures: Sequence[str] = DEFAULT_MEASURES,
    n_probes: int = 64,
    baseline: str | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Show = False,
    **settings: Any,
) -> Comparison:
    """Measure checkpoints on common probes, and return their differences, each with the error of the difference.

    Checkpoints of one architecture see the same probes, so that samples are subtracted one by one. Their data must be
    the same: a difference would otherwise mix data and weights.

    Args:
        risks: two or more, by label or in order: an ``EmpiricalRisk``, a ``Checkpoint``, or the path of one.
        measures: names in ``hessprobe.comparison.MEASURES``.
        n_probes: probes a measure, the same for all, >= 2.
        baseline: label of the one that the others are compared with; the first by default. Without labels they are
            called by the stems of their paths, else ``"0"``, ``"1"``, ...
        confidence: level in (0, 1) of each difference.
        seed: of the probes, >= 0.
        progress: draw bars: True, False, or ``"auto"``.
        settings: further fields of ``MeasureSettings``, such as ``operator``.

    Raises:
        TypeError, ValueError: fewer than two, an unknown name, or an argument outside its range.
        CheckpointError: a path that holds no checkpoint.

    Examples:
        >>> import torch, hessprobe as hp
        >>> model = torch.nn.Linear(2, 2).double()
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]).double()
        >>> data = [(x, torch.tensor([0, 1, 0]))]
        >>> risk = hp.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), data)
        >>> other = hp.EmpiricalRisk(torch.nn.Linear(2, 2).double(), torch.nn.CrossEntropyLoss(), data)
        >>> found = hp.compare({"a": risk, "b": other}, measures=["trace"], n_probes=8, seed=0)
        >>> found.baseline, len(found.lines)
        ('a', 1)
    """
    members = _members(risks)
    names = [checks.one_of("measure", name, MEASURES) for name in measures]
    first = next(iter(members)) if baseline is None else checks.one_of("baseline", baseline, members)
    made = settings_of(
        "compare", ("measures", "baseline", "progress"), n_probes=n_probes, confidence=confidence, seed=seed, **settings
    )
    values: dict[str, dict[str, Estimate]] = {}
    failures: dict[tuple[str, str], HessprobeError] = {}
    with progress_bars(progress) as update:
        for label, risk in members.items():
            own: dict[str, Estimate] = {}

            def report(event: Progress, label: str = label) -> None:
                update(f"{label}: {event.stage}", event.done, event.total, "")

            for found in measure_each(risk, names, made, report):
                if isinstance(found, tuple):
                    failures[label, found[0]] = found[1]
                else:
                    own[found.measure] = found.estimate
            values[label] = {name: own[name] for name in names if name in own}
    return Comparison(values, compare_values(values, first, confidence=confidence), first, confidence, failures)


def _members(risks: Any) -> dict[str, EmpiricalRisk]:
    if isinstance(risks, Mapping):
        labelled = {str(label): one for label, one in risks.items()}
    elif isinstance(risks, Sequence) and not isinstance(risks, str):
        stems = [Path(one).stem if isinstance(one, str | Path) else str(i) for i, one in enumerate(risks)]
        labels = stems if len(set(stems)) == len(stems) else [str(i) for i in range(len(stems))]
        labelled = dict(zip(labels, risks, strict=True))
    else:
        raise TypeError(f"risks must be a list or a dict of risks; got {type(risks).__name__}. Pass two or more.")
    if len(labelled) < 2:
        raise ValueError(f"risks must be two or more; got {len(labelled)}. Use measure for one.")
    return {label: _risk_of(label, one) for label, one in labelled.items()}


def _risk_of(label: str, one: Any) -> EmpiricalRisk:
    if isinstance(one, str | Path):
        one = load_checkpoint(one)
    if isinstance(one, Checkpoint):
        one = one.risk()
    if not isinstance(one, EmpiricalRisk):
        raise TypeError(
            f"risks must be EmpiricalRisk, Checkpoint or paths of checkpoints; got {type(one).__name__} for {label!r}. "
            "Make one with EmpiricalRisk(model, loss, data)."
        )
    return one

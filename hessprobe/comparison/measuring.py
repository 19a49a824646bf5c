"""The measures of one checkpoint, made so that they can be subtracted from those of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hessprobe import checks, measures
from hessprobe.comparison.names import MEASURES
from hessprobe.errors import HessprobeError
from hessprobe.measures.settings import Event, MeasureSettings, Result
from hessprobe.objective import EmpiricalRisk

Report = Callable[[Event], None]


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

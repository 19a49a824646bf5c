"""The work of ``hessprobe compare``: which files, what is measured of each, and what goes wrong with one of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessprobe.cli import failures, signals
from hessprobe.cli.source import source_of
from hessprobe.comparison.names import FEWEST

if TYPE_CHECKING:
    from hessprobe.cli.commands.compare import Request
    from hessprobe.measures import Event, MeasureSettings, Result

# State of a stopped run that train leaves beside its checkpoint.


@dataclass
class Member:
    """One checkpoint, and what is known of it.

    Attributes:
        path: of the file.
        label: short and unlike all others.
        title: one line for a reader, empty until it is loaded.
        checkpoint, data: entries of the record.
        dim: number of parameters.
        results: finished measures.
        rescalings: kinds of rescaling that act in it; None where that is not known.
        gaps: ``loss`` and ``accuracy`` gaps between test and training, where asked for and known.
        failures: what went wrong, one sentence each.
    """

    path: str
    label: str
    title: str = ""
    checkpoint: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    dim: int = 0
    results: list[Result] = field(default_factory=list)
    rescalings: tuple[str, ...] | None = None
    gaps: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """What has come out so far, kept whatever happens next.

    Attributes:
        members: baseline first.
        device: where it was measured.
        failure: what ended the work early, or None.
    """

    members: list[Member]
    device: str = "cpu"
    failure: BaseException | None = None

    @property
    def interrupted(self) -> bool:
        """Whether the user ended the work."""
        return isinstance(self.failure, KeyboardInterrupt)

    @property
    def broken(self) -> list[str]:
        """What went wrong, one sentence each."""
        own = [sentence for member in self.members for sentence in member.failures]
        return own + ([failures.one_line(self.failure)] if isinstance(self.failure, Exception) else [])


def members_of(request: Request) -> list[Member]:
    """Return the files to compare, the baseline first, folders replaced by the checkpoints in them.

    Raises:
        UsageError: fewer than two (five to correlate), a file twice, a folder without any, an unknown baseline.
    """
    paths = [path for given in request.ckpts for path in _expanded(given)]
    places: dict[Path, str] = {}
    for path in paths:
        place = Path(path).resolve()
        if place in places:
            raise failures.UsageError(
                f"CKPT must be different files; got {path!r} twice. A checkpoint does not differ from itself."
            )
        places[place] = path
    fewest = FEWEST if request.correlate else 2
    if len(paths) < fewest:
        why = "--correlate needs that many for an interval" if request.correlate else "one has nothing to differ from"
        raise failures.UsageError(
            f"CKPT must be at least {fewest} checkpoints, or a folder of them; got {len(paths)}. Name more: {why}."
        )
    first = paths[0]
    if request.baseline is not None:
        first = places.get(Path(request.baseline).resolve(), "")
        if not first:
            raise failures.UsageError(
                f"--baseline must be one of the checkpoints compared; got {request.baseline!r}. Name it as CKPT too."
            )
    ordered = [first, *(path for path in paths if path != first)]
    return [Member(path, label) for path, label in zip(ordered, labels(ordered), strict=True)]


def labels(paths: list[str]) -> list[str]:
    """Return the shortest tails of paths, without their endings, that tell all of them apart."""
    parts = [Path(path).resolve().with_suffix("").parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        found = ["/".join(each[-depth:]) for each in parts]
        if len(set(found)) == len(found):
            return found
    return list(paths)


def _expanded(given: str) -> list[str]:
    from hessprobe.models.progress import checkpoints_in, is_checkpoint_folder

    folder = Path(given)
    if not folder.is_dir() or is_checkpoint_folder(folder):
        return [given]
    inside = list(map(str, checkpoints_in(folder)))
    if not inside:
        raise failures.UsageError(f"CKPT must be a checkpoint or a folder of them; got {given!r} without any.")
    return inside


def collect(request: Request, outcome: Outcome, settings: MeasureSettings) -> None:
    """Measure one checkpoint after the other; what fails in one is written down, and the others go on."""
    from hessprobe.cli.progress import progress_bars
    from hessprobe.report.numbers import with_error

    try:
        with progress_bars() as update:

            def report(event: Event) -> None:
                if signals.asked():
                    raise KeyboardInterrupt
                remark = "" if event.value is None else with_error(event.value, event.std_error)
                update(event.stage, event.done, event.total, remark)

            for index, member in enumerate(outcome.members):
                update("checkpoints", index, len(outcome.members), member.label)

                try:
                    _measure(request, outcome, member, settings, report)
                except Exception as error:
                    if signals.asked():
                        raise
                    member.failures.append(f"{member.path}: {failures.one_line(error).removeprefix(member.path + ' ')}")
    except (KeyboardInterrupt, Exception) as error:
        outcome.failure = failures.ended_by(error)


def _measure(request: Request, outcome: Outcome, member: Member, settings: MeasureSettings, report: Any) -> None:
    from hessprobe.cli.load import load_subject
    from hessprobe.comparison.measuring import measure_each
    from hessprobe.comparison.rescaling import rescalings
    from hessprobe.measures import Result

    subject = load_subject(source_of(request, member.path, quiet=member is not outcome.members[0]))
    _require_another_file(outcome, subject.checkpoint)
    _require_same_data(outcome, subject.data)
    outcome.device = str(subject.risk.device)
    member.title, member.checkpoint, member.data = subject.title, subject.checkpoint, subject.data
    member.dim = subject.risk.dim
    twin = next((one for one in outcome.members if one is not member and _alike(one, member)), None)
    member.rescalings = rescalings(subject.risk) if twin is None else twin.rescalings
    for found in measure_each(subject.risk, request.names, settings, report):
        if isinstance(found, Result):
            member.results.append(found)
        else:
            member.failures.append(f"{member.path}: {found[0]}: {failures.one_line(found[1])}")
    if request.correlate:
        member.gaps = gaps_of(member.checkpoint)


def gaps_of(checkpoint: dict[str, Any] | None) -> dict[str, float]:
    """Return the generalisation gaps that a checkpoint of ``hessprobe train`` has recorded.

    ``loss`` is test - training loss, ``accuracy`` training - test accuracy, so that either is large where a network
    does worse on new data.

    Raises:
        HessprobeError: none are recorded.
    """
    from hessprobe.errors import HessprobeError

    metrics = (checkpoint or {}).get("metrics", {})
    if not all(isinstance(metrics.get(f"{split}_loss"), float) for split in ("train", "test")):
        raise HessprobeError(
            "holds no training and test loss, which --correlate needs. Make checkpoints with hessprobe train."
        )
    gaps = {"loss": metrics["test_loss"] - metrics["train_loss"]}
    if all(isinstance(metrics.get(f"{split}_accuracy"), float) for split in ("train", "test")):
        gaps["accuracy"] = metrics["train_accuracy"] - metrics["test_accuracy"]
    return gaps


def _alike(one: Member, other: Member) -> bool:
    """Return whether two networks have one architecture, so that the same rescalings act in both."""
    known = [(member.checkpoint or {}).get("model") for member in (one, other)]
    return one.dim == other.dim > 0 and known[0] is not None and known[0] == known[1]


def _require_another_file(outcome: Outcome, checkpoint: dict[str, Any] | None) -> None:
    from hessprobe.errors import CheckpointError

    content = (checkpoint or {}).get("sha256")
    for other in outcome.members:
        if content is not None and content == (other.checkpoint or {}).get("sha256"):
            raise CheckpointError(f"holds the same bytes as {other.path}, from which it cannot differ. Leave it out.")


def _require_same_data(outcome: Outcome, data: dict[str, Any]) -> None:
    from hessprobe.errors import DataError

    for other in outcome.members:
        if other.data is not None and _content(other.data) != _content(data):
            here, there = (f"{one.get('name', 'objective')}, {_content(one)[:12]}" for one in (data, other.data))
            raise DataError(
                f"measures on other data ({here}) than {other.path} ({there}), so that differences would mix data and "
                "weights. Compare those of one data set, or fix the data with --objective."
            )


def _content(data: dict[str, Any]) -> str:
    """Return a hash of the data: of the data set, as models take it in several layouts, else of the batches."""
    return str(data.get("sha256") or data["fingerprint"])

"""Which rescalings keep the function of a network, and what that means for comparing its measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hessprobe.comparison.names import moved_by_rescaling
from hessprobe.errors import HessprobeError
from hessprobe.invariance import TRANSFORMS, find_sites
from hessprobe.measures.table import NAMES
from hessprobe.objective import EmpiricalRisk


@dataclass(frozen=True)
class Rescaling:
    """What the rescalings of the compared networks say of their measures.

    Attributes:
        kinds: transforms of ``invariance.TRANSFORMS``, other than permutations, that act in some of the networks.
        unknown: labels of the networks whose rescalings could not be found.
        moved: measures that such a rescaling changes though the network computes the same.
        invariant: measures that stay.
    """

    kinds: tuple[str, ...]
    unknown: tuple[str, ...]
    moved: tuple[str, ...]
    invariant: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What a reader should know, in one line."""
        if not self.moved:
            return f"{_listed(self.invariant)}: no rescaling that keeps a network's function moves any of them"
        if not self.kinds and not self.unknown:
            return f"no rescaling was found that keeps these networks' function, so {_listed(self.moved)} compare as is"
        known = f" ({_listed(self.kinds)} can act on these)" if self.kinds else ""
        others = [name for name in NAMES if not moved_by_rescaling(name) and name not in self.invariant]
        stays = f"{_listed(self.invariant)} stay{'' if len(self.invariant) > 1 else 's'}" if self.invariant else ""
        offer = f"--measure {' or '.join(others)} would stay" if others else ""
        return (
            f"{_listed(self.moved)} change{'s' if len(self.moved) == 1 else ''} when a network is rescaled without "
            f"changing what it computes{known}, so a difference in them need not be one between the functions; "
            f"{' and '.join(filter(None, (stays, offer)))}"
        )


def rescaling_of(kinds: Mapping[str, Sequence[str] | None], measures: Sequence[str]) -> Rescaling:
    """Return what the rescalings found in each network say of measures.

    Args:
        kinds: by label, of ``rescalings``.
        measures: names.
    """
    acting = {kind for own in kinds.values() for kind in own or ()}
    return Rescaling(
        tuple(name for name in TRANSFORMS if name in acting),
        tuple(label for label, own in kinds.items() if own is None),
        tuple(name for name in measures if moved_by_rescaling(name)),
        tuple(name for name in measures if not moved_by_rescaling(name)),
    )


def rescalings(risk: EmpiricalRisk) -> tuple[str, ...] | None:
    """Return the kinds of rescalings that act in a network and keep its function; None where that is not known."""
    try:
        found = find_sites(risk)
    except HessprobeError:
        return None
    return tuple(kind for kind in TRANSFORMS if TRANSFORMS[kind].scaled and kind in found.kinds)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)

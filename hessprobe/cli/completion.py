"""What the shell may complete behind an option; names that need torch are looked up when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from hessprobe.measures import TABLE

Complete = Callable[[str], Iterable[str | tuple[str, str]]]


def measures_of(known: Collection[str]) -> Complete:
    """Return what completes one of these measures, the last of several with commas, each with what it is."""

    def complete(incomplete: str) -> Iterator[tuple[str, str]]:
        before, comma, last = incomplete.rpartition(",")
        for name in known:
            if name.startswith(last):
                yield f"{before}{comma}{name}", TABLE[name].meaning

    return complete


def models(incomplete: str) -> Iterator[str]:
    """Yield the networks of ``train`` whose names begin so."""
    from hessprobe.training.models import REGISTRY

    return (name for name in REGISTRY if name.startswith(incomplete))


def optimizers(incomplete: str) -> Iterator[str]:
    """Yield the optimizers of ``train`` whose names begin so."""
    from hessprobe.training.optimizers import names

    return (name for name in names() if name.startswith(incomplete))


def one_of(known: Iterable[str]) -> Complete:
    """Return what completes a value that is one of ``known``."""
    names = tuple(known)
    return lambda incomplete: (name for name in names if name.startswith(incomplete))

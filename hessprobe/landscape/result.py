"""What a landscape is once it has been evaluated, in memory and on disk."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessprobe import display, files

Floats = NDArray[np.float64]
# Another number whenever the same key stands for other values: 2 since planes of pca lie around the first checkpoint.
FORMAT = "hessprobe.landscape/2"
# Above this ratio of the largest to the smallest value a linear scale shows a flat floor.
_DECADES = 10.0


def spans_decades(values: Floats, name: str) -> bool:
    """Return whether the values of quantity ``name`` ask for a logarithmic scale: all > 0 and far apart."""
    finite = values[np.isfinite(values)]
    return bool(name != "error" and len(finite) and finite.min() > 0 and finite.max() / finite.min() > _DECADES)


@dataclass(frozen=True, eq=False, repr=False)
class Landscape:
    """Values on a grid.

    Attributes:
        axes: one or two ascending coordinate arrays.
        values: by quantity; ``values[q][i, j]`` belongs to the point ``(axes[0][i], axes[1][j])``, on a line
            ``values[q][i]`` to ``axes[0][i]``. nan or inf where the quantity is not finite there (a hole), nan where
            it has not been computed yet.
        done: bool, of the same shape: which points have been computed.
        labels, kind, lengths: see ``Plane``.
        gram: (k, k) dot products of the directions.
        marks: name, coordinates, true loss of each marked point (None where it is not known).
        facts: plain values about directions and evaluation.
        slope: (k,) derivative of the loss along the directions at the center; None where it was not asked for.
        bend: (k, k) second derivatives.
        evaluated: number of points that this run computed; the others were found on disk.
        notes: what a reader should know, in words.

    Examples:
        >>> import torch, hessprobe as hp
        >>> model = torch.nn.Linear(2, 2).double()
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]).double()
        >>> data = [(x, torch.tensor([0, 1, 0]))]
        >>> risk = hp.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), data)
        >>> found = hp.landscape(risk, line=True, size=5, seed=0)
        >>> len(found.axes), found.complete, found.holes()
        (1, True, 0)
    """

    axes: tuple[Floats, ...]
    values: dict[str, Floats]
    done: NDArray[np.bool_]
    labels: tuple[str, ...]
    kind: str
    lengths: tuple[float, ...]
    gram: Floats
    marks: tuple[tuple[str, tuple[float, ...], float | None], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    slope: Floats | None = None
    bend: Floats | None = None
    evaluated: int = 0
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        shape = " x ".join(str(len(axis)) for axis in self.axes)
        ranges = ", ".join(f"{name} {low:.4g} to {high:.4g}" for name, low, high in self._ranges())
        return f"Landscape({shape} points, directions={self.kind!r}, {ranges})"

    def to_dict(self) -> dict[str, Any]:
        """Return axes, values, directions and the second-order model as plain data for JSON; holes are None."""
        names = ("kind", "labels", "lengths", "gram", "axes", "values", "marks", "slope", "bend", "facts", "notes")
        found: dict[str, Any] = display.plain({name: getattr(self, name) for name in names})
        return found

    def plot(self, *, style: str = "contour", rho: float | None = None, title: str = "") -> Any:
        """Return the axes of a matplotlib figure, one panel a quantity.

        Args:
            style: ``"contour"`` or ``"surface"``, of a plane.
            rho: radius of SAM's ball to draw, > 0.
            title: above the figure.

        Raises:
            ValueError: another style, or nothing finite to draw.
        """
        return display.draw(self, style=style, rho=rho, title=title)

    def _ranges(self) -> list[tuple[str, float, float]]:
        finite = {name: values[np.isfinite(values)] for name, values in self.values.items()}
        return [(name, float(own.min()), float(own.max())) for name, own in finite.items() if own.size]

    def _repr_html_(self) -> str:
        rows = [(name, f"{low:.6g}", f"{high:.6g}", self.holes(name)) for name, low, high in self._ranges()]
        return display.html_table(rows, header=("quantity", "lowest", "highest", "holes"), caption=repr(self))

    @property
    def center(self) -> tuple[int, ...]:
        """Index of the point with coordinates 0."""
        return tuple(int(np.flatnonzero(axis == 0)[0]) for axis in self.axes)

    @property
    def complete(self) -> bool:
        """Whether every point has been computed."""
        return bool(self.done.all())

    def holes(self, quantity: str = "loss") -> int:
        """Return how many computed points are nan or infinite."""
        return int((self.done & ~np.isfinite(self.values[quantity])).sum())

    def quadratic(self) -> Floats | None:
        """Return L(0) + x.g + x.H x / 2 on the grid, or None where slope and bend are not known."""
        if self.slope is None or self.bend is None:
            return None
        places = np.stack(np.meshgrid(*self.axes, indexing="ij"), axis=-1)
        rise = places @ self.slope + np.einsum("...i,ij,...j->...", places, self.bend, places) / 2
        model: Floats = self.values["loss"][self.center] + rise
        return model

    def departure(self) -> Floats | None:
        """Return |model - L| / |L| on the grid, nan in holes; None without a model."""
        model, loss = self.quadratic(), self.values["loss"]
        if model is None:
            return None
        with np.errstate(invalid="ignore", divide="ignore"):
            share: Floats = np.where(np.isfinite(loss), np.abs(model - loss) / np.abs(loss), np.nan)
        return share

    def with_marks(self, marks: tuple[tuple[str, tuple[float, ...], float | None], ...]) -> Landscape:
        """Return the same landscape with other marks."""
        return replace(self, marks=marks)


@dataclass
class Store:
    """A partial landscape on disk: finished points, under the key of everything that decides them.

    Attributes:
        path: an npz file.
        key: hexadecimal digest; what is stored under another key is not used.
    """

    path: Path
    key: str

    def load(self) -> dict[str, NDArray[Any]] | None:
        """Return the stored arrays, or None where there is no file, or one of another landscape, or a damaged one."""
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                if str(content["format"]) != FORMAT or str(content["key"]) != self.key:
                    return None
                return {name: content[name] for name in content.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> None:
        """Write everything in one atomic step."""
        named = {**arrays, "format": np.array(FORMAT), "key": np.array(self.key), "facts": np.array(json.dumps(facts))}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **named)
        files.write_atomically(self.path, lambda file: file.write(buffer.getbuffer()))

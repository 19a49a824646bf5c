"""One bar a class: its share of the trace of the Gauss-Newton matrix, and lambda_max of its part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hessprobe.report.figures.drawn import Drawn, table
from hessprobe.report.figures.fields import between
from hessprobe.report.figures.layers import bars_of
from hessprobe.report.figures.style import BLUE, GRAY, VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More bars are not readable on a page; the classes of the largest traces are kept.
_MOST = 80
# Value, and how far its interval reaches below and above.
_Spread = tuple[float, float, float]


def classes(
    traces: Mapping[object, _Spread], tops: Mapping[object, _Spread], whole: _Spread | None, confidence: float
) -> Drawn:
    """Return the figure of the parts of the classes, ``GaussNewton.by_class``.

    The share of class c is t_c / T of its trace, T the sum of all. Its interval reaches from where its own trace is at
    the lower end and all others are at the upper, to the reverse: at one seed the traces share their probes, and this
    holds whatever they have in common, once all intervals do.

    Args:
        traces: of each class by its label: value, and how far its interval reaches below and above.
        tops: lambda_max of each class, of the same labels.
        whole: lambda_max of the sum of the parts, a line that no bar passes; None for none.
        confidence: of the intervals, in (0, 1).
    """
    values = np.array([traces[label] for label in traces], dtype=np.float64)
    low, high = np.maximum(values[:, 0] - values[:, 1], 0.0), values[:, 0] + values[:, 2]
    parts = values[:, 0] / values[:, 0].sum()
    ends = (parts - low / (low + high.sum() - high), high / (high + low.sum() - low) - parts)
    # Where traces are exact rounding may leave less than nothing.
    shares = dict(zip(traces, 100 * np.maximum(np.stack([parts, *ends], axis=1), 0.0), strict=True))
    kept = set(sorted(traces, key=lambda label: -traces[label][0])[:_MOST])
    shown = [label for label in traces if label in kept]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        bars_of(left, [tuple(shares[label]) for label in shown], BLUE)
        bars_of(right, [tops[label] for label in shown], VERMILION)
        left.set_xlabel("share of trace (%)")
        right.set_xlabel(r"$\lambda_{\max}$ of its part")
        left.set_yticks(range(len(shown)), labels=[str(label) for label in shown])
        left.set(ylim=(len(shown) - 0.5, -0.5), ylabel="class")
        if len(shown) < len(traces):
            left.set_title(f"the {len(shown)} largest of {len(traces)}", loc="left")
        if whole is not None:
            line = right.axvline(whole[0], color=GRAY, ls="--", lw=1.0, label="of the whole matrix")
            figure.legend(handles=[line], loc="outside upper right")

    first = max(traces, key=lambda label: traces[label][0])
    top = max(tops, key=lambda label: tops[label][0])
    alt = (
        f"Parts of {len(traces)} classes, {100 * confidence:g} % intervals: class {first} has the largest share of the "
        f"trace, {between(*map(float, shares[first]))} %; class {top} the largest lambda_max, {between(*tops[top])}"
        f"{'' if whole is None else f', that of the whole matrix is {between(*whole)}'}."
    )
    rows = np.array([(*shares[label], *tops[label]) for label in traces], dtype=np.float64).T
    data: Any = table(
        **{"class": [str(label) for label in traces]}, trace=values[:, 0], share=rows[0], low=rows[0] - rows[1],
        high=rows[0] + rows[2], lambda_max=rows[3], lambda_max_low=rows[3] - rows[4], lambda_max_high=rows[3] + rows[5],
    )  # fmt: skip
    height = 0.75 + 0.17 * len(shown) + (0.2 if whole is not None else 0.0)
    return Drawn("classes", "Curvature by class", alt, draw, (4.2, height), lambda _: height, data)

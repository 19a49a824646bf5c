"""Relative flatness and the Fisher-Rao norm: curvature in the units of the weights themselves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import UnsupportedError
from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators.budget import Progress
from hessprobe.hvp import Fisher, Hessian
from hessprobe.objective.base import Objective, require_objective
from hessprobe.operators import LinearOperator
from hessprobe.sharpness.sizing import draws, judged, sampled
from hessprobe.vectors import ProbeStream, row_dots

DEFAULT_PROBES = 64
_FLATNESS, _FLATNESS_PILOT = 4, 5
_BLOCK = 1 << 24
_MOST_ROWS = 16


@dataclass(frozen=True)
class RelativeFlatness:
    """Relative flatness of every layer.

    Attributes:
        total: sum over layers.
        layers: kappa of each weight tensor of two or more dimensions, by name.
        widths: by name, the number of inputs m of a neuron; kappa / m is the form of the authors' regulariser.
    """

    total: Estimate
    layers: dict[str, Estimate]
    widths: dict[str, int]


def relative_flatness(
    risk: Objective,
    *,
    n_probes: int | None = None,
    rtol: float | None = None,
    max_probes: int = 4000,
    confidence: float = 0.95,
    seed: int | torch.Generator = 0,
    operator: LinearOperator | None = None,
    callback: Callable[[str, Progress], None] | None = None,
) -> RelativeFlatness:
    r"""Estimate kappa_l = sum_{s,s'} <w_s, w_s'> tr H_ss' for every weight matrix W_l with rows w_s, its neurons.

    H_ss' is the block of the Hessian between the weights of neurons s and s'. In other words kappa_l is the trace of
    the Hessian of A -> L(W_l (I + A)) at A = 0: the curvature under relative changes of the layer's inputs. So

        kappa_l = E[vec(W_l Z)^T H vec(W_l Z)]   for Z with independent random signs,

    and one product with independent Z_l in all layers serves all kappa_l. It is unchanged where a layer, or a single
    neuron's incoming weights, are scaled and the scale undone behind them; scaling a layer's *inputs* one by one
    changes it. A convolution counts as the matrix of its flattened kernels, one row an output channel (the definition
    is for matrices; the identity above carries over, with A acting on patches).

    Args:
        risk: the objective.
        n_probes: draws, >= 2; 64 by default. A product each.
        rtol: in place of that, the relative half-width of the total's interval, in (0, 1): a pilot of 16 draws fixes
            the number.
        max_probes: the most that ``rtol`` may ask for.
        confidence: level of the interval that ``rtol`` speaks of.
        seed: integer >= 0, or a generator to draw one from.
        operator: the Hessian of the risk where there is one already.
        callback: called with a stage and a ``Progress``.

    Raises:
        TypeError, ValueError: an argument outside its range.
        UnsupportedError: no parameter tensor of two or more dimensions.

    References:
        Petzka, Kamp, Adilova, Sminchisescu, Boley (2021), "Relative flatness and generalization".
    """
    require_objective("risk", risk)
    began, number = time.perf_counter(), checks.resolve_seed(seed)
    drawn = _Draws(risk, number, Hessian(risk) if operator is None else operator, callback)
    count, wanted = draws(
        n_probes,
        rtol,
        confidence,
        max_probes,
        DEFAULT_PROBES,
        lambda size: drawn.table(size, _FLATNESS_PILOT).sum(1, keepdim=True),
    )
    table = drawn.table(count, _FLATNESS)
    spent, seconds = float(drawn.products), time.perf_counter() - began

    def estimate(column: Tensor) -> Estimate:
        error, df, flags = sampled(column)
        mean = float(column.mean())
        return Estimate(mean, ErrorParts(error), df, spent, count, "signs", flags=flags, seconds=seconds)

    layers = {name: estimate(column) for name, column in zip(drawn.weights, table.T, strict=True)}
    widths = {name: weight[0].numel() for name, weight in drawn.weights.items()}
    total = judged(estimate(table.sum(1)), rtol, confidence, wanted)
    return RelativeFlatness(total, layers, widths)


class _Draws:
    """vec(W_l Z_l)^T (H v)_l for every layer l, v the concatenation of vec(W_l Z_l)."""

    def __init__(
        self, risk: Objective, seed: int, hessian: LinearOperator, callback: Callable[[str, Progress], None] | None
    ) -> None:
        self._slices, self._hessian, self._callback = risk.layout.slices, hessian, callback
        named = risk.layout.split(risk.theta)
        self.weights = {name: w.flatten(1) for name, w in named.items() if w.ndim >= 2}
        if not self.weights:
            raise UnsupportedError(
                "Relative flatness needs a weight matrix, but every parameter in theta has one dimension at most. "
                "Choose other parameters."
            )
        self._seed, self._dim, self.products = seed, risk.dim, 0

    def table(self, count: int, use: int) -> Tensor:
        """Return one row a draw and one column a layer, fp64 (count, layers)."""
        widths = [w.shape[1] for w in self.weights.values()]
        reference = next(iter(self.weights.values()))
        stream = ProbeStream(
            sum(m * m for m in widths),
            self._seed,
            "rademacher",
            stream="sharpness",
            dtype=reference.dtype,
            device=reference.device,
        )
        rows = max(min(_BLOCK // max(stream.dim, self._dim), _MOST_ROWS), 1)
        parts = []
        for start in range(0, count, rows):
            signs = stream.block(start, min(start + rows, count), use)
            V = signs.new_zeros(len(signs), self._dim)
            for (name, w), square in zip(
                self.weights.items(), torch.split(signs, [m * m for m in widths], dim=1), strict=True
            ):
                V[:, self._slices[name]] = (w @ square.view(-1, w.shape[1], w.shape[1])).flatten(1)
            images = self._hessian.matvecs(V)
            self.products += len(V)
            columns = [row_dots(V[:, self._slices[name]], images[:, self._slices[name]]) for name in self.weights]
            parts.append(torch.stack(columns, 1).cpu())
            self._report(sum(map(len, parts)), count)
        return torch.cat(parts)

    def _report(self, done: int, count: int) -> None:
        if self._callback is not None:
            self._callback("relative flatness", Progress(done, count, math.nan, math.inf))


def fisher_rao_norm(risk: Objective, *, kind: str = "empirical") -> Estimate:
    r"""Return ||w||_fr = sqrt(w^T F w).

    ``"empirical"``: F = E[grad l (grad l)^T] over the examples with their own targets, the definition of Liang et al.
    on the data: w^T F w = E[(w . grad l)^2]. ``"model"``: F = E over targets
    drawn from the model, the Fisher information itself, in closed form (see ``hvp.Fisher``).

    For a network of L + 1 layers without biases whose activations are homogeneous, (Jacobian) w = (L + 1) f, so that
    the empirical form has the closed form (L + 1)^2 E[<dl/df, f>^2]. It is unchanged by every rescaling of the weights
    that leaves the network as it is.

    Args:
        risk: an objective whose batches have outputs.
        kind: ``"empirical"`` or ``"model"``.

    Returns:
        The norm, exact up to rounding, for one product.

    Raises:
        ValueError: unknown kind.
        UnsupportedError: an objective without outputs.

    References:
        Liang, Poggio, Rakhlin, Stokes (2019), "Fisher-Rao metric, geometry, and complexity of neural networks";
        Kunstner, Balles, Hennig (2019), "Limitations of the empirical Fisher approximation", on the two kinds.
    """
    require_objective("risk", risk)
    checks.one_of("kind", kind, ("empirical", "model"))
    began = time.perf_counter()
    F = Fisher(risk, kind="exact" if kind == "model" else kind)
    square = float(F.quadratic_forms(risk.theta[None])[0])
    value = math.sqrt(max(square, 0.0))
    rounding = 8 * torch.finfo(risk.dtype).eps * value
    return Estimate(
        value,
        ErrorParts(solver=rounding),
        matvecs=1.0,
        method=f"{kind} fisher",
        kind="exact",
        support=(0.0, math.inf),
        seconds=time.perf_counter() - began,
    )

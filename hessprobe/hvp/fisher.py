"""The Fisher information matrix of an objective, as the Gauss-Newton matrix of a loss on the same outputs.

A loss as a likelihood of its outputs: the same model with a loss whose Gauss-Newton matrix is the Fisher matrix.

With l(f, y) = -log p(y | f) + const the Fisher matrix in the outputs is E_y[r r^T], r = dl/df, over y drawn from
p(. | f), which is E_y[d^2 l / df^2] as well. Where d^2 l does not depend on y (an exponential family in its natural
parameters: cross-entropy on scores, squared error, Poisson on log rates) it is d^2 l itself, a theorem that makes the
Fisher matrix the Gauss-Newton matrix. The losses of torch for which this fails are turned into ones for which it holds:

* ``NLLLoss`` is linear in its outputs, the log-probabilities g: its Gauss-Newton matrix is 0. As log-softmax leaves
  log-probabilities as they are, it is the cross-entropy of g, whose Gauss-Newton matrix J^T diag(exp g) J is the
  Fisher matrix;
* ``BCELoss`` and ``PoissonNLLLoss(log_input=False)`` are linear in y, so that E_y[d^2 l] is d^2 l at y = E y, which is
  the output itself.

References:
    Martens (2020), "New insights and perspectives on the natural gradient method", section 9; Kunstner, Balles, Hennig
    (2019), "Limitations of the empirical Fisher approximation".
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprobe import checks
from hessprobe.errors import NumericalWarning, UnsupportedError
from hessprobe.hvp.auto import EXPECTED_MATVECS
from hessprobe.hvp.gauss_newton import GaussNewton
from hessprobe.hvp.output_space import (
    MAX_OUTPUTS,
    agree,
    bending,
    convex_on,
    differentiating_twice,
    loss_hessians,
    square_roots,
)
from hessprobe.hvp.pool import MemoryBudget
from hessprobe.objective.base import (
    BatchLoss,
    LossRule,
    Objective,
    require_objective,
    shifted_cross_entropy,
    token_cross_entropy,
)
from hessprobe.objective.batches import EmpiricalBatch
from hessprobe.vectors import ProbeStream

_NATURAL = (nn.CrossEntropyLoss, F.cross_entropy, token_cross_entropy, shifted_cross_entropy, nn.MSELoss, F.mse_loss)
_LOG_PROBABILITIES = (nn.NLLLoss, F.nll_loss)
_MEANS = (nn.BCELoss, F.binary_cross_entropy)
_POISSON = (nn.PoissonNLLLoss, F.poisson_nll_loss)

# How far from 0 the log of the sum of probabilities may be, in roundings.
_ROUNDINGS = 1e3


def likelihood(risk: Objective) -> Objective:
    """Return the risk, or the same model with a loss whose Gauss-Newton matrix is the risk's Fisher matrix.

    Raises:
        UnsupportedError: a loss that is no negative log-likelihood that is known here, or ``NLLLoss`` on outputs that
            are no log-probabilities (looked at on the first batch).
    """
    with risk.evaluating():
        batch = next(iter(risk.terms()))
        if _kind(batch) in ("log-probabilities", "means"):
            found: Objective = _Likelihood(risk)
            next(iter(found.terms()))
            return found
        if _kind(batch) != "natural":
            _require_natural(batch, risk.theta)
    return risk


class _Likelihood(Objective):
    """The outputs of a risk, with the loss that ``as_natural`` makes of its own."""

    def __init__(self, risk: Objective) -> None:
        self._risk = risk
        self.dim, self.dtype, self.device = risk.dim, risk.dtype, risk.device
        self.theta, self.layout, self.n_terms = risk.theta, risk.layout, risk.n_terms
        self.group = risk.group

    def __repr__(self) -> str:
        return f"likelihood of {self._risk!r}"

    def evaluating(self) -> AbstractContextManager[None]:
        """Return the context of the risk."""
        return self._risk.evaluating()

    def require_finite_loss(self, theta: Tensor | None = None) -> None:
        """See that of the risk."""
        self._risk.require_finite_loss(theta)

    def terms(self) -> Iterator[BatchLoss]:
        """Yield each batch of the risk with the other loss."""
        for batch in self._risk.terms():
            yield as_natural(batch, self.theta)


def as_natural(batch: BatchLoss, theta: Tensor) -> BatchLoss:
    """Return the batch with a loss whose second derivative in the outputs at ``theta`` is the Fisher matrix there.

    Raises:
        UnsupportedError: ``NLLLoss`` on outputs that are no log-probabilities.
    """
    if not isinstance(batch, EmpiricalBatch) or _kind(batch) not in ("log-probabilities", "means"):
        return batch
    with torch.no_grad():
        outputs = batch.outputs(theta).detach()
    if _kind(batch) == "means":
        return replace(batch, targets=outputs)
    _require_log_probabilities(outputs)
    _, option = unwrapped(batch.rule.function)
    # The size and the weight of a batch are those of the risk; a cross-entropy divides alike.
    function = functools.partial(
        F.cross_entropy,
        weight=option("weight", None),
        ignore_index=batch.rule.ignore_index,
        reduction=batch.rule.reduction,
    )
    return replace(batch, rule=replace(batch.rule, function=function))


def _kind(batch: BatchLoss) -> str:
    if not isinstance(batch, EmpiricalBatch):
        return "unknown"
    base, option = unwrapped(batch.rule.function)

    def among(known: tuple[Any, ...]) -> bool:
        return base in known or type(base) in known

    if among(_LOG_PROBABILITIES):
        return "log-probabilities"
    if among(_MEANS) or (among(_POISSON) and not option("log_input", True)):
        return "means"
    return "natural" if among(_NATURAL) else "unknown"


def unwrapped(loss: Callable[..., Any]) -> tuple[Any, Callable[[str, Any], Any]]:
    """Return the loss inside partials, and what gives the value of one of its options."""
    keywords: dict[str, Any] = {}
    while isinstance(loss, functools.partial):
        keywords, loss = {**loss.keywords, **keywords}, loss.func

    def option(name: str, default: Any) -> Any:
        return keywords.get(name, getattr(loss, name, default) if isinstance(loss, nn.Module) else default)

    return loss, option


def _require_log_probabilities(outputs: Tensor) -> None:
    totals = outputs.double().logsumexp(1 if outputs.dim() > 1 else 0)
    worst = float(totals.abs().max())
    if not worst <= _ROUNDINGS * torch.finfo(outputs.dtype).eps:
        raise UnsupportedError(
            f"The Fisher matrix of NLLLoss needs outputs that are log-probabilities; the log of their sum is up to "
            f"{worst:.3g} away from 0. End the model in LogSoftmax(dim=1), or use CrossEntropyLoss."
        )


def _require_natural(batch: BatchLoss, theta: Tensor) -> None:
    """Refuse a loss whose second derivative cannot be that of a likelihood in its natural parameters.

    Raises:
        UnsupportedError: it is 0, or depends on the targets.
    """
    rule = batch.rule if isinstance(batch, EmpiricalBatch) else None
    name = "this loss" if rule is None else rule.name
    outputs = batch.outputs(theta).detach()
    with differentiating_twice():
        seen = _bend(batch, outputs)
    if not bool((seen != 0).any()):
        raise UnsupportedError(
            f"The Fisher matrix needs a likelihood that is known; {name} is linear in the outputs, whose second "
            "derivative of 0 is no Fisher matrix. Pass torch.nn.NLLLoss() itself, or a cross-entropy on scores."
        )
    other = _turned(batch)
    if other is not None and not agree(_bend(other, outputs), seen):
        other_way = "operator='ggn'" if convex_on([batch], theta) else "operator='hessian'"
        raise UnsupportedError(
            f"The Fisher matrix needs a likelihood that is known; the second derivative of {name} in the outputs "
            f"depends on the targets. Pass a loss of torch itself, or measure with {other_way}, or "
            "Fisher(risk, kind='empirical')."
        )


def _bend(batch: BatchLoss, outputs: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    return bending(batch, outputs)(probe)


def _turned(batch: BatchLoss) -> BatchLoss | None:
    """Return the batch with each example given the targets of the one before, or None where that is not possible."""
    if not isinstance(batch, EmpiricalBatch) or not isinstance(batch.targets, Tensor) or batch.examples < 2:
        return None
    if batch.targets.layout != torch.strided or not _same_units(batch.rule, batch.targets):
        return None
    return replace(batch, targets=batch.targets.roll(1, 0))


def _same_units(rule: LossRule, targets: Tensor) -> bool:
    """Return whether the targets of all examples count alike: ignored ones take away curvature, and may."""
    ignored = not targets.is_floating_point() and bool((targets == rule.ignore_index).any())
    return not ignored and rule.class_weight is None


KINDS = ("exact", "mc", "empirical")


def Fisher(
    risk: Objective,
    *,
    kind: str = "exact",
    n_draws: int = 1,
    seed: int | torch.Generator = 0,
    engine: str = "auto",
    memory: int | MemoryBudget | None = None,
    expected_matvecs: int = EXPECTED_MATVECS,
) -> GaussNewton:
    """Return F = (1/N) sum_s J_s^T r_s r_s^T J_s as an operator, positive semidefinite.

    Args:
        risk: an objective whose batches have outputs f.
        kind: ``"exact"``: the expectation of r r^T over targets drawn from the model's own distribution, in closed
            form and at the price of a Gauss-Newton product; no labels are drawn. It is the Gauss-Newton matrix for a
            cross-entropy on scores, a squared error, and any other loss whose second derivative in the outputs does
            not depend on the targets; of ``NLLLoss`` on log-probabilities, where the Gauss-Newton matrix is 0, and of
            ``BCELoss`` on probabilities it is the Fisher matrix of the likelihood, see ``Fisher``. Class
            weights stay the weights of the examples. ``"empirical"``: r_s is the slope of example s's loss at its own
            target, F the second moment of the per-example gradients: the Fisher matrix only in the limit where the
            model is right. ``"mc"``: the mean over ``n_draws`` random r_s an example with the expectation of
            ``"exact"``. Labels drawn otherwise would give a matrix that differs by about 1/sqrt(N n_draws) relative:
            ``trace`` states that as its error, from two draws on; every number that is not linear in the matrix is
            biased besides (norms and eigenvalues upwards), and refused.
        n_draws: of labels for every example with ``"mc"``, >= 1.
        seed: of the draws of ``"mc"``; the same draws for every product.
        engine: see ``GaussNewton``.
        memory: see ``GaussNewton``.
        expected_matvecs: see ``GaussNewton``.

    Raises:
        ValueError: unknown kind, or n_draws out of range.
        UnsupportedError: no outputs; a loss that is no likelihood that is known (but for ``"empirical"``); or for
            ``"mc"`` more than 256 outputs an example.

    Warns:
        NumericalWarning: for ``"mc"`` with one draw, of which no number has an error that is known.

    References:
        Kunstner, Balles, Hennig (2019), "Limitations of the empirical Fisher approximation"; Martens (2020), "New
        insights and perspectives on the natural gradient method".

    Examples:
        >>> import torch, hessprobe as hp
        >>> model = torch.nn.Linear(1, 2).double()
        >>> data = [(torch.ones(4, 1).double(), torch.tensor([0, 1, 0, 1]))]
        >>> risk = hp.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), data)
        >>> F, G = hp.Fisher(risk), hp.GaussNewton(risk)
        >>> torch.allclose(F.to_dense(), G.to_dense())
        True
    """
    checks.one_of("kind", kind, KINDS)
    n_draws = checks.positive_int("n_draws", n_draws)
    objective: Objective
    if kind == "exact":
        objective = likelihood(require_objective("risk", risk))
    else:
        seed = checks.resolve_seed(seed)
        every = range(n_draws if kind == "mc" else 1)
        objective = _FisherObjective(require_objective("risk", risk), kind, seed, every, len(every))
    if kind == "mc" and n_draws == 1:
        warnings.warn(
            "Fisher(kind='mc') is made of one draw of labels, an error that nothing tells. Use kind='exact', which "
            "costs the same, or n_draws=8, with which a trace has an error.",
            NumericalWarning,
            stacklevel=2,
        )

    # One budget for the mean and all draws.
    memory = memory if isinstance(memory, MemoryBudget) else MemoryBudget(memory, risk.device, risk)

    def metric(of: Objective) -> GaussNewton:
        made = GaussNewton(of, engine=engine, memory=memory, expected_matvecs=expected_matvecs)
        made.name = "Fisher"
        return made

    matrix = metric(objective)
    if isinstance(objective, _FisherObjective) and kind == "mc":
        matrix.draws = tuple(metric(objective.alone(draw)) for draw in range(n_draws))
    if kind == "exact" and objective is not risk:
        matrix.notes = ("Fisher matrix of the likelihood, which the Gauss-Newton matrix of this loss is not",)
    return matrix


class _FisherObjective(Objective):
    """The same outputs as a risk, with the loss 1/(2nK) sum_sk (r_sk . f_s)^2 on them, whose Hessian is the metric.

    Args:
        risk: whose outputs.
        kind: ``"empirical"`` or ``"mc"``.
        seed: of all draws.
        draws: indices of those that are taken.
        of: how many there are.
    """

    def __init__(self, risk: Objective, kind: str, seed: int, draws: range, of: int) -> None:
        self._risk, self._kind, self._seed, self._draws, self._of = risk, kind, seed, draws, of
        self.dim, self.dtype, self.device = risk.dim, risk.dtype, risk.device
        self.theta, self.layout, self.n_terms = risk.theta, risk.layout, risk.n_terms
        self.group = risk.group

    def __repr__(self) -> str:
        return f"{self._kind} slopes of {self._risk!r}"

    def alone(self, draw: int) -> _FisherObjective:
        """Return the loss of one of the draws."""
        return _FisherObjective(self._risk, self._kind, self._seed, range(draw, draw + 1), self._of)

    def evaluating(self) -> AbstractContextManager[None]:
        """Return the context of the risk."""
        return self._risk.evaluating()

    def require_finite_loss(self, theta: Tensor | None = None) -> None:
        """See that of the risk."""
        self._risk.require_finite_loss(theta)

    def terms(self) -> Iterator[BatchLoss]:
        """Yield each batch of the risk with its quadratic loss."""
        for index, own in enumerate(self._risk.terms()):
            batch = own if self._kind == "empirical" else as_natural(own, self.theta)
            with torch.no_grad():
                outputs = batch.outputs(self.theta).detach()
            class_dim = _class_dim(batch)
            count = batch.size if class_dim is None else _counted(batch, outputs, class_dim)
            if self._kind == "empirical":
                slopes = [count * _slope(batch.loss_of_outputs, outputs)]
            else:
                at = [index * self._of + draw for draw in self._draws]
                slopes = (
                    _gaussian_slopes(batch, outputs, self._seed, at)
                    if class_dim is None
                    else [_label_slopes(batch, outputs, class_dim, self._seed, probe) for probe in at]
                )
            yield _FisherBatch(batch, torch.stack(slopes, 1), class_dim, count)


class _FisherBatch(BatchLoss):
    """One batch of a ``_FisherObjective``.

    Args:
        batch: of the risk.
        slopes: r (B, K, ...), K of the shape of the outputs (B, ...).
        class_dim: dimension over which r . f sums, one unit for each index of the others; None: one for each example.
        count: number of units n that the mean loss is over.
    """

    def __init__(self, batch: BatchLoss, slopes: Tensor, class_dim: int | None, count: float) -> None:
        self._batch, self._slopes, self._class_dim, self._count = batch, slopes, class_dim, count
        self.weight, self.size = batch.weight, batch.size
        self.examples = getattr(batch, "examples", 0)

    def __call__(self, theta: Tensor) -> Tensor:
        """Return the quadratic loss at ``theta``."""
        return self.loss_of_outputs(self.outputs(theta))

    def outputs(self, theta: Tensor) -> Tensor:
        """Return the outputs of the risk's batch."""
        return self._batch.outputs(theta)

    def loss_of_outputs(self, outputs: Tensor) -> Tensor:
        """Return 1/(2nK) sum over units and draws of (r . f)^2."""
        product = self._slopes * outputs[:, None]
        draws = self._slopes.shape[1]
        if self._class_dim is None:
            forms = product.reshape(len(product), draws, -1).sum(2)
        else:
            forms = product.sum(self._class_dim + (self._class_dim > 0))
        return forms.square().sum() / (2 * self._count * draws) if self._count else (outputs * 0).sum()

    def tensors(self) -> list[Tensor]:
        """Return those of the risk's batch, and the slopes."""
        return [*self._batch.tensors(), self._slopes] if self._batch.tensors() else []

    @property
    def signature(self) -> Hashable:
        """The number of units enters the loss as a number."""
        return self._batch.signature, self._count

    def rebind(self, tensors: list[Tensor], constants: list[Tensor] | None = None) -> BatchLoss:
        """Return the loss on other tensors."""
        return _FisherBatch(self._batch.rebind(tensors[:-1], constants), tensors[-1], self._class_dim, self._count)

    def slice(self, start: int, stop: int) -> BatchLoss:
        """Return the loss of some of the examples."""
        part = self._batch.slice(start, stop)
        slopes = self._slopes[start:stop]
        if self._class_dim is None:
            return _FisherBatch(part, slopes, None, part.size)
        return _FisherBatch(part, slopes, self._class_dim, _counted(part, slopes[:, 0], self._class_dim))


def _slope(loss: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    with torch.enable_grad():
        point = outputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(point), point, materialize_grads=True)
    return slope


def _class_dim(batch: BatchLoss) -> int | None:
    """Return the dimension of the classes where the loss is a plain cross-entropy on labels, else None."""
    if not isinstance(batch, EmpiricalBatch):
        return None
    rule = batch.rule
    if rule.function in (token_cross_entropy, shifted_cross_entropy):
        return -1
    base, option = unwrapped(rule.function)
    plain = (isinstance(base, nn.CrossEntropyLoss) or base is F.cross_entropy) and not option("label_smoothing", 0.0)
    labels = isinstance(batch.targets, Tensor) and not batch.targets.is_floating_point()
    plain = labels and rule.class_weight is None and plain
    return 1 if plain else None


def _valid(batch: BatchLoss, outputs: Tensor, class_dim: int) -> Tensor:
    """Return which units count, of the shape of the outputs without the classes."""
    if not isinstance(batch, EmpiricalBatch):
        raise UnsupportedError("Labels can be drawn for an EmpiricalRisk only.")
    units = outputs.movedim(class_dim, -1).shape[:-1]
    counted = (batch.targets != batch.rule.ignore_index).to(outputs.device)
    if batch.rule.shift:
        counted = torch.cat([counted[..., 1:], torch.zeros_like(counted[..., :1])], dim=-1)
    valid: Tensor = counted.view(units)
    return valid


def _counted(batch: BatchLoss, outputs: Tensor, class_dim: int) -> float:
    return float(_valid(batch, outputs, class_dim).sum())


def _label_slopes(batch: BatchLoss, outputs: Tensor, class_dim: int, seed: int, probe: int) -> Tensor:
    """Slopes softmax(f) - onehot(y) at labels y drawn from softmax(f), one draw a unit; 0 for ignored units."""
    shares = outputs.double().softmax(class_dim).movedim(class_dim, -1)
    normal = ProbeStream(shares[..., 0].numel(), seed, "gaussian", device=outputs.device, stream="label").probe(probe)
    uniform = torch.special.ndtr(normal).view(shares.shape[:-1])
    drawn = (shares.cumsum(-1) < uniform[..., None]).sum(-1).clamp_max(shares.shape[-1] - 1)
    slopes = shares - F.one_hot(drawn, shares.shape[-1])
    slopes = slopes * _valid(batch, outputs, class_dim)[..., None]
    return slopes.movedim(-1, class_dim).to(outputs.dtype)


def _gaussian_slopes(batch: BatchLoss, outputs: Tensor, seed: int, probes: Sequence[int]) -> list[Tensor]:
    """Slopes L e, L L^T = d^2 l, e standard normal: those of targets drawn from the Gaussian of a square loss."""
    blocks = loss_hessians(batch, outputs)
    if blocks is None:
        raise UnsupportedError(
            f"Fisher(kind='mc') draws from at most {MAX_OUTPUTS} outputs an example; the model has "
            f"{outputs[0].numel()}. Use kind='empirical' or GaussNewton, or a cross-entropy loss of torch."
        )
    roots = square_roots(blocks * batch.size)
    stream = ProbeStream(outputs.numel(), seed, "gaussian", device=outputs.device, stream="label")
    normals = (stream.probe(probe).view(roots.shape[:2]) for probe in probes)
    drawn = [torch.einsum("sij,sj->si", roots, normal) for normal in normals]
    return [slopes.to(outputs.dtype).view_as(outputs) for slopes in drawn]

"""SASSHA."""

from __future__ import annotations

from typing import Unpack

import torch
from torch.optim.optimizer import ParamsT

from hessprobe import checks
from hessprobe.estimators import diagonal
from hessprobe.operators import LinearOperator
from hessprobe.optim.engine import At, Curvature, Displacement, EngineOptions, Evaluation, Rule, SharpnessAware
from hessprobe.optim.engine.curvature import ParameterOperator
from hessprobe.optim.engine.ranks import MeanOverRanks
from hessprobe.optim.engine.tensors import TensorList
from hessprobe.optim.schedules import Schedule
from hessprobe.optim.variants.bsam import decay_rates


class SASSHA(SharpnessAware):
    """SASSHA: a diagonal Newton method whose gradient and curvature are taken at SAM's displaced weights.

    With e = rho u(g), g_e = grad L(w + e), D = diag of the Hessian at w + e (at w with ``curvature_at="weights"``),
    estimated at steps 1, 1 + every, ...:

        m <- b1 m + (1 - b1) g_e,                         mhat = m/(1 - b1^t)
        h <- b2 h + (1 - b2) abs(D) at those steps,       hhat = h/(1 - b2^tau),     tau = the last of them
        w <- w - lr (mhat/(hhat^power + eps_denominator) + wd w)

    The correction takes tau, a number of steps, though h was updated only once every ``every`` steps: that is how the
    authors' code does it, and it makes hhat too small by up to that factor in the beginning. In one point that code
    differs: it puts the weights back before it differentiates a second time, so that its products mix weights at w with
    activations at w + e, the Hessian of neither; with the two in the right order it takes these very steps.

    D is Hutchinson's estimate with Rademacher probes, from ``hessprobe.estimators.diagonal``; the authors draw one
    probe, here it is at least two. ``step`` must be given ``loss=`` (forward only, with its graph). It owns its update
    (it takes parameters, not a base optimizer); ``step()`` without a closure is a plain gradient step. A step takes two
    gradients and n_probes/every Hessian-vector products (``last.products``). Two vectors of memory. M-SASSHA, the form
    with one gradient, is not included.

    Args:
        params: parameters or parameter groups.
        rho: radius >= 0 or a schedule; 0.1 to 0.3.
        lr: >= 0; 0.15 in the paper.
        betas: (b1, b2) in [0, 1).
        every: steps from one Hessian diagonal to the next, >= 1.
        n_probes: >= 2.
        power: of the curvature, in [0, 1]; 1/2 as in the paper.
        eps_denominator: > 0; at the paper's 1e-4 the digits network ends at chance or is not finite.
        curvature_at: ``"displaced"`` weights, w + e, as in the paper, or ``"weights"``, w.
        weight_decay: >= 0, decoupled.
        **engine: see ``SharpnessAware``; ``seed`` is that of the probes.

    References:
        Shin et al., SASSHA: Sharpness-aware Adaptive Second-order Optimization with Stable Hessian Approximation,
        ICML 2025.
    """

    needs_loss = True
    vectors = ("moment", "curvature")

    def __init__(
        self,
        params: ParamsT,
        rho: float | Schedule = 0.2,
        *,
        lr: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        every: int = 10,
        n_probes: int = 2,
        power: float = 0.5,
        eps_denominator: float = 0.1,
        weight_decay: float = 0.0,
        curvature_at: str = "displaced",
        **engine: Unpack[EngineOptions],
    ) -> None:
        decay = checks.real("weight_decay", weight_decay, low=0)
        base = torch.optim.SGD(params, lr=checks.real("lr", lr, low=0), weight_decay=decay)
        super().__init__(base, rho, **engine)
        self.betas = decay_rates(betas)
        self.every = checks.positive_int("every", every)
        self.n_probes = checks.positive_int("n_probes", n_probes, minimum=2)
        self.power = checks.real("power", power, low=0, high=1)
        self.curvature_at = checks.one_of("curvature_at", curvature_at, ("displaced", "weights"))
        self.eps_denominator = checks.real("eps_denominator", eps_denominator, low=0, low_open=True)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        displacement = self.ascent(here.gradient)
        there = yield At(displacement)
        (b1, b2), since = self.betas, (self.t - 1) % self.every
        moment = ((self.recall("moment") or here.gradient.zeros()) * b1).add_(there.gradient, alpha=1 - b1)
        curvature = self.recall("curvature") or here.gradient.zeros()
        if since == 0:
            measured: Evaluation = yield self._diagonal_at(displacement if self.curvature_at == "displaced" else None)
            curvature = (curvature * b2).add_(measured.result, alpha=1 - b2)
            self.remember("curvature", curvature)
        self.remember("moment", moment)
        corrected = 1 - b2 ** (self.t - since)
        root = curvature.map(lambda h: (h / corrected).pow(self.power).add_(self.eps_denominator))
        return (moment * (1 / (1 - b1**self.t))) / root

    def _diagonal_at(self, displacement: Displacement | None) -> Curvature:
        source = self.generator()

        def measure(operator: LinearOperator) -> TensorList:
            estimate = diagonal(MeanOverRanks(self, operator), n_probes=self.n_probes, seed=source, method="hutchinson")
            values = estimate.values.abs().to(operator.dtype)
            parts = operator.split(values) if isinstance(operator, ParameterOperator) else [values]
            return TensorList(parts, self._fused())

        return Curvature(measure, displacement)

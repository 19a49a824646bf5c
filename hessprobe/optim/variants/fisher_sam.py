"""Fisher SAM."""

from __future__ import annotations

from typing import Unpack

import torch

from hessprobe import checks
from hessprobe.optim.engine import At, Displacement, EngineOptions, Rule, SharpnessAware, TensorList
from hessprobe.optim.schedules import Schedule


class FisherSAM(SharpnessAware):
    """Fisher SAM: the neighborhood is an ellipsoid of the (diagonal, one-batch) Fisher information.

        F^{-1} = 1/(1 + eta g^2) by coordinate
        e = rho F^{-1} g/sqrt(g' F^{-1} g),        base step with grad L_B(w + e)

    Two gradients a step. eta = 0 is SAM. There is no code by the authors. Certain: the ellipsoid and the length, which
    follow from maximising a linear loss over it. Not certain: the form 1/(1 + eta g^2) of the inverse, which is that of
    two public implementations (by others) and agrees with them.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule (gamma in the paper).
        eta: weight >= 0 of the Fisher information beside the identity; 0.2 to 1 is usual.
        **engine: see ``SharpnessAware``.

    References:
        Kim et al., Fisher SAM: Information Geometry and Sharpness Aware Minimisation, ICML 2022.
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.1,
        *,
        eta: float = 1.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.eta = checks.real("eta", eta, low=0)

    def rule(self) -> Rule:
        """See the class."""
        # No name is given to the first gradient: its memory is free again during the second pass.
        there = yield At(self._displacement((yield At()).gradient))
        return there.gradient

    def _displacement(self, gradient: TensorList) -> Displacement:
        natural = gradient.map(lambda g: g / (g.square() * self.eta + 1))
        return self.ascent(natural, self.perturbed(gradient).dot(self.perturbed(natural)).sqrt())

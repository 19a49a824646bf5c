"""The (phi, psi, mu)-sharpness itself, and the checks of what a user hands in as phi and psi."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import NonFiniteError
from hessprobe.universal.samplers import Sampler

_MAX_LOG = math.log(torch.finfo(torch.float64).max)


@dataclass(frozen=True)
class Measure:
    """S(x) = phi( E_mu psi(t) ), t = c u^T H(x) u.

    phi and psi are made of torch operations on fp64 tensors. Written along the last dimension, such as
    ``lambda t: torch.stack([t, t**2], -1)``, a psi also serves ``hessprobe.optim.UniversalSAM``.

    Attributes:
        phi: (m,) -> number; its gradient, by autograd, gives the standard error.
        psi: t (n,) -> (n, m), or (n,) for m = 1; elementwise in t.
        mu: law of u; E_mu is the integral against mu, whatever its mass.
        c: factor in t, not 0; 1/2 makes t the second-order change of the loss along u.
        name: for messages and records.
        minimum: fewest draws that phi makes sense of (two for a variance).
        skewed: True where a sample does not tell its own error, as of cumulants from the second on: ``evaluate`` takes
            the error from the law of t, see ``law``.
        norm: True where S is the root of a sampled positive number; its interval is that of a norm, with unequal arms.

    Raises:
        TypeError, ValueError: phi or psi is no function, mu no ``Sampler``, c is 0 or not finite.

    References:
        Tahmasebi et al. (2024), "A Universal Class of Sharpness-Aware Minimization Algorithms".
    """

    phi: Callable[[Tensor], Tensor]
    psi: Callable[[Tensor], Tensor]
    mu: Sampler
    c: float = 0.5
    name: str = "measure"
    minimum: int = 2
    norm: bool = False
    skewed: bool = False

    def __post_init__(self) -> None:
        for label, value in (("phi", self.phi), ("psi", self.psi)):
            if not callable(value):
                raise TypeError(f"{label} must be a function of a tensor; got {type(value).__name__}. Pass a function.")
        if not isinstance(self.mu, Sampler):
            raise TypeError(
                f"mu must be a Sampler; got {type(self.mu).__name__}. Take one of universal.samplers, or from_function."
            )
        if checks.real("c", self.c) == 0.0:
            raise ValueError("c must not be 0; got 0. With c=0 nothing of H is left.")
        checks.positive_int("minimum", self.minimum)

    def mass(self, dim: int) -> float:
        """Return mu(R^d), 1 for a probability measure.

        Raises:
            ValueError: it is too large for a float.
        """
        log_mass = self.mu.log_mass(dim)
        if not log_mass < _MAX_LOG:
            raise ValueError(
                f"mu must have a mass below 1e308; got exp({log_mass:.4g}) for {self.mu.density}, d = {dim}. "
                "Take a probability measure, such as gaussian()."
            )
        return math.exp(log_mass)

    def samples(self, t: Tensor) -> Tensor:
        """Return psi(t) as fp64 (n, m) for t (n,), n >= 1.

        Raises:
            TypeError: psi does not return a tensor.
            ValueError: psi returns another shape.
            NonFiniteError: psi(t) is nan or infinite for some draw.
        """
        t = t.detach().double()
        values = self._psi(t)
        if len(t) > 1 and self._psi(t[:-1]).shape != (len(t) - 1, *values.shape[1:]):
            # A psi that stacks its parts along the first dimension looks right where n happens to equal m.
            raise ValueError(_psi_shape(len(t), tuple(values.shape)))
        matrix = values[:, None] if values.ndim == 1 else values
        bad = ~torch.isfinite(matrix)
        if bool(bad.any()):
            k = int(bad.any(0).nonzero()[0])
            raise NonFiniteError(
                f"E psi must be finite; got nan or inf in component {k + 1} of {matrix.shape[1]} at "
                f"{int(bad[:, k].sum())} of {len(t)} draws, where t = c u^T H u lies between {float(t.min()):.4g} and "
                f"{float(t.max()):.4g}. Take a narrower mu or a psi that grows more slowly."
            )
        return matrix

    def value(self, moments: Tensor) -> tuple[float, Tensor]:
        """Return phi and its gradient (m,) at s = ``moments`` (m,).

        Raises:
            TypeError: phi does not return a tensor that is differentiable in s.
            ValueError: phi returns more than one number.
            NonFiniteError: phi(s) is nan or infinite.
        """
        point = moments.detach().double().requires_grad_()
        with torch.enable_grad():
            value = self._phi(point)
            if not value.requires_grad:
                raise TypeError(
                    "phi must be differentiable in s; got a number without a gradient. "
                    "Compute it with torch operations, without float(), .item() or .detach()."
                )
            (slope,) = torch.autograd.grad(value, point)
        number = float(value.detach())
        if not math.isfinite(number):
            raise NonFiniteError(
                f"phi(s) must be finite; got {number} at s = {_short(moments)}. "
                "s lies outside the domain of phi: draw more, or take another mu."
            )
        return number, slope

    def values(self, moments: Tensor) -> Tensor:
        """Return phi at every row of ``moments`` (r, m), as (r,); nan where phi is not defined."""
        rows = moments.detach().double()
        try:
            together: Tensor = torch.func.vmap(self._phi)(rows)
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            # A phi that decides by its values, or has no batching rule; a real failure shows itself again.
            together = torch.stack([self._phi(row) for row in rows])
        return together.detach()

    def _psi(self, t: Tensor) -> Tensor:
        values = self.psi(t)
        if not isinstance(values, Tensor):
            raise TypeError(f"psi must return a tensor; got {type(values).__name__}. Use torch operations.")
        if values.ndim not in (1, 2) or values.shape[0] != len(t) or values.numel() == 0:
            raise ValueError(_psi_shape(len(t), tuple(values.shape)))
        return values.detach().double()

    def _phi(self, s: Tensor) -> Tensor:
        value = self.phi(s)
        if not isinstance(value, Tensor):
            raise TypeError(f"phi must return a tensor; got {type(value).__name__}. Use torch operations.")
        if value.numel() != 1:
            raise ValueError(
                f"phi must return one number; got shape {tuple(value.shape)} for s of shape {tuple(s.shape)}. "
                "Reduce it to a scalar, e.g. s[0] where m = 1."
            )
        return value.reshape(())


def _psi_shape(count: int, shape: tuple[int, ...]) -> str:
    return (
        f"psi must return shape ({count},) or ({count}, m) for t of shape ({count},); got {shape}. "
        "Put the m components along the last dimension, e.g. torch.stack([t, t**2], -1)."
    )


def _short(values: Tensor) -> str:
    return "[" + ", ".join(f"{float(v):.4g}" for v in values[:4]) + (", ...]" if len(values) > 4 else "]")

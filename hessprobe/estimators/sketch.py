"""A spectral sketch: what one Lanczos sweep knows about a matrix, for any later question tr f(A).

With independent probes w_c (E w w^T = I on the complement of k deflated directions), their tridiagonal matrices T_c,
and deflated Ritz values theta_i,

    tr f(A) ~ sum_i f(theta_i) + mean_c |w_c|^2 e_1^T f(T_c) e_1.

Three errors are kept apart. *Probe*: the variance that the law of the probes gives with the spectrum seen, and its
degrees of freedom (``spectral.probe_law``; asymptotic); Student's t over the chains for Rademacher probes. *Solver*:
the bracket (Gauss, Gauss-Radau) where the signs of the derivatives of f make it one, which is a theorem, and an
extrapolation over shorter rules elsewhere, which is an estimate (``details["quadrature"]`` says which), plus the
second-order effect sum_i r_i^2 max_x |(f'(theta_i) - f'(x)) / (theta_i - x)| of deflated vectors with residual norms
r_i. *Data*: A = sum_b c_b A_b is a mean over batches, d tr f(A) = tr f'(A) dA, and f'(A) w is |w| Q^T f'(T) e_1, so the
influence of batch b is a dot product of f'(T_c) e_1 with Q_c A_b w_c, kept in the sketch.

An answer whose solver error outweighs its probe error has the flag ``"solver-limited"``: more steps would help, more
probes would not. One whose interval says nothing has the flag ``"uninformative"`` and warns, see ``informative``.

References:
    Ubaru, Chen, Saad (2017), "Fast estimation of tr f(A) via stochastic Lanczos quadrature".
    Golub, Meurant (2010), "Matrices, Moments and Quadrature with Applications".
    Efron (1982) on the infinitesimal jackknife.

A spectral sketch on disk: one small .npz file that holds no code.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import HessprobeError, about
from hessprobe.estimate import DataError, ErrorParts, Estimate, Influence, data_error
from hessprobe.estimators import spectral
from hessprobe.estimators.density import Density, density_of
from hessprobe.estimators.diagonal import judged
from hessprobe.estimators.levels import Levels, ShortChains, levels_of
from hessprobe.estimators.spectral import ChainValue, ProbeLaw, SpectralFunction
from hessprobe.files import write_atomically
from hessprobe.krylov.quadrature import tridiagonal

_FORMAT = "hessprobe.sketch"
_VERSION = 2
# What NumPy, zipfile and json raise on bytes that they did not write.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    struct.error,
    zipfile.BadZipFile,
)
_TENSORS = (
    "norms",
    "alphas",
    "betas",
    "lengths",
    "theta",
    "residuals",
    "weights",
    "chain_influence",
    "theta_influence",
    "short_norms",
    "short_alphas",
    "short_betas",
    "short_lengths",
    "reference",
)


def save(fields: Mapping[str, Any], path: str | Path) -> None:
    """Write the fields of a sketch to ``path`` (the name is taken as it is), whole or not at all.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    values = dict(fields)
    arrays = {name: values.pop(name).numpy() for name in _TENSORS}
    header = json.dumps({"format": _FORMAT, "version": _VERSION, **values})
    write_atomically(path, lambda file: np.savez(file, header=np.array(header), **arrays))


def load(path: str | Path, names: Collection[str]) -> dict[str, Any]:
    """Read the fields of a sketch; nothing in the file is executed.

    Args:
        path: the file.
        names: of all fields.

    Raises:
        FileNotFoundError: no such file.
        HessprobeError: damaged, of another kind, or of a newer version.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            header = _header(archive, path)
            tensors = {name: torch.from_numpy(np.ascontiguousarray(archive[name])) for name in _TENSORS}
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"path must be an existing sketch file; got {str(path)!r}. Write one with SpectralSketch.save."
        ) from error
    except _DAMAGE as error:
        raise HessprobeError(
            f"path must be a sketch file written by save; got {str(path)!r}, which is damaged or of another kind "
            f"({type(error).__name__}). Make the sketch again."
        ) from error
    return _checked(header, tensors, path, names)


def _header(archive: Any, path: str | Path) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(str(archive["header"]))
    if header.pop("format", None) != _FORMAT:
        raise ValueError("another format")
    version = header.pop("version", None)
    if version != _VERSION:
        raise HessprobeError(
            f"path must be a sketch of version {_VERSION}; got {str(path)!r} of version {version}. "
            "Read it with the hessprobe that wrote it, or make it again."
        )
    header["flags"] = tuple(header["flags"])
    return header


def _checked(
    header: dict[str, Any], tensors: dict[str, Tensor], path: str | Path, names: Collection[str]
) -> dict[str, Any]:
    p, m = (len(tensors["norms"]), tensors["alphas"].shape[-1])
    groups, k = len(tensors["weights"]), len(tensors["theta"])
    short, j = len(tensors["short_norms"]), tensors["short_alphas"].shape[-1]
    wanted = {
        "norms": (p,),
        "alphas": (p, m),
        "betas": (p, m),
        "lengths": (p,),
        "theta": (k,),
        "residuals": (k,),
        "weights": (groups,),
        "chain_influence": (p, groups, m),
        "theta_influence": (groups, k),
        "short_norms": (short,),
        "short_alphas": (short, j),
        "short_betas": (short, j),
        "short_lengths": (short,),
        "reference": (2, tensors["reference"].shape[-1]),
    }
    known = set(names) - set(_TENSORS)
    wrong = [name for name, shape in wanted.items() if tuple(tensors[name].shape) != shape]
    if wrong or set(header) != known:
        raise HessprobeError(
            f"path must be a sketch file with matching parts; got {str(path)!r}, where "
            f"{', '.join(wrong) or 'the header'} does not fit. Make the sketch again."
        )
    return {**header, **tensors}


_FEW = 8
# Degrees of freedom of a variance from which fewer probes than these do, as their own spread is not asked.
KNOWN = 16
# A solver error below this share of the value is rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False, repr=False)
class SpectralSketch:
    """Tridiagonal matrices of p probes, deflated Ritz values, and batch influences; no product is needed any more.

    All tensors are on the CPU, fp64 but for ``lengths``.

    Attributes:
        dim: d.
        lower: a known lower bound of the spectrum (0 for a positive semidefinite operator), or None.
        unit: unit of rounding of the products (eps of the operator's dtype).
        norms: (p,) norms of the projected probes; p = 0 where everything was deflated: all answers are exact.
        alphas, betas: (p, m) as in ``LanczosRun``.
        lengths: (p,) steps of each chain.
        theta: (k,) deflated Ritz values.
        residuals: (k,) their residual norms ||A v - theta v||.
        weights: (G,) weights of groups of batches, G = 0 where the operator is one term.
        chain_influence: (p, G, m) coordinates Q_c A_g q_c of each group's product with the unit start q_c.
        theta_influence: (G, k) quadratic forms v_i^T A_g v_i.
        short_norms: (P,) norms of the projected probes of short chains, which carry a polynomial part of f with more
            probes than the long ones (see ``levels``); P = 0 where there are none.
        short_alphas: (P, j).
        short_betas: (P, j).
        short_lengths: (P,).
        reference: (2, r) Ritz values of a pilot and their weights, on which polynomials are fitted.
        law, seed: of the probes.
        matvecs: products made, with those of a pilot.
        seconds: wall-clock time of the sweep.
        flags: remarks about the sweep.

    Examples:
        >>> import torch, hessprobe as hp
        >>> A = hp.aslinearoperator(torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)))
        >>> sketch = hp.spectral_sketch(A, n_probes=8, steps=3, seed=0)
        >>> round(sketch.logdet(shift=1.0).value, 6), round(float(torch.tensor([5.0, 3.0, 2.0]).log().sum()), 6)
        (3.401197, 3.401197)
    """

    dim: int
    lower: float | None
    unit: float
    norms: Tensor
    alphas: Tensor
    betas: Tensor
    lengths: Tensor
    theta: Tensor
    residuals: Tensor
    weights: Tensor
    chain_influence: Tensor
    theta_influence: Tensor
    short_norms: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    short_alphas: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    short_betas: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    short_lengths: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    reference: Tensor = field(default_factory=lambda: torch.zeros(2, 0, dtype=torch.float64))
    law: str = "sphere"
    seed: int = 0
    matvecs: float = 0.0
    seconds: float = 0.0
    flags: tuple[str, ...] = ()

    def __repr__(self) -> str:
        short = f" + {len(self.short_norms)} x {self.short_alphas.shape[-1]}" if len(self.short_norms) else ""
        return (
            f"SpectralSketch(dim={self.dim}, chains={self.n_probes} x {self.alphas.shape[-1]}{short}, "
            f"deflated={len(self.theta)}, law={self.law!r}, matvecs={self.matvecs:g})"
        )

    @property
    def n_probes(self) -> int:
        """Number of chains p."""
        return len(self.norms)

    @property
    def noise(self) -> float:
        """How far a Ritz value may stray by rounding of the products, absolute."""
        ends = [self.theta.abs().max()] if len(self.theta) else []
        ends += [self.alphas.abs().max() + 2 * self.betas.abs().max()] if self.alphas.numel() else []
        return spectral.rounding_slack(float(torch.stack(ends).max()) if ends else 0.0, self.unit)

    def chain(self, index: int) -> tuple[Tensor, Tensor]:
        """Return ``(alphas, betas)`` of one chain, cut to its length (0 for a probe that lay in the deflated space)."""
        length = int(self.lengths[index])
        return self.alphas[index, :length], self.betas[index, :length]

    def ritz_range(self) -> tuple[float, float]:
        """Return the smallest and the largest Ritz value: bounds from within on the ends of the spectrum."""
        chains = [self.chain(c) for c in range(self.n_probes)]
        values = [torch.linalg.eigvalsh(tridiagonal(a, b)) for a, b in chains if len(a)]
        everything = torch.cat([self.theta, *values])
        return float(everything.min()), float(everything.max())

    def spectral_sum(self, f: Callable[[Tensor], Tensor], *, name: str = "f") -> Estimate:
        """Return tr f(A) = sum_i f(lambda_i).

        Args:
            f: elementwise map of an fp64 tensor, of torch operations; f' for the data error comes from autograd. A
                function that is not smooth on the spectrum makes the solver error converge slowly.
            name: for messages.

        Raises:
            TypeError, ValueError: f does not map tensors elementwise, or is not finite on the spectrum.
        """
        return self.evaluate(SpectralFunction(f, name))

    def trace(self) -> Estimate:
        """Return tr A; no quadrature error."""
        return self.evaluate(spectral.identity(), support=(self.lower_total(), math.inf))

    def frobenius_norm(self) -> Estimate:
        """Return ||A||_F; no quadrature error, exact for inexact deflated vectors, error by the delta method."""
        squared = self._answer(spectral.square(), (0.0, math.inf), "add")
        return judged(_root(squared, 2.0))

    def schatten_norm(self, p: float = 1.0) -> Estimate:
        """Return (sum_i |lambda_i|^p)^(1/p), p >= 1 (1: nuclear norm), error by the delta method.

        Bracketed for a positive semidefinite operator and for even p; |x|^p is not smooth at 0 otherwise.
        """
        function = spectral.absolute_power(p, self.lower)
        return judged(_root(self._answer(function, (0.0, math.inf)), p))

    def logdet(self, *, shift: float) -> Estimate:
        """Return log det(A + shift I) for an operator whose spectrum is known, or seen, to lie above -shift.

        Args:
            shift: damping, in units of A's eigenvalues, > -lower (> 0 for a positive semidefinite operator).

        Raises:
            ValueError: ``shift`` too small for the known lower bound, or a Ritz value at or below -shift.
        """
        shift = checks.real("shift", shift)
        hint = "Raise shift, use smoothed_logdet(eps=...), or measure the Gauss-Newton matrix."
        floor = self.lower
        if not shift > -(floor or 0.0):
            raise ValueError(about("shift", f"must be > {0.0 - (floor or 0.0):g}; got {shift:g}. {hint}"))
        lowest = self.ritz_range()[0]
        if floor is None and not lowest > -shift:
            raise ValueError(
                about("shift", f"must be > {-lowest:g}, as A has an eigenvalue <= {lowest:g}; got {shift:g}. {hint}")
            )
        flags: tuple[str, ...] = ("definiteness-assumed",) if floor is None else ()
        if self.noise > 0.1 * (shift + (floor or 0.0)):
            flags += ("shift-below-rounding",)
        low = -math.inf if floor is None else self.dim * math.log(floor + shift)
        estimate = self.evaluate(spectral.shifted_log(shift, floor), support=(low, math.inf))
        return estimate.with_(flags=estimate.flags + flags)

    def smoothed_logdet(self, *, eps: float) -> Estimate:
        """Return 1/2 log det(A^2 + eps^2 I), which exists for an indefinite A; eps > 0 in units of the eigenvalues."""
        function = spectral.smoothed_log(eps)
        return self.evaluate(function, support=(self.dim * math.log(eps), math.inf))

    def effective_dimension(self, *, shift: float) -> Estimate:
        """Return tr A (A + shift I)^{-1} for a positive semidefinite A, a number in [0, d].

        For an operator that is not known to be positive semidefinite it is sum_i l_i^2 / (l_i^2 + shift^2), the
        eigenvalues beyond ``shift`` on either side; the method then reads ``effective-dimension-squared``.

        Args:
            shift: > 0, in units of the eigenvalues.
        """
        return self.evaluate(spectral.saturation(shift, self.lower), support=(0.0, float(self.dim)))

    def density(self, *, grid: Tensor | int = 512, width: float | None = None, zero: float | None = None) -> Density:
        """Return the spectral density with its CDF band; see ``density.density_of``."""
        return density_of(self, grid=grid, width=width, zero=zero)

    def save(self, path: str | Path) -> None:
        """Write the sketch to one small ``.npz`` file, whole or not at all."""
        save({each.name: getattr(self, each.name) for each in fields(self)}, path)

    @staticmethod
    def load(path: str | Path) -> SpectralSketch:
        """Read a sketch written by ``save``.

        Raises:
            FileNotFoundError: no such file.
            HessprobeError: damaged, of another kind, or of a newer version.
        """
        return SpectralSketch(**load(path, [each.name for each in fields(SpectralSketch)]))

    def lower_total(self) -> float:
        """Return d * lower, the least the trace can be (-inf where no lower bound is known)."""
        return -math.inf if self.lower is None else self.dim * self.lower

    def evaluate(
        self,
        function: SpectralFunction,
        *,
        support: tuple[float, float] = (-math.inf, math.inf),
        coupling: str = "bound",
    ) -> Estimate:
        """Return tr f(A) for a catalogued function, flagged ``"uninformative"`` where its interval says nothing.

        Args:
            function: f and what is known about it.
            support: range the answer can lie in.
            coupling: ``"bound"`` counts the second-order effect of deflated residuals as solver error; ``"add"`` adds
                2 sum_i r_i^2 to the value, which is exact for f(x) = x^2.

        Raises:
            ValueError: a Ritz value below the lower bound that the operator claims.

        Warns:
            NumericalWarning: with the flag, see ``informative``.
        """
        return judged(self._answer(function, support, coupling))

    def _answer(self, function: SpectralFunction, support: tuple[float, float], coupling: str = "bound") -> Estimate:
        noise = self.noise
        chains = [self._chain_value(function, c, noise) for c in range(self.n_probes)]
        self._check_lower(function, chains)
        squares = self.norms**2
        values = squares * torch.tensor([chain.value for chain in chains], dtype=torch.float64)
        quadrature = spectral.mean_quadrature_error(squares, chains)
        fixed = float(function.values(self.theta).sum()) if len(self.theta) else 0.0
        fixed += 2 * float((self.residuals**2).sum()) if coupling == "add" else 0.0
        bend = self._coupling_error(function, chains) if coupling == "bound" else 0.0
        law = self._law(chains)
        if law is not None:
            spread, df = law.std, law.freedom(self.n_probes)
        else:
            spread, df = float(values.std()) if self.n_probes > 1 else 0.0, self.n_probes - 1.0 if chains else math.inf
        probe = spread / math.sqrt(max(self.n_probes, 1))
        levels = self._levels(function) if chains and len(self.short_norms) else None
        if levels is not None:
            values, fixed = values - levels.share * levels.long, fixed + levels.share * levels.short
            probe, df = levels.std_error, levels.df
        data, noisy = self._data_error(function, chains)
        rate = function.rate_steps(spectral.radius(self.theta, chains)) if function.rate_steps else None
        value = fixed + (float(values.mean()) if chains else 0.0)
        few = 0 < self.n_probes < _FEW and not (law is not None and law.freedom(self.n_probes) >= KNOWN)
        flags: tuple[str, ...] = ("few-probes",) if few else ()
        if chains and quadrature + bend > max(probe, _ROUNDING * abs(value)):
            flags += ("solver-limited",)
        return Estimate(
            value=value,
            errors=ErrorParts(probe, solver=quadrature + bend).with_data(data),
            df=df,
            matvecs=self.matvecs,
            samples=self.n_probes + len(self.short_norms),
            method=self._method(function) if chains else function.name,
            kind="estimate" if chains else "exact",
            support=support,
            flags=flags + (("data-error-noisy",) if noisy else ()),
            seconds=self.seconds,
            details={
                "quadrature": spectral.quadrature_kind(chains),
                "quadrature_error": quadrature,
                "coupling_error": bend,
                "steps": self.alphas.shape[1],
                "rate_steps": rate,
                "probe_std": None if law is None else spread,
                "probe_df": None if law is None else law.df,
                "rest_std": None if levels is None else levels.rest_std,
                "polynomial_std": None if levels is None else levels.polynomial_std,
            },
            influence=Influence({"sketch": values[None]}) if len(chains) > 1 and levels is None else None,
        )

    def _method(self, function: SpectralFunction) -> str:
        levels = "+short-chains" if len(self.short_norms) else ""
        return f"{function.name}/slq" + levels + ("+deflation" if len(self.theta) else "")

    def _levels(self, function: SpectralFunction) -> Levels:
        chains = [self.chain(c) for c in range(self.n_probes)]
        short = [
            (a[:n], b[:n]) for a, b, n in zip(self.short_alphas, self.short_betas, self.short_lengths, strict=True)
        ]
        every = ShortChains(self.short_norms, short, *self.reference)
        return levels_of(function.values, every, self.norms, chains, self.dim - len(self.theta))

    def _chain_value(self, function: SpectralFunction, index: int, noise: float) -> ChainValue:
        alphas, betas = self.chain(index)
        if not len(alphas):
            empty = torch.zeros(0, dtype=torch.float64)
            return ChainValue(0.0, 0.0, None, empty, empty, empty, empty)
        return spectral.on_chain(function, alphas, betas, noise, sloped=len(self.weights) > 1)

    def _law(self, chains: list[ChainValue]) -> ProbeLaw | None:
        """Return the law of one probe, which a few probes know far better than their own spread tells.

        None where it depends on the eigenvectors (Rademacher).
        """
        seen = [chain for chain in chains if len(chain.nodes)]
        if self.law == "rademacher" or not seen:
            return None
        images = torch.cat([chain.images for chain in seen])
        weights = torch.cat([chain.weights for chain in seen]) / len(seen)
        return spectral.probe_law(images, weights, self.dim - len(self.theta), self.law)

    def _check_lower(self, function: SpectralFunction, chains: list[ChainValue]) -> None:
        if self.lower is None or function.left is None:
            return
        lowest = min((float(x.min()) for x in (self.theta, *(c.nodes for c in chains)) if len(x)), default=math.inf)
        if lowest < self.lower - self.noise:
            raise ValueError(
                f"A must have no eigenvalue below {self.lower:g}, as it claims; got one at or below {lowest:g}. "
                "Drop psd= or lower=, or use a quantity for indefinite operators (eps=)."
            )

    def _coupling_error(self, function: SpectralFunction, chains: list[ChainValue]) -> float:
        if not len(self.theta) or not chains or function.degree == 1:
            return 0.0
        nodes = torch.cat([chain.nodes for chain in chains])
        here, there = function.slopes(self.theta), function.slopes(nodes)
        if here is None or there is None:
            return 0.0
        gap = self.theta[:, None] - nodes
        near = gap.abs() <= 1e-6 * nodes.abs().max()
        bend = ((here[:, None] - there) / torch.where(near, 1.0, gap)).abs()
        return float((self.residuals**2 * torch.where(near, 0.0, bend).max(1).values).sum())

    def _data_error(self, function: SpectralFunction, chains: list[ChainValue]) -> tuple[DataError | None, bool]:
        """Return the jackknife error over batches, less its probe noise, and whether that noise is most of it.

        With x_cb the influence of batch b seen by probe c, centred over batches, sum_b w_b^2 (mean_c x_cb)^2 exceeds
        its noise-free value by sum_b w_b^2 var_c(x_cb) / p on average, which is taken off.
        """
        slopes = function.slopes(self.theta) if len(self.theta) else torch.zeros(0, dtype=torch.float64)
        if len(self.weights) < 2 or slopes is None or any(chain.direction is None for chain in chains):
            return None, False
        total = float(self.weights.sum())
        weights = self.weights / total
        influence = (self.theta_influence @ slopes).expand(max(self.n_probes, 1), -1).clone()
        for c, chain in enumerate(chains):
            if chain.direction is not None:
                seen = self.chain_influence[c, :, : len(chain.direction)] @ chain.direction
                influence[c] += self.norms[c] ** 2 * seen
        means = total * influence.mean(0)
        raw = data_error(weights, means)
        if raw is None or raw.std_error == 0.0 or self.n_probes < 2:
            return raw, False
        centred = total * (influence - (influence @ weights)[:, None])
        found = data_error(weights, means, float((weights**2 * centred.var(0)).sum()) / self.n_probes)
        return found, found is None or found.std_error**2 < 0.5 * raw.std_error**2


def _root(power_sum: Estimate, p: float) -> Estimate:
    """Return the p-th root of an estimate of a non-negative power sum, errors to first order."""
    if power_sum.value <= 0.0:
        return power_sum.with_(value=0.0, errors=replace(power_sum.errors, probe=0.0, solver=0.0))
    value = power_sum.value ** (1.0 / p)
    slope = value / (p * power_sum.value)
    details = dict(power_sum.details)
    for name in ("quadrature_error", "coupling_error", "probe_std", "rest_std", "polynomial_std"):
        details[name] = None if details[name] is None else details[name] * slope
    parts = power_sum.errors.scaled(slope)
    influence = None if power_sum.influence is None else power_sum.influence.scaled(slope)
    return power_sum.with_(value=value, errors=parts, details=details, influence=influence)

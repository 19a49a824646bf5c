"""The laws mu of the directions u, as functions of a counter-based random source and of the point x."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.vectors import random_source

_POINT_PARTS = ("theta", "gradient", "eigenvector")


@dataclass(frozen=True, eq=False)
class Point:
    """What a law may know about the point x at which the sharpness is measured.

    Attributes:
        dim: d.
        theta: (d,) the parameters x, or None.
        gradient: (d,) of the loss at x, or None.
        eigenvector: (d,) unit eigenvector of the largest eigenvalue of H, or None.
    """

    dim: int
    theta: Tensor | None = None
    gradient: Tensor | None = None
    eigenvector: Tensor | None = None

    def part(self, name: str) -> Tensor:
        """Return ``theta``, ``gradient`` or ``eigenvector`` as fp64 (d,) on the CPU.

        Raises:
            ValueError: this point does not know it, or knows it with another length.
        """
        given = getattr(self, checks.one_of("name", name, _POINT_PARTS))
        if given is None:
            raise ValueError(
                f"point must hold the {name} that this mu depends on; got None. "
                f"Evaluate the measure on an objective, or pass point=Point(dim, {name}=...)."
            )
        if tuple(given.shape) != (self.dim,):
            raise ValueError(f"{name} must have shape ({self.dim},); got {tuple(given.shape)}. Flatten it.")
        known: Tensor = given.detach().double().cpu()
        return known


Draw = Callable[[np.random.Generator, Point], Any]


def _probability(dim: int) -> float:
    del dim
    return 0.0


@dataclass(frozen=True)
class Sampler:
    """A law mu of directions u in R^d: u = scale * draw.

    Attributes:
        name: of the law at scale 1; two samplers of one name draw the same vectors.
        density: what mu is, in a few words or a formula.
        draw: (generator, point) -> (d,) tensor or array; all randomness from the generator.
        scale: > 0 (or any number for a law concentrated at one point).
        log_mass: d -> log mu(R^d) at this scale; 0 for a probability measure. E_mu stands for the integral.
        needs: parts of ``Point`` that the law depends on besides d.
        fixed: True for a law concentrated at one point, where one draw tells all.
        symmetric: True where u and -u have the same law.
    """

    name: str
    density: str
    draw: Draw
    scale: float = 1.0
    log_mass: Callable[[int], float] = _probability
    needs: tuple[str, ...] = ()
    fixed: bool = False
    symmetric: bool = True

    def rows(
        self,
        start: int,
        stop: int,
        point: Point,
        *,
        seed: int = 0,
        stream: str = "universal",
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return draws ``start .. stop - 1`` as rows, (stop - start, d): functions of (seed, stream, index) alone.

        Raises:
            TypeError, ValueError: the law draws something else than d finite numbers, or lacks a part of the point.
        """
        rows = torch.empty(stop - start, point.dim, dtype=dtype, device=device)
        for row, index in enumerate(range(start, stop)):
            rows[row] = self._one(random_source(seed, stream, index), point).to(device=device, dtype=dtype)
        return rows

    def _one(self, source: np.random.Generator, point: Point) -> Tensor:
        drawn = self.draw(source, point)
        if not isinstance(drawn, Tensor | np.ndarray):
            raise TypeError(
                f"mu must draw a tensor or an array; got {type(drawn).__name__} from {self.name!r}. Return shape (d,)."
            )
        vector = torch.as_tensor(drawn).double()
        if tuple(vector.shape) != (point.dim,):
            raise ValueError(
                f"mu must draw vectors of shape ({point.dim},); got {tuple(vector.shape)} from {self.name!r}. "
                "Draw one direction over all parameters together."
            )
        if not bool(torch.isfinite(vector).all()):
            raise ValueError(f"mu must draw finite numbers; got nan or inf from {self.name!r}. Check the law.")
        return vector * self.scale


def _positive(name: str, value: float) -> float:
    return checks.real(name, value, low=0, low_open=True)


def gaussian(sigma: float = 1.0) -> Sampler:
    """Return N(0, sigma^2 I), sigma > 0."""
    return Sampler(
        "gaussian",
        "N(0, sigma^2 I)",
        lambda source, point: source.standard_normal(point.dim),
        _positive("sigma", sigma),
    )


def rademacher(scale: float = 1.0) -> Sampler:
    """Return independent entries -scale, +scale of equal probability."""
    return Sampler(
        "rademacher",
        "independent signs",
        lambda source, point: 2.0 * source.integers(0, 2, point.dim) - 1.0,
        _positive("scale", scale),
    )


def sphere(radius: float = 1.0) -> Sampler:
    """Return the uniform law on the sphere of this radius (1 by default: not sqrt(d))."""
    return Sampler(
        "sphere", "uniform on the sphere", lambda source, point: _unit(source, point.dim), _positive("radius", radius)
    )


def ball(radius: float = 1.0) -> Sampler:
    """Return the uniform law in the ball of this radius."""

    def draw(source: np.random.Generator, point: Point) -> Any:
        return _unit(source, point.dim) * source.random() ** (1 / point.dim)

    return Sampler("ball", "uniform in the ball", draw, _positive("radius", radius))


def cube(half_width: float = 1.0) -> Sampler:
    """Return the uniform probability law on [-h, h]^d."""
    return Sampler("cube", "uniform on [-h, h]^d", _uniform, _positive("half_width", half_width))


def lebesgue_cube(half_width: float) -> Sampler:
    """Return Lebesgue measure on [-h, h]^d: of mass (2h)^d, not 1."""
    h = _positive("half_width", half_width)
    return Sampler("cube", "Lebesgue measure on [-h, h]^d", _uniform, h, lambda dim: dim * math.log(2 * h))


def product(
    marginal: Callable[[np.random.Generator, int], Any], *, name: str, density: str = "", symmetric: bool = False
) -> Sampler:
    """Return independent entries: ``marginal(generator, d)`` draws d of them, equally distributed or not.

    Args:
        marginal: (numpy generator, d) -> (d,) array or tensor.
        name: by which products may be shared: give different laws different names.
        density: what the law is, in words.
        symmetric: claim that u and -u have the same law.
    """
    _require_function("marginal", marginal)
    text = density or f"independent entries of {name}"
    return Sampler(name, text, lambda source, point: marginal(source, point.dim), symmetric=symmetric)


def from_function(
    draw: Draw, *, name: str, density: str = "", needs: tuple[str, ...] = (), symmetric: bool = False
) -> Sampler:
    """Return a law of one's own: ``draw(generator, point)`` gives one direction (d,).

    Args:
        draw: takes all its randomness from the numpy generator; may read ``point.part("theta")`` and the others named
            in ``needs``.
        name: by which products may be shared: give different laws different names.
        density: what the law is, in words.
        needs: of ``"theta"``, ``"gradient"``, ``"eigenvector"``.
        symmetric: claim that u and -u have the same law.
    """
    _require_function("draw", draw)
    for part in needs:
        checks.one_of("needs", part, _POINT_PARTS)
    return Sampler(name, density or "a function of the user", draw, needs=tuple(needs), symmetric=symmetric)


def ascent(length: float = 1.0) -> Sampler:
    """Return the law concentrated at g / ||g||, times ``length``: the direction in which SAM looks."""

    def draw(source: np.random.Generator, point: Point) -> Any:
        del source
        gradient = point.part("gradient")
        norm = gradient.norm()
        if not float(norm) > 0:
            raise ValueError(
                "gradient must be non-zero for the ascent direction; got a zero gradient. At an exact minimum take "
                "the worst direction in its place."
            )
        return gradient / norm

    scale = _positive("length", length)
    return Sampler("ascent", "point mass at g / ||g||", draw, scale, needs=("gradient",), fixed=True, symmetric=False)


def worst(length: float = 1.0) -> Sampler:
    """Return the law concentrated at the unit eigenvector of the largest eigenvalue, times ``length``."""
    return Sampler(
        "worst",
        "point mass at the leading eigenvector",
        lambda source, point: point.part("eigenvector"),
        _positive("length", length),
        needs=("eigenvector",),
        fixed=True,
        symmetric=False,
    )


def rescaled(sigma: float = 1.0) -> Sampler:
    """Return the law of x * z, elementwise, z ~ N(0, sigma^2 I): unchanged by rescaling of single parameters.

    It sees diag(x) H diag(x), which a transform x -> D x, D diagonal, that keeps the loss leaves as it is.
    """
    return Sampler(
        "rescaled",
        "law of x * z, z ~ N(0, sigma^2 I)",
        lambda source, point: point.part("theta").numpy() * source.standard_normal(point.dim),
        _positive("sigma", sigma),
        needs=("theta",),
    )


def scaled(sampler: Sampler, factor: float) -> Sampler:
    """Return the law of factor * u, factor > 0; a mass other than 1 is kept (the image of the measure)."""
    return replace(sampler, scale=sampler.scale * _positive("factor", factor))


def _unit(source: np.random.Generator, dim: int) -> Any:
    normal = source.standard_normal(dim)
    return normal / np.linalg.norm(normal)


def _uniform(source: np.random.Generator, point: Point) -> Any:
    return source.uniform(-1.0, 1.0, point.dim)


def _require_function(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a function; got {type(value).__name__}. Pass what draws, not a draw.")

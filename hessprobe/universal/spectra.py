"""A spectrum with multiplicities, and closed forms of expectations over the sphere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Distance of nodes in units of the width of the saddle point; how much of the natural bend the paths that are tried
# have, with their nodes on either side. A weak outlier beside many small eigenvalues asks for straight, long paths.
_STEP = 0.06
_PATHS = ((1.0, 400), (0.1, 1600), (0.01, 6400), (0.001, 25600))
# Largest modulus off the saddle point, relative to that at it, and at the ends of a path.
_PEAK, _END = 1.0 + 1e-6, 1e-13
# Nodes of a path that are evaluated together.
_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues with multiplicities, which need not be whole numbers: nodes and weights of a Lanczos sweep will do.

    Attributes:
        values: (r,) fp64.
        weights: (r,) fp64, of sum d.
    """

    values: Tensor
    weights: Tensor

    @classmethod
    def of(cls, eigenvalues: Tensor) -> Spectrum:
        """Return the spectrum of a matrix with these eigenvalues, each once."""
        values = eigenvalues.detach().double().cpu()
        return cls(values, torch.ones_like(values))

    @classmethod
    def of_matrix(cls, H: Tensor) -> Spectrum:
        """Return the spectrum of a symmetric matrix (d, d)."""
        return cls.of(torch.linalg.eigvalsh(H.detach().double()))

    @property
    def dim(self) -> float:
        """d, the sum of the multiplicities."""
        return float(self.weights.sum())

    def total(self, image: Tensor) -> float:
        """Return the sum of ``image`` (r,), values of a function at ``values``, over all eigenvalues."""
        return float((self.weights * image).sum())

    def power_sum(self, k: int) -> float:
        """Return Tr H^k."""
        return self.total(self.values**k)


def sphere_moments(spectrum: Spectrum, count: int) -> list[float]:
    """Return M_p = E (u^T H u)^p, p = 0, ..., count, for u uniform on the unit sphere.

    With h_p the coefficient of x^p in det(I - x H)^(-1/2), p h_p = 1/2 sum_{j=1}^p Tr(H^j) h_{p-j}, and M_p is
    h_p(H) / h_p(I). For the ratios themselves, so that nothing overflows,

        M_p = 1/(2p) sum_{j=1}^p c_pj Tr(H^j) M_{p-j},      c_pj = prod_{i<j} (p - i) / (d/2 + p - 1 - i).
    """
    moments = torch.zeros(count + 1, dtype=torch.float64)
    moments[0] = 1.0
    powers = torch.tensor([spectrum.power_sum(j) for j in range(1, count + 1)], dtype=torch.float64)
    for p in range(1, count + 1):
        factors = _log_factors(p, spectrum.dim).exp()
        moments[p] = (factors * powers[:p] * moments[:p].flip(0)).sum() / (2 * p)
    return [float(one) for one in moments]


def log_sphere_exponential(spectrum: Spectrum, rate: float) -> float:
    r"""Return log E exp(rate u^T H u) for u uniform on the unit sphere, rate > 0.

    The integral over the sphere as an inverse Laplace transform, with weights w_i of the eigenvalues of sum d,

        E = Gamma(d/2) / (2 pi i) INT exp(K(s)) ds,      K(s) = s - 1/2 sum_i w_i log(s - rate lambda_i),

    by the trapezoidal rule on a parabola through the saddle point of K right of all singularities. It converges
    geometrically, and takes about the same time whatever rate and d: the series in the moments takes rate^2 steps. nan
    where no path that is tried stays below the saddle point.

    References:
        Kume, Wood (2005), "Saddlepoint approximations for the Bingham and Fisher-Bingham normalising constants";
        Trefethen, Weideman (2014), "The exponentially convergent trapezoidal rule", section 15.
    """
    poles, weights = rate * spectrum.values, spectrum.weights
    top = float(poles.max())
    # From the largest: where rate is large, differences from it are what counts.
    gaps = top - poles
    saddle = _saddle(gaps, weights)
    second, third = (float((weights / (saddle + gaps) ** power).sum()) for power in (2, 3))
    width = 1 / math.sqrt(0.5 * second)
    # The path of steepest descent bends by the third derivative over six times the second to the power 3/2.
    natural = third * width**3 / 6
    integral = math.nan
    for share, nodes in _PATHS:
        integral = _along_path(saddle + gaps, weights, width, share * natural, nodes)
        if math.isfinite(integral):
            break
    at_saddle = saddle - 0.5 * spectrum.total((saddle + gaps).log())
    return top + math.lgamma(spectrum.dim / 2) + at_saddle + math.log(integral / (2 * math.pi))


def _along_path(distances: Tensor, weights: Tensor, width: float, bend: float, nodes: int) -> float:
    """Return INT exp(K(s) - K(saddle)) ds / i along a parabola; nan where the path rises or ends too early."""
    y = torch.arange(nodes + 1, dtype=torch.float64) * _STEP
    shift = width * torch.complex(-bend * y.square(), y)
    direction = width * torch.complex(torch.ones_like(y), 2 * bend * y)
    logs = [(torch.log1p(part[:, None] / distances) * weights).sum(1) for part in torch.split(shift, _CHUNK)]
    exponent = shift - 0.5 * torch.cat(logs)
    heights = exponent.real
    if not (float(heights.max()) <= math.log(_PEAK) and float(heights[-1]) < math.log(_END)):
        return math.nan
    # The other half of the path is the conjugate.
    values = (exponent.exp() * direction).real
    total = 2 * float(values.sum()) - float(values[0])
    return total * _STEP if total > 0 else math.nan


def _saddle(gaps: Tensor, weights: Tensor) -> float:
    """Return the z > 0 with 1/2 sum_i w_i / (z + gap_i) = 1, by bisection of its logarithm."""

    def slope(z: float) -> float:
        return 0.5 * float((weights / (z + gaps)).sum())

    low, high = 1e-12, 1.0
    while slope(high) > 1:
        high *= 2
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) > 1 else (low, middle)
    return math.sqrt(low * high)


def _log_factors(p: int, dim: float) -> Tensor:
    """Return log c_pj, j = 1, ..., p."""
    i = torch.arange(p, dtype=torch.float64)
    return ((p - i) / (dim / 2 + p - 1 - i)).log().cumsum(0)

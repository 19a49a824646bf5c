"""Which measures a symmetry of the loss leaves alone: L(Dx) = L(x) gives H(Dx) = D^-1 H(x) D^-1 for a diagonal D.

On a loss of the product x1 x2 x3, which every D with det D = 1 preserves; along runs on it; and on networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy import integrate
from torch import Tensor, nn

from hessprobe.invariance import check_invariance
from hessprobe.measures.context import MeasureSettings
from hessprobe.objective import EmpiricalRisk
from hessprobe.optim import DetSAM, FrobSAM
from hessprobe.optim.engine import SharpnessAware
from hessprobe.universal import Measure, catalogue, evaluate, samplers
from hessprobe.validation.claim import Claim, Curve, Finding, Part, Series, agrees, below, near, seen
from hessprobe.validation.dynamics import Array, FunctionObjective, hessian, mean_and_error, optimize, plain_sgd

_SOURCE = "Tahmasebi et al. (2024), Theorems 4 and 5"
_POINT, _SCALES = (0.9, -1.3, -0.8), (2.5, 0.6, 1 / 1.5)
_EPS = float(np.finfo(np.float64).eps)


def product_loss(x: Tensor) -> Tensor:
    """Return F(x1 x2 x3), F(P) = (P - 2)^2 + (P - 2)^3/3 + e^P/5."""
    p = torch.prod(x, -1)
    return (p - 2) ** 2 + (p - 2) ** 3 / 3 + torch.exp(p) / 5


MEASURES: dict[str, Callable[[Array, Array], float]] = {
    "det H": lambda H, x: float(np.linalg.det(H)),
    "Frobenius norm of diag(x) H diag(x)": lambda H, x: float(np.linalg.norm(H * np.outer(x, x))),
    "trace of diag(x) H diag(x)": lambda H, x: float((np.diag(H) * x**2).sum()),
    "Frobenius norm": lambda H, x: float(np.linalg.norm(H)),
    "trace": lambda H, x: float(np.trace(H)),
    "lambda_max": lambda H, x: float(np.linalg.eigvalsh(H)[-1]),
    "det(I + H)": lambda H, x: float(np.linalg.det(np.eye(3) + H)),
}
INVARIANT = tuple(MEASURES)[:3]


def curvature(x: Array) -> Array:
    """Return the Hessian (3, 3) of the product loss at ``x`` (3,), by differentiation."""
    found: Array = hessian(product_loss, torch.from_numpy(np.asarray(x, dtype=np.float64))).numpy()
    return found


def group_action() -> Finding:
    """One point, one D with det D = 1: every measure after against the formula, and its ratio."""
    x, D = np.array(_POINT), np.array(_SCALES)
    H, moved = curvature(x), curvature(D * x)
    expected = H / np.outer(D, D)
    parts = [below("H(Dx) against D^-1 H(x) D^-1, relative", 1e-12, float(np.abs(moved / expected - 1).max()))]
    for name, measure in MEASURES.items():
        before, after = measure(H, x), measure(moved, D * x)
        predicted = before if name in INVARIANT else measure(expected, D * x)
        parts.append(near(f"{name}, after D", predicted, after, _rounding(moved, after)))
        if name not in INVARIANT:
            parts.append(seen(f"{name}, after/before", after / before))
    # The same from products, under the law of x * z: a measure whose mu moves with the point.
    adaptive = Measure(catalogue.frob().measure.phi, catalogue.powers(2), samplers.rescaled(), name="rescaled")
    there = evaluate(adaptive, FunctionObjective(product_loss, (D * x).tolist()), n_probes=4000, seed=1)
    norm = MEASURES[INVARIANT[1]](H, x)
    parts.append(agrees("universal measure under the law of x * z, after D", norm, there.value, there.std_error))
    return Finding(tuple(parts))


def _rounding(H: Array, value: float) -> float:
    """Return how far the rounding of H moves a measure of it: a determinant loses its condition number."""
    size = float(np.linalg.norm(H))
    return 100 * _EPS * max(size, (1 + size) ** 3, abs(value))


def product_measures(draws: int) -> Finding:
    """Mu = |u1 u2 u3|^p du: the sharpness at x and at Dx, for every psi at once, and for d = 1 the limit p = -1.

    With u = H^{-1/2} r w, w on the sphere, t = r^2/2: the integral over r is a number that psi sets and H does not, and
    what is left is det(H)^{-1/2} E |prod_i (H^{-1/2} w)_i|^p.
    """
    x, D = np.array(_POINT), np.array(_SCALES)
    source = np.random.default_rng(0)
    parts = []
    for p in (0.5, 1.0, 2.0):
        (one, first), (other, second) = (_on_sphere(curvature(at), p, draws, source) for at in (x, D * x))
        parts.append(agrees(f"p = {p:g}, after D", one, other, math.hypot(first, second)))
    (one, _), (other, _) = (_on_sphere(curvature(at), 0.0, 2, source) for at in (x, D * x))
    parts.append(near("p = 0, Lebesgue measure, after D", one, other, 1e-10 * one))
    for h in (0.3, 5.0):
        inside = integrate.quad(lambda u, h=h: (math.exp(-h * u * u / 2) - math.exp(-h * u * u)) / u, 0, np.inf)[0]
        parts.append(near(f"d = 1, du/|u|, psi = e^-t - e^-2t, h = {h:g}", math.log(2), 2 * inside, 1e-7))
        for cut in (1e-2, 1e-4):
            value = 2 * integrate.quad(lambda s, h=h: math.exp(-h * math.exp(2 * s) / 2), math.log(cut), 10)[0]
            parts.append(seen(f"d = 1, du/|u| beyond {cut:g}, psi = e^-t, h = {h:g}", value))
    return Finding(
        tuple(parts),
        None,
        "du/|u| keeps every scaling, but its integral of e^-t grows as 2 log(1/cut): the cut brings the scale back.",
    )


def _on_sphere(H: Array, p: float, draws: int, source: np.random.Generator) -> tuple[float, float]:
    values, vectors = np.linalg.eigh(H)
    w = source.standard_normal((draws, 3))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    u = w @ (vectors / np.sqrt(values)) @ vectors.T
    mean, error = mean_and_error(np.abs(u.prod(1)) ** p / math.sqrt(np.linalg.det(H)))
    return float(mean), float(error)


def along_runs(steps: int) -> Finding:
    """Frob-SAM and Det-SAM on the product loss; at every mark random rescalings, and what they do to each measure."""
    rho, lr = 0.1, 0.02
    makes: dict[str, Callable[[list[Tensor]], SharpnessAware]] = {
        "Frob-SAM": lambda p: FrobSAM(plain_sgd(p, lr), rho=rho, lam=1.0, n=4, limit=None),
        "Det-SAM": lambda p: DetSAM(
            plain_sgd(p, lr), rho=rho, lam=0.3, n=4, mu="gaussian", width=1.0, log=True, convention="paper"
        ),
    }
    parts: list[Part] = []
    lines: list[Series] = []
    marks = range(0, steps + 1, steps // 15)
    for title, make in makes.items():
        points = optimize(make, lambda x, t: product_loss(x), _POINT, steps).numpy()
        spread = _spreads([points[t] for t in marks])
        slack = max(_relative_rounding(points[t]) for t in marks)
        for name in MEASURES:
            # The ratio of largest to smallest, less 1.
            if name in INVARIANT:
                limit = slack if name == "det H" else 1e-9
                parts.append(below(f"{title}: {name}, most along the run", limit, max(spread[name])))
            else:
                parts.append(seen(f"{title}: {name}, least along the run", min(spread[name])))
        if title == "Det-SAM":
            lines = [Series.of(name, marks, np.maximum(spread[name], 1e-16)) for name in MEASURES]
    curve = Curve("step of Det-SAM", "largest/smallest - 1", tuple(lines), log_y=True)
    return Finding(tuple(parts), curve, "Ten rescalings with det D = 1 and factors between 1/9 and 9 at each mark.")


def _spreads(points: list[Array]) -> dict[str, list[float]]:
    """Return for each measure, at each point, the largest over the smallest value over random rescalings, less 1."""
    source, found = np.random.default_rng(1), {name: list[float]() for name in MEASURES}
    for x in points:
        factors = np.exp(source.uniform(-1.1, 1.1, (10, 2)))
        places = [x * np.array([a, b, 1 / (a * b)]) for a, b in factors]
        pairs = [(curvature(at), at) for at in places]
        for name, measure in MEASURES.items():
            values = [abs(measure(H, at)) for H, at in pairs]
            found[name].append(max(values) / min(values) - 1)
    return found


def _relative_rounding(x: Array) -> float:
    """Return a bound on the relative rounding of det H over these rescalings: the size of its terms over itself."""
    H = curvature(x)
    balanced = H * np.outer(x, x) / np.prod(x) ** (2 / 3)
    return float(1000 * _EPS * np.linalg.norm(balanced) ** 3 / abs(np.linalg.det(H)))


def layer_rescaling() -> Finding:
    """W_1 -> c W_1, W_2 -> W_2/c in a bias-free ReLU network: det H moves by c^{-2 (n_1 - n_2)}."""
    parts = []
    for sizes in ((3, 4, 1), (4, 3, 4)):
        risk = _regression(sizes)
        first, second = sizes[0] * sizes[1], sizes[1] * sizes[2]
        for line in check_invariance(risk, ["pseudo-logdet"], ["layer-rescaling"], [2.0, 10.0]):
            c = line.applied.strength or 1.0
            predicted = -2 * (first - second) * math.log(c)
            if line.compared is None or line.before is None or line.before.details["rank"] != risk.dim:
                raise ArithmeticError("the Hessian must have full rank for this claim, and has not.")
            label = f"change of log|det H|, n_1 = {first}, n_2 = {second}, c = {c:g}"
            parts.append(near(label, predicted, line.compared.difference, line.compared.bound))
    return Finding(tuple(parts))


def _regression(sizes: tuple[int, int, int]) -> EmpiricalRisk:
    source = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Linear(sizes[0], sizes[1], bias=False), nn.ReLU(), nn.Linear(sizes[1], sizes[2], bias=False)
    ).double()
    inputs, targets = (torch.randn(60, k, generator=source, dtype=torch.float64) for k in (sizes[0], sizes[2]))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return EmpiricalRisk(module, nn.MSELoss(), [(inputs, targets)])


def network(probes: int) -> Finding:
    """Every transform that acts on a small network with LayerNorm, on every measure with a prediction."""
    risk = _classifier()
    plain = ("trace", "frob", "lambda-max")
    measures = (*plain, *(f"adaptive-{name}" for name in plain), "pseudo-logdet")
    parts: list[Part] = []
    surprising = 0
    for line in check_invariance(risk, measures, strengths=(3.0,), settings=MeasureSettings(n_probes=probes)):
        surprising += line.surprising
        if line.compared is None or line.theory is None:
            continue
        name = f"{line.applied.kind}: {line.measure}"
        if line.theory.predicted is not None:
            slack = 4 * line.compared.error + line.compared.bound
            parts.append(near(f"{name}, difference", line.theory.predicted, line.compared.difference, slack))
        else:
            parts.append(seen(f"{name}, after/before", line.compared.ratio))
    parts.append(near("lines against the theory", 0.0, surprising, 0.0))
    return Finding(tuple(parts))


def _classifier() -> EmpiricalRisk:
    source = torch.Generator().manual_seed(1)
    module = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)
    ).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    inputs = torch.randn(50, 4, generator=source, dtype=torch.float64)
    return EmpiricalRisk(module, nn.CrossEntropyLoss(), [(inputs, torch.randint(3, (50,), generator=source))])


CLAIMS = (
    Claim(
        "invariance/group-action",
        "A D that preserves the loss turns H into D^-1 H D^-1: with det D = 1 the determinant stays, and so do "
        "functions of diag(x) H diag(x); trace, Frobenius norm and lambda_max do not.",
        f"{_SOURCE}; the measures are chosen here",
        group_action,
    ),
    Claim(
        "invariance/product-measures",
        "For mu = |u_1 ... u_d|^p du and any psi the sharpness is invariant under diagonal D with |det D| = 1.",
        f"{_SOURCE}; the form of mu is derived here",
        partial(product_measures, 200_000),
        partial(product_measures, 4_000_000),
    ),
    Claim(
        "invariance/along-runs",
        "Along runs of Frob-SAM and Det-SAM, det H and diag(x) H diag(x) stay put under rescalings that preserve the "
        "loss; the Frobenius norm and det(I + H), which these rules lower, do not.",
        f"{_SOURCE}; derived here",
        partial(along_runs, 150),
    ),
    Claim(
        "invariance/layer-rescaling",
        "W_1 -> c W_1, W_2 -> W_2/c multiplies det H by c^{-2 (n_1 - n_2)}, n_i the sizes of the layers.",
        "derived here",
        layer_rescaling,
    ),
    Claim(
        "invariance/network",
        "On a network every transform that leaves its outputs alone moves each measure as D^-1 H D^-1 says.",
        "derived here",
        partial(network, 64),
        partial(network, 1000),
    ),
)

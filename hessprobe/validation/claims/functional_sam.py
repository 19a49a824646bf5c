"""What SAM and Functional-SAM add to the gradient, to first order in rho (Singh et al., 2025)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hessprobe.optim import SAM, FunctionalSAM
from hessprobe.validation.claim import Claim, Curve, Finding, Part, Series, below, near, seen
from hessprobe.validation.dynamics import Function, direction, hessian, plain_sgd
from hessprobe.validation.networks import Network

_SOURCE = "Singh, Mobahi, Agarwala, Dauphin (2025)"
_RHOS = (0.1, 0.01, 0.001)
_ROUNDING = 1e-12
_NETWORK = Network((5, 7, 3))


def first_order() -> Finding:
    """Directions of the classes at three radii, against the products with H and H - G and the next term."""
    inputs, labels, theta = _problem()

    def loss(x: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(_NETWORK.outputs(x, inputs), labels)

    outputs = _NETWORK.outputs(theta, inputs).requires_grad_()
    (pulled,) = torch.autograd.grad(torch.nn.functional.cross_entropy(outputs, labels), outputs)

    def frozen(x: Tensor) -> Tensor:
        # Functional-SAM's direction is the gradient of this function: dL/dF does not move with the weights.
        return (_NETWORK.outputs(x, inputs) * pulled).sum()

    gradient = torch.func.grad(loss)(theta)
    ascent = gradient / gradient.norm()
    H, G = hessian(loss, theta), _gauss_newton(theta, inputs, labels)
    parts: list[Part] = []
    lines: list[Series] = []
    for name, function, matrix in (("SAM", loss, H), ("Functional-SAM", frozen, H - G)):
        expected = matrix @ ascent
        slopes = _along(function, theta, ascent)
        parts.append(below(f"{name}: product against the slope of its line", _ROUNDING, _gap(slopes[0], expected)))
        first, second = (float(one.norm() / expected.norm()) for one in (slopes[1] / 2, slopes[2] / 6))
        errors = [_gap((_step(name, rho, theta, inputs, labels) - gradient) / rho, expected) for rho in _RHOS]
        # The remainder is rho^2 times the third derivative near by; twice that at the point itself allows for "near".
        parts += [
            near(f"{name}: relative error at rho {rho:g}", rho * first, error, 2 * rho**2 * second)
            for rho, error in zip(_RHOS, errors, strict=True)
        ]
        lines.append(Series.of(name, _RHOS, errors))
        lines.append(Series.of(f"{name}, next term", _RHOS, [rho * first for rho in _RHOS], dashed=True))
    other = _gap((_step("SAM", _RHOS[-1], theta, inputs, labels) - gradient) / _RHOS[-1], (H - G) @ ascent)
    parts.append(seen("SAM against (H - G) e, which it does not tend to", other))
    return Finding(tuple(parts), Curve("rho", "relative error", tuple(lines), log_x=True, log_y=True))


def linear_model() -> Finding:
    """With outputs linear in the weights Functional-SAM is the gradient; with rho = 0 always."""
    inputs, labels, theta = _problem()
    flat = torch.linspace(-1, 1, 15, dtype=torch.float64)

    def linear(x: Tensor) -> Tensor:
        return inputs @ x.view(5, 3)

    parts = []
    for title, outputs, at, rhos in (
        ("linear model", linear, flat, (0.05, 1.0)),
        ("network", lambda x: _NETWORK.outputs(x, inputs), theta, (0.0,)),
    ):
        gradient = torch.func.grad(lambda x, f=outputs: torch.nn.functional.cross_entropy(f(x), labels))(at)
        for rho in rhos:
            found = _functional(outputs, labels, rho, at)
            parts.append(below(f"{title}, rho {rho:g}: distance from the gradient", _ROUNDING, _gap(found, gradient)))
    moved = direction(
        lambda p: SAM(plain_sgd(p, 1.0), rho=1.0),
        lambda x: torch.nn.functional.cross_entropy(linear(x), labels),
        flat,
    )
    plain = torch.func.grad(lambda x: torch.nn.functional.cross_entropy(linear(x), labels))(flat)
    parts.append(seen("linear model, rho 1: SAM's distance from the gradient", _gap(moved, plain)))
    return Finding(tuple(parts))


def _problem() -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(16, 5, generator=source, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (16,), generator=source), _NETWORK.start(1)


def _step(name: str, rho: float, theta: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    if name == "SAM":
        return direction(
            lambda p: SAM(plain_sgd(p, 1.0), rho=rho),
            lambda x: torch.nn.functional.cross_entropy(_NETWORK.outputs(x, inputs), labels),
            theta,
        )
    return _functional(lambda x: _NETWORK.outputs(x, inputs), labels, rho, theta)


def _functional(outputs: Function, labels: Tensor, rho: float, at: Tensor) -> Tensor:
    def closure(x: Tensor) -> tuple[Tensor, Tensor]:
        found = outputs(x)
        return found, torch.nn.functional.cross_entropy(found, labels)

    return direction(lambda p: FunctionalSAM(plain_sgd(p, 1.0), rho=rho), closure, at)


def _gauss_newton(theta: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return J' l'' J (d, d), from the whole Jacobian."""
    J = torch.func.jacrev(lambda x: _NETWORK.outputs(x, inputs).reshape(-1))(theta)
    outputs = _NETWORK.outputs(theta, inputs)
    curvature = hessian(
        lambda f: torch.nn.functional.cross_entropy(f.view_as(outputs), labels), outputs.detach().reshape(-1)
    )
    matrix: Tensor = J.T @ curvature @ J
    return matrix


def _along(function: Function, theta: Tensor, u: Tensor) -> list[Tensor]:
    """Return the first three derivatives of s -> grad function(theta + s u) at s = 0, each (d,)."""
    line: Callable[[Tensor], Tensor] = lambda s: torch.func.grad(function)(theta + s * u)  # noqa: E731  # differentiated
    found, one = [], torch.ones((), dtype=theta.dtype)
    for _ in range(3):
        line = _derivative(line, one)
        found.append(line(torch.zeros_like(one)))
    return found


def _derivative(line: Callable[[Tensor], Tensor], one: Tensor) -> Callable[[Tensor], Tensor]:
    def slope(s: Tensor) -> Tensor:
        tangent: Tensor = torch.func.jvp(line, (s,), (one,))[1]
        return tangent

    return slope


def _gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


CLAIMS = (
    Claim(
        "functional-sam/first-order",
        "With e = u(g), (d - g)/rho tends to H e for SAM and to (H - J' l'' J) e for Functional-SAM, with an error "
        "that is linear in rho.",
        f"the decomposition of {_SOURCE}; limits and error are derived here",
        first_order,
    ),
    Claim(
        "functional-sam/linear-model",
        "Where the outputs are linear in the weights Functional-SAM is the plain gradient, at any rho.",
        "derived here",
        linear_model,
    ),
)

"""Trace-SAM, Frob-SAM, Det-SAM and their general form: what each direction holds, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hessprobe.optim import DetSAM, FrobSAM, TraceSAM, UniversalSAM


def surface(w: Tensor) -> Tensor:
    """A loss whose Hessian at (.4, .3) has squared Frobenius norm 8.1778, and whose gradient there is .7709 long."""
    x, y = w
    return (
        0.5 * torch.exp(0.3 * x) * y**2 * (1 + 0.2 * torch.sin(x + y)) + (x * y) ** 2 / 4 + 0.5 * (y + 0.2 * y**2) ** 2
    )


def at(point: tuple[float, float]) -> nn.Parameter:
    return nn.Parameter(torch.tensor(point, dtype=torch.float64))


def closure_of(w: nn.Parameter, loss: Callable[[Tensor], Tensor] = surface) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        w.grad = None
        value = loss(w)
        value.backward()
        return value

    return closure


def sgd(*parameters: nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


def direction(optimizer: Any, w: nn.Parameter, **options: Any) -> Tensor:
    optimizer.step(closure_of(w), **options)
    assert w.grad is not None
    return w.grad.clone()


class TestVarianceOfThePerturbedLosses:
    # Var(t) = norm(g)^2/rho^2 + norm(H)_F^2/2 + ..., by Gauss-Hermite quadrature: 65.148 at rho = .1.
    N = 2_000

    def sharpness(self, **options: Any) -> float:
        w = at((0.4, 0.3))
        optimizer = FrobSAM(sgd(w), 0.1, n=self.N, **options)
        optimizer.step(closure_of(w))
        return float(optimizer.last.extra["sharpness"])

    def test_holds_the_gradient_away_from_a_minimum(self):
        # The sample variance of about normal numbers has relative error sqrt(2/n) = 3.2 %.
        assert self.sharpness() == pytest.approx(65.148 / 2, rel=0.126)

    def test_is_the_frobenius_norm_alone_with_antithetic_directions(self):
        # t = u'Hu/2 has Var(t) = norm(H)_F^2/2 and kurtosis up to 15: relative error up to sqrt(14/n) = 8.4 %.
        assert self.sharpness(antithetic=True) == pytest.approx(8.1778 / 4, rel=0.335)


@pytest.mark.parametrize(("limit", "bound"), [(0.3, 0.3), (1.0, 1.0)])
def test_the_regularizer_of_frob_sam_is_held_to_its_limit(limit: float, bound: float):
    found = {}
    for given in (limit, None):
        w = at((0.4, 0.3))
        slope = torch.autograd.grad(surface(w), w)[0]
        FrobSAM(sgd(w), 0.05, lam=50.0, limit=given).step(closure_of(w))
        found[given] = w.grad - slope
    assert float(found[None].norm()) > 2 * float(slope.norm())
    assert float(found[limit].norm()) == pytest.approx(bound * float(slope.norm()), rel=1e-9)
    torch.testing.assert_close(found[limit] / found[limit].norm(), found[None] / found[None].norm(), rtol=1e-9, atol=0)


def test_frob_step_is_the_gradient_of_its_objective():
    rho, lam, n = 0.05, 0.7, 3
    w = at((0.4, 0.3))
    drawn: list[Tensor] = []

    def recording(v: Tensor) -> Tensor:
        drawn.append(v.detach().clone())
        return surface(v)

    optimizer = FrobSAM(sgd(w), rho, lam=lam, n=n, limit=None)
    optimizer.step(closure_of(w, recording))
    point = drawn[0].requires_grad_()
    steps = [v - drawn[0].detach() for v in drawn[1:]]
    losses = torch.stack([surface(point + e) for e in steps])
    (expected,) = torch.autograd.grad(surface(point) + lam / (2 * rho**2) * losses.var(), point)
    assert len(steps) == n
    torch.testing.assert_close(w.grad, expected, rtol=1e-12, atol=1e-13)


def test_trace_sam_with_one_direction_and_weight_1_is_noise_on_the_weights():
    w = at((0.4, 0.3))
    seen: list[Tensor] = []

    def recording(v: Tensor) -> Tensor:
        seen.append(v.detach().clone())
        return surface(v)

    TraceSAM(sgd(w), 0.3, antithetic=False).step(closure_of(w, recording))
    point = seen[1].requires_grad_()
    torch.testing.assert_close(w.grad, torch.autograd.grad(surface(point), point)[0], rtol=1e-12, atol=0)


def test_trace_sam_reports_half_the_trace():
    w = at((0.4, 0.3))
    hessian = torch.autograd.functional.hessian(surface, w.detach())
    optimizer = TraceSAM(sgd(w), 0.01, n=800, antithetic=True)
    optimizer.step(closure_of(w))
    spread = float(hessian.square().sum() / 2 / 800) ** 0.5
    assert abs(float(optimizer.last.extra["sharpness"]) - float(hessian.trace()) / 2) < 4 * spread
    assert spread < 0.05 * float(hessian.trace())


def test_antithetic_directions_remove_the_gradient_from_det_sam():
    # det(I + H) by quadrature over N(0, I), from the Hessian; the plain form is off by exp(-norm(g)^2/rho^2 ...).
    w = at((0.4, 0.3))
    determinant = torch.linalg.det(torch.eye(2) + torch.autograd.functional.hessian(surface, w.detach()))
    values = {}
    for antithetic in (False, True):
        optimizer = DetSAM(
            sgd(w), 0.05, n=800, mu="gaussian", width=1.0, convention="paper", log=True, antithetic=antithetic
        )
        optimizer.step(closure_of(w))
        values[antithetic] = float(optimizer.last.extra["sharpness"])
    expected = float(torch.log(determinant))
    assert abs(values[True] - expected) < 0.08 * (2000 / 800) ** 0.5
    assert abs(values[False] - expected) > 1.0


def test_det_sam_does_not_overflow():
    w = at((0.4, 0.3))
    optimizer = DetSAM(sgd(w), 1e-4, n=3, width=1.0, log=True)
    assert torch.isfinite(direction(optimizer, w)).all()


def test_reports_the_length_of_every_displacement():
    w, still = at((0.4, 0.3)), nn.Parameter(torch.ones(4, dtype=torch.float64))
    groups = [{"params": [w], "rho": 0.2}, {"params": [still], "perturb": False}]
    optimizer = TraceSAM(torch.optim.SGD(groups, lr=0.0), n=3, convention="paper")
    optimizer.step(closure_of(w, lambda v: surface(v) + still.sum()))
    lengths = optimizer.last.extra["displacement_norms"]
    # A direction of the unit sphere of the perturbed parameters, whatever the others are.
    torch.testing.assert_close(torch.stack(lengths), torch.full((3,), 0.2, dtype=torch.float64))


def test_groups_share_one_direction_and_one_rho_of_the_formula():
    a, b = at((0.4, 0.3)), at((0.1, -0.2))
    groups = [{"params": [a], "rho": 0.1}, {"params": [b], "rho": 0.3}]
    optimizer = UniversalSAM(
        torch.optim.SGD(groups, lr=0.0), phi=lambda s: s, psi=torch.tanh, lam=0.4, n=2, antithetic=False
    )
    seen: list[tuple[Tensor, Tensor]] = []

    def loss(v: Tensor) -> Tensor:
        seen.append((a.detach().clone(), b.detach().clone()))
        return surface(v) + surface(b) + v @ b

    def closure() -> Tensor:
        a.grad = b.grad = None
        value = loss(a)
        value.backward()
        return value

    optimizer.step(closure)
    (a0, b0), *others = seen
    x, y = a0.requires_grad_(), b0.requires_grad_()

    def total(p: Tensor, q: Tensor) -> Tensor:
        return surface(p) + surface(q) + p @ q

    shifted = torch.stack([total(x + (p - a0.detach()), y + (q - b0.detach())) for p, q in others])
    objective = total(x, y) + 0.4 * 0.01 * torch.tanh((shifted - total(x, y)) / 0.01).mean()
    for given, expected in zip((a.grad, b.grad), torch.autograd.grad(objective, (x, y)), strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-11, atol=1e-12)


def test_laws_have_their_moments():
    w = nn.Parameter(torch.zeros(400, dtype=torch.float64))
    seen: list[Tensor] = []

    def flat(v: Tensor) -> Tensor:
        seen.append(v.detach().clone())
        return v.sum()

    for law, second in (("gaussian", 1.0), ("rademacher", 1.0), ("sphere", 1.0), ("unit-sphere", 1 / 400)):
        seen.clear()
        UniversalSAM(sgd(w), 1.0, mu=law, n=40).step(closure_of(w, flat))
        square = float(torch.stack(seen[1:]).square().mean())
        assert square == pytest.approx(second, rel=0.05 if law == "gaussian" else 1e-12), law
    seen.clear()
    UniversalSAM(sgd(w), 1.0, mu="cube", width=0.5, n=40).step(closure_of(w, flat))
    drawn = torch.stack(seen[1:])
    assert float(drawn.abs().max()) <= 0.5
    assert float(drawn.square().mean()) == pytest.approx(1 / 12, rel=0.05)


def test_draws_depend_on_seed_and_step_alone():
    def first(seed: int) -> Tensor:
        torch.rand(seed + 1)
        w = at((0.4, 0.3))
        return direction(FrobSAM(sgd(w), 0.1, seed=seed), w)

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_trace_sam_can_be_stepped_by_hand_and_frob_sam_says_why_not():
    w = at((0.4, 0.3))
    closure_of(w)()
    trace = TraceSAM(sgd(w), 0.1, n=2)
    while trace.wants_ascent():
        with trace.ascend():
            closure_of(w)()
    trace.descend()
    by_hand = w.grad.clone()
    assert torch.equal(direction(TraceSAM(sgd(w), 0.1, n=2), w), by_hand)
    frob = FrobSAM(sgd(w), 0.1)
    with pytest.raises(RuntimeError, match=r"FrobSAM needs losses; use opt\.step\(closure\)"):
        frob.wants_ascent()
    frob.step(closure_of(w))


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (FrobSAM, {"n": 1}, r"n must be an integer >= 2; got 1\. A variance needs two directions"),
        (FrobSAM, {"lam": -1.0}, r"lam must be a finite number >= 0; got -1"),
        (FrobSAM, {"convention": "papers"}, r"convention must be one of code, paper; got 'papers'\. Did you mean"),
        (TraceSAM, {"n": 0}, r"n must be an integer >= 1; got 0"),
        (TraceSAM, {"rho": float("nan")}, r"rho must be a finite number >= 0; got nan"),
        (DetSAM, {"width": 0.0}, r"width must be a finite number > 0; got 0"),
        (DetSAM, {"mu": "sphere"}, r"mu must be one of cube, gaussian; got 'sphere'"),
        (UniversalSAM, {"mu": "gausian"}, r"mu must be one of .*Did you mean 'gaussian'"),
    ],
)
def test_arguments_out_of_range(kind: Any, arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        kind(sgd(at((0.4, 0.3))), **arguments)


def test_functions_are_required_to_be_functions():
    with pytest.raises(TypeError, match="phi and psi must be functions of a tensor; got 3"):
        UniversalSAM(sgd(at((0.4, 0.3))), phi=3)


def as_float(t: Tensor) -> Any:
    return t.detach().item()


def as_matrix(t: Tensor) -> Tensor:
    return t * torch.ones(2, 2)


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"psi": as_float}, "psi must return a number or a tensor .* got float"),
        ({"psi": as_matrix}, r"psi must return a number or a tensor .* got \(2, 2\)"),
        ({"phi": as_matrix}, r"phi must return one number, made with torch operations; got \(2, 2\)"),
    ],
)
def test_what_phi_and_psi_return_is_checked_and_nothing_moves(functions: dict[str, Any], message: str):
    w = at((0.4, 0.3))
    before = w.detach().clone()
    with pytest.raises(TypeError, match=message):
        UniversalSAM(torch.optim.SGD([w], lr=1.0), 0.1, **functions).step(closure_of(w))
    assert torch.equal(w.detach(), before)


def test_a_law_that_returns_other_shapes_is_refused():
    w = at((0.4, 0.3))
    with pytest.raises(ValueError, match=r"mu must return one tensor a parameter, of its shape: \[\(2,\)\]; got"):
        UniversalSAM(sgd(w), 0.1, mu=lambda like, generator: [torch.ones(3)]).step(closure_of(w))


@pytest.mark.parametrize("kind", [FrobSAM, DetSAM, UniversalSAM])
def test_rho_zero_is_refused_by_the_rules_that_divide_by_it(kind: Any):
    w = at((0.4, 0.3))
    with pytest.raises(ValueError, match=rf"rho must be > 0 for {kind.__name__}, which divides by its square; got 0"):
        kind(sgd(w), 0.0).step(closure_of(w))


@pytest.mark.parametrize("convention", ["code", "paper"])
def test_trace_sam_goes_on_where_a_group_does_not_move(convention: str):
    w, still = at((0.4, 0.3)), nn.Parameter(torch.ones(1, dtype=torch.float64))
    for groups in (
        [{"params": [still], "rho": 0.0}, {"params": [w]}],
        [{"params": [still], "perturb": False}, {"params": [w], "perturb": False}],
    ):
        optimizer = TraceSAM(torch.optim.SGD(groups, lr=0.0), 0.1, convention=convention)
        optimizer.step(closure_of(w, lambda v: surface(v) + still.sum()))
        assert w.grad is not None
        assert torch.isfinite(w.grad).all()


def test_a_constant_psi_leaves_the_gradient():
    w = at((0.4, 0.3))
    given = direction(UniversalSAM(sgd(w), 0.1, psi=torch.ones_like, n=2), w)
    closure_of(w)()
    assert torch.equal(given, w.grad)

"""bSAM, Polyak steps, AdaSAM, LightSAM, SASSHA: rules that own their update."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from hessprobe.optim import BSAM, SAMSPS, SASSHA, AdaSAM, LightSAM


class Quadratic:
    """f = 1/2 sum h w^2 + lift; notes where it is evaluated."""

    def __init__(self, h: tuple[float, ...] = (3.0, 1.0, 0.2), lift: float = 0.0) -> None:
        self.h = torch.tensor(h, dtype=torch.float64)
        self.lift = lift
        self.w = torch.nn.Parameter(torch.linspace(1.0, -2.0, len(h), dtype=torch.float64))
        self.seen: list[Tensor] = []

    def loss(self) -> Tensor:
        return 0.5 * (self.h * self.w * self.w).sum() + self.lift

    def __call__(self) -> Tensor:
        self.seen.append(self.w.detach().clone())
        self.w.grad = None
        loss = self.loss()
        loss.backward()
        return loss

    def gradient(self, w: Tensor) -> Tensor:
        return self.h * w


def test_bsam_samples_from_its_posterior():
    w = torch.nn.Parameter(torch.zeros(20_000, dtype=torch.float64))
    optimizer = BSAM([w], examples=50, lr=0.0)
    seen = []

    def closure() -> Tensor:
        seen.append(w.detach().clone())
        w.grad = None
        loss = w.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    # Standard deviation 1/sqrt(N s) with s = 1, known to 0.5 %.
    assert float(seen[0].std()) == pytest.approx(50**-0.5, rel=0.02)
    assert abs(float(seen[0].mean())) < 4 * 50**-0.5 / math.sqrt(20_000)
    (std,) = optimizer.posterior_std()
    s = 0.999 + 0.001 * (1.0 + 10.0 / 50 + 0.1)
    torch.testing.assert_close(std, torch.full_like(std, (50 * s) ** -0.5), rtol=1e-14, atol=0)


def test_bsam_displaces_by_rho_g_over_s_from_the_mean():
    f = Quadratic()
    optimizer = BSAM([f.w], rho=0.1, examples=10, lr=0.0)
    optimizer.step(f)
    start = torch.linspace(1.0, -2.0, 3, dtype=torch.float64)
    torch.testing.assert_close(f.seen[1], start + 0.1 * f.gradient(f.seen[0]), rtol=1e-14, atol=0)


def test_a_polyak_step_reaches_the_minimum_of_a_sphere_half_way():
    # (f - f*)/norm(g)^2 = 1/2 for f = norm(w)^2/2: the step halves w.
    f = Quadratic((1.0, 1.0, 1.0), lift=7.0)
    optimizer = SAMSPS([f.w], rho=0.0, gamma_max=1.0, lower=7.0, weight_decay=0.0)
    before = f.w.detach().clone()
    optimizer.step(f)
    torch.testing.assert_close(f.w.detach(), before / 2, rtol=1e-13, atol=0)
    assert float(optimizer.last.extra["step_size"]) == pytest.approx(0.5, rel=1e-13)


def test_a_polyak_step_is_capped_and_never_negative():
    f = Quadratic((1.0, 1.0, 1.0))
    capped = SAMSPS([f.w], rho=0.0, gamma_max=0.25, weight_decay=0.0)
    before = f.w.detach().clone()
    capped.step(f)
    torch.testing.assert_close(f.w.detach(), before * 0.75, rtol=1e-15, atol=0)
    still = SAMSPS([f.w], rho=0.0, gamma_max=1.0, lower=1e6)
    before = f.w.detach().clone()
    still.step(f)
    assert torch.equal(f.w.detach(), before)
    assert still.param_groups[0]["lr"] == 1.0


def test_polyak_steps_are_not_taken_by_hand():
    f = Quadratic()
    optimizer = SAMSPS([f.w])
    f()
    with optimizer.ascend():
        f()
    with pytest.raises(RuntimeError, match="SAMSPS sets its own step size"):
        optimizer.descend()


def test_adasam_without_radius_is_amsgrad_without_bias_correction():
    f, g = Quadratic(), Quadratic()
    optimizer = AdaSAM([f.w], rho=0.0, lr=0.05, betas=(0.9, 0.99), eps_root=1e-3)
    w = g.w.detach().clone()
    m, v = torch.zeros(3, dtype=torch.float64), torch.full((3,), 1e-6, dtype=torch.float64)
    largest = v.clone()
    for _ in range(12):
        optimizer.step(f)
        slope = g.gradient(w)
        m, v = 0.9 * m + 0.1 * slope, 0.99 * v + 0.01 * slope**2
        largest = torch.maximum(largest, v)
        w = w - 0.05 * m / largest.sqrt()
        torch.testing.assert_close(f.w.detach(), w, rtol=1e-12, atol=1e-14)


def test_the_first_steps_of_lightsam_have_length_rho_and_lr():
    f = Quadratic()
    optimizer = LightSAM([f.w], rho=0.3, lr=0.2)
    start = f.w.detach().clone()
    optimizer.step(f)
    assert float((f.seen[1] - f.seen[0]).norm()) == pytest.approx(0.3, rel=1e-12)
    assert float((f.w.detach() - start).norm()) == pytest.approx(0.2, rel=1e-12)


def test_lightsam_with_adagrad_starts_with_signs():
    f = Quadratic()
    start = f.w.detach().clone()
    LightSAM([f.w], rho=0.3, lr=0.2, method="adagrad").step(f)
    torch.testing.assert_close(f.seen[1] - start, 0.3 * start.sign(), rtol=1e-12, atol=0)


def test_lightsam_survives_weights_that_never_get_a_gradient():
    w = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    optimizer = LightSAM([w], method="adam", betas=(0.9, 0.5))

    def closure() -> Tensor:
        w.grad = None
        loss = w[0].float()
        loss.backward()
        return loss

    for _ in range(8):
        optimizer.step(closure)
    assert torch.isfinite(w.detach()).all()
    assert float(w.detach()[1]) == 1.0


def test_sassha_with_exact_curvature_and_no_averages_is_newton():
    # Rademacher probes give a diagonal Hessian exactly.
    f = Quadratic()
    optimizer = SASSHA([f.w], rho=0.0, lr=1.0, betas=(0.0, 0.0), power=1.0, eps_denominator=1e-12)
    optimizer.step(f, loss=f.loss)
    assert float(f.w.detach().abs().max()) < 1e-10


def test_sassha_measures_its_curvature_every_tenth_step():
    f = Quadratic()
    optimizer = SASSHA([f.w], lr=0.01, n_probes=3)
    products = []
    for _ in range(21):
        optimizer.step(f, loss=f.loss)
        products.append(optimizer.last.products)
        assert optimizer.last.evaluations == 2
    assert products == [3] + [0] * 9 + [3] + [0] * 9 + [3]


def test_sassha_takes_its_curvature_at_the_displaced_weights():
    # f = w^4/12: the second derivative is w^2, and the displacement is rho sign(g).
    w = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

    def loss() -> Tensor:
        return (w**4).sum() / 12

    def closure() -> Tensor:
        w.grad = None
        value = loss()
        value.backward()
        return value

    optimizer = SASSHA([w], rho=0.5, lr=1.0, betas=(0.0, 0.0), power=1.0, eps_denominator=1e-12)
    optimizer.step(closure, loss=loss)
    assert float(w.detach()) == pytest.approx(2.0 - (2.5**3 / 3) / 2.5**2, rel=1e-10)


def test_sassha_needs_a_loss():
    f = Quadratic()
    with pytest.raises(ValueError, match="SASSHA must be given loss="):
        SASSHA([f.w]).step(f)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (BSAM, {"examples": 0}, "examples must be an integer >= 1; got 0"),
        (BSAM, {"examples": 5, "betas": (1.0, 0.9)}, "betas must be a number in [0, 1); got 1.0"),
        (BSAM, {"examples": 5, "damping": -1.0}, "damping must be a finite number >= 0; got -1.0"),
        (BSAM, {"examples": 5, "prior_precision": -1.0}, "prior_precision must be a finite number >= 0; got -1.0"),
        (SAMSPS, {"lam": 1.5}, "lam must be a number in [0, 1]; got 1.5"),
        (SAMSPS, {"gamma_max": 0.0}, "gamma_max must be a finite number > 0; got 0.0"),
        (SAMSPS, {"weight_decay": -1.0}, "weight_decay must be a finite number >= 0; got -1.0"),
        (AdaSAM, {"lr": -1.0}, "lr must be a finite number >= 0; got -1.0"),
        (AdaSAM, {"eps_root": 0.0}, "eps_root must be a finite number > 0; got 0.0"),
        (AdaSAM, {"betas": (0.9,)}, "betas must be two numbers; got (0.9,)"),
        (LightSAM, {"method": "adam-norm"}, "method must be one of adagrad-norm, adagrad, adam; got 'adam-norm'"),
        (LightSAM, {"lr": math.nan}, "lr must be a finite number >= 0; got nan"),
        (SASSHA, {"n_probes": 1}, "n_probes must be an integer >= 2; got 1"),
        (SASSHA, {"power": 2.0}, "power must be a number in [0, 1]; got 2.0"),
        (SASSHA, {"every": 0}, "every must be an integer >= 1; got 0"),
        (SASSHA, {"rho": -0.1}, "rho must be a finite number >= 0; got -0.1"),
    ],
)
def test_arguments_out_of_range(build: type, arguments: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        build([Quadratic().w], **arguments)

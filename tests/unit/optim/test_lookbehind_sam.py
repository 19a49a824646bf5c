"""Lookbehind, SAMPa and AsyncSAM: where they evaluate."""

from __future__ import annotations

import itertools

import pytest
import torch
from contracts.optim_rows.harness import Closures, flat_weights, make_module, points_of_step, step
from contracts.optim_rows.problem import Flat, unit

from hessprobe.errors import NonFiniteError
from hessprobe.optim import LESAM, AsyncSAM, Cosine, LookbehindSAM, SAMPa


def flat_problem(w: torch.Tensor, t: int) -> Flat:
    flat = Flat(torch.full_like(w, 0.2), torch.full_like(w, 0.1), torch.zeros_like(w))
    flat.t = t
    return flat


def test_lookbehind_goes_on_from_where_it_got_to():
    module = make_module()
    optimizer = LookbehindSAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.2, k=3)
    points = points_of_step(optimizer, module, 1)
    flat = flat_problem(points[0], 1)
    assert len(points) == 4
    for before, after in itertools.pairwise(points):
        torch.testing.assert_close(after, before + 0.2 * unit(flat.grad(before)), rtol=1e-12, atol=1e-13)


def test_lookbehind_leaves_a_parameter_without_gradient_alone():
    module, unused = make_module(), torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    base = torch.optim.SGD([*module.parameters(), unused], lr=0.1, weight_decay=0.1, momentum=0.9)
    optimizer = LookbehindSAM(base, rho=0.2, k=3)
    for t in (1, 2):
        optimizer.step(Closures(module, t).backward)
    assert torch.equal(unused.detach(), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("by_hand", [False, True])
def test_lookbehind_clips_every_one_of_its_gradients(by_hand: bool):
    module = make_module()
    optimizer = LookbehindSAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.2, k=3, alpha=1.0)
    points = points_of_step(optimizer, module, 1, clip_grad_norm=0.05)
    flat = flat_problem(points[0], 1)
    expected = points[0] - sum(0.1 * 0.05 * unit(flat.grad(point)) for point in points[1:])
    if by_hand:
        module = make_module()
        optimizer = LookbehindSAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.2, k=3, alpha=1.0)
        closures = Closures(module, 1)
        closures.backward()
        while optimizer.wants_ascent():
            with optimizer.ascend():
                closures.backward()
        optimizer.descend(clip_grad_norm=0.05)
    # clip_grad_norm_ divides by the norm plus 1e-6.
    torch.testing.assert_close(flat_weights(module), expected, rtol=0, atol=1e-7)


def test_sampa_ascends_on_the_batch_that_gave_the_direction():
    module = make_module()
    optimizer = SAMPa(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.2, lam=0.2)
    here, _ = points_of_step(optimizer, module, 1)
    slope = flat_problem(here, 1).grad(here)
    w = flat_weights(module)
    torch.testing.assert_close(w, here - 0.1 * slope, rtol=1e-12, atol=1e-13)
    ahead, there = points_of_step(optimizer, module, 2)
    torch.testing.assert_close(ahead, w - 0.1 * slope, rtol=1e-12, atol=1e-13)
    ascended = flat_problem(w, 1).grad(w + 0.2 * unit(slope))
    slope = flat_problem(ahead, 2).grad(ahead)
    new = flat_weights(module)
    torch.testing.assert_close(new, w - 0.1 * (0.8 * ascended + 0.2 * slope), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(there, new + 0.2 * unit(slope), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("failing", [1, 2])
def test_sampa_starts_afresh_where_its_last_pass_failed(failing: int):
    module, other = make_module(), make_module()
    optimizer, untouched = (SAMPa(torch.optim.SGD(m.parameters(), lr=0.1), rho=0.2) for m in (module, other))
    for one, of in ((optimizer, module), (untouched, other)):
        step(one, of, 1)
    before, passes = flat_weights(module), []

    def interrupt(*_: object) -> None:
        passes.append(1)
        if len(passes) == failing:
            raise KeyboardInterrupt

    handle = module.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        step(optimizer, module, 2)
    handle.remove()
    step(untouched, other, 2)
    # Its first pass comes before the base step, its second after it.
    assert torch.equal(flat_weights(module), before if failing == 1 else flat_weights(other))
    here = points_of_step(optimizer, module, 3)[0]
    assert torch.equal(here, flat_weights(other)) == (failing == 2)


def test_sampa_says_where_its_loss_was_not_finite():
    module = make_module()
    optimizer = SAMPa(torch.optim.SGD(module.parameters(), lr=0.1), rho=1e200)
    with pytest.raises(NonFiniteError, match=r"displaced weights is nan in step 1, .* as after the step"):
        step(optimizer, module, 1)


def test_sampa_is_not_stepped_by_hand():
    module = make_module()
    optimizer = SAMPa(torch.optim.SGD(module.parameters(), lr=0.1))
    Closures(module, 1).backward()
    with pytest.raises(RuntimeError, match=r"evaluates after its step as well .* use opt.step\(closure\)"):
        optimizer.wants_ascent()


@pytest.mark.parametrize(("ascent", "evaluations"), [("clean", [1, 2, 2]), ("descent", [1, 1, 1])])
def test_async_sam_ascends_along_the_step_before(ascent: str, evaluations: list[int]):
    module = make_module()
    optimizer = AsyncSAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.2, ascent=ascent)
    counted, points = [], []
    for t in (1, 2, 3):
        points.append(points_of_step(optimizer, module, t))
        counted.append(optimizer.last.evaluations)
    assert counted == evaluations
    past = points[1][0] if ascent == "clean" else points[1][-1]
    w = flat_weights_before(points, ascent)
    expected = w + 0.2 * unit(flat_problem(past, 2).grad(past))
    torch.testing.assert_close(points[2][-1], expected, rtol=1e-12, atol=1e-13)


def flat_weights_before(points, ascent: str) -> torch.Tensor:
    """Return w at the third step."""
    if ascent == "clean":
        return points[2][0]
    second = points[1][-1]
    # w_3 = w_2 - lr grad_2(w_2 + e), and w_2 = w_1 - lr grad_1(w_1).
    first = points[0][0]
    w = first - 0.1 * flat_problem(first, 1).grad(first)
    return w - 0.1 * flat_problem(second, 2).grad(second)


def test_le_sam_raises_the_linearized_loss_by_sigma_and_no_further_than_rho():
    for sigma, rho, length in ((0.01, 10.0, None), (10.0, 0.2, 0.2)):
        module = make_module()
        optimizer = LESAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=rho, sigma=sigma)
        here, there = points_of_step(optimizer, module, 1)
        e = there - here
        if length is None:
            assert float(flat_problem(here, 1).grad(here) @ e) == pytest.approx(sigma, rel=1e-9)
        else:
            assert float(e.norm()) == pytest.approx(length, rel=1e-9)


def test_le_sam_follows_a_schedule_of_sigma():
    module = make_module()
    optimizer = LESAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=10.0, sigma=Cosine(0.01, 0.0, steps=3))
    rises = []
    for t in (1, 2, 3):
        here, there = points_of_step(optimizer, module, t)
        rises.append(float(flat_problem(here, t).grad(here) @ (there - here)))
    assert rises == pytest.approx([0.01, 0.005, 0.0], abs=1e-10)

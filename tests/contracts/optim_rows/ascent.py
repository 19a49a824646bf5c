"""Rules about where to ascend from, and what to do with the gradients found there."""

from __future__ import annotations

import torch
from contracts.optim_rows.problem import Flat, N, unit
from contracts.optim_rows.row import Row, Step
from torch import Tensor

from hessprobe.optim.engine import randomness


def usam(flat: Flat, w: Tensor) -> Tensor:
    return flat.grad(w + flat.rho * flat.grad(w))


def unified(lam_of_step):
    def spec(flat: Flat, w: Tensor) -> Tensor:
        g, lam = flat.grad(w), lam_of_step(flat.t)
        return flat.grad(w + flat.rho * (1 - lam + lam / g.norm()) * g)

    return spec


def extragradient(flat: Flat, w: Tensor) -> Tensor:
    return flat.grad(w - flat.rho * flat.grad(w))


def past_extragradient(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w - flat.rho * flat.memory.get("g", torch.zeros_like(w)))
    flat.memory["g"] = g
    return g


def stretched(flat: Flat, w: Tensor, scale: Tensor) -> Tensor:
    g = flat.grad(w)
    return flat.grad(w + flat.rho * scale**2 * g / (scale * g).norm())


def asam(flat: Flat, w: Tensor) -> Tensor:
    # Without names: weights are the matrices.
    return stretched(flat, w, flat.by_tensor(lambda p: p.abs() + 0.01 if p.ndim > 1 else torch.ones_like(p), w))


def asam_named(flat: Flat, w: Tensor) -> Tensor:
    scale = w.abs() + 0.01
    for name, span in zip(flat.names, flat.slices, strict=True):
        if "weight" not in name:
            scale[span] = 1
    return stretched(flat, w, scale)


def asam_everywhere(flat: Flat, w: Tensor) -> Tensor:
    return stretched(flat, w, w.abs())


def normalization(flat: Flat, w: Tensor, names: tuple[str, ...] = ("1.weight", "1.bias")) -> Tensor:
    mask = torch.zeros_like(w)
    for name, span in zip(flat.names, flat.slices, strict=True):
        mask[span] = float(name in names)
    return mask


def sam_on(flat: Flat, w: Tensor) -> Tensor:
    return flat.grad(w + flat.rho * unit(normalization(flat, w) * flat.grad(w)))


def sam_on_complement(flat: Flat, w: Tensor) -> Tensor:
    return flat.grad(w + flat.rho * unit((1 - normalization(flat, w)) * flat.grad(w)))


def sam_on_elementwise(flat: Flat, w: Tensor) -> Tensor:
    g = normalization(flat, w) * flat.grad(w)
    scale = torch.where(normalization(flat, w, ("1.weight",)) > 0, w.abs() + 0.1, 1.0)
    return flat.grad(w + flat.rho * scale**2 * g / (scale * g).norm())


def sam_on_layerwise_inf(flat: Flat, w: Tensor) -> Tensor:
    g = normalization(flat, w) * flat.grad(w)
    scale = flat.by_tensor(lambda p: p.norm().expand_as(p), w)
    return flat.grad(w + flat.rho * scale * g.sign())


def fisher_sam(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    inverse = 1 / (1 + 0.8 * g**2)
    return flat.grad(w + flat.rho * inverse * g / (g @ (inverse * g)).sqrt())


def sagm(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    return (g + flat.grad(w + (flat.rho / g.norm() - 0.01) * g)) / 2


def m_sam(flat: Flat, w: Tensor) -> Tensor:
    shards = torch.arange(N).chunk(4)
    parts = [flat.grad(w + flat.rho * unit(flat.grad(w, rows)), rows) * (len(rows) / N) for rows in shards]
    return torch.stack(parts).sum(0)


def outstanding(g: Tensor) -> Tensor:
    if g.ndim < 2:
        return g
    z = ((g - g.mean()) / g.std()).abs()
    kept = torch.where(z > torch.quantile(z, 0.7), g, 0.0)
    return kept if kept.any() else g


def zsharp(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    e = flat.by_tensor(lambda p: p / g.norm() if p.ndim < 2 else unit(outstanding(p)), g)
    return flat.grad(w + flat.rho * e)


def zsharp_paper(flat: Flat, w: Tensor) -> Tensor:
    return flat.grad(w + flat.rho * unit(flat.by_tensor(outstanding, flat.grad(w))))


def centered(flat: Flat, g: Tensor) -> Tensor:
    return flat.by_tensor(lambda p: p - p.flatten(1).mean(1)[:, None] if p.ndim > 1 else p, g)


def gcsam(flat: Flat, w: Tensor) -> Tensor:
    return flat.grad(w + flat.rho * unit(centered(flat, flat.grad(w))))


def gcsam_both(flat: Flat, w: Tensor) -> Tensor:
    return centered(flat, gcsam(flat, w))


def cr_sam(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    e = flat.rho * unit(g)
    up, down = flat.grad(w + e), flat.grad(w - e)
    return up + 0.3 * (up + down - 2 * g) + 0.05 * (up - down)


def pgn(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    return 0.3 * g + 0.7 * flat.grad(w + flat.rho * unit(g))


def pgn_normalized(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    return 0.3 * unit(g) + 0.7 * flat.grad(w + flat.rho * unit(g))


def four_gradients(flat: Flat, w: Tensor, far: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g0 = flat.grad(w)
    g1 = flat.grad(w + flat.rho * unit(g0))
    e = far * unit(g1 - g0)
    g2 = flat.grad(w + e)
    return g0, g1, g2, flat.grad(w + e + flat.rho * unit(g2))


def gam(flat: Flat, w: Tensor) -> Tensor:
    g0, g1, g2, g3 = four_gradients(flat, w, 0.2)
    d = 0.6 * g1 + 0.4 * g3
    m = g0 + 0.7 * g2
    return d - 0.2 * (m - (m @ d) / (d @ d) * d)


def c_flat(flat: Flat, w: Tensor) -> Tensor:
    _, g1, g2, g3 = four_gradients(flat, w, flat.rho)
    return g1 + 0.4 * (g3 - g2)


def c_flat_two_radii(flat: Flat, w: Tensor) -> Tensor:
    _, g1, g2, g3 = four_gradients(flat, w, 0.3)
    return g1 + 0.4 * (g3 - g2)


def noise(flat: Flat, w: Tensor) -> Tensor:
    source = randomness.generator(0, flat.t, 1)

    def one(p: Tensor) -> Tensor:
        n = torch.randn(p.shape, generator=source, dtype=torch.float64)
        return n * (p.norm() if p.ndim < 2 else p.flatten(1).norm(dim=1)[:, None])

    return flat.rho * flat.by_tensor(one, w)


def rwp(flat: Flat, w: Tensor) -> Tensor:
    return 0.6 * flat.grad(w) + 0.4 * flat.grad(w + noise(flat, w))


def rwp_two_batches(flat: Flat, w: Tensor) -> Tensor:
    first, second = torch.arange(N).chunk(2)
    return 0.5 * flat.grad(w, first) + 0.5 * flat.grad(w + noise(flat, w), second)


def pre_sam_weights(flat: Flat, w: Tensor) -> Tensor:
    return asam_everywhere(flat, w)


def squared_weights(weights, gradient):
    return weights.map(torch.square)


def pre_sam_both(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    c, d = w**2, (1 + g**2) ** -0.5
    return flat.grad(w + flat.rho * d**2 * c * g / (d * c * g).norm())


def info_sam(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    if "m" not in flat.memory:
        flat.memory.update(m=g, s=torch.zeros_like(g))
    else:
        m = 0.8 * flat.memory["m"] + 0.2 * g
        flat.memory.update(m=m, s=0.8 * flat.memory["s"] + 0.2 * (g - m) ** 2)
    return flat.grad(w + flat.rho * unit(g / (flat.memory["s"] + 0.01)))


def lookbehind_path(flat: Flat, w: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the fast weights after the first of the k base steps, and after all of them."""
    up, fast = w, [w]
    for _ in range(k):
        up = up + flat.rho * unit(flat.grad(up))
        fast.append(flat.memory["base"].step(fast[-1], flat.grad(up), flat.lr, flat.weight_decay))
    return fast[1], fast[-1]


def lookbehind(flat: Flat, w: Tensor) -> Step:
    return Step(replace=w + 0.5 * (lookbehind_path(flat, w, 3)[1] - w))


def lookbehind_adaptive(flat: Flat, w: Tensor) -> Step:
    first, last = (v - w for v in lookbehind_path(flat, w, 2))

    def part(a: Tensor, b: Tensor) -> Tensor:
        return ((a.flatten() @ b.flatten() / (a.norm() * b.norm()) + 1) / 2).expand_as(a)

    return Step(replace=w + flat.by_tensor(part, first, last) * last)


def on_the_batch_before(flat: Flat, point: Tensor) -> Tensor:
    flat.t -= 1
    gradient = flat.grad(point)
    flat.t += 1
    return gradient


def sampa(flat: Flat, w: Tensor, lam: float = 0.3, code: bool = False) -> Tensor:
    if "h" not in flat.memory:
        flat.memory["h"] = flat.grad(w)
        return flat.memory["h"]
    h, base = flat.memory["h"], flat.memory["base"]
    momentum = getattr(base, "buffer", None) if code else None
    step = h if momentum is None else h + flat.weight_decay * w + base.momentum * momentum
    ahead = flat.grad(w - flat.lr * step)
    flat.memory["h"] = ahead
    return (1 - lam) * on_the_batch_before(flat, w + flat.rho * unit(h)) + lam * ahead


def sampa_code(flat: Flat, w: Tensor) -> Tensor:
    return sampa(flat, w, lam=0.2, code=True)


def async_sam(flat: Flat, w: Tensor) -> Tensor:
    g, past = flat.grad(w), flat.memory.get("g")
    flat.memory["g"] = g
    return g if past is None else flat.grad(w + flat.rho * unit(past))


def async_sam_descent(flat: Flat, w: Tensor) -> Tensor:
    past = flat.memory.get("g")
    flat.memory["g"] = flat.grad(w) if past is None else flat.grad(w + flat.rho * unit(past))
    return flat.memory["g"]


def le_sam(flat: Flat, w: Tensor) -> Tensor:
    g = flat.grad(w)
    return flat.grad(w + torch.minimum(flat.rho, 0.04 / g.norm()) * unit(g))


# Rules that are not scale invariant: an ascent in units of the gradient (usam, unified, extragradient, sagm, sampa), or
# a number compared with the gradient (fisher-sam, pgn normalized, pre-sam with "fisher", info-sam, le-sam).
ROWS = [
    Row("usam", "usam", usam, {}, scale_invariant=False),
    Row("unified-sam", "unified-sam", unified(lambda t: 0.3), {"lam": 0.3}, scale_invariant=False),
    Row("unified-sam-1/t", "unified-sam", unified(lambda t: 1 / t), {"lam": "1/t"}, scale_invariant=False),
    Row("unified-sam-1-1/t", "unified-sam", unified(lambda t: 1 - 1 / t), {"lam": "1-1/t"}, scale_invariant=False),
    Row("extragradient", "extragradient", extragradient, {}, scale_invariant=False),
    Row(
        "extragradient-past",
        "extragradient",
        past_extragradient,
        {"form": "past"},
        evaluations=1,
        scale_invariant=False,
        clean_loss=False,
    ),
    Row("asam", "asam", asam, {"eta": 0.01}, rho=0.1),
    Row("asam-named", "asam", asam_named, {"eta": 0.01}, rho=0.1, needs_model=True),
    Row("asam-everywhere", "asam", asam_everywhere, {"eta": 0.0, "exclude_bias": False}, rho=0.1),
    Row("sam-on", "sam-on", sam_on, {}, needs_model=True),
    Row("sam-on-complement", "sam-on", sam_on_complement, {"no_norm": True}, needs_model=True),
    Row("sam-on-elementwise", "sam-on", sam_on_elementwise, {"scaling": "elementwise", "eta": 0.1}, needs_model=True),
    Row(
        "sam-on-layerwise-inf",
        "sam-on",
        sam_on_layerwise_inf,
        {"scaling": "layerwise", "p": "inf", "exclude_bias": False},
        needs_model=True,
    ),
    Row("fisher-sam", "fisher-sam", fisher_sam, {"eta": 0.8}, scale_invariant=False),
    Row(
        "sagm",
        "sagm",
        sagm,
        {"alpha": 0.01},
        base_at_rho_zero_arguments={"alpha": 0.0},
        scale_invariant=False,
    ),
    # The mean of the shards' gradients is the batch's to rounding only.
    Row(
        "m-sam",
        "m-sam",
        m_sam,
        {"shards": 4},
        evaluations=8,
        base_at_rho_zero_arguments={"shards": 1},
        accumulates=None,
    ),
    Row("zsharp", "zsharp", zsharp, {"quantile": 0.7}),
    Row("zsharp-paper", "zsharp", zsharp_paper, {"quantile": 0.7, "convention": "paper"}),
    Row("gcsam", "gcsam", gcsam, {}),
    # Centering the descent is not the base's step.
    Row("gcsam-both", "gcsam", gcsam_both, {"centralize_descent": True}, base_at_rho_zero=False),
    Row("cr-sam", "cr-sam", cr_sam, {"gamma": 0.3, "beta": 0.05}, evaluations=3),
    Row("pgn", "pgn", pgn, {"alpha": 0.7}),
    Row(
        "pgn-normalized",
        "pgn",
        pgn_normalized,
        {"alpha": 0.7, "normalize": True},
        base_at_rho_zero=False,
        scale_invariant=False,
    ),
    Row(
        "gam",
        "gam",
        gam,
        {"norm_rho": 0.2, "beta0": 0.3, "beta1": 0.6, "gamma": 0.2},
        evaluations=4,
        # m - proj_d m is zero to rounding only.
        base_at_rho_zero_arguments={"gamma": 0.0},
    ),
    Row("c-flat", "c-flat", c_flat, {"lam": 0.4}, evaluations=4),
    Row("c-flat-two-radii", "c-flat", c_flat_two_radii, {"lam": 0.4, "norm_rho": 0.3}, evaluations=4),
    Row("rwp", "rwp", rwp, {"alpha": 0.4}, rho=0.1),
    # Two batches: the step's loss is the first one's, and rho = 0 gives the mean of two gradients.
    Row(
        "rwp-two",
        "rwp",
        rwp_two_batches,
        {"shards": 2},
        rho=0.1,
        base_at_rho_zero=False,
        clean_loss=False,
        accumulates=None,
    ),
    Row("pre-sam", "pre-sam", pre_sam_weights, {"constraint": "weights"}),
    Row(
        "pre-sam-both",
        "pre-sam",
        pre_sam_both,
        {"constraint": "fisher", "objective": squared_weights},
        scale_invariant=False,
    ),
    Row("info-sam", "info-sam", info_sam, {"beta": 0.8}, scale_invariant=False),
    Row(
        "lookbehind-sam",
        "lookbehind-sam",
        lookbehind,
        {"k": 3},
        evaluations=4,
        clip_factor=0.5 * 3,
        clip_is_reached=False,
        base_at_rho_zero_arguments={"k": 1, "alpha": 1.0},
    ),
    Row(
        "lookbehind-sam-adaptive",
        "lookbehind-sam",
        lookbehind_adaptive,
        {"k": 2, "alpha": "adaptive"},
        evaluations=3,
        clip_factor=2.0,
        clip_is_reached=False,
        base_at_rho_zero=False,
    ),
    # Whatever rho is, gradients at y and on the batch before enter the step.
    Row(
        "sampa",
        "sampa",
        sampa,
        {"lam": 0.3},
        base_at_rho_zero=False,
        scale_invariant=False,
        clean_loss=False,
        evaluates_after_step=True,
    ),
    Row(
        "sampa-code",
        "sampa",
        sampa_code,
        {"convention": "code"},
        base_at_rho_zero=False,
        scale_invariant=False,
        clean_loss=False,
        evaluates_after_step=True,
    ),
    Row("async-sam", "async-sam", async_sam, {}, evaluations=[1] + [2] * 11),
    Row("async-sam-descent", "async-sam", async_sam_descent, {"ascent": "descent"}, evaluations=1, clean_loss=False),
    Row("le-sam", "le-sam", le_sam, {"sigma": 0.04}, scale_invariant=False),
]

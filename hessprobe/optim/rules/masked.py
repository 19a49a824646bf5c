"""SAM along a part of the weights or of the gradient: Sparse SAM, SAM-ON, ZSharp, InfoSAM."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Unpack, cast

import torch
from torch import Tensor, nn

from hessprobe import checks
from hessprobe.optim import selection
from hessprobe.optim.engine import At, Displacement, EngineOptions, Evaluation, Rule, SharpnessAware, TensorList
from hessprobe.optim.engine.randomness import uniform_like
from hessprobe.optim.engine.tensors import beside, part_of, whole
from hessprobe.optim.schedules import Schedule


class SparseSAM(SharpnessAware):
    """Sparse SAM: displaces only a share 1 - s of the weights.

        e = M * (rho/norm(g)) g  (elementwise; the norm is over all weights),      base step with grad L(w + e)

    ``mask="fisher"`` (SSAM-F): M marks the largest entries of sum_i (grad l_i(w))^2 over the first ``n_samples``
    examples of the batch (their own labels: the empirical Fisher diagonal). Squares of single examples cannot be had
    from a batch gradient, so this kind takes ``closure(subset)``, which returns the losses of the examples in
    ``subset`` (an index tensor, or None for all) without calling backward.

    ``mask="dynamic"`` (SSAM-D): M starts random; at a refresh the share r (1 + cos(pi (t - 1)/T))/2 of the marked
    weights with the smallest abs(g) is dropped and as many unmarked ones, drawn at random, take their place, from the
    next step on. The number of marked weights never changes. After T steps nothing changes any more.

    Two gradients a step; SSAM-F computes n_samples gradients of single examples at a refresh. One vector of memory.
    s = 0 is SAM.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        mask: ``"fisher"`` or ``"dynamic"``.
        sparsity: s in [0, 1), share of the weights that stay.
        every: steps between refreshes, >= 1; the paper's are 1 to 5 epochs.
        n_samples: examples for the Fisher diagonal, >= 1; 16 to 1024 in the paper, at most the batch here.
        drop_rate: r in [0, 1].
        steps: T >= 1, after which the dynamic mask rests.
        convention: when SSAM-F makes its masks. ``"paper"``: at steps 1, 1 + every, ..., before the ascent, so that
            every step has one. ``"code"``: at 2, 2 + every, ..., which are the weights of the official code (it makes
            them after the first step of an epoch); until then M = 0 and the first step is a base step.
        **engine: see ``SharpnessAware``.

    References:
        Mi et al., Make Sharpness-Aware Minimization Stronger: A Sparsified Perturbation Approach, NeurIPS 2022.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import SparseSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = SparseSAM(torch.optim.SGD([w], lr=0.1), rho=0.2, sparsity=0.5)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.7000, -1.8968]])
    """

    vectors = ("mask",)

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        mask: str = "dynamic",
        sparsity: float = 0.5,
        every: int = 100,
        n_samples: int = 16,
        drop_rate: float = 0.5,
        steps: int = 10_000,
        convention: str = "paper",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.mask = checks.one_of("mask", mask, ("fisher", "dynamic"))
        self.closure_kind = "per-sample" if mask == "fisher" else "backward"
        self.sparsity = checks.real("sparsity", sparsity, low=0, high=1, high_open=True)
        self.every = checks.positive_int("every", every)
        self.n_samples = checks.positive_int("n_samples", n_samples)
        self.drop_rate = checks.real("drop_rate", drop_rate, low=0, high=1)
        self.steps = checks.positive_int("steps", steps)
        self.convention = checks.one_of("convention", convention, ("paper", "code"))

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        if self.mask == "fisher":
            mask = yield from self._fisher_mask(here)
        else:
            mask = self._dynamic_mask(here.gradient)
        norm = self.perturbed(here.gradient).norm()
        there = yield At(self.ascent(here.gradient * mask, norm=norm))
        return there.gradient

    def _fisher_mask(self, here: Evaluation) -> Generator[At, Evaluation, TensorList]:
        first = 1 if self.convention == "paper" else 2
        known = self.recall("mask")
        due = self.t >= first and (self.t - first) % self.every == 0
        if not due and known is not None:
            return known
        if not due and self.t < first:
            return here.gradient.zeros()
        losses = cast(Tensor, here.losses)
        squares = here.gradient.zeros()
        for index in range(min(self.n_samples, len(losses))):
            one = yield At(subset=torch.tensor([index], device=losses.device))
            squares.add_(one.gradient * one.gradient)
        mask = self._largest(squares, self._live())
        self.remember("mask", mask)
        return mask

    def _dynamic_mask(self, gradient: TensorList) -> TensorList:
        mask = self.recall("mask")
        if mask is None:
            mask = self._largest(uniform_like(gradient, self.generator()), self._live())
            self.remember("mask", mask)
        if (self.t - 1) % self.every == 0:
            self.remember("mask", self._renewed(mask, gradient))
        return mask

    def _renewed(self, mask: TensorList, gradient: TensorList) -> TensorList:
        live, total = self._live(), self._perturbed_size()
        rate = self.drop_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, (self.t - 1) / self.steps)))
        dropped = min(math.floor(live * rate), total - live)
        outside = gradient.map(lambda g: torch.full_like(g, -math.inf))
        size = gradient.map(lambda g, m, low: torch.where(m > 0, g.abs(), low), mask, outside)
        draws = uniform_like(gradient, self.generator())
        fresh = draws.map(lambda r, m, low: torch.where(m > 0, low, r), mask, outside)
        return self._largest(size, live - dropped) + self._largest(fresh, dropped)

    def _largest(self, scores: TensorList, count: int) -> TensorList:
        """Return 1 at the ``count`` largest scores of weights that are perturbed, 0 elsewhere."""
        groups = self.group_values("perturb")
        parts = [s if p else torch.full_like(s, -math.inf) for s, p in zip(scores.tensors, groups, strict=True)]
        flat = torch.cat([whole(part).reshape(-1) for part in parts])
        marked = torch.zeros_like(flat)
        marked[torch.topk(flat, count).indices] = 1.0
        pieces = torch.split(marked, [part.numel() for part in parts])
        masks = [part_of(m.view(p.shape).clone(), p) for m, p in zip(pieces, parts, strict=True)]
        return TensorList(masks, scores.foreach)

    def _live(self) -> int:
        total = self._perturbed_size()
        return total - math.ceil(total * self.sparsity)

    def _perturbed_size(self) -> int:
        return sum(t.numel() for t, p in zip(self.parameters(), self.group_values("perturb"), strict=True) if p)


class SAMON(SharpnessAware):
    """SAM-ON: displaces the parameters of normalization layers alone; all parameters take the step.

    With S the selected parameters, g_S their gradient (zero elsewhere) and T a scale:

        p = "2":      e = rho T^2 g_S/norm(T g_S)
        p = "inf":    e = rho T sign(g_S)
        base step with grad L_B(w + e)

    ``scaling`` "none": T = 1 (SAM); "elementwise": T = abs(w) + eta (ASAM); "layerwise": T = norm(w_l) + eta for
    tensor l. T = 1 on biases unless ``exclude_bias=False``. Two gradients a step. It wants a larger rho than SAM.

    Parameters are selected by the class of the layer that owns them (``layers``), not by name as in the authors'
    code, so that layers called otherwise are found; "layerwise" there multiplies by 1 + eta instead of adding eta
    (the same at eta = 0). ``no_norm=True`` selects the complement.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        model: the module; needed, to see its layers.
        scaling: "none", "elementwise" or "layerwise".
        p: "2" or "inf", the norm that bounds T^{-1} e.
        eta: >= 0.
        exclude_bias: take T = 1 for biases.
        no_norm: displace everything but these layers.
        layers: classes of layers to select in place of normalization layers.
        **engine: see ``SharpnessAware``.

    Raises:
        TypeError: no ``model``.
        ValueError: nothing is selected.

    References:
        Mueller et al., Normalization Layers Are All That Sharpness-Aware Minimization Needs, NeurIPS 2023.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import SAMON
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
        >>> opt = SAMON(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5, model=model, diagnostics=True)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (model(torch.ones(4, 2)) - 1).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> opt.last.evaluations
        2
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.5,
        *,
        scaling: str = "none",
        p: str = "2",
        eta: float = 0.0,
        exclude_bias: bool = True,
        no_norm: bool = False,
        layers: tuple[type[nn.Module], ...] | None = None,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.scaling = checks.one_of("scaling", scaling, ("none", "elementwise", "layerwise"))
        self.p = checks.one_of("p", p, ("2", "inf"))
        self.eta, self.exclude_bias = checks.real("eta", eta, low=0), exclude_bias
        self.no_norm, self.layers = no_norm, layers
        self._require_selection()

    def rule(self) -> Rule:
        """See the class."""
        # No name is given to the first gradient: its memory is free again during the second pass.
        there = yield At(self._displacement((yield At()).gradient))
        return there.gradient

    def _displacement(self, gradient: TensorList) -> Displacement:
        scale = self._scale()
        chosen = gradient.where(self._selected(self.parameters()))
        if self.p == "inf":
            return self.displacement(chosen.map(torch.sign) * scale)
        scaled = chosen * scale
        return self.ascent(scaled * scale, self.perturbed(scaled).norm())

    def _scale(self) -> TensorList:
        weights = self.weights.original()
        adaptive = [True] * len(weights)
        if self.exclude_bias:
            adaptive = selection.are_weights(self.parameters(), self.model)
        pairs = zip(weights.tensors, adaptive, strict=True)
        return TensorList([self._scale_of(w) if a else torch.ones_like(w) for w, a in pairs], weights.foreach)

    def _scale_of(self, weight: Tensor) -> Tensor:
        if self.scaling == "none":
            return torch.ones_like(weight)
        if self.scaling == "elementwise":
            return weight.abs().add_(self.eta)
        length: Tensor = torch.linalg.vector_norm(weight) + self.eta
        return length.expand_as(weight)

    def _selected(self, parameters: list[Tensor]) -> list[bool]:
        if self.model is None:
            raise TypeError("SAMON must be given model=, the module whose layers it selects; got None.")
        return [owned != self.no_norm for owned in selection.in_layers(parameters, self.model, self.layers)]

    def _require_selection(self) -> None:
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if not any(self._selected(parameters)):
            what = "a parameter outside normalization layers" if self.no_norm else "a normalization layer"
            raise ValueError(
                f"model must have {what} among the optimizer's parameters; got {type(self.model).__name__}, which has "
                "none. Use SAM, or name the classes of its layers in layers=."
            )


class ZSharp(SharpnessAware):
    """ZSharp: ascends along the entries of each layer's gradient that stand out from the rest of the layer.

    For every tensor of two or more dimensions, with z = (g - mean(g))/std(g), the entries are kept where
    abs(z) > quantile_q(abs(z)), and all of them where none is; tensors of one dimension are kept whole. With g_l the
    kept part of tensor l, g^ that of all tensors and u(v) = v/norm(v):

        convention "code":     e_l = rho u(g_l) for filtered tensors, rho g_l/norm(g) for the others
        convention "paper":    e = rho u(g^), one norm over all
        base step with grad L_B(w + e)

    Two gradients a step. The authors' code gives every filtered tensor the length rho of its own, so its e is longer,
    about sqrt(number of layers) rho: a rho is not carried over from one convention to the other.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        quantile: q in [0, 1).
        convention: "code" or "paper".
        **engine: see ``SharpnessAware``.

    References:
        Yun, Sharpness-Aware Minimization with Z-Score Gradient Filtering, 2025.

    Examples:
        >>> import torch
        >>> from hessprobe.optim import ZSharp
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = ZSharp(torch.optim.SGD([w], lr=0.1), rho=0.2, quantile=0.5)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6431, -1.8968]])
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        quantile: float = 0.95,
        convention: str = "code",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.quantile = checks.real("quantile", quantile, low=0, high=1, high_open=True)
        self.convention = checks.one_of("convention", convention, ("code", "paper"))

    def rule(self) -> Rule:
        """See the class."""
        # No name is given to the first gradient: its memory is free again during the second pass.
        there = yield At(self._displacement((yield At()).gradient))
        return there.gradient

    def _displacement(self, gradient: TensorList) -> Displacement:
        masks = [self._mask(g) for g in gradient.tensors]
        pairs = list(zip(gradient.tensors, masks, strict=True))
        kept = TensorList([g if m is None else g * (m | _everywhere(m)) for g, m in pairs], gradient.foreach)
        if self.convention == "paper":
            return self.ascent(kept)
        length = self.perturbed(gradient).norm()
        lengths = [
            length if m is None else torch.where(whole(m.any()), norm, length)
            for m, norm in zip(masks, kept.tensor_norms(), strict=True)
        ]
        units = [(k / beside(size + self.eps, k)).to(k.dtype) for k, size in zip(kept.tensors, lengths, strict=True)]
        return self.displacement(TensorList(units, gradient.foreach))

    def _mask(self, gradient: Tensor) -> Tensor | None:
        mask = _outstanding(whole(gradient), self.quantile)
        return None if mask is None else part_of(mask, gradient)


def _outstanding(gradient: Tensor, quantile: float) -> Tensor | None:
    """Return where abs(z) is above its quantile, or None for a tensor that is not filtered."""
    if gradient.ndim < 2 or gradient.numel() < 2:
        return None
    wide = gradient.float() if gradient.dtype in (torch.float16, torch.bfloat16) else gradient
    scores = ((wide - wide.mean()) / (wide.std() + 1e-12)).abs()
    return scores > _quantile(scores.reshape(-1), quantile)


def _everywhere(mask: Tensor) -> Tensor:
    """Return the mask that keeps all where ``mask`` keeps nothing."""
    return part_of((~whole(mask).any()).expand(mask.shape), mask)


def _quantile(values: Tensor, q: float) -> Tensor:
    # torch.quantile refuses more than 2^24 values; like it, this interpolates between neighbors.
    position = q * (len(values) - 1)
    below = int(position)
    low = values.kthvalue(below + 1).values
    high = values.kthvalue(min(below + 2, len(values))).values
    return torch.lerp(low, high, position - below)


class InfoSAM(SharpnessAware):
    """InfoSAM: entries of the gradient weigh less in the ascent the noisier they are.

        m = beta m + (1 - beta) g,  s = beta s + (1 - beta)(g - m)^2        (m = g, s = 0 at the first step)
        c = (1 + s/delta)^{-power} by coordinate, the direction of (s + delta)^{-power}
        e = rho c g/norm(c g),        base step with grad L_B(w + e)

    Two gradients a step, two vectors of memory. The paper reweights the ascent by estimates of the gradient noise; the
    exact estimator was not available to us: **the averages above and the choice of c are ours**, an instance of
    ``PreSAM`` with objective preconditioner c. The first step is SAM's.

    Args:
        base_optimizer: see ``SharpnessAware``.
        rho: radius >= 0 or a schedule.
        beta: of the averages, in [0, 1).
        delta: > 0, noise variance below which entries are not told apart; in units of the squared gradient.
        power: > 0; 1 divides by the variance, 1/2 by the standard deviation.
        **engine: see ``SharpnessAware``.

    References:
        Zhang, Li and Giannakis, Preconditioned Sharpness-Aware Minimization: Unifying Analysis and a Novel Learning
        Algorithm, ICASSP 2025 (the idea).

    Examples:
        >>> import torch
        >>> from hessprobe.optim import InfoSAM
        >>> w, a = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.tensor([[3.0, 0.5]])
        >>> opt = InfoSAM(torch.optim.SGD([w], lr=0.1), rho=0.2, beta=0.99)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (a * w**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> w.data
        tensor([[ 0.6431, -1.8968]])
    """

    vectors = ("mean", "variance")

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        rho: float | Schedule = 0.05,
        *,
        beta: float = 0.99,
        delta: float = 1e-2,
        power: float = 1.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base_optimizer, rho, **engine)
        self.beta = checks.real("beta", beta, low=0, high=1, high_open=True)
        self.delta = checks.real("delta", delta, low=0, low_open=True)
        self.power = checks.real("power", power, low=0, low_open=True)

    def rule(self) -> Rule:
        """See the class."""
        here = yield At()
        gradient, mean, variance = here.gradient, self.recall("mean"), self.recall("variance")
        if mean is None or variance is None:
            mean, variance = gradient, gradient.zeros()
        else:
            mean = mean.map(self._averaged, gradient)
            variance = variance.map(self._averaged, (gradient - mean).map(torch.square))
        self.remember("mean", mean)
        self.remember("variance", variance)
        trust = variance.map(lambda s: (s / self.delta + 1).pow(-self.power))
        there = yield At(self.ascent(gradient * trust))
        return there.gradient

    def _averaged(self, old: Tensor, new: Tensor) -> Tensor:
        return torch.lerp(old, new, 1 - self.beta)

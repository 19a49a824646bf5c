"""Schemes that draw the examples of a step, with weights that keep the gradient unbiased.

f = (1/n) sum_i f_i over n examples. A draw is indices i_1, ..., i_k and weights v_1, ..., v_k such that
E sum_j v_j grad f_{i_j} = grad f:

    uniform       k independent indices, each with probability 1/n:     v_j = 1/k
    nice          k distinct indices, all sets equally likely:          v_j = 1/k
    importance    k independent indices with probabilities p:           v_j = 1/(k n p_{i_j})

A draw depends on seed and step number only, so a resumed run repeats it. In a closure:

    drawn = scheme.draw(t)
    loss = (criterion(model(x[drawn.indices]), y[drawn.indices], reduction="none") * drawn.weights).sum()

References:
    Oikonomou and Loizou, Sharpness-Aware Minimization: General Analysis and Improved Rates, ICLR 2025. (Their public
    code leaves the weights 1/(n p_i) out, which minimizes the p-weighted objective, and draws its sets with
    replacement.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hessprobe import checks
from hessprobe.errors import about
from hessprobe.optim.engine import randomness


@dataclass(frozen=True)
class Draw:
    """The examples of one step.

    Attributes:
        indices: (k,) int64, in [0, n).
        weights: (k,) float64, of each example's own loss.
    """

    indices: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Uniform:
    """k independent indices, each of n equally likely.

    Attributes:
        n: number of examples >= 1.
        k: of them in a step, >= 1.
        seed: >= 0.
    """

    n: int
    k: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.n, self.k, self.seed)

    def weights(self, indices: Tensor) -> Tensor:
        """Return the weights of these examples, (k,)."""
        return torch.full((len(indices),), 1 / len(indices), dtype=torch.float64)

    def draw(self, t: int) -> Draw:
        """Return the examples of step ``t`` >= 1."""
        indices = torch.randint(self.n, (self.k,), generator=_source(self.seed, t))
        return Draw(indices, self.weights(indices))


@dataclass(frozen=True)
class Nice:
    """k distinct indices of n, every set of k equally likely ("tau-nice").

    Attributes:
        n: number of examples >= 1.
        k: of them in a step, 1 <= k <= n.
        seed: >= 0.
    """

    n: int
    k: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.n, self.k, self.seed)
        if self.k > self.n:
            raise ValueError(about("k", f"must be at most n, as the indices are distinct; got k={self.k}, n={self.n}."))

    def weights(self, indices: Tensor) -> Tensor:
        """Return the weights of these examples, (k,)."""
        return torch.full((len(indices),), 1 / len(indices), dtype=torch.float64)

    def draw(self, t: int) -> Draw:
        """Return the examples of step ``t`` >= 1."""
        indices = torch.randperm(self.n, generator=_source(self.seed, t))[: self.k]
        return Draw(indices, self.weights(indices))


@dataclass(frozen=True)
class Importance:
    """k independent indices, i with probability p_i.

    Attributes:
        probabilities: (p_1, ..., p_n), positive, summing to 1; see ``proportional_to``.
        k: examples in a step, >= 1.
        seed: >= 0.
    """

    probabilities: tuple[float, ...]
    k: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _check(len(self.probabilities), self.k, self.seed)
        for p in self.probabilities:
            checks.real("probabilities", p, low=0, low_open=True, high=1)
        total = math.fsum(self.probabilities)
        if not math.isclose(total, 1.0, rel_tol=1e-9):
            raise ValueError(f"probabilities must sum to 1; got {total!r}. Use Importance.proportional_to(sizes).")

    @classmethod
    def proportional_to(cls, sizes: Tensor, k: int = 1, seed: int = 0) -> Importance:
        """Return the scheme with p_i proportional to ``sizes`` (n,), positive: the smoothness constants L_i, say."""
        if sizes.ndim != 1 or not len(sizes) or not bool((torch.isfinite(sizes) & (sizes > 0)).all()):
            raise ValueError(
                f"sizes must be a tensor (n,) of positive finite numbers; got shape {tuple(sizes.shape)}"
                f"{'' if not sizes.numel() else f', smallest {float(sizes.min())}'}. Drop the examples of size zero."
            )
        shares = sizes.double() / sizes.double().sum()
        return cls(tuple(float(share) for share in shares), k, seed)

    def weights(self, indices: Tensor) -> Tensor:
        """Return the weights of these examples, (k,)."""
        p = torch.tensor(self.probabilities, dtype=torch.float64)
        return 1 / (len(indices) * len(p) * p[indices])

    def draw(self, t: int) -> Draw:
        """Return the examples of step ``t`` >= 1."""
        # By inversion: torch.multinomial takes at most 2^24 categories.
        edges = torch.tensor(self.probabilities, dtype=torch.float64).cumsum(0)
        uniform = torch.rand(self.k, generator=_source(self.seed, t), dtype=torch.float64)
        indices = torch.searchsorted(edges, uniform * edges[-1], right=True).clamp_max(len(edges) - 1)
        return Draw(indices, self.weights(indices))


def _check(n: int, k: int, seed: int) -> None:
    checks.positive_int("n", n)
    checks.positive_int("k", k)
    checks.positive_int("seed", seed, minimum=0)


def _source(seed: int, t: int) -> torch.Generator:
    return randomness.generator(seed, checks.positive_int("t", t), 0)

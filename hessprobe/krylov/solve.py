"""Solutions of (A + s I) x = b by conjugate gradients or MINRES, with their residuals."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hessprobe import checks, display
from hessprobe.errors import NonFiniteError, NumericalWarning, about
from hessprobe.krylov.eigsh import eigsh
from hessprobe.operators import Counted, settled
from hessprobe.vectors import row_dots

METHODS = ("cg", "minres")

# Products for one right-hand side, by default.
_MOST = 1000
# Curvature below 0 by so many roundings of ||A|| is no rounding.
_NOISE = 16
# A run that begins again from the true residual must at least halve it.
_GAIN = 0.5

Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True, repr=False)
class Solution:
    """Solutions of (A + s I) x = b with true residuals and cost; see ``solve``.

    Attributes:
        x: in the form in which ``b`` was given.
        residuals: (k,) fp64, ||b - (A + s I) x|| from one true product for each right-hand side.
        relative: (k,) fp64, the same over ||b||; 0 for b = 0.
        converged: (k,) bool, relative <= rtol.
        error_bounds: (k,) fp64 with ||x - x*|| <= residual / s, a theorem where A is known to be positive semidefinite
            and s > 0; else None.
        shift: s.
        matvecs: products counted, those of the residuals among them.
        method: ``"cg"`` or ``"minres"``.
        seconds: wall-clock time.
        flags: ``"not-converged"``: some right-hand side is not solved to ``rtol``.

    Examples:
        >>> import torch, hessprobe as hp
        >>> found = hp.solve(torch.diag(torch.tensor([2.0, 1.0])).double(), torch.tensor([1.0, 1.0]).double())
        >>> found.x, bool(found.relative[0] <= 1e-5), found.error_bounds
        (tensor([0.5000, 1.0000], dtype=torch.float64), True, None)
    """

    x: Any
    residuals: Tensor
    relative: Tensor
    converged: Tensor
    error_bounds: Tensor | None
    shift: float
    matvecs: float
    method: str
    seconds: float
    flags: tuple[str, ...]

    def __repr__(self) -> str:
        count = len(self.residuals)
        return (
            f"Solution({int(self.converged.sum())} of {count} converged, largest relative residual "
            f"{float(self.relative.max()) if count else 0.0:.2g}, shift={self.shift:g}, method={self.method!r}, "
            f"matvecs={self.matvecs:g})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return residuals, bounds and cost as plain data for JSON, without the solutions."""
        names = ("residuals", "relative", "converged", "error_bounds", "shift", "matvecs", "method", "seconds", "flags")
        found: dict[str, Any] = display.plain({name: getattr(self, name) for name in names})
        return found


def solve(
    A: Any,
    b: Any,
    *,
    shift: float = 0.0,
    rtol: float = 1e-5,
    max_matvecs: int | None = None,
    method: str = "cg",
    seed: int | torch.Generator = 0,
) -> Solution:
    r"""Return x with (A + s I) x = b, to a relative residual ||b - (A + s I) x|| <= rtol ||b||.

    Conjugate gradients for a positive definite A + s I; MINRES, which minimises ||b - (A + s I) x|| over the Krylov
    space, for an indefinite one. All right-hand sides advance together, one block product a step. The residual of the
    recurrences is not believed: a product at the end makes the true one, and where that is larger than asked the run
    begins again from it, as long as it gains.

    A direction p with p^T (A + s I) p < 0 proves A + s I indefinite, and conjugate gradients stop there: their answer
    would be a saddle. The message then says which shift would do, from a bracket on lambda_min.

    Influence functions (Koh and Liang 2017) are such solves: with g the gradient of a test loss, the derivative of that
    loss along the weight of a training example with gradient g_i is -g_i^T (H + s I)^-1 g.

    Args:
        A: a ``LinearOperator`` (d, d), a symmetric matrix, or anything with ``shape`` and ``@``.
        b: a tensor or array (d,), or (k, d) with one right-hand side a row; or one as a dict or a list of tensors
            shaped like the parameters. The solution comes in the same form.
        shift: s, a finite number.
        rtol: relative residual, in (0, 1).
        max_matvecs: most products for one right-hand side, >= 1; 1000 by default. What is left is returned unconverged,
            with a warning and a flag.
        method: ``"cg"`` or ``"minres"``.
        seed: of the random start of the search for lambda_min, where one is made for the message.

    Returns:
        ``Solution``.

    Raises:
        TypeError, ValueError: arguments outside their ranges; or (``"cg"``) A + s I has a negative eigenvalue.
        NonFiniteError: ``b`` or a product holds nan or inf.
        UnsupportedError: A is made of labels that were drawn at random.

    Warns:
        NumericalWarning: some residual is larger than ``rtol`` asks.

    References:
        Hestenes, Stiefel (1952), "Methods of conjugate gradients for solving linear systems"; Paige, Saunders (1975),
        "Solution of sparse indefinite systems of linear equations"; Koh, Liang (2017), "Understanding black-box
        predictions via influence functions".

    Examples:
        >>> import torch, hessprobe as hp
        >>> A = hp.aslinearoperator(torch.diag(torch.tensor([4.0, 2.0, -1.0], dtype=torch.float64)))
        >>> found = hp.solve(A, torch.ones(3, dtype=torch.float64), shift=2.0)
        >>> found.x.round(decimals=4), bool(found.converged.all())
        (tensor([0.1667, 0.2500, 1.0000], dtype=torch.float64), True)
    """
    began = time.perf_counter()
    shift = checks.real("shift", shift)
    rtol = checks.real("rtol", rtol, low=0, high=1, low_open=True, high_open=True)
    most = _MOST if max_matvecs is None else checks.positive_int("max_matvecs", max_matvecs)
    method = checks.one_of("method", method, METHODS)
    operator = Counted(settled(A))
    given = operator._operand(b, columns=False)
    rows, scales = _scaled(_checked_rows(given.rows, operator))

    def apply(V: Tensor) -> Tensor:
        products = operator.matvecs(V).add(V, alpha=shift)
        if not bool(torch.isfinite(products).all()):
            raise NonFiniteError("A product with A must be finite; got nan or inf. Check the parameters and the loss.")
        return products

    try:
        run = partial(_cg, psd=operator.psd and shift >= 0) if method == "cg" else _minres
        x, residuals = _improved(apply, rows, rtol, most, run)
    except _NegativeCurvature as found:
        raise ValueError(_indefinite(operator, shift, found.quotient, seed)) from None
    norms = row_dots(rows, rows).sqrt()
    relative = torch.where(norms > 0, residuals / norms.where(norms > 0, torch.ones_like(norms)), residuals).cpu()
    converged = relative <= rtol
    x, residuals = (x * scales[:, None]).to(x.dtype), residuals * scales
    flags = () if bool(converged.all()) else ("not-converged",)
    if flags:
        warnings.warn(
            f"{int((~converged).sum())} of {len(converged)} solves did not reach rtol={rtol:g} in {most} products each "
            f"(largest relative residual {float(relative.max()):.3g}). Raise shift, rtol or max_matvecs.",
            NumericalWarning,
            stacklevel=2,
        )
    return Solution(
        x=given.restore(x),
        residuals=residuals.cpu(),
        relative=relative,
        converged=converged,
        error_bounds=residuals.cpu() / shift if operator.psd and shift > 0 else None,
        shift=shift,
        matvecs=operator.matvec_count,
        method=method,
        seconds=time.perf_counter() - began,
        flags=flags,
    )


class _NegativeCurvature(Exception):  # a finding, not a failure
    def __init__(self, quotient: float) -> None:
        super().__init__()
        self.quotient = quotient


def _checked_rows(rows: Tensor, operator: Counted) -> Tensor:
    rows = rows.detach()
    if not rows.is_floating_point() or rows.shape[0] == 0:
        raise ValueError(
            about(
                "b",
                f"must hold at least one right-hand side of floats; got {tuple(rows.shape)} of {rows.dtype}. "
                "Pass for example risk.gradient().",
            )
        )
    if not bool(torch.isfinite(rows).all()):
        raise NonFiniteError("b must be finite; got nan or inf. Check the gradient or the vector that it was made of.")
    return rows.to(device=operator.device, dtype=operator.dtype)


def _scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows over powers of two (k,) fp64, and these, so that squares neither vanish nor overflow."""
    # 2^1000 and 2^-1000 are numbers, what is beyond comes near enough.
    exponents = torch.frexp(rows.double().abs().amax(1))[1].clamp(-1000, 1000)
    scales = torch.ldexp(torch.ones(len(rows), dtype=torch.float64, device=rows.device), exponents)
    return (rows.double() / scales[:, None]).to(rows.dtype), scales


def _improved(
    apply: Apply, rows: Tensor, rtol: float, most: int, run: Callable[..., tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return solutions and the norms of their true residuals, begun again from these while that gains."""
    goals = rtol * row_dots(rows, rows).sqrt()
    x, rest = torch.zeros_like(rows), rows.clone()
    norms = row_dots(rest, rest).sqrt()
    left = torch.full((len(rows),), most, device=rows.device)
    open_ = norms > goals
    while bool(open_.any()):
        where = open_.nonzero()[:, 0]
        # One product is kept back for the true residual.
        steps, used = run(apply, rest[where], goals[where], left[where] - 1)
        candidate = x[where] + steps
        true = rows[where] - apply(candidate)
        left[where] -= used + 1
        size = row_dots(true, true).sqrt()
        better, gained = size < norms[where], size <= _GAIN * norms[where]
        x[where[better]], rest[where[better]] = candidate[better], true[better]
        norms[where[better]] = size[better]
        open_[where] = (size > goals[where]) & gained & (left[where] > 1)
    return x, norms


def _cg(apply: Apply, b: Tensor, goals: Tensor, most: Tensor, *, psd: bool) -> tuple[Tensor, Tensor]:
    """Return conjugate gradients' steps from 0 and the products used, a row each; residuals are recursive ones."""
    norm = 0.0
    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    rho = row_dots(r, r)
    used = torch.zeros_like(most)
    eps = torch.finfo(b.dtype).eps
    going = (rho.sqrt() > goals) & (most > 0)
    while bool(going.any()):
        i = going.nonzero()[:, 0]
        image = apply(p[i])
        used[i] += 1
        curvature, size = row_dots(p[i], image), row_dots(p[i], p[i])
        norm = max(norm, float((row_dots(image, image) / size).max()) ** 0.5)
        if not psd and bool((curvature < -_NOISE * eps * norm * size).any()):
            raise _NegativeCurvature(float((curvature / size).min()))
        # No curvature along p beyond rounding: A + s I is singular there, and no step is the right one.
        bent = curvature > eps * norm * size
        step = torch.where(
            bent, rho[i] / curvature.where(bent, torch.ones_like(curvature)), torch.zeros_like(curvature)
        )
        x[i] += (step[:, None] * p[i]).to(b.dtype)
        r[i] -= (step[:, None] * image).to(b.dtype)
        new = row_dots(r[i], r[i])
        p[i] = r[i] + ((new / rho[i])[:, None] * p[i]).to(b.dtype)
        rho[i] = new
        going[i] = bent & (new.sqrt() > goals[i]) & (used[i] < most[i])
    return x, used


def _minres(apply: Apply, b: Tensor, goals: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """Return MINRES' steps from 0 and the products used, a row each: Lanczos, and a QR of T by Givens rotations."""
    count, kind = len(b), b.dtype
    x, v_old, w, w_old = (torch.zeros_like(b) for _ in range(4))
    phi = row_dots(b, b).sqrt()
    v = (b / phi[:, None].clamp_min(torch.finfo(torch.float64).tiny)).to(kind)
    beta = torch.zeros(count, dtype=torch.float64, device=b.device)
    # The last rotation but one, and the last.
    c_old, s_old, c, s = (torch.full_like(beta, value) for value in (1.0, 0.0, 1.0, 0.0))
    used, going = torch.zeros_like(most), (phi > goals) & (most > 0)
    eps = torch.finfo(kind).eps
    while bool(going.any()):
        i = going.nonzero()[:, 0]
        image = apply(v[i])
        used[i] += 1
        alpha, length = row_dots(v[i], image), row_dots(image, image).sqrt()
        following = image - (alpha[:, None] * v[i]).to(kind) - (beta[i][:, None] * v_old[i]).to(kind)
        beta_new = row_dots(following, following).sqrt()
        # The column (beta, alpha, beta') of T turned by the two rotations before, then by a new one.
        epsilon, inner = s_old[i] * beta[i], c_old[i] * beta[i]
        delta, gamma_bar = c[i] * inner + s[i] * alpha, c[i] * alpha - s[i] * inner
        gamma = torch.hypot(gamma_bar, beta_new)
        fine = gamma > eps * length
        safe = gamma.where(fine, torch.ones_like(gamma))
        c_new, s_new = gamma_bar / safe, beta_new / safe
        w_new = v[i] - (delta[:, None] * w[i]).to(kind) - (epsilon[:, None] * w_old[i]).to(kind)
        w_new = (w_new / safe[:, None]).to(kind)
        x[i] += torch.where(fine[:, None], ((c_new * phi[i])[:, None] * w_new).to(kind), torch.zeros_like(w_new))
        phi[i] = torch.where(fine, -s_new * phi[i], phi[i])
        w_old[i], w[i], v_old[i] = w[i], w_new, v[i]
        invariant = beta_new <= eps * length
        v[i] = (following / beta_new.where(~invariant, torch.ones_like(beta_new))[:, None]).to(kind)
        beta[i], c_old[i], s_old[i], c[i], s[i] = beta_new, c[i], s[i], c_new, s_new
        going[i] = fine & ~invariant & (phi[i].abs() > goals[i]) & (used[i] < most[i])
    return x, used


def _indefinite(operator: Counted, shift: float, quotient: float, seed: int | torch.Generator) -> str:
    with warnings.catch_warnings():
        # Any bracket serves, a wide one asks for more than is needed.
        warnings.simplefilter("ignore", NumericalWarning)
        pairs = eigsh(operator, 1, "smallest", rtol=0.1, seed=seed, data_error=False)
    low = float(pairs.intervals.low[-1])
    low = low if math.isfinite(low) else 2 * float(pairs.values[-1])
    enough = float(f"{-1.1 * min(low, quotient - shift):.2g}")
    return about(
        "shift",
        f"must make A + shift * I positive definite for conjugate gradients; got {shift:g}, while A has an eigenvalue "
        f"of {float(pairs.values[-1]):.3g}. Pass shift={enough:g} or more, a positive semidefinite A such as "
        "GaussNewton(risk), or method='minres'.",
    )

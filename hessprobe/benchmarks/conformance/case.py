"""What a case, a tool and a verdict are, and how a tool is held to a case."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Batch = tuple[Tensor, Tensor]

# What a tool may be asked for, and the tensor it returns. Vectors are flat, in the order of named_parameters() without
# those that are frozen, a shared parameter once.
QUANTITIES: dict[str, str] = {
    "hvp": "(k, d): products of the Hessian with problem.vectors (k, d)",
    "hvp-differences": "(k, d): the same by finite differences of gradients",
    "ggn": "(k, d): products of the Gauss-Newton matrix with problem.vectors",
    "lambda-max": "(1,): the largest eigenvalue of the Hessian",
    "ends": "(2k,): the k largest and the k smallest eigenvalues, descending, k = problem.k",
    "trace": "(1,): an estimate of the trace from problem.n_probes probes with problem.seed",
    "trace-to-tolerance": "(problem.runs,): estimates of the trace by seeds 0, 1, ..., each asked for to problem.rtol",
    "trace-intervals": "(problem.runs, 2): 95 % intervals of the trace by seeds 0, 1, ..., of n_probes probes each",
    "density": "(m, 2): nodes and weights of the spectral density",
    "grid": "(m, 3): displacements x, y and the loss at theta + x u + y w, u and w the first rows of problem.vectors",
    "default-plane": "(m,): losses on a random plane with nothing but the tool's defaults",
    "worst-sharpness": "(1,): max of L(theta + u) - L(theta) over |u| <= problem.rho, with restarts at random points",
}

_UNITS = {"largest-tensor": " bytes", "host-syncs": " reads"}
RULES = ("equal", "at least", "at most", "repeatable", "unchanged")


@dataclass
class Problem:
    """What a tool is given.

    Attributes:
        module: the network, with its own parameters, buffers and mode.
        loss: (outputs, targets) -> mean over the examples (or tokens) of a batch.
        batches: (inputs, targets) pairs, of different sizes where the case says so.
        vectors: (k, d) in the dtype of the parameters.
        units: targets -> by how much a batch counts; its examples by default.
        k, n_probes, seed, runs, rtol, rho: see ``QUANTITIES``.
        memory: bytes that products may keep, or None.
    """

    module: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    batches: list[Batch]
    vectors: Tensor
    units: Callable[[Tensor], int] = len
    k: int = 1
    n_probes: int = 20
    seed: int = 0
    runs: int = 1
    rtol: float = 0.05
    rho: float = 0.1
    memory: int | None = None


# Of a Problem, or of the Training that optimizers are given.
Answer = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Tool:
    """A package behind its adapter.

    Attributes:
        name: of the package.
        version: for the table.
        answers: quantity -> function of a problem; what is not in it the tool does not offer.
    """

    name: str
    version: str
    answers: Mapping[str, Answer]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: short, with dashes.
        must_hold: one sentence.
        build: makes the problem anew; whatever it is, it has a ``module``.
        quantity: a name in ``QUANTITIES``, or in ``SAM_QUANTITIES``.
        truth: of a problem, by other means than any tool; None where the rule needs none.
        rule: ``"equal"``: |answer - truth| <= tolerance |truth|; ``"at least"`` and ``"at most"`` compare numbers;
            ``"repeatable"``: a second answer, with the global generator elsewhere, is the same to ``tolerance``
            (a mode that was changed is no matter here);
            ``"unchanged"``: nothing but what holds for every case, an answer that is finite and a module whose
            parameters, buffers, gradients and mode are what they were; here the global generator's state as well.
        tolerance: relative; of two norms where the answer is a vector.
        reduce: makes of problem and answer what is compared.
        refusal: regular expression of words that an error may hold instead of an answer: refusing is right too.
            None: it is not.
        counted: ``"largest-tensor"`` (bytes) or ``"host-syncs"``: compare this figure of the answer's making instead.
    """

    name: str
    must_hold: str
    build: Callable[[], Any]
    quantity: str
    truth: Callable[[Any], Tensor | float] | None = None
    rule: str = "equal"
    tolerance: float = 1e-10
    reduce: Callable[[Any, Tensor], Tensor] = lambda _, answer: answer
    refusal: str | None = None
    counted: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What came of a case.

    Attributes:
        status: ``"right"``, ``"wrong"``, ``"refused"`` (an error where none is due), ``"missing"`` (not offered).
        error: relative error, or the number that was compared; nan where there is none.
        note: what is wrong, in words.
    """

    status: str
    error: float = math.nan
    note: str = ""


def check(case: Case, tool: Tool) -> Verdict:
    """Hold a tool to a case."""
    answer = tool.answers.get(case.quantity)
    if answer is None:
        return Verdict("missing", note=f"{tool.name} has no {case.quantity}")
    problem = case.build()
    before, watch = _state(problem.module), _Watch()
    # Peers draw from it as a matter of course: that is one case, not every one.
    generator = torch.random.get_rng_state() if case.rule == "unchanged" else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with watch if case.counted else nullcontext():
                given = answer(problem)
            again = _elsewhere(answer, problem) if case.rule == "repeatable" else None
    except Exception as error:
        # Whatever a tool raises is what its user would see.
        said = f"{type(error).__name__}: {error}"
        changed = _changed(before, problem.module)
        allowed = case.refusal is not None and re.search(case.refusal, said) is not None and not changed
        return (
            Verdict("right", note=f"refused: {said}")
            if allowed
            else Verdict("refused", note=f"{said}; {changed}" if changed else said)
        )
    changed = _changed(before, problem.module)
    if case.rule == "repeatable" and changed.startswith("the mode of"):
        changed = ""
    if not changed and generator is not None and not torch.equal(generator, torch.random.get_rng_state()):
        changed = "the global generator was changed"
    if changed or not bool(torch.isfinite(given).all()):
        return Verdict("wrong", note=changed or "not finite")
    found = case.reduce(problem, given)
    if case.counted is not None:
        found = torch.tensor(watch.counts[case.counted])
    return _judged(case, problem, found, None if again is None else case.reduce(problem, again))


def _judged(case: Case, problem: Any, found: Tensor, again: Tensor | None) -> Verdict:
    if case.rule == "unchanged":
        return Verdict("right")
    if again is not None:
        truth = again.double()
    else:
        truth = torch.as_tensor(math.nan if case.truth is None else case.truth(problem), dtype=torch.float64)
    if case.rule not in ("equal", "repeatable"):
        number, limit = float(found), float(truth)
        holds = number >= limit if case.rule == "at least" else number <= limit
        return Verdict(
            "right" if holds else "wrong", number, f"{case.rule} {limit:.4g}{_UNITS.get(case.counted or '', '')}"
        )
    if found.shape != truth.shape:
        return Verdict("wrong", note=f"shape {tuple(found.shape)} where {tuple(truth.shape)} was asked")
    off = float((found.double() - truth).norm()) / (float(truth.norm()) or 1.0)
    return Verdict("right" if off <= case.tolerance else "wrong", off)


def _state(module: nn.Module) -> list[tuple[str, Any]]:
    """Return copies of all that a measurement has to leave alone."""
    kept: list[tuple[str, Any]] = []
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        kept.append((name, tensor.detach().clone()))
        kept.append((f"the gradient of {name}", None if tensor.grad is None else tensor.grad.clone()))
        kept.append((f"requires_grad of {name}", tensor.requires_grad))
    return kept + [(f"the mode of {name or 'the module'}", part.training) for name, part in module.named_modules()]


def _changed(before: list[tuple[str, Any]], module: nn.Module) -> str:
    after = _state(module)
    if [name for name, _ in after] != [name for name, _ in before]:
        return "the module has other parts than before"
    for (name, old), (_, new) in zip(before, after, strict=True):
        same = torch.equal(old, new) if isinstance(old, Tensor) and isinstance(new, Tensor) else old is new
        if not same:
            return f"{name} was changed"
    return ""


def _elsewhere(answer: Answer, problem: Any) -> Tensor:
    """Answer once more with the global generator in another state, which is put back."""
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(20_011)
        return answer(problem)
    finally:
        torch.random.set_rng_state(state)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class is untyped
    """Notes the size of the largest tensor that any operation makes, and how often a number is read from a device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's class is untyped
        self.counts = {"largest-tensor": 0, "host-syncs": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.counts["host-syncs"] += func is torch.ops.aten._local_scalar_dense.default
        sizes = [leaf.numel() * leaf.element_size() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.counts["largest-tensor"] = max(self.counts["largest-tensor"], *sizes, 0)
        return out

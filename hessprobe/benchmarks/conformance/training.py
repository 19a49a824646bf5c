"""What optimizers are given, how one is driven, and the same steps by the papers' formulas in plain torch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

F64 = torch.float64

# What an optimizer package may be asked for: for each rule, what came of the training that is given, as ``observe``
# says; used as the package's own page shows.
SAM_QUANTITIES: dict[str, str] = {
    "sam": "SAM",
    "sam-torch-closure": "SAM by step(closure) alone, as optimizers of torch have it",
    "asam": "ASAM with T = |w| for all tensors",
    "gsam": "GSAM with training.arguments alpha and a constant radius",
    "unified-sam": "Unified SAM with training.arguments lam",
    "wsam": "WSAM, coupled, with training.arguments gamma",
    "friendly-sam": "Friendly SAM with training.arguments sigma, lam",
    "gcsam": "SAM with centralized gradients",
    "looksam": "LookSAM with training.arguments k",
}
BASES: dict[str, Any] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
_HALVED_EVERY = 4

Batch = tuple[Tensor, Tensor]


@dataclass
class Training:
    """A network, its batches and how it is trained.

    Attributes:
        module: the network; a copy of it is trained.
        loss: (outputs, targets) -> mean over the batch.
        batches: one for each step.
        rho: radius.
        base: a name in ``BASES``.
        options: of the base optimizer.
        groups: module -> parameter groups; None: one group of all parameters.
        later: module -> a group that is added once the optimizer is made; None: none.
        arguments: of the rule.
        observe: ``"path"``: weights (steps, d) after each step, in the order of parameters(); ``"losses"``: (steps,)
            what step returned; ``"gradients"``: (1,) how many were taken; ``"buffers"``: floating buffers at the end.
        scheduled: halve the learning rate every 4 steps by a torch scheduler on the optimizer.
        saved_at: step before which the optimizer is made anew from its state_dict.
        pickled_at: step before which network and optimizer go through pickle.
    """

    module: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    batches: list[Batch]
    rho: float = 0.1
    base: str = "sgd"
    options: dict[str, Any] = field(default_factory=lambda: {"lr": 0.1})
    groups: Callable[[nn.Module], list[dict[str, Any]]] | None = None
    later: Callable[[nn.Module], dict[str, Any]] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    observe: str = "path"
    scheduled: bool = False
    saved_at: int | None = None
    pickled_at: int | None = None

    def grouped(self, module: nn.Module) -> list[dict[str, Any]]:
        """Return the parameter groups of ``module`` that the optimizer is made with."""
        if self.groups is not None:
            return self.groups(module)
        return [{"params": [p for p in module.parameters() if p.requires_grad]}]


class Closure:
    """Zeroes gradients, computes the loss, goes backward, returns the loss; counts its calls."""

    def __init__(self, module: nn.Module, training: Training, batch: Batch) -> None:
        self.module, self.loss, self.batch, self.calls = module, training.loss, batch, 0

    def __call__(self) -> Tensor:
        """Return the loss, with its gradient in the parameters."""
        self.calls += 1
        self.module.zero_grad()
        loss = self.loss(self.module(self.batch[0]), self.batch[1])
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        return loss


def drive(
    training: Training, make: Callable[[nn.Module, Training], Any], step: Callable[[Any, Closure], Any]
) -> Tensor:
    """Train a copy of the network and return what is to be observed.

    Args:
        training: what is trained and how.
        make: (module, training) -> the optimizer, around ``training.grouped(module)``.
        step: (optimizer, closure) -> what its step returns.
    """
    module = copy.deepcopy(training.module)
    optimizer = make(module, training)
    if training.later is not None:
        optimizer.add_param_group(training.later(module))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, _HALVED_EVERY, 0.5) if training.scheduled else None
    path, losses, gradients = [], [], 0
    for t, batch in enumerate(training.batches):
        if t == training.saved_at:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = make(module, training)
            optimizer.load_state_dict(saved)
        if t == training.pickled_at:
            module, optimizer = pickle.loads(pickle.dumps((module, optimizer)))
        closure = Closure(module, training, batch)
        losses.append(step(optimizer, closure))
        gradients += closure.calls
        if scheduler is not None:
            scheduler.step()
        path.append(_flat(p.detach() for p in module.parameters()))
    if training.observe == "losses":
        if any(loss is None for loss in losses):
            raise TypeError("step returned None where the loss was due")
        return torch.stack([torch.as_tensor(loss, dtype=F64).detach() for loss in losses])
    if training.observe == "gradients":
        return torch.tensor([float(gradients)])
    if training.observe == "buffers":
        return _flat(b for b in module.buffers() if b.is_floating_point())
    return torch.stack(path)


def _flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors])


@dataclass
class Formula:
    """What a rule may use at a step, all flat and fp64.

    Attributes:
        gradient: w -> grad L(w) of this step's batch; what a displaced pass does to buffers is undone.
        w: the weights (d,).
        g: their gradient.
        radius: (d,) of each coordinate.
        t: number of the step, from 1.
        shapes: of the tensors.
        kept: from step to step.
        arguments: of the rule.
    """

    gradient: Callable[[Tensor], Tensor]
    w: Tensor
    g: Tensor
    radius: Tensor
    t: int
    shapes: list[torch.Size]
    kept: dict[str, Tensor]
    arguments: dict[str, Any]

    def above(self, direction: Tensor) -> Tensor:
        """Return the gradient at w + rho u(direction)."""
        return self.gradient(self.w + self.radius * _unit(direction))


def _parts(v: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    parts: Any = torch.split(v, [shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _unit(v: Tensor) -> Tensor:
    size = v.norm()
    return v / size if size > 0 else v


def sam(at: Formula) -> Tensor:
    """Return grad L(w + rho u(g))."""
    return at.above(at.g)


def asam(at: Formula) -> Tensor:
    """Return grad L(w + rho T^2 g / |T g|), T = |w|."""
    return at.gradient(at.w + at.radius * at.w**2 * at.g / (at.w * at.g).norm())


def gsam(at: Formula) -> Tensor:
    """Return g_p - alpha (g - <g, g_p>/|g_p|^2 g_p), g_p = grad L(w + rho u(g))."""
    above = at.above(at.g)
    across = at.g - (at.g @ above) / (above @ above) * above
    found: Tensor = above - at.arguments["alpha"] * across
    return found


def unified_sam(at: Formula) -> Tensor:
    """Return grad L(w + rho (1 - lam + lam/|g|) g)."""
    lam = at.arguments["lam"]
    return at.gradient(at.w + at.radius * (1 - lam + lam / at.g.norm()) * at.g)


def wsam(at: Formula) -> Tensor:
    """Return (1 - a) g + a grad L(w + rho u(g)), a = gamma/(1 - gamma)."""
    a = at.arguments["gamma"] / (1 - at.arguments["gamma"])
    found: Tensor = (1 - a) * at.g + a * at.above(at.g)
    return found


def friendly_sam(at: Formula) -> Tensor:
    """Return grad L(w + rho u(g - sigma m)), m <- lam m + (1 - lam) g; the first m is g, the first step SAM's."""
    if "m" not in at.kept:
        at.kept["m"] = at.g
        return at.above(at.g)
    direction = at.g - at.arguments["sigma"] * at.kept["m"]
    at.kept["m"] = at.arguments["lam"] * at.kept["m"] + (1 - at.arguments["lam"]) * at.g
    return at.above(direction)


def gcsam(at: Formula) -> Tensor:
    """Return grad L(w + rho u(c)), c = g less its mean over the inputs of an output, where there are two dimensions."""
    shaped = _parts(at.g, at.shapes)
    return at.above(_flat(p - p.mean(1, keepdim=True) if p.ndim > 1 else p for p in shaped))


def by_formula(rule: Callable[[Formula], Tensor]) -> Callable[[Training], Tensor]:
    """Return what comes of a training by a formula: the gradient of the rule, then a step of torch's own optimizer."""

    def followed(training: Training) -> Tensor:
        module = copy.deepcopy(training.module).double()
        parameters = list(module.parameters())
        moving = [p for p in parameters if p.requires_grad]
        groups = training.grouped(module) + ([] if training.later is None else [training.later(module)])
        radii = {id(p): group.get("rho", training.rho) for group in groups for p in group["params"]}
        radius = torch.cat([torch.full((p.numel(),), radii[id(p)], dtype=F64) for p in moving])
        plain = [{name: value for name, value in group.items() if name != "rho"} for group in groups]
        base = BASES[training.base](plain, **training.options)
        kept: dict[str, Tensor] = {}
        path, losses = [], []
        for t, (inputs, targets) in enumerate(training.batches, 1):
            if training.scheduled:
                for group in base.param_groups:
                    group["lr"] = group["lr"] / 2 if t > 1 and (t - 1) % _HALVED_EVERY == 0 else group["lr"]
            batch = (inputs.double(), targets)
            w = _flat(moving)
            loss, g, used = _gradient(module, moving, training, batch)
            losses.append(loss)

            def displaced(at: Tensor, batch: Batch = batch, w: Tensor = w) -> Tensor:
                buffers = [b.clone() for b in module.buffers()]
                _put(moving, at)
                found = _gradient(module, moving, training, batch)[1]
                _put(moving, w)
                for b, old in zip(module.buffers(), buffers, strict=True):
                    b.copy_(old)
                return found

            shapes = [p.shape for p in moving]
            d = rule(Formula(displaced, w, g, radius, t, shapes, kept, training.arguments))
            for p, part, reached in zip(moving, _parts(d, shapes), used, strict=True):
                p.grad = part if reached else None
            base.step()
            path.append(_flat(parameters))
        if training.observe == "losses":
            return torch.stack(losses)
        if training.observe == "buffers":
            return _flat(b for b in module.buffers() if b.is_floating_point())
        return torch.stack(path)

    return followed


def _gradient(
    module: nn.Module, parameters: Sequence[Tensor], training: Training, batch: Batch
) -> tuple[Tensor, Tensor, list[bool]]:
    loss = training.loss(module(batch[0]), batch[1])
    slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = _flat(torch.zeros_like(p) if s is None else s for p, s in zip(parameters, slopes, strict=True))
    return loss.detach(), flat, [s is not None for s in slopes]


def _put(parameters: Sequence[Tensor], w: Tensor) -> None:
    with torch.no_grad():
        for p, part in zip(parameters, _parts(w, [p.shape for p in parameters]), strict=True):
            p.copy_(part)


class _Network(nn.Module):
    """Two layers with something between them, a frozen layer behind, a parameter that nothing uses."""

    def __init__(self, middle: nn.Module, odd: bool) -> None:
        super().__init__()
        self.first, self.middle, self.second = nn.Linear(4, 5), middle, nn.Linear(5, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False) if odd else nn.Identity()
        if odd:
            self.unused = nn.Parameter(torch.ones(2))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.frozen(self.second(torch.tanh(self.middle(self.first(inputs)))))
        return outputs


def training(
    steps: int = 12,
    *,
    batchnorm: bool = False,
    odd: bool = False,
    flat: bool = False,
    dtype: torch.dtype = F64,
    **more: Any,
) -> Training:
    """A small classifier and a batch for each step.

    Args:
        steps: of the training.
        batchnorm: with BatchNorm, in training mode.
        odd: with a frozen layer and a parameter that nothing uses.
        flat: with a loss whose gradient is 0 everywhere.
        dtype: of parameters and inputs.
        more: fields of the training.
    """
    with torch.random.fork_rng(devices=[]):
        module = _Network(nn.BatchNorm1d(5) if batchnorm else nn.Identity(), odd).to(dtype).train()
    source = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=source, dtype=F64) + 0.1)
    batches = [
        (torch.randn(16, 4, generator=source, dtype=F64).to(dtype), torch.randint(3, (16,), generator=source))
        for _ in range(steps)
    ]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (0 * outputs).sum() if flat else F.cross_entropy(outputs, targets)

    return Training(module, loss, batches, **more)


def two_groups(module: nn.Module, *, rho: float | None = None) -> list[dict[str, Any]]:
    """Return a group for each layer, with learning rates and weight decays of their own, and radii rho and 2 rho."""
    network: Any = module
    radii: list[dict[str, Any]] = [{}, {}] if rho is None else [{"rho": rho}, {"rho": 2 * rho}]
    return [
        {"params": list(network.first.parameters()), "lr": 0.1, "weight_decay": 0.0, **radii[0]},
        {"params": list(network.second.parameters()), "lr": 0.03, "weight_decay": 0.01, **radii[1]},
    ]


def first_layer(module: nn.Module) -> list[dict[str, Any]]:
    """Return a group of the first layer."""
    return two_groups(module)[:1]


def second_layer(module: nn.Module) -> dict[str, Any]:
    """Return the group of the second layer."""
    return two_groups(module)[1]


def start(training: Training) -> Tensor:
    """Return the weights that a training begins with (1, d)."""
    return _flat(training.module.parameters())[None]

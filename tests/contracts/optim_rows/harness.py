"""Runs an optimizer and its specification side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from contracts.optim_rows.problem import Flat, FlatAdamW, FlatSGD, batch, criterion
from contracts.optim_rows.problem import make_module as make_module
from contracts.optim_rows.row import Row, Step, base_adamw, base_sgd
from torch import Tensor, nn

from hessprobe.optim import registry

BASES: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {"sgd": base_sgd, "adamw": base_adamw}


def parameter_groups(module: nn.Module, rho: float, two: bool) -> list[dict[str, Any]]:
    """Return one group, or two with radii rho and 2 rho and learning rates of their own."""
    parameters = list(module.parameters())
    if not two:
        return [{"params": parameters, "rho": rho}]
    return [{"params": parameters[:3], "rho": rho}, {"params": parameters[3:], "rho": 2 * rho, "lr": 0.05}]


def build(row: Row, module: nn.Module, base: str = "sgd", two: bool = False, **options: Any) -> Any:
    """Return the optimizer of ``row`` on ``module``; ``options`` override its arguments."""
    entry = registry.get(row.name)
    rho = options.pop("rho", row.rho)
    arguments = {**dict(entry.arguments), **row.arguments, "rho": rho, **options}
    if row.needs_model:
        arguments.setdefault("model", module)
    groups = parameter_groups(module, rho, two)
    if entry.standalone:
        return entry.load()(groups, **arguments)
    return entry.load()(BASES[base](groups), **arguments)


class Closures:
    """The closures of step ``t`` on ``module``, counting their calls; ``scale`` multiplies the loss."""

    def __init__(self, module: nn.Module, t: int, scale: float = 1.0, scaler: Any = None) -> None:
        self.module, self.scale, self.scaler = module, scale, scaler
        self.x, self.y = batch(t)
        self.backwards, self.forwards = 0, 0

    def backward(self) -> Tensor:
        self.backwards += 1
        self.module.zero_grad()
        loss = self.scale * criterion(self.module(self.x), self.y)
        self._scaled(loss).backward()
        return loss

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def loss(self) -> Tensor:
        self.forwards += 1
        return self.scale * criterion(self.module(self.x), self.y)

    def per_sample(self, subset: Tensor | None = None) -> Tensor:
        rows = slice(None) if subset is None else subset
        return self.scale * nn.functional.cross_entropy(self.module(self.x[rows]), self.y[rows], reduction="none")

    def outputs(self) -> tuple[Tensor, Tensor]:
        outputs = self.module(self.x)
        return outputs, self.scale * criterion(outputs, self.y)

    def shards(self, count: int) -> list[Callable[[], Tensor]]:
        def one(rows: Tensor) -> Callable[[], Tensor]:
            def closure() -> Tensor:
                self.module.zero_grad()
                loss = self.scale * criterion(self.module(self.x[rows]), self.y[rows])
                self._scaled(loss).backward()
                return loss

            return closure

        return [one(rows) for rows in torch.arange(len(self.x)).chunk(count)]


def step(optimizer: Any, module: nn.Module, t: int, scale: float = 1.0, **options: Any) -> Tensor:
    """Take step ``t`` with the closure that the optimizer's kind asks for."""
    closure, given = asked_for(optimizer, Closures(module, t, scale, options.get("scaler")))
    return optimizer.step(closure, **given, **options)


def asked_for(optimizer: Any, closures: Closures) -> tuple[Any, dict[str, Any]]:
    """Return the closure of the optimizer's kind, and ``loss=`` where it wants one."""
    given = {"loss": closures.loss} if optimizer.needs_loss else {}
    if optimizer.closure_kind == "per-sample":
        return closures.per_sample, given
    if optimizer.closure_kind == "outputs":
        return closures.outputs, given
    count = getattr(optimizer, "shards", 1)
    return closures.shards(count) if count > 1 else closures.backward, given


def points_of_step(optimizer: Any, module: nn.Module, t: int, **options: Any) -> list[Tensor]:
    """Take step ``t`` and return the weights (d,) at every forward pass of it."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda *_: seen.append(flat_weights(module)))
    step(optimizer, module, t, **options)
    handle.remove()
    return seen


def flat_weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def specification(row: Row, base: str, two: bool, steps: int, scale: float = 1.0) -> list[Tensor]:
    """Return the weights after each step by the specification alone."""
    module = make_module()
    groups = parameter_groups(module, row.rho, two)
    built = build(row, module, base, two)
    spread = [(g, p.numel()) for g in built.param_groups for p in g["params"]]

    def coordinates(name: str, default: float) -> Tensor:
        return torch.cat([torch.full((n,), float(g.get(name, default)), dtype=torch.float64) for g, n in spread])

    radius = torch.cat([torch.full((p.numel(),), g["rho"], dtype=torch.float64) for g in groups for p in g["params"]])
    flat = Flat(radius, coordinates("lr", 0.0), coordinates("weight_decay", 0.0), scale)
    stepper = FlatSGD(0.9) if base == "sgd" else FlatAdamW((0.9, 0.999), 1e-8)
    w, path = flat_weights(module), []
    for t in range(1, steps + 1):
        flat.t, flat.w = t, w
        flat.memory["base"] = stepper
        given = row.spec(flat, w)
        result = given if isinstance(given, Step) else Step(given)
        if result.replace is not None:
            w = result.replace
        else:
            lr = flat.lr if result.lr is None else torch.full_like(flat.lr, float(result.lr))
            w = stepper.step(w, result.gradient, lr, flat.weight_decay)
            w = w if result.after is None else result.after(w)
        path.append(w)
    return path

"""The exact diagonal of one batch's Gauss-Newton matrix, from every example's gradient of every output direction.

    diag G_b = sum_s sum_c (J_s^T l_sc)^2,    L_s L_s^T = d^2 l / df_s df_s,  l_sc the columns of L_s.

References:
    Dangel, Kunstner, Hennig (2020), "BackPACK: packing more into backprop" (the diagonal layer by layer).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from hessprobe.errors import UnsupportedError
from hessprobe.hvp.output_space import loss_hessians, square_roots
from hessprobe.objective.base import BatchLoss
from hessprobe.objective.terms import EmpiricalBatch

# Per-example gradients held at once, in entries.
_CHUNK = 1 << 24


def batch_diagonal(batch: BatchLoss, theta: Tensor) -> Tensor | None:
    """Return diag G of one batch, fp64 (d,); None where it is not cheap (many outputs) or cannot be had per example."""
    with torch.no_grad():
        outputs = batch.outputs(theta).detach()
    blocks = loss_hessians(batch, outputs)
    if blocks is None or not isinstance(batch, EmpiricalBatch) or not batch.separable:
        return None
    roots = square_roots(blocks).to(outputs.dtype)
    squares = _linear_layers(batch, theta, roots)
    return _example_gradients(batch, theta, roots) if squares is None else squares


def diagonal_cost(batch: BatchLoss, theta: Tensor) -> float:
    """Return the cost of ``batch_diagonal`` in products of the batch: C backward passes of 2 units to 6 a product."""
    with torch.no_grad():
        return float(batch.outputs(theta)[0].numel()) / 3


def _example_gradients(batch: EmpiricalBatch, theta: Tensor, roots: Tensor) -> Tensor | None:
    """One example at a time under vmap: any model that has batching rules."""
    rows = max(1, _CHUNK // (theta.numel() * roots.shape[2]))
    total = torch.zeros(theta.numel(), dtype=torch.float64, device=theta.device)

    def squares(example: object, root: Tensor) -> Tensor:
        def outputs(at: Tensor) -> Tensor:
            single = torch.utils._pytree.tree_map(
                lambda leaf: leaf[None] if isinstance(leaf, Tensor) else leaf, example
            )
            return batch.outputs_of(at, single).reshape(-1)

        _, pull = vjp(outputs, theta)  # type: ignore[misc]  # two values without has_aux
        gradients: Tensor = vmap(pull)(root.T.contiguous())[0]
        return gradients.square().sum(0)

    try:
        for start in range(0, batch.examples, rows):
            part = batch.slice(start, min(start + rows, batch.examples))
            total += vmap(squares)(part.inputs, roots[start : start + rows]).sum(0).double()
    except (RuntimeError, ValueError, UnsupportedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return None  # no batching rule for one example at a time
    return total


def _linear_layers(batch: EmpiricalBatch, theta: Tensor, roots: Tensor) -> Tensor | None:
    """Layer by layer where all parameters belong to ``nn.Linear`` on (B, in) inputs, each used once.

    An example's weight gradient is the outer product of the slope at the layer's output and its input, so that the
    squares add up to one matrix product: sum_s (slope_s^2)(input_s^2)^T. No per-example gradient is ever formed.
    """
    layers = _owners(batch)
    if layers is None:
        return None
    calls = _record_calls(batch, theta, layers)
    if calls is None:
        return None
    outputs, inputs, results = calls
    diagonal = {name: torch.zeros(shape, dtype=torch.float64, device=theta.device) for name, shape in _shapes(batch)}
    for column in roots.unbind(2):
        slopes = torch.autograd.grad(outputs, list(results.values()), column.view_as(outputs), retain_graph=True)
        for name, slope in zip(results, slopes, strict=True):
            square = slope.square()
            if f"{name}.weight" in diagonal:
                diagonal[f"{name}.weight"] += (square.T @ inputs[name].square()).double()
            if f"{name}.bias" in diagonal:
                diagonal[f"{name}.bias"] += square.sum(0).double()
    return batch.model.layout.join(diagonal.values())


def _shapes(batch: EmpiricalBatch) -> list[tuple[str, torch.Size]]:
    layout = batch.model.layout
    return list(zip(layout.names, layout.shapes, strict=True))


def _owners(batch: EmpiricalBatch) -> dict[str, nn.Linear] | None:
    """Return the linear layers that own all parameters in theta, by dotted name; None where others own some."""
    owners: dict[str, nn.Linear] = {}
    shared = [id(p) for _, p in batch.model.module.named_parameters(remove_duplicate=False)]
    for name in batch.model.layout.names:
        path = (batch.model.prefix + name).rpartition(".")[0]
        module = batch.model.module.get_submodule(path)
        if type(module) is not nn.Linear or any(shared.count(id(p)) > 1 for p in module.parameters()):
            return None
        owners[name.rpartition(".")[0]] = module
    return owners


def _record_calls(
    batch: EmpiricalBatch, theta: Tensor, layers: dict[str, nn.Linear]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]] | None:
    """Return (outputs, layer inputs, layer outputs) of one forward pass; None where a layer does not fit."""
    inputs: dict[str, Tensor] = {}
    results: dict[str, Tensor] = {}
    fits = True

    def watch(name: str) -> object:
        def hook(_: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
            nonlocal fits
            fits = fits and name not in inputs and len(args) == 1 and args[0].dim() == 2
            inputs[name], results[name] = args[0].detach(), result

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in layers.items()]  # type: ignore[arg-type]
    try:
        with torch.enable_grad():
            outputs = batch.outputs(theta.detach().clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    if not fits or set(inputs) != set(layers) or not outputs.requires_grad:
        return None
    return outputs, inputs, results

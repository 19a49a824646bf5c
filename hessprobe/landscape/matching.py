"""Neuron permutations that bring one network near another without changing what it computes."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hessprobe.errors import UnsupportedError
from hessprobe.invariance.actions import Site, State, Touch
from hessprobe.invariance.run import Runner
from hessprobe.invariance.sites import Found, find_sites
from hessprobe.objective import EmpiricalRisk
from hessprobe.objective.copying import state_of

_ROUNDS = 100
_ADVICE = "Leave the matching out: the straight line between the networks as they are needs none."


def match(target: EmpiricalRisk, other: EmpiricalRisk) -> tuple[State, dict[str, int]]:
    """Return the tensors of ``other`` with its hidden units in the order that is nearest to ``target``.

    Weight matching: coordinate descent on the sum over tensors of <W(target), P W(other)>. A permutation P_l acts on
    all tensors that make or take the units l: of a hidden layer, of the heads' common width, of a residual stream with
    everything that writes to it and reads from it. Where that is possible is found by running the network
    (``invariance.find_sites``), each place verified by its outputs. Given the other permutations each one is a linear
    assignment problem.

    Args:
        target: the risk of the network to come near to.
        other: of a network of the same architecture; its module is not changed.

    Returns:
        Parameters and buffers after the permutations, and how many units moved at each place.

    Raises:
        UnsupportedError: the network has no units that can be reordered, or theta leaves parameters out.

    References:
        Ainsworth, Hayase, Srinivasa (2023), "Git Re-Basin: merging models modulo permutation symmetries".
    """
    parameters = {name for name, _ in other.module.named_parameters()}
    left = sorted(parameters - set(other.layout.names))
    if left:
        raise UnsupportedError(
            f"Neurons cannot be matched: {left[0]!r} is not among the parameters of the line, but belongs to neurons "
            f"that are. Take all parameters. {_ADVICE}"
        )
    found = find_sites(other)
    sites = found.of("permutation")
    if not sites:
        raise UnsupportedError(f"Neurons cannot be matched: {_reason(found)}. {_ADVICE}")
    there, here = (Runner.of(risk).state() for risk in (target, other))
    orders = [torch.arange(site.size) for site in sites]
    for _ in range(_ROUNDS):
        before = list(orders)
        for index, site in enumerate(sites):
            rest = [(each, order) for i, (each, order) in enumerate(zip(sites, orders, strict=True)) if i != index]
            orders[index] = _assigned(site, there, _reordered(here, rest), parameters)
        if all(torch.equal(a, b) for a, b in zip(orders, before, strict=True)):
            break
    matched = _reordered(here, list(zip(sites, orders, strict=True)))
    _require_unchanged(other, here, matched)
    moved = {
        site.where: int((order != torch.arange(site.size)).sum()) for site, order in zip(sites, orders, strict=True)
    }
    return {name: matched[name] for name in state_of(other)}, moved


def _reason(found: Found) -> str:
    skipped = [f"{skip.where}: {skip.reason}" for skip in found.skips if skip.kind == "permutation"]
    return skipped[0] if skipped else "the network has no hidden layer whose units could be reordered"


def _reordered(state: State, pairs: list[tuple[Site, Tensor]]) -> State:
    for site, order in pairs:
        state = site.reordered(state, order)
    return state


def _assigned(site: Site, there: State, here: State, parameters: set[str]) -> Tensor:
    """Return the order of the units of one place that is nearest, all else being as it is in ``here``."""
    gain = torch.zeros(site.size, site.size, dtype=torch.float64)
    for touch in site.touches:
        # Statistics are not weights; in the objective they would count with units of their own.
        if touch.name in parameters:
            first, second = (_by_unit(touch, state[touch.name], site.size) for state in (there, here))
            gain += (first @ second.T).cpu()
    _, columns = linear_sum_assignment(gain.numpy(), maximize=True)
    return torch.from_numpy(columns)


def _by_unit(touch: Touch, tensor: Tensor, count: int) -> Tensor:
    """Return a tensor as (units, everything that belongs to one), fp64."""
    rows = tensor.detach().double().movedim(touch.axis or 0, 0)
    labels = touch.unit_labels(tensor)
    # A flattened image gives each channel several entries, in the same order for each.
    return torch.stack([rows[labels == unit].reshape(-1) for unit in range(count)])


def _require_unchanged(other: EmpiricalRisk, before: State, after: State) -> None:
    runner = Runner.of(other)
    off = runner.distance(before, after, few=True)
    # Each place was verified by itself.
    if not off <= 10 * runner.tolerance:
        raise UnsupportedError(
            f"Neurons cannot be matched: all permutations together move the outputs by {off:.1e} of the largest. "
            f"{_ADVICE}"
        )

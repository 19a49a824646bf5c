"""Every place of a network where a function-preserving transform can act, each one verified by its outputs.

Which unit every entry of a value belongs to, found by sending the numbers of the units through the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hessprobe.invariance.actions import Site, State, Touch
from hessprobe.invariance.attention import Skip, attention_sites
from hessprobe.invariance.groups import _NORMS, _SUMS, Group, Grouping, Part
from hessprobe.invariance.run import Runner
from hessprobe.invariance.trace import Call, Graph, Value, is_elementwise
from hessprobe.objective import EmpiricalRisk


class Unlabeled(Exception):
    """The units cannot be told apart somewhere; the message says where."""


def unit_labels(graph: Graph, group: Group, *, order: bool = False) -> tuple[int, dict[int, Tensor]]:
    """Return the number of units of a group, and the unit 0 .. n-1 of each entry along the axis of each part.

    The numbers 1 .. n are put in where the units are made and the recorded functions are called on them: pooling,
    reshaping and relu pass them on as they are.

    Args:
        graph: the run.
        group: of it.
        order: let elementwise functions and normalizations pass the numbers as well, as permutations pass them.

    Raises:
        Unlabeled: a function mixes units, or layers of different widths meet.
    """
    if group.uniform:
        raise Unlabeled(group.uniform[0])
    fields: dict[Value, Tensor] = {}
    makers = {part.value: part for part in group.parts if part.role == "makes"}
    count = 0
    for value in group.values:
        call = graph.made_by(value)
        if value in makers:
            shape = graph.shapes[value]
            count = shape[makers[value].channel]
            fields[value] = _numbered(call.outputs[value[1]], makers[value].channel)
        else:
            fields[value] = _passed(call, value, fields, order)
        if float(fields[value].max()) > count:
            raise Unlabeled(f"{call.described} mixes units")
    labels = {index: _along(fields[part.value], part.channel) for index, part in enumerate(group.parts)}
    if any(int(each.max()) >= count for each in labels.values()):
        raise Unlabeled("layers of different widths meet")
    return count, labels


def _numbered(like: Tensor, channel: int) -> Tensor:
    shape = [1] * like.ndim
    shape[channel] = -1
    numbers = torch.arange(1, like.shape[channel] + 1, dtype=like.dtype, device=like.device)
    return numbers.view(shape).expand(like.shape).clone()


def _passed(call: Call, value: Value, fields: dict[Value, Tensor], order: bool) -> Tensor:
    inputs = [source for source in dict.fromkeys(call.values) if source in fields]
    if not inputs:
        raise Unlabeled(f"{call.described} begins a group")
    first = fields[inputs[0]]
    if call.name in _SUMS:
        every = [_broadcast(fields[one], call) for one in inputs]
        if any(not torch.equal(field, every[0]) for field in every[1:]):
            raise Unlabeled(f"{call.described} adds units of different layers")
        return every[0]
    if order and (call.name in _NORMS or is_elementwise(call, inputs[0])):
        return first
    passed = call.replay_one({inputs[0]: first}, value[1])
    if passed is None:
        raise Unlabeled(f"{call.described} mixes units")
    rounded = passed.round()
    if not bool(((passed - rounded).abs() < 1e-3).all()) or float(rounded.min()) < 1:
        raise Unlabeled(f"{call.described} mixes units")
    return rounded


def _broadcast(field: Tensor, call: Call) -> Tensor:
    try:
        return field.expand(call.outputs[0].shape)
    except RuntimeError as error:
        raise Unlabeled(f"{call.described} adds units of different layers") from error


def _along(field: Tensor, channel: int) -> Tensor:
    rows = field.movedim(channel, -1).reshape(-1, field.shape[channel])
    if not bool((rows == rows[0]).all()):
        raise Unlabeled("units lie along several axes")
    return rows[0].long() - 1


# The strength with which sites are tried; a power of two adds no rounding of its own.
_TRIAL = 2.0
_SEED = 5


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in a network.

    Attributes:
        sites: verified ones, in the order of the network.
        skips: what was left out, with reasons.
    """

    sites: tuple[Site, ...]
    skips: tuple[Skip, ...]

    def of(self, kind: str) -> tuple[Site, ...]:
        """Return the sites of one transform."""
        return tuple(site for site in self.sites if site.kind == kind)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The transforms that act somewhere."""
        return tuple(dict.fromkeys(site.kind for site in self.sites))


def find_sites(risk: EmpiricalRisk) -> Found:
    """Return where transforms can act on the module of a risk.

    The model is run once on real inputs and the functions it calls are recorded. Values that share a scale, or an order
    of units, make a group; a group is free where its functions pass the scale (tried by calling them). Each site is
    then tried: outputs must stay at the weights and at disturbed weights, so that a dead layer deceives nobody.

    Args:
        risk: its module is copied and left alone.

    Raises:
        UnsupportedError: the module cannot be copied.
    """
    runner = Runner.of(risk)
    graph = runner.graph()
    sites, skips = [], []
    for candidates, missing in (_scales(graph, runner), _orders(graph, runner), attention_sites(graph)):
        sites += candidates
        skips += missing
    return _verified(runner, sites, skips)


def _scales(graph: Graph, runner: Runner) -> tuple[list[Site], list[Skip]]:
    sites: list[Site] = []
    skips: list[Skip] = []
    for group in Grouping(graph, runner.module).groups():
        if not group.made:
            continue
        where, norms = _where(group), any(part.role == "norm" for part in group.parts)
        kinds = ("norm-scale",) if norms else ("layer-rescaling", "unit-rescaling")
        if group.fixed:
            skips += [Skip(kind, where, reason) for kind in kinds for reason in group.obstacles[:1]]
            continue
        if not group.taken:
            continue
        sites.append(Site(kinds[0], where, tuple(Touch(part.name, part.power) for part in group.parts), 1))
        if norms:
            continue
        try:
            sites.append(_labeled("unit-rescaling", graph, group, where))
        except Unlabeled as error:
            skips.append(Skip("unit-rescaling", where, str(error)))
    return sites, skips


def _orders(graph: Graph, runner: Runner) -> tuple[list[Site], list[Skip]]:
    sites: list[Site] = []
    skips: list[Skip] = []
    for group in Grouping(graph, runner.module, order=True).groups():
        if not group.made:
            continue
        where = _where(group)
        if group.fixed:
            skips += [Skip("permutation", where, reason) for reason in group.obstacles[:1]]
            continue
        if not group.taken:
            continue
        try:
            site = _labeled("permutation", graph, group, where, order=True)
        except Unlabeled as error:
            skips.append(Skip("permutation", where, str(error)))
            continue
        if site.size > 1:
            sites.append(site)
    return sites, skips


def _labeled(kind: str, graph: Graph, group: Group, where: str, *, order: bool = False) -> Site:
    count, labels = unit_labels(graph, group, order=order)
    touches = tuple(Touch(part.name, part.power, part.axis, labels[i]) for i, part in enumerate(group.parts))
    return Site(kind, where, touches, count)


def _where(group: Group) -> str:
    """Return ``"layers.0 -> layers.2"``: who makes the values, and who takes them."""
    sides = []
    for roles in (("makes",), ("takes", "norm")):
        layers = dict.fromkeys(_layer(part) for part in group.parts if part.role in roles)
        names = list(layers)
        shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        sides.append(shown)
    return " -> ".join(side for side in sides if side)


def _layer(part: Part) -> str:
    return part.name.rpartition(".")[0] or part.name


def _verified(runner: Runner, sites: Iterable[Site], skips: list[Skip]) -> Found:
    state = runner.state()
    places = (state, runner.disturbed(state, _SEED))
    kept = []
    for site in sites:
        moved = max(_moved(runner, site, place) for place in places)
        if moved <= runner.tolerance:
            kept.append(site)
        else:
            skips.append(Skip(site.kind, site.where, f"the outputs move by {moved:.1e} of the largest"))
    return Found(tuple(kept), tuple(skips))


def _moved(runner: Runner, site: Site, state: State) -> float:
    generator = torch.Generator().manual_seed(_SEED)
    return runner.distance(state, site.move(state, _TRIAL, generator), few=True)

r"""Squared norms of the gradients of single examples, by one forward and one backward pass.

For outputs f_i of example i and directions u_i in output space, |J_i^T u_i|^2 for every i. Parameters of linear,
convolutional, embedding and norm layers never have their per-example gradients written out (``layer_gradients``): the
backward pass stops at what the layers returned, which is a third of the work of a gradient. A parameter of another
layer is differentiated example by example inside the smallest module around it; where there is none, through the whole
model with the other parameters held constant.

That a layer's rows are examples which do not see each other, and that its calls are all that its parameters do, is
checked: slopes must grow by a factor of its own with each example's direction, and the gradients of the examples must
add up to the gradient of the batch, parameter by parameter. What fails goes to the next way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from hessprobe.errors import UnsupportedError
from hessprobe.hvp.engines import graph_bytes
from hessprobe.hvp.layer_gradients import Layer, Use, has_rule, joint_squares, normalised, use_of
from hessprobe.objective.batches import EmpiricalBatch
from hessprobe.vectors import ParameterLayout, entries_within

# Per-example gradients of layers without a rule that are held at once, in entries.
_CHUNK = 1 << 24
# Directions taken together, and the most entries that their slopes at what the layers returned may have.
_TOGETHER, _HELD = 8, 1 << 26
_NO_RULE = (RuntimeError, ValueError, IndexError, TypeError, AttributeError, UnsupportedError)


@dataclass(frozen=True)
class Call:
    """One call of a module during the forward pass.

    Attributes:
        inputs: positional arguments, keyword arguments.
        result: the tensor it returned (the first, of a tuple), in the graph.
        normalised: see ``Layer``.
    """

    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    result: Tensor
    normalised: Tensor | None


@dataclass(frozen=True)
class Ways:
    """How each parameter's per-example gradients are had in a batch, by name.

    Attributes:
        rules: (path of a layer, ``"weight"`` or ``"bias"``) of every use.
        modules: path of the module around the parameter.
        rest: differentiated through the whole model.
    """

    rules: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    rest: tuple[str, ...] = ()


def example_squares(
    batch: EmpiricalBatch, theta: Tensor, directions: Iterable[Tensor], ways: Ways | None = None
) -> tuple[Tensor, Ways] | None:
    """Return |J_i^T u_i|^2 for every direction u (B, ..., C) and example i, fp64 (draws, B), and how they were had.

    Use inside the ``evaluating()`` context of the risk.

    Args:
        batch: whose examples do not see each other.
        theta: (d,).
        directions: of the shape of the outputs, at least one; taken one at a time.
        ways: of an earlier call for this batch; found and checked where None.

    Returns:
        None where there is no batching rule for single examples, or examples see each other.
    """
    work, found = _Work(batch, theta), []
    try:
        for group in _groups(directions, work.together):
            ways = work.checked() if ways is None else ways
            if ways is None:
                return None
            found.append(work.squares(ways, group))
        return torch.cat(found), ways or Ways()
    except _NO_RULE as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return None


def summed_squares(
    batch: EmpiricalBatch, theta: Tensor, directions: Iterable[Tensor]
) -> tuple[Tensor, dict[str, float]] | None:
    """Return sum_u |J_i^T u_i|^2 over the directions: of every example, fp64 (B,), and of every parameter tensor.

    As ``example_squares``, which see; the tensors add up to the examples.
    """
    names: dict[str, float] = {}
    work = _Work(batch, theta)
    total = torch.zeros(batch.examples, dtype=torch.float64, device=theta.device)
    try:
        ways = work.checked()
        if ways is None or ways.rest:
            return None
        for group in _groups(directions, work.together):
            total += work.squares(ways, group, names).sum(0)
        return total, names
    except _NO_RULE as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return None


def held_bytes(batch: EmpiricalBatch, theta: Tensor) -> int:
    """Return about the bytes that ``summed_squares`` holds at once for one of its examples."""
    work = _Work(batch.slice(0, 1), theta)
    results = sum(storage.result.nbytes for calls in work.calls.values() for storage in calls)
    # What the layers returned is held twice, lest what is written into it later reaches the copy; and their slopes.
    return graph_bytes(work.outputs, ignore=[work.theta]) + (1 + work.together) * results


def _groups(directions: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    left = iter(directions)
    while group := list(islice(left, size)):
        yield group


class _Work:
    """One batch, its forward pass recorded."""

    def __init__(self, batch: EmpiricalBatch, theta: Tensor) -> None:
        self.batch, self.examples = batch, batch.examples
        self.model, self.layout = batch.model, batch.model.layout
        self.theta = theta.detach().clone().requires_grad_()
        self.pieces = self.layout.split(self.theta.detach())
        self.modules = dict(self.model.module.named_modules())
        # The rules square numbers; of complex parameters moduli would have to be.
        self.owners = {} if self.model.pairs else _owners(self.model.module, self.layout, self.model.prefix)
        self.calls: dict[str, list[Call]] = {}
        self.outputs = self._recorded()

    @property
    def together(self) -> int:
        """How many directions are taken at once: unfolding the input of a convolution then serves them all."""
        held = sum(call.result.numel() for calls in self.calls.values() for call in calls)
        return max(1, min(_TOGETHER, entries_within(_HELD) // max(held, 1)))

    def _recorded(self) -> Tensor:
        paths = dict.fromkeys(path for uses in self.owners.values() for owner, _ in uses for path in _around(owner))
        handles = [self.modules[path].register_forward_hook(self._hook(path), with_kwargs=True) for path in paths]
        try:
            with torch.enable_grad():
                return self.batch.outputs(self.theta)
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
            first = result[0] if isinstance(result, tuple) and result else result
            if not isinstance(first, Tensor) or not first.requires_grad:
                self.calls.setdefault(path, []).append(Call(((), {}), torch.empty(0), None))
                return result
            scaled = None
            if has_rule(module) and args and isinstance(args[0], Tensor):
                scaled = normalised(module, args[0].detach())
            given = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
            self.calls.setdefault(path, []).append(Call(given, first, scaled))
            # What an activation writes in place later is the copy.
            copy = first.clone()
            return (copy, *result[1:]) if isinstance(result, tuple) else copy

        return hook

    # -- choosing ------------------------------------------------------------------------------------------------

    def checked(self) -> Ways | None:
        """Return the ways that pass both checks in a generic direction; None where some parameter has none."""
        # Not one of the draws: those may cancel to nothing.
        direction = _generic(self.outputs)
        if not self.outputs.requires_grad:
            return Ways()
        (gradient,) = torch.autograd.grad(self._along(direction), self.theta, retain_graph=True)
        wanted = self.layout.split(gradient)
        ruled = {name: uses for name, uses in self.owners.items() if all(self._fits(path) for path, _ in uses)}
        held = {name: path for name in self.owners if (path := self._module_around(name)) is not None}
        asked = dict.fromkeys([path for uses in ruled.values() for path, _ in uses] + list(held.values()))
        slopes = self._slopes(asked, [direction])
        factors = own_factors(self.examples, direction)
        scaled = self._slopes(asked, [_by_example(factors, direction)])
        alone = {path for path in asked if _scale(slopes[path], scaled[path], factors)}
        rules, modules, rest = {}, {}, []
        for name, own in wanted.items():
            uses = ruled.get(name)
            if uses and all(path in alone for path, _ in uses) and self._sums_up(self._uses(name, uses, slopes), own):
                rules[name] = uses
            elif held.get(name) in alone and self._module_sums_up(name, held[name], slopes, own):
                modules[name] = held[name]
            else:
                rest.append(name)
        ways = Ways(rules, modules, tuple(rest))
        return ways if self._rest_sums_up(ways, direction, wanted) else None

    def _fits(self, path: str) -> bool:
        """Return whether the layer at ``path`` has a rule and was called on examples."""
        calls = self.calls.get(path, [])
        return has_rule(self.modules[path]) and bool(calls) and all(self._arranged(path, call) for call in calls)

    def _arranged(self, path: str, call: Call) -> bool:
        args, kwargs = call.inputs
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or not call.result.requires_grad:
            return False
        # Sums over the positions of an example are others where examples have positions of their own number.
        if not (_is_plain(args[0]) and _is_plain(call.result)):
            return False
        if len(args[0]) == self.examples == len(call.result):
            return True
        # Positions of all examples in one row, example by example.
        flat = isinstance(self.modules[path], nn.Linear | nn.LayerNorm | nn.RMSNorm | nn.Embedding)
        return flat and len(args[0]) % self.examples == 0 and len(args[0]) == len(call.result)

    def _module_around(self, name: str) -> str | None:
        """Return the smallest module that was called once, on examples, and holds every use of a parameter."""
        paths = [owner for owner, _ in self.owners[name]]
        for path in _around(paths[0]):
            inside = all(other == path or other.startswith(f"{path}.") for other in paths)
            calls = self.calls.get(path, [])
            if not inside or len(calls) != 1 or calls[0].result.dim() == 0 or not _is_plain(calls[0].result):
                continue
            if len(calls[0].result) == self.examples:
                return path
        return None

    def _sums_up(self, uses: list[Use], wanted: Tensor) -> bool:
        squares = joint_squares(uses)
        if squares is None:
            return False
        total = torch.stack([use.total().reshape(wanted.shape) for use in uses]).sum(0)
        return _same(total, wanted, squares)

    def _module_sums_up(self, name: str, path: str, slopes: Mapping[str, list[list[Tensor]]], wanted: Tensor) -> bool:
        try:
            squares, total = self._inside(path, [name], slopes[path][0][0])
        except _NO_RULE as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False
        return _same(total[name], wanted, squares)

    def _rest_sums_up(self, ways: Ways, direction: Tensor, wanted: Mapping[str, Tensor]) -> bool:
        if not ways.rest:
            return True
        try:
            squares, total = self._through_the_model(ways.rest, direction)
        except _NO_RULE as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False
        own = torch.cat([wanted[name].flatten() for name in ways.rest])
        return _same(total, own, squares)

    # -- computing -----------------------------------------------------------------------------------------------

    def squares(self, ways: Ways, directions: Sequence[Tensor], names: dict[str, float] | None = None) -> Tensor:
        """Return the squares (D, B) for some directions; those of every parameter are added to ``names``."""
        total = torch.zeros(len(directions), self.examples, dtype=torch.float64, device=self.theta.device)
        paths = [path for uses in ways.rules.values() for path, _ in uses] + list(ways.modules.values())
        slopes = self._slopes(dict.fromkeys(paths), directions)
        for name, uses in ways.rules.items():
            squares = joint_squares(self._uses(name, uses, slopes))
            if squares is None:
                raise UnsupportedError(f"The uses of {name} have no rule together.")
            total += squares
            if names is not None:
                names[name] = names.get(name, 0.0) + float(squares.sum())
        for draw, direction in enumerate(directions):
            for path in dict.fromkeys(ways.modules.values()):
                inside = [name for name, own in ways.modules.items() if own == path]
                # Together where nobody asks for each: a module is run once more for every call.
                for held in [inside] if names is None else [[name] for name in inside]:
                    squares = self._inside(path, held, slopes[path][0][draw])[0]
                    total[draw] += squares
                    if names is not None:
                        names[held[0]] = names.get(held[0], 0.0) + float(squares.sum())
            if ways.rest:
                total[draw] += self._through_the_model(ways.rest, direction)[0]
        return total

    def _slopes(self, paths: Mapping[str, None], directions: Sequence[Tensor]) -> dict[str, list[list[Tensor]]]:
        """Return the slopes (B, ...), one a direction, at what each call of each module returned."""
        results = [call.result for path in paths for call in self.calls[path]]
        if not results:
            return {}
        passes = [
            torch.autograd.grad(self._along(direction), results, retain_graph=True, materialize_grads=True)
            for direction in directions
        ]
        found = ([self._by_examples(slope) for slope in slopes] for slopes in zip(*passes, strict=True))
        return {path: [next(found) for _ in self.calls[path]] for path in paths}

    def _along(self, direction: Tensor) -> Tensor:
        # As a cotangent of its own it would be checked by what takes a second to import, see ``pulled_back``.
        with torch.enable_grad():
            return torch.dot(self.outputs.reshape(-1), direction.reshape(-1).to(self.outputs.dtype))

    def _by_examples(self, tensor: Tensor) -> Tensor:
        if len(tensor) == self.examples:
            return tensor
        return tensor.reshape(self.examples, -1, *tensor.shape[1:])

    def _uses(self, name: str, uses: Sequence[tuple[str, str]], slopes: Mapping[str, list[list[Tensor]]]) -> list[Use]:
        shape, found = self.pieces[name].shape, []
        for path, kind in uses:
            for call, own in zip(self.calls[path], slopes[path], strict=True):
                scaled = None if call.normalised is None else self._by_examples(call.normalised)
                layer = Layer(self.modules[path], self._by_examples(call.inputs[0][0]), scaled)
                found.append(use_of(layer, kind, own, shape))
        return found

    def _inside(self, path: str, names: Sequence[str], slope: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the squares (B,) and the summed gradients of parameters inside one module, example by example."""
        (call,) = self.calls[path]
        start = path + "."
        tensors = {self.model.prefix + n: t for n, t in {**self.model.constants, **self.pieces}.items()}
        held = {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}
        local = {(self.model.prefix + name)[len(start) :]: name for name in names}
        own = {key: held[key] for key in local}

        given, structure = tree_flatten(call.inputs)
        mapped = [isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == self.examples for leaf in given]

        def gradients(example: list[Tensor], cotangent: Tensor) -> dict[str, Tensor]:
            own_rows = iter(example)
            leaves = [next(own_rows)[None] if row else leaf for leaf, row in zip(given, mapped, strict=True)]
            args, kwargs = tree_unflatten(leaves, structure)

            def run(parameters: dict[str, Tensor]) -> Tensor:
                result = functional_call(self.modules[path], {**held, **parameters}, args, kwargs)
                first: Tensor = result[0] if isinstance(result, tuple) else result
                return first[0]

            _, pull = vjp(run, own)  # type: ignore[misc]  # two values without has_aux
            (pulled,) = pull(cotangent)
            return dict(pulled)

        squares = torch.zeros(self.examples, dtype=torch.float64, device=slope.device)
        total = {name: torch.zeros_like(self.pieces[name]) for name in names}
        with self.batch.context():
            for part in self._parts(sum(tensor.numel() for tensor in own.values())):
                rows_in = [leaf[part] for leaf, row in zip(given, mapped, strict=True) if row]
                found = vmap(gradients)(rows_in, slope[part])
                for key, rows in found.items():
                    squares[part] += rows.flatten(1).double().square().sum(1)
                    total[local[key]] += rows.sum(0)
        return squares, total

    def _through_the_model(self, names: Sequence[str], direction: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squares (B,) and the summed gradients of some parameters, example by example."""
        start = {name: self.pieces[name] for name in names}
        rest = {name: piece for name, piece in self.pieces.items() if name not in start}

        def gradients(example: Any, cotangent: Tensor) -> Tensor:
            def outputs(at: dict[str, Tensor]) -> Tensor:
                theta = self.layout.join({**rest, **at}[name] for name in self.layout.names)
                single = tree_map(lambda leaf: leaf[None] if isinstance(leaf, Tensor) else leaf, example)
                return self.batch.outputs_of(theta, single)[0]

            _, pull = vjp(outputs, start)  # type: ignore[misc]  # two values without has_aux
            (pulled,) = pull(cotangent)
            return torch.cat([pulled[name].flatten() for name in names])

        size = sum(piece.numel() for piece in start.values())
        squares = torch.zeros(self.examples, dtype=torch.float64, device=self.theta.device)
        total = torch.zeros(size, dtype=self.theta.dtype, device=self.theta.device)
        for part in self._parts(size):
            found = vmap(gradients)(self.batch.slice(part.start, part.stop).inputs, direction[part])
            squares[part] = found.double().square().sum(1)
            total += found.sum(0)
        return squares, total

    def _parts(self, entries: int) -> Iterator[slice]:
        rows = max(1, entries_within(_CHUNK) // max(entries, 1))
        for start in range(0, self.examples, rows):
            yield slice(start, min(start + rows, self.examples))


def _owners(module: nn.Module, layout: ParameterLayout, prefix: str) -> dict[str, list[tuple[str, str]]]:
    """Return (path of the module, name in it) of every use of each parameter of the layout."""
    uses: dict[int, list[tuple[str, str]]] = {}
    own = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        path, _, kind = name.rpartition(".")
        uses.setdefault(id(parameter), []).append((path, kind))
        own[name] = id(parameter)
    return {name: uses[own[prefix + name]] for name in layout.names}


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested


def _around(path: str) -> list[str]:
    """Return the path and those of the modules around it, smallest first, without the model itself."""
    parts = path.split(".") if path else []
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _generic(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def own_factors(count: int, like: Tensor) -> Tensor:
    """Return a factor for every example, (B,), that no other has: of few random signs, all are often the same."""
    place = torch.arange(count, dtype=torch.float64)
    size = 0.5 + (place * 0.6180339887498949) % 1.0
    return torch.where(place % 2 == 0, size, -size).to(like)


def _by_example(factors: Tensor, tensor: Tensor) -> Tensor:
    return factors.view(-1, *[1] * (tensor.dim() - 1)) * tensor


def _scale(plain: Sequence[list[Tensor]], scaled: Sequence[list[Tensor]], factors: Tensor) -> bool:
    """Return whether every example's slopes grow with its own direction, and with no other."""
    for one, other in zip(plain, scaled, strict=True):
        missing = (_by_example(factors, one[0]) - other[0]).double().norm()
        if float(missing) > _tolerance(one[0]) * float(one[0].double().norm()):
            return False
    return True


def _same(total: Tensor, wanted: Tensor, squares: Tensor) -> bool:
    """Return whether the examples' gradients add up, to rounding of their sizes: a sum may cancel to nothing."""
    scale = math.sqrt(max(float(squares.sum()), float(wanted.double().square().sum())))
    return float((total.reshape(wanted.shape) - wanted).double().norm()) <= _tolerance(total) * scale


def _tolerance(tensor: Tensor) -> float:
    return 1e-8 if tensor.dtype == torch.float64 else 1e-3

"""The tensors of a file that belong to a network: found among its entries, and freed of the names around theirs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from hessprobe.errors import CheckpointError
from hessprobe.training.checkpoint import load_weights

# Where programs put the weights of a network, the entry that is meant first; averaged weights are another network.
KEYS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "student", "weights")
_AVERAGED = re.compile(r"ema|average|swa|teacher|target|momentum", re.IGNORECASE)
# Entries that hold tensors of other things.
_OTHER = re.compile(r"optim|sched|scaler|callbacks|loops|rng|hyper_parameters|metrics|history", re.IGNORECASE)
# In torch.distributed.checkpoint the state of the optimizer stands beside the weights, its keys joined by dots.
_OPTIMIZER = re.compile(r"optim(izer)?s?(_state(s|_dict)?)?\.")
# What wrappers put into names, at any place: never part of a network's own.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
_USUAL = re.compile(r"(?:(?:module|model|net|network|backbone)\.)*")
_DEPTH = 4
# Names of the model that are looked for behind a prefix.
_TRIED = 4
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Found:
    """The tensors of a network in a file.

    Attributes:
        label: the entry and the prefix they were found under, as ``--key`` takes it; "" for the file itself.
        tensors: by the names of the network.
        others: labels that fit as well and were not taken.
        unused: names of the entry that belong to something beside the network.
    """

    label: str
    tensors: dict[str, Tensor]
    others: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of the choice."""
        said = [f"weights taken from {self.label!r}"] if self.label else []
        if self.others:
            listed = ", ".join(repr(each) for each in self.others)
            said.append(f"the file also holds {listed}, which fit as well: choose by --key")
        if self.unused:
            said.append(f"{len(self.unused)} tensors beside the model left out, such as {self.unused[0]}")
        return tuple(said)


def entries(tree: Any) -> dict[str, dict[str, Tensor]]:
    """Return the dictionaries of named tensors in ``tree``, by the path of their keys joined with ``/``.

    Names are freed of what ``torch.compile``, FSDP and activation checkpointing put into them.
    """
    return dict(_entries(tree, "", 0))


def main_entry(held: Mapping[str, dict[str, Tensor]]) -> tuple[str, dict[str, Tensor]]:
    """Return the label and the tensors of the entry that is meant where nothing is known of the model."""
    label = min(held, key=lambda each: (_rank(each), -len(held[each])))
    return label, held[label]


def find_weights(model: nn.Module, tree: Any, source: str, key: str | None = None) -> Found:
    """Return the tensors in ``tree`` that are the state of ``model``.

    An entry fits where, behind one prefix that all share, it has every name of the model in its shape; the prefix may
    be empty. Tied tensors need one name, counters of BatchNorm none. Among several that fit the usual names of entries
    win, and averaged weights (``ema``) lose.

    Args:
        model: what the tensors are for.
        tree: of ``read_contents``.
        source: what to call the file in a message.
        key: the entry to take, with the prefix behind a further ``/`` where there is one; None searches.

    Raises:
        CheckpointError: no entry fits (names the tensors that lack, are unknown or of another shape), several do with
            nothing to choose by, or there is no such key.
    """
    held = entries(tree)
    if not held:
        raise CheckpointError(
            f"{source} holds no state_dict (names with tensors). Save model.state_dict() and load it."
        )
    fitting = [found for label, tensors in held.items() for found in _fits(model, label, tensors)]
    if key is not None:
        return _chosen(model, key, held, fitting, source)
    if not fitting:
        _refuse(model, held, source)
    ranked = sorted(fitting, key=lambda each: _rank(each.label))
    best = [each for each in ranked if _rank(each.label) == _rank(ranked[0].label)]
    if len(best) > 1 and any(not _same(each.tensors, best[0].tensors) for each in best[1:]):
        listed = ", ".join(repr(each.label) for each in best)
        raise CheckpointError(f"{source} holds several networks that fit: {listed}. Choose one with --key.")
    others = tuple(each.label for each in ranked[1:] if not _same(each.tensors, ranked[0].tensors))
    return Found(ranked[0].label, ranked[0].tensors, others, ranked[0].unused)


def place_weights(model: nn.Module, found: Found, source: str) -> tuple[str, ...]:
    """Copy the tensors into ``model``, in place, and return what a reader should know.

    Weights in half precision are measured in float32, and a model that is built in it is made float32: products of
    second derivatives lose all digits there. Where all weights are float64, so is the model.

    Raises:
        CheckpointError: see ``load_weights``.
    """
    stored = {tensor.dtype for tensor in found.tensors.values() if tensor.is_floating_point()}
    names = ", ".join(sorted(str(each).removeprefix("torch.") for each in stored))
    if stored == {torch.float64}:
        model.double()
    else:
        model.float()
    load_weights(model, _completed(model, found.tensors), source)
    low = any(each.itemsize < 4 for each in stored)
    return (*found.notes, *((f"weights stored in {names} are measured in float32",) if low else ()))


def _entries(tree: Any, label: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(tree, Mapping) or depth > _DEPTH:
        return
    own = {
        name: value
        for name, value in tree.items()
        if isinstance(value, Tensor) and isinstance(name, str) and not _OPTIMIZER.match(name)
    }
    if own:
        yield label, {_unwrapped(name): value for name, value in own.items()}
    for name, value in tree.items():
        if isinstance(value, Mapping) and not _OTHER.search(str(name)):
            yield from _entries(value, f"{label}/{name}" if label else str(name), depth + 1)


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _fits(model: nn.Module, label: str, tensors: Mapping[str, Tensor]) -> Iterator[Found]:
    wanted = model.state_dict()
    for prefix in _prefixes(wanted, tensors):
        inside = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        taken = {name: inside[name] for name in wanted if name in inside}
        complete = _completed(model, taken)
        unknown = [name for name in inside if name not in wanted]
        if unknown or any(name not in complete for name in wanted):
            continue
        if all(complete[name].shape == tensor.shape for name, tensor in wanted.items()):
            unused = tuple(name for name in tensors if not name.startswith(prefix))
            yield Found(_joined(label, prefix), taken, unused=unused)


def _prefixes(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Return every prefix behind which a name of the model stands, the empty one first."""
    first = next((name for name in wanted if name in tensors), None)
    found = {"": None} if first is not None else {}
    for target in list(wanted)[:_TRIED]:
        for name in tensors:
            if name.endswith(f".{target}"):
                found[name[: -len(target)]] = None
    return list(found)


def _completed(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` with those a file may leave out: the other names of tied ones, and counters of BatchNorm."""
    state = model.state_dict(keep_vars=True)
    twins: dict[int, str] = {id(tensor): name for name, tensor in state.items() if name in tensors}
    complete = dict(tensors)
    for name, tensor in state.items():
        if name in complete:
            continue
        if id(tensor) in twins:
            complete[name] = tensors[twins[id(tensor)]]
        elif name.rpartition(".")[2] == _COUNTER:
            complete[name] = tensor.detach()
    return complete


def _chosen(
    model: nn.Module, key: str, held: Mapping[str, dict[str, Tensor]], fitting: list[Found], source: str
) -> Found:
    wanted = key.rstrip("/.")
    exact = [each for each in fitting if each.label.rstrip("/.") == wanted]
    inside = [each for each in fitting if each.label.startswith(f"{wanted}/")]
    if exact or inside:
        return (exact or inside)[0]
    if key not in held:
        known = dict.fromkeys((*(each.label for each in fitting), *held))
        listed = ", ".join(repr(each) for each in known if each)
        mend = f"Choose one of {listed}." if listed else "Its tensors stand at the top: leave --key out."
        raise CheckpointError(f"{source} has no entry {key!r}. {mend}")
    _refuse(model, {key: held[key]}, source)


def _refuse(model: nn.Module, held: Mapping[str, dict[str, Tensor]], source: str) -> NoReturn:
    """Say what the entry that comes nearest lacks.

    Raises:
        CheckpointError: always.
    """
    wanted = model.state_dict()
    best: tuple[int, str, dict[str, Tensor]] = (-1, "", {})
    for label, tensors in held.items():
        for prefix in _prefixes(wanted, tensors) or [""]:
            inside = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            shared = sum(name in wanted for name in inside)
            if shared > best[0]:
                best = (shared, _joined(label, prefix), inside)
    _, label, inside = best
    where = f"{source} (entry {label!r})" if label else source
    load_weights(model, _completed(model, inside), where)
    raise CheckpointError(f"{where} does not fit the model. Check that it belongs to this model and its arguments.")


def _joined(label: str, prefix: str) -> str:
    return f"{label}/{prefix}" if label and prefix else label or prefix


def _rank(label: str) -> tuple[int, int, int]:
    entry, _, prefix = label.rpartition("/") if label.endswith(".") else (label, "", "")
    first = entry.split("/")[0]
    usual = 0 if _USUAL.fullmatch(prefix) else 1
    order = 0 if not entry else KEYS.index(first) + 1 if first in KEYS else len(KEYS) + 1
    return (1 if _AVERAGED.search(label) else 0, usual, order)


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

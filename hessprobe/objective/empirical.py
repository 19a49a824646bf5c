"""The mean loss of a module over data: the bridge from ``nn.Module`` to an objective on a flat vector.

Whether the loss of a batch is the mean of its parts, as a loss must be whose batches are weighted by their size.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hessprobe import checks
from hessprobe.errors import DataError, NonFiniteError, UnsupportedError
from hessprobe.objective import base, checking, modes
from hessprobe.objective import batches as data_tools
from hessprobe.objective.base import BatchLoss, LossRule, Objective
from hessprobe.objective.batches import (
    EmpiricalBatch,
    ForwardBatch,
    ForwardCall,
    FunctionalModel,
    KeptBatches,
    forward_weight,
)
from hessprobe.objective.checking import MISFITS
from hessprobe.objective.modes import (
    Noted,
    functional_dropout,
    held_by_the_loss,
    own_parameters,
    train_modes,
    unreduced,
)
from hessprobe.objective.outputs import OutputForm
from hessprobe.objective.vocabulary import ChunkedLogits, chunked_logits
from hessprobe.vectors import ParameterLayout

# Batches up to which every one is cut in two and compared; of more, this many.
MOST = 32


def label_range(targets: Any) -> tuple[float, float]:
    """Return where in its targets a batch may differ from others: its labels' ends, or how many values are missing.

    What a loss leaves out stands outside the classes, below 0 or above them, or is nan where targets are numbers.

    Args:
        targets: of a batch.

    Returns:
        The smallest and the largest label; (0, number of nan) for targets that are no labels.
    """
    if not isinstance(targets, Tensor) or _is_special(targets) or targets.numel() == 0 or targets.is_complex():
        return 0.0, 0.0
    if targets.is_floating_point():
        return 0.0, float(targets.isnan().sum())
    low, high = targets.aminmax()
    return float(low), float(high)


def to_compare(ranges: Sequence[tuple[float, float]], most: int = MOST) -> list[int]:
    """Return which batches to cut and compare: all of them, or ``most`` that are likely to hold what others do not.

    These are the first, the last (the ragged one), those with the smallest and the largest label or the most missing
    values, and others evenly spread.

    Args:
        ranges: of every batch, see ``label_range``.
        most: how many, >= 4.
    """
    count = len(ranges)
    if count <= most:
        return list(range(count))
    lowest = min(range(count), key=lambda i: ranges[i][0])
    highest = max(range(count), key=lambda i: ranges[i][1])
    found = {0, count - 1, lowest, highest}
    between = [round(i * (count - 1) / (most - 1)) for i in range(most)]
    found |= set([index for index in between if index not in found][: most - len(found)])
    return sorted(found)


def unlike_a_mean(term: BatchLoss, theta: Tensor) -> str:
    """Refuse a loss of unknown make that is no mean over the batch's examples where it is known what it is instead.

    The loss of the whole batch is compared with those of two parts of it: a sum would weight batches by their size once
    more, and a mean over targets that are not ignored must be told so. Costs two forward passes of the batch.

    Args:
        term: the batch.
        theta: (d,) where.

    Returns:
        A sentence for every number measured on it, where the loss is something else (its examples see each other, or
        have weights); else ``""``.

    Raises:
        ValueError: with the three values.
    """
    if not isinstance(term, EmpiricalBatch) or term.rule.known or term.examples < 2 or not term.separable:
        return ""
    middle = _place_to_cut(term.targets, term.examples)
    try:
        parts = term.slice(0, middle), term.slice(middle, term.examples)
        if not all(part.size > 0 for part in parts):
            return ""
        with torch.no_grad():
            whole, one, other = (float(batch(theta)) for batch in (term, *parts))
    except MISFITS as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return ""  # a loss for batches of one size only, or sparse rows, which have no slices
    # A part of ignored targets alone has no loss: 0/0.
    scale = abs(one) + abs(other) if math.isfinite(one + other) else abs(whole)
    mean = (parts[0].size * one + parts[1].size * other) / term.size
    rounding = torch.finfo(theta.dtype).eps ** 0.5 * scale
    if abs(whole - mean) <= rounding or not math.isfinite(whole):
        return ""
    told = f"batch {term.index} has {whole:.6g}, its two parts have {one:.6g} and {other:.6g}"
    if abs(whole - one - other) <= rounding and abs(whole - mean) > 0.01 * scale:
        raise ValueError(
            f"loss must be a mean over the batch; got {term.rule.name}, which sums: {told}. Divide by the number of "
            "examples, or pass weighting='examples' to have it weighted as if it were a mean."
        )
    left_out = _left_out(parts, (whole, one, other), rounding)
    if left_out is not None:
        raise ValueError(
            f"loss must be a mean over the batch's {term.rule.unit}; got {term.rule.name}, which leaves out targets of "
            f"{left_out}: {told}. Pass torch.nn.CrossEntropyLoss(ignore_index={left_out}) itself, which is weighted by "
            "the targets that count, or weighting='examples' to have every batch weighted by its size."
        )
    return (
        f"the loss {term.rule.name} of a batch is not the mean of its parts ({told}): the number is that of these "
        "batches, and others would give another"
    )


def _is_special(targets: Tensor) -> bool:
    """Return whether these are no plain rows of numbers: sparse, or nested."""
    return targets.is_nested or targets.layout != torch.strided


def _place_to_cut(targets: Any, examples: int) -> int:
    """Return where to cut a batch in two: where the parts hold the most different shares of what may be left out.

    Halves with equally many ignored targets would have the mean of the whole. No part has less than a quarter.
    """
    middle = examples // 2
    if not isinstance(targets, Tensor) or _is_special(targets):
        return middle
    if targets.ndim == 0 or len(targets) != examples or targets.numel() == 0:
        return middle
    if targets.is_floating_point() or targets.is_complex():
        marks = [targets.isnan()]
    else:
        marks = [targets == end for end in targets.aminmax()]
    places = torch.arange(max(1, examples // 4), max(2, examples - examples // 4), dtype=torch.float64)
    best, farthest = middle, 0.0
    for mark in marks:
        held = mark.reshape(examples, -1).sum(1).cpu().double().cumsum(0)
        apart = (held[places.long() - 1] - places / examples * held[-1]).abs()
        where = int(apart.argmax())
        if float(apart[where]) > farthest + 1e-9:
            best, farthest = int(places[where]), float(apart[where])
    return best


def _left_out(parts: Sequence[EmpiricalBatch], losses: tuple[float, float, float], rounding: float) -> int | None:
    """Return the target value whose absence explains the loss of a batch from those of its parts, or None."""
    whole, one, other = losses
    targets = [part.targets for part in parts]
    if not all(isinstance(t, Tensor) and not t.is_floating_point() for t in targets):
        return None
    # What is ignored stands outside the classes: below 0 or above them. Small batches leave more than one explanation.
    found = torch.unique(torch.cat([t.flatten() for t in targets])).tolist()
    for value in sorted(found, key=lambda label: (label >= 0, -label)):
        counts = [float((t != value).sum()) for t in targets]
        total = sum(counts)
        if 0 < total < sum(t.numel() for t in targets):
            mean = sum(count * loss for count, loss in zip(counts, (one, other), strict=True) if count) / total
            if abs(whole - mean) <= rounding:
                return int(value)
    return None


Term = EmpiricalBatch | ForwardBatch


@dataclass(frozen=True)
class _Measured:
    """What one pass over the data found: units and examples of every batch, and the ends of its labels."""

    sizes: tuple[float, ...]
    examples: tuple[int, ...]
    ranges: tuple[tuple[float, float], ...]

    @property
    def total(self) -> float:
        return math.fsum(self.sizes)


class EmpiricalRisk(Objective):
    """L(theta) = sum_b loss_sum_b(theta) / sum_b weight_b: the mean loss over examples, or non-ignored tokens.

    How the data are batched does not change it where the loss of a batch is a mean over its examples or tokens, and
    batches have no statistics of their own (``batchnorm="batch"``). Of another loss, such as one that compares the
    examples of a batch, the number is that of the given batches, and a caveat says so. Every call leaves the module,
    its buffers, modes and gradients, the random states and the global switches exactly as found. Construction reads the
    data once (through ``forward``, where that is given), and evaluates the first batch a few times and its gradient
    once. A loss of unknown make is evaluated on up to 32 batches and on two parts of each, less than one product costs.

    Args:
        module: the model; wrappers of ``torch.compile``, ``DataParallel`` and DDP are taken off. The parameters in
            theta and the buffers are copied now: training on does not change this risk.
        loss: ``(outputs, targets) -> scalar``, a mean over the batch as torch's losses are by default; those of torch
            with ``reduction="sum"`` or ``"none"`` are measured as the mean too, which ``notes`` says. None for a model
            that returns ``.loss`` beside ``.logits`` for batches with labels (transformers), or with ``forward``.
        data: re-iterable of batches, the same ones in the same order each time: ``(inputs, targets)``, where a tuple of
            inputs is passed as arguments and a dict as keyword arguments; dicts, passed as keyword arguments, whose
            labels the loss takes; or whatever ``forward`` takes. NumPy arrays become tensors. Moved to the device of
            the parameters batch by batch.
        params: which parameters theta is made of, see ``select_parameters``; by default all that require grad.
        forward: ``(module, batch) -> (loss_sum, weight)``, a differentiable scalar and its number of units.
        batchnorm: ``"eval"`` (running statistics), ``"batch"`` (statistics of each batch), or ``"recalibrate"``
            (running statistics computed anew over all data, then held fixed).
        weighting: ``"examples"``, ``"tokens"`` (targets not ignored), or ``"auto"``: what torch's mean is over.
        tf32: allow TF32 in float32 products on CUDA.
        check: evaluate the first batch twice and read it twice, and refuse what differs or is not finite; refuse too a
            loss that sums over a batch or leaves out targets unasked, and parameters that move the loss but have no
            gradient. Without it a loss that reads the model's parameters sees them where they are.
        group: of ``torch.distributed``, whose ranks share the products out; all make this risk, of the same model and
            all of the data, and ask for the same in the same order. ``"auto"``: the world where ``data`` is a
            ``DataLoader`` with a ``DistributedSampler`` for as many ranks, and else none. With a group the sampler is
            taken out, so that the risk is that of all examples, each once, in order.

    Attributes:
        module: the model without wrappers.
        theta: (d,) detached copy of the chosen parameters, complex ones (...) by their parts (..., 2).
        n_examples: number of examples in all batches.
        n_units: what the loss is divided by (examples or tokens).
        notes: what was changed for the evaluation, in sentences, for records.
        caveats: those of the notes that every number measured on this risk carries.

    Raises:
        TypeError: data that can be read only once or are not batches, parameters of mixed dtypes.
        ValueError: nothing to measure, a loss that is not scalar or sums over the batch, inputs or targets that do not
            fit.
        DataError: empty data, one rank's share, or data that change between two passes or are edited in place.
        NondeterministicLossError: a loss that differs between two calls; names the module to blame.
        NonFiniteError: nan or inf in a parameter or in the loss.
        UnsupportedError: a model's own loss that is not recognised, an attention kernel without second derivative,
            embeddings with ``max_norm``, a forward that cuts parameters off from the loss, parameters that are spread
            over ranks.

    Examples:
        >>> import torch, hessprobe as hp
        >>> model, x = torch.nn.Linear(2, 1).double(), torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]).double()
        >>> y, loss_fn = torch.zeros(3, 1).double(), torch.nn.MSELoss()
        >>> risk = hp.EmpiricalRisk(model, loss_fn, [(x[:1], y[:1]), (x[1:], y[1:])])
        >>> risk.dim, risk.n_examples
        (3, 3)
        >>> torch.allclose(risk.loss(), loss_fn(model(x), y), rtol=1e-14)  # however the examples are batched
        True
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Any, Any], Any] | None,
        data: Any,
        params: Any = None,
        *,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        batchnorm: str = "eval",
        weighting: str = "auto",
        tf32: bool = False,
        check: bool = True,
        group: Any = "auto",
    ) -> None:
        _require_arguments(module, loss, forward, batchnorm, weighting)
        data_tools.require_reiterable(data)
        data, self.group = checking.whole_data(data, group)
        checking.require_whole_data(data)
        self.module = modes.unwrap(module)
        checking.require_whole_module(self.module)
        base.require_differentiable_attention(self.module)
        modes.require_pure(self.module)
        chosen = modes.select_parameters(self.module, params)
        modes.require_finite(self.module)
        reals = {n: torch.view_as_real(p.detach()) if p.is_complex() else p.detach() for n, p in chosen.items()}
        self.layout = ParameterLayout.of(reals)
        self.theta = self.layout.join(reals.values()).clone()
        self._pairs = tuple(name for name, parameter in chosen.items() if parameter.is_complex())
        self.dim, self.dtype, self.device = self.layout.dim, self.theta.dtype, self.theta.device
        self.batchnorm, self.weighting, self.tf32 = batchnorm, weighting, tf32
        self._data, self._loss, self._forward = data, loss, forward
        self._reads_parameters, self._unlike_a_mean, self._kinked = False, "", ""
        self._reading, self._kept = torch.Generator(), KeptBatches(data)
        self._form = OutputForm()
        self._chunked: ChunkedLogits | None = None
        self._active, self._noted = False, Noted(train_modes(self.module, batchnorm))
        self._trained = self.module.training
        self._frozen = {n: p.detach() for n, p in self.module.named_parameters() if n not in chosen}
        self._stamps = {name: tensor._version for name, tensor in self._frozen.items()}
        buffers = {name: b.detach().clone() for name, b in self.module.named_buffers()}
        checking.require_same_on_ranks(self.group, self.theta, *self._frozen.values(), *buffers.values())
        if batchnorm == "batch":
            buffers = {n: b for n, b in buffers.items() if n.rpartition(".")[2] not in modes.RUNNING}
        self._separable = not modes.uses_batch_statistics(self.module, batchnorm)
        self._model = self._functional(buffers)
        with self.evaluating():
            self._rule, self._label_key = self._learn_loss()
            self._measured = self._measure()
            if batchnorm == "recalibrate":
                modes.recalibrate(self.module, self._recalibration())
            if check:
                self._check()
        self.n_terms = sum(size > 0 for size in self._measured.sizes)
        self.n_examples, self.n_units = sum(self._measured.examples), self._measured.total
        self.caveats = unreduced(self._rule, self.n_examples, self.n_units)
        self.caveats += held_by_the_loss(loss, self.module)
        self.caveats += tuple(filter(None, (self._unlike_a_mean, self._kinked)))
        self.caveats += tuple(self._noted.modes())

    def __repr__(self) -> str:
        loss, batches = self._rule.name if self._rule else "forward", len(self._measured.sizes)
        return (
            f"EmpiricalRisk({type(self.module).__name__}, loss={loss}, dim={self.dim}, examples={self.n_examples}, "
            f"batches={batches}, dtype={self.dtype}, device={self.device})"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """See the class attributes."""
        notes = [*self.caveats, *self._noted.sentences(self.module, self.batchnorm)]
        if self.device.type == "cuda" and self.dtype == torch.float32:
            notes.append(f"TF32 {'on' if self.tf32 else 'off'} in float32 products")
        if self._pairs:
            notes.append(f"complex {', '.join(self._pairs)} by real and imaginary parts")
        skipped = sum(size == 0 for size in self._measured.sizes)
        if skipped:
            notes.append(f"{skipped} batches without counted targets left out")
        return tuple(notes)

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a context in which losses may be evaluated; on leaving it, everything is as it was before."""
        return nullcontext() if self._active else self._enter()

    def terms(self) -> Iterator[Term]:
        """Yield the batches that have weight, in the order of the data.

        Raises:
            DataError: the data have changed since the risk was made.
        """
        for index, batch in self._read():
            if index >= len(self._measured.sizes):
                raise DataError(_changed(f"more than {index} batches"))
            if self._measured.sizes[index] > 0:
                yield self._term(index, batch)
        if index + 1 != len(self._measured.sizes):
            raise DataError(_changed(f"{index + 1} batches instead of {len(self._measured.sizes)}"))

    def loss(self, theta: Tensor | None = None) -> Tensor:
        """Return L(theta), a detached fp64 scalar; at ``self.theta`` by default.

        Raises:
            NonFiniteError: names the first bad batch and the first module with a bad output.
        """
        total = super().loss(theta)
        if not bool(torch.isfinite(total)):
            self.require_finite_loss(theta)
        return total

    def require_finite_loss(self, theta: Tensor | None = None) -> None:
        """Evaluate every batch and refuse the first whose loss is nan or infinite.

        Raises:
            NonFiniteError: names that batch and the first module with a bad output.
        """
        at = self.theta if theta is None else theta.detach()
        with self.evaluating(), torch.no_grad():
            for term in self.terms():
                self._require_finite(term, at, term(at))

    def fingerprint(self) -> str:
        """Return the sha256 of the content of all batches in order, as hexadecimal digits."""
        hasher = hashlib.sha256()
        with self.evaluating():
            for _, batch in self._read():
                data_tools.digest(batch, hasher)
        return hasher.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what was measured as plain values, for records."""
        return {
            "examples": self.n_examples,
            "batches": len(self._measured.sizes),
            "weighting": self._rule.unit if self._rule else "forward",
            "units": self.n_units,
            "loss": self._rule.name if self._rule else "forward",
            "batchnorm": self.batchnorm,
            "parameters": len(self.layout.names),
            "dim": self.dim,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "notes": list(self.notes),
        }

    @contextmanager
    def _enter(self) -> Iterator[None]:
        for name, tensor in self._frozen.items():
            if tensor._version != self._stamps[name]:
                raise UnsupportedError(
                    f"Parameter {name!r}, which is not in theta, has changed since this risk was made. "
                    "Make a new EmpiricalRisk."
                )
        self._kept.require_unchanged()
        roots = [m for m in (self.module, self._loss) if isinstance(m, nn.Module)]
        state = modes.evaluation(
            roots,
            device=self.device,
            batchnorm=self.batchnorm,
            tf32=self.tf32,
            generators=[*data_tools.generators_of(self._data), self._reading],
            on_checkpoint=self._noted.see_checkpoint,
        )
        constant = own_parameters(self._loss, self.module)
        with state:
            self._active = True
            try:
                for parameter in constant:
                    parameter.requires_grad_(False)
                yield
            finally:
                for parameter in constant:
                    parameter.requires_grad_(True)
                self._active = False

    def _functional(self, buffers: dict[str, Tensor]) -> FunctionalModel:
        self._buffers = buffers
        constants = {**self._frozen, **buffers}
        if self._forward is not None:
            call = ForwardCall(self.module, self._forward)
            return FunctionalModel(call, self.layout, constants, prefix="module.", pairs=self._pairs)
        extra = tuple(base.extra_arguments(self.module).items())
        return FunctionalModel(self.module, self.layout, constants, extra=extra, pairs=self._pairs)

    def _read(self) -> Iterator[tuple[int, Any]]:
        # Each step is taken in evaluation state by itself, because a generator may be left half-read.
        with self.evaluating(), data_tools.seeded_by(self._data, self._reading):
            iterator = iter(self._data)
        index = -1
        while True:
            with self.evaluating():
                batch = next(iterator, iterator)
            if batch is iterator:
                break
            index += 1
            yield index, data_tools.as_tensors(batch)
        if index < 0:
            raise DataError("data must hold at least one batch; got none. Check the data set and drop_last.")

    def _term(self, index: int, batch: Any) -> Term:
        moved = data_tools.to_device(batch, self.device)
        size, examples = self._measured.sizes[index], self._measured.examples[index]
        shared: dict[str, Any] = {"model": self._model, "index": index, "examples": examples, "size": size}
        shared |= {"weight": size / self._measured.total, "context": self.evaluating}
        if self._rule is None:
            return ForwardBatch(batch=moved, **shared)
        inputs, targets = self._split(moved)
        found = data_tools.rows(targets, inputs)
        if found != examples:
            raise DataError(_changed(f"{found} examples in batch {index}, not {examples}"))
        return EmpiricalBatch(
            rule=self._rule,
            inputs=inputs,
            targets=targets,
            separable=self._separable,
            reads_parameters=self._reads_parameters,
            form=self._form,
            chunked=self._chunked,
            **shared,
        )

    def _split(self, batch: Any) -> tuple[Any, Any]:
        inputs, targets = data_tools.split_batch(batch)
        if self._label_key is not None:
            inputs = {**inputs, self._label_key: targets}
        return inputs, targets

    def _learn_loss(self) -> tuple[LossRule | None, str | None]:
        """Return the rule of the loss, and the key of labels that the model itself must be given."""
        if self._forward is not None:
            return None, None
        rule = None if self._loss is None else base.loss_rule(self._loss, self.weighting)
        for _, batch in self._read():
            if not isinstance(batch, Mapping):
                if rule is None:
                    raise TypeError(
                        "loss must be given for (inputs, targets) batches; got None. Pass loss= or, for a model that "
                        f"computes its losses itself from both, {base.OWN_LOSSES}."
                    )
                return rule, None
            inputs, labels = data_tools.split_batch(data_tools.to_device(batch, self.device))
            key = data_tools.target_key(batch)
            if key is None or not isinstance(labels, Tensor):
                raise TypeError(data_tools.unlabelled(batch, key))
            if rule is None and not labels.is_floating_point() and bool((labels == base.IGNORED).all()):
                continue
            learn = functools.partial(self._learn_dict, rule, inputs, key, labels)
            with checking.fitting(inputs, self.dtype, self.module, learn):
                return learn()
        raise DataError("data must hold targets that are counted; got only ignored ones (-100). Check the labels.")

    def _learn_dict(self, rule: LossRule | None, inputs: Any, key: str, labels: Tensor) -> tuple[LossRule, str | None]:
        with torch.no_grad():
            if rule is None:
                rule = base.recognise(lambda kwargs: self._model.on(self.theta, kwargs), inputs, key, labels)
                if self.weighting == "examples":
                    rule = replace(rule, unit="examples")
            needed = base.needs_labels(lambda kwargs: self._model.on(self.theta, kwargs), inputs, key, labels)
            if rule.shift:
                first = data_tools.cut({**inputs, key: labels}, 0, 1, len(labels))
                given = first if needed else {name: value for name, value in first.items() if name != key}
                self._chunked = chunked_logits(
                    self.module, lambda kwargs: base.logits_of(self._model.on(self.theta, kwargs)), given, first[key]
                )
        return rule, key if needed else None

    def _measure(self) -> _Measured:
        sizes, examples, ranges = [], [], []
        for index, batch in self._read():
            self._kept.see(index, batch)
            if self._rule is None:
                moved = data_tools.to_device(batch, self.device)
                sizes.append(forward_weight(self._model, self.theta, moved, index))
                examples.append(data_tools.examples_of(batch))
                continue
            inputs, targets = data_tools.split_batch(batch)
            examples.append(data_tools.rows(targets, inputs))
            sizes.append(self._rule.size(targets, examples[-1]))
            ranges.append((0.0, 0.0) if self._rule.known else label_range(targets))
        if not math.fsum(sizes) > 0:
            raise DataError(
                "data must hold targets that are counted; got only ignored or empty ones. Check the labels."
            )
        return _Measured(tuple(sizes), tuple(examples), tuple(ranges))

    def _recalibration(self) -> Iterator[tuple[int, Callable[[], object]]]:
        for index, batch in self._read():
            term = self._term(index, batch)

            def run(term: Term = term) -> object:
                with torch.no_grad():
                    return term(self.theta)

            if term.size > 0:
                yield term.examples, run

    def _check(self) -> None:
        hashes = [data_tools.content_hash(next(self._read())[1]) for _ in range(2)]
        if hashes[0] != hashes[1]:
            cause = "DataLoader(shuffle=True)" if data_tools.is_shuffled(self._data) else "shuffling or augmentation"
            raise DataError(
                f"data must be the same at every pass; got another first batch ({cause}). Pass shuffle=False."
            )
        term = next(self.terms())
        before = {name: buffer.clone() for name, buffer in self._buffers.items()}
        watch = checking.CallWatch()
        with torch.no_grad(), functional_dropout(self.module, watch) as seen, watch:
            first = checking.first_loss(term, self.theta, self.module)
        self._noted.attention, self._noted.functional = watch.attention, self._trained and seen()
        self._require_finite(term, self.theta, first)
        with torch.no_grad():
            second = term(self.theta)
            checking.require_same(first, second, self.module, lambda: term(self.theta))
        written = checking.written_buffers(self.module, self._buffers, before)
        self._model = replace(self._model, scratch=written, copied=watch.pairs)
        term = next(self.terms())
        self._reads_parameters = checking.read_where_held(term, self.theta, self.module)
        term = next(self.terms())
        checking.require_connected(term, self.theta, self.layout)
        checking.require_seen(term, self.theta)
        self._kinked = checking.kinked(term, self.theta)
        self._unlike_a_mean = self._compare_parts()

    def _compare_parts(self) -> str:
        if self._rule is None or self._rule.known or not self._separable:
            return ""
        chosen = set(to_compare(self._measured.ranges))
        found = [unlike_a_mean(term, self.theta) for term in self.terms() if term.index in chosen]
        return next(filter(None, found), "")

    def _require_finite(self, term: Term, theta: Tensor, value: Tensor) -> None:
        if not bool(torch.isfinite(value)):
            who = checking.first_nonfinite(self.module, lambda: term(theta))
            raise NonFiniteError(
                f"loss must be finite; got {float(value)} on batch {term.index}, first in {who}. "
                "Check the weights and that batch."
            )


def _require_arguments(module: Any, loss: Any, forward: Any, batchnorm: str, weighting_name: str) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module; got {type(module).__name__}. Wrap the function in one.")
    for name, value in (("loss", loss), ("forward", forward)):
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be callable or None; got {type(value).__name__}. Pass a function.")
    if loss is not None and forward is not None:
        raise ValueError("loss must be None when forward= is given; got both. forward computes the loss itself.")
    checks.one_of("batchnorm", batchnorm, modes.BATCHNORM)
    checks.one_of("weighting", weighting_name, base.WEIGHTINGS)


def _changed(how: str) -> str:
    return f"data must be the same at every pass; got {how}. Fix the sampler's seed or pass a list of batches."

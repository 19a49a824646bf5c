"""Texts as the tokens and labels that a network of transformers takes, each counted exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hessprobe.errors import CheckpointError, DataError
from hessprobe.models.build import require
from hessprobe.models.images import Examples
from hessprobe.models.pretrained import one_sentence, quiet
from hessprobe.models.spec import Opening
from hessprobe.models.tables import LABELS, TEXTS, Rows
from hessprobe.objective.base import IGNORED

DEFAULT_CONTEXT = 512
# Share of the tokens of a masked language model that are to be predicted (Devlin et al., 2019).
_MASKED = 0.15
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")


@dataclass(frozen=True)
class Reader:
    """What turns texts into tokens for one network.

    Attributes:
        tokenizer: of transformers, or None where the rows hold tokens already.
        config: of the network.
        task: one of ``TASKS``.
        context: the most tokens in an example.
        opening: names of columns, packing.
        seed: which tokens are masked.
    """

    tokenizer: Any
    config: Any
    task: str
    context: int
    opening: Opening
    seed: int = 0


def open_reader(config: Any, folder: str, task: str, opening: Opening, *, needed: bool) -> Reader:
    """Return the reader for a network.

    Args:
        config: of the network.
        folder: where its tokenizer is, unless ``opening`` names another.
        task: one of ``TASKS``.
        opening: tokenizer, context, columns.
        needed: whether texts must be turned into tokens; a folder without a tokenizer is then refused.

    Raises:
        CheckpointError: no tokenizer there.
    """
    tokenizer = None
    place = opening.tokenizer or folder
    if needed:
        tokenizer = _tokenizer(place)
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_length")]
    known = [limit for limit in limits[:2] if isinstance(limit, int) and limit > 0]
    if tokenizer is not None and tokenizer.model_max_length:
        known.append(int(min(tokenizer.model_max_length, 10**9)))
    context = opening.context or min([DEFAULT_CONTEXT, *known])
    if opening.context and known and opening.context > min(known):
        raise ValueError(
            f"--context must be at most {min(known)}, what the model takes; got {opening.context}. Take fewer."
        )
    return Reader(tokenizer, config, task, context, opening)


def _tokenizer(place: str) -> Any:
    """Return the tokenizer in a folder.

    Raises:
        CheckpointError: there is none; without its files the library would make one that knows no words.
    """
    library = require("transformers", f"the tokenizer in {place}")
    if not any(each for pattern in _TOKENIZER_FILES for each in Path(place).glob(pattern)):
        raise CheckpointError(f"{place} holds no tokenizer. Name the folder of one by --tokenizer.")
    with quiet(library), one_sentence(f"the tokenizer in {place}"):
        return library.AutoTokenizer.from_pretrained(place, local_files_only=True)


def needs_tokens(rows: Rows) -> bool:
    """Return whether the rows hold texts rather than numbers of tokens."""
    return "input_ids" not in rows.rows[0]


def read_examples(rows: Rows, reader: Reader) -> Examples:
    """Return rows as examples for a network of transformers: ``input_ids``, ``attention_mask`` and labels.

    Texts are cut at ``context`` tokens and padded to the longest; what is padded has the label -100 and is not counted.
    A text file, and rows with ``pack``, are joined (rows by the end-of-text token) and cut into windows of ``context``
    tokens, the last one shorter. The labels of a causal language model are its inputs; of a masked one, the 15 % of its
    tokens that the mask token replaces; of words, the label of the word at its first token.

    Raises:
        ValueError: no such column.
        DataError: labels that the network does not know, or texts without tokens.
    """
    make = _MAKERS[reader.task]
    packed = reader.task in ("causal-lm", "masked-lm") and (rows.stream or reader.opening.pack)
    encoded = _packed(rows, reader) if packed else [make(row, rows, reader) for row in rows.rows]
    if reader.task == "masked-lm":
        encoded = _masked(encoded, reader)
    if any(not each["input_ids"] for each in encoded):
        raise DataError(f"data {rows.name!r} holds a text without tokens. Leave empty texts out.")
    size, largest = getattr(reader.config, "vocab_size", None), max(max(each["input_ids"]) for each in encoded)
    if isinstance(size, int) and largest >= size:
        raise DataError(
            f"data {rows.name!r} has the token {largest}; the model knows {size}. Its tokenizer is another model's: "
            "name the right one by --tokenizer."
        )
    pad = getattr(reader.tokenizer, "pad_token_id", None) or 0
    padding = {"input_ids": pad, "labels": IGNORED}
    fields = {key: _padded([each[key] for each in encoded], padding.get(key, 0)) for key in encoded[0]}
    labels = fields.pop("labels")
    cut = sum(len(each["input_ids"]) >= reader.context for each in encoded)
    notes = [f"{len(encoded):,} examples of at most {fields['input_ids'].shape[1]} tokens"]
    if packed:
        notes[0] += ", texts joined"
    elif cut and reader.tokenizer is not None:
        notes.append(f"{cut} texts reach --context {reader.context} and are cut there")
    if reader.task == "masked-lm":
        notes.append("15 % of the tokens masked, the same ones at every pass (--seed does not change them)")
    test = None if rows.held_out is None else torch.arange(len(encoded) - rows.held_out, len(encoded))
    return Examples(rows.name, fields, labels, None if packed else test, tuple(notes))


Encoded = dict[str, Any]


def _tokens(row: Mapping[str, Any], rows: Rows, reader: Reader, **options: Any) -> Encoded:
    if reader.tokenizer is None:
        ids = [int(each) for each in row["input_ids"]][: reader.context]
        mask = row.get("attention_mask")
        return {"input_ids": ids, "attention_mask": [1] * len(ids) if mask is None else list(mask)[: len(ids)]}
    column = rows.column(reader.opening.text_column, TEXTS, "text_column")
    made = reader.tokenizer(row[column], truncation=True, max_length=reader.context, **options)
    return {key: list(made[key]) for key in ("input_ids", "token_type_ids", "attention_mask") if key in made}


def _causal(row: Mapping[str, Any], rows: Rows, reader: Reader) -> Encoded:
    made = _tokens(row, rows, reader)
    labels = list(row["labels"])[: reader.context] if reader.tokenizer is None and "labels" in row else None
    return {**made, "labels": labels or list(made["input_ids"])}


def _classes(row: Mapping[str, Any], rows: Rows, reader: Reader) -> Encoded:
    value = row[rows.column(reader.opening.label_column, LABELS, "label_column")]
    return {**_tokens(row, rows, reader), "labels": _label(value, rows, reader)}


def _words(row: Mapping[str, Any], rows: Rows, reader: Reader) -> Encoded:
    given = row[rows.column(reader.opening.label_column, LABELS, "label_column")]
    labels = [_label(each, rows, reader) for each in given]
    if reader.tokenizer is None:
        return {**_tokens(row, rows, reader), "labels": labels[: reader.context]}
    column = rows.column(reader.opening.text_column, TEXTS, "text_column")
    made = reader.tokenizer(row[column], is_split_into_words=True, truncation=True, max_length=reader.context)
    places = made.word_ids()
    if max((each for each in places if each is not None), default=0) >= len(labels):
        raise DataError(f"data {rows.name!r} has a row with more words than labels. Give every word one.")
    firsts = [place is not None and place not in places[:index] for index, place in enumerate(places)]
    spread = [labels[place] if first else IGNORED for place, first in zip(places, firsts, strict=True)]
    kept = {key: list(made[key]) for key in ("input_ids", "token_type_ids", "attention_mask") if key in made}
    return {**kept, "labels": spread}


def _pairs(row: Mapping[str, Any], rows: Rows, reader: Reader) -> Encoded:
    made = _tokens(row, rows, reader)
    target = row[rows.column(reader.opening.label_column, LABELS, "label_column")]
    if reader.tokenizer is not None and isinstance(target, str):
        target = reader.tokenizer(text_target=target, truncation=True, max_length=reader.context)["input_ids"]
    return {**{key: made[key] for key in ("input_ids", "attention_mask")}, "labels": list(target)}


_MAKERS: dict[str, Callable[[Mapping[str, Any], Rows, Reader], Encoded]] = {
    "causal-lm": _causal,
    "masked-lm": _causal,
    "seq2seq": _pairs,
    "sequence-classification": _classes,
    "token-classification": _words,
}


def _label(value: Any, rows: Rows, reader: Reader) -> Any:
    known = {str(key): int(number) for key, number in (getattr(reader.config, "label2id", None) or {}).items()}
    if isinstance(value, (list, tuple)):
        return [float(each) for each in value]
    if isinstance(value, str):
        if value not in known:
            raise DataError(
                f"data {rows.name!r} has the label {value!r}; the model knows {', '.join(list(known)[:5])}. "
                "Use its labels, or name another column by --label-column."
            )
        return known[value]
    if getattr(reader.config, "num_labels", 0) == 1:
        return float(value)
    if not 0 <= int(value) < getattr(reader.config, "num_labels", int(value) + 1) and int(value) != IGNORED:
        raise DataError(
            f"data {rows.name!r} has the label {value}; the model has the {reader.config.num_labels} classes 0 to "
            f"{reader.config.num_labels - 1}. Number them from 0."
        )
    return int(value)


def _packed(rows: Rows, reader: Reader) -> list[Encoded]:
    stream: list[int] = []
    for row in rows.rows:
        if reader.tokenizer is None:
            stream += [int(each) for each in row["input_ids"]]
            continue
        column = rows.column(reader.opening.text_column, TEXTS, "text_column")
        # Longer than the network takes at once, which the tokenizer would warn of.
        stream += reader.tokenizer(row[column], verbose=False, add_special_tokens=rows.stream)["input_ids"]
        end = reader.tokenizer.eos_token_id
        stream += [] if rows.stream or end is None else [end]
    windows = [stream[start : start + reader.context] for start in range(0, len(stream), reader.context)]
    # A last token by itself has nothing to be predicted from.
    alone = reader.task == "causal-lm" and len(windows) > 1 and len(windows[-1]) < 2
    windows = windows[:-1] if alone else windows
    return [{"input_ids": each, "attention_mask": [1] * len(each), "labels": list(each)} for each in windows]


def _masked(encoded: list[Encoded], reader: Reader) -> list[Encoded]:
    tokenizer = reader.tokenizer
    mask = getattr(tokenizer, "mask_token_id", None)
    if mask is None:
        if all("labels" in each and IGNORED in each["labels"] for each in encoded):
            return encoded
        raise DataError("A masked language model needs a tokenizer with a mask token, or rows with their own labels.")
    special = set(tokenizer.all_special_ids)
    generator = torch.Generator().manual_seed(reader.seed)
    made = []
    for each in encoded:
        ids, draws = list(each["input_ids"]), torch.rand(len(each["input_ids"]), generator=generator)
        free = [place for place, token in enumerate(ids) if token not in special]
        chosen = {place for place in free if draws[place] < _MASKED} or set(free[:1])
        labels = [token if place in chosen else IGNORED for place, token in enumerate(ids)]
        hidden = [mask if place in chosen else token for place, token in enumerate(ids)]
        made.append({**each, "input_ids": hidden, "labels": labels})
    return made


def _padded(values: Sequence[Any], fill: int) -> Tensor:
    if not isinstance(values[0], list):
        return torch.tensor(values)
    if any(isinstance(each, float) for each in values[0]):
        return torch.tensor(values)
    longest = max(map(len, values))
    return torch.tensor([[*each, *[fill] * (longest - len(each))] for each in values])

"""Networks of transformers and peft from the folders that they save."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hessprobe.errors import CheckpointError, UnsupportedError
from hessprobe.models.build import require
from hessprobe.models.files import ADAPTER_CONFIG
from hessprobe.models.spec import TASKS

CONFIG = "config.json"

# The task of an architecture is where transformers lists it; of several lists the first that has it counts.
_LISTS = {
    "sequence-classification": ("SequenceClassification", "SEQUENCE_CLASSIFICATION"),
    "token-classification": ("TokenClassification", "TOKEN_CLASSIFICATION"),
    "image-classification": ("ImageClassification", "IMAGE_CLASSIFICATION"),
    "seq2seq": ("Seq2SeqLM", "SEQ_TO_SEQ_CAUSAL_LM"),
    "causal-lm": ("CausalLM", "CAUSAL_LM"),
    "masked-lm": ("MaskedLM", "MASKED_LM"),
}
_PEFT_TASKS = {
    "CAUSAL_LM": "causal-lm",
    "SEQ_CLS": "sequence-classification",
    "SEQ_2_SEQ_LM": "seq2seq",
    "TOKEN_CLS": "token-classification",
}


def kind_of_folder(path: str | Path) -> str | None:
    """Return ``"peft"`` or ``"transformers"`` for a folder that one of them saved, else None."""
    folder = Path(path)
    if (folder / ADAPTER_CONFIG).is_file():
        return "peft"
    return "transformers" if folder.is_dir() and "model_type" in read_config(folder / CONFIG) else None


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings in a JSON file; none where there is no such file or it is not one.

    They decide only what is tried: a damaged one is told of by the library that needs it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def task_of(config: dict[str, Any], what: str) -> str:
    """Return the task of a network by the architecture in its config.

    Raises:
        UnsupportedError: none of ``TASKS``.
    """
    lists = require("transformers.models.auto.modeling_auto", what)
    architecture = next(iter(config.get("architectures") or []), None)
    for task, (_, listed) in _LISTS.items():
        named = getattr(lists, f"MODEL_FOR_{listed}_MAPPING_NAMES")
        if any(architecture in _each(names) for names in named.values()):
            return task
    raise UnsupportedError(
        f"{what} has the architecture {architecture}, whose task is none of {', '.join(TASKS)}. Name it by --task, or "
        "make the risk in Python and name it with --objective file.py:function."
    )


def open_pretrained(folder: str, task: str | None, *, weights: bool = True) -> tuple[nn.Module, str, tuple[str, ...]]:
    """Return a network of transformers in float32, its task, and what a reader should know.

    Args:
        folder: of ``save_pretrained`` or of the ``Trainer``.
        task: one of ``TASKS``; by default that of the architecture in the config.
        weights: whether those of the folder are read; else they are random.

    Raises:
        UnsupportedError: transformers is not installed, an unknown architecture, or quantised weights.
        CheckpointError: not such a folder, damaged, or without the weights of some layer (names it).
    """
    what = f"transformers:{folder}"
    config = read_config(Path(folder) / CONFIG)
    if not config:
        raise CheckpointError(
            f"{folder} is no folder of save_pretrained: it holds no {CONFIG}. Name the folder that holds it."
        )
    if config.get("quantization_config"):
        raise UnsupportedError(f"{folder} holds quantised weights, which have no derivative. Take the original ones.")
    library = require("transformers", what)
    chosen = task or task_of(config, what)
    factory = getattr(library, f"AutoModelFor{_LISTS[chosen][0]}")
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    notes = [] if stored in ("float32", "float64") else [f"weights stored in {stored} are measured in float32"]
    with quiet(library), one_sentence(what):
        if not weights:
            settings = library.AutoConfig.from_pretrained(folder, local_files_only=True)
            return factory.from_config(settings).float(), chosen, tuple(notes)
        dtype = torch.float64 if stored == "float64" else torch.float32
        model, found = factory.from_pretrained(
            folder, **{_dtype_argument(library): dtype}, local_files_only=True, output_loading_info=True
        )
    _require_complete(folder, chosen, found)
    return model, chosen, tuple(notes)


def open_adapter(folder: str, task: str | None, base: str | None = None) -> tuple[nn.Module, str, tuple[str, ...]]:
    """Return a network with the adapter of peft in ``folder``, of which only the adapter's parameters are trainable.

    Args:
        folder: of ``save_pretrained`` of a peft model.
        task: one of ``TASKS``; by default the adapter's, or that of the base network.
        base: folder of the base network; by default the one in the adapter's config, also beside the adapter.

    Raises:
        UnsupportedError: peft or transformers is not installed.
        CheckpointError: not such a folder, or the base network is not there.
    """
    what = f"peft:{folder}"
    config = read_config(Path(folder) / ADAPTER_CONFIG)
    if not config:
        raise CheckpointError(f"{folder} is no folder of peft: it holds no {ADAPTER_CONFIG}. Name the one that does.")
    library = require("peft", what)
    named = base or str(config.get("base_model_name_or_path") or "")
    place = next((each for each in (Path(named), Path(folder).parent / named) if (each / CONFIG).is_file()), None)
    if not named or place is None:
        raise CheckpointError(
            f"{folder} is an adapter of {named or 'an unnamed network'}, which is not at that path. "
            f"Name its folder: --model 'peft:{folder}?base=FOLDER'."
        )
    model, chosen, notes = open_pretrained(str(place), task or _PEFT_TASKS.get(str(config.get("task_type"))))
    with one_sentence(what), warnings.catch_warnings():
        # What peft still calls of transformers is for whoever works on peft.
        warnings.simplefilter("ignore", FutureWarning)
        adapted: nn.Module = library.PeftModel.from_pretrained(model, folder, is_trainable=True)
    return adapted, chosen, (*notes, f"base network: {place}", "the adapter's parameters alone")


def _require_complete(folder: str, task: str, found: Any) -> None:
    missing = sorted(found["missing_keys"])
    mismatched = sorted(str(each[0] if isinstance(each, tuple) else each) for each in found["mismatched_keys"])
    if missing or mismatched:
        name = (missing or mismatched)[0]
        raise CheckpointError(
            f"{folder} has no weights for {len(missing) + len(mismatched)} tensors of a network for {task}, such as "
            f"{name}: they would be random. Choose the --task that it was trained for."
        )


def _dtype_argument(library: Any) -> str:
    major, minor = (int(part) for part in library.__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def _each(names: Any) -> tuple[str, ...]:
    return names if isinstance(names, tuple) else (names,)


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """Keep the library's progress bars and remarks from the output inside the block."""
    logging = library.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def one_sentence(what: str) -> Iterator[None]:
    """Turn what the libraries raise about a folder inside the block into one sentence.

    Raises:
        CheckpointError: with the reason.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise CheckpointError(f"{what} cannot be opened: {reason}. Copy or save the folder again.") from error
    except Exception as error:
        if type(error).__module__.startswith(("safetensors", "pickle", "_pickle", "zipfile")):
            raise CheckpointError(
                f"{what} cannot be opened: its weights are damaged ({error}). Copy it again."
            ) from error
        raise

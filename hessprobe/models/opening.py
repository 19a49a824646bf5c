"""What the command line says about files of other libraries, beside their names. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

LOSSES = ("cross-entropy", "mse", "bce-logits", "nll", "l1", "huber", "model")
TASKS = (
    "causal-lm",
    "masked-lm",
    "seq2seq",
    "sequence-classification",
    "token-classification",
    "image-classification",
)
NORMALIZATIONS = ("imagenet", "cifar10", "cifar100", "mnist", "half", "own", "none")


@dataclass(frozen=True)
class Opening:
    """How files of other libraries are read; None where the file, the model or the program decides.

    Attributes:
        task: one of ``TASKS``.
        key: entry of the file that holds the weights.
        loss: one of ``LOSSES``, or ``module:function``, or ``file.py:function``.
        image_size: images are scaled to this shorter side and cut to a square of it, >= 1.
        normalize: one of ``NORMALIZATIONS``.
        text_column, label_column: names of columns, keys or arrays.
        tokenizer: folder of a tokenizer.
        context: tokens in an example, >= 2.
        pack: texts are joined and cut into examples of ``context`` tokens.
    """

    task: str | None = None
    key: str | None = None
    loss: str | None = None
    image_size: int | None = None
    normalize: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    tokenizer: str | None = None
    context: int | None = None
    pack: bool = False


AS_FOUND = Opening()

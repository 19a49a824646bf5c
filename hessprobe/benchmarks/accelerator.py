"""The suite ``gpu``: questions about networks that need an accelerator, sized for ten minutes on one card.

ResNet-18 on 50,000 images, a GPT of 124 million parameters on windows of 1,024 tokens, and one of 1.3 billion. With
``tiny`` the same questions are asked of small stand-ins, on any device, to see that the suite runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from hessprobe.benchmarks import answers
from hessprobe.benchmarks.answers import Answer, Network

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOK, _BRACKET, _TRACE, _NORM, _NEAR_ZERO = (
    "lambda_max, a look (5 %)",
    "lambda_max, bracket 1 %",
    "trace, standard error 1 %",
    "Frobenius norm, standard error 1 %",
    "share near zero, density within 2 %",
)
# What is asked of each network: of the largest, what ten minutes leave time for.
ASKED: dict[str, tuple[str, ...]] = {
    "resnet18": (_LOOK, _BRACKET, _TRACE, _NORM, _NEAR_ZERO),
    "gpt-124m": (_LOOK, _BRACKET),
    "gpt-1b": (_LOOK,),
}
# No question is begun after so many seconds.
LIMIT = 540.0


def networks(*, tiny: bool = False) -> dict[str, Network]:
    """Return the networks by name; small stand-ins for them where ``tiny``."""
    images, side, batch = (50_000, 32, 500) if not tiny else (64, 16, 32)
    wide = {
        "gpt-124m": {"vocab_size": 50_257, "context": 1024, "layers": 12, "d_model": 768, "n_heads": 12},
        "gpt-1b": {"vocab_size": 50_257, "context": 1024, "layers": 24, "d_model": 2048, "n_heads": 16},
    }
    small: dict[str, object] = {"vocab_size": 96, "context": 16, "layers": 2, "d_model": 16, "n_heads": 2}
    windows = {"gpt-124m": 32, "gpt-1b": 8}
    found = {
        "resnet18": Network(
            "resnet18",
            f"{'ResNet-20' if tiny else 'ResNet-18'}, {images:,} images",
            ("resnet", {}) if tiny else ("resnet18", {}),
            lambda folder: answers.images(folder, images, side, 3, batch),
            F.cross_entropy,
            2,
            0.05,
        )
    }
    for name, arguments in wide.items():
        context, count = (16, 16) if tiny else (1024, windows[name])
        size = "a few thousand" if tiny else "1.3 billion" if name == "gpt-1b" else "124 million"
        found[name] = Network(
            name,
            f"GPT of {size} parameters, {count} windows of {context}",
            ("gpt", small if tiny else dict(arguments)),
            partial(answers.text, count=count, context=context, size=max(count // 8, 1)),
            answers.token_loss,
            4,
            0.02,
        )
    return found


@contextmanager
def _single_precision() -> Iterator[None]:
    """Multiply with all 24 bits: TensorFloat-32 keeps 11, and a Hessian product is a difference of its parts."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def follow(
    device: torch.device,
    finished: Callable[[Answer], None],
    *,
    cases: Sequence[str] = (),
    tiny: bool = False,
    peers: bool = False,
    folder: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Ask every network its questions, and hand on each answer as it comes; none is begun after nine minutes.

    Args:
        device: where.
        finished: told of every answer.
        cases: names of networks; all where there are none.
        tiny: small stand-ins.
        peers: other packages too, where they are installed.
        folder: as ``answers.time_answers``.
        report: told what is being done.
    """
    began = time.perf_counter()
    with _single_precision():
        for name, network in networks(tiny=tiny).items():
            if cases and name not in cases:
                continue
            answers.time_answers(
                network,
                peers=peers,
                folder=folder,
                report=report,
                device=device,
                questions=ASKED[name],
                finished=finished,
                late=lambda: time.perf_counter() - began > LIMIT,
            )
            if device.type == "cuda":
                torch.cuda.empty_cache()

"""Optimizer packages as tools, hessprobe's own among them: how each is made and stepped, as its own page shows.

Nothing of a package is imported before its tool is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

from torch import Tensor, nn

from hessprobe.benchmarks.conformance.case import Tool
from hessprobe.benchmarks.conformance.training import BASES, Closure, Training, drive

Make = Callable[[nn.Module, Training], Any]
Step = Callable[[Any, Closure], Any]


def _closure_alone(optimizer: Any, closure: Closure) -> Any:
    return optimizer.step(closure)


def _gradient_first(optimizer: Any, closure: Closure) -> Any:
    """A gradient, then step(closure), as davda54's SAM and what descends from it are used."""
    closure()
    return optimizer.step(closure)


def _tool(distribution: str, ways: dict[str, tuple[Make, Step]]) -> Tool:
    def answer(given: Training, way: tuple[Make, Step]) -> Tensor:
        return drive(given, *way)

    answers = {name: partial(answer, way=way) for name, way in ways.items()}
    return Tool(distribution, metadata.version(distribution), answers)


def _own() -> Tool:
    from hessprobe import optim

    def around(kind: str, **arguments: Any) -> tuple[Make, Step]:
        def make(module: nn.Module, given: Training) -> Any:
            base = BASES[given.base](given.grouped(module), **given.options)
            options = {"model": module, **arguments, **given.arguments}
            return getattr(optim, kind)(base, rho=given.rho, **options)

        return make, _closure_alone

    return _tool(
        "hessprobe",
        {
            "sam": around("SAM"),
            "sam-torch-closure": around("SAM"),
            "asam": around("ASAM", eta=0.0, exclude_bias=False),
            "gsam": around("GSAM"),
            "unified-sam": around("UnifiedSAM"),
            "wsam": around("WSAM", decouple=False),
            "friendly-sam": around("FriendlySAM"),
            "gcsam": around("GCSAM"),
            "looksam": around("LookSAM"),
        },
    )


def _pytorch_optimizer() -> Tool:
    import pytorch_optimizer as po

    class Constant:
        """A schedule in the package's form."""

        def __init__(self, value: float) -> None:
            self.value = value

        def step(self) -> float:
            return self.value

    def made(kind: Any, **arguments: Any) -> Make:
        def make(module: nn.Module, given: Training) -> Any:
            return kind(given.grouped(module), BASES[given.base], rho=given.rho, **arguments, **given.options)

        return make

    def gsam(module: nn.Module, given: Training) -> Any:
        base = BASES[given.base](given.grouped(module), **given.options)
        return po.GSAM(module.parameters(), base, module, Constant(given.rho), **given.arguments)

    def gsam_step(optimizer: Any, closure: Closure) -> Any:
        optimizer.set_closure(closure.loss, *closure.batch)
        return optimizer.step()

    def wsam(module: nn.Module, given: Training) -> Any:
        options = {"rho": given.rho, "decouple": False, **given.arguments, **given.options}
        return po.WSAM(module, given.grouped(module), BASES[given.base], **options)

    def friendly(module: nn.Module, given: Training) -> Any:
        options = {"sigma": given.arguments["sigma"], "lmbda": given.arguments["lam"]}
        return made(po.FriendlySAM, **options)(module, given)

    def looksam(module: nn.Module, given: Training) -> Any:
        return made(po.LookSAM, **given.arguments)(module, given)

    return _tool(
        "pytorch_optimizer",
        {
            "sam": (made(po.SAM), _gradient_first),
            "sam-torch-closure": (made(po.SAM), _closure_alone),
            "asam": (made(po.SAM, adaptive=True), _gradient_first),
            "gsam": (gsam, gsam_step),
            "wsam": (wsam, _closure_alone),
            "friendly-sam": (friendly, _gradient_first),
            "gcsam": (made(po.SAM, use_gc=True), _gradient_first),
            "looksam": (looksam, _gradient_first),
        },
    )


def _zij() -> Tool:
    from zij.contrib import sharpness_aware as zij

    def made(kind: Any, **arguments: Any) -> Make:
        def make(module: nn.Module, given: Training) -> Any:
            return kind(given.grouped(module), BASES[given.base], rho=given.rho, **arguments, **given.options)

        return make

    def gsam(module: nn.Module, given: Training) -> Any:
        base = BASES[given.base](given.grouped(module), **given.options)
        return zij.GSAM(module.parameters(), base, module, gsam_alpha=given.arguments["alpha"], rho=given.rho)

    def wsam(module: nn.Module, given: Training) -> Any:
        return made(zij.WSAM, model=module, decouple=False, **given.arguments)(module, given)

    def looksam(module: nn.Module, given: Training) -> Any:
        return made(zij.LookSAM, **given.arguments)(module, given)

    return _tool(
        "zij",
        {
            "sam": (made(zij.SAM), _gradient_first),
            "sam-torch-closure": (made(zij.SAM), _closure_alone),
            "asam": (made(zij.ASAM), _gradient_first),
            "gsam": (gsam, _closure_alone),
            "wsam": (wsam, _closure_alone),
            "looksam": (looksam, _gradient_first),
        },
    )


def _sam_pytorch() -> Tool:
    import sam

    def make(module: nn.Module, given: Training) -> Any:
        groups = given.grouped(module)
        return sam.SAM(given.grouped(module), BASES[given.base](groups, **given.options), rho=given.rho)

    return _tool("sam-pytorch", {"sam": (make, _closure_alone), "sam-torch-closure": (make, _closure_alone)})


def _unifiedsam() -> Tool:
    from unifiedsam import unifiedSAM

    def make(module: nn.Module, given: Training) -> Any:
        lam = given.arguments.get("lam", 1.0)
        return unifiedSAM(given.grouped(module), BASES[given.base], rho=given.rho, lambd=lam, **given.options)

    return _tool(
        "unifiedsam",
        {
            "sam": (make, _gradient_first),
            "sam-torch-closure": (make, _closure_alone),
            "unified-sam": (make, _gradient_first),
        },
    )


# Name in the table -> (distribution, what opens it); hessprobe first.
SAM_TOOLS: dict[str, tuple[str, Callable[[], Tool]]] = {
    "hessprobe": ("hessprobe", _own),
    "pytorch_optimizer": ("pytorch_optimizer", _pytorch_optimizer),
    "zij": ("zij", _zij),
    "sam-pytorch": ("sam-pytorch", _sam_pytorch),
    "unifiedsam": ("unifiedsam", _unifiedsam),
}

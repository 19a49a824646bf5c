"""Calls that make no optimizer are told what to write instead; signatures stay for ``help``."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from hessprobe import optim
from hessprobe.optim import BSAM, GSAM, SAM, SharpnessAware, registry

NET = nn.Linear(3, 2)
CONSTRUCT = "base_optimizer must be a constructed torch optimizer; got generator. Construct it first: "


def base() -> torch.optim.Optimizer:
    return torch.optim.SGD(NET.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: SAM(base(), rh=1), "SAM has no argument 'rh'. Did you mean 'rho'? It takes base_optimizer, rho, "),
        (lambda: GSAM(base(), alph=1), "GSAM has no argument 'alph'. Did you mean 'alpha'? It takes base_optimizer, "),
        (
            lambda: GSAM(base(), diagnostic=1),
            "GSAM has no argument 'diagnostic'. Did you mean 'diagnostics'? It takes ",
        ),
        (
            lambda: BSAM(NET.parameters(), examples=8, rhoo=1),
            "BSAM has no argument 'rhoo'. Did you mean 'rho'? It takes",
        ),
        (
            lambda: SAM(base(), weight_decay=0.1),
            "SAM has no argument 'weight_decay', which is one of its base optimizer. Give it to SGD.",
        ),
        (
            lambda: SAM(NET.parameters(), torch.optim.SGD, rho=0.05, lr=0.1),
            CONSTRUCT + "SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05).",
        ),
        (
            lambda: SAM(NET.parameters(), lr=0.1, rho=0.05),
            CONSTRUCT + "SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05).",
        ),
        (
            lambda: GSAM(NET.parameters(), base_optimizer=torch.optim.AdamW, lr=0.01, model=NET, alpha=0.4),
            CONSTRUCT + "GSAM(torch.optim.AdamW(model.parameters(), lr=0.01), model=model, alpha=0.4).",
        ),
        (lambda: SAM(params=NET.parameters()), CONSTRUCT + "SAM(torch.optim.SGD(model.parameters(), lr=0.1))."),
        (
            lambda: BSAM(base(), examples=8),
            "params must be parameters; got SGD. BSAM owns its update: write BSAM(model.parameters(), ...).",
        ),
    ],
)
def test_a_call_that_fits_not_is_told_how_to_write_it(call, said: str) -> None:
    with pytest.raises(TypeError) as raised:
        call()
    assert str(raised.value).startswith(said)


def test_other_errors_of_types_and_values_stay() -> None:
    with pytest.raises(TypeError, match="rho must be a finite number >= 0; got 'x'"):
        SAM(base(), rho="x")
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'examples'"):
        BSAM(NET.parameters())


def test_classes_of_others_take_what_they_like() -> None:
    class Own(SAM):
        def __init__(self, first: torch.optim.Optimizer, **options: float) -> None:
            self.gain = options.pop("gain", 1.0)
            super().__init__(first, **options)

    assert Own(base(), gain=2.0, rho=0.3).gain == 2.0
    with pytest.raises(TypeError, match=r"Own has no argument 'rhoo'. Did you mean 'rho'\?"):
        Own(base(), rhoo=0.3)


def test_signatures_stay() -> None:
    assert list(inspect.signature(SAM).parameters)[:3] == ["base_optimizer", "rho", "adaptive"]
    for entry in registry.REGISTRY.values():
        kind = getattr(optim, entry.class_name)
        names = list(inspect.signature(kind).parameters)
        assert names[0] == ("params" if entry.standalone else "base_optimizer"), kind
        assert kind.__init__.__qualname__ in (f"{kind.__name__}.__init__", f"{SharpnessAware.__name__}.__init__")

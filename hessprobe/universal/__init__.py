"""(phi, psi, mu)-sharpness S = phi(E_mu psi(c u^T H u)): by products, from losses alone, and as a representation.

Everything is loaded on first use, so that the command line can list the names without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hessprobe.universal.catalogue import CATALOGUE, Catalogued
    from hessprobe.universal.definition import Measure
    from hessprobe.universal.losses import evaluate_from_losses
    from hessprobe.universal.products import Forms, agreement, evaluate
    from hessprobe.universal.quadrature import integrate
    from hessprobe.universal.representation import Representation, represent, represent_sum
    from hessprobe.universal.samplers import Point, Sampler
    from hessprobe.universal.spectra import Spectrum

__all__ = [
    "CATALOGUE",
    "Catalogued",
    "Forms",
    "Measure",
    "Point",
    "Representation",
    "Sampler",
    "Spectrum",
    "agreement",
    "evaluate",
    "evaluate_from_losses",
    "integrate",
    "represent",
    "represent_sum",
]

_HOMES = {
    "CATALOGUE": "catalogue",
    "Catalogued": "catalogue",
    "Forms": "products",
    "Measure": "definition",
    "Point": "samplers",
    "Representation": "representation",
    "Sampler": "samplers",
    "Spectrum": "spectra",
    "agreement": "products",
    "evaluate": "products",
    "evaluate_from_losses": "losses",
    "integrate": "quadrature",
    "represent": "representation",
    "represent_sum": "representation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

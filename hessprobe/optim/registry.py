"""Every sharpness-aware optimizer by its name on the command line."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from hessprobe import checks


@dataclass(frozen=True)
class Entry:
    """One optimizer.

    Attributes:
        name: on the command line and in records.
        module: file in ``hessprobe.optim.rules`` that holds it.
        class_name: the class there, named as in its paper.
        summary: one sentence.
        standalone: True where it owns its update and takes parameters in place of a base optimizer.
        arguments: keyword arguments that this name stands for.
    """

    name: str
    module: str
    class_name: str
    summary: str
    standalone: bool = False
    arguments: tuple[tuple[str, Any], ...] = ()

    def load(self) -> Any:
        """Return the class."""
        return getattr(importlib.import_module(f"hessprobe.optim.rules.{self.module}"), self.class_name)


_ENTRIES = (
    Entry("sam", "ascent", "SAM", "the gradient at the end of an ascent step"),
    Entry("gsam", "penalties", "GSAM", "SAM that also lowers the gap to the perturbed loss"),
    Entry("wsam", "penalties", "WSAM", "sharpness as a weighted regularizer"),
    Entry("vasso", "earlier_gradients", "VaSSO", "SAM along an average of gradients"),
    # Methods that save gradients, and standalone ones.
    Entry("adasam", "standalone", "AdaSAM", "SAM's gradient through AMSGrad", standalone=True),
    Entry("ae-looksam", "intermittent", "AELookSAM", "AE-SAM that uses LookSAM's part again in between"),
    Entry("ae-sam", "intermittent", "AESAM", "SAM where the gradient is large beside its average"),
    Entry("bsam", "standalone", "BSAM", "mean and precision of a Gaussian over the weights", standalone=True),
    Entry("esam", "examples", "ESAM", "ascent along some tensors, descent on the examples that it hurts most"),
    Entry("friendly-sam", "earlier_gradients", "FriendlySAM", "SAM along what a batch has beyond the average gradient"),
    Entry("k-sam", "examples", "KSAM", "SAM on the examples with the largest loss"),
    Entry("lightsam", "standalone", "LightSAM", "SAM with adaptive ascent and descent", standalone=True),
    Entry("looksam", "intermittent", "LookSAM", "SAM every k-th step, its slow part used again in between"),
    Entry("momentum-sam", "earlier_gradients", "MomentumSAM", "one gradient, displaced against the base's momentum"),
    Entry("sam-interval", "intermittent", "IntervalSAM", "SAM every k-th step"),
    Entry("sam-sps", "standalone", "SAMSPS", "SAM with Polyak's step size", standalone=True),
    Entry("sassha", "standalone", "SASSHA", "diagonal Newton at SAM's displaced weights", standalone=True),
    Entry("sparse-sam", "masked", "SparseSAM", "SAM that displaces a share of the weights"),
    Entry("ss-sam", "intermittent", "SSSAM", "SAM at random steps"),
    # Rules about where to ascend from, and what to do with the gradients found there.
    Entry("asam", "neighborhood", "ASAM", "SAM in a neighborhood stretched by the size of each weight"),
    Entry("async-sam", "earlier_gradients", "AsyncSAM", "SAM along a gradient of the step before"),
    Entry("c-flat", "penalties", "CFlat", "SAM plus the sharpness gradient where gradients are larger"),
    Entry("cr-sam", "penalties", "CRSAM", "SAM that also lowers the curvature along the ascent"),
    Entry("extragradient", "ascent", "Extragradient", "the gradient after a trial step downhill"),
    Entry("fisher-sam", "neighborhood", "FisherSAM", "SAM in an ellipsoid of the Fisher information"),
    Entry("gam", "penalties", "GAM", "lowers the largest gradient norm nearby"),
    Entry("gcsam", "neighborhood", "GCSAM", "SAM along a centered gradient"),
    Entry("info-sam", "masked", "InfoSAM", "SAM along the entries of the gradient that are known well"),
    Entry("le-sam", "ascent", "LESAM", "SAM with a budget of loss in place of a radius"),
    Entry("lookbehind-sam", "ascent", "LookbehindSAM", "several ascent steps, part of the way back"),
    Entry("m-sam", "examples", "MicroBatchSAM", "SAM on every shard of the batch by itself"),
    Entry("pgn", "penalties", "PGN", "penalizes the gradient norm"),
    Entry("pre-sam", "neighborhood", "PreSAM", "SAM with preconditioners on neighborhood and objective"),
    Entry("rwp", "universal", "RWP", "the gradient under random weight noise"),
    Entry("sagm", "penalties", "SAGM", "matches the gradients of loss and perturbed loss"),
    Entry("sam-on", "masked", "SAMON", "SAM that displaces normalization layers only"),
    Entry("sampa", "earlier_gradients", "SAMPa", "SAM with two gradients that do not wait for each other"),
    Entry("stable-sam", "ascent", "StableSAM", "SAM's direction with the length of the plain gradient"),
    Entry("unified-sam", "ascent", "UnifiedSAM", "between SAM and unnormalized SAM"),
    Entry("usam", "ascent", "USAM", "SAM without normalizing the ascent"),
    Entry("zsharp", "masked", "ZSharp", "SAM along the outstanding entries of the gradient"),
    # The (phi, psi, mu) family, and rules that follow curvature or search.
    Entry("det-sam", "curvature_measures", "DetSAM", "lowers a determinant of the Hessian"),
    Entry("eigen-sam", "eigenvector", "EigenSAM", "SAM tilted towards the top eigenvector"),
    Entry("frob-sam", "curvature_measures", "FrobSAM", "lowers the Frobenius norm of the Hessian"),
    Entry("functional-sam", "functional", "FunctionalSAM", "SAM without the path through the loss's derivative"),
    Entry("trace-sam", "curvature_measures", "TraceSAM", "lowers the trace of the Hessian"),
    Entry("universal-sam", "universal", "UniversalSAM", "lowers any (phi, psi, mu)-sharpness"),
    Entry("x-sam", "eigenvector", "EigenCorrectedSAM", "SAM's gradient less its part along the top eigenvector"),
    Entry("xsam", "xsam", "XSAM", "steps towards the highest loss between ascent and SAM's gradient"),
)

REGISTRY: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def available() -> list[str]:
    """Return the names of all sharpness-aware optimizers, sorted.

    Examples:
        >>> from hessprobe.optim import available
        >>> len(available()), available()[:3]
        (49, ['adasam', 'ae-looksam', 'ae-sam'])
    """
    return sorted(REGISTRY)


def get(name: str) -> Entry:
    """Return the entry ``name``.

    Raises:
        ValueError: unknown; the message names the nearest.
    """
    return REGISTRY[checks.one_of("optimizer", name, available())]

"""The data error of a trace, told from groups of examples where the batches are too few.

A trace is measured over the batches as they are, each with probes of its own and with the fastest products there are.
Where these are fewer than 16, 16 probes are multiplied by the matrix of every group of examples afterwards, in one
pass over the data. Of group g they tell x_g = w^T A_g w, the trace of A_g up to noise that the groups share in part;
its share of the spread between groups is measured over the probes and taken off (``shared_probes_error``). Where the
traces of a near matrix (the Gauss-Newton matrix) are known group by group, only the rest is sampled.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from hessprobe.estimate import Estimate
from hessprobe.estimators.linear import shared_probes_error
from hessprobe.influence import Batches, Influence
from hessprobe.jackknife import GROUPS, DataError, data_error, jackknife_df
from hessprobe.operators import LinearOperator
from hessprobe.probes import ProbeStream

# Probes of the pass. Their number is fixed: where more were drawn only if the noise of a few came out large, what was
# kept was the spread of those runs whose noise was underestimated, three times too much.
_PROBES = 16
# Share of the degrees of freedom that the noise must leave for anything to be said.
_LEFT = 1 / 16
_UNRESOLVED = "data-error-unresolved"


def trace_data(A: LinearOperator, estimate: Estimate, seed: int) -> Estimate:
    """Return an estimate of tr A with the data error of at least 16 groups of examples, where A has fewer terms.

    Left as it is where its terms are as many already or cannot be cut, and an exact one that knows its data error.

    Args:
        A: the operator, counted.
        estimate: of its trace; what it says of the data is replaced.
        seed: of the probes.
    """
    known = A.group_traces()
    if known is not None and len(known[0]) > 1:
        return _with(estimate, Batches(known[0], known[1][None], shared=True), data_error(*known))
    finer = A.grouped(GROUPS)
    untold = estimate.errors.data is None and _UNRESOLVED not in estimate.flags
    if finer.n_terms == 1 or not (untold or (finer.n_terms > A.n_terms and estimate.kind != "exact")):
        return estimate
    batches = _sampled(finer, seed)
    found = shared_probes_error(batches.weights, batches.table)
    resolved = found is not None and found.df >= _LEFT * jackknife_df(batches.weights)
    return _with(estimate, batches, found if resolved else None)


def _with(estimate: Estimate, batches: Batches, found: DataError | None) -> Estimate:
    bare = estimate.without_data()
    return bare.with_(
        errors=bare.errors.with_data(found),
        influence=replace(bare.influence or Influence(), batches=batches),
        flags=(*bare.flags, *(() if found is not None else (_UNRESOLVED,))),
    )


def _sampled(A: LinearOperator, seed: int) -> Batches:
    """Return w^T A_g w of every probe and group; where traces of a near matrix are known, only the rest is sampled."""
    W = ProbeStream(A.dim, seed, "rademacher", A.dtype, A.device, "groups").block(0, _PROBES)
    twin = A.surrogate
    traces = None if twin is None else twin.group_traces()
    weights, columns = zip(*((weight, term.quadratic_forms(W).cpu()) for weight, term in A.terms()), strict=True)
    table = torch.stack(columns, dim=1)
    if twin is not None and traces is not None:
        table = table - torch.stack([term.quadratic_forms(W).cpu() for _, term in twin.terms()], dim=1) + traces[1]
    return Batches(torch.tensor(weights, dtype=torch.float64), table, shared=True)

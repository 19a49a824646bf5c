"""The first terms of an operator that is a sum over data: an eighth of the products, for a start that is near."""

from __future__ import annotations

from hessprobe.operators import LinearOperator, SomeTerms

# Terms from which on a part of them is looked at first, and one over that share of them.
_PART = 8


def leading(A: LinearOperator) -> SomeTerms | None:
    """Return an eighth of the terms; None where they are fewer than eight, or made by several ranks together."""
    return SomeTerms(A, range(A.n_terms // _PART)) if A.n_terms >= _PART and A.ranks is None else None

"""A measure from outside the package; as a program, hessprobe with it."""

from __future__ import annotations

import hessprobe as hp


def mean_curvature(context: hp.measures.Context) -> hp.Estimate:
    return context.trace.scaled(1 / context.A.dim)


ENTRY = hp.measures.Entry(
    "mean-curvature",
    mean_curvature,
    unit="curvature per parameter",
    meaning="mean curvature of a random direction of length 1",
    words="mean curvature",
    needs=("trace",),
    options=("rtol", "n_probes"),
    invariances=("permutation",),
    sharper=True,
)

if __name__ == "__main__":
    hp.measures.register(ENTRY)
    from hessprobe.cli.app import main

    main()

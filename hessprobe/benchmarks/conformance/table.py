"""The cases. Each was seen to go wrong in some tool without a word; adding one is one row."""

from __future__ import annotations

from functools import partial

import torch

from hessprobe.benchmarks.conformance import problems
from hessprobe.benchmarks.conformance.case import Case

F64 = torch.float64
_FLAT = torch.linspace(0.7, 1.3, 60, dtype=F64)
_OUTLIERS = torch.cat([torch.tensor([50.0, 40.0, 20.0], dtype=F64), torch.linspace(-0.2, 0.3, 57, dtype=F64)])
_COPIES = torch.cat([torch.full((9,), 2.0, dtype=F64), torch.linspace(-1, 1, 41, dtype=F64)])
_THREE = torch.tensor([-1.0, 0.5, 2.0], dtype=F64).repeat(8)
_ZERO = torch.zeros(20, dtype=F64)
# A Lanczos run may read a few numbers a step from the device; one for every pair of vectors is too many.
_SYNCS_A_STEP, _STEPS = 4, 100

CASES: tuple[Case, ...] = (
    Case(
        "ragged-batches",
        "Batches of 32, 32, 32 and 4 give the Hessian of all 100 examples.",
        problems.classifier,
        "hvp",
        problems.hvp,
    ),
    Case(
        "ragged-batches-ggn",
        "Batches of 32, 32, 32 and 4 give the Gauss-Newton matrix of all 100 examples.",
        problems.classifier,
        "ggn",
        problems.ggn,
    ),
    Case(
        "padded-tokens",
        "Tokens count, not batches: how a loader batches padded sequences does not change the Hessian.",
        problems.tokens,
        "hvp",
        problems.hvp,
    ),
    Case(
        "own-ignore-index",
        "The same where the loss ignores another label than torch's.",
        partial(problems.tokens, ignored=5),
        "hvp",
        problems.hvp,
    ),
    Case(
        "hidden-ignore-index",
        "The same where a function hides the loss, or a refusal names what is to be told.",
        partial(problems.tokens, ignored=5, hidden=True),
        "hvp",
        problems.hvp,
        refusal="weighting",
    ),
    Case(
        "tiny-loss",
        "A loss times 1e-5 has the eigenvalues times 1e-5.",
        partial(problems.classifier, scale=1e-5, k=2),
        "ends",
        problems.ends,
        tolerance=1e-7,
    ),
    Case(
        "long-vector-differences",
        "Finite differences take a step for the length of the vector.",
        problems.wide,
        "hvp-differences",
        problems.hvp,
        tolerance=0.02,
    ),
    Case(
        "unused-frozen-shared",
        "An unused parameter has a block of zeros, a frozen one none, a shared one a single one.",
        problems.odd,
        "hvp",
        problems.hvp,
    ),
    Case(
        "batchnorm-evaluation",
        "Running statistics are used, and left alone.",
        partial(problems.batchnorm, training=False),
        "hvp",
        problems.hvp,
    ),
    Case(
        "batchnorm-training",
        "In training mode the running statistics are left alone, or an error names BatchNorm.",
        partial(problems.batchnorm, training=True),
        "hvp",
        rule="unchanged",
        refusal="BatchNorm",
    ),
    Case(
        "dropout",
        "Dropout that is switched on does not make two products differ, or an error names it.",
        problems.dropout,
        "hvp",
        rule="repeatable",
        tolerance=1e-12,
        refusal="Dropout",
    ),
    Case(
        "default-attention",
        "Scaled-dot-product attention works as the model has it.",
        partial(problems.tokens, attention=True),
        "hvp",
        problems.hvp,
    ),
    Case(
        "landscape-grid",
        "A plane holds its center, and each value is the loss at the displacement that its axes name.",
        partial(problems.classifier, (8, 3)),
        "grid",
        lambda _: torch.ones(21, dtype=F64),
        reduce=problems.on_grid,
    ),
    Case(
        "coverage-flat",
        "95 % intervals of the trace hold it in 93 % of 300 runs, on a flat spectrum.",
        partial(problems.quadratic, _FLAT, runs=300),
        "trace-intervals",
        lambda _: 0.93,
        "at least",
        reduce=problems.covered,
    ),
    Case(
        "coverage-outliers",
        "The same with three outliers.",
        partial(problems.quadratic, _OUTLIERS, runs=300),
        "trace-intervals",
        lambda _: 0.93,
        "at least",
        reduce=problems.covered,
    ),
    Case(
        "both-ends",
        "The five largest and the five smallest eigenvalues are those, by sign and not by size.",
        partial(problems.classifier, k=5),
        "ends",
        problems.ends,
        tolerance=1e-6,
    ),
    Case(
        "largest-eigenvalue",
        "The largest eigenvalue is a Rayleigh quotient of the matrix itself.",
        partial(problems.quadratic, _OUTLIERS),
        "lambda-max",
        problems.lambda_max,
        tolerance=1e-8,
    ),
    Case(
        "largest-not-magnitude",
        "The largest eigenvalue is not the one of largest size.",
        partial(problems.quadratic, -_OUTLIERS),
        "lambda-max",
        problems.lambda_max,
        tolerance=1e-6,
    ),
    Case(
        "nine-copies",
        "All nine copies of an eigenvalue are found.",
        partial(problems.quadratic, _COPIES, k=10),
        "ends",
        problems.ends,
        tolerance=1e-6,
    ),
    Case(
        "zero-matrix",
        "The Hessian 0 has eigenvalues 0, and no nan.",
        partial(problems.quadratic, _ZERO),
        "ends",
        problems.ends,
    ),
    Case(
        "zero-matrix-density",
        "The Hessian 0 has its density at 0, and no nan.",
        partial(problems.quadratic, _ZERO),
        "density",
        problems.moments,
        reduce=problems.moments_of,
    ),
    Case(
        "breakdown",
        "Chains on a matrix with three different eigenvalues end after three steps: all nodes are eigenvalues.",
        partial(problems.quadratic, _THREE, n_probes=8),
        "density",
        lambda _: torch.zeros(1, dtype=F64),
        reduce=lambda _, density: (density[:, :1] - _THREE[:3]).abs().amin(1)[density[:, 1] > 1e-9].amax()[None],
    ),
    Case(
        "density-weights",
        "The weights of a density are squared first components: they sum to 1 and give the moments.",
        partial(problems.quadratic, _FLAT, n_probes=8),
        "density",
        problems.moments,
        reduce=problems.moments_of,
        tolerance=0.02,
    ),
    Case(
        "right-point",
        "The Hessian is that of the user's loss at the model's parameters.",
        problems.regression,
        "hvp",
        problems.hvp,
    ),
    Case(
        "restarts",
        "The worst loss within a radius, with restarts at random points, is rho^2 lambda_max / 2 at a minimum.",
        partial(problems.quadratic, _FLAT, minimum=True, rho=0.3),
        "worst-sharpness",
        problems.worst,
        tolerance=1e-3,
    ),
    Case(
        "many-probes",
        "256 vectors within 4 MiB: no tensor holds the activations of all.",
        problems.many_probes,
        "hvp",
        lambda problem: float(problem.memory or 0),
        "at most",
        counted="largest-tensor",
    ),
    Case(
        "many-probes-value",
        "256 vectors within 4 MiB are multiplied as one by one.",
        problems.many_probes,
        "hvp",
        problems.hvp,
    ),
    Case(
        "own-generator",
        "A seed gives one number, whatever the global generator.",
        problems.classifier,
        "trace",
        rule="repeatable",
        tolerance=0.0,
    ),
    Case(
        "host-syncs",
        "A Lanczos run reads a few numbers a step from the device, not one for each pair of vectors.",
        partial(problems.quadratic, torch.linspace(-1, 1, _STEPS, dtype=F64)),
        "lambda-max",
        lambda _: float(_SYNCS_A_STEP * _STEPS),
        "at most",
        counted="host-syncs",
    ),
    Case(
        "loss-reads-parameters",
        "A penalty on the model's parameters inside the loss is part of the curvature, or a refusal names it.",
        problems.penalised,
        "hvp",
        problems.hvp,
        refusal="parameters",
    ),
    Case(
        "saved-gradient",
        "A loss that saves its gradient in forward is not differentiated as if the rest were constant.",
        problems.saved_gradient,
        "hvp",
        problems.hvp_by_differences,
        tolerance=1e-5,
        refusal="gradient",
    ),
)

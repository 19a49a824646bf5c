"""The cases of optimizers: SAM as its paper has it, in the circumstances of a training. Adding one is one row."""

from __future__ import annotations

from functools import partial

import torch

from hessprobe.benchmarks.conformance import training as plain
from hessprobe.benchmarks.conformance.case import Case
from hessprobe.benchmarks.conformance.training import by_formula, training

_SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
_ADAMW = {"lr": 0.02, "weight_decay": 0.01}
_STILL = {"lr": 0.0}
# Packages sum norms in float32: 1e-7 of a step.
_NEAR = 1e-6
_SAM = by_formula(plain.sam)

SAM_CASES: tuple[Case, ...] = (
    Case(
        "sam-first-step",
        "A step is w - lr grad L(w + rho g/|g|), with one norm over all tensors.",
        partial(training, 1),
        "sam",
        _SAM,
        tolerance=_NEAR,
    ),
    Case(
        "sam-in-double",
        "The same in double precision to double precision.",
        partial(training, 1),
        "sam",
        _SAM,
        tolerance=1e-12,
    ),
    Case(
        "sam-momentum-decay",
        "Momentum and weight decay belong to the base optimizer, at w: 12 steps.",
        partial(training, options=_SGD),
        "sam",
        _SAM,
        tolerance=_NEAR,
    ),
    Case(
        "sam-adamw",
        "12 steps around AdamW.",
        partial(training, base="adamw", options=_ADAMW),
        "sam",
        _SAM,
        tolerance=_NEAR,
    ),
    Case(
        "sam-groups",
        "Two groups have learning rates and weight decays of their own, and one norm.",
        partial(training, options=_SGD, groups=plain.two_groups),
        "sam",
        _SAM,
        tolerance=_NEAR,
    ),
    Case(
        "sam-group-radii",
        "Two groups have radii of their own.",
        partial(training, options=_SGD, groups=partial(plain.two_groups, rho=0.1)),
        "sam",
        _SAM,
        tolerance=_NEAR,
    ),
    Case(
        "sam-added-group",
        "A group that is added later is trained like the others.",
        partial(training, options=_SGD, groups=plain.first_layer, later=plain.second_layer),
        "sam",
        _SAM,
        tolerance=_NEAR,
    ),
    Case(
        "sam-unused-frozen",
        "A parameter without gradient and a frozen layer stay where they are.",
        partial(training, odd=True),
        "sam",
        _SAM,
        tolerance=_NEAR,
    ),
    Case(
        "sam-stationary",
        "Where the gradient is 0 a step goes nowhere, and there is no nan.",
        partial(training, 2, flat=True),
        "sam",
        _SAM,
        tolerance=0.0,
    ),
    Case(
        "sam-displacement-removed",
        "With learning rate 0 the weights of float32 are bit for bit where they were.",
        partial(training, 3, dtype=torch.float32, options=_STILL),
        "sam",
        plain.start,
        tolerance=0.0,
        reduce=lambda _, path: path[-1:],
    ),
    Case(
        "sam-displacement-bfloat16",
        "The same in bfloat16.",
        partial(training, 3, dtype=torch.bfloat16, options=_STILL),
        "sam",
        plain.start,
        tolerance=0.0,
        reduce=lambda _, path: path[-1:],
    ),
    Case(
        "sam-gradients",
        "12 steps take 24 gradients.",
        partial(training, observe="gradients"),
        "sam",
        lambda _: 24.0,
        "at most",
    ),
    Case(
        "sam-batchnorm",
        "Running statistics are those of the passes at w, not of the displaced ones, without the user's doing.",
        partial(training, 6, batchnorm=True, observe="buffers"),
        "sam",
        _SAM,
        tolerance=_NEAR,
    ),
    Case(
        "sam-scheduler",
        "A scheduler of torch on the optimizer changes the learning rate of the steps.",
        partial(training, scheduled=True),
        "sam",
        _SAM,
        tolerance=_NEAR,
    ),
    Case(
        "sam-resume",
        "A run that is saved and loaded by state_dict after half of its steps is the run without a break.",
        partial(training, options=_SGD, saved_at=6),
        "sam",
        _SAM,
        tolerance=_NEAR,
    ),
    Case(
        "sam-pickle",
        "Network and optimizer go through pickle and on.",
        partial(training, options=_SGD, pickled_at=6),
        "sam",
        _SAM,
        tolerance=_NEAR,
    ),
    Case(
        "torch-closure",
        "step(closure) alone, as optimizers of torch have it, is the same step.",
        partial(training, options=_SGD),
        "sam-torch-closure",
        _SAM,
        tolerance=_NEAR,
    ),
    Case(
        "torch-closure-loss",
        "It returns the loss at w, as optimizers of torch do.",
        partial(training, options=_SGD, observe="losses"),
        "sam-torch-closure",
        _SAM,
        tolerance=_NEAR,
    ),
    Case(
        "asam",
        "ASAM: 12 steps of the formula with T = |w|.",
        partial(training, options=_SGD, rho=0.5),
        "asam",
        by_formula(plain.asam),
        tolerance=_NEAR,
    ),
    Case(
        "gsam",
        "GSAM: 12 steps of the formula.",
        partial(training, options=_SGD, arguments={"alpha": 0.4}),
        "gsam",
        by_formula(plain.gsam),
        tolerance=_NEAR,
    ),
    Case(
        "unified-sam",
        "Unified SAM: 12 steps of the formula.",
        partial(training, options=_SGD, arguments={"lam": 0.3}),
        "unified-sam",
        by_formula(plain.unified_sam),
        tolerance=_NEAR,
    ),
    Case(
        "wsam",
        "WSAM, coupled: 12 steps of the formula.",
        partial(training, options=_SGD, arguments={"gamma": 0.8}),
        "wsam",
        by_formula(plain.wsam),
        tolerance=_NEAR,
    ),
    Case(
        "friendly-sam",
        "Friendly SAM: 12 steps of the formula.",
        partial(training, options=_SGD, arguments={"sigma": 0.9, "lam": 0.7}),
        "friendly-sam",
        by_formula(plain.friendly_sam),
        tolerance=_NEAR,
    ),
    Case(
        "gcsam",
        "GCSAM: the displacement along the centralized gradient is rho long.",
        partial(training, options=_SGD),
        "gcsam",
        by_formula(plain.gcsam),
        tolerance=_NEAR,
    ),
    Case(
        "looksam-gradients",
        "LookSAM with k = 3 takes 16 gradients in 12 steps.",
        partial(training, base="adamw", options=_ADAMW, arguments={"k": 3}, observe="gradients"),
        "looksam",
        lambda _: 16.0,
        "at most",
    ),
)

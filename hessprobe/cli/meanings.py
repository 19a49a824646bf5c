"""What other programs call an option or a value, and what it is called here: the nearest meaning, not spelling."""

from __future__ import annotations

from collections.abc import Collection

# Words of an option elsewhere, without dashes; what they mean here, of which a command has one or none.
_OPTIONS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("radius", "radii", "perturbation", "neighborhood", "neighbourhood", "epsilon", "eps"): ("--rho", "--radius"),
    ("rho",): ("--radius",),
    ("resolution", "grid", "grid-size", "points", "n-points", "num-points", "steps"): ("--size",),
    ("range", "extent", "scale", "distance"): ("--span",),
    ("surface", "plane", "vectors"): ("--directions",),
    ("tol", "tolerance", "rel-tol", "relative-tolerance", "error", "accuracy"): ("--rtol",),
    ("samples", "n-samples", "num-samples", "n-probes", "num-probes", "n-vectors", "num-vectors", "nv"): ("--probes",),
    ("subset", "n-examples", "num-examples", "max-examples", "limit"): ("--examples", "--subset"),
    ("n", "top", "top-k", "n-eig", "num-eig", "n-eigenvalues", "num-eigenvalues", "neigs", "top-n"): ("--k",),
    ("damping", "damp", "delta", "regularization", "ridge", "sigma"): ("--shift",),
    ("ci", "level", "confidence-level"): ("--confidence",),
    ("metric", "metrics", "measures", "quantity", "what"): ("--measure", "--kind"),
    ("learning-rate", "step-size", "eta"): ("--lr",),
    ("wd", "l2"): ("--weight-decay",),
    ("opt", "optim", "algorithm"): ("--optimizer",),
    ("epoch", "n-epochs", "num-epochs", "max-epochs"): ("--epochs",),
    ("arch", "architecture", "network", "net"): ("--model",),
    ("dataset", "data-path", "data-dir"): ("--data",),
    ("criterion", "loss-fn", "loss-function"): ("--loss",),
    ("bs", "batch", "batchsize", "minibatch", "b"): ("--batch-size",),
    ("bn", "batch-norm"): ("--batchnorm",),
    ("gpu", "gpus", "cuda", "cpu", "accelerator"): ("--device",),
    ("precision", "double", "float64", "fp64", "float32", "fp32"): ("--dtype",),
    ("workers", "num-workers", "n-jobs", "cpus", "cores", "j"): ("--threads", "--jobs"),
    ("max-memory", "memory-limit", "mem", "ram"): ("--memory",),
    ("method", "backend", "mode"): ("--engine",),
    ("matrix", "hessian", "ggn", "fisher"): ("--operator",),
    ("random-seed", "random-state", "rng"): ("--seed",),
    ("layers", "layerwise", "per-parameter", "by-layer"): ("--per-layer",),
    ("parameters", "filter", "include"): ("--params",),
    ("overwrite", "replace", "f", "y", "yes"): ("--force",),
    ("continue", "restart"): ("--resume",),
    ("o", "output", "output-file", "save", "output-dir", "outdir", "folder"): ("--out", "--json"),
    ("record", "save-json"): ("--json",),
    ("figure", "fig", "plot"): ("--out",),
    ("table",): ("--csv",),
    ("traceback", "trace"): ("--debug",),
    ("h", "usage", "man"): ("--help",),
}
_MEANT = {word: meant for words, meant in _OPTIONS.items() for word in words}

# The same for the values of options.
_LARGEST = "largest-eigenvalue max-eigenvalue top-eigenvalue lambda_max lmax sharpness hessian-max eigenvalue"
_VALUES: dict[str, dict[str, tuple[str, ...]]] = {
    "--measure": {
        "lambda-max": (*_LARGEST.split(), "eigenvalues", "hessian"),
        "lambda-min": ("smallest-eigenvalue", "min-eigenvalue", "lambda_min", "lmin"),
        "spectral-norm": ("norm", "operator-norm", "2-norm", "spectral"),
        "trace": ("hessian-trace", "laplacian", "tr"),
        "frob": ("frobenius", "frobenius-norm", "fro", "hs-norm"),
        "logdet": ("log-determinant", "determinant", "det", "log-det", "slogdet"),
        "density": ("spectrum", "esd", "spectral-density", "histogram", "dos", "eigenvalue-density"),
        "diagonal": ("diag", "hessian-diagonal"),
        "effective-dimension": ("deff", "effective-parameters", "dof"),
    },
    "--dtype": {
        "float64": ("double", "fp64", "f64", "64"),
        "float32": ("float", "single", "fp32", "f32", "32", "half", "float16", "fp16", "bfloat16", "bf16"),
    },
    "--split": {"test": ("val", "valid", "validation", "eval", "held-out"), "all": ("both", "full", "whole")},
    "--batchnorm": {"batch": ("train", "training"), "eval": ("running", "frozen", "inference")},
    "--operator": {
        "ggn": ("gauss-newton", "gn", "gauss_newton", "generalized-gauss-newton"),
        "fisher": ("fim", "fisher-information", "natural"),
        "hessian": ("h", "exact", "full"),
    },
    "--kind": {"worst": ("max", "maximum", "sam"), "average": ("mean", "random"), "ascent": ("gradient", "one-step")},
}


def option(name: str, known: Collection[str]) -> str | None:
    """Return the option among ``known`` that ``name`` is called elsewhere, or None."""
    meant = _MEANT.get(name.lstrip("-").lower().replace("_", "-"), ())
    return next((each for each in meant if each in known), None)


def value(option: str, given: str, known: Collection[str]) -> str | None:
    """Return the value of ``option`` among ``known`` that ``given`` is called elsewhere, or None."""
    plain = given.lower().replace("_", "-").replace(" ", "-")
    for here, elsewhere in _VALUES.get(option, {}).items():
        if here in known and (plain == here or plain in elsewhere or given.lower() in elsewhere):
            return here
    return None

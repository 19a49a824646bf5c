"""One word for one thing: every public signature uses the project's words, in the same order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import hessprobe as hp
import hessprobe.optim

# Of the command line and of what stands beside the library, no words are promised.
APART = {"benchmarks", "cli", "validation"}
PACKAGES = [
    "hessprobe",
    *(f"hessprobe.{each.name}" for each in iter_modules(hp.__path__) if each.ispkg and each.name not in APART),
]

# What a parameter must not be called, by the word that it has here.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "n_probes": ("probes", "num_probes", "nprobes", "n_vectors", "n_samples", "num_samples", "samples", "draws", "n"),
    "max_probes": ("max_samples", "max_draws"),
    "law": ("distribution", "dist", "probe_law", "probe_kind", "probe_type"),
    "seed": ("random_state", "generator", "rng", "key", "random_seed", "seeds"),
    "rtol": ("tol", "tolerance", "rel_tol", "relative_tolerance", "accuracy", "precision"),
    "atol": ("abs_tol", "absolute_tolerance"),
    "shift": ("damping", "eps", "epsilon", "ridge", "regularization", "lam", "jitter"),
    "matvecs": ("products", "n_products", "num_products", "hvps", "n_matvecs", "num_matvecs"),
    "max_matvecs": ("max_products", "max_hvps", "maxiter", "max_iter", "max_iterations"),
    "expected_matvecs": ("expected_products",),
    "std_error": ("stderr", "std_err", "standard_error", "sem", "se", "error"),
    "confidence": ("level", "alpha_level", "conf", "confidence_level", "delta", "significance", "probability"),
    "progress": ("verbose", "show_progress", "tqdm"),
}
REFUSED = {word: ours for ours, words in SYNONYMS.items() for word in words}

# Where such a word means something else, and what.
OTHERWISE: dict[tuple[str, str], str] = {
    ("Estimate", "samples"): "how many there were, of whatever kind",
    ("Density", "samples"): "likewise",
    ("DiagonalEstimate", "samples"): "likewise",
    ("sampled_trace", "draws"): "indices of random directions, a range",
    ("logdet", "eps"): "smoothing of log|x| in 1/2 log det(A^2 + eps^2 I), which shifts nothing",
    ("smoothed_logdet", "eps"): "likewise",
    ("eigsh", "tol"): "relative residual of a pair, as SciPy's; rtol is the width of an interval",
    ("eigen_plane", "tol"): "likewise",
    ("Applied", "tolerance"): "of the outputs of a transformed network",
    ("Tally", "products"): "a running number, which may be fractional",
    ("Cost", "products"): "beside losses and gradients, each in its own unit",
    ("evaluate", "key"): "of what is stored on disk",
}
# In the optimizers the symbols are those of the papers.
OF_THE_PAPER = {"n", "n_samples", "eps", "lam", "damping", "delta", "tol", "rng", "probability"}


def _public() -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """Yield package, name and callable of everything public, methods included."""
    for package in PACKAGES:
        module = import_module(package)
        for name in getattr(module, "__all__", ()):
            each = getattr(module, name)
            if inspect.isclass(each):
                yield package, name, each
                for method, found in vars(each).items():
                    if not method.startswith("_") and isinstance(found, classmethod | staticmethod):
                        yield package, method, getattr(each, method)
                    elif not method.startswith("_") and inspect.isfunction(found):
                        yield package, method, found
            elif callable(each):
                yield package, name, each


def _parameters(each: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(each).parameters)
    except ValueError:
        return {}


def test_no_parameter_has_another_word_for_what_has_one() -> None:
    seen, wrong = 0, []
    for package, name, each in _public():
        for parameter in _parameters(each):
            seen += 1
            paper = package == "hessprobe.optim" and parameter in OF_THE_PAPER
            if parameter in REFUSED and (name, parameter) not in OTHERWISE and not paper:
                wrong.append(f"{package}.{name}({parameter}=) is {REFUSED[parameter]} here")
    assert not wrong, "\n".join(dict.fromkeys(wrong))
    assert seen > 1000


def test_the_exceptions_are_needed() -> None:
    used = {(name, parameter) for _, name, each in _public() for parameter in _parameters(each)}
    assert set(OTHERWISE) <= used
    optim = {p for package, _, each in _public() if package == "hessprobe.optim" for p in _parameters(each)}
    assert optim >= OF_THE_PAPER


def test_what_draws_takes_a_seed() -> None:
    drawing = {"n_probes", "max_probes", "law", "restarts", "max_matvecs", "n_draws"}
    wrong, found = [], set()
    for package, name, each in _public():
        own = _parameters(each)
        # A result tells with what it was made; a neighborhood brings its seed; a rule draws from its own.
        told = inspect.isclass(each) or "self" in own or "near" in own or "place" in own
        if told or package == "hessprobe.optim" or not drawing & set(own):
            continue
        found.add(name)
        if "seed" not in own:
            wrong.append(f"{package}.{name}")
    assert not wrong
    assert {"trace", "frobenius_norm", "diagonal", "logdet", "spectral_density", "eigsh", "lambda_max"} <= found
    for each in (hp.Fisher, hp.MeasureSettings, hp.SharpnessTracker, hp.compare, hp.landscape):
        assert "seed" in _parameters(each)


def test_what_is_measured_comes_first_and_the_rest_by_keyword() -> None:
    positional = {
        "eigsh": ["A", "k", "which"],
        "solve": ["A", "b"],
        "hvp": ["risk", "v"],
        "measure": ["name", "risk"],
        "landscape": ["risk", "others"],
        "effective_rank": ["trace", "frobenius"],
        "aslinearoperator": ["A"],
    }
    for name in hp.__all__:
        each = getattr(hp, name)
        if inspect.isclass(each) or not callable(each):
            continue
        own = _parameters(each)
        given = [key for key, one in own.items() if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        if name in positional:
            assert given == positional[name], name
        elif {"n_probes", "rtol"} & set(own):
            assert given in (["A"], ["risks"]), name
    for make in (hp.Hessian, hp.GaussNewton):
        assert next(iter(_parameters(make))) == "risk"
        kinds = [one.kind for one in list(_parameters(make).values())[1:]]
        assert set(kinds) == {inspect.Parameter.KEYWORD_ONLY}


def test_the_same_number_of_probes_is_asked_for_in_the_same_words() -> None:
    for each in (
        hp.trace,
        hp.frobenius_norm,
        hp.diagonal,
        hp.logdet,
        hp.spectral_density,
        hp.MeasureSettings,
        hp.compare,
    ):
        assert "n_probes" in _parameters(each)
    assert hp.MeasureSettings(n_probes=64).n_probes == 64


def test_results_have_the_same_words() -> None:
    for each in (hp.Estimate, hp.Eigenpairs):
        assert {"matvecs", "seconds", "method", "flags"} <= set(_parameters(each))
    assert isinstance(hp.Estimate.std_error, property)

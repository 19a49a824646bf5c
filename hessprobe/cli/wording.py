"""The library's words in those of the command line: argument names become options, flags become sentences."""

from __future__ import annotations

import re

from hessprobe.errors import ArgumentMessage

# Arguments of the library that are options by the same name, and those that are by another. ``data`` and ``model`` are
# left out: in most messages they are the things themselves.
_SAME = """batch_size batchnorm case confidence device dtype engine epochs examples k lr measure memory momentum
    operator optimizer params probes radius rho rounds rtol schedule seed shift split weight_decay accumulate amp base
    adaptive eta clip_grad_norm crop data_seed flip label_noise recipe rho_min rho_schedule save_every subset warmup
    image_size label_column text_column decay nesterov"""
OPTIONS = {name: "--" + name.replace("_", "-") for name in _SAME.split()}
OPTIONS |= {"n_probes": "--probes", "eps": "--shift"}
OPTIONS |= {"milestones": "--milestone", "optimizer_args": "--optimizer-arg", "base_args": "--base-arg"}
_NAMES = "|".join(sorted(OPTIONS, key=len, reverse=True))

# Where a message is about them, it is about what was given as these.
_ABOUT = {**OPTIONS, "data": "--data", "model": "--model"}

# Advice that names what the command line does not have, and the advice that holds there.
_PHRASES = (
    (re.compile(r"did not converge to tol=(\S+)"), r"did not converge to a relative residual of \1"),
    (
        re.compile(r"Raise max_matvecs or tol\."),
        "Their intervals allow for that; fewer by --k, or --dtype float64 in place of float32, may converge.",
    ),
    (
        re.compile(r"max_probes must be larger for this tolerance; got (\S+), which leaves"),
        r"the tolerance needs more than the \1 probes allowed, which leave",
    ),
    (
        re.compile(r"Deflate leading eigenvectors, loosen the tolerance, or raise max_probes\."),
        "Pass a larger --rtol, or fix the size with --probes.",
    ),
    (re.compile(r"Raise steps= or shift=\."), "Pass a larger --shift."),
    (re.compile(r"Raise n_probes=, or give a tolerance \(rtol=\)\."), "Pass more --probes, or a smaller --rtol."),
    (re.compile(r"Use a larger memory budget\."), "Pass a larger --memory."),
    (re.compile(r"Use smaller batches, a larger memory budget,"), "Use a smaller --batch-size, a larger --memory,"),
    (re.compile(r"\b([Pp])ass smaller batches"), r"\1ass a smaller --batch-size"),
    (re.compile(r"\b([Uu])se smaller batches"), r"\1se a smaller --batch-size"),
    (re.compile(r"\bUse float64 or raise shift\b"), "Pass a larger --shift, or --dtype float64 in place of float32"),
    (re.compile(r"\bor use a wider dtype\b"), "or pass --dtype float64 in place of float32"),
    (re.compile(r"\bfor split '(\w+)'"), r"for --split \1"),
    (re.compile(r"\bwith a smaller learning rate\b"), "with a smaller --lr"),
)
_GIVEN = re.compile(rf"(?<![\w.-])({_NAMES})=(?:'([^']*)'|\"([^\"]*)\"|([\w+-]+(?:\.\d+)?))?")

FLAGS = {
    "tolerance-missed": "the interval is wider than --rtol asks for; pass more --probes than it took, or a larger "
    "--rtol",
    "budget-exhausted": "the tolerance needs more probes than are allowed; pass a larger --rtol, or --probes N",
    "not-converged": "some eigenvalue has not converged; the interval allows for that",
    "rounding-limited": "eigenvalues are as good as the rounding of the products allows; --dtype float64 in place of "
    "float32 gives more",
    "multiplicity-unverified": "further eigenvalues as large as those reported were not ruled out",
    "wide-bracket": "the bracket of an eigenvalue is wider than --rtol asks for; it holds all the same",
    "uncertified": "a first look: no bracket was asked for, and a larger eigenvalue is not excluded",
    "warm-start": "the search began at given vectors",
    "finite-differences": "products are finite differences; what they are off by, measured with a few probes, is part "
    "of the interval",
    "heavy-tailed": "few eigenvalues carry what is sampled, so the interval covers less often than it says; "
    "more --probes help",
    "data-error-unresolved": "the error from the data being a sample is too small to be resolved from these probes",
    "data-error-noisy": "the error from the data being a sample is itself uncertain; more --probes help",
    "solver-limited": "the error is the solver's, not the probes'; more --probes do not help, a larger --shift does",
    "definiteness-assumed": "the matrix is taken to have no eigenvalue below minus --shift; none was seen",
    "shift-below-rounding": "--shift is near the rounding of the products; pass a larger --shift, or --dtype float64 "
    "in place of float32",
    "heavy-tailed-mean": "few draws carry the mean, so value and interval are not to be trusted",
    "plug-in-bias": "the value is off by a good part of its error, as phi of a mean of few draws is",
    "disagrees-with-hessian": "this and the Hessian-based estimate differ by more than 4 standard errors",
    "uninformative": "the interval is as wide as all that the number can be; pass a larger --shift, a smaller --rtol, "
    "or more --probes",
    "few-probes": "few probes were used, so the error itself is uncertain; pass more --probes",
}


def said_by(error: BaseException) -> str:
    """Return what an error or a warning says in the words of the command line."""
    message = error.args[0] if error.args else None
    return in_options(message if isinstance(message, ArgumentMessage) else str(error))


def in_options(text: str) -> str:
    """Return a message of the library with its argument names as options.

    The argument that a message is about becomes the option of its name. So do those that it gives:
    ``engine='forward_over_reverse'`` becomes ``--engine forward-over-reverse``. What is an option already stays as it
    is.
    """
    if isinstance(text, ArgumentMessage):
        return f"{_ABOUT.get(text.parameter, text.parameter)} {in_options(text.rest)}"
    for pattern, phrase in _PHRASES:
        text = pattern.sub(phrase, text)
    return _GIVEN.sub(_as_option, text)


def flag_sentence(flag: str) -> str:
    """Return what a flag of a result means, in one clause; an unknown flag is its own."""
    place, found, value = flag.removeprefix("non-finite:").partition("=")
    if flag.startswith("non-finite:") and found:
        return f"{value} of {place} are not finite" if " " in value else f"{place} is {value}, null in the record"
    return FLAGS.get(flag, flag)


def _as_option(found: re.Match[str]) -> str:
    option = OPTIONS[found[1]]
    quoted = found[2] if found[2] is not None else found[3]
    if quoted is None:
        return f"{option} {found[4]}" if found[4] else option
    # The shell would expand a glob.
    special = re.search(r"[^\w.:+/-]", quoted)
    word = f"'{quoted}'" if special else quoted
    return f"{option} {word.replace('_', '-') if option == '--engine' else word}"

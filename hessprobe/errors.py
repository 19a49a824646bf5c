"""The kinds of failure a program that calls hessprobe may want to catch.

Bad arguments raise the built-in ``ValueError`` and ``TypeError``, whose message knows the argument that it speaks of
(``about``); the other kinds here are failures of the work itself.
"""

from __future__ import annotations

from collections.abc import Sequence


class ArgumentMessage(str):
    """A sentence about one argument, ``<parameter> must be <requirement>; got <value>. <what to do>``.

    It is the message of a built-in or own error, ``error.args[0]``, so that a program that names its arguments
    otherwise, as the command line does, can put its own name in place of that of Python.

    Attributes:
        parameter: name of the argument in Python.
        rest: what the sentence says of it.
    """

    parameter: str
    rest: str

    def __new__(cls, parameter: str, rest: str) -> ArgumentMessage:
        """Return the sentence ``<parameter> <rest>``."""
        message = super().__new__(cls, f"{parameter} {rest}")
        message.parameter, message.rest = parameter, rest
        return message

    def __reduce__(self) -> tuple[type[ArgumentMessage], tuple[str, str]]:
        return type(self), (self.parameter, self.rest)


def about(parameter: str, rest: str) -> ArgumentMessage:
    """Return the sentence ``<parameter> <rest>``, which knows the argument that it speaks of.

    Example:
        >>> from hessprobe.errors import about
        >>> error = ValueError(about("seed", "must be >= 0; got -1."))
        >>> str(error), error.args[0].parameter
        ('seed must be >= 0; got -1.', 'seed')
    """
    return ArgumentMessage(parameter, rest)


class HessprobeError(Exception):
    """Base of every error that hessprobe raises about the work, not about an argument.

    Examples:
        >>> import torch, hessprobe as hp
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        >>> torch.nn.init.constant_(model[0].weight, float("nan")).shape
        torch.Size([2, 2])
        >>> try:
        ...     hp.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), [(torch.ones(1, 2), torch.tensor([0]))])
        ... except hp.HessprobeError as error:
        ...     print(type(error).__name__)
        NonFiniteError
    """


class CheckpointError(HessprobeError):
    """A checkpoint file that is missing, damaged, of another format, or does not fit the model."""


class PlainWeightsError(CheckpointError):
    """A file of named tensors alone, which does not say what model and data they belong to."""


class RecordError(HessprobeError):
    """A record file that is missing, damaged, or not of the schema that this version reads."""


class JournalError(HessprobeError):
    """The journal of a stopped run that is damaged, or belongs to another run."""


class DataError(HessprobeError):
    """Data that are empty, cannot be read twice, or change between two passes."""


class NondeterministicLossError(HessprobeError):
    """The loss differs between two calls on the same parameters and batch.

    Attributes:
        module: dotted name of the module that caused it, ``""`` where it could not be named.
    """

    def __init__(self, message: str, module: str = "") -> None:
        super().__init__(message)
        self.module = module


class NonFiniteError(HessprobeError):
    """A parameter, a loss or a product with the operator is nan or infinite."""


class UnsupportedError(HessprobeError):
    """The model or loss lacks what this computation needs (a second derivative, an output, a batch rule)."""


class MemoryBudgetError(HessprobeError):
    """The computation does not fit the memory it was given; the message names what would fit."""


class LostRunsError(HessprobeError):
    """Some of several runs died or broke; the others went on to their ends.

    Attributes:
        finished: what the others returned.
    """

    def __init__(self, message: str, finished: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.finished = list(finished)


class RanksError(HessprobeError):
    """Another rank of several has ended or does not answer, so that what they make together cannot be made."""


class NumericalWarning(UserWarning):
    """A number that is usable but weaker than asked for; the result carries a flag that says the same.

    Examples:
        >>> import warnings, numpy as np, hessprobe as hp
        >>> issubclass(hp.NumericalWarning, UserWarning)
        True
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", hp.NumericalWarning)  # inside, a weak number is an error
        ...     hp.frobenius_norm(np.diag([1.0, 2.0]), seed=0).kind
        'exact'
    """


class PlainStepWarning(UserWarning):
    """A sharpness-aware optimizer that is stepped without a closure, so that its base optimizer trains alone."""

"""Parts of ``hessprobe bench`` that take no time: what is tried is what is kept of them."""

from __future__ import annotations

from hessprobe import benchmarks
from hessprobe.benchmarks import answers, family, landscapes, memory, optimizers, processes, products
from hessprobe.benchmarks.conformance import compare
from hessprobe.benchmarks.conformance.case import Verdict


def time_products(case, **_):
    return [products.Timing(case.name, "auto", 1, 2.0, 1.9, 2.1, 1.0, 0.5, 1, 0.1, 0.0)]


def time_answers(network, **_):
    return [answers.Answer(network.name, "one product", "hessprobe", 1.5, 0.1, 2.0, 1.9, 2.1, 1.0, "", True)] * 3


def time_shapes(name, *, rounds):
    return [optimizers.StepTiming(name, "SAM", 1.0, 0.9, 0.8, 1.1, rounds)]


def time_network(*, rounds):
    return [optimizers.StepTiming(optimizers.NETWORK, "SAM", 1.0, 0.9, 0.8, 1.1, rounds)]


def time_planes(case, *, rounds, **_):
    return [landscapes.PlaneTiming(case.name, "hessprobe", 1.0, 2.0, 1.5, 1.4, 1.6, rounds, 9)]


def use(name, what, limit):
    return memory.Used(name, what, limit, 10, 100, 2.5, 0.1, 7.0, 3.0, (2.9, 3.1))


def column(part, name, limit):
    return [compare._cell(part, name, "1", case, Verdict("right", 0.0)) for case in compare.PARTS[part].cases]


def time_optimizers(names, *, rounds):
    return dict.fromkeys(["sgd", *names], (1.0, 0.9, 1.1))


def train_and_measure(name, seed, epochs):
    curvature = dict.fromkeys(family.MEASURES, (2.0 + seed, 0.01))
    return family.TrainedOptimizer(name, seed, 0.91, 1.0, curvature)


def run_apart(function, tasks, *, jobs, finished):
    """In this process, whose moments are counted."""
    for task in tasks:
        finished(processes.Outcome(task, function(*task)))


# What stands for what, and which of them are moments at which a run can end.
PARTS = (
    (benchmarks, "time_products", time_products),
    (answers, "time_answers", time_answers),
    (optimizers, "time_shapes", time_shapes),
    (optimizers, "time_network", time_network),
    (landscapes, "time_planes", time_planes),
    (memory, "use", use),
    (compare, "column", column),
    (family, "train_and_measure", train_and_measure),
)
REST = (
    (family, "time_optimizers", time_optimizers),
    *((module, "run_apart", run_apart) for module in (memory, compare, family)),
)

from __future__ import annotations

import copy
import random
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hessprobe as hp
from hessprobe.errors import DataError, UnsupportedError
from hessprobe.objective import EmpiricalRisk

CE = nn.CrossEntropyLoss()


def problem(rows: int = 60):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    return model, torch.randn(rows, 5), torch.randint(3, (rows,))


@contextmanager
def beside(work):
    """Run ``work`` again and again in another thread while the block runs."""
    stop, failed = threading.Event(), []

    def loop():
        while not stop.is_set():
            try:
                work()
            except Exception as error:
                failed.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield failed
    finally:
        stop.set()
        thread.join()


def test_draws_of_another_thread_are_never_repeated():
    model, inputs, labels = problem()
    risk = EmpiricalRisk(model, CE, DataLoader(TensorDataset(inputs, labels), 20))
    drawn, alone = [], hp.trace(hp.Hessian(risk), n_probes=30, seed=0)

    def draw():
        drawn.append((int(torch.randint(2**62, ())), np.random.random(), random.random()))  # noqa: NPY002

    with beside(draw) as failed:
        found = hp.trace(hp.Hessian(risk), n_probes=30, seed=0)
    assert failed == []
    assert len(drawn) > 100
    for column in zip(*drawn, strict=True):
        assert len(set(column)) == len(column)
    assert found.value == pytest.approx(alone.value, rel=1e-5)


def test_beside_other_threads_the_loader_draws_from_no_shared_generator():
    model, inputs, labels = problem()
    loader = DataLoader(TensorDataset(inputs, labels), 20)
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    thread.start()
    try:
        before = torch.get_rng_state()
        EmpiricalRisk(model, CE, loader).loss()
        assert torch.equal(torch.get_rng_state(), before)
        assert loader.generator is None
    finally:
        leave.set()
        thread.join()


def test_shuffled_loaders_are_still_found_out():
    model, inputs, labels = problem()
    with pytest.raises(DataError, match=r"got another first batch \(DataLoader\(shuffle=True\)\)"):
        EmpiricalRisk(model, CE, DataLoader(TensorDataset(inputs, labels), 20, shuffle=True))


def test_another_thread_is_refused_the_module_and_gets_it_back():
    model, inputs, labels = problem()
    risk = EmpiricalRisk(model, CE, [(inputs, labels)])
    right = model(inputs).detach()
    answers = []
    with risk.evaluating():

        def call():
            try:
                answers.append(model(inputs))
            except UnsupportedError as error:
                answers.append(str(error))

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert answers == [
        "Sequential must not be used while another thread measures it, as it holds other weights for the time being. "
        "Wait for that thread, or measure a copy.deepcopy of the module."
    ]
    assert torch.equal(model(inputs), right)
    assert not model._forward_pre_hooks


def test_two_threads_measure_two_copies_and_not_one_module():
    model, inputs, labels = problem()
    first, second = (EmpiricalRisk(model, CE, [(inputs, labels)]) for _ in range(2))
    other = EmpiricalRisk(copy.deepcopy(model), CE, [(inputs, labels)])
    value, found = float(first.loss()), []

    def measure(risk):
        try:
            found.append(float(risk.loss()))
        except UnsupportedError as error:
            found.append("another thread measures it" in str(error))

    with first.evaluating():
        for risk in (second, other, first):
            thread = threading.Thread(target=measure, args=(risk,))
            thread.start()
            thread.join()
        # The same thread may go on: a risk inside the evaluation of another.
        assert float(second.loss()) == value
    assert found == [True, value, True]
    measure(second)
    assert found[-1] == value


def test_batches_of_a_list_that_are_edited_in_place_are_noticed():
    model, inputs, labels = problem()
    risk = EmpiricalRisk(model, CE, [(inputs[:30], labels[:30]), (inputs[30:].clone(), labels[30:].clone())])
    hessian = hp.Hessian(risk)
    v = torch.ones(1, risk.dim)
    hessian.matvecs(v)
    risk._data[1][0].mul_(2)
    for use in (risk.loss, lambda: hessian.matvecs(v)):
        with pytest.raises(DataError, match="got batch 1 edited in place"):
            use()


def test_tensors_of_inference_mode_are_data_and_no_parameters():
    model, inputs, labels = problem()
    right = hp.Hessian(EmpiricalRisk(model, CE, [(inputs, labels)])).matvecs(torch.ones(1, 57))
    with torch.inference_mode():
        copied, frozen = (inputs.clone(), labels.clone()), nn.Linear(5, 3)
    assert copied[0].is_inference()
    torch.testing.assert_close(hp.Hessian(EmpiricalRisk(model, CE, [copied])).matvecs(torch.ones(1, 57)), right)
    with pytest.raises(UnsupportedError, match=r"parameter 'weight' must be made outside torch\.inference_mode"):
        EmpiricalRisk(frozen, CE, [(inputs, labels)])
    EmpiricalRisk(copy.deepcopy(frozen), CE, [(inputs, labels)])
    with torch.inference_mode(), pytest.raises(UnsupportedError, match=r"measured outside torch\.inference_mode"):
        EmpiricalRisk(model, CE, [(inputs, labels)])


@pytest.mark.parametrize("daemon", [True, False])
def test_a_thread_of_a_notebook_does_not_keep_random_states_from_coming_back(daemon: bool):
    model, inputs, labels = problem()
    risk, leave = EmpiricalRisk(model, CE, [(inputs, labels)]), threading.Event()
    thread = threading.Thread(target=leave.wait, daemon=daemon)
    thread.start()
    try:
        before = torch.get_rng_state()
        with risk.evaluating():
            torch.rand(3)
        assert torch.equal(torch.get_rng_state(), before) == daemon
    finally:
        leave.set()
        thread.join()

from __future__ import annotations

import pathlib
import textwrap

import pytest
import torch
import torch.nn.functional as F
from foreign import EXACT, dense_hessian, numbers, require_equal
from torch import nn

CODE = """
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2))

    def rows(count=10):
        generator = torch.Generator().manual_seed(1)
        return torch.randn(count, 2, generator=generator), torch.randint(2, (count,), generator=generator)

    loss = nn.CrossEntropyLoss()

    def batches():
        x, y = rows()
        return model(), loss, [(x[:7], y[:7]), (x[7:], y[7:])]

    def loader():
        return model(), loss, DataLoader(TensorDataset(*rows()), 4, shuffle=True)

    def dataset():
        return model(), loss, TensorDataset(*rows())

    def splits():
        x, y = rows()
        return model(), loss, {"train": [(x[:7], y[:7])], "test": [(x[7:], y[7:])]}

    def saved(path):
        net = model()
        net.load_state_dict(torch.load(path))
        return net, loss, TensorDataset(*rows())

    def wrong():
        return rows(), model(), loss
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("own.py").write_text(textwrap.dedent(CODE))
    return tmp_path


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2))


def rows():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(10, 2, generator=generator).double(), torch.randint(2, (10,), generator=generator)


def loss_on(places):
    x, y = rows()
    return lambda net: F.cross_entropy(net(x[places]), y[places])


@pytest.mark.parametrize("name", ["batches", "loader", "dataset"])
@pytest.mark.parametrize("options", [(), ("--batch-size", "3")])
def test_a_model_a_loss_and_data(name, options, run, here, model):
    done = run("measure", "--objective", f"own.py:{name}", *options, *EXACT)
    record = require_equal(done, dense_hessian(model, loss_on(range(10))))
    size = 3 if options else {"batches": 7, "loader": 4, "dataset": 10}[name]
    assert (record["data"]["examples"], record["data"]["batches"]) == (10, -(-10 // size))


@pytest.mark.parametrize("name", ["batches", "loader", "dataset"])
def test_drawn_examples_are_the_same_of_every_form(name, run, here, model):
    done = run("measure", "--objective", f"own.py:{name}", "--examples", "6", "--seed", "2", *EXACT)
    drawn = torch.randperm(10, generator=torch.Generator().manual_seed(2))[:6].sort().values
    require_equal(done, dense_hessian(model, loss_on(drawn)))
    many = run("measure", "--objective", f"own.py:{name}", "--examples", "11")
    assert (many.code, "--examples must be at most 10" in many.err) == (2, True)


def test_parameters_splits_and_checkpoints(run, here, model):
    names = ["3.weight", "3.bias"]
    done = run("measure", "--objective", "own.py:splits", "--params", "3.*", "--split", "test", *EXACT)
    require_equal(done, dense_hessian(model, loss_on(range(7, 10)), names))
    done = run("measure", "--objective", "own.py:splits", "--params", "3.*", *EXACT)
    require_equal(done, dense_hessian(model, loss_on(range(7)), names))
    unknown = run("measure", "--objective", "own.py:splits", "--split", "all")
    assert (unknown.code, "--split must be one of train, test" in unknown.err) == (2, True)
    none = run("measure", "--objective", "own.py:dataset", "--split", "test")
    assert (none.code, "--split must be 'all' for data without splits" in none.err) == (2, True)

    model.float()[3].weight.data.mul_(3)
    torch.save(model.state_dict(), "w.pt")
    done = run("measure", "w.pt", "--objective", "own.py:saved", "--params", "3.*", *EXACT)
    require_equal(done, dense_hessian(model, loss_on(range(10)), names))


def test_batchnorm_and_dtype(run, here):
    done = run("measure", "--objective", "own.py:dataset", "--batchnorm", "batch", "--json", "-", "-m", "trace")
    record = numbers(done)["record"]
    assert (record["data"]["batchnorm"], record["data"]["dtype"]) == ("batch", "float32")


def test_what_is_no_such_triple(run, here):
    done = run("measure", "--objective", "own.py:wrong")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "Return (model, loss, data)." in done.err

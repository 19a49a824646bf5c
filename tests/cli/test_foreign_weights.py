from __future__ import annotations

import argparse
import copy
import pathlib
import warnings

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from foreign import EXACT, dense_hessian, require_equal
from torch import nn

FACTORY = """
    from torch import nn

    def make(hidden=3):
        return nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 3))

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x).tanh())

    def number():
        return 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in with a factory in it and data whose classes are numbered."""
    import textwrap

    monkeypatch.chdir(tmp_path)
    pathlib.Path("net.py").write_text(textwrap.dedent(FACTORY))
    generator = np.random.default_rng(0)
    np.savez("data.npz", x=generator.normal(size=(12, 2)), y=generator.integers(0, 3, 12))
    return tmp_path


@pytest.fixture
def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3))


def loss_of(folder):
    data = np.load(folder / "data.npz")
    x, y = torch.tensor(data["x"]), torch.tensor(data["y"])
    return lambda net: F.cross_entropy(net(x), y)


def other(model):
    """The same network with other weights, which must not be taken."""
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.data.mul_(-2)
    return twin


def prefixed(model, prefix):
    return {prefix + name: tensor for name, tensor in model.state_dict().items()}


HIDDEN = {
    "plain": lambda m: m.state_dict(),
    "Lightning-like": lambda m: {"state_dict": prefixed(m, "model."), "epoch": 3, "hyper_parameters": {"lr": 0.1}},
    "model_state_dict": lambda m: {"model_state_dict": m.state_dict(), "optimizer_state_dict": {"state": {}}},
    "DeepSpeed-like": lambda m: {"module": m.state_dict(), "ds_config": {"a": 1}, "optimizer": None},
    "DDP of compiled": lambda m: {"net": prefixed(m, "module._orig_mod.")},
    "compiled parts": lambda m: {n.replace(".", "._orig_mod.", 1): t for n, t in m.state_dict().items()},
    "beside a loss": lambda m: {**prefixed(m, "net."), "criterion.weight": torch.ones(3)},
    "averages beside": lambda m: {"state_dict_ema": other(m).state_dict(), "state_dict": m.state_dict()},
    "a teacher beside": lambda m: {**prefixed(other(m), "teacher."), **prefixed(m, "student.")},
    "deep": lambda m: {"a": {"b": {"weights": prefixed(m, "module.model.")}}},
    "timm's arguments": lambda m: {"arch": "x", "args": argparse.Namespace(lr=0.1, out=pathlib.Path("a")),
                                   "state_dict": m.state_dict(), "metric": np.float64(3.0)},
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_weights_are_found_wherever_a_program_puts_them(name, run, here, model):
    torch.save(HIDDEN[name](model), "w.pt")
    done = run("measure", "w.pt", "--model", "net.py:make", "--data", "npz:data.npz", *EXACT)
    record = require_equal(done, dense_hessian(model, loss_of(here)))
    assert record["checkpoint"]["model"]["name"] == "net.py:make"
    assert record["data"]["examples"] == 12


def test_the_entry_is_said_and_can_be_chosen(run, here, model):
    torch.save(HIDDEN["averages beside"](model), "w.pt")
    arguments = ("measure", "w.pt", "--model", "net.py:make", "--data", "data.npz", *EXACT)
    said = run(*arguments).err
    assert "note: weights taken from 'state_dict'" in said
    assert "also holds 'state_dict_ema', which fit as well: choose by --key" in said
    require_equal(run(*arguments, "--key", "state_dict_ema"), dense_hessian(other(model), loss_of(here)))
    wrong = run(*arguments, "--key", "ema")
    assert wrong.code == 1
    assert "has no entry 'ema'. Choose one of 'state_dict_ema', 'state_dict'." in wrong.err


def test_two_networks_without_a_usual_name_are_asked_for(run, here, model):
    torch.save({**prefixed(other(model), "left."), **prefixed(model, "right.")}, "w.pt")
    arguments = ("measure", "w.pt", "--model", "net.py:make", "--data", "data.npz", *EXACT)
    asked = run(*arguments)
    assert asked.code == 1
    assert "holds several networks that fit: 'left.', 'right.'. Choose one with --key." in asked.err
    require_equal(run(*arguments, "--key", "right"), dense_hessian(model, loss_of(here)))


def test_what_does_not_fit_is_named(run, here, model):
    torch.save({"model": model.state_dict()}, "w.pt")
    done = run("measure", "w.pt", "--model", "net.py:make?hidden=4", "--data", "data.npz")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "w.pt (entry 'model') has 0.weight of shape (3, 2), but the model has (4, 2)." in done.err


def test_arguments_of_the_factory(run, here):
    torch.manual_seed(2)
    wide = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    torch.save(wide.state_dict(), "w.pt")
    done = run("measure", "w.pt", "--model", "net.py:make?hidden=4", "--data", "data.npz", *EXACT)
    require_equal(done, dense_hessian(wide, loss_of(here)))
    typo = run("measure", "w.pt", "--model", "net.py:make?hiden=4", "--data", "data.npz")
    assert (typo.code, "Did you mean 'hidden'?" in typo.err) == (2, True)
    number = run("measure", "w.pt", "--model", "net.py:number", "--data", "data.npz")
    assert (number.code, "must make a torch.nn.Module; got int" in number.err) == (2, True)


def test_a_factory_of_a_package(run, here, model):
    torch.save(model.state_dict(), "w.pt")
    done = run("measure", "w.pt", "--model", "net:make", "--data", "data.npz", *EXACT)
    require_equal(done, dense_hessian(model, loss_of(here)))
    none = run("measure", "w.pt", "--model", "nett:make", "--data", "data.npz")
    assert (none.code, "neither installed nor in this folder" in none.err) == (2, True)


def test_tied_weights_need_one_name(run, here):
    import sys

    from safetensors.torch import save_model

    sys.path.insert(0, str(here))
    try:
        from net import Tied
    finally:
        sys.path.pop(0)
    torch.manual_seed(0)
    tied = Tied()
    save_model(tied, "w.safetensors")
    np.savez("data.npz", x=np.random.default_rng(0).normal(size=(6, 2)), y=[0, 1, 0, 1, 1, 0])
    done = run("measure", "w.safetensors", "--model", "net.py:Tied", "--data", "data.npz", *EXACT)
    require_equal(done, dense_hessian(tied, loss_of(here)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32_and_said(dtype, run, here, model):
    stored = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    torch.save(stored, "w.pt")
    arguments = ("measure", "w.pt", "--model", "net.py:make", "--data", "data.npz")
    done = run(*arguments, *EXACT[:4], *EXACT[6:])
    assert f"note: weights stored in {str(dtype)[6:]} are measured in float32" in done.err
    model.load_state_dict(stored)
    assert require_equal(done, dense_hessian(model, loss_of(here)), 1e-4)["data"]["dtype"] == "float32"


def test_a_distributed_checkpoint(run, here, model):
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": model.state_dict(), "optim": optimizer.state_dict(), "step": 3}, checkpoint_id="saved")
    done = run("measure", "saved", "--model", "net.py:make", "--data", "data.npz", *EXACT)
    record = require_equal(done, dense_hessian(model, loss_of(here)))
    assert record["checkpoint"]["format"] == "torch.distributed.checkpoint"


class Bomb:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("gone"),)


def test_code_in_a_file_is_never_run(run, here, model):
    import pickle

    torch.save({"state_dict": model.state_dict(), "config": Bomb()}, "w.pt")
    torch.save(model, "whole.pt")
    folder = here / "saved"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Bomb()))
    for path, culprit in (("w.pt", "getattr"), ("whole.pt", "torch.nn"), ("saved", "touch")):
        done = run("measure", path, "--model", "net.py:make", "--data", "data.npz")
        assert done.code == 1
        assert "could run code when loaded; nothing was run" in done.err, path
        assert culprit in done.err
    assert not (here / "gone").exists()


def test_programs_are_recognised_and_the_way_out_is_said(run, here, model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, torch.ones(1, 2)).save("traced.pt")
        torch.export.save(torch.export.export(model, (torch.ones(1, 2),)), "exported.pt2")
    pathlib.Path("net.onnx").write_bytes(b"1")
    for path, words in (("traced.pt", "is TorchScript"), ("exported.pt2", "exported program"), ("net.onnx", "ONNX")):
        done = run("measure", path, "--model", "net.py:make", "--data", "data.npz")
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert words in done.err


def test_data_of_numbers_need_a_named_loss(run, here, model):
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(9, 2)), generator.normal(size=(9, 3))
    np.savez("data.npz", inputs=x, targets=y)
    torch.save(model.state_dict(), "w.pt")
    arguments = ("measure", "w.pt", "--model", "net.py:make", "--data", "data.npz", *EXACT)
    asked = run(*arguments)
    assert (asked.code, "--loss must be given" in asked.err) == (2, True)
    x, y = torch.tensor(x), torch.tensor(y)
    require_equal(run(*arguments, "--loss", "mse"), dense_hessian(model, lambda net: F.mse_loss(net(x), y)))
    pathlib.Path("own.py").write_text("def cubic(outputs, targets):\n    return ((outputs - targets) ** 4).mean()\n")
    done = run(*arguments, "--loss", "own.py:cubic")
    require_equal(done, dense_hessian(model, lambda net: ((net(x) - y) ** 4).mean()))


def test_columns_of_a_table(run, here):
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    torch.save(model.state_dict(), "w.pt")
    pathlib.Path("one.py").write_text("from torch import nn\n\ndef make():\n    return nn.Linear(2, 1)\n")
    pathlib.Path("t.csv").write_text("a,price,b\n1,0,2\n3,1,-1\n0.5,1,0.25\n")
    arguments = ("measure", "w.pt", "--model", "one.py:make", "--data", "csv:t.csv", *EXACT)
    asked = run(*arguments)
    assert (asked.code, "Name it by --label-column" in asked.err) == (1, True)
    done = run(*arguments, "--label-column", "price", "--loss", "bce-logits", "--tokenizer", "nowhere")
    assert "note: --tokenizer has no effect here; it is for texts" in done.err
    assert "--label-column has no effect" not in done.err
    x, y = torch.tensor([[1.0, 2], [3, -1], [0.5, 0.25]]).double(), torch.tensor([[0.0], [1], [1]]).double()
    require_equal(done, dense_hessian(model, lambda net: F.binary_cross_entropy_with_logits(net(x), y)))

from __future__ import annotations

import json
import pathlib
import shlex

import numpy as np
import pytest
import torch
from foreign import numbers
from torch import nn

from hessprobe.training import load_checkpoint

FACTORY = "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3))\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def described(run, path):
    done = run("info", path, "--json", "-")
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)["checkpoint"]


def test_weights_of_an_unknown_network(run, here):
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).half()
    content = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": content, "state_dict_ema": content, "global_step": 7, "epoch": 2,
                "optimizer": torch.optim.SGD(model.parameters(), lr=0.25).state_dict()}, "w.ckpt")  # fmt: skip
    found = described(run, "w.ckpt")
    assert found["entry"] == "state_dict/module."
    assert found["other_entries"] == "state_dict_ema"
    assert (found["tensors"], found["parameters"], found["dtype"]) == (4, 21, "float16")
    assert found["modules"] == {"0": 9, "2": 12}
    assert (found["step"], found["epoch"], found["lr"]) == (7, 2, 0.25)
    assert found["command"] == "hessprobe measure w.ckpt --model file.py:factory --data npz:FILE"
    # The command runs once the names in it are there.
    pathlib.Path("file.py").write_text(FACTORY.replace("make", "factory"))
    np.savez("FILE", x=np.ones((2, 2)), y=[0, 1])
    command = shlex.split(found["command"].replace("npz:FILE", "npz:FILE.npz"))[1:]
    assert "trace" in numbers(run(*command, "-m", "trace", "--json", "-"))


def test_a_network_of_hessprobe_itself(run, here, digits_checkpoint):
    torch.save({"model": load_checkpoint(digits_checkpoint).model.state_dict()}, "plain.pt")
    found = described(run, "plain.pt")
    assert found["command"] == "hessprobe measure plain.pt --model mlp:hidden=8 --data npz:FILE"
    command = shlex.split(found["command"].replace("npz:FILE", "digits"))[1:]
    value = numbers(run(*command, "-m", "trace", "--json", "-"))["trace"]
    assert value == numbers(run("measure", digits_checkpoint, "-m", "trace", "--json", "-"))["trace"]


def test_a_folder_of_transformers(run, here):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(vocab_size=14, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
                                     intermediate_size=3, max_position_embeddings=8, num_labels=3)  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained("bert", max_shard_size="1KB")
    done = run("info", "bert")
    assert (done.code, "save_pretrained folder, 2 files of weights" in done.out) == (0, True)
    found = described(run, "bert")
    assert (found["model"], found["command"]) == ("transformers", "hessprobe measure bert --data jsonl:FILE")
    pathlib.Path("FILE").write_text('{"input_ids": [1, 2], "label": 1}\n{"input_ids": [3], "label": 2}\n')
    assert "trace" in numbers(run(*shlex.split(found["command"])[1:], "-m", "trace", "--probes", "2", "--json", "-"))


def test_a_distributed_checkpoint_without_its_optimizer(run, here):
    import warnings

    import torch.distributed.checkpoint as dcp

    model = nn.Linear(2, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint_id="saved")
    found = described(run, "saved")
    assert (found["format"], found["entry"], found["parameters"]) == ("torch.distributed.checkpoint", "model.", 9)


@pytest.mark.parametrize("content", [{"a": 1}, [torch.ones(2)], {}])
def test_a_file_without_weights(run, here, content):
    torch.save(content, "w.pt")
    done = run("info", "w.pt")
    assert (done.code, "holds no state_dict (names with tensors)" in done.err) == (1, True)

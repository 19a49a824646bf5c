from __future__ import annotations

import pathlib
import warnings

import pytest
import torch
import torch.nn.functional as F
from foreign import EXACT, dense_hessian, require_equal

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

ROWS = [[4, 5, 6], [7, 8, 9, 10, 11]]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("t.jsonl").write_text("".join(f'{{"input_ids": {row}}}\n' for row in ROWS))
    return tmp_path


def adapted():
    torch.manual_seed(0)
    sizes = {"vocab_size": 14, "n_positions": 8, "n_embd": 4, "n_layer": 1, "n_head": 1}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=1)
    transformers.GPT2LMHeadModel(config).save_pretrained("base")
    base = transformers.GPT2LMHeadModel.from_pretrained("base", dtype=torch.float32)
    low = peft.LoraConfig(r=1, target_modules=["c_fc"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = peft.get_peft_model(base, low)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    model.save_pretrained("adapter")
    return model


def loss(model):
    sums, count = 0.0, 0
    for row in ROWS:
        tokens = torch.tensor(row)[None]
        sums = sums + F.cross_entropy(model(input_ids=tokens).logits[0, :-1], tokens[0, 1:], reduction="sum")
        count += len(row) - 1
    return sums / count


@pytest.mark.parametrize(
    "arguments", [("adapter",), ("--model", "peft:adapter"), ("adapter", "--model", "peft:adapter?base=base")]
)
def test_the_parameters_of_an_adapter_alone(arguments, run, here):
    model = adapted()
    done = run("measure", *arguments, "--data", "t.jsonl", *EXACT)
    names = [name for name, _ in model.named_parameters() if "lora_" in name]
    model.base_model.model.set_attn_implementation("eager")
    record = require_equal(done, dense_hessian(model, loss, names))
    assert record["data"]["dim"] == sum(p.numel() for n, p in model.named_parameters() if n in names) == 4 + 16
    assert "note: the adapter's parameters alone" in done.err


def test_info_on_an_adapter(run, here):
    adapted()
    done = run("info", "adapter")
    assert "hessprobe measure adapter --data text:FILE" in done.out


def test_a_base_network_that_is_not_there(run, here):
    adapted()
    pathlib.Path("base").rename("moved")
    done = run("measure", "adapter", "--data", "t.jsonl")
    assert (done.code, "is an adapter of base, which is not at that path" in done.err) == (1, True)
    done = run("measure", "--model", "peft:adapter?base=moved", "--data", "t.jsonl", "-m", "trace", "--json", "-")
    assert done.code == 0, done.err

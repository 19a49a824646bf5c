"""Folders that real trainers write, tracked and compared from the command line."""

from __future__ import annotations

import json
import pathlib
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign import EXACT, dense_hessian, numbers, require_equal
from torch import nn

from hessprobe import report

QUICK = ("--rtol", "0.3", "-m", "lambda-max", "--dtype", "float64", "--out", "f.png", "--json", "r.json")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("net.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3))\n"
    )
    generator = np.random.default_rng(0)
    np.savez("data.npz", x=generator.normal(size=(12, 2)), y=generator.integers(0, 3, 12))
    return tmp_path


def train_with_lightning(optimizer=lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9), steps=12, every=5):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl = pytest.importorskip("pytorch_lightning")

    class Module(pl.LightningModule):
        def __init__(self, width=3):
            super().__init__()
            self.save_hyperparameters()
            self.model = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 3))

        def training_step(self, batch, _):
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return optimizer(self.parameters())

    data = np.load("data.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.seed_everything(0, verbose=False)
        module = Module()
        rows = torch.utils.data.TensorDataset(torch.tensor(data["x"]).float(), torch.tensor(data["y"]))
        saver = pl.callbacks.ModelCheckpoint("run", every_n_train_steps=every, save_top_k=-1, save_last=True)
        trainer = pl.Trainer(max_steps=steps, accelerator="cpu", devices=1, logger=False, callbacks=[saver],
                             enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=12))
    return module


def loss_of(model):
    data = np.load("data.npz")
    return F.cross_entropy(model(torch.tensor(data["x"])), torch.tensor(data["y"]))


def test_a_checkpoint_of_lightning(run, here):
    train_with_lightning()
    path = "run/epoch=9-step=10.ckpt"
    done = run("measure", path, "--model", "net.py:make", "--data", "data.npz", *EXACT)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3))
    stored = torch.load(path, weights_only=False)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in stored.items()})
    record = require_equal(done, dense_hessian(model, loss_of))
    assert record["checkpoint"]["format"].startswith("Lightning 2")
    assert "note: weights taken from 'state_dict/model.'" in done.err


def test_a_run_of_lightning_in_the_order_of_its_steps(run, here):
    train_with_lightning()
    done = run("track", "run", "--model", "net.py:make", "--data", "data.npz", *QUICK)
    assert done.code == 0, done.err
    rows = report.read_record("r.json")["results"]
    assert [row["step"] for row in rows] == [5, 10, 12] or [row["step"] for row in rows] == [5, 10]
    # The rate and the momentum of the optimizer's state: 2 (1 + 0.9) / 0.5.
    assert [row["edge"]["plain"] for row in rows] == pytest.approx([7.6] * len(rows))
    assert done.err.count("weights taken from") == 1
    named = run("track", "run/epoch=9-step=10.ckpt", "run/epoch=4-step=5.ckpt", "--model", "net.py:make", "--data",
                "data.npz", *QUICK)  # fmt: skip
    assert named.code == 0
    assert [row["step"] for row in report.read_record("r.json")["results"]] == [5, 10]


def test_adam_has_no_line_of_gradient_descent(run, here):
    train_with_lightning(lambda parameters: torch.optim.Adam(parameters, lr=0.01))
    done = run("track", "run", "--model", "net.py:make", "--data", "data.npz", *QUICK)
    assert "Adam scales its steps, so that no threshold on the Hessian itself decides its stability" in done.out


def train_with_transformers(steps=15, every=5, **options):
    pytest.importorskip("accelerate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        transformers.set_seed(5)
        config = transformers.BertConfig(vocab_size=11, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
                                         intermediate_size=3, max_position_embeddings=8, num_labels=2)  # fmt: skip
        model = transformers.BertForSequenceClassification(config)
        tokens = torch.randint(11, (6, 5), generator=torch.Generator().manual_seed(0))
        rows = [{"input_ids": row, "labels": torch.tensor(int(row[0] > 5))} for row in tokens]
        how = transformers.TrainingArguments(
            output_dir="out", max_steps=steps, per_device_train_batch_size=3, learning_rate=0.1, report_to=[],
            disable_tqdm=True, use_cpu=True, logging_strategy="no", save_strategy="steps", save_steps=every, **options,
        )  # fmt: skip
        transformers.Trainer(model=model, args=how, train_dataset=rows).train()
    with open("rows.jsonl", "w") as file:
        file.writelines(
            json.dumps({"input_ids": row["input_ids"].tolist(), "labels": int(row["labels"])}) + "\n" for row in rows
        )
    return rows


PARAMS = ("--params", "classifier.*", "--params", "*.output.dense.*")


def test_checkpoints_of_the_trainer(run, here):
    rows = train_with_transformers()
    import transformers

    done = run("measure", "out/checkpoint-10", "--data", "rows.jsonl", *PARAMS, *EXACT)
    model = transformers.BertForSequenceClassification.from_pretrained("out/checkpoint-10")
    tokens, labels = (torch.stack([row[key] for row in rows]) for key in ("input_ids", "labels"))
    names = [n for n, _ in model.named_parameters() if n.startswith("classifier.") or ".output.dense." in n]
    hessian = dense_hessian(model, lambda net: F.cross_entropy(net(tokens).logits, labels), names)
    require_equal(done, hessian)

    done = run("track", "out", "--data", "rows.jsonl", *PARAMS, *QUICK)
    assert done.code == 0, done.err
    found = report.read_record("r.json")["results"]
    assert [row["step"] for row in found] == [5, 10, 15]
    top = next(row for row in found if row["step"] == 10)
    value = top["measures"]["lambda-max"]["value"]
    assert value == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-3)
    assert "Adam scales its steps" in done.out


def test_the_rate_of_the_trainer_is_that_of_its_optimizer(run, here):
    train_with_transformers(optim="sgd", lr_scheduler_type="linear")
    done = run("track", "out", "--data", "rows.jsonl", *PARAMS, *QUICK)
    assert done.code == 0, done.err
    rates = [row["lr"] for row in report.read_record("r.json")["results"]]
    assert rates == pytest.approx([0.1 * 2 / 3, 0.1 / 3, 0.0], abs=1e-9)


def test_folders_are_compared(run, here):
    train_with_transformers()
    done = run("compare", "out", "--data", "rows.jsonl", *PARAMS, "-m", "trace", "--json", "-")
    assert done.code == 0, done.err
    record = json.loads(done.out[done.out.index("{\n") :])
    assert [each["label"] for each in record["checkpoints"]] == ["checkpoint-5", "checkpoint-10", "checkpoint-15"]
    single = numbers(run("measure", "out/checkpoint-10", "--data", "rows.jsonl", *PARAMS, "-m", "trace", "--json", "-"))
    value = next(row["value"] for row in record["results"] if row["checkpoint"] == "checkpoint-10")
    assert value == pytest.approx(single["trace"], rel=0.05)


def test_a_folder_of_another_program_is_told_what_to_add(run, here):
    (here / "run" / "checkpoint-1").mkdir(parents=True)
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, "run/checkpoint-1/model.safetensors")
    done = run("track", "run", "--out", "f.png")
    assert (done.code, "holds checkpoints of another program, such as checkpoint-1" in done.err) == (1, True)

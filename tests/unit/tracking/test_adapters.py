"""The adapters inside the real libraries: points at the right steps and rates, and a training that is bit-identical."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from hessprobe.measures import measure
from hessprobe.objective import EmpiricalRisk

OPTIONS = {"every": 2, "measures": ("lambda-max",), "engine": "double_backward"}


def data(n=24):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 6, generator=generator), torch.randint(4, (n,), generator=generator)


@pytest.fixture
def lightning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("pytorch_lightning")


def fit(pl, folder, callbacks, part=True):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4))

        def forward(self, inputs):
            return self.net(inputs)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.seed_everything(3, verbose=False)
        module = Module()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=4, shuffle=True)
        logger = pl.loggers.CSVLogger(folder) if callbacks else False
        trainer = pl.Trainer(max_epochs=1, accelerator="cpu", devices=1, logger=logger, callbacks=callbacks,
                             enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                             accumulate_grad_batches=1, log_every_n_steps=1)  # fmt: skip
        trainer.fit(module, loader)
        if logger:
            logger.save()
    return module, trainer


@pytest.mark.parametrize("part", ["", "net"])
def test_lightning(lightning, tmp_path, part):
    from hessprobe.tracking.lightning import SharpnessCallback

    callback = SharpnessCallback(nn.CrossEntropyLoss(), [data()], part=part, **OPTIONS)
    tracked, _ = fit(lightning, tmp_path, [callback])
    generator = torch.get_rng_state()
    plain, _ = fit(lightning, tmp_path, [])
    assert torch.equal(generator, torch.get_rng_state())
    for (name, one), other in zip(tracked.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    points = callback.tracker.points
    assert [point.step for point in points] == [2, 4, 6]
    # The rates of steps 2, 4 and 6, not those that follow them.
    assert [point.lr for point in points] == pytest.approx([0.05, 0.0125, 0.003125])
    assert [point.edge.plain for point in points] == pytest.approx([3.8 / point.lr for point in points])
    alone = EmpiricalRisk(copy.deepcopy(tracked.net), nn.CrossEntropyLoss(), [data()])
    assert points[-1].values["lambda-max"] == pytest.approx(
        measure("lambda-max", alone, engine="double_backward").value, rel=1e-4
    )
    logged = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "hessprobe/lambda-max" in logged.splitlines()[0]
    assert len(logged.splitlines()) == 4


def test_lightning_refuses_a_part_that_is_not_there(lightning, tmp_path):
    from hessprobe.tracking.lightning import SharpnessCallback

    with pytest.raises(ValueError, match="part must name a submodule; got 'nett'"):
        fit(lightning, tmp_path, [SharpnessCallback(nn.CrossEntropyLoss(), [data()], part="nett", **OPTIONS)])


def run_trainer(folder, callbacks):
    import transformers

    transformers.set_seed(5)
    config = transformers.BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=8, max_position_embeddings=8, num_labels=2)  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    tokens = torch.randint(11, (12, 5), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": torch.tensor(int(row[0] > 5))} for row in tokens]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=5, per_device_train_batch_size=4, learning_rate=0.1, report_to=[],
        save_strategy="no", disable_tqdm=True, use_cpu=True, lr_scheduler_type="linear", logging_strategy="no",
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=rows, optimizers=(optimizer, schedule), callbacks=callbacks
    )
    trainer.train()
    return model, trainer, tokens


def test_transformers(tmp_path):
    pytest.importorskip("accelerate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("transformers")
        from hessprobe.tracking.transformers import SharpnessCallback

        tokens = torch.randint(11, (12, 5), generator=torch.Generator().manual_seed(0))
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": (tokens[:, 0] > 5).long()}
        callback = SharpnessCallback([batch], **OPTIONS)
        tracked, trainer, _ = run_trainer(tmp_path, [callback])
        generator = torch.get_rng_state()
        plain, _, _ = run_trainer(tmp_path, [])
    assert torch.equal(generator, torch.get_rng_state())
    for (name, one), other in zip(tracked.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    points = callback.tracker.points
    assert [point.step for point in points] == [2, 4]
    assert [point.lr for point in points] == pytest.approx([0.05, 0.0125])
    assert [point.edge.plain for point in points] == pytest.approx([40, 160])
    logged = [row for row in trainer.state.log_history if "hessprobe/lambda-max" in row]
    assert [row["step"] for row in logged] == [2, 4]
    assert logged[0]["hessprobe/lambda-max"] == points[0].values["lambda-max"]


def test_the_tracker_is_importable_from_the_top_without_the_libraries():
    import subprocess
    import sys

    code = (
        "import sys, hessprobe; hessprobe.SharpnessTracker; from hessprobe.tracking import SharpnessTracker\n"
        "print(sorted({'pytorch_lightning', 'transformers', 'tensorboard', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

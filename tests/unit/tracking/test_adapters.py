"""The adapters inside the real libraries: points at the right steps and rates, and a training that is bit-identical."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace

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


def fit(pl, folder, callbacks, epochs=1, resume=None, save=False, loader=None, dropout=0.3):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 4)
            )

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
        if loader is None:
            loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=4, shuffle=True)
        logger = pl.loggers.CSVLogger(folder) if callbacks else False
        if save:
            # Before the callbacks under test, which must not matter.
            saver = pl.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=4, save_top_k=-1)
            callbacks = [saver, *callbacks]
        trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", devices=1, logger=logger, callbacks=callbacks,
                             enable_checkpointing=save, enable_progress_bar=False, enable_model_summary=False,
                             accumulate_grad_batches=1, log_every_n_steps=1)  # fmt: skip
        trainer.fit(module, loader, ckpt_path=resume)
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


def numbers(points):
    return [(point.step, point.lr, point.loss, point.gradient_norm, point.matvecs, point.values) for point in points]


def test_lightning_goes_on_from_a_checkpoint(lightning, tmp_path):
    from hessprobe.tracking.lightning import SharpnessCallback

    def callbacks():
        first = SharpnessCallback(nn.CrossEntropyLoss(), [data()], rtol=0.2, **OPTIONS | {"measures": ("frob",)})
        # Another on the same module needs a name of its own.
        return [first, SharpnessCallback(nn.CrossEntropyLoss(), [data(6)], name="few", vectors=False, **OPTIONS)]

    def train(callbacks, resume=None):
        # One batch an epoch and no dropout: Lightning restores neither the order of batches nor random states.
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=24)
        fit(lightning, tmp_path, callbacks, epochs=6, resume=resume, save=True, loader=loader, dropout=0.0)

    whole, resumed = callbacks(), callbacks()
    train(whole)
    saved = tmp_path / "step=4.ckpt"
    content = torch.load(saved, weights_only=True)["callbacks"]
    states = [content[callback.state_key] for callback in whole]
    assert [[point["step"] for point in state["points"]] for state in states] == [[2, 4], [2, 4]]
    assert [state["start"]["eigenvectors"] is None for state in states] == [False, True]
    train(resumed, saved)
    assert [point.step for point in resumed[0].tracker.points] == [2, 4, 6]
    assert numbers(resumed[0].tracker.points) == numbers(whole[0].tracker.points)
    assert resumed[1].tracker.points[-1].values == pytest.approx(whole[1].tracker.points[-1].values, rel=1e-5)
    # The same callbacks again, with another module: the track is turned back to the checkpoint and follows that one.
    before = whole[0].tracker
    train(whole, saved)
    assert whole[0].tracker is not before
    assert numbers(whole[0].tracker.points) == numbers(resumed[0].tracker.points)


def test_lightning_turns_no_track_back_when_a_checkpoint_is_only_validated(lightning):
    from hessprobe.tracking.lightning import SharpnessCallback

    callback = SharpnessCallback(nn.CrossEntropyLoss(), [data()], **OPTIONS)
    for job, kept in (("validate", {}), ("fit", {"points": []})):
        callback.on_load_checkpoint(SimpleNamespace(state=SimpleNamespace(fn=job)), nn.Linear(1, 1), {})
        callback.load_state_dict({"points": []})
        assert callback.state_dict() == kept


def test_lightning_refuses_a_part_that_is_not_there(lightning, tmp_path):
    from hessprobe.tracking.lightning import SharpnessCallback

    with pytest.raises(ValueError, match="part must name a submodule; got 'nett'"):
        fit(lightning, tmp_path, [SharpnessCallback(nn.CrossEntropyLoss(), [data()], part="nett", **OPTIONS)])


def run_trainer(folder, callbacks, resume=None, **options):
    import transformers

    transformers.set_seed(5)
    config = transformers.BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=8, max_position_embeddings=8, num_labels=2)  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    tokens = torch.randint(11, (12, 5), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": torch.tensor(int(row[0] > 5))} for row in tokens]
    how = {"save_strategy": "no", **options}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=5, per_device_train_batch_size=4, learning_rate=0.1, report_to=[],
        disable_tqdm=True, use_cpu=True, lr_scheduler_type="linear", logging_strategy="no", **how,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=rows, optimizers=(optimizer, schedule), callbacks=callbacks
    )
    trainer.train(resume_from_checkpoint=resume)
    return model, trainer, tokens


@pytest.fixture
def trainer_callback():
    """Return what makes a callback for the data of ``run_trainer``."""
    pytest.importorskip("accelerate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("transformers")
        from hessprobe.tracking.transformers import SharpnessCallback
    tokens = torch.randint(11, (12, 5), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": (tokens[:, 0] > 5).long()}
    return lambda **options: SharpnessCallback([batch], **{**OPTIONS, **options})


def test_transformers_goes_on_from_a_checkpoint(trainer_callback, tmp_path):
    options = {"measures": ("frob",), "rtol": 0.3}
    whole, few, resumed = trainer_callback(**options), trainer_callback(name="few"), trainer_callback(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_trainer(tmp_path, [whole, few], save_strategy="steps", save_steps=2)
        saved = tmp_path / "checkpoint-2"
        state = torch.load(saved / "hessprobe-tracker.pt", weights_only=True)
        assert [point["step"] for point in state["points"]] == [2]
        assert (saved / "hessprobe-tracker-few.pt").is_file()
        model, trainer, _ = run_trainer(tmp_path, [resumed], resume=str(saved))
    assert [point.step for point in whole.tracker.points] == [2, 4]
    assert numbers(resumed.tracker.points) == numbers(whole.tracker.points)
    logged = [row["step"] for row in trainer.state.log_history if "hessprobe/frob" in row]
    assert logged == [2, 4]
    # Under another name, which the trainer tells no callback.
    saved.rename(tmp_path / "elsewhere")
    state = SimpleNamespace(global_step=2, is_world_process_zero=True)
    for argument, where in (("resume", {}), ("", {"resume_from_checkpoint": str(tmp_path / "elsewhere")})):
        arguments = SimpleNamespace(**{"output_dir": tmp_path, "resume_from_checkpoint": None, **where})
        moved = trainer_callback(**options, **({argument: tmp_path / "elsewhere"} if argument else {}))
        moved.on_train_begin(arguments, state, None, model=model)
        assert numbers(moved.tracker.points) == numbers(whole.tracker.points[:1])
    arguments.resume_from_checkpoint = None
    with pytest.warns(
        UserWarning, match=r"hessprobe-tracker\.pt is not in .*checkpoint-2: the tracker begins anew at "
    ):
        trainer_callback(**options).on_train_begin(arguments, state, None, model=model)


def test_transformers(trainer_callback, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callback = trainer_callback()
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

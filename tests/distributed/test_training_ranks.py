"""Training on several ranks: the weights and metrics of one process, and each example's pass made once."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from hessprobe.hvp import pool
from hessprobe.training.datasets import DataSet
from hessprobe.training.loop import train
from hessprobe.training.models import build_model
from hessprobe.training.recipe import Recipe

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

# 29 examples to train on: batches of 11, 11 and 7, no multiple of the ranks; with 14, the last has one example.
RUNS = {
    "sgd": ("mlp", {"optimizer": "sgd"}),
    "sam": ("mlp", {"optimizer": "sam", "base": "adamw"}),
    "sam of a cnn": ("cnn", {"optimizer": "sam"}),
    "sgd of a cnn with few examples": ("cnn", {"optimizer": "sgd", "batch_size": 14, "clip_grad_norm": 0.5}),
    "accumulated": ("mlp", {"optimizer": "gsam", "accumulate": 2}),
    "products": ("mlp", {"optimizer": "frob-sam", "rho": 0.01}),
    "losses of examples": ("mlp", {"optimizer": "esam"}),
    "outputs": ("mlp", {"optimizer": "functional-sam"}),
}


def images():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(36, 1, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (36,), generator=generator)
    noisy = labels.clone()
    noisy[::5] = (noisy[::5] + 1) % 3
    return DataSet("images", inputs, noisy, torch.arange(7), 3, clean_labels=labels)


def weights_of(name):
    kind, chosen = RUNS[name]
    arguments = {
        "mlp": {"in_features": 16, "hidden": [6], "n_classes": 3},
        "cnn": {"in_channels": 1, "widths": [4, 5], "n_classes": 3},
    }[kind]
    model = build_model(kind, arguments, 0).double()
    recipe = Recipe(**{"epochs": 2, "batch_size": 11, "lr": 0.1, **chosen})
    trained = train(model, images(), recipe, layout="vector" if kind == "mlp" else "image")
    metrics = {key: value for key, value in trained.metrics.items() if "loss" in key or "accuracy" in key}
    return {"state": dict(trained.model.state_dict()), "metrics": metrics}


def work(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    passed: list[int] = []
    linear = nn.Linear.forward

    def counted(self, inputs):
        if torch.is_grad_enabled() and self.out_features == 3:
            passed.append(len(inputs))
        return linear(self, inputs)

    with pool.shared_out(dist.group.WORLD) as shared:
        found = {name: weights_of(name) for name in RUNS}
        nn.Linear.forward = counted
        weights_of("sam")
        dealt = shared.described()
    torch.save({"found": found, "passed": passed, "dealt": dealt}, folder / f"{world}-{rank}.pt")
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_train_the_weights_of_one_process(tmp_path: Path, world):
    mp.spawn(work, args=(world, tmp_path), nprocs=world)
    alone = {name: weights_of(name) for name in RUNS}
    kept = [torch.load(tmp_path / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
    for name in RUNS:
        for each in kept:
            for key, tensor in alone[name]["state"].items():
                torch.testing.assert_close(each["found"][name]["state"][key], tensor, rtol=1e-10, atol=1e-12)
                # Ranks would drift apart otherwise.
                assert torch.equal(each["found"][name]["state"][key], kept[0]["found"][name]["state"][key])
            for key, value in alone[name]["metrics"].items():
                assert each["found"][name]["metrics"][key] == pytest.approx(value, rel=1e-9), (name, key)
    sizes = [[len(part) for part in torch.arange(n).tensor_split(world)] for n in (11, 11, 7)]
    for rank, each in enumerate(kept):
        # Two passes of SAM over each of three batches, in two epochs, over this rank's examples alone.
        assert each["passed"] == [parts[rank] for parts in sizes for _ in range(2)] * 2
        assert each["dealt"] == {
            "count": world,
            "examples": [sum(parts[one] for parts in sizes) for one in range(world)],
        }

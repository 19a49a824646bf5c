"""Networks, weights and data of torchvision and timm, opened from the command line; see README.md in this folder."""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hessprobe.cli.app import main

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

pytestmark = [
    pytest.mark.vision,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@pytest.fixture
def run(capsys, monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hessprobe", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for label in ("ant", "bee", "cat"):
        pathlib.Path("pictures", label).mkdir(parents=True)
        for index, shape in enumerate(((40, 50, 3), (33, 45, 3))):
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(f"pictures/{label}/{index}.png")
    return tmp_path


def images(size):
    """The same pictures through torchvision's own transforms."""
    from torchvision import transforms as T

    steps = [T.Resize(size), T.CenterCrop(size), T.ToTensor(), T.Normalize(MEAN.flatten(), STD.flatten())]
    rows = list(torchvision.datasets.ImageFolder("pictures", T.Compose(steps)))
    return torch.stack([row[0] for row in rows]).double(), torch.tensor([row[1] for row in rows])


def require_equal(answer, model, size, names, rtol=1e-5):
    """Trace and Frobenius norm by the chosen parameters are those of the dense Hessian."""
    code, out, err = answer
    assert code == 0, err
    found = {row["measure"]: row["value"] for row in json.loads(out)["results"]}
    x, y = images(size)
    model = model.double().eval()
    chosen = {name: parameter.detach() for name, parameter in model.named_parameters() if name in names}
    flat = torch.cat([each.flatten() for each in chosen.values()])

    def loss(theta):
        pieces = theta.split([each.numel() for each in chosen.values()])
        named = {name: piece.view_as(chosen[name]) for name, piece in zip(chosen, pieces, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, named, (x,)), y)

    # The other kernels of attention have no second derivative outside hessprobe.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        hessian = torch.autograd.functional.hessian(loss, flat)
    assert found["trace"] == pytest.approx(float(hessian.trace()), rel=rtol)
    assert found["frob"] == pytest.approx(float(hessian.norm()), rel=rtol)


EXACT = ("-m", "trace", "-m", "frob", "--dtype", "float64", "--rtol", "1e-6", "--split", "all", "--image-size", "32")


def test_a_network_of_torchvision(run, here):
    torch.manual_seed(0)
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=3)
    torch.save({"model": {f"module.{name}": tensor for name, tensor in model.state_dict().items()}, "epoch": 3,
                "args": argparse.Namespace(lr=0.1)}, "s.pth")  # fmt: skip
    answer = run("measure", "s.pth", "--model", "torchvision:shufflenet_v2_x0_5?num_classes=3", "--data", "pictures",
                 "--params", "conv1.1.*", *EXACT, "--json", "-")  # fmt: skip
    require_equal(answer, model, 32, ("conv1.1.weight", "conv1.1.bias"))
    assert "images normalised by imagenet" in answer[2]


def test_info_finds_the_network_and_its_command_runs(run, here):
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), "r.pth")
    code, out, _ = run("info", "r.pth", "--json", "-")
    described = json.loads(out)["checkpoint"]
    assert (code, described["model"]) == (0, "torchvision:resnet18?num_classes=3")
    command = shlex.split(described["command"].replace("FOLDER", "pictures"))[1:]
    code, _, err = run(*command, "--image-size", "32", "--params", "fc.*", "-m", "trace", "--probes", "2")
    assert code == 0, err


def test_a_name_of_two_libraries_is_asked_for(run, here):
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), "r.pth")
    code, _, err = run("measure", "r.pth", "--model", "resnet18", "--data", "pictures", "--image-size", "32")
    assert code == 1
    assert "for another library's: --model torchvision:resnet18 or --model timm:resnet18" in err


def test_a_vision_transformer_of_timm(run, here):
    torch.manual_seed(0)
    options = {"num_classes": 3, "img_size": 32, "embed_dim": 12, "depth": 1, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", **options)
    torch.save({"arch": "vit_tiny_patch16_224", "args": argparse.Namespace(a=1), "state_dict": model.state_dict()},
               "v.pth.tar")  # fmt: skip
    spec = "timm:vit_tiny_patch16_224?" + "&".join(f"{key}={value}" for key, value in options.items())
    answer = run("measure", "v.pth.tar", "--model", spec, "--data", "pictures", "--normalize", "imagenet",
                 "--params", "norm.*", "--params", "blocks.0.norm1.*", *EXACT, "--json", "-")  # fmt: skip
    require_equal(answer, model, 32, ("norm.weight", "norm.bias", "blocks.0.norm1.weight", "blocks.0.norm1.bias"))


def test_a_data_set_of_torchvision(run, here):
    generator = np.random.default_rng(1)
    folder = pathlib.Path("root/cifar-10-batches-py")
    folder.mkdir(parents=True)
    # Made by hand in the layout that torchvision reads, its checksums left aside.
    import pickle
    from unittest import mock

    for name, count in (*((f"data_batch_{k}", 4) for k in range(1, 6)), ("test_batch", 4)):
        content = {"data": generator.integers(0, 256, (count, 3072), dtype=np.uint8), "labels": [0, 1, 2, 1]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b", "c"]}))
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=3)
    torch.save(model.state_dict(), "r.pth")
    arguments = ("measure", "r.pth", "--model", "torchvision:resnet18?num_classes=3", "--data",
                 "torchvision:CIFAR10?root=root", "--params", "fc.*", "-m", "trace", "--json", "-")  # fmt: skip
    with mock.patch("torchvision.datasets.cifar.check_integrity", return_value=True):
        code, out, err = run(*arguments, "--normalize", "cifar10")
    assert code == 0, err
    record = json.loads(out)
    assert (record["data"]["examples"], record["data"]["split"]) == (20, "train")
    code, _, err = run(*arguments[:5], "torchvision:CIFAR10?root=nowhere")
    assert (code, "cannot be read" in err, err.count("\n")) == (1, True, 1)


def test_unknown_names(run, here):
    torch.save({"w": torch.ones(1)}, "w.pt")
    for spec in ("torchvision:resnet19", "timm:resnet19"):
        code, _, err = run("measure", "w.pt", "--model", spec, "--data", "pictures", "--image-size", "32")
        assert (code, "Did you mean 'resnet1" in err) == (2, True), err

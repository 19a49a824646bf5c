from __future__ import annotations

import pathlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign import EXACT, dense_hessian, require_equal
from PIL import Image
from torch import nn

FACTORY = """
    from torch import nn

    def make():
        pool = nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), pool, nn.Flatten(), nn.Linear(2, 2))

    def flat():
        return nn.Linear(75, 2)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Class folders of images of several sizes, and a factory of networks for them."""
    import textwrap

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pathlib.Path("net.py").write_text(textwrap.dedent(FACTORY))
    generator = np.random.default_rng(0)
    for label in ("ant", "bee"):
        pathlib.Path("pictures", label).mkdir(parents=True)
        for index, (height, width) in enumerate(((5, 5), (9, 6), (6, 11), (7, 7))):
            pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"pictures/{label}/{index}.png")
    return tmp_path


def images(size):
    """What the images are by hand: shorter side to ``size``, the middle cut out, on the scale [0, 1]."""
    rows = []
    for path in sorted(pathlib.Path("pictures").rglob("*.png")):
        image = Image.open(path)
        width, height = image.size
        width, height = (size * width // min(image.size), size * height // min(image.size))
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        top, left = round((height - size) / 2), round((width - size) / 2)
        rows.append(torch.tensor(pixels[top : top + size, left : left + size]).movedim(-1, 0).double() / 255)
    return torch.stack(rows), torch.tensor([0] * 4 + [1] * 4)


def model_of(make):
    torch.manual_seed(0)
    model = make()
    torch.save(model.state_dict(), "w.pt")
    return model


def convolutional():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))


IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double()[:, None, :, None, None]


def test_class_folders_of_any_size(run, here):
    model = model_of(convolutional)
    arguments = ("measure", "w.pt", "--model", "net.py:make", "--data", "pictures", "--split", "all")
    asked = run(*arguments)
    assert (asked.code, "images must all have one size" in asked.err, "--image-size" in asked.err) == (1, True, True)
    done = run(*arguments, "--image-size", "5", "--normalize", "imagenet", *EXACT)
    x, y = images(5)
    x = (x - IMAGENET[0]) / IMAGENET[1]
    # The data keep bytes; they are normalised in single precision.
    require_equal(done, dense_hessian(model, lambda net: F.cross_entropy(net(x), y)), 1e-5)
    assert "note: images normalised by imagenet" in done.err
    assert "note: images scaled to a shorter side of 5 and cut to 5 x 5" in done.err


def test_images_as_they_are_for_a_network_of_vectors(run, here):
    model = model_of(lambda: nn.Linear(75, 2))
    done = run("measure", "w.pt", "--model", "net.py:flat", "--data", "image-folder:pictures", "--split", "all",
               "--image-size", "5", "--normalize", "none", *EXACT)  # fmt: skip
    x, y = images(5)
    require_equal(done, dense_hessian(model, lambda net: F.cross_entropy(net(x.flatten(1)), y)), 1e-5)
    assert "note: each image as a vector" in done.err


def test_their_own_mean_and_deviation(run, here):
    model = model_of(convolutional)
    done = run("measure", "w.pt", "--model", "net.py:make", "--data", "pictures", "--image-size", "5", *EXACT)
    x, y = images(5)
    # Every fifth image of a class is held out, beginning with the first.
    x, y = x[[1, 2, 3, 5, 6, 7]], y[[1, 2, 3, 5, 6, 7]]
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True, correction=0)
    require_equal(done, dense_hessian(model, lambda net: F.cross_entropy(net(x), y)), 1e-5)
    assert "normalised by the mean and deviation of these data; --normalize names others" in done.err


def test_options_that_do_not_fit(run, here):
    model_of(convolutional)
    done = run("measure", "w.pt", "--model", "net.py:make", "--data", "digits", "--image-size", "5")
    assert (done.code, "--image-size must be left out for data 'digits'" in done.err) == (2, True)
    done = run(
        "measure", "w.pt", "--model", "net.py:make", "--data", "pictures", "--image-size", "5", "--normalize", "a"
    )
    assert (done.code, "--normalize must be one of imagenet" in done.err) == (2, True)


def test_a_classifier_of_transformers(run, here):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=3,
                                    image_size=6, patch_size=3, num_labels=2)  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained("vit")
    pathlib.Path("vit/preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "size": {"height": 6, "width": 6}}'
    )
    done = run("measure", "vit", "--data", "pictures", "--split", "all", "--params", "classifier.*", *EXACT)
    x, y = images(6)
    x = (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    names = ["classifier.weight", "classifier.bias"]
    require_equal(done, dense_hessian(model, lambda net: F.cross_entropy(net(x).logits, y), names), 1e-5)
    assert "note: images normalised by preprocessor_config.json" in done.err

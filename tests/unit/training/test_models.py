from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from hessprobe.training.models import REGISTRY, build_model, complete_arguments, seeded

SMALL = {
    "mlp": {"hidden": [5, 4], "activation": "tanh"},
    "cnn": {"widths": [3, 4]},
    "resnet": {"blocks": 1, "width": 2, "in_channels": 1},
    "resnet18": {"width": 2, "in_channels": 1},
    "wide-resnet": {"depth": 10, "widen": 1, "in_channels": 1},
    "vgg": {"depth": 11, "width": 2, "in_channels": 1, "image_size": 8},
    "vit": {"image_size": 8, "patch": 4, "layers": 1, "d_model": 8, "n_heads": 2, "in_channels": 1},
    "gpt": {"vocab_size": 7, "context": 6, "layers": 1, "d_model": 8, "n_heads": 2},
}
LAYOUTS = {
    "vector": lambda: torch.rand(3, 64, generator=torch.Generator().manual_seed(0)),
    "image": lambda: torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
    "tokens": lambda: torch.arange(12).reshape(2, 6) % 7,
}


# ResNet-20 and ResNet-18, WRN-28-10 and VGG-16 (one linear layer, no biases before BatchNorm) as others count them.
COUNTS = [
    ("mlp", 17_226),
    ("cnn", 5_178),
    ("resnet", 272_474),
    ("resnet18", 11_173_962),
    ("wide-resnet", 36_479_194),
    ("vgg", 14_724_042),
    ("vit", 192 * 49 + 192 * 64 + 6 * (12 * 192**2 + 13 * 192) + 2 * 192 + 1930),
    ("gpt", 809_856),
]


@pytest.mark.parametrize(("name", "count"), COUNTS)
def test_default_sizes_are_the_published_ones(name, count):
    assert sum(p.numel() for p in build_model(name, {}).parameters()) == count


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_loss_has_a_second_derivative_that_matches_differences_of_the_gradient(name):
    model = build_model(name, SMALL[name], seed=1).double().eval()
    inputs = LAYOUTS[REGISTRY[name].layout]()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    parameters = [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in parameters:  # zero biases put dead units exactly on the kink of relu
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=0.1)

    def gradient(create_graph=False):
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            logits = model(inputs)
            labels = torch.zeros(logits.shape[:-1], dtype=torch.long)
            loss = functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
            return torch.autograd.grad(loss, parameters, create_graph=create_graph)

    v = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    product = torch.autograd.grad(gradient(create_graph=True), parameters, grad_outputs=v)
    step, sides = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, direction in zip(parameters, v, strict=True):
                p.add_(direction, alpha=sign * step)
        sides.append(gradient())
        with torch.no_grad():
            for p, direction in zip(parameters, v, strict=True):
                p.sub_(direction, alpha=sign * step)
    exact = torch.cat([part.flatten() for part in product])
    differences = torch.cat([((a - b) / (2 * step)).flatten() for a, b in zip(*sides, strict=True)])
    assert float((exact - differences).norm() / exact.norm()) < 1e-6


def test_gpt_ties_embeddings_is_causal_and_refuses_long_sequences():
    model = build_model("gpt", SMALL["gpt"], seed=0).eval()
    assert model.head.weight is model.tokens.weight
    untied = build_model("gpt", {**SMALL["gpt"], "tied": False}, seed=0)
    assert untied.head.weight is not untied.tokens.weight
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    changed = torch.tensor([[1, 2, 3, 0, 0, 0]])
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])
    with pytest.raises(ValueError, match=r"at most context = 6 long; got 7"):
        model(torch.zeros(1, 7, dtype=torch.long))


def test_same_seed_same_weights_and_default_generator_untouched():
    state = torch.get_rng_state()
    first, again, other = (build_model("mlp", {}, seed=s).layers[0].weight for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(KeyError), seeded(1, torch.device("cpu")):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)


def test_arguments_are_complete_json_and_user_beats_data_beats_default():
    arguments = complete_arguments("cnn", {"widths": [4]}, {"in_channels": 2, "in_features": 9, "n_classes": 3})
    assert arguments == {"in_channels": 2, "widths": [4], "n_classes": 3}
    assert complete_arguments("mlp", {"n_classes": 5}, {"n_classes": 3})["n_classes"] == 5
    for name in REGISTRY:
        complete = complete_arguments(name, {}, {})
        assert json.loads(json.dumps(complete)) == complete


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mpl", {}, r"model must be one of mlp, cnn, resnet, .*gpt; got 'mpl'\. Did you mean 'mlp'\?"),
        ("mlp", {"hiden": [3]}, r"argument of model 'mlp' must be one of .*Did you mean 'hidden'\?"),
        ("mlp", {"activation": "relo"}, r"activation must be one of relu, tanh, gelu; got 'relo'\. Did you mean"),
        ("mlp", {"hidden": [0]}, r"hidden must be an integer >= 1; got 0"),
        ("cnn", {"widths": []}, r"widths must be at least one number of channels"),
        ("resnet", {"blocks": 0}, r"blocks must be an integer >= 1; got 0"),
        ("wide-resnet", {"depth": 12}, r"depth must be 6n \+ 4 for n >= 1; got 12\. Take 10, 16"),
        ("vgg", {"depth": 12}, r"depth must be one of 11, 13, 16, 19; got 12"),
        ("vgg", {"image_size": [3]}, r"image_size must be one number, or height and width; got \[3\]"),
        ("vit", {"patch": 5}, r"patch must divide the image of 32 x 32 pixels; got 5"),
        ("gpt", {"d_model": 10, "n_heads": 4}, r"d_model must be a multiple of n_heads = 4; got 10"),
    ],
)
def test_wrong_names_and_sizes_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, arguments)


@pytest.mark.parametrize("name", ["cnn", "resnet18", "wide-resnet", "vgg", "vit"])
def test_image_models_take_oblong_color_images(name):
    arguments = {**SMALL[name], "in_channels": 3, "n_classes": 4}
    if "image_size" in arguments:
        arguments["image_size"] = [8, 16]
    assert build_model(name, arguments)(torch.rand(2, 3, 8, 16)).shape == (2, 4)


def test_vit_sees_every_patch_once_in_its_place():
    model = build_model("vit", {**SMALL["vit"], "layers": 1}, seed=0)
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    seen = []
    model.embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(image)
    patches = [image[0, 0, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten() for i in range(2) for j in range(2)]
    assert torch.equal(seen[0][0], torch.stack(patches))

import pytest

from hessprobe.models.spec import ZOO_NAMES, ModelSpec, parse_spec
from hessprobe.training.models import REGISTRY


def test_the_names_of_hessprobes_own_networks():
    assert set(ZOO_NAMES) == set(REGISTRY)


@pytest.mark.parametrize(
    ("text", "kind", "place", "name", "arguments"),
    [
        ("mlp", "zoo", "", "mlp", {}),
        ("zoo:resnet18:width=4", "zoo", "", "resnet18", {"width": 4}),
        ("mlp:hidden=128-64,activation=tanh", "zoo", "", "mlp", {"hidden": [128, 64], "activation": "tanh"}),
        ("torchvision:resnet18?num_classes=10", "torchvision", "", "resnet18", {"num_classes": 10}),
        ("timm:vit_tiny_patch16_224", "timm", "", "vit_tiny_patch16_224", {}),
        ("transformers:/a/b c", "transformers", "", "/a/b c", {}),
        ("a/net.py:make?x=1&y=null&z=True", "file", "a/net.py", "make", {"x": 1, "y": None, "z": True}),
        (r"C:\a\net.py:make", "file", r"C:\a\net.py", "make", {}),
        ("package.module:Factory?w=0.5", "module", "package.module", "Factory", {"w": 0.5}),
        ("net:make", "module", "net", "make", {}),
    ],
)
def test_what_a_text_names(text, kind, place, name, arguments):
    assert parse_spec(text) == ModelSpec(text, kind, name, place, arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("timm:", "Add the name behind the colon"),
        ("net.py:", "Add the name behind the colon"),
        ("mlp:hidden", "must be NAME or NAME:key=value,...; got 'hidden' in 'mlp:hidden'"),
        ("net.py:make?x", "must be KIND:NAME or KIND:NAME?key=value&...; got 'x'"),
    ],
)
def test_what_cannot_be_read_is_refused(text, words):
    with pytest.raises(ValueError, match="--model must be") as told:
        parse_spec(text)
    assert words in str(told.value)

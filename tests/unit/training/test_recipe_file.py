from __future__ import annotations

import pytest

from hessprobe.training.recipe import Recipe, load_recipe, read_recipe, shipped


def test_shipped_recipes_are_whole_and_as_in_the_papers():
    assert shipped() == ["cifar10-paper", "cifar10-quick", "digits"]
    paper = load_recipe("cifar10-paper")
    assert (paper.model, paper.batch_size, paper.lr, paper.momentum, paper.weight_decay, paper.epochs) == (
        "resnet18",
        128,
        0.1,
        0.9,
        5e-4,
        200,
    )
    assert (paper.crop, paper.flip, paper.optimizer, paper.data) == (4, True, "sgd", "")
    assert load_recipe("digits").data == "digits"
    for name in shipped():
        assert load_recipe(name, optimizer="sam", rho=0.1, epochs=3).rho == 0.1


def test_file_is_read_and_every_value_can_be_changed(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('optimizer = "gsam"\nlr = 0.3\nmilestones = [0.2]\n[optimizer_args]\nalpha = 0.7\n')
    assert load_recipe(path) == Recipe(optimizer="gsam", lr=0.3, milestones=(0.2,), optimizer_args={"alpha": 0.7})
    assert load_recipe(path, lr=0.2).lr == 0.2


def test_wrong_files_and_names(tmp_path):
    with pytest.raises(
        ValueError, match=r"or one of cifar10-paper, .*; got 'cifar10-papr'\. Did you mean 'cifar10-paper'"
    ):
        read_recipe("cifar10-papr")
    path = tmp_path / "r.toml"
    path.write_text("learning_rate = 3\nepoch = 1\n")
    with pytest.raises(ValueError, match=r"r\.toml has the unknown key 'learning_rate'\..* Known: model, data"):
        read_recipe(path)
    path.write_text("epoch = 1\n")
    with pytest.raises(ValueError, match=r"has the unknown key 'epoch'\. Did you mean 'epochs'\?"):
        read_recipe(path)
    path.write_text("epochs 3")
    with pytest.raises(ValueError, match=r"r\.toml is not TOML: .* Write lines of 'key = value'\."):
        read_recipe(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"r\.toml is not UTF-8 text"):
        read_recipe(path)
    path.write_text('epochs = "3"')
    with pytest.raises(TypeError, match=r"epochs must be an integer >= 0; got '3'"):
        load_recipe(path)

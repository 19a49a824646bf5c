"""Models, data, recipes and checkpoints: networks whose curvature is worth measuring."""

from hessprobe.training.checkpoint import (
    Checkpoint,
    DataSpec,
    foreign_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from hessprobe.training.datasets import DataSet, load_dataset
from hessprobe.training.loop import EpochReport, Trained, train
from hessprobe.training.recipe import Recipe, load_recipe
from hessprobe.training.run import train_to_file

__all__ = [
    "Checkpoint",
    "DataSet",
    "DataSpec",
    "EpochReport",
    "Recipe",
    "Trained",
    "foreign_checkpoint",
    "load_checkpoint",
    "load_dataset",
    "load_recipe",
    "save_checkpoint",
    "train",
    "train_to_file",
]

"""The networks: how they were trained and how well they do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hessprobe.report.document import Cell, Column, Section, Table, section
from hessprobe.report.schema import objects, part
from hessprobe.report.sections.cells import number_cell, steady_cell
from hessprobe.report.sections.page import Page
from hessprobe.report.typography import percent, share

_COLUMNS = (
    Column("checkpoint"),
    Column("model"),
    Column("parameters", "number"),
    Column("optimizer"),
    Column("epochs", "number"),
    Column("learning rate", "number"),
    Column("radius", "number"),
    Column("train loss", "number"),
    Column("test loss", "number"),
    Column("train acc.", "number"),
    Column("test acc.", "number"),
)


def build(page: Page) -> Section | None:
    """Return the section, or None where no record names a checkpoint."""
    rows = tuple(_row(name, checkpoint) for name, checkpoint in networks(page))
    return section("networks", "Networks", [Table("Checkpoints", _COLUMNS, rows) if rows else None])


def sentences(page: Page) -> Iterator[str]:
    """Yield what each checkpoint is."""
    for name, checkpoint in networks(page):
        metrics, recipe = part(checkpoint, "metrics"), part(checkpoint, "recipe")
        optimizer = recipe.get("optimizer") or checkpoint.get("optimizer")
        trained = f" trained by {optimizer}" if optimizer else ""
        data = part(checkpoint, "data").get("name")
        where = f" on {data}" if data else ""
        accuracy = metrics.get("test_accuracy")
        held_out = f", {percent(accuracy)} right on held-out data" if isinstance(accuracy, float) else ""
        size = checkpoint.get("parameters")
        parameters = f" of {size:,} parameters" if isinstance(size, int) else ""
        yield f"{name} is a network ({_model(checkpoint)}){parameters}{trained}{where}{held_out}."


def networks(page: Page) -> list[tuple[str, Mapping[str, Any]]]:
    """Return name and description of every checkpoint, each content once."""
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for source in page.gathered.sources:
        own = part(source.record, "checkpoint")
        # A comparison has several.
        others = [(str(one.get("label")), part(one, "checkpoint")) for one in objects(source.record, "checkpoints")]
        for name, checkpoint in [(source.subject, own), *others]:
            if checkpoint and name:
                found.setdefault(str(checkpoint.get("sha256")), (name, checkpoint))
    return list(found.values())


def _row(name: str, checkpoint: Mapping[str, Any]) -> tuple[Cell, ...]:
    recipe, metrics = part(checkpoint, "recipe"), part(checkpoint, "metrics")
    size = checkpoint.get("parameters")
    return (
        Cell(name, kind="name"),
        Cell(_model(checkpoint)),
        Cell(f"{size:,}" if isinstance(size, int) else "", size if isinstance(size, int) else None, "number"),
        Cell(str(recipe.get("optimizer") or checkpoint.get("optimizer") or "")),
        *(_number(recipe.get(name)) for name in ("epochs", "lr", "rho")),
        *(_loss(metrics.get(f"{split}_loss")) for split in ("train", "test")),
        *(_share(metrics.get(f"{split}_accuracy")) for split in ("train", "test")),
    )


def _model(checkpoint: Mapping[str, Any]) -> str:
    return str(part(checkpoint, "model").get("name") or "a model")


def _number(value: Any) -> Cell:
    return number_cell(value if _is_number(value) else None)


def _loss(value: Any) -> Cell:
    return steady_cell(value if _is_number(value) else None)


def _share(value: Any) -> Cell:
    return Cell(share(value), value, "number") if _is_number(value) else Cell("", None, "number")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

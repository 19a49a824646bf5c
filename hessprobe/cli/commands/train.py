"""``hessprobe train``: make a checkpoint worth measuring."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessprobe.cli import failures, options

if TYPE_CHECKING:
    from hessprobe.training import Trained

_RECIPE = "Recipe"


@dataclass(frozen=True)
class Request:
    """The options of ``hessprobe train``."""

    out: str
    model: str
    data: str
    optimizer: str
    epochs: int
    lr: float | None
    batch_size: int
    momentum: float
    weight_decay: float
    schedule: str
    seed: int
    device: str | None
    json: str | None
    debug: bool


def train(
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Where to write the checkpoint.")],
    model: Annotated[
        str, typer.Option(metavar="NAME[:k=v,..]", help="mlp, cnn, resnet or gpt, with arguments.")
    ] = "mlp",
    data: Annotated[str, typer.Option(metavar="NAME", help="Data set: digits.")] = "digits",
    optimizer: Annotated[str, typer.Option(metavar="NAME", help="sgd or adamw.", rich_help_panel=_RECIPE)] = "sgd",
    epochs: Annotated[int, typer.Option(help="Passes over the data.", rich_help_panel=_RECIPE)] = 30,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate; the optimizer's usual one.", rich_help_panel=_RECIPE)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples a step.", rich_help_panel=_RECIPE)] = 32,
    momentum: Annotated[float, typer.Option(help="Momentum of sgd.", rich_help_panel=_RECIPE)] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.", rich_help_panel=_RECIPE)] = 0.0,
    schedule: Annotated[
        str, typer.Option(metavar="NAME", help="Learning rate: cosine or constant.", rich_help_panel=_RECIPE)
    ] = "cosine",
    seed: options.Seed = 0,
    device: options.Device = None,
    json: options.Json = None,
    debug: options.Debug = False,
) -> None:
    """Train a network and write a checkpoint.

    Example: hessprobe train --model mlp --data digits --out digits.pt
    """
    run(Request(**locals()))


def run(request: Request) -> None:
    """Train as asked, write the checkpoint and the record, print the outcome."""
    name, arguments = options.parse_model(request.model)
    options.at_least("--seed", request.seed, 0)
    options.check_outputs(out=request.out, json=request.json)

    from hessprobe.cli.load import resolve_device
    from hessprobe.training import DataSpec, Recipe, checkpoint, load_dataset, models

    with failures.as_usage():
        content = load_dataset(request.data)
        complete = models.complete_arguments(name, arguments, content.implied_arguments)
        fields = {key: value for key, value in asdict(request).items() if key in Recipe.__dataclass_fields__}
        recipe = Recipe(**fields)
        layout = models.REGISTRY[name].layout
        content.split("train", layout)
        model = models.build_model(name, complete, recipe.seed)
    device = resolve_device(request.device)
    try:
        trained = _train(model, content, recipe, layout, device)
    except KeyboardInterrupt:
        failures.say("interrupted; no checkpoint was written")
        raise typer.Exit(failures.INTERRUPTED) from None
    spec = DataSpec(request.data, layout, content.sha256)
    checkpoint.save_checkpoint(
        request.out,
        model=trained.model,
        model_name=name,
        model_arguments=complete,
        data=spec,
        recipe=recipe,
        optimizer=trained.optimizer,
        metrics=trained.metrics,
    )
    _publish(request, trained, device)


def _train(model: Any, content: Any, recipe: Any, layout: str, device: Any) -> Trained:
    from hessprobe.cli.progress import progress_bars
    from hessprobe.training import EpochReport, train

    with progress_bars() as update:
        update("training", 0, recipe.epochs, "")

        def report(epoch: EpochReport) -> None:
            update("training", epoch.epoch, epoch.epochs, f"loss {epoch.train_loss:.4g}")

        return train(model, content, recipe, layout=layout, device=device, report=report)


def _publish(request: Request, trained: Trained, device: Any) -> None:
    from hessprobe import report
    from hessprobe.cli import render
    from hessprobe.cli.load import describe_checkpoint
    from hessprobe.training import load_checkpoint

    written = describe_checkpoint(load_checkpoint(request.out))
    if request.json is not None:
        arguments, training = asdict(request), {"metrics": trained.metrics}
        record = report.build_record(
            "train",
            [],
            arguments=arguments,
            seed=request.seed,
            device=device,
            checkpoint=written,
            training=training,
        )
        if request.json == "-":
            sys.stdout.write(report.to_json(record))
            return
        report.write_record(request.json, record)
    console, metrics = render.stdout_console(), trained.metrics
    header = ["split", "loss", "accuracy"]
    rows = [
        [split, f"{metrics[f'{split}_loss']:.4g}", f"{metrics[f'{split}_accuracy']:.2%}"] for split in ("train", "test")
    ]
    render.print_table([(header, rows)], console)
    render.print_line(console, f"wrote {request.out}: {written['parameters']:,} parameters, {metrics['seconds']:.1f} s")

"""``hessprobe train``: make a checkpoint worth measuring."""

from __future__ import annotations

import json as json_tools
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer

from hessprobe.cli import options, outputs, process
from hessprobe.cli.commands import train_options as given
from hessprobe.cli.skeleton import declared, deliver
from hessprobe.errors import ArgumentMessage

if TYPE_CHECKING:
    from rich.console import Console

    from hessprobe.training import Recipe
    from hessprobe.training.run import Plan


@dataclass(frozen=True)
class TrainRequest:
    """The options of ``hessprobe train``; None where the recipe decides."""

    out: given.Out
    recipe: given.RecipeSource = None
    model: given.Model = None
    data: given.Data = None
    subset: given.Subset = None
    label_noise: given.LabelNoise = None
    data_seed: given.DataSeed = None
    crop: given.Crop = None
    flip: given.Flip = None
    optimizer: given.Optimizer = None
    base: given.Base = None
    base_arg: given.BaseArg = None
    rho: given.Rho = None
    rho_schedule: given.RhoSchedule = None
    rho_min: given.RhoMin = None
    optimizer_arg: given.OptimizerArg = None
    momentum: given.Momentum = None
    nesterov: given.Nesterov = None
    weight_decay: given.WeightDecay = None
    decay: given.Decay = None
    clip_grad_norm: given.ClipGradNorm = None
    epochs: given.Epochs = None
    lr: given.Lr = None
    batch_size: given.BatchSize = None
    accumulate: given.Accumulate = None
    schedule: given.Schedule = None
    warmup: given.Warmup = None
    milestone: given.Milestone = None
    gamma: given.Gamma = None
    amp: given.Amp = None
    seed: given.Seed = None
    save_every: given.SaveEvery = None
    resume: given.Resume = False
    device: options.Device = None
    json: options.Json = None
    debug: options.Debug = False


@declared(TrainRequest)
def train(request: TrainRequest) -> None:
    """Train a network and write a checkpoint.

    The state of the run lies beside it until it is done, written as often as costs a twentieth of the time: what a kill
    costs is those steps. --resume goes on from it, to the same bits.

    Example: hessprobe train --model mlp --data digits --optimizer sam --out digits.pt
    """
    run(request)


def run(request: TrainRequest) -> None:
    """Train as asked, write the checkpoint and the record, print the outcome."""
    options.at_least("--save-every", request.save_every, 1)
    options.check_outputs(out=request.out, json=request.json)

    with outputs.starting():
        from hessprobe.cli.load import resolve_device
        from hessprobe.training.run import make_plan

        process.settle_threads()
        with process.as_usage():
            recipe = _recipe(request)
            name, arguments = options.parse_model(recipe.model)
            device = resolve_device(request.device)
    with process.as_usage(), outputs.progress_bars() as update:
        plan = make_plan(recipe, request.out, name, arguments, save_every=request.save_every, report=update)
    resume = request.resume or (outputs.current_invocation().goes_on and _has_begun(plan, request.json, device))
    if resume and _is_done(plan):
        process.say(f"{request.out} is the finished run of this recipe; nothing is left to do")
        if request.json is not None:
            # It may have ended between the two files.
            _publish(request, plan, device)
        return
    if not (outputs.current_invocation().force or (resume and plan.resume_path.exists())):
        _require_own(plan)
    if not outputs.current_invocation().force:
        _require_checkpoints(plan)
    try:
        _train(plan, resume, device)
    except KeyboardInterrupt:
        process.say(_after_interruption(plan))
        raise typer.Exit(process.INTERRUPTED) from None
    _publish(request, plan, device)


def _recipe(request: TrainRequest) -> Recipe:
    from hessprobe.training import Recipe, optimizers
    from hessprobe.training.recipe import read_recipe

    values = {} if request.recipe is None else read_recipe(request.recipe)
    own = {key: value for key, value in asdict(request).items() if key in Recipe.__dataclass_fields__}
    own |= {"milestones": request.milestone}
    changes = {key: value for key, value in own.items() if value is not None}
    if request.optimizer is not None and request.optimizer != values.get("optimizer", "sgd"):
        # Numbers that the recipe gives to another optimizer are not meant for this one.
        others: tuple[str, ...] = ("rho", "rho_schedule", "optimizer_args", "base_args", "nesterov")
        base = str(request.base or values.get("base", "sgd"))
        is_known = request.optimizer in optimizers.names() and base in optimizers.BASES
        if is_known and not optimizers.takes(request.optimizer, base, "weight_decay"):
            others += ("weight_decay", "decay")
        values = {key: value for key, value in values.items() if key not in others}
    if request.base is not None and request.base != values.get("base", "sgd"):
        values.pop("base_args", None)
    typed = set(changes)
    for name, texts in (("optimizer", request.optimizer_arg), ("base", request.base_arg)):
        given = dict(_argument(f"--{name}-arg", text) for text in texts or [])
        typed |= {f"{name}_args"} if given else set()
        of_recipe = values.get(f"{name}_args", {})
        # What is no table is refused below, by name.
        changes[f"{name}_args"] = {**of_recipe, **given} if isinstance(of_recipe, dict) else of_recipe
    try:
        recipe = Recipe(**{**values, **changes})
    except (ValueError, TypeError) as error:
        raise _of_file(error, str(request.recipe), values.keys() - typed) from error
    if request.momentum is not None and not optimizers.takes(recipe.optimizer, str(recipe.base), "momentum"):
        raise process.UsageError(
            f"--momentum must be left out for {request.optimizer or recipe.optimizer} with base {recipe.base}, which "
            f"has none; got {request.momentum:g}."
        )
    return recipe


def _of_file(error: Exception, recipe: str, keys: Collection[str]) -> Exception:
    """Return an error about a number, which names the recipe in place of an option where that is where it stands."""
    message = error.args[0] if error.args else None
    if not isinstance(message, ArgumentMessage) or message.parameter not in keys:
        return error
    return process.UsageError(f"{message.parameter} in {recipe} {message.rest}")


def _argument(option: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key.strip() and equals):
        raise process.UsageError(f"{option} must be KEY=VALUE; got {text!r}. Write e.g. alpha=0.3.")
    try:
        return key.strip(), json_tools.loads(value.lower() if value.lower() in ("true", "false") else value)
    except ValueError:
        return key.strip(), value


def _has_begun(plan: Plan, json: str | None, device: Any) -> bool:
    """Return whether a stopped run of this very plan has left its state, or a checkpoint and no record yet."""
    from hessprobe.errors import CheckpointError
    from hessprobe.training import load_checkpoint
    from hessprobe.training.run import changed_from

    unfinished = plan.resume_path.exists()
    if not unfinished and os.path.exists(str(json)):
        return False
    try:
        found = load_checkpoint(plan.resume_path if unfinished else plan.out)
    except CheckpointError:
        return False
    return changed_from(plan, found) is None and found.progress.get("device", device.type) == device.type


def _is_done(plan: Plan) -> bool:
    from hessprobe.training import load_checkpoint
    from hessprobe.training.checkpoint import is_checkpoint
    from hessprobe.training.run import require_same_run

    if plan.resume_path.exists() or not plan.out.exists():
        if not plan.resume_path.exists():
            process.say(f"no stopped run at {plan.resume_path}; beginning a new one")
        return False
    if not is_checkpoint(plan.out):
        raise process.UsageError(f"{plan.out} is not a checkpoint of hessprobe train. Choose another --out.")
    with process.as_usage():
        require_same_run(plan, load_checkpoint(plan.out))
    return True


def _require_own(plan: Plan) -> None:
    """Refuse to replace a checkpoint that another run left; what this one would make again may go.

    Raises:
        UsageError: names what tells the two apart.
    """
    from hessprobe.errors import CheckpointError
    from hessprobe.training import load_checkpoint
    from hessprobe.training.run import changed_from

    if not plan.out.is_file() or not plan.out.stat().st_size:
        return
    try:
        changed = changed_from(plan, load_checkpoint(plan.out))
    except CheckpointError:
        changed = ("format", "damaged or of another version", "")
    if changed is not None:
        name, before, now = changed
        here = f", here {now}" if now != "" else ""
        raise process.UsageError(
            f"--out must not replace the checkpoint of another run; got {str(plan.out)!r} "
            f"({name.replace('_', ' ')}: there {before}{here}). Choose another name, or pass --force."
        )


def _require_checkpoints(plan: Plan) -> None:
    """Refuse to replace files on the way, whose names are not typed, that are none of ours.

    Raises:
        UsageError: names the first.
    """
    every = plan.save_every
    epochs = () if every is None else range(0, plan.recipe.epochs + 1, every)
    for path in (plan.resume_path, *map(plan.epoch_path, epochs)):
        if path.exists() and not outputs.is_checkpoint(path):
            raise process.UsageError(
                f"--out must leave {str(path)!r} free, which is written on the way and is no checkpoint of hessprobe; "
                f"got {str(plan.out)!r}. Choose another name, or pass --force."
            )


def _train(plan: Plan, resume: bool, device: Any) -> None:
    from hessprobe.training import EpochReport, train_to_file
    from hessprobe.training.run import read_state

    with process.as_usage():
        begun = read_state(plan) if resume else None
    if begun is not None:
        process.settle_threads(begun.get("threads"))
    epochs, remark = plan.recipe.epochs, [""]
    with outputs.progress_bars() as update:
        update("training", begun["epoch"] if begun else 0, epochs, "")

        def report(epoch: EpochReport) -> None:
            held_out = "" if epoch.test_accuracy is None else f", held out {epoch.test_accuracy:.2%}"
            so_far = f"loss {epoch.train_loss:.4g}, accuracy {epoch.train_accuracy:.2%}{held_out}"
            remark[0] = f"epoch {epoch.epoch} of {epochs}: {so_far}"
            update("training", epoch.epoch, epochs, remark[0])

        def tick(done: float) -> None:
            update("training", done, epochs, remark[0])

        with process.as_usage():
            train_to_file(plan, device=device, resume=resume, report=report, tick=tick)


def _after_interruption(plan: Plan) -> str:
    if plan.resume_path.exists():
        return f"interrupted; the same command with --resume continues from {plan.resume_path}"
    return "interrupted; no checkpoint was written"


def _publish(request: TrainRequest, plan: Plan, device: Any) -> None:
    from hessprobe import report
    from hessprobe.cli import render
    from hessprobe.cli.load import describe_checkpoint
    from hessprobe.training import load_checkpoint

    stored = load_checkpoint(request.out)
    written, metrics = describe_checkpoint(stored), stored.metrics
    record = report.build_record(
        "train",
        [],
        arguments=asdict(request),
        seed=plan.recipe.seed,
        device=device,
        checkpoint=written,
        training={"metrics": metrics},
    )

    def show(console: Console) -> None:
        header = ["split", "loss", "accuracy"]
        present = [split for split in ("train", "test") if f"{split}_loss" in metrics]
        rows = [[split, f"{metrics[f'{split}_loss']:.4g}", f"{metrics[f'{split}_accuracy']:.2%}"] for split in present]
        render.print_table([(header, rows)], console)
        if "train_clean_accuracy" in metrics:
            render.print_line(
                console,
                f"train against the right labels {metrics['train_clean_accuracy']:.2%}; "
                f"wrong labels learnt {metrics['train_noisy_accuracy']:.2%}",
            )
        if plan.save_every is not None:
            saved = [plan.epoch_path(epoch) for epoch in range(0, plan.recipe.epochs + 1, plan.save_every)]
            render.print_line(console, f"wrote {len(saved)} on the way: {saved[0]} to {saved[-1].name}")
        size = f"{written['parameters']:,} parameters, {metrics['seconds']:.1f} s"
        render.print_line(console, f"wrote {request.out}: {size}")

    deliver(record, request.json, show)

"""The options of ``hessprobe train``. Each that is not given is taken from the recipe."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hessprobe.cli import completion

_WHAT, _OPTIMIZER, _LENGTH, _FILES = "What is trained, on what", "Optimizer", "Length and rates", "Files"


def _option(
    *names: str, help: str, panel: str, metavar: str | None = None, complete: completion.Complete | None = None
) -> Any:
    return typer.Option(
        *names, help=help, rich_help_panel=panel, metavar=metavar, show_default=False, autocompletion=complete
    )


Out = Annotated[str, _option("--out", metavar="FILE", help="Where to write the checkpoint.", panel=_FILES)]
SaveEvery = Annotated[
    int | None,
    _option(
        "--save-every", metavar="K", panel=_FILES, help="Also write FILE-epoch-0000, -000K, ...: a trajectory to track."
    ),
]
Resume = Annotated[
    bool,
    _option(
        "--resume", panel=_FILES, help="Continue the stopped run of the same --out, bit for bit, where there is one."
    ),
]
RecipeSource = Annotated[
    str | None,
    _option(
        "--recipe",
        metavar="NAME|FILE",
        panel=_WHAT,
        help="digits, cifar10-quick, cifar10-paper, or a TOML file; other options go over what it says.",
    ),
]
Model = Annotated[
    str | None,
    _option(
        "--model",
        metavar="NAME[:k=v,..]",
        panel=_WHAT,
        complete=completion.models,
        help="mlp (the default), cnn, resnet (ResNet-20), resnet18, wide-resnet, vgg, vit or gpt, with arguments.",
    ),
]
Data = Annotated[
    str | None,
    _option(
        "--data",
        metavar="NAME",
        panel=_WHAT,
        help="digits (the default), synthetic[:k=v,..], image-folder:PATH (class folders, also in a tar), "
        "hf:NAME_OR_PATH or text:PATH.",
    ),
]
Subset = Annotated[
    float | None, _option("--subset", metavar="S", help="Share of the training examples, in (0, 1].", panel=_WHAT)
]
LabelNoise = Annotated[
    float | None, _option("--label-noise", metavar="S", help="Share of training labels made wrong.", panel=_WHAT)
]
DataSeed = Annotated[
    int | None, _option("--data-seed", metavar="N", help="Which examples and labels these are.", panel=_WHAT)
]
Crop = Annotated[
    int | None, _option("--crop", metavar="PIXELS", help="Shift images at random by up to so many.", panel=_WHAT)
]
Flip = Annotated[bool | None, _option("--flip/--no-flip", help="Mirror images at random.", panel=_WHAT)]
Optimizer = Annotated[
    str | None,
    _option(
        "--optimizer",
        metavar="NAME",
        panel=_OPTIMIZER,
        complete=completion.optimizers,
        help="sgd (the default), adamw or another of torch.optim, or a sharpness-aware one: sam, gsam, frob-sam, ...",
    ),
]
Base = Annotated[
    str | None,
    _option(
        "--base",
        metavar="NAME",
        panel=_OPTIMIZER,
        help="Inside a sharpness-aware one: sgd (the default), adamw or another of torch.optim.",
    ),
]
BaseArg = Annotated[
    list[str] | None,
    _option(
        "--base-arg",
        metavar="K=V",
        panel=_OPTIMIZER,
        help="Another argument of the one of torch.optim, e.g. betas=[0.9,0.95]; repeatable.",
    ),
]
Rho = Annotated[float | None, _option("--rho", metavar="R", help="Its radius; its usual one.", panel=_OPTIMIZER)]
RhoSchedule = Annotated[
    str | None,
    _option("--rho-schedule", metavar="NAME", help="constant, linear, cosine or like-lr.", panel=_OPTIMIZER),
]
RhoMin = Annotated[
    float | None, _option("--rho-min", metavar="R", help="Radius at the end of a schedule; 0.", panel=_OPTIMIZER)
]
OptimizerArg = Annotated[
    list[str] | None,
    _option("--optimizer-arg", metavar="K=V", help="Another argument, e.g. alpha=0.3; repeatable.", panel=_OPTIMIZER),
]
Momentum = Annotated[float | None, _option("--momentum", metavar="M", help="Of sgd; 0.9.", panel=_OPTIMIZER)]
Nesterov = Annotated[
    bool | None, _option("--nesterov/--no-nesterov", help="The momentum of sgd looks ahead.", panel=_OPTIMIZER)
]
Decay = Annotated[
    str | None,
    _option(
        "--decay",
        metavar="WHICH",
        panel=_OPTIMIZER,
        help="all (the default), or matrices: no weight decay on biases and normalization layers.",
    ),
]
WeightDecay = Annotated[float | None, _option("--weight-decay", metavar="W", help="0 by default.", panel=_OPTIMIZER)]
ClipGradNorm = Annotated[
    float | None, _option("--clip-grad-norm", metavar="C", help="Bound on the gradient's norm.", panel=_OPTIMIZER)
]
Epochs = Annotated[int | None, _option("--epochs", metavar="N", help="Passes over the data; 30.", panel=_LENGTH)]
Lr = Annotated[
    float | None, _option("--lr", metavar="LR", help="Peak learning rate; the optimizer's usual one.", panel=_LENGTH)
]
BatchSize = Annotated[int | None, _option("--batch-size", metavar="N", help="Examples a step; 32.", panel=_LENGTH)]
Accumulate = Annotated[
    int | None,
    _option("--accumulate", metavar="K", help="Evaluate a batch in K parts, to save memory.", panel=_LENGTH),
]
Schedule = Annotated[
    str | None, _option("--schedule", metavar="NAME", help="cosine (the default), multistep, constant.", panel=_LENGTH)
]
Warmup = Annotated[
    float | None,
    _option("--warmup", metavar="EPOCHS", help="The learning rate rises for so long first.", panel=_LENGTH),
]
Milestone = Annotated[
    list[float] | None,
    _option(
        "--milestone", metavar="S", panel=_LENGTH, help="Share of the run where multistep lowers the rate; repeatable."
    ),
]
Gamma = Annotated[
    float | None, _option("--gamma", metavar="G", help="What multistep multiplies it by; 0.1.", panel=_LENGTH)
]
Amp = Annotated[str | None, _option("--amp", metavar="TYPE", help="off (the default), bf16 or fp16.", panel=_LENGTH)]
Seed = Annotated[int | None, _option("--seed", metavar="N", help="Of weights and order; 0 by default.", panel=_LENGTH)]

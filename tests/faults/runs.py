"""Small runs of every command, at how many moments they end, and what is compared afterwards."""

from __future__ import annotations

import json
import os

import torch

MOMENTS = int(os.environ.get("FAULT_MOMENTS", "3"))
SMALL = ("--examples", "20", "--batch-size", "12", "--threads", "1")
ENGINE = ("--engine", "double-backward")
PLANE = ("--examples", "20", "--threads", "1", "--no-overlays", "--out", "l.svg", "--json", "r.json", "--size")
# Each with what a second run of it is given.
COMMANDS = {
    "measure": (("measure", "a.pt", "-m", "lambda-max", "-m", "frob", "--probes", "4", *SMALL, *ENGINE), "--resume"),
    "sharpness": (("sharpness", "a.pt", *SMALL, *ENGINE, "--rho", "0.05", "--probes", "4"), "--resume"),
    "invariance": (("invariance", "a.pt", *SMALL, *ENGINE, "-m", "trace", "--probes", "4"), "--resume"),
    "compare": (("compare", "a.pt", "b.pt", *SMALL, *ENGINE, "-m", "trace", "--probes", "4"), "--resume"),
    "landscape of losses": (("landscape", "a.pt", *PLANE, "9"), None),
    "landscape of eigenvalues": (
        ("landscape", "a.pt", "--directions", "eigen", "--line", "--map", "lambda-max", *PLANE, "5"),
        None,
    ),
    "track": (("track", "a-epoch-0000.pt", "a-epoch-0001.pt", *SMALL, "-m", "frob", "--out", "t.svg"), None),
    "train": (
        ("train", "--model", "mlp:hidden=8", "--optimizer", "sam", "--base", "adamw", "--subset", "0.05",
         "--batch-size", "20", "--epochs", "3", "--save-every", "1", "--label-noise", "0.1", "--threads", "1",
         "--out", "out.pt"),
        "--resume",
    ),
    "repeat": (("repeat", "m.json", "--quiet"), "--resume"),
    **{
        f"bench {suite}": (("bench", "--suite", suite, "--markdown", "b.md", "--rounds", "2", *more), "--resume")
        for suite, more in {
            "products": (),
            "answers": (),
            "steps": (),
            "landscapes": (),
            "memory": ("--case", "mlp"),
            "conformance": (),
            "optimizers": ("--optimizer", "sgd", "--optimizer", "sam", "--optimizer", "gsam", "--seeds", "2"),
        }.items()
    },
    "validate": (("validate",), "--resume"),
    "validate --coverage": (
        ("validate", "trace-gaussian", "--coverage", "--family", "flat", "--probes", "8,9,10,11", "--seeds", "40",
         "--confirm", "0", "--out", "v", "--json", "r.json"),
        None,
    ),
}  # fmt: skip
# Of a record: what differs between two runs of one command.
TIMES = frozenset({"seconds", "cost", "points_computed", "points_per_pass", "created", "started", "found", "finished"})


def numbers(value):
    """A record without its times."""
    if isinstance(value, dict):
        return {key: numbers(each) for key, each in value.items() if key not in TIMES}
    return [numbers(each) for each in value] if isinstance(value, list) else value


def results(folder):
    record = json.loads((folder / "r.json").read_text())
    known = ("results", "data", "checkpoint", "timings", "training", "flags")
    found = numbers({key: record[key] for key in known if key in record})
    for path in sorted(folder.glob("out*.pt")):
        # Their bytes hold the seconds of the run.
        found["checkpoint"].pop("sha256", None)
        found[path.name] = numbers(plain(torch.load(path, weights_only=True)))
    return found


def is_done(folder):
    """Whether a run has written its record, and left nothing that another one could go on from."""
    if not (folder / "r.json").exists() or list(folder.glob("*.journal")):
        return False
    # The runs of optimizers stand in the record itself.
    return not json.loads((folder / "r.json").read_text()).get("flags")


def plain(value):
    """What can be compared, tensors bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.reshape(-1).numpy().tobytes() if value.numel() else b""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def spread(count):
    """``MOMENTS`` numbers over ``range(count)``, the first and the last among them."""
    return sorted({round(index * (count - 1) / max(MOMENTS - 1, 1)) for index in range(MOMENTS)})


def left_behind(folder, whole):
    """Files that a run that was never stopped does not leave."""
    return sorted({path.name for path in folder.rglob("*")} - {path.name for path in whole.rglob("*")})


def line(name):
    """The words of a command, and of the run after one that ended early."""
    words, resume = COMMANDS[name]
    words = [*words, *(() if "--json" in words else ("--json", "r.json"))]
    return words, [*words, *([resume] if resume else [])]

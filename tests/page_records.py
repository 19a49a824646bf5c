"""Records of every command, made by hand, for tests of pages."""

from __future__ import annotations

import json
from pathlib import Path

TRACKED = {"run_dir": ["runs/run"], "operator": "hessian"}
ENVIRONMENT = {
    "hessprobe": "0.1.0",
    "torch": "2.13.0",
    "numpy": "2.4.6",
    "python": "3.11.7",
    "device": "cpu",
    "threads": 2,
}


def record(command, results, *, checkpoint="runs/sgd.pt", arguments=None, **parts):
    made = {
        "schema": "hessprobe.record/1",
        "command": command,
        "results": results,
        "checkpoint": network(checkpoint) if checkpoint else None,
        "data": {"name": "digits", "sha256": "d" * 64, "split": "train", "fingerprint": "f00d", "examples": 1433},
        "environment": ENVIRONMENT,
        "seed": 0,
        "arguments": arguments or {"ckpt": checkpoint},
        "created": "2026-11-28T10:00:00+00:00",
        "flags": [],
    }
    return {key: value for key, value in (made | parts).items() if value is not None}


def network(path):
    return {
        "path": path,
        "sha256": path.encode().hex().ljust(64, "0")[:64],
        "model": {"name": "mlp", "arguments": {"hidden": [128, 64]}},
        "parameters": 17226,
        "data": {"name": "digits"},
        "recipe": {"optimizer": "sgd", "epochs": 30, "lr": 0.1, "seed": 0},
        "metrics": {"train_loss": 0.00072, "test_loss": 0.104, "train_accuracy": 1.0, "test_accuracy": 0.978},
    }


def estimate(value=2.0, error=0.01, **changes):
    made = {
        "value": value,
        "std_error": error,
        "interval": [value - 2 * error, value + 2 * error],
        "confidence": 0.95,
        "matvecs": 34.2,
        "samples": 10,
        "method": "hutchinson",
        "kind": "estimate",
        "seconds": 2.17,
        "errors": {"probe": error, "data": None, "solver": 0.0},
        "flags": [],
    }
    return made | changes


def measured(measure="trace", value=0.779306, error=0.0021, **changes):
    row = {"measure": measure, "operator": "hessian", "unit": "curvature", "notes": [], "engine": "double_backward"}
    return row | estimate(value, error) | changes


def sharp(measure="worst", value=0.0004, **changes):
    row = {"measure": measure, "unit": "loss", "notes": [], "engine": "double_backward", "rho": 0.05, "m": None}
    cost = {"losses": 40, "gradients": 41.5, "products": 0}
    predicted = {"value": 0.00039, "std_error": 0.0}
    kind = "lower bound" if measure == "worst" else "estimate"
    row |= estimate(value, 0.0, interval=[value, value], kind=kind, method="ascent")
    return row | {"cost": cost, "predicted": predicted, "ratio": 1.026} | changes


def invariant(measure="trace", verdict="changes", ratio=37.5, **changes):
    row = {
        "transform": "unit-rescaling",
        "strength": 10.0,
        "measure": measure,
        "before": estimate(0.78, 0.002),
        "after": estimate(0.78 * ratio, 0.05),
        "difference": 0.78 * (ratio - 1),
        "difference_error": {"std_error": 0.05, "bound": 0.0},
        "ratio": ratio,
        "z": 500.0,
        "verdict": verdict,
        "reason": "",
        "outputs_distance": 2.1e-7,
        "contradicts_theory": False,
    }
    return row | changes


def plane(**changes):
    axis = [-1.0, 0.0, 1.0]
    loss = [[0.9, 0.5, 1.1], [0.4, 0.0007, 0.6], [1.3, 0.7, None]]
    row = {
        "directions": "random",
        "labels": ["first", "second"],
        "lengths": [10.0, 11.0],
        "gram": [[100.0, 0.0], [0.0, 121.0]],
        "axes": [axis, axis],
        "center": [1, 1],
        "values": {"loss": loss},
        "holes": {"loss": 1},
        "marks": [],
        "quadratic": {"slope": [0.0, 0.0], "bend": [[1.0, 0.0], [0.0, 1.0]], "within_10_percent": 0.125},
        "facts": {},
        "points_computed": 9,
    }
    return row | changes


def claim(name="wen-ma-li/rate", verdict="holds", **changes):
    row = {
        "claim": name,
        "statement": "The rate is linear.",
        "source": "Wen, Ma and Li (2023), theorem 1.",
        "verdict": verdict,
        "seconds": 1.5,
        "label": "rate",
        "predicted": 0.5,
        "measured": 0.4987,
        "std_error": 0.002,
        "score": 0.65,
        "kind": "z",
        "note": "",
        "parts": [],
    }
    return row | changes


def difference(measure="trace", value=-0.38, error=0.001, verdict="flatter", **changes):
    row = {"measure": measure, "checkpoint": "sam", "baseline": "sgd", "verdict": verdict, "p": 1e-9, "stands": True}
    row |= {"correlation": 0.97, "independent_std_error": 0.0051, "gain": 5.1}
    return row | estimate(value, error) | changes


def compared(**parts):
    rows = [{"checkpoint": "sgd"} | measured(value=0.78), {"checkpoint": "sam"} | measured(value=0.40)]
    made = {
        "checkpoint": None,
        "arguments": {"ckpts": ["runs/sgd.pt", "runs/sam.pt"]},
        "checkpoints": [
            {"label": name, "path": f"runs/{name}.pt", "checkpoint": network(f"runs/{name}.pt")}
            for name in ("sgd", "sam")
        ],
        "baseline": "sgd",
        "differences": [difference(), difference("frob", 0.0001, 0.001, "within error")],
        "rescaling": {"sentence": "trace changes when a network is rescaled"},
    }
    return record("compare", rows, **(made | parts))


def point(step, top, **changes):
    measures = {"lambda-max": measured("lambda-max", top, 0.001), "trace": measured("trace", 3 * top, 0.01)}
    row = {
        "step": step,
        "epoch": step / 45,
        "lr": 0.1,
        "loss": 1 / (1 + step),
        "gradient_norm": 0.1,
        "alignment": None,
        "edge": {"plain": 20.0, "sharpness_aware": None},
        "measures": measures,
        "scores": {"test_accuracy": 0.9},
        "matvecs": 42.0,
        "seconds": 1.2,
        "flags": [],
    }
    return row | changes


def write(folder, **records):
    """Write records as files and return their paths."""
    paths = []
    for name, content in records.items():
        path = Path(folder) / f"{name}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        paths.append(path)
    return paths


def everything():
    """Return one record of every command that a page tells about, and of two checkpoints."""
    rows = [measured("lambda-max", 0.15228, 1.2e-6), measured("trace"), measured("frob", 0.2095, 9.2e-5)]
    other = [measured("lambda-max", 0.0712, 1.1e-6), measured("trace", 0.4021, 0.0011), measured("frob", 0.1102, 8e-5)]
    return {
        "measure_sgd": record("measure", rows),
        "measure_sam": record("measure", other, checkpoint="runs/sam.pt"),
        "sharpness": record("sharpness", [sharp(), sharp("ascent", 0.00035), sharp("average", 1.1e-6)]),
        "invariance": record(
            "invariance", [invariant(), invariant("adaptive-trace", "invariant", 1.0, z=0.4), invariant("frob")]
        ),
        "landscape": record("landscape", [plane()], files={"points": "sgd.npz"}, notes=["the plane is random"]),
        "compare": compared(),
        "track": record("track", [point(0, 1.5), point(45, 9.0), point(90, 6.0)], checkpoint=None, arguments=TRACKED),
        "validate": record(
            "validate", [claim(), claim("unified/path", "fails")], checkpoint="", data=None, arguments={"pattern": None}
        ),
    }

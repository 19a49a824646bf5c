"""Make every figure of this folder again: train two networks, measure them, and draw each record at one column.

``python reports/examples/make.py [FOLDER]``, about five minutes on two cores. Checkpoints and records stay in FOLDER;
what lies there is not made again, so that a change of the drawing alone takes seconds.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

import hessprobe as hp
from hessprobe.records.record import read_record
from hessprobe.report.figures import Drawn, classes, figures_across, figures_of

HERE = Path(__file__).resolve().parent
WIDTH, DPI = 3.25, 150
_TRAIN = "train --model mlp:hidden=32 --data digits --lr 0.05 --epochs 20 --save-every 2 --label-noise 0.1"
_PLANE = "landscape sgd.pt --examples 500 --size 21"
_SAVED = "".join(f" --with sgd-epoch-{epoch:04d}.pt" for epoch in range(0, 20, 2))
_OTHERS = "".join(f" --with sam-epoch-{epoch:04d}.pt" for epoch in range(0, 21, 4))
_MAPS = " --map error --map grad-norm --map lambda-max --map lambda-min"
_RADII = "--rho 0.02 --rho 0.05 --rho 0.1 --rho 0.2"

_EARLIER = "".join(f" {rule}-epoch-{epoch:04d}.pt" for rule in ("sgd", "sam") for epoch in (2, 4, 10))

# The file that a command must leave, and the command; in order.
COMMANDS = {
    "sgd.pt": f"{_TRAIN} --optimizer sgd --out sgd.pt",
    "sam.pt": f"{_TRAIN} --optimizer sam --rho 0.1 --out sam.pt",
    "measure.json": "measure sgd.pt -m lambda-max,lambda-min,trace,frob,density --k 8 --per-layer --rtol 0.03",
    "ggn.json": "measure sgd.pt --operator ggn -m lambda-max,trace,frob,density --rtol 0.03",
    "early.json": "measure sgd-epoch-0002.pt -m density",
    "sam.json": "measure sam.pt -m density",
    "line.json": "landscape sgd.pt --examples 500 --directions line --with sam.pt --size 41 --out line.png",
    "random.json": f"{_PLANE} --out random.png",
    "surface.json": f"{_PLANE} --surface --out surface.png --interactive surface.html",
    "eigen.json": f"{_PLANE} --directions eigen --span 2 --out eigen.png",
    "gradient.json": f"{_PLANE} --directions gradient --rho 0.1 --span 3 --out gradient.png",
    "pca.json": f"{_PLANE} --directions pca{_SAVED} --out pca.png",
    "paths.json": f"{_PLANE} --directions pca{_SAVED}{_OTHERS} --out paths.png",
    "maps.json": f"landscape sgd.pt --examples 300 --size 11{_MAPS} --out maps.png",
    "sharpness.json": f"sharpness sgd.pt {_RADII} --diagnostics",
    "sharpness-sam.json": f"sharpness sam.pt {_RADII}",
    "track.json": "track sgd.pt --k 3 --rtol 0.1 --out track.png",
    "track-sam.json": "track sam.pt --k 3 --rtol 0.1 --out track-sam.png",
    "compare.json": "compare sgd.pt sam.pt sgd-epoch-0010.pt sam-epoch-0010.pt sgd-epoch-0004.pt",
    "gaps.json": f"compare sgd.pt sam.pt{_EARLIER} --correlate -m lambda-max,trace,frob,adaptive-trace",
    "invariance.json": "invariance sgd.pt",
}
# Files of this folder: the records they are made from, and how the figure's name begins there.
FIGURES = {
    "arc": ("arc", "sharpness"),
    "differences": ("differences", "compare"),
    "eigenvalues-hessian": ("eigenvalues", "measure"),
    "densities": ("densities", "measure", "ggn"),
    "density-hessian": ("density", "measure"),
    "density-dark": ("density", "measure"),
    "gap-accuracy": ("gap-accuracy", "gaps"),
    "gap-loss": ("gap-loss", "gaps"),
    "heat-hessian": ("heat", "measure"),
    "invariance": ("invariance", "invariance"),
    "landscape-eigen": ("landscape", "eigen"),
    "landscape-gradient": ("landscape", "gradient"),
    "landscape-line": ("landscape", "line"),
    "landscape-maps": ("landscape", "maps"),
    "landscape-paths": ("landscape", "paths"),
    "landscape-pca": ("landscape", "pca"),
    "landscape-random": ("landscape", "random"),
    "landscape-surface": ("landscape", "surface"),
    "layers-hessian": ("layers", "measure"),
    "operators": ("operators", "measure", "ggn"),
    "overlap": ("overlap", "track-sam"),
    "sharpness": ("sharpness", "sharpness"),
    "sharpness-checkpoints": ("sharpness", "sharpness", "sharpness-sam"),
    "spectra-hessian": ("spectra", "early", "sam", "measure"),
    "tau": ("tau", "gaps"),
    "track": ("track", "track-sam"),
    "training": ("training", "track"),
    "training-runs": ("training", "track", "track-sam"),
}
# Of the committed validation, whose records are not made here.
CLAIM = "radius-antithetic"


def main() -> None:
    """Run what has not run in the folder, and draw."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name, command in COMMANDS.items():
            if not (folder / name).exists():
                record = ["--json", name] if name.endswith(".json") else []
                subprocess.run([sys.executable, "-m", "hessprobe", *command.split(), *record], cwd=folder, check=True)
        for name, drawn in figures(folder):
            _write(drawn, HERE / f"{name}.png", "dark" if name.endswith("-dark") else "paper")


def figures(folder: Path) -> Iterator[tuple[str, Drawn]]:
    """Yield the name of a file of this folder and its figure."""
    for name, (begin, *sources) in FIGURES.items():
        records = [read_record(folder / f"{source}.json") for source in sources]
        found = figures_across(records) if len(records) > 1 else figures_of(records[0], folder)
        yield name, next(each for each in found if each.name.startswith(begin))
    claims = figures_of(read_record(HERE.parent / "validation" / "validation.json"))
    yield "claim", next(each for each in claims if each.name == CLAIM)
    yield "classes", _classes(folder)


def _classes(folder: Path) -> Drawn:
    G = hp.GaussNewton(hp.load_checkpoint(folder / "sgd.pt").risk())
    found = {label: (hp.trace(part, rtol=0.05, seed=0), hp.lambda_max(part)) for label, part in G.by_class().items()}
    spreads = [{label: _reach(pair[which]) for label, pair in found.items()} for which in (0, 1)]
    return classes.classes(*spreads, _reach(hp.lambda_max(G)), 0.95)


def _reach(estimate: hp.Estimate) -> tuple[float, float, float]:
    low, high = estimate.interval()
    return estimate.value, estimate.value - low, high - estimate.value


def _write(drawn: Drawn, path: Path, style: str) -> None:
    content = io.BytesIO()
    drawn.figure(WIDTH, style).savefig(content, dpi=DPI)
    # 64 colors are enough for lines and a map, and make a third of the file.
    Image.open(content).convert("RGB").quantize(64).save(path, optimize=True)
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()

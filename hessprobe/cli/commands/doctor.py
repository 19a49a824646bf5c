"""``hessprobe doctor``: whether this installation computes the right numbers here, and what to do where it does not."""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer

from hessprobe.cli import options, outputs, process
from hessprobe.cli.skeleton import deliver

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from hessprobe.estimate import Estimate

_FINE, _NOTE, _WRONG = "ok", "note", "wrong"
# What parts of the program need beside what is always installed, and the extra that installs it.
_EXTRAS = {"transformers": "hf", "datasets": "hf", "plotly": "interactive", "tensorboard": "tracking"}
# Eigenvalues of the self-test: some far out, a bulk of both signs.
_EIGENVALUES = (9.0, 4.0, -2.0, *(0.01 * (k - 30) for k in range(61)))
# Standard errors that a number may be off by; of six numbers one is beyond them in 2,600 runs, and the seed is fixed.
_FAR = 4.0
# Of a product in double precision, by far.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: it, in a word or two.
        state: ``"ok"``, ``"note"`` (nothing is wrong, something is missing) or ``"wrong"``.
        found: what it is.
        mend: what to do about it, a sentence; empty where nothing is to be done.
    """

    what: str
    state: str
    found: str
    mend: str = ""


def doctor(
    device: options.Device = None,
    json: options.Json = None,
    debug: options.Debug = False,  # noqa: ARG001  # read by guarded
) -> None:
    """Check versions, devices and threads, and measure a matrix whose eigenvalues are known, on every device.

    Leaves with exit code 1 where something is wrong.

    Example: hessprobe doctor
    """
    options.check_outputs(json=json)

    with outputs.starting():
        from hessprobe import report
        from hessprobe.cli.load import resolve_device

        chosen = None if device is None else resolve_device(device)
        found = [*versions(), *_machine(), *_devices(chosen)]
    rows = [asdict(each) for each in found]
    record = report.build_record("doctor", rows, arguments={"device": device}, seed=0, device=chosen or "cpu")
    deliver(record, json, lambda console: _show(found, console))
    if any(each.state == _WRONG for each in found):
        raise typer.Exit(process.FAILED)


def versions() -> Iterator[Finding]:
    """Yield what is installed, and whether it is what this version needs."""
    from importlib import metadata

    yield Finding("hessprobe", _FINE, f"{metadata.version('hessprobe')}, Python {platform.python_version()}")
    for line in metadata.requires("hessprobe") or ():
        package, _, least = re.split(r"[;,]", line)[0].replace(" ", "").partition(">=")
        if "extra" in line or not least:
            continue
        there = metadata.version(package)
        if _numbers(there) >= _numbers(least):
            yield Finding(package, _FINE, there)
        else:
            yield Finding(package, _WRONG, f"{there}, needs {least}", f"Run pip install -U '{package}>={least}'.")
    for package, extra in _EXTRAS.items():
        try:
            yield Finding(package, _FINE, metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Finding(package, _NOTE, "not installed", f"Only if you need it: pip install 'hessprobe[{extra}]'.")


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _machine() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # What torch has by itself, before the trial changes it.
    by_itself = torch.get_num_threads()
    chosen = process.settle_threads()
    how = f"{chosen} of {by_itself} that torch takes by itself, on {cores} core{'s' * (cores != 1)}"
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    crowded = f"Others keep this machine busy (load {busy:.1f}); --threads 1 is often the fastest then."
    yield Finding("threads", _NOTE if busy > 1.5 * cores else _FINE, how, crowded if busy > 1.5 * cores else "")


def _devices(chosen: torch.device | None) -> Iterator[Finding]:
    import torch

    if chosen is None or chosen.type == "cpu":
        yield self_test(torch.device("cpu"))
    for index in range(torch.cuda.device_count()):
        if chosen is None or (chosen.type == "cuda" and chosen.index in (None, index)):
            place = torch.device("cuda", index)
            free, total = torch.cuda.mem_get_info(place)
            memory = f"{torch.cuda.get_device_name(place)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
            yield Finding(str(place), _FINE, memory)
            yield self_test(place)
    if not torch.cuda.is_available():
        yield _without_gpu(torch.version.cuda, shutil.which("nvidia-smi") is not None)


def _without_gpu(built: str | None, driver: bool) -> Finding:
    if driver and built is None:
        mend = "torch is built without CUDA. Install a build with it, see https://pytorch.org/get-started/locally."
        return Finding("GPU", _WRONG, "there, but not seen by torch", mend)
    if driver:
        return Finding("GPU", _WRONG, "there, but not usable", "Compare the driver of nvidia-smi with torch's CUDA.")
    return Finding("GPU", _NOTE, "none; everything runs on the CPU")


def self_test(place: torch.device) -> Finding:
    """Measure a quadratic loss whose Hessian has ``_EIGENVALUES``, by products and probes as a network is measured.

    Every number must lie within ``_FAR`` of its standard errors, or within its bracket, of the known one.
    """
    began = time.perf_counter()
    try:
        wrong = list(_wrong_numbers(place))
    except Exception as error:
        return Finding(f"self-test {place}", _WRONG, process.one_line(error), "Please report it, with this line.")
    if wrong:
        mend = "Numbers of this device are not to be trusted. Update torch, or pass --device cpu; please report it."
        return Finding(f"self-test {place}", _WRONG, "; ".join(wrong), mend)
    count, seconds = len(_EIGENVALUES), time.perf_counter() - began
    return Finding(f"self-test {place}", _FINE, f"6 numbers of {count} known eigenvalues are right, {seconds:.1f} s")


def _wrong_numbers(place: torch.device) -> Iterator[str]:
    import torch

    from hessprobe import estimators
    from hessprobe.hvp import Hessian
    from hessprobe.krylov.eigsh import eigsh
    from hessprobe.objective.analytic import Quadratic

    values = torch.tensor(_EIGENVALUES, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    matrix = basis * values @ basis.T
    A = Hessian(Quadratic(((matrix + matrix.T) / 2).to(place), terms=3))
    v = torch.linspace(-1, 1, len(values), dtype=torch.float64)
    product, known_product = A.matvecs(v[None].to(place))[0].cpu(), matrix @ v
    off = float((product - known_product).norm() / known_product.norm())
    if not off <= _ROUNDING:
        yield f"a product is off by {off:.2g} of its size"
    pairs = eigsh(A, k=1, which="both", seed=0)
    for name, number, known in (
        ("lambda-max", float(pairs.values.max()), float(values.max())),
        ("lambda-min", float(pairs.values.min()), float(values.min())),
    ):
        if not abs(number - known) <= 1e-2 * abs(known):
            yield f"{name} {number:.6g} in place of {known:.6g}"
    total, norm = float(values.sum()), float((values**2).sum()) ** 0.5
    log = float(torch.log(values**2 + 1).sum()) / 2
    sketch = estimators.spectral_sketch(A, n_probes=64, seed=0)
    estimates: Sequence[tuple[str, Estimate, float]] = (
        ("trace", estimators.trace(A, rtol=0.01, seed=0), total),
        ("frob", estimators.frobenius_norm(A, rtol=0.01, seed=0), norm),
        ("logdet", sketch.smoothed_logdet(eps=1.0), log),
    )
    for name, found, known in estimates:
        error = max(found.std_error, found.errors.solver)
        if not abs(found.value - known) <= _FAR * error + 1e-6 * max(abs(known), 1.0):
            yield f"{name} {found.value:.6g} ± {error:.2g} in place of {known:.6g}"


def _show(found: Sequence[Finding], console: Console) -> None:
    from hessprobe.cli import render

    styles = {_FINE: "", _NOTE: "", _WRONG: "bold"}
    width = max(len(each.what) for each in found)
    for each in found:
        render.print_line(console, f"{each.what.ljust(width)}  {each.state.ljust(5)}  {each.found}", styles[each.state])
    for each in (each for each in found if each.mend):
        render.print_line(console, f"{each.what}: {each.mend}")
    wrong = sum(each.state == _WRONG for each in found)
    render.print_line(console, f"{wrong} thing{'s' * (wrong != 1)} wrong" if wrong else "everything is in order")

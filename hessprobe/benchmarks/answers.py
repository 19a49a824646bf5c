"""From the question to the number with its interval: what it takes on trained networks, in gradients of the loss.

A gradient is what a training step does over the same data: the module called as it is, its mean loss,
``torch.autograd.grad``, over all batches. It is timed before and after every answer, so that a machine that slows down
slows both. Every answer begins with a new risk: what hessprobe records and chooses is in its time. What is imported at
the first use is not: every question is asked of a small network first.

Plain probes with another package's product are not run to their end, which takes hours. Eight products tell its time
and the variance of w^T H w and |H w|^2, and the number of probes for the same standard error follows; their own mean
and error say whether both tools measure the same matrix.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import statistics
import sysconfig
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessprobe.estimate import ErrorParts, Estimate
from hessprobe.estimators import frobenius_norm, logdet, spectral_density, trace
from hessprobe.hvp import Hessian
from hessprobe.hvp.engines import device_clock
from hessprobe.krylov import eigsh, lambda_max
from hessprobe.measures import MeasureSettings, measure_all
from hessprobe.objective import EmpiricalRisk
from hessprobe.operators import LinearOperator
from hessprobe.training.datasets import batches, load_dataset
from hessprobe.training.models import build_model

Data = list[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]

_IMAGES, _TEXT = "cifar10-jpeg.tar.xz", "tinyshakespeare.txt"


@dataclass(frozen=True)
class Network:
    """A network that is trained for a moment before questions are asked about its Hessian.

    Attributes:
        name: on the command line.
        title: for tables.
        model: its name in ``build_model`` and the arguments.
        data: (folder of data sets or None) -> batches.
        loss: (outputs, targets) -> mean loss.
        passes: over the data, in training.
        lr: of SGD with momentum 0.9.
    """

    name: str
    title: str
    model: tuple[str, dict[str, object]]
    data: Callable[[Path | None], Data]
    loss: Loss
    passes: int
    lr: float

    def trained(self, folder: Path | None = None, device: torch.device | str = "cpu") -> tuple[nn.Module, Data]:
        """Return the module, trained and in evaluation mode, and its data, on a device."""
        data = [(inputs.to(device), targets.to(device)) for inputs, targets in self.data(folder)]
        name, arguments = self.model
        module = build_model(name, dict(arguments), seed=0).to(device)
        optimizer = torch.optim.SGD(module.parameters(), lr=self.lr, momentum=0.9)
        for _ in range(self.passes):
            for inputs, targets in data:
                optimizer.zero_grad()
                self.loss(module(inputs), targets).backward()  # type: ignore[no-untyped-call]  # untyped in torch
                optimizer.step()
        return module.eval().requires_grad_(), data


def images(folder: Path | None, count: int, side: int, channels: int, size: int) -> Data:
    """Return batches of CIFAR-10 where ``folder`` has it, else of handwritten digits moved about and scaled up."""
    if folder is not None and (folder / _IMAGES).is_file():
        full = load_dataset(f"image-folder:{folder / _IMAGES}")
        inputs, labels = full.split("train", "image", examples=count, seed=0)
    else:
        digits = load_dataset("digits")
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randint(len(digits.labels), (count,), generator=generator)
        inputs, labels = digits.split("all", "image")
        inputs, labels = inputs[chosen], labels[chosen]
        moves = torch.randint(-1, 2, (count, 2), generator=generator).tolist()
        inputs = torch.stack([x.roll(tuple(move), (-2, -1)) for x, move in zip(inputs, moves, strict=True)])
        inputs = inputs.expand(-1, 3, -1, -1)
    if inputs.shape[-1] != side:
        inputs = F.interpolate(inputs, (side, side), mode="bilinear", align_corners=False)
    inputs = inputs.mean(1, keepdim=True) if channels == 1 else inputs
    inputs = (inputs - inputs.mean()) / inputs.std()
    inputs = inputs.flatten(1) if channels == 1 else inputs.contiguous()
    return batches(inputs, labels, size)


def text(folder: Path | None, count: int, context: int, size: int) -> Data:
    """Return windows of Shakespeare where ``folder`` has him, else of the standard library's source."""
    path = folder / _TEXT if folder is not None else Path(sysconfig.get_path("stdlib")) / "argparse.py"
    codes = torch.tensor([min(ord(letter), 126) - 32 if letter != "\n" else 95 for letter in path.read_text("utf-8")])
    windows = codes[: count * context + 1].clamp_(0, 95)
    inputs, targets = windows[:-1].view(count, context), windows[1:].view(count, context)
    return batches(inputs, targets, size)


def _digits(folder: Path | None, size: int) -> Data:  # noqa: ARG001  # one signature
    inputs, labels = load_dataset("digits").split("all")
    return batches(inputs, labels, size)


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over all tokens."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


NETWORKS = {
    each.name: each
    for each in (
        Network(
            "a",
            "MLP 784-512-512-10, 2,048 images",
            ("mlp", {"in_features": 784, "hidden": [512, 512]}),
            lambda folder: images(folder, 2048, 28, 1, 256),
            F.cross_entropy,
            20,
            0.02,
        ),
        Network(
            "b",
            "ResNet-20, 256 images",
            ("resnet", {}),
            lambda folder: images(folder, 256, 32, 3, 64),
            F.cross_entropy,
            30,
            0.05,
        ),
        Network(
            "c",
            "GPT 4 layers d=128, 128 sequences",
            ("gpt", {"vocab_size": 96, "context": 64, "layers": 4, "d_model": 128, "n_heads": 4}),
            lambda folder: text(folder, 128, 64, 16),
            token_loss,
            20,
            0.05,
        ),
        Network(
            "d",
            "MLP 64-128-64-10, 1,797 digits",
            ("mlp", {"in_features": 64, "hidden": [128, 64]}),
            lambda folder: _digits(folder, 256),
            F.cross_entropy,
            30,
            0.05,
        ),
    )
}


def gradient_seconds(module: nn.Module, loss: Loss, data: Data, rounds: int = 3) -> float:
    """Return the median time of the gradient over the data."""
    parameters = list(module.parameters())
    device, times = parameters[0].device, []
    for _ in range(rounds):
        began = device_clock(device)
        for inputs, targets in data:
            torch.autograd.grad(loss(module(inputs), targets), parameters)
        times.append(device_clock(device) - began)
    return statistics.median(times)


@dataclass(frozen=True)
class Answered:
    """What a contestant says.

    Attributes:
        value: the number.
        low, high: its interval or, of a tool that tells none, the value twice.
        products: with the whole matrix, where they are counted.
        more: seconds that it would go on for; 0 but for what was not run to its end.
        note: for the table.
    """

    value: float
    low: float
    high: float
    products: float | None = None
    more: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """A row of the table.

    Attributes:
        case, question, contestant: which.
        gradients: time of the answer, in gradients.
        seconds: the same in seconds, wall clock.
        value, low, high, products, note: see ``Answered``.
        agrees: whether the value lies where hessprobe's interval says, given the error of both.
    """

    case: str
    question: str
    contestant: str
    gradients: float
    seconds: float
    value: float
    low: float
    high: float
    products: float | None
    note: str
    agrees: bool

    def row(self) -> dict[str, Any]:
        """Return the figures as a flat dict; None for those of a contestant that failed."""
        return {key: None if isinstance(x, float) and math.isnan(x) else x for key, x in asdict(self).items()}


OWN = "hessprobe"
# Products that tell the cost and the variance of plain probes.
_PROBES = 8
# Standard errors, relative, of trace and norm; the half-width of their 95 % intervals.
_ERROR, _WIDTH = 0.01, 0.02
_APART = 5.0
# Of the log-determinant, smoothed at this damping; steps of a chain of another package, as many as PyHessian makes.
_DAMPING, _STEPS = 1e-3, 100
# Share of the spectral radius within which an eigenvalue counts as near zero.
_NEAR = 1e-3

Contestant = Callable[[nn.Module, Loss, Data], Answered]


def _of(estimate: Any) -> Answered:
    low, high = estimate.interval(0.95)
    return Answered(estimate.value, low, high, estimate.matvecs, note=", ".join(estimate.flags))


def _own(question: Callable[[LinearOperator], Any]) -> Contestant:
    return lambda module, loss, data: _of(question(Hessian(EmpiricalRisk(module, loss, data))))


def _product(A: LinearOperator) -> Estimate:
    return Estimate(float((A @ _signs(A.dim, 1)[:, 0].to(A.device, A.dtype)).double().norm()), matvecs=1)


def _density(A: LinearOperator) -> Estimate:
    """Return the share of eigenvalues near zero, between what the band that holds everywhere says on either side."""
    found = spectral_density(A)
    both = 2 * found.half_width()
    return found.near_zero.with_(errors=ErrorParts(solver=both), kind="bracket", matvecs=found.matvecs)


def _signs(dim: int, count: int) -> Tensor:
    return torch.randint(2, (dim, count), generator=torch.Generator().manual_seed(1)).float().mul_(2).sub_(1)


# Of hessprobe: by question. ``rtol`` is the half-width of an interval, or the width of a bracket.
QUESTIONS: dict[str, Callable[[LinearOperator], Any]] = {
    "one product": _product,
    "lambda_max, a look (5 %)": lambda A: lambda_max(A, rtol=0.05, certified=False),
    "lambda_max, bracket 1 %": lambda A: eigsh(A, 1, "largest", rtol=0.01).estimate(0),
    "trace, standard error 1 %": lambda A: trace(A, rtol=_WIDTH),
    "Frobenius norm, standard error 1 %": lambda A: frobenius_norm(A, rtol=_WIDTH),
    "share near zero, density within 2 %": _density,
    "log-determinant, within 1 %": lambda A: logdet(A, eps=_DAMPING, rtol=_ERROR),
}


# Measures that share their products, the dearest last: the sweep of chains that a tolerance of 5 % asks for.
TOGETHER, _COARSE = "nine measures, 5 %", 0.05
_MEASURES = (
    *("lambda-max", "lambda-min", "spectral-norm", "trace", "frob", "effective-rank"),
    *("density", "logdet", "effective-dimension"),
)


def _measured(*names: str) -> Contestant:
    """Return what makes measures of one context and says the number of the last."""

    def run(module: nn.Module, loss: Loss, data: Data) -> Answered:
        risk, settings = EmpiricalRisk(module, loss, data), MeasureSettings(rtol=_COARSE)
        found = {row.measure: row for row in measure_all(names, risk, settings)}
        return _of(found[names[-1]].estimate)

    return run


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _curvlinops_matrix(module: nn.Module, loss: Loss, data: Data) -> Any:
    import curvlinops

    class Criterion(nn.Module):
        """It reads the reduction of a module."""

        reduction = "mean"

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return loss(outputs, targets)

    return curvlinops.HessianLinearOperator(module, Criterion(), list(module.parameters()), data)


def _probed(question: str) -> Contestant:
    def run(module: nn.Module, loss: Loss, data: Data) -> Answered:
        A = _curvlinops_matrix(module, loss, data)
        device = _device(module)
        W = _signs(sum(p.numel() for p in module.parameters()), _PROBES).to(device)
        began = device_clock(device)
        columns = [A @ W[:, i] for i in range(_PROBES)]
        seconds = device_clock(device) - began
        if question == "trace":
            samples = torch.stack([W[:, i].double() @ column.double() for i, column in enumerate(columns)])
        else:
            samples = torch.stack([column.double().square().sum() for column in columns])
        mean, spread = float(samples.mean()), float(samples.std())
        error = spread / math.sqrt(_PROBES)
        # The norm is the root of the mean, with half its relative error.
        wanted = (spread / mean / (_ERROR if question == "trace" else 2 * _ERROR)) ** 2
        value, own = (mean, error) if question == "trace" else (math.sqrt(mean), error / 2 / math.sqrt(mean))
        more = seconds * max(wanted / _PROBES - 1.0, 0.0)
        note = f"{wanted:.0f} probes, from {_PROBES}"
        return Answered(value, value - _APART * own, value + _APART * own, wanted, more, note)

    return run


def _arpack(module: nn.Module, loss: Loss, data: Data) -> Answered:
    from scipy.sparse.linalg import eigsh as arpack

    A = _curvlinops_matrix(module, loss, data).to_scipy()
    start = torch.randn(A.shape[0], generator=torch.Generator().manual_seed(0)).numpy()
    value = float(arpack(A, k=1, which="LA", tol=1e-3, v0=start, return_eigenvectors=False)[0])
    return Answered(value, value, value)


def _power_iteration(module: nn.Module, loss: Loss, data: Data) -> Answered:
    from pyhessian import hessian

    torch.manual_seed(0)
    values, _ = hessian(module, loss, dataloader=data, cuda=_device(module).type == "cuda").eigenvalues(
        maxIter=1000, tol=1e-4, top_n=1
    )
    return Answered(values[0], values[0], values[0])


def _one_of_theirs(module: nn.Module, loss: Loss, data: Data) -> Answered:
    A = _curvlinops_matrix(module, loss, data)
    W = _signs(sum(p.numel() for p in module.parameters()), 1).to(_device(module))
    value = float((A @ W[:, 0]).double().norm())
    return Answered(value, value, value, 1)


def _of_quadrature(question: str, nodes: Tensor, weights: Tensor, dim: int) -> Answered:
    """Return what nodes and weights of one chain say, without an error."""
    if question == "density":
        value = float(weights[nodes.abs() <= _NEAR * nodes.abs().max()].sum())
    else:
        value = dim * float(weights @ torch.log(torch.hypot(nodes, torch.full_like(nodes, _DAMPING))))
    return Answered(value, value, value, _STEPS)


def _chain_of_pyhessian(question: str) -> Contestant:
    def run(module: nn.Module, loss: Loss, data: Data) -> Answered:
        from pyhessian import hessian

        torch.manual_seed(0)
        nodes, weights = hessian(module, loss, dataloader=data, cuda=_device(module).type == "cuda").density(
            iter=_STEPS, n_v=1
        )
        read = (torch.tensor(nodes[0]).double(), torch.tensor(weights[0]).double())
        return _of_quadrature(question, *read, sum(p.numel() for p in module.parameters()))

    return run


def _chain_of_curvlinops(question: str) -> Contestant:
    def run(module: nn.Module, loss: Loss, data: Data) -> Answered:
        from curvlinops.papyan2020traces.spectrum import fast_lanczos

        A = _curvlinops_matrix(module, loss, data)
        torch.manual_seed(0)
        values, vectors = fast_lanczos(A, min(A.shape[0], _STEPS))
        read = (torch.as_tensor(values).double(), torch.as_tensor(vectors)[0].double().square())
        return _of_quadrature(question, *read, A.shape[0])

    return run


# Of others: by question the name, the package that it needs, and how.
PEERS: dict[str, tuple[tuple[str, str, Contestant], ...]] = {
    "one product": (("curvlinops", "curvlinops", _one_of_theirs),),
    "lambda_max, bracket 1 %": (
        ("SciPy eigsh (tol 1e-3), curvlinops", "curvlinops", _arpack),
        ("PyHessian (tol 1e-4)", "pyhessian", _power_iteration),
    ),
    "trace, standard error 1 %": (("plain probes, curvlinops", "curvlinops", _probed("trace")),),
    "Frobenius norm, standard error 1 %": (("plain probes, curvlinops", "curvlinops", _probed("norm")),),
    "share near zero, density within 2 %": (
        ("PyHessian (100 steps, no error)", "pyhessian", _chain_of_pyhessian("density")),
        ("curvlinops (100 steps, no error)", "curvlinops", _chain_of_curvlinops("density")),
    ),
    "log-determinant, within 1 %": (
        ("PyHessian (100 steps, no error)", "pyhessian", _chain_of_pyhessian("logdet")),
        ("curvlinops (100 steps, no error)", "curvlinops", _chain_of_curvlinops("logdet")),
    ),
}


def _with_math(how: Contestant) -> Contestant:
    """Let attention be computed by a kernel that can be differentiated twice; hessprobe chooses it by itself."""

    def run(module: nn.Module, loss: Loss, data: Data) -> Answered:
        with sdpa_kernel(SDPBackend.MATH):
            return how(module, loss, data)

    return run


def installed(peers: bool) -> dict[str, list[tuple[str, Contestant]]]:
    """Return the contestants of every question, hessprobe first; others where asked for and importable."""
    found: dict[str, list[tuple[str, Contestant]]] = {name: [(OWN, _own(ask))] for name, ask in QUESTIONS.items()}
    found[TOGETHER] = [(OWN, _measured(*_MEASURES)), ("hessprobe, the dearest alone", _measured(_MEASURES[-1]))]
    if peers:
        for question, others in PEERS.items():
            there = [(name, how) for name, needs, how in others if importlib.util.find_spec(needs)]
            found[question] += [(name, _with_math(how)) for name, how in there]
    return found


def time_answers(
    network: Network,
    *,
    peers: bool = False,
    folder: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
    device: torch.device | str = "cpu",
    questions: Sequence[str] = (),
    finished: Callable[[Answer], None] = lambda answer: None,
    late: Callable[[], bool] = lambda: False,
) -> list[Answer]:
    """Return what every contestant takes for every question on one network.

    Args:
        network: see ``NETWORKS``.
        peers: other packages too, where they are installed.
        folder: where ``cifar10-jpeg.tar.xz`` and ``tinyshakespeare.txt`` lie; digits and a source text otherwise.
        report: told what is being done.
        device: where.
        questions: which; all where there are none.
        finished: told of every answer.
        late: whether no more answer is to be begun.
    """
    report(f"{network.name}: training")
    module, data = network.trained(folder, device)
    rows: list[Answer] = []
    for question, contestants in installed(peers).items():
        if questions and question not in questions:
            continue
        own: Answer | None = None
        for name, how in contestants:
            if late():
                return rows
            report(f"{network.name}: {question}, {name}")
            _warmed(how, device)
            found, seconds, gradients = _timed(network, module, data, how)
            row = Answer(
                network.name,
                question,
                name,
                gradients,
                seconds,
                found.value,
                found.low,
                found.high,
                found.products,
                found.note,
                own is None or _agree(own, found),
            )
            own = own or row
            rows.append(row)
            finished(row)
    return rows


def _agree(own: Answer, other: Answered) -> bool:
    if math.isnan(other.value):
        return False
    # The intervals of traces and norms widened to what is hardly ever missed, brackets to SciPy's own tolerance.
    slack = max(own.high - own.low, 2e-3 * abs(own.value))
    return other.low <= own.high + slack and other.high >= own.low - slack


def _timed(network: Network, module: nn.Module, data: Data, how: Contestant) -> tuple[Answered, float, float]:
    before, device = gradient_seconds(module, network.loss, data), _device(module)
    began = device_clock(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = how(module, network.loss, data)
        except Exception as error:  # whatever another package may raise
            reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            found = Answered(math.nan, math.nan, math.nan, note=f"error: {reason}")
    seconds = device_clock(device) - began + found.more
    after = gradient_seconds(module, network.loss, data)
    return found, seconds, 2 * seconds / (before + after)


def _warmed(how: Contestant, device: torch.device | str) -> None:
    """Ask a network of a few parameters, so that what is imported at first use is there."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).eval().to(device)
    data = [(torch.randn(8, 3).to(device), torch.randint(2, (8,)).to(device)) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # What fails here is said where it is timed.
        with contextlib.suppress(Exception):
            how(module, F.cross_entropy, data)


def page(
    rows: Sequence[dict[str, Any]],
    machine: str,
    *,
    incomplete: bool = False,
    networks: Mapping[str, Network] | None = None,
) -> str:
    """Return the answers as Markdown: a row a question and contestant, a column a network, in gradients."""
    networks = NETWORKS if networks is None else networks
    cases = [name for name in networks if any(row["case"] == name for row in rows)]
    cells = {(row["question"], row["contestant"], row["case"]): row for row in rows}
    lines = ["# Time to the answer, in gradients of the loss", ""]
    lines += ["Not complete: these were finished.", ""] if incomplete else []
    lines += ["| question | by | " + " | ".join(cases) + " |", "|---|---" + "|---:" * len(cases) + "|"]
    for question, contestant in dict.fromkeys((row["question"], row["contestant"]) for row in rows):
        found = [cells.get((question, contestant, case)) for case in cases]
        lines.append(f"| {question} | {contestant} | " + " | ".join(_cell(row) for row in found) + " |")
    lines += [""]
    for case in cases:
        own = [row for row in rows if row["case"] == case and row["contestant"] == OWN]
        gradient = own[0]["seconds"] / own[0]["gradients"]
        told = [row for row in own if row["question"] not in _UNTOLD]
        said = "; ".join(f"{row['question'].split(',')[0]} {_number(row)}" for row in told)
        lines.append(f"- **{case}**: {networks[case].title}; a gradient takes {1e3 * gradient:.0f} ms. {said}".strip())
    lines += ["", _READ, machine]
    return "\n".join(lines) + "\n"


# What the lines below the table leave out.
_UNTOLD = ("one product", "lambda_max, a look (5 %)", TOGETHER)
_READ = (
    "A gradient is what a training step does over the same data, timed before and after every answer. hessprobe begins "
    "each question anew: recordings and choices are in its time. Plain probes are not run to their end: eight products "
    "with curvlinops tell their time and their variance, and so the number of probes for the same standard error, in "
    "the record. A value that does not lie where hessprobe's interval says, given the error of both, is printed beside "
    "its time."
)


def _number(row: dict[str, Any]) -> str:
    return f"{row['value']:.4g} ({row['low']:.4g} to {row['high']:.4g})"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    if row["note"].startswith("error"):
        return "error"
    size = row["gradients"]
    text = f"{size:,.0f}" if size >= 10 else f"{size:.1f}"
    text += " (missed)" if "tolerance-missed" in row["note"] else ""
    return text if row["agrees"] else f"{text} (another value: {row['value']:.4g})"

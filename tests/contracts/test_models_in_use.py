"""Models, inputs and outputs of many kinds: every engine against a dense computation in plain torch, or one sentence.

The Hessian is compared with central differences of gradients that torch makes at the module's own parameters; the
Gauss-Newton matrix with J^T (d^2 l) J, J by central differences of the outputs. Neither goes through hessprobe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprobe as hp
from hessprobe.benchmarks.conformance.derivatives import CubeOnce
from hessprobe.errors import UnsupportedError
from hessprobe.measures import MeasureSettings, measure_all

F64 = torch.float64
EXACT = ("double_backward", "forward_over_reverse", "linearized")
Batches = list[Any]


@dataclass(frozen=True)
class Made:
    """A model with its data, and what is true of it.

    Attributes:
        module: the model.
        loss: as ``EmpiricalRisk`` takes it.
        batches: likewise.
        truth: the loss of all data at the module's own parameters, written without hessprobe.
        outputs: of a batch, as a list of tensors, and the mean loss of such a list; None where there are none.
        options: of ``EmpiricalRisk``.
        same: the data in plain tensors, where ``batches`` are of a special kind.
    """

    module: nn.Module
    loss: Any
    batches: Batches
    truth: Callable[[nn.Module], Tensor]
    outputs: tuple[Callable[[nn.Module, Any], list[Tensor]], Callable[[list[Tensor], Any], Tensor]] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    same: Batches | None = None


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        make: makes it anew.
        engines: those that can differentiate it; where there is none, finite differences take over.
        no_outputs: what the refusal of a Gauss-Newton matrix says; "" where there is one.
    """

    make: Callable[[], Made]
    engines: Sequence[str] = EXACT
    no_outputs: str = ""


def net(inputs: int = 3, width: int = 4, outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs)).double()


def data(*sizes: int) -> Batches:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, dtype=F64, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes
    ]


class Of(nn.Module):
    """A module made of parts, parameters and buffers, and of a function of them and the inputs."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)
        self._call = forward

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self._call(self, *inputs, **named)


def parameter(*shape: int, dtype: torch.dtype = F64) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(3)))


def plain(
    module: nn.Module,
    batches: Batches | None = None,
    loss: Any = None,
    *,
    call: Callable[[nn.Module, Any], Any] = lambda module, x: module(x),
    leaves: Callable[[Any], list[Tensor]] = lambda outputs: [outputs],
    of_leaves: Callable[[list[Tensor]], Any] = lambda leaves: leaves[0],
    same: Batches | None = None,
    own: Any = None,
) -> Made:
    """A mean over the examples of a loss of outputs and targets.

    Args:
        module: the model.
        batches: by default two of 6 and 5 examples.
        loss: a cross-entropy by default.
        call: the outputs on a batch.
        leaves: the tensors of the outputs.
        of_leaves: the outputs from these.
        same: the data in plain tensors, where ``batches`` are of a special kind.
        own: the loss of the outputs as they are, where ``loss`` is given something else.
    """
    batches = data(6, 5) if batches is None else batches
    loss = nn.CrossEntropyLoss() if loss is None else loss
    known = same or batches
    value = own or loss
    total = sum(len(t) for _, t in known)

    def truth(at: nn.Module) -> Tensor:
        return sum(len(t) / total * value(call(at, x), t) for x, t in known)

    outputs = (lambda at, x: leaves(call(at, x)), lambda found, t: value(of_leaves(found), t))
    return Made(module, loss, batches, truth, (outputs[0], outputs[1]), same=same)


def moves(module: nn.Module) -> tuple[int, Callable[[Tensor], None]]:
    """Number of real coordinates of the parameters, and what sets the parameters this far from where they are."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    start = [torch.view_as_real(p.detach()).clone() if p.is_complex() else p.detach().clone() for p in parameters]

    def move(aside: Tensor) -> None:
        pieces = aside.split([each.numel() for each in start])
        with torch.no_grad():
            for p, at, piece in zip(parameters, start, pieces, strict=True):
                moved = at + piece.view_as(at)
                p.copy_(torch.view_as_complex(moved) if p.is_complex() else moved)

    return sum(each.numel() for each in start), move


def slopes(module: nn.Module, value: Tensor) -> Tensor:
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([(torch.view_as_real(s) if s.is_complex() else s).flatten() for s in found])


def differences(count: int, move: Callable[[Tensor], None], value: Callable[[], Tensor], step: float) -> Tensor:
    """Central differences of ``value()`` along every coordinate, as columns."""
    columns = []
    for unit in torch.eye(count, dtype=F64):
        sides = []
        for sign in (1, -1):
            move(sign * step * unit)
            sides.append(value().detach())
        columns.append((sides[0] - sides[1]) / (2 * step))
    move(torch.zeros(count, dtype=F64))
    return torch.stack(columns, 1)


def dense_hessian(made: Made) -> Tensor:
    module = made.module.eval()
    count, move = moves(module)
    found = differences(count, move, lambda: slopes(module, made.truth(module)), 1e-5)
    return (found + found.T) / 2


def dense_gauss_newton(made: Made) -> Tensor:
    module = made.module.eval()
    count, move = moves(module)
    assert made.outputs is not None
    outputs, loss = made.outputs
    batches = made.same or made.batches
    total, examples = torch.zeros(count, count, dtype=F64), 0
    for x, t in batches:
        shapes = [each.shape for each in outputs(module, x)]

        def flat(x: Any = x) -> Tensor:
            return torch.cat([each.detach().flatten() for each in outputs(module, x)])

        def of_flat(f: Tensor, t: Any = t, shapes: list = shapes) -> Tensor:
            pieces = f.split([shape.numel() for shape in shapes])
            return loss([piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)], t)

        jacobian = differences(count, move, flat, 1e-6)
        bend = torch.autograd.functional.hessian(of_flat, flat())
        total += len(t) * jacobian.T @ bend @ jacobian
        examples += len(t)
    return total / examples


def bags(mode: str) -> Made:
    torch.manual_seed(0)
    module = nn.Sequential(nn.EmbeddingBag(6, 4, mode=mode), nn.Tanh(), nn.Linear(4, 3)).double()
    generator = torch.Generator().manual_seed(1)
    return plain(module, [(torch.randint(6, (n, 5), generator=generator), torch.arange(n) % 3) for n in (6, 4)])


def bags_with_offsets() -> Made:
    torch.manual_seed(0)
    module = Of(lambda m, i, o: m.l(m.e(i, o).tanh()), e=nn.EmbeddingBag(6, 4, mode="sum"), l=nn.Linear(4, 3)).double()
    words = torch.randint(6, (16,), generator=torch.Generator().manual_seed(1))
    batches = [
        ((words[:9], torch.tensor([0, 2, 5, 6])), torch.arange(4) % 3),
        ((words[9:], torch.tensor([0, 1, 5])), torch.arange(3) % 3),
    ]
    return plain(module, batches, call=lambda m, x: m(*x))


def distances() -> Made:
    return plain(Of(lambda m, x: -torch.cdist(m.n(x), m.c), c=parameter(3, 3), n=net()))


def cumulated() -> Made:
    return plain(Of(lambda m, x: torch.logcumsumexp(m.n(x), 1), n=net()))


def mixed_precision(enabled: bool) -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.n[:2](x)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            h = m.n[2](h)  # autocast leaves double precision as it is
        return h

    return plain(Of(forward, n=net()))


def once() -> Made:
    return plain(Of(lambda m, x: m.n[2](CubeOnce.apply(m.n[:2](x))), n=net()))


def transformed() -> Made:
    """Derivatives by the inputs with torch.func, as networks of physics take them."""

    def forward(m: Any, x: Tensor) -> Tensor:
        second = torch.func.vmap(lambda y: torch.func.hessian(lambda q: m.n(q).sum())(y).diagonal())
        return m.n(x) + second(x)

    return plain(Of(forward, n=net()))


def waves() -> Made:
    """Pairs of numbers as complex ones, as in a Fourier layer, behind an odd number of other parameters."""

    def forward(m: Any, x: Tensor) -> Tensor:
        found = torch.fft.rfft(m.n(x) * m.scale) * torch.view_as_complex(m.w)
        return torch.fft.irfft(found, n=3)

    return plain(Of(forward, scale=parameter(3), w=parameter(2, 2), n=net()))


def complex_weights(view: bool) -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        w = torch.view_as_complex(m.w) if view else m.w
        return m.l((x.to(torch.complex128) @ w).abs())

    w = parameter(3, 4, 2) if view else parameter(3, 4, dtype=torch.complex128)
    torch.manual_seed(0)
    return plain(Of(forward, scale=parameter(1), w=w, l=nn.Linear(4, 3).double()))


def complex_layer() -> Made:
    torch.manual_seed(0)
    layer = nn.Linear(3, 3, dtype=torch.complex128)
    return plain(Of(lambda m, x: m.a(x.to(torch.complex128)).abs(), a=layer))


def squared_inside() -> Made:
    """A model that returns its losses."""

    def forward(m: Any, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        return {"a": F.mse_loss(m.n(x), F.one_hot(t, 3).double()), "b": m.n(x).square().mean()}

    module = Of(forward, n=net())
    batches = [((x, t), t) for x, t in data(6, 5)]
    return plain(module, batches, lambda o, t: o["a"] + 0.1 * o["b"], call=lambda m, x: m(*x))


def as_plain(kind: Callable[[Tensor], Tensor]) -> Made:
    """Sparse inputs beside the same ones written out."""
    batches = [(x.relu(), t) for x, t in data(6, 5)]
    return plain(net(), [(kind(x), t) for x, t in batches], same=batches)


def sparse_targets() -> Made:
    batches = [(x, F.one_hot(t, 3).double()) for x, t in data(6, 5)]
    sparse = [(x, t.to_sparse()) for x, t in batches]
    return plain(net(), sparse, lambda o, t: (o - t.to_dense()).square().sum(1).mean(), same=batches)


def graph(kind: Callable[[Tensor], Tensor]) -> Made:
    matrix = (torch.rand(5, 5, generator=torch.Generator().manual_seed(2)) > 0.5).double()
    return plain(Of(lambda m, x: torch.mm(m.matrix, m.n(x)), n=net(), matrix=kind(matrix)), data(5, 5))


def sentences() -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(k, 3, dtype=F64, generator=generator) for k in lengths] for lengths in ((2, 4, 3), (1, 5))]


def packed() -> Made:
    torch.manual_seed(0)
    module = Of(lambda m, x: m.head(m.cell(x)[1][0][0]), cell=nn.LSTM(3, 2), head=nn.Linear(2, 3)).double()
    batches = [
        (nn.utils.rnn.pack_sequence(rows, enforce_sorted=False), torch.arange(len(rows)) % 3) for rows in sentences()
    ]
    return plain(module, batches)


def nested(layout: torch.layout) -> Made:
    """Rows of different lengths, their mean measured; without padding where the layout keeps them one after another."""

    def forward(m: Any, x: Any) -> Tensor:
        if not isinstance(x, list) and layout == torch.strided:
            x = torch.nested.to_padded_tensor(x, 0.0)
            return (m.n(x) * (x != 0).any(2, keepdim=True)).sum(1)
        rows = x if isinstance(x, list) else m.n(x.values()).split(x.offsets().diff().tolist())
        return torch.stack([(m.n(row) if isinstance(x, list) else row).sum(0) for row in rows])

    same = [(rows, torch.arange(len(rows)) % 3) for rows in sentences()]
    batches = [(torch.nested.nested_tensor(rows, layout=layout), t) for rows, t in same]
    return plain(Of(forward, n=net()), batches, same=same)


def logits() -> Made:
    class Several(dict):
        logits = property(lambda self: self["logits"])

    module = Of(lambda m, x: Several(logits=m.n(x), hidden=x), n=net())
    return plain(module, call=lambda m, x: m(x).logits)


def equation_in_forward() -> Made:
    """The residual of u'' + u = 0, as networks of physics are trained on points alone."""

    def forward(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
        x = x.detach().requires_grad_()
        u = module(x)
        first = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        second = torch.autograd.grad(first.sum(), x, create_graph=True)[0]
        return (second + u).square().sum(), len(x)

    batches = [torch.linspace(0, 1, 6, dtype=F64)[:, None], torch.linspace(1, 2, 5, dtype=F64)[:, None]]

    def truth(at: nn.Module) -> Tensor:
        return sum(forward(at, x)[0] for x in batches) / 11

    return Made(net(1, 4, 1), None, batches, truth, options={"forward": forward})


@dataclass
class Out:
    scores: Tensor
    hidden: Tensor
    cache: Any = None


class Pair(NamedTuple):
    scores: Tensor
    hidden: Tensor


def several_outputs(kind: Callable[..., Any], get: Callable[[Any, str], Tensor]) -> Made:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = m.n[:2](x)
        return kind(scores=m.n[2](hidden), hidden=hidden)

    def loss(o: Any, t: Tensor) -> Tensor:
        return F.cross_entropy(get(o, "scores"), t) + get(o, "hidden").square().mean()

    def leaves(o: Any) -> list[Tensor]:
        return [get(o, "scores"), get(o, "hidden")]

    of_leaves: Any = lambda found: kind(scores=found[0], hidden=found[1])  # noqa: E731
    return plain(Of(forward, n=net()), None, loss, leaves=leaves, of_leaves=of_leaves)


def two_heads() -> Made:
    module = Of(lambda m, x: (m.a(x), m.b(x)), a=net(), b=net(3, 2, 2))
    return plain(
        module, None, lambda o, t: F.cross_entropy(o[0], t) + F.cross_entropy(o[1], t % 2),
        leaves=list, of_leaves=tuple,
    )  # fmt: skip


def experts() -> Made:
    """Two experts, and an auxiliary loss of the whole batch as another output, which bends the loss."""

    def forward(m: Any, x: Tensor) -> Any:
        share = m.gate(x).softmax(1)
        return share[:, :1] * m.one(x) + share[:, 1:] * m.two(x), (share.mean(0) ** 2).sum(), share.mean(0)

    torch.manual_seed(5)
    module = Of(forward, gate=nn.Linear(3, 2).double(), one=net(), two=net())

    def loss(o: Any, t: Tensor) -> Tensor:
        return F.cross_entropy(o[0], t) + 0.5 * o[1].square() + (o[2] - 0.5).square().sum()

    return plain(module, data(6, 6), loss, leaves=list, of_leaves=tuple)


class Detector(nn.Module):
    """Takes a list of images of any size and, to return a dict of losses, a list of the objects in each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head = nn.Conv2d(2, 2, 2).double(), nn.Linear(2, 5).double()

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        found = torch.stack([self.head(self.features(image[None]).tanh().mean((2, 3)))[0] for image in images])
        boxes = torch.stack([each["boxes"].mean(0) for each in targets])
        labels = torch.stack([each["labels"].double().mean() for each in targets])
        return {"box": F.smooth_l1_loss(found[:, :4], boxes), "class": F.mse_loss(found[:, 4], labels)}


def pictures() -> Batches:
    """As many channels and, in the first image, objects as another batch has images: none of them is their number."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for count in (3, 2):
        images = [torch.randn(2, 3 + i, 4, dtype=F64, generator=generator) for i in range(count)]
        objects = [torch.rand(1 + i, 4, dtype=F64, generator=generator) for i in range(count)]
        batches.append((images, [{"boxes": each, "labels": torch.arange(len(each))} for each in objects]))
    return batches


def detector() -> Made:
    batches = [((images, targets), targets) for images, targets in pictures()]
    return plain(Detector(), batches, lambda o, t: sum(o.values()), call=lambda m, x: m(*x))


def detector_by_forward() -> Made:
    def forward(module: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return sum(module(*batch).values()) * len(batch[0]), len(batch[0])

    def truth(at: nn.Module) -> Tensor:
        return sum(forward(at, batch)[0] for batch in pictures()) / 5

    return Made(Detector(), None, pictures(), truth, options={"forward": forward})


CASES: dict[str, Case] = {
    "bags of embeddings": Case(lambda: bags("mean"), (), "differentiate"),
    "largest of bags of embeddings": Case(lambda: bags("max"), (), "differentiate"),
    "bags of embeddings with offsets": Case(bags_with_offsets, (), "differentiate"),
    "distances to centres": Case(distances, (), "differentiate"),
    "cumulated logarithms": Case(cumulated),
    "autocast inside forward": Case(lambda: mixed_precision(True)),
    "autocast switched off inside forward": Case(lambda: mixed_precision(False)),
    "a part that is differentiable once": Case(once, (), "differentiate"),
    "a model that runs torch.func": Case(transformed, ("double_backward", "linearized", "forward_over_reverse")),
    "pairs of parameters viewed as complex": Case(waves),
    "a matrix of pairs viewed as complex": Case(lambda: complex_weights(view=True)),
    "complex parameters": Case(lambda: complex_weights(view=False)),
    "a complex layer": Case(complex_layer),
    "sparse inputs": Case(lambda: as_plain(Tensor.to_sparse), ("double_backward",)),
    "sparse rows": Case(lambda: as_plain(Tensor.to_sparse_csr), ("double_backward",)),
    "sparse targets": Case(sparse_targets),
    "a sparse buffer": Case(lambda: graph(Tensor.to_sparse), ("double_backward",)),
    "a buffer of sparse rows": Case(lambda: graph(Tensor.to_sparse_csr), ("double_backward",)),
    "packed sequences": Case(packed, ("double_backward",)),
    "nested rows": Case(lambda: nested(torch.jagged), ("double_backward", "forward_over_reverse")),
    "nested tensors of old": Case(lambda: nested(torch.strided), ("double_backward",)),
    "outputs with logits": Case(logits),
    "an equation's residual": Case(equation_in_forward, ("double_backward",), "computes its loss inside forward"),
    "a dataclass": Case(lambda: several_outputs(Out, getattr)),
    "a named tuple": Case(lambda: several_outputs(Pair, getattr)),
    "a dict": Case(lambda: several_outputs(dict, lambda o, name: o[name])),
    "two heads in a tuple": Case(two_heads),
    "experts with an auxiliary loss": Case(experts),
    "a detector": Case(detector, no_outputs="a dict of numbers of the whole batch, its losses"),
    "a detector by its own losses": Case(
        detector_by_forward, ("double_backward", "forward_over_reverse"), "computes its loss inside forward"
    ),
    "a model that returns its losses": Case(
        squared_inside, no_outputs="a dict of numbers of the whole batch, its losses"
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", list(CASES))
def test_the_hessian_is_the_dense_one_by_every_engine_that_differentiates(name: str) -> None:
    case = CASES[name]
    made, exact = case.make(), dense_hessian(case.make())
    risk = hp.EmpiricalRisk(made.module, made.loss, made.batches, **made.options)
    for engine in ("auto", *EXACT, "finite_difference"):
        H = hp.Hessian(risk, engine=engine)
        if engine in EXACT and engine not in case.engines:
            with pytest.raises(UnsupportedError) as refused:
                H.to_dense()
            assert "\n" not in str(refused.value)
            continue
        torch.testing.assert_close(H.to_dense(), exact, rtol=1e-6, atol=1e-7)
        assert engine != "auto" or H.is_exact == bool(case.engines)
    values = torch.linalg.eigvalsh(exact)
    truths = {"trace": values.sum(), "lambda-max": values[-1], "frob": values.norm()}
    slack = 1e-6 * float(values.norm())
    for measure, truth in truths.items():
        low, high = hp.measure(measure, risk, seed=0).interval(0.99)
        assert low - slack <= float(truth) <= high + slack, measure


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", list(CASES))
def test_the_gauss_newton_matrix_is_the_dense_one_or_refused_in_a_sentence(name: str) -> None:
    case = CASES[name]
    made = case.make()
    risk = hp.EmpiricalRisk(made.module, made.loss, made.batches, **made.options)
    if case.no_outputs:
        with pytest.raises(UnsupportedError, match=case.no_outputs) as refused:
            hp.GaussNewton(risk).to_dense()
        assert "\n" not in str(refused.value)
        return
    exact = dense_gauss_newton(case.make())
    torch.testing.assert_close(hp.GaussNewton(risk).to_dense(), exact, rtol=1e-6, atol=1e-7)
    low, high = hp.trace(hp.GaussNewton(risk), seed=0).interval(0.99)
    slack = 1e-6 * float(exact.norm())
    assert low - slack <= float(exact.trace()) <= high + slack


def several() -> nn.Module:
    return Of(lambda m, x: (m.n(x), m.n(x)[:, :1]), n=net())


REFUSED: dict[str, tuple[Callable[[], tuple[nn.Module, Any, Batches]], str]] = {
    "a detector without forward=": (
        lambda: (Detector(), nn.MSELoss(), pictures()),
        r"inputs must fit the model; got \(2, 3, 4\).*passed as the model's arguments.*forward=lambda m, b: \(sum",
    ),
    "a detector without a loss": (lambda: (Detector(), None, pictures()), r"got None.*forward=lambda m, b: \(sum"),
    "objects of images in a dict": (
        lambda: (
            net(),
            nn.MSELoss(),
            [
                {
                    "pixel_values": torch.ones(2, 3, dtype=F64),
                    "labels": [{"boxes": torch.ones(1)}, {"boxes": torch.ones(1)}],
                }
            ],
        ),
        r"got a list under 'labels'\. Pass forward=.*m\(\*\*b\)\.loss \* len\(b\['labels'\]\)",
    ),
    "a tuple for a loss of one tensor": (
        lambda: (several(), nn.CrossEntropyLoss(), data(6)),
        r"returns several things \(0: \(6, 3\) torch.float64, 1: \(6, 1\) torch.float64\): choose in the loss, as "
        r"lambda o, t: loss\(o\[0\], t\)",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_does_not_fit_is_told_the_way_out(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=words) as refused:
        hp.EmpiricalRisk(*make())
    assert "\n" not in str(refused.value)


def test_the_images_of_a_batch_are_counted_and_cut() -> None:
    made = detector()
    risk = hp.EmpiricalRisk(made.module, made.loss, made.batches)
    assert risk.n_examples == 5
    (first, _) = risk.terms()
    parts = [first.slice(0, 1), first.slice(1, 3)]
    assert [len(part.inputs[0]) for part in parts] == [len(part.targets) for part in parts] == [1, 2]
    whole = sum(part.weight * part(risk.theta) for part in parts)
    torch.testing.assert_close(whole, first.weight * first(risk.theta), rtol=1e-12, atol=0)
    assert detector_by_forward().batches[0][0][0].shape[0] == 2
    by_forward = detector_by_forward()
    assert hp.EmpiricalRisk(by_forward.module, None, by_forward.batches, **by_forward.options).n_examples == 5


def test_several_targets_of_all_examples_are_not_a_list_of_examples() -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(n, 3, dtype=F64, generator=generator), [{"a": torch.arange(n) % 3}, {"b": torch.arange(n) % 2}])
        for n in (6, 4)
    ]
    risk = hp.EmpiricalRisk(net(), lambda o, t: F.cross_entropy(o, t[0]["a"]) + o.square().mean(), batches)
    assert risk.n_examples == 10


def test_outputs_that_are_no_numbers_are_named() -> None:
    module = Of(lambda m, x: {"scores": m.n(x), "best": m.n(x).argmax(1)}, n=net())
    risk = hp.EmpiricalRisk(module, lambda o, t: F.cross_entropy(o["scores"], t), data(6))
    with pytest.raises(UnsupportedError, match=r"returns a dict that holds torch.int64\. Wrap the model"):
        hp.GaussNewton(risk)


def test_numbers_of_the_batch_do_not_pass_for_those_of_examples() -> None:
    # As many groups as examples in the first batch alone.
    module = Of(lambda m, x: (m.n(x), m.n(x).sum(0)[:3].repeat(2)), n=net())
    risk = hp.EmpiricalRisk(module, lambda o, t: F.cross_entropy(o[0], t) + o[1].square().sum(), data(6, 5))
    with pytest.raises(UnsupportedError, match="outputs of one form; their shapes or kinds differ between batches"):
        hp.GaussNewton(risk).to_dense()


def test_a_loss_that_is_linear_in_its_outputs_says_that_its_gauss_newton_matrix_is_zero() -> None:
    module = nn.Sequential(*net(), nn.LogSoftmax(1))
    scores = dense_gauss_newton(plain(net()))
    for loss in (nn.NLLLoss(), lambda o, t: F.nll_loss(o, t)):
        G = hp.GaussNewton(hp.EmpiricalRisk(module, loss, data(6, 5)))
        assert not bool(G.to_dense().any())
        assert "0 by definition; of a likelihood measure the Fisher matrix (operator='fisher')" in G.notes[0]
    F_ = hp.Fisher(hp.EmpiricalRisk(module, nn.NLLLoss(), data(6, 5)))
    torch.testing.assert_close(F_.to_dense(), scores, rtol=1e-6, atol=1e-8)
    assert "likelihood" in F_.notes[0]
    assert hp.GaussNewton(hp.EmpiricalRisk(net(), nn.CrossEntropyLoss(), data(6, 5))).notes == ()
    risk = hp.EmpiricalRisk(module, nn.NLLLoss(), data(6, 5))
    (result,) = measure_all(["trace"], risk, MeasureSettings(operator="ggn"))
    assert result.estimate.value == 0
    assert any("0 by definition" in note for note in result.notes)


@pytest.mark.parametrize("outputs", [300, 1000, 5000])
def test_the_exact_fisher_matrix_has_no_limit_of_outputs(outputs: int) -> None:
    torch.manual_seed(0)
    module = nn.Linear(1, outputs, bias=False).double()
    x, t = torch.ones(2, 1, dtype=F64), torch.tensor([0, 1])
    matrix = hp.Fisher(hp.EmpiricalRisk(module, nn.CrossEntropyLoss(), [(x, t)]))
    shares = module(x)[0].detach().softmax(0)
    v = torch.randn(outputs, dtype=F64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(matrix @ v, shares * (v - shares @ v), rtol=1e-9, atol=1e-12)
    low, high = hp.trace(matrix, seed=0).interval(0.999)
    assert low <= float((shares * (1 - shares)).sum()) <= high

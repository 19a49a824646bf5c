"""Losses and models as people write them: the Hessian against differences of plain torch gradients, or a refusal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprobe as hp
from hessprobe.benchmarks.conformance.derivatives import Reversal
from hessprobe.errors import NondeterministicLossError, UnsupportedError

F64 = torch.float64
Made = tuple[nn.Module, Any, list[tuple[Any, Tensor]]]


def net(out: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, out)).double()


def data(*sizes: int) -> list[tuple[Any, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, dtype=F64, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes
    ]


class Of(nn.Module):
    """A module made of parts and of a function of them and the input."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self._call = forward

    def forward(self, x: Tensor) -> Any:
        return self._call(self, x)


def focal(z: Tensor, t: Tensor) -> Tensor:
    each = F.cross_entropy(z, t, reduction="none")
    return ((1 - (-each).exp()) ** 2 * each).mean()


def triplet(z: Tensor, t: Tensor) -> Tensor:
    return F.triplet_margin_loss(*z.split(len(z) // 3))


def learned_temperature() -> Made:
    module = Of(lambda m, x: F.normalize(m.n(x), dim=1), n=net())
    module.t = nn.Parameter(torch.tensor(1.0, dtype=F64))

    def loss(z: Tensor, t: Tensor) -> Tensor:
        scores = z @ z.T * module.t.exp() - 10 * torch.eye(len(z), dtype=F64)
        return F.cross_entropy(scores, torch.arange(len(z)).flip(0))

    return module, loss, data(6, 6)


def mixup(z: Tensor, t: Tensor) -> Tensor:
    return 0.3 * F.cross_entropy(z, t) + 0.7 * F.cross_entropy(z, t.flip(0))


def mixup_drawn(z: Tensor, t: Tensor) -> Tensor:
    share = torch.distributions.Beta(1.0, 1.0).sample()
    return share * F.cross_entropy(z, t) + (1 - share) * F.cross_entropy(z, t.flip(0))


def teacher() -> Made:
    student = net()
    frozen = copy.deepcopy(student).requires_grad_(False)
    with torch.no_grad():
        for p in frozen.parameters():
            p.mul_(0.9)
    module = Of(lambda m, x: torch.stack([m.s(x), m.t(x)], 1), s=student, t=frozen)
    return module, lambda z, t: F.kl_div(z[:, 0].log_softmax(1), z[:, 1].softmax(1), reduction="batchmean"), data(6, 5)


def stop_gradient() -> Made:
    module = Of(lambda m, x: torch.stack([m.p(m.b(x)), m.b(x + 0.1).detach()], 1), b=net(), p=nn.Linear(3, 3).double())
    return module, lambda z, t: 2 - 2 * F.cosine_similarity(z[:, 0], z[:, 1]).mean(), data(6, 5)


def reversal() -> Made:
    module = Of(lambda m, x: torch.cat([m.h(m.b(x)), m.d(Reversal.apply(m.b(x)))], 1), b=net(4), h=net4(), d=net4(3))
    return module, lambda z, t: F.cross_entropy(z[:, :3], t) + F.cross_entropy(z[:, 3:], t), data(6, 5)


def net4(seed: int = 2) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(4, 3).double()


def straight_through() -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.n[:2](x)
        return m.n[2](h + (h.sign() - h).detach())

    return Of(forward, n=net()), nn.CrossEntropyLoss(), data(6, 5)


class FusedHead(torch.autograd.Function):
    """A cross-entropy with its last layer, whose gradients are made in forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, t: Tensor) -> Tensor:
        scores = x @ w.T
        slope = (scores.softmax(1) - F.one_hot(t, scores.shape[1])) / len(scores)
        ctx.save_for_backward(slope @ w, slope.T @ x)
        return F.cross_entropy(scores, t)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None]:
        return slope * ctx.saved_tensors[0], slope * ctx.saved_tensors[1], None


class Headed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = net(4), net4()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return FusedHead.apply(self.body(x), self.head.weight, t)


def fused_head() -> Made:
    module = Headed()
    module.head.bias.requires_grad_(False)
    return module, lambda z, t: z, [((x, t), t) for x, t in data(6, 5)]


def spectral() -> Made:
    module = net()
    module[0] = torch.nn.utils.parametrizations.spectral_norm(module[0])
    return module.eval(), nn.CrossEntropyLoss(), data(6, 5)


def experts() -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        p = m.g(x).softmax(1)
        m.aux = 2 * (F.one_hot(p.argmax(1), 2).double().mean(0) * p.mean(0)).sum()
        return p[:, :1] * m.one(x) + p[:, 1:] * m.two(x)

    torch.manual_seed(5)
    module = Of(forward, g=nn.Linear(3, 2).double(), one=net(), two=net())
    return module, lambda z, t: F.cross_entropy(z, t) + 0.5 * module.aux, data(6, 6)


def quantile(z: Tensor, t: Tensor) -> Tensor:
    missed = t.double() - z[:, 0]
    return torch.maximum(0.9 * missed, -0.1 * missed).mean()


def variational() -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        mean, log = m.e(x).chunk(2, 1)
        noise = torch.randn(mean.shape, dtype=F64, generator=torch.Generator().manual_seed(5))
        return torch.cat([m.d(mean + noise * (log / 2).exp()), mean, log], 1)

    def loss(z: Tensor, t: Tensor) -> Tensor:
        made, mean, log = z.split([3, 2, 2], 1)
        return ((made - t) ** 2).sum(1).mean() + 0.5 * (mean**2 + log.exp() - 1 - log).sum(1).mean()

    torch.manual_seed(0)
    module = Of(forward, e=nn.Linear(3, 4).double(), d=nn.Linear(2, 3).double())
    return module, loss, [(x, x) for x, _ in data(6, 5)]


def averaged() -> Made:
    plain = net()
    module = torch.optim.swa_utils.AveragedModel(nn.Sequential(plain[0], nn.BatchNorm1d(4).double(), plain[1:]))
    torch.optim.swa_utils.update_bn([x for x, _ in data(6, 5)], module)
    return module.eval(), nn.CrossEntropyLoss(), data(6, 5)


def elastic() -> Made:
    module = net()
    old = {name: 0.5 * p.detach() for name, p in module.named_parameters()}

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(z, t) + 3 * sum((p - old[name]).square().sum() for name, p in module.named_parameters())

    return module, loss, data(6, 5)


def hooked_activation() -> Made:
    module, kept = net(), {}
    module[0].register_forward_hook(lambda m, i, o: kept.__setitem__("a", o))
    return module, lambda z, t: F.cross_entropy(z, t) + 0.1 * kept["a"].square().mean(), data(6, 5)


def penalty_without_gradient(read: Callable[[Tensor], Any]) -> Callable[[], Made]:
    def make() -> Made:
        module = net()
        return module, lambda z, t: F.cross_entropy(z, t) + sum(read(p) for p in module.parameters()), data(6, 5)

    return make


class Centres(nn.Module):
    """A loss with trainable parameters of its own, as ArcFace and centre losses have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.c = nn.Parameter(torch.randn(3, 3, dtype=F64))

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(z @ self.c, t)


def speech() -> Made:
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(4, 6, 3, dtype=F64, generator=generator), torch.randint(1, 4, (4, 2), generator=generator))
        for _ in range(2)
    ]

    def loss(z: Tensor, t: Tensor) -> Tensor:
        n = len(z)
        return F.ctc_loss(z.log_softmax(2).transpose(0, 1), t, torch.full((n,), 6), torch.full((n,), 2))

    return net(4), loss, batches


def overlap(z: Tensor, t: Tensor) -> Tensor:
    p, o = z.softmax(1), F.one_hot(t, 3).double()
    return 1 - (2 * (p * o).sum() + 1) / ((p + o).sum() + 1)


def plain(loss: Any, *sizes: int, out: int = 3) -> Callable[[], Made]:
    return lambda: (net(out), loss, data(*(sizes or (6, 5))))


_OTHERS = "others would give another"
# Name: how it is made, and what every number says.
MEASURED: dict[str, tuple[Callable[[], Made], str]] = {
    "focal": (plain(focal), ""),
    "label smoothing": (plain(nn.CrossEntropyLoss(label_smoothing=0.1)), ""),
    "triplet": (plain(triplet, 6, 6), _OTHERS),
    "InfoNCE with a learned temperature": (learned_temperature, _OTHERS),
    "mixup within the batch": (plain(mixup), _OTHERS),
    "a frozen teacher": (teacher, ""),
    "a cross-entropy fused with its layer": (fused_head, ""),
    "spectral norm": (spectral, ""),
    "balanced experts": (experts, _OTHERS),
    "quantile": (plain(quantile, out=1), ""),
    "CTC": (speech, ""),
    "a variational autoencoder with fixed noise": (variational, _OTHERS),
    "averaged weights with BatchNorm": (averaged, ""),
    "elastic weights": (elastic, ""),
    "a penalty on a hooked activation": (hooked_activation, ""),
    "overlap of a batch": (plain(overlap), _OTHERS),
    "a loss with parameters of its own": (plain(Centres()), "9 trainable parameters of its own"),
}
# Name: how it is made, and what the refusal says.
_SLOPE = "gradient of the loss is not its slope"
REFUSED: dict[str, tuple[Callable[[], Made], str]] = {
    "mixup that draws": (plain(mixup_drawn), "must be the same at every call"),
    "a target without gradient": (stop_gradient, _SLOPE),
    "gradient reversal": (reversal, _SLOPE),
    "straight through": (straight_through, _SLOPE),
    "a penalty on data": (penalty_without_gradient(lambda p: p.data.square().sum()), "by a way that has no gradient"),
    "a penalty by item": (penalty_without_gradient(lambda p: p.square().sum().item()), "by a way that has no gradient"),
}


def differences(module: nn.Module, loss: Any, batches: list[tuple[Any, Tensor]]) -> Tensor:
    """The Hessian by central differences of gradients that plain torch makes at the module's own parameters."""
    module = module.eval()
    parameters = [p for p in module.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    buffers = [b.clone() for b in module.buffers()]
    total = sum(len(t) for _, t in batches)

    def gradient(aside: Tensor) -> Tensor:
        pieces = aside.split([p.numel() for p in parameters])
        with torch.no_grad():
            for p, at, piece in zip(parameters, start, pieces, strict=True):
                p.copy_(at + piece.view_as(p))
            for now, kept in zip(module.buffers(), buffers, strict=True):
                now.copy_(kept)
        value = torch.zeros((), dtype=F64)
        for x, t in batches:
            value = value + len(t) / total * loss(module(*x) if isinstance(x, tuple) else module(x), t)
        slopes = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([slope.flatten() for slope in slopes])

    units = torch.eye(sum(p.numel() for p in parameters), dtype=F64)
    step = 1e-5
    found = torch.stack([(gradient(step * u) - gradient(-step * u)) / (2 * step) for u in units])
    gradient(torch.zeros(len(units), dtype=F64))
    return (found + found.T) / 2


@pytest.mark.parametrize("name", list(MEASURED))
def test_measured_as_differences_of_gradients(name: str) -> None:
    make, caveat = MEASURED[name]
    module, loss, batches = make()
    risk = hp.EmpiricalRisk(module, loss, batches)
    assert any(caveat in said for said in risk.caveats) if caveat else risk.caveats == ()
    exact = differences(*make())
    torch.testing.assert_close(hp.Hessian(risk).to_dense(), exact, rtol=1e-5, atol=1e-7)
    values = torch.linalg.eigvalsh(exact)
    truths = {"trace": values.sum(), "lambda-max": values[-1], "frob": values.norm()}
    slack = 1e-6 * float(values.norm())
    for measure, truth in truths.items():
        low, high = hp.measure(measure, risk, seed=0).interval(0.99)
        assert low - slack <= float(truth) <= high + slack, measure


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused_by_name(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises((UnsupportedError, NondeterministicLossError), match=words):
        hp.Hessian(hp.EmpiricalRisk(*make())).to_dense()


def test_the_parameters_of_a_loss_are_left_as_they_were() -> None:
    loss = Centres()
    hp.trace(hp.Hessian(hp.EmpiricalRisk(net(), loss, data(6))), n_probes=4)
    assert loss.c.requires_grad
    assert loss.c.grad is None


def absolute(z: Tensor, t: Tensor) -> Tensor:
    return F.l1_loss(z[:, 0], t)


def test_a_kink_at_the_parameters_themselves_is_said() -> None:
    module = net(1)
    fitted = [(x, module(x)[:, 0].detach()) for x, _ in data(6, 5)]
    assert any("has a kink at these parameters" in said for said in hp.EmpiricalRisk(module, absolute, fitted).caveats)
    aside = [(x, t + 0.1) for x, t in fitted]
    assert hp.EmpiricalRisk(module, absolute, aside).caveats == ()
    torch.manual_seed(0)
    rectified = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    assert hp.EmpiricalRisk(rectified, F.cross_entropy, data(200)).caveats == ()
    nn.init.zeros_(rectified[0].bias)
    dark = [(torch.cat([x, torch.zeros_like(x)]), torch.cat([t, t])) for x, t in data(6)]
    said = hp.EmpiricalRisk(rectified, F.cross_entropy, dark).caveats
    assert any("has a kink at these parameters" in sentence for sentence in said)


def test_a_model_that_returns_its_loss_has_no_gauss_newton_matrix_and_says_so() -> None:
    with pytest.raises(UnsupportedError, match="the model returns a scalar, its loss, of which it would be 0"):
        hp.GaussNewton(hp.EmpiricalRisk(*fused_head()))


def test_a_loss_that_wants_more_than_logits_is_told_what_it_gets() -> None:
    class Several(dict):
        logits = property(lambda self: self["logits"])

    module = Of(lambda m, x: Several(logits=m.n(x), aux=m.n(x).square().mean()), n=net())
    with pytest.raises(ValueError, match="gets the logits alone"):
        hp.EmpiricalRisk(module, lambda o, t: F.cross_entropy(o.logits, t) + o["aux"], data(6))


def test_a_likelihood_with_a_learned_variance_is_measured_and_named_where_it_is_not_convex() -> None:
    nll = nn.GaussianNLLLoss()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nll(outputs[:, 0], targets, F.softplus(outputs[:, 1]) + 0.1)

    def make() -> Made:
        return net(), loss, [(x, x[:, 0] * 2) for x, _ in data(6, 5)]

    risk = hp.EmpiricalRisk(*make())
    torch.testing.assert_close(hp.Hessian(risk).to_dense(), differences(*make()), rtol=1e-6, atol=1e-8)
    with pytest.raises(
        UnsupportedError, match=r"eigenvalue of -.* of one example by itself \(a likelihood with its var"
    ):
        hp.GaussNewton(risk)
    with pytest.raises(UnsupportedError, match=r"depends on the targets\. .*measure with operator='hessian', or"):
        hp.Fisher(risk)
    with pytest.raises(ValueError, match="GaussianNLLLoss takes more than outputs and targets: wrap it"):
        hp.EmpiricalRisk(net(), nll, make()[2])


def test_a_loss_that_bends_down_on_a_later_batch_alone_is_not_called_convex() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 - (-(outputs - targets).square().sum(1)).exp()).mean()  # Welsch: convex near its targets alone

    module = net()
    for where in (0, 3, 7):
        batches = [(x, module(x).detach() + (2.0 if i == where else 0.01)) for i, (x, _) in enumerate(data(*(3,) * 8))]
        with pytest.raises(UnsupportedError, match="of one example by itself"):
            hp.GaussNewton(hp.EmpiricalRisk(module, loss, batches))
    near = [(x, module(x).detach() + 0.01) for x, _ in data(*(3,) * 8)]
    assert hp.GaussNewton(hp.EmpiricalRisk(module, loss, near)).psd

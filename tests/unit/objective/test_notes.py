"""What a risk says of itself: losses that are no mean, modules that were in train mode."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hessprobe as hp

X = torch.linspace(-1, 1, 24, dtype=torch.float64).view(8, 3)
Y = torch.arange(8) % 2
PADDED = Y.clone().masked_fill_(torch.arange(8) < 3, -100)
ONE_HOT = F.one_hot(Y).double()


def net(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *layers, nn.Linear(4, 2)).double()


@pytest.mark.parametrize(
    ("loss", "targets", "note"),
    [
        (nn.CrossEntropyLoss(), Y, None),
        (
            nn.CrossEntropyLoss(reduction="sum"),
            Y,
            "CrossEntropyLoss(reduction='sum') is measured as the mean over examples: "
            "the loss and the Hessian of the sum are 8 times as large",
        ),
        (
            functools.partial(F.cross_entropy, reduction="sum"),
            PADDED,
            "cross_entropy(reduction='sum') is measured as the mean over counted targets: "
            "the loss and the Hessian of the sum are 5 times as large",
        ),
        (
            nn.CrossEntropyLoss(reduction="none"),
            Y,
            "CrossEntropyLoss(reduction='none') is measured as the mean over examples",
        ),
        (
            nn.MSELoss(reduction="sum"),
            ONE_HOT,
            "MSELoss(reduction='sum') is measured as the mean over examples: "
            "the loss and the Hessian of the sum are 8 times as large",
        ),
        (nn.MSELoss(reduction="none"), ONE_HOT, "MSELoss(reduction='none') is measured as the mean over all elements"),
    ],
)
def test_a_loss_that_is_no_mean_says_so_and_by_what_the_sum_is_larger(loss, targets, note) -> None:
    model = net().eval()
    risk = hp.EmpiricalRisk(model, loss, [(X[:5], targets[:5]), (X[5:], targets[5:])])
    assert risk.caveats == risk.notes == (() if note is None else (note,))
    assert risk.describe()["notes"] == list(risk.notes)
    value = hp.measure("lambda-max", risk, engine="double_backward")
    assert [said for said in value.details["notes"] if "reduction" in said] == list(risk.caveats)
    if note is not None and "sum" in note:
        factor = float(note.rpartition(" are ")[2].split()[0])
        torch.testing.assert_close(risk.loss() * factor, loss(model(X), targets).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("layers", "batchnorm", "note"),
    [
        ((nn.Dropout(0.1),), "eval", "1 Dropout module in train mode measured in evaluation mode (2)"),
        (
            (nn.Dropout(0.1), nn.BatchNorm1d(4), nn.AlphaDropout(0.2)),
            "eval",
            "2 Dropout and 1 BatchNorm modules in train mode measured in evaluation mode (2, 4, 3)",
        ),
        (
            [nn.Dropout(0.1) for _ in range(5)],
            "eval",
            "5 Dropout modules in train mode measured in evaluation mode (2, 3, 4 and 2 more)",
        ),
        (
            (nn.Dropout(0.1), nn.BatchNorm1d(4)),
            "batch",
            "1 Dropout module in train mode measured in evaluation mode (2)",
        ),
        ((nn.BatchNorm1d(4),), "batch", None),
        ((nn.Dropout(0.0), nn.Dropout(0.5).eval(), nn.ReLU()), "eval", None),
    ],
)
def test_modules_in_train_mode_are_named_with_every_number(layers, batchnorm, note) -> None:
    model = net(*layers)
    risk = hp.EmpiricalRisk(model, nn.CrossEntropyLoss(), [(X, Y)], batchnorm=batchnorm)
    assert list(risk.caveats) == ([] if note is None else [note])
    value = hp.measure("lambda-max", risk, engine="double_backward")
    assert [said for said in value.details["notes"] if "train mode" in said] == list(risk.caveats)
    model.eval()
    measured = hp.EmpiricalRisk(model, nn.CrossEntropyLoss(), [(X, Y)], batchnorm=batchnorm)
    assert not [said for said in measured.notes if "train mode" in said]


def test_modules_that_drop_by_themselves_are_counted() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x, need_weights=False)[0][:, 0, :2]

    torch.manual_seed(0)
    risk = hp.EmpiricalRisk(Attending(), nn.CrossEntropyLoss(), [(torch.randn(8, 3, 4), Y)])
    assert risk.caveats == ("1 Dropout module in train mode measured in evaluation mode (attention)",)


class Functional(nn.Module):
    """Drops by a function, as many models do, and holds a dropout module in a mode of its own."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.layer, self.fixed = rate, nn.Linear(3, 2).double(), nn.Dropout(0.5).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.fixed(self.layer(x)), self.rate, self.training)


@pytest.mark.parametrize(("rate", "training"), [(0.2, True), (0.2, False), (0.0, True)])
def test_dropout_called_in_forward_is_noticed(rate, training) -> None:
    model = Functional(rate)
    model.training = training
    risk = hp.EmpiricalRisk(model, nn.CrossEntropyLoss(), [(X, Y)])
    said = ("dropout called in forward of a model in train mode measured in evaluation mode",)
    assert risk.caveats == (said if rate and training else ())
    assert (model.training, model.fixed.training) == (training, False)


def test_stochastic_depth_of_other_libraries_is_noticed() -> None:
    class DropPath(nn.Module):
        def __init__(self, drop_prob: float) -> None:
            super().__init__()
            self.drop_prob = drop_prob

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.empty(len(x), 1).bernoulli_(1 - self.drop_prob) if self.training else x

    risk = hp.EmpiricalRisk(net(DropPath(0.1), DropPath(0.0)), nn.CrossEntropyLoss(), [(X, Y)])
    assert risk.caveats == ("1 Dropout module in train mode measured in evaluation mode (2)",)

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hessprobe.errors import DataError, NondeterministicLossError, NonFiniteError
from hessprobe.objective import EmpiricalRisk

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
DATA = [(X[:8], Y[:8]), (X[8:], Y[8:])]
CE = nn.CrossEntropyLoss()


class Wrap(nn.Module):
    """A linear layer, a culprit inside ``encoder``, and a head."""

    def __init__(self, culprit: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 5), culprit, nn.Tanh())
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


class AlwaysDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 0.1 * torch.randn_like(x)


class ForcedTrain(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        self.inner.train()
        return self.inner(x)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class RandomDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Tanh(), nn.ReLU()
        self.coins = itertools.cycle([0, 1])

    def forward(self, x: Tensor) -> Tensor:
        return self.two(x) if next(self.coins) % 2 else self.one(x)


def blamed(culprit: nn.Module) -> NondeterministicLossError:
    with pytest.raises(NondeterministicLossError) as caught:
        EmpiricalRisk(Wrap(culprit), CE, DATA)
    return caught.value


def test_dropout_that_obeys_its_mode_is_fine() -> None:
    model = Wrap(nn.Dropout(0.5)).train()
    risk = EmpiricalRisk(model, CE, DATA)
    assert torch.equal(risk.loss(), risk.loss())
    assert model.training
    assert model.encoder[1].training


def test_functional_dropout_is_named() -> None:
    error = blamed(AlwaysDropout())
    assert error.module == "encoder.1"
    assert "The first to differ is encoder.1 (AlwaysDropout, random in evaluation mode)" in str(error)
    assert "loss must be the same at every call; got " in str(error)


def test_custom_noise_is_named_not_its_child_or_parent() -> None:
    assert blamed(Noise()).module == "encoder.1"


def test_noise_before_a_child_is_blamed_on_the_parent() -> None:
    class NoiseBefore(Noise):
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x + 0.1 * torch.randn_like(x))

    assert blamed(NoiseBefore()).module == "encoder.1"


def test_forced_train_mode_is_named_with_its_settings() -> None:
    error = blamed(ForcedTrain(nn.Dropout(0.25)))
    assert error.module == "encoder.1.inner"
    assert "encoder.1.inner (Dropout, p=0.25, in train mode because of its own forward)" in str(error)


def test_state_that_grows_is_named_and_put_back() -> None:
    counter = Counter()
    assert blamed(counter).module == "encoder.1"
    assert counter.calls == 0


def test_random_path_is_blamed_on_the_module_that_chose() -> None:
    assert blamed(RandomDepth()).module == "encoder.1"


def test_random_loss_function_is_blamed_itself() -> None:
    def noisy(outputs: Tensor, targets: Tensor) -> Tensor:
        return CE(outputs + torch.randn_like(outputs), targets)

    with pytest.raises(NondeterministicLossError, match="The first to differ is the loss function itself"):
        EmpiricalRisk(Wrap(nn.Identity()), noisy, DATA)


def test_batchnorm_forced_to_train_mode_is_named() -> None:
    norm = nn.BatchNorm1d(5)
    error = blamed(ForcedTrain(norm))
    assert error.module == "encoder.1.inner"
    assert "forward must not write buffers in evaluation mode; got a new 'encoder.1.inner.running_mean'" in str(error)
    assert not norm.running_mean.any()


def test_counters_are_harmless() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x

    model = Wrap(Counting())
    risk = EmpiricalRisk(model, CE, DATA)
    torch.func.hessian(next(risk.terms()))(risk.theta)
    assert int(model.encoder[1].calls) == int(risk._buffers["encoder.1.calls"]) == 0


def test_check_can_be_left_out() -> None:
    EmpiricalRisk(Wrap(AlwaysDropout()), CE, DATA, check=False)


@pytest.mark.parametrize("own_generator", [False, True])
def test_shuffled_data_are_refused(own_generator: bool) -> None:
    generator = torch.Generator().manual_seed(0) if own_generator else None
    loader = DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True, generator=generator)
    with pytest.raises(DataError, match=r"data must be the same at every pass; .*DataLoader\(shuffle=True\)"):
        EmpiricalRisk(Wrap(nn.Identity()), CE, loader)


def test_augmented_data_are_refused() -> None:
    class Augmented:
        def __iter__(self):
            yield X + torch.randn(X.shape), Y

    with pytest.raises(DataError, match=r"got another first batch \(shuffling or augmentation\)"):
        EmpiricalRisk(Wrap(nn.Identity()), CE, Augmented())


def test_nonfinite_loss_names_batch_and_module() -> None:
    class Log(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(-x.abs())

    with pytest.raises(NonFiniteError, match=r"loss must be finite; got nan on batch 0, first in encoder.1 \(Log\)"):
        EmpiricalRisk(Wrap(Log()), CE, DATA)
    with pytest.raises(NonFiniteError, match="on batch 0, first in the loss function itself"):
        EmpiricalRisk(Wrap(nn.Identity()), lambda z, y: CE(z, y) / 0, DATA)


def test_nonfinite_loss_on_a_later_batch_is_found_when_evaluated() -> None:
    bad = X.clone()
    bad[9, 0] = float("nan")
    risk = EmpiricalRisk(Wrap(nn.Identity()), CE, [(bad[:8], Y[:8]), (bad[8:], Y[8:])])
    with pytest.raises(NonFiniteError, match=r"got nan on batch 1, first in encoder.0 \(Linear, in_features=4"):
        risk.loss()
    with pytest.raises(NonFiniteError, match="on batch 0"):
        risk.loss(torch.full_like(risk.theta, float("nan")))

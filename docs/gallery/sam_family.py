# %% [markdown]
# # Four optimizers, four minima
#
# The same network, the same data with wrong labels, four rules: SGD, SAM, ASAM and XSAM. Which ends where it is flat,
# and which is right on clean test data? One seed: a picture, no ranking.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import hessprobe as hp
from hessprobe.optim import ASAM, SAM, XSAM

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
y = torch.tensor(digits.target)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
x, y = x[order], y[order]
train, test = slice(0, 1200), slice(1200, None)
noisy = y[train].clone()
wrong = torch.rand(len(noisy), generator=torch.Generator().manual_seed(1)) < 0.2
noisy[wrong] = (noisy[wrong] + 1) % 10
batches = list(zip(x[train].split(50), noisy.split(50), strict=True))
loss_fn = torch.nn.CrossEntropyLoss()


# %% [markdown]
# Every rule wraps a constructed base optimizer, and steps with a closure.


# %%
def trained(make):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 10))
    optimizer = make(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    for _ in range(15):
        for inputs, targets in batches:

            def closure(inputs=inputs, targets=targets):
                optimizer.zero_grad()
                loss = loss_fn(model(inputs), targets)
                loss.backward()
                return loss

            optimizer.step(closure)
    return model


rules = {
    "SGD": lambda base: base,
    "SAM": lambda base: SAM(base, rho=0.1),
    "ASAM": lambda base: ASAM(base, rho=0.5),
    "XSAM": lambda base: XSAM(base, rho=0.1),
}
models = {name: trained(make) for name, make in rules.items()}
accuracy = {name: float((model(x[test]).argmax(1) == y[test]).float().mean()) for name, model in models.items()}

# %%
traces = {
    name: hp.measure("trace", hp.EmpiricalRisk(model, loss_fn, batches), n_probes=16, seed=0)
    for name, model in models.items()
}
for name, trace in traces.items():
    print(f"{name:5s} test accuracy {accuracy[name]:.3f}   trace {trace.value:7.2f} ± {trace.errors.data:.2g} (data)")

# %%
figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
for name, trace in traces.items():
    low, high = trace.interval(include_data=True)
    axis.errorbar(
        100 * accuracy[name], trace.value, [[trace.value - low], [high - trace.value]], fmt="o", capsize=3, label=name
    )
axis.set(xlabel="test accuracy, clean labels (%)", ylabel="trace of the Hessian, training loss")
axis.legend(frameon=False)
plt.close(figure)
figure

# %% [markdown]
# # Which of two networks is flatter?
#
# Measure both on the same data with the same probes. The probes' errors then mostly cancel in the difference, and the
# difference has its own, smaller error.

# %%
import copy

import torch
from sklearn.datasets import load_digits

import hessprobe as hp

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
y = torch.tensor(digits.target)
batches = list(zip(x.split(128), y.split(128), strict=True))
model = torch.nn.Sequential(torch.nn.Linear(64, 24), torch.nn.ReLU(), torch.nn.Linear(24, 10))
loss_fn = torch.nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
kept = {}
for epoch in range(1, 13):
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
    if epoch in (6, 9, 12):
        kept[f"epoch {epoch}"] = copy.deepcopy(model)

# %%
risks = {name: hp.EmpiricalRisk(each, loss_fn, batches) for name, each in kept.items()}
comparison = hp.compare(risks, measures=["lambda-max", "trace", "adaptive-trace"], n_probes=16, seed=0)
print(comparison)

# %%
comparison.plot()

# %% [markdown]
# Plain measures move when a network is rescaled without changing its function; `adaptive-trace`, of diag|w| H diag|w|,
# does not. Here the weights into the hidden units are doubled and those out of them halved:

# %%
scaled = copy.deepcopy(kept["epoch 12"])
with torch.no_grad():
    scaled[0].weight.mul_(2)
    scaled[0].bias.mul_(2)
    scaled[2].weight.div_(2)
pair = {"as trained": risks["epoch 12"], "rescaled": hp.EmpiricalRisk(scaled, loss_fn, batches)}
print(hp.compare(pair, measures=["trace", "adaptive-trace"], n_probes=16, seed=0))

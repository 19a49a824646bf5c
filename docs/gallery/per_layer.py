# %% [markdown]
# # Layer by layer
#
# Which layers are sharp? `per_layer=True` gives the part of every parameter tensor, with its error, from the same
# products.

# %%
import torch
from sklearn.datasets import load_digits

import hessprobe as hp
from hessprobe.optim import SAM

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.images[:1024, None], dtype=torch.float32) / 16
y = torch.tensor(digits.target[:1024])
batches = list(zip(x.split(128), y.split(128), strict=True))

model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 8, 3, padding=1),
    torch.nn.ReLU(),
    torch.nn.MaxPool2d(2),
    torch.nn.Conv2d(8, 8, 3, padding=1),
    torch.nn.ReLU(),
    torch.nn.Flatten(),
    torch.nn.Linear(128, 10),
)
loss_fn = torch.nn.CrossEntropyLoss()
optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.05, model=model)
for _ in range(4):
    for inputs, targets in batches:

        def closure(inputs=inputs, targets=targets):
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            return loss

        optimizer.step(closure)

# %%
risk = hp.EmpiricalRisk(model, loss_fn, batches)
trace = hp.measure("trace", risk, per_layer=True, n_probes=8, seed=0)
for name, layer in trace.layers.items():
    print(f"{name:10s} {layer.value:8.3f} ± {layer.std_error:.2g}")

# %%
trace.plot()

# %% [markdown]
# The trace is a sum over layers, so that the parts add up. Their largest eigenvalues do not: each is that of the block
# of one tensor, and at most that of the whole.

# %%
top = hp.measure("lambda-max", risk, per_layer=True, rtol=0.02, seed=0)
print("whole", f"{top:.3f}")
for name, layer in top.layers.items():
    print(f"{name:10s} {layer.value:.3f}")

# %% [markdown]
# A block is an operator of its own, by a pattern of names:

# %%
H = hp.Hessian(risk)
convolutions = H.block(["0.*", "3.*"])
print(convolutions.shape, hp.lambda_max(convolutions, seed=0))

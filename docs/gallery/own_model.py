# %% [markdown]
# # A model of your own
#
# Any `nn.Module`, any loss that is a mean over the batch, any list of batches. Here a small network on scikit-learn's
# digits, trained for a moment in a loop of its own.

# %%
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
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
for _ in range(5):
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()

# %% [markdown]
# The risk is the loss as a function of one flat vector of parameters. Measuring leaves the model exactly as it was.

# %%
risk = hp.EmpiricalRisk(model, loss_fn, batches)
found = hp.measure(["lambda-max", "trace", "frob"], risk, rtol=0.02, seed=0)
for name, estimate in found.items():
    print(f"{name:10s} {estimate}")

# %% [markdown]
# Each number carries three errors. The data are a sample, and often that is what is least certain:

# %%
trace = found["trace"]
print("of these 1,797 digits:", trace.interval())
print("of digits like these: ", trace.interval(include_data=True))

# %% [markdown]
# The whole spectrum, with its uncertainty. Most eigenvalues are nearly zero, a few stand out.

# %%
hp.spectral_density(hp.Hessian(risk), n_probes=4, steps=40, seed=0).plot()

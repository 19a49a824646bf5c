# %% [markdown]
# # Landscapes
#
# The loss on planes through a trained network. The network itself is on the grid, exactly, and is never changed.

# %%
import torch
from sklearn.datasets import load_digits

import hessprobe as hp

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data[:600], dtype=torch.float32) / 16
y = torch.tensor(digits.target[:600])
batches = [(x, y)]
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
loss_fn = torch.nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
for _ in range(80):
    optimizer.zero_grad()
    loss_fn(model(x), y).backward()
    optimizer.step()
risk = hp.EmpiricalRisk(model, loss_fn, batches)

# %% [markdown]
# Two random directions, filter-normalised. This shows typical curvature, not the largest.

# %%
hp.landscape(risk, size=31, seed=0).plot()

# %% [markdown]
# Along the two sharpest eigenvectors the loss rises much faster: one unit of these axes is a step of length 1 in
# parameter space, where one unit above is a step of length 16.

# %%
eigen = hp.landscape(risk, directions="eigen", size=31, seed=0)
eigen.plot()

# %% [markdown]
# As a surface:

# %%
eigen.plot(style="surface")

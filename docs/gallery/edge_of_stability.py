# %% [markdown]
# # The edge of stability
#
# Full-batch gradient descent sharpens the loss until its largest eigenvalue reaches 2/lr, where steps stop being
# stable, and hovers there (Cohen et al., 2021). A tracker measures while the network trains, and leaves the training
# bit-identical.

# %%
import torch
from sklearn.datasets import load_digits

import hessprobe as hp

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data[:400], dtype=torch.float32) / 16
y = torch.nn.functional.one_hot(torch.tensor(digits.target[:400]), 10).float()
data = [(x, y)]

model = torch.nn.Sequential(torch.nn.Linear(64, 24), torch.nn.Tanh(), torch.nn.Linear(24, 10))
loss_fn = torch.nn.MSELoss()
lr = 0.6
optimizer = torch.optim.SGD(model.parameters(), lr=lr)

# %%
tracker = hp.SharpnessTracker(model, loss_fn, data, every=20, measures=["lambda-max"], optimizer=optimizer)
for step in range(1, 1201):
    optimizer.zero_grad()
    loss_fn(model(x), y).backward()
    optimizer.step()
    tracker.step(step)

# %% [markdown]
# The dashed line is 2/lr. The curve rises to it (progressive sharpening), and stays there.

# %%
tracker.plot()

# %%
print("2/lr =", f"{2 / lr:.3f}")
for point in tracker.points[-3:]:
    print(f"step {point.step}: loss {point.loss:.4f}, lambda_max {point.values['lambda-max']:.3f}")

# %% [markdown]
# # A measure of your own
#
# The class of Tahmasebi et al. (2024): S = phi(E_mu psi(t)) with t = u' H u / 2. Choose phi, psi and the law mu of u,
# and get a measure with its error.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import hessprobe as hp
from hessprobe.universal import Measure, evaluate
from hessprobe.universal.samplers import sphere

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data[:512], dtype=torch.float64) / 16
y = torch.tensor(digits.target[:512])
model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Tanh(), torch.nn.Linear(8, 10)).double()
risk = hp.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), [(x, y)])
H = hp.Hessian(risk)

# %% [markdown]
# A soft maximum: (1/b) log E exp(b c), where c = 2 t is the curvature along a random unit direction. It goes from the
# mean curvature (b near 0) towards the largest (b large), as far as samples can see it.


# %%
def soft(b):
    return Measure(
        phi=lambda s: torch.log(s[0]) / b,
        psi=lambda t: torch.exp(b * 2 * t),
        mu=sphere(),
        name=f"soft maximum, b = {b:g}",
    )


strengths = [1.0, 3.0, 10.0, 30.0, 100.0]
found = [evaluate(soft(b), H, n_probes=1000, seed=0) for b in strengths]
for b, estimate in zip(strengths, found, strict=True):
    print(f"b = {b:5g}: {estimate.value:.5f} ± {estimate.std_error:.1g}  {' '.join(estimate.flags)}")

# %%
mean = hp.trace(H, seed=0).value / H.dim
figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
axis.errorbar(strengths, [e.value for e in found], [2 * e.std_error for e in found], fmt="o-", capsize=3)
axis.axhline(mean, color="gray", linestyle="--")
axis.annotate("mean curvature, trace / d", (100, mean), ha="right", va="bottom", color="gray")
axis.set(xscale="log", xlabel="b", ylabel="soft maximum ± 2 std. errors")
plt.close(figure)
figure

# %% [markdown]
# The largest eigenvalue itself is far above: along random directions of a space of many dimensions one does not meet
# it.

# %%
print(hp.lambda_max(H, seed=0))

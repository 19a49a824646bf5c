# %% [markdown]
# # SciPy, curvlinops, and back
#
# A Hessian is used as a matrix of NumPy or SciPy is, and goes into their solvers. The estimators here take anything
# with `shape` and `@`.

# %%
import importlib.util

import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch

import hessprobe as hp

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3)).double()
x = torch.randn(200, 6, dtype=torch.float64)
batches = [(x, x[:, :3].argmax(1))]
loss_fn = torch.nn.CrossEntropyLoss()
risk = hp.EmpiricalRisk(model, loss_fn, batches)
G = hp.GaussNewton(risk)

# %% [markdown]
# Out: a damped Newton step by SciPy's conjugate gradients, with products that never form the matrix.

# %%
gradient = torch.autograd.grad(loss_fn(model(x), batches[0][1]), list(model.parameters()))
g = risk.layout.join(gradient).numpy()
identity = hp.aslinearoperator(scipy.sparse.identity(G.dim, format="csr"))
step, failed = scipy.sparse.linalg.cg((G + 0.1 * identity).to_scipy(), g, rtol=1e-8)
print("converged:", not failed, " residual:", f"{np.linalg.norm(G.to_scipy() @ step + 0.1 * step - g):.1e}")

# %% [markdown]
# SciPy's eigenvalues beside ours, which come with bounds:

# %%
scipy_values = scipy.sparse.linalg.eigsh(hp.Hessian(risk).to_scipy(), k=3, return_eigenvectors=False)[::-1]
ours = hp.eigsh(hp.Hessian(risk), k=3, which="largest", seed=0)
print("SciPy", np.round(scipy_values, 6))
print("here ", ours)

# %% [markdown]
# In: the Laplacian of a grid, a sparse matrix of SciPy, measured by the estimators of Hessians.

# %%
path = scipy.sparse.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(40, 40))
laplacian = (scipy.sparse.kron(path, scipy.sparse.eye(40)) + scipy.sparse.kron(scipy.sparse.eye(40), path)).tocsr()
A = hp.aslinearoperator(laplacian)
print(hp.trace(A, n_probes=32, seed=0))
print(hp.logdet(A, shift=1.0, n_probes=8, seed=0))

# %%
density = hp.spectral_density(A, n_probes=8, steps=60, seed=0)
density.plot()

# %% [markdown]
# curvlinops, where it is installed: its operators go in the same way.

# %%
if importlib.util.find_spec("curvlinops"):
    from curvlinops import HessianLinearOperator

    theirs = HessianLinearOperator(model, loss_fn, dict(model.named_parameters()), batches)
    print(hp.trace(theirs, n_probes=32, seed=0))
else:
    print("curvlinops is not installed here")
plt.close("all")

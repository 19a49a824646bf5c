"""The first product of a Hessian pays for itself alone: no imports, no recordings, no races."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from hessprobe.hvp import Hessian
from hessprobe.hvp.engine import pulled_back
from hessprobe.hvp.engines import DoubleBackward
from hessprobe.objective import EmpiricalRisk

_FIRST = """
import sys, torch, hessprobe as hp
data = [(torch.randn(8, 3), torch.randn(8, 2))]
H = hp.Hessian(hp.EmpiricalRisk(torch.nn.Linear(3, 2), torch.nn.MSELoss(), data), engine="double_backward")
H @ torch.ones(8)
print([name for name in ("sympy", "torch._dynamo") if name in sys.modules])
"""


def _risk(batches: int = 4, examples: int = 64, seed: int = 0, dtype: torch.dtype = torch.float64) -> EmpiricalRisk:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    data = [(torch.randn(examples, 6, dtype=dtype), torch.randint(3, (examples,))) for _ in range(batches)]
    return EmpiricalRisk(model, nn.functional.cross_entropy, data)


def test_a_first_product_imports_no_compiler_and_no_algebra():
    done = subprocess.run([sys.executable, "-c", _FIRST], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_product_pulled_back_is_that_of_autograd_bit_for_bit():
    x = torch.randn(7, dtype=torch.float32, requires_grad=True)
    gradient = (x**3).cumsum(0)
    v = torch.randn(7)
    assert torch.equal(pulled_back(gradient, x, v), torch.autograd.grad(gradient, x, v, retain_graph=True)[0])


def test_an_ample_budget_measures_one_slice(monkeypatch):
    seen: list[int] = []
    known = DoubleBackward.__call__

    def watched(self, loss, theta):
        seen.append(loss.examples)
        return known(self, loss, theta)

    monkeypatch.setattr(DoubleBackward, "__call__", watched)
    risk = _risk(batches=1)
    Hessian(risk, engine="double_backward").matvecs(torch.ones(1, risk.dim, dtype=torch.float64))
    assert seen == [4, 64]

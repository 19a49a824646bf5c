"""Reference numbers for files of other libraries: the dense Hessian in double precision."""

from __future__ import annotations

import json

import torch
from torch.func import functional_call


def dense_hessian(model, loss, names=None):
    """The Hessian of ``loss(model)`` in float64 by the chosen parameters (all), flat in their order."""
    model = model.double().eval()
    if hasattr(model, "set_attn_implementation"):
        # The others have no second derivative outside hessprobe.
        model.set_attn_implementation("eager")
    chosen = {n: p.detach() for n, p in model.named_parameters() if names is None or n in names}
    rest = {n: p.detach() for n, p in model.named_parameters() if n not in chosen}
    flat = torch.cat([p.reshape(-1) for p in chosen.values()])

    def value(theta):
        parts, tensors = {}, theta
        for name, p in chosen.items():
            parts[name] = tensors[: p.numel()].view_as(p)
            tensors = tensors[p.numel() :]
        return functional_call(_Call(model, loss), {f"model.{n}": t for n, t in (rest | parts).items()}, ())

    return torch.autograd.functional.hessian(value, flat, vectorize=False)


class _Call(torch.nn.Module):
    def __init__(self, model, loss):
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self):
        return self._loss(self.model)


def numbers(done):
    """The values of a record on standard output, by measure."""
    assert done.code == 0, done.err
    # Trainers print on the standard output too.
    record = json.loads(done.out[done.out.index("{\n") :])
    return {row["measure"]: row["value"] for row in record["results"]} | {"record": record}


def require_equal(done, hessian, rtol=1e-6):
    """The trace and Frobenius norm that a record holds are those of a dense matrix."""
    found = numbers(done)
    for name, value in (("trace", hessian.trace()), ("frob", hessian.norm())):
        assert abs(found[name] / float(value) - 1) < rtol, (name, found[name], float(value))
    return found["record"]


EXACT = ("-m", "trace", "-m", "frob", "--dtype", "float64", "--rtol", "1e-6", "--json", "-")

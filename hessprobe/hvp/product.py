"""One product with the Hessian, for vectors in any form."""

from __future__ import annotations

from typing import TypeVar

from hessprobe.hvp.hessian import Hessian
from hessprobe.hvp.memory import MemoryBudget
from hessprobe.objective.base import Objective

V = TypeVar("V")


def hvp(risk: Objective, v: V, *, engine: str = "auto", memory: int | MemoryBudget | None = None) -> V:
    """Return H v for the Hessian H of ``risk`` at its present parameters, in the form of ``v``.

    For more than a few products make ``H = Hessian(risk)`` once and use ``H @ v``: what a product can reuse is kept.

    Args:
        risk: the objective.
        v: a flat tensor or NumPy array (d,), or vectors as columns (d, k); or tensors shaped like the parameters: a
            dict by name, or a list or tuple in the order of ``risk.layout.names``. ``risk.layout.flatten`` and
            ``unflatten`` turn one form into the other.
        engine: as in ``Hessian``.
        memory: likewise.

    Raises:
        TypeError: ``risk`` is no objective, or ``v`` none of these or of another dtype.
        ValueError: a wrong shape, or a name too many or too few.
        UnsupportedError: no engine can differentiate this model twice.

    Examples:
        >>> import torch, hessprobe as hp
        >>> model = torch.nn.Linear(2, 1).double()
        >>> data = [(torch.tensor([[1.0, 2.0], [3.0, 0.0]]).double(), torch.zeros(2, 1).double())]
        >>> risk = hp.EmpiricalRisk(model, torch.nn.MSELoss(), data)
        >>> hp.hvp(risk, torch.tensor([1.0, 0.0, 0.0]).double())
        tensor([10.,  2.,  4.], dtype=torch.float64)
        >>> e = {"weight": torch.tensor([[1.0, 0.0]]).double(), "bias": torch.tensor([0.0]).double()}
        >>> hp.hvp(risk, e)
        {'weight': tensor([[10.,  2.]], dtype=torch.float64), 'bias': tensor([4.], dtype=torch.float64)}
    """
    return Hessian(risk, engine=engine, memory=memory, expected_matvecs=1) @ v

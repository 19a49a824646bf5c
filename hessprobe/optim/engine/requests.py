"""What a rule may ask of the engine, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from hessprobe.operators import LinearOperator
from hessprobe.optim.engine.tensors import Scalar, TensorList


@dataclass(frozen=True)
class Displacement:
    """A displacement of the parameters, e = c_i v_i for tensor i: a direction and a factor for each of its tensors.

    Kept apart so that the engine adds them to the weights without forming e.

    Attributes:
        direction: v.
        factors: c, one for each tensor (they differ where parameter groups have radii of their own).
        is_uniform: True where all factors are known to be the same.
    """

    direction: TensorList
    factors: Sequence[Scalar]
    is_uniform: bool = False

    def dense(self) -> TensorList:
        """Return e."""
        factors = self.factors
        pairs = zip(self.direction.tensors, factors, strict=True)
        return TensorList([v * c for v, c in pairs], self.direction.foreach)

    def mapped(self, function: Callable[[Scalar], Scalar]) -> Displacement:
        """Return the displacement along the same direction with ``function`` of each factor."""
        # Factors of one group are one object: a function of it is computed once.
        by_object = {id(factor): function(factor) for factor in self.factors}
        return Displacement(self.direction, [by_object[id(factor)] for factor in self.factors], self.is_uniform)


@dataclass(frozen=True)
class At:
    """Evaluate loss and gradient at w + displacement; yields an ``Evaluation``.

    Attributes:
        displacement: None for w itself.
        loss_only: forward only, no gradient.
        subset: indices of the examples to evaluate (closures that give losses by example), None for all.
        cotangent: the gradient with respect to the outputs to pull back instead of the loss's own (closures that give
            outputs).
        frozen: for each tensor, whether its gradient may be left out (zeros are returned).
        shard: number of the one closure to evaluate, where ``step`` was given a list; None for the mean over all.
    """

    displacement: Displacement | TensorList | None = None
    loss_only: bool = False
    subset: Tensor | None = None
    cotangent: Tensor | None = None
    frozen: Sequence[bool] | None = None
    shard: int | None = None


@dataclass(frozen=True)
class Curvature:
    """Use the Hessian of the loss at w + displacement; yields an ``Evaluation``, ``result`` being what it gave.

    Attributes:
        use: called with the operator while the weights are displaced.
        displacement: None for w itself.
    """

    use: Callable[[LinearOperator], Any]
    displacement: Displacement | TensorList | None = None


@dataclass(frozen=True)
class Evaluation:
    """Loss and gradient at one point.

    Attributes:
        loss: 0-dimensional, detached.
        gradient: zeros where a parameter got none.
        losses: (n,) by example, where the closure gives them, else None.
        cotangent: gradient of the loss with respect to the outputs, where the closure gives outputs, else None.
        result: what the function of a ``Curvature`` request returned.
    """

    loss: Tensor
    gradient: TensorList
    losses: Tensor | None = None
    cotangent: Tensor | None = None
    result: Any = None


@dataclass(frozen=True)
class Update:
    """What a step does in the end.

    Attributes:
        gradient: d, handed to the base optimizer at w.
        decoupled: c, or None: a part of the update that must not pass through the base. After the base step
            w <- w - lr c, with each group's ``lr``; where ranks displace locally it is averaged as ``gradient`` is.
        then: called after the base step, for what has no such form. It must do the same on every rank.
        is_clipped: True where the rule has clipped what ``gradient`` is made of, which is then left as it is.
        lr: learning rate of this base step in place of the groups' own, or a function of the gradient that the base is
            given, averaged over the ranks and not yet clipped; None leaves theirs.
    """

    gradient: TensorList
    decoupled: TensorList | None = None
    then: Callable[[], None] | None = None
    is_clipped: bool = False
    lr: Scalar | Callable[[TensorList], Scalar] | None = None


@dataclass(frozen=True)
class Apply:
    """Take the base step now; yields None, and what the rule asks for after it is evaluated from the new weights.

    For rules whose last evaluation is at the weights that the step leads to. Such a rule returns None. Where one of
    these evaluations fails, the step itself has gone through, and what was remembered before it is kept.

    Attributes:
        update: of the base step.
    """

    update: Update


# A function is called when the step is taken, where the bound of ``clip_grad_norm`` is known in loops by hand as well.
Outcome: TypeAlias = TensorList | Update | Callable[[], Update]
Rule: TypeAlias = Generator[At | Curvature | Apply, Evaluation, Outcome | None]


@dataclass
class StepReport:
    """What happened in the last step (``opt.last``).

    Attributes:
        loss: at the first point evaluated: w for every rule that evaluates there. 0-dimensional tensor.
        perturbed_loss: at the last point evaluated away from w, or None.
        gradient_norm: of the first gradient, where the rule computed it, else None.
        evaluations: gradients computed (forward and backward).
        forwards: losses computed without a gradient.
        products: Hessian-vector products.
        skipped: True where a loss or gradient was not finite under a scaler and nothing was changed.
        cosine: between the first and the last gradient; only with ``diagnostics=True``.
        perturbed_gradient_norm: of the last gradient; only with ``diagnostics=True``.
        displacement_norm: distance of the last point evaluated from w; only with ``diagnostics=True``.
        extra: what a rule adds, by name (XSAM's alpha, Polyak's step size, ...).
    """

    loss: Tensor | None = None
    perturbed_loss: Tensor | None = None
    evaluations: int = 0
    forwards: int = 0
    products: int = 0
    skipped: bool = False
    gradient_norm: Tensor | None = None
    perturbed_gradient_norm: Tensor | None = None
    displacement_norm: Tensor | None = None
    cosine: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> Tensor | None:
        """Perturbed minus clean loss: the sharpness along the ascent direction, or None where only one is known."""
        if self.loss is None or self.perturbed_loss is None:
            return None
        return self.perturbed_loss - self.loss

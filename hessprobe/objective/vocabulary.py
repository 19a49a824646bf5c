"""Cross-entropy over a large vocabulary, a few tokens at a time: its gradient and second derivative as well.

Of T tokens with hidden states h_t (D,), a head W (V, D) and targets y_t, with z_t = W h_t and p_t = softmax(z_t),

    l = sum_t logsumexp(z_t) - z_t[y_t],        r_t = p_t - e_(y_t),     dl/dh_t = W^T r_t,  dl/dW = sum_t r_t h_t^T.

For a direction (a_t, B) of (h_t, W), u_t = W a_t + B h_t is that of z_t, and with s_t = p_t (u_t - <p_t, u_t>)

    d/dh_t = W^T s_t + B^T r_t,        d/dW = sum_t s_t h_t^T + r_t a_t^T.

The part B^T r_t, r_t a_t^T belongs to the curvature of z in (h_t, W); without it they are products of the Gauss-Newton
matrix of l in the logits. Everything is a sum over tokens. Written out, double backward holds eight and more buffers of
T x V numbers; here those of one chunk of tokens are alive. The gradient is made together with the loss, in as many
products with W as written out; in a second derivative z is computed anew: 7 products with W in place of 6. With
q_t = p_t u_t and m_t = sum q_t,

    W^T s_t = W^T q_t - m_t W^T p_t,        s_t h_t^T = q_t h_t^T - p_t (m_t h_t)^T,

and e_y a row of W, little else of the length of the vocabulary is read or written.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprobe import checks
from hessprobe.errors import UnsupportedError

# Numbers in a buffer of one chunk: 16 MB in float32, or half as many as the head has where that is more.
_NUMBERS = 1 << 22
_IGNORED = -100
_TOKENS_COMPARED = 8


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = _IGNORED,
    chunk: int | None = None,
    gauss_newton: bool = False,
) -> Tensor:
    """Return the *sum* of cross_entropy(hidden W^T + bias, targets) over the tokens that count.

    It can be differentiated twice without a buffer of tokens x vocabulary; a third time too, but with such buffers.

    Args:
        hidden: (..., D) hidden states.
        weight: (V, D) of the head.
        targets: (...) labels in [0, V), or ``ignore_index``.
        bias: (V,) of the head.
        ignore_index: label of tokens that do not count.
        chunk: tokens at a time, >= 1; None: as many as 4 million logits hold, or D / 2 where that is more.
        gauss_newton: whether the second derivative is to be M^T (d^2 l / dz^2) M, M the Jacobian of the logits z in
            (hidden, weight, bias), which is positive semidefinite; value and gradient are the same.

    Returns:
        () in the dtype of ``hidden``, at least float32.

    Raises:
        ValueError: shapes that do not go together, or chunk < 1.

    Examples:
        >>> import torch
        >>> from hessprobe.objective import linear_cross_entropy
        >>> h, W, y = torch.eye(3, 2), torch.ones(5, 2), torch.tensor([0, 4, -100])
        >>> loss = torch.nn.functional.cross_entropy(h @ W.T, y, reduction="sum")
        >>> torch.allclose(linear_cross_entropy(h, W, y, chunk=1), loss)
        True
    """
    if weight.ndim != 2 or hidden.shape[-1:] != weight.shape[1:] or hidden.shape[:-1] != targets.shape:
        shapes = f"{tuple(hidden.shape)}, {tuple(weight.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"hidden, weight and targets must have shapes (..., D), (V, D) and (...); got {shapes}.")
    if bias is not None:
        hidden = torch.cat([hidden, torch.ones_like(hidden[..., :1])], dim=-1)
        weight = torch.cat([weight, bias[:, None]], dim=1)
    width = hidden.shape[-1]
    size = max(1, _NUMBERS // len(weight), width // 2) if chunk is None else checks.positive_int("chunk", chunk)
    flat, labels = hidden.reshape(-1, width), targets.reshape(-1)
    if flat.dtype in (torch.float16, torch.bfloat16):
        flat, weight = flat.float(), weight.float()
    counted = labels != ignore_index
    how = _How(size, torch.is_grad_enabled(), not gauss_newton)
    with _in_own_precision(flat):
        loss: Tensor = _Loss.apply(flat, weight, labels.where(counted, 0), counted.to(flat.dtype), how)  # type: ignore[no-untyped-call]  # untyped
    return loss


def _in_own_precision(h: Tensor) -> torch.autocast:
    return torch.autocast(h.device.type, enabled=False)


@dataclass(frozen=True)
class _How:
    """Tokens at a time, whether a gradient may be asked for, and whether residuals bend the loss."""

    size: int
    slopes: bool
    residuals: bool

    def chunks(self, h: Tensor) -> Iterator[slice]:
        for start in range(0, len(h), self.size):
            yield slice(start, min(start + self.size, len(h)))

    def buffer(self, h: Tensor, weight: Tensor) -> Tensor:
        return h.new_empty(min(self.size, len(h)), len(weight))


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, labels: Tensor, counted: Tensor, how: _How) -> Tensor:
        moving = how.slopes and ctx.needs_input_grad[1]
        low, picked = h.new_empty(len(h)), h.new_empty(len(h))
        dh = torch.empty_like(h) if how.slopes else h.new_empty(0)
        dw = torch.zeros_like(weight) if moving else h.new_empty(0)
        buffer = how.buffer(h, weight)
        for part in how.chunks(h):
            z = torch.mm(h[part], weight.T, out=buffer[: part.stop - part.start])
            high = z.amax(1, keepdim=True)
            picked[part] = z.sub_(high).gather(1, labels[part, None])[:, 0]
            total = z.exp_().sum(1, keepdim=True)
            # What torch computes too: the logarithm is small where the label has nearly all probability.
            picked[part] -= total.log()[:, 0]
            low[part] = (total.log() + high)[:, 0]
            if how.slopes:
                dh[part] = (z @ weight).div_(total)
            if moving:
                dw.addmm_(z.T, h[part] * (counted[part, None] / total))
        if how.slopes:
            dh.sub_(weight[labels]).mul_(counted[:, None])
        if moving:
            dw.index_add_(0, labels, h * -counted[:, None])
        ctx.save_for_backward(h, weight, labels, counted, low, dh, dw)
        ctx.how = how
        return -(picked * counted).sum()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        h, weight, labels, counted, low, dh, dw = ctx.saved_tensors
        found = _Slope.apply(slope, h, weight, labels, counted, low, dh, dw, ctx.how)  # type: ignore[no-untyped-call]
        return found[0], found[1] if ctx.needs_input_grad[1] else None, None, None, None


class _Slope(torch.autograd.Function):
    """Gradient of ``_Loss`` times a number, and its own derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        slope: Tensor,
        h: Tensor,
        weight: Tensor,
        labels: Tensor,
        counted: Tensor,
        low: Tensor,
        dh: Tensor,
        dw: Tensor,
        how: _How,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(slope, h, weight, labels, counted, low, dh)
        ctx.how = how
        return dh * slope, dw * slope

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
        slope, h, weight, labels, counted, low, dh = ctx.saved_tensors
        how, moving = ctx.how, ctx.needs_input_grad[2]
        if torch.is_grad_enabled():
            found = _written_out(slope, h, weight, labels, counted, a, b if moving else None, how)
            return (*found, None, None, None, None, None, None)
        factors = (slope * counted)[:, None]
        ah, aw = torch.empty_like(h), torch.zeros_like(weight) if moving else None
        middle = h.new_empty(len(h), 1)
        one, two = how.buffer(h, weight), how.buffer(h, weight)
        for part in how.chunks(h):
            count, scale, here, ahead = part.stop - part.start, factors[part], h[part], a[part]
            with _in_own_precision(h):
                p = torch.mm(here, weight.T, out=one[:count]).sub_(low[part, None]).exp_()
                q = torch.mm(ahead, weight.T, out=two[:count])
                if moving:
                    q.addmm_(here, b.T)
                m = middle[part] = q.mul_(p).sum(1, keepdim=True)
                ah[part] = q @ weight
                if aw is not None:
                    aw.addmm_(q.T, here * scale)
                    aw.addmm_(p.T, (ahead * how.residuals - m * here) * scale)
                    if how.residuals:
                        ah[part] += p @ b
        rows = weight[labels]
        ah.sub_(middle * (dh + rows))
        along = (a * rows).sum(1)
        if aw is not None:
            along = along + (h * b[labels]).sum(1)
            if how.residuals:
                ah.sub_(b[labels])
                aw.index_add_(0, labels, a * -factors)
        return ((middle[:, 0] - along) * counted).sum(), ah.mul_(factors), aw, None, None, None, None, None, None


def _written_out(
    slope: Tensor, h: Tensor, weight: Tensor, labels: Tensor, counted: Tensor, a: Tensor, b: Tensor | None, how: _How
) -> tuple[Tensor | None, ...]:
    """Return the same by plain torch, for those who differentiate once more.

    Raises:
        UnsupportedError: of the Gauss-Newton matrix, which is no derivative of anything.
    """
    if not how.residuals:
        raise UnsupportedError("The Gauss-Newton matrix has no derivative. Leave gauss_newton out.")
    slope, h = (t if t.requires_grad else t.detach().requires_grad_() for t in (slope, h))
    weight = weight if weight.requires_grad else weight.detach().requires_grad_()
    loss = slope * (F.cross_entropy(h @ weight.T, labels, reduction="none") * counted).sum()
    dh, dw = torch.autograd.grad(loss, (h, weight), create_graph=True)
    along = (dh * a).sum() if b is None else (dh * a).sum() + (dw * b).sum()
    wanted = (slope, h, weight)
    found: tuple[Tensor, ...] = torch.autograd.grad(along, wanted, create_graph=True, materialize_grads=True)
    return found


def causal_lm_forward(
    *, chunk: int | None = None, labels: str = "labels"
) -> Callable[[nn.Module, dict[str, Any]], tuple[Tensor, int]]:
    """Return ``forward=`` for a causal language model of transformers whose logits are never all alive.

    The loss is that of the model itself, the cross-entropy of every next token, from the hidden states under the head.
    At the first batch the logits of a few tokens are compared with those that the model makes.

    Args:
        chunk: tokens at a time, see ``linear_cross_entropy``.
        labels: key of the labels in a batch.

    Raises:
        UnsupportedError: (the function) a model without a linear head over ``base_model``, or one whose logits are
            something else than that head's outputs, such as scaled or capped.

    Examples:
        >>> import hessprobe as hp
        >>> from hessprobe.objective import causal_lm_forward
        >>> forward = causal_lm_forward()  # hp.EmpiricalRisk(model, None, batches, forward=forward)
    """
    return _InChunks(chunk, labels)


class _InChunks:
    """The loss of a causal language model, and the hidden states and the head that it is a function of.

    The Gauss-Newton matrix of the logits z is J^T K J, with J the Jacobian of states and head in the parameters, and
    K = M^T (d^2 l / dz^2) M, M that of the logits in states and head.
    """

    def __init__(self, chunk: int | None, labels: str) -> None:
        self._chunk, self._labels = chunk, labels
        self._compared: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def __call__(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, int]:
        """Return the sum of the losses of all tokens that count, and their number."""
        hidden, head = self._states(module, batch)
        targets = batch[self._labels][..., 1:]
        loss = linear_cross_entropy(hidden[..., :-1, :], head.weight, targets, head.bias, chunk=self._chunk)
        return loss, int((targets != _IGNORED).sum())

    def outputs(self, module: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Return the states (tokens D), the weight of the head (V D) and its bias (V), one after the other."""
        hidden, head = self._states(module, batch)
        parts = [hidden[..., :-1, :], head.weight, *([] if head.bias is None else [head.bias])]
        return torch.cat([part.reshape(-1) for part in parts])

    def loss_of_outputs(self, module: nn.Module, batch: dict[str, Any], outputs: Tensor) -> Tensor:
        """Return the loss, whose second derivative in ``outputs`` is K."""
        head, targets = _head(module), batch[self._labels][..., 1:]
        size, width = head.weight.shape
        hidden, weight, *bias = outputs.split(
            [targets.numel() * width, size * width, *([] if head.bias is None else [size])]
        )  # type: ignore[no-untyped-call]  # untyped in torch
        return linear_cross_entropy(
            hidden.view(*targets.shape, width),
            weight.view(size, width),
            targets,
            bias[0] if bias else None,
            chunk=self._chunk,
            gauss_newton=True,
        )

    def _states(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, nn.Linear]:
        model: Any = module
        head = _head(module)
        inputs = {name: value for name, value in batch.items() if name != self._labels}
        hidden: Tensor = model.base_model(**inputs)[0]
        if module not in self._compared:
            _compare(model, inputs, hidden, head)
            self._compared.add(module)
        return hidden, head


class _AtHead(Exception):
    """Ends a forward pass before the logits are made."""


@dataclass(frozen=True)
class ChunkedLogits:
    """The shifted cross-entropy of a causal language model whose logits are ``scale`` times the outputs of its head.

    The model runs up to its head, whatever it does before; only head and loss are computed in another way.

    Attributes:
        scale: the factor of the logits, 1 but for models that scale them.
    """

    scale: float

    def pays(self, module: nn.Module, targets: Tensor) -> bool:
        """Return whether the logits fill more than one chunk, outside transforms, which need every rule of torch."""
        words = module.get_output_embeddings().weight.shape[0]  # type: ignore[operator]  # see ``chunked_logits``
        transformed = torch._C._functorch.peek_interpreter_stack() is not None
        dual = torch.autograd.forward_ad._current_level >= 0
        return targets.numel() * words > _NUMBERS and not transformed and not dual

    def mean(self, module: nn.Module, inputs: dict[str, Any], targets: Tensor) -> Tensor:
        """Return the mean over the tokens that count.

        Args:
            module: the model, which holds the parameters that the loss is wanted at.
            inputs: what it takes.
            targets: (B, T) labels.
        """
        hidden = _before_head(module, inputs)
        head = module.get_output_embeddings()  # type: ignore[operator]  # see ``chunked_logits``
        bias = head.bias
        if self.scale != 1:
            hidden = hidden * self.scale
            bias = None if bias is None else bias * self.scale
        labels = targets[..., 1:]
        total = linear_cross_entropy(hidden[..., :-1, :], head.weight, labels, bias)
        return total / (labels != _IGNORED).sum()


def _before_head(module: Any, inputs: dict[str, Any]) -> Tensor:
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise _AtHead

    handle = module.get_output_embeddings().register_forward_pre_hook(stop)
    try:
        module(**inputs)
    except _AtHead:
        pass
    finally:
        handle.remove()
    return seen[0]


def chunked_logits(
    module: nn.Module, logits: Callable[[dict[str, Any]], Tensor], inputs: dict[str, Any], targets: Tensor
) -> ChunkedLogits | None:
    """Return how the shifted cross-entropy of a model is computed without all logits; None where it is not.

    What stands between the head and the logits is tried: in place of the head's outputs the model is given numbers of
    1e-3 to 1e3, which must come out times one number. A cap on the logits, an addition, or a second head does not pass.

    Args:
        module: any model.
        logits: of it, as a function of its keyword arguments.
        inputs: one example or a few.
        targets: (B, T) labels of these.
    """
    find: Any = getattr(module, "get_output_embeddings", None)
    head: Any = find() if callable(find) else None
    if type(getattr(head, "forward", None)) is not MethodType or head.forward.__func__ is not nn.Linear.forward:
        return None
    if head._forward_hooks or head._forward_pre_hooks or head.weight.dtype not in (torch.float32, torch.float64):
        return None
    source, given = torch.Generator().manual_seed(0), []

    def replaced(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        sizes = 10 ** (6 * torch.rand(out.shape, generator=source) - 3)
        numbers = (sizes * torch.randn(out.shape, generator=source).sign()).to(out)
        numbers[..., 0] = 1
        given.append((args[0].shape, numbers))
        return numbers

    handle = head.register_forward_hook(replaced)
    try:
        found = logits(inputs)
    finally:
        handle.remove()
    if len(given) != 1 or given[0][0][:-1] != targets.shape or not isinstance(found, Tensor):
        return None
    numbers = given[0][1]
    if found.shape != numbers.shape or found.dtype != numbers.dtype:
        return None
    scale = float(found.flatten()[0])
    off = (found - scale * numbers).abs() > 4 * torch.finfo(found.dtype).eps * found.abs()
    return ChunkedLogits(scale) if math.isfinite(scale) and scale != 0 and not bool(off.any()) else None


def _head(model: Any) -> nn.Linear:
    """Return the head of a language model.

    Raises:
        UnsupportedError: it has none, or none that is linear.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(head, nn.Linear) or getattr(model, "base_model", model) is model:
        raise UnsupportedError(
            f"chunked logits need a model of transformers with a linear head; got {type(model).__name__}. "
            "Leave forward= out."
        )
    return head


def _compare(model: Any, inputs: dict[str, Any], hidden: Tensor, head: nn.Linear) -> None:
    with torch.no_grad():
        short = {name: value[:1] if isinstance(value, Tensor) else value for name, value in inputs.items()}
        ours = head(hidden[0, :_TOKENS_COMPARED])
        theirs = model(**short).logits[0, :_TOKENS_COMPARED]
        off = float((ours - theirs).norm() / theirs.norm())
    if not off <= 1e-3:
        raise UnsupportedError(
            f"the logits of {type(model).__name__} are not the outputs of its head (off by {off:.1g}). "
            "Leave forward= out."
        )

"""Cross-entropy over a large vocabulary, a few tokens at a time: its gradient and second derivative as well.

Of T tokens with hidden states h_t (D,), a head W (V, D) and targets y_t, with z_t = W h_t and p_t = softmax(z_t),

    l = sum_t logsumexp(z_t) - z_t[y_t],        r_t = p_t - e_(y_t),     dl/dh_t = W^T r_t,  dl/dW = sum_t r_t h_t^T.

For a direction (a_t, B) of (h_t, W), u_t = W a_t + B h_t is that of z_t, and with s_t = p_t (u_t - <p_t, u_t>)

    d/dh_t = W^T s_t + B^T r_t,        d/dW = sum_t s_t h_t^T + r_t a_t^T.

Everything is a sum over tokens. Written out, double backward holds eight and more buffers of T x V numbers; here those
of one chunk of tokens are alive, and z is computed anew in each pass: 4 products with W in a gradient where 3 would do,
7 in a second one where 6 would.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprobe import checks
from hessprobe.errors import UnsupportedError

# Numbers in a buffer of one chunk: 16 MB in float32.
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
) -> Tensor:
    """Return the *sum* of cross_entropy(hidden W^T + bias, targets) over the tokens that count.

    It can be differentiated twice without a buffer of tokens x vocabulary; a third time too, but with such buffers.

    Args:
        hidden: (..., D) hidden states.
        weight: (V, D) of the head.
        targets: (...) labels in [0, V), or ``ignore_index``.
        bias: (V,) of the head.
        ignore_index: label of tokens that do not count.
        chunk: tokens at a time, >= 1; None: as many as 4 million logits hold.

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
    size = max(1, _NUMBERS // len(weight)) if chunk is None else checks.positive_int("chunk", chunk)
    flat, labels = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if flat.dtype in (torch.float16, torch.bfloat16):
        flat, weight = flat.float(), weight.float()
    loss: Tensor = _Loss.apply(flat, weight, labels, ignore_index, size)  # type: ignore[no-untyped-call]  # untyped
    return loss


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, labels: Tensor, ignored: int, size: int) -> Tensor:
        total, lows = h.new_zeros(()), []
        for part, kept in _chunks(labels, ignored, size):
            z = h[part] @ weight.T
            low = torch.logsumexp(z, dim=1)
            picked = z.gather(1, labels[part].where(kept, 0)[:, None])[:, 0]
            total = total + (low - picked).where(kept, 0).sum()
            lows.append(low)
        ctx.save_for_backward(h, weight, labels, torch.cat(lows) if lows else h.new_zeros(0))
        ctx.ignored, ctx.size = ignored, size
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        h, weight, labels, low = ctx.saved_tensors
        dh, dw = _Slope.apply(slope, h, weight, labels, low, ctx.ignored, ctx.size)  # type: ignore[no-untyped-call]
        return dh, dw, None, None, None


class _Slope(torch.autograd.Function):
    """Gradient of ``_Loss`` times a number, and its own derivative."""

    @staticmethod
    def forward(
        ctx: Any, slope: Tensor, h: Tensor, weight: Tensor, labels: Tensor, low: Tensor, ignored: int, size: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(slope, h, weight, labels, low)
        ctx.ignored, ctx.size = ignored, size
        dh, dw = torch.empty_like(h), torch.zeros_like(weight)
        for part, kept in _chunks(labels, ignored, size):
            r = _residual(_probabilities(h[part], weight, low[part]), labels[part], kept).mul_(slope)
            dh[part] = r @ weight
            dw.addmm_(r.T, h[part])
        return dh, dw

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
        slope, h, weight, labels, low = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*_written_out(slope, h, weight, labels, ctx.ignored, a, b), None, None, None, None)
        dslope, dh, dw = slope.new_zeros(()), torch.empty_like(h), torch.zeros_like(weight)
        for part, kept in _chunks(labels, ctx.ignored, ctx.size):
            p = _probabilities(h[part], weight, low[part])
            u = (a[part] @ weight.T).addmm_(h[part], b.T)
            middle = (p * u).sum(1, keepdim=True)
            picked = u.gather(1, labels[part].where(kept, 0)[:, None])
            dslope = dslope + (middle - picked)[kept].sum()
            s = u.sub_(middle).mul_(p).mul_(slope * kept[:, None])
            r = _residual(p, labels[part], kept).mul_(slope)
            dh[part] = (s @ weight).addmm_(r, b)
            dw.addmm_(s.T, h[part]).addmm_(r.T, a[part])
        return dslope, dh, dw, None, None, None, None


def _chunks(labels: Tensor, ignored: int, size: int) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        yield part, labels[part] != ignored


def _probabilities(h: Tensor, weight: Tensor, low: Tensor) -> Tensor:
    return (h @ weight.T).sub_(low[:, None]).exp_()


def _residual(p: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """Make p - e_y of p in place, 0 where a token does not count."""
    p.scatter_add_(1, labels.where(kept, 0)[:, None], -torch.ones_like(p[:, :1]))
    return p.mul_(kept[:, None])


def _written_out(
    slope: Tensor, h: Tensor, weight: Tensor, labels: Tensor, ignored: int, a: Tensor, b: Tensor
) -> tuple[Tensor, ...]:
    """Return the same by plain torch, for those who differentiate once more."""
    slope, h, weight = (t if t.requires_grad else t.detach().requires_grad_() for t in (slope, h, weight))
    loss = slope * F.cross_entropy(h @ weight.T, labels, ignore_index=ignored, reduction="sum")
    dh, dw = torch.autograd.grad(loss, (h, weight), create_graph=True)
    return torch.autograd.grad((dh * a).sum() + (dw * b).sum(), (slope, h, weight), create_graph=True)


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
    compared: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def forward(module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, int]:
        model: Any = module
        inputs = {name: value for name, value in batch.items() if name != labels}
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if not isinstance(head, nn.Linear) or getattr(model, "base_model", model) is model:
            raise UnsupportedError(
                f"chunked logits need a model of transformers with a linear head; got {type(model).__name__}. "
                "Leave forward= out."
            )
        hidden = model.base_model(**inputs)[0]
        if model not in compared:
            _compare(model, inputs, hidden, head)
            compared.add(model)
        targets = batch[labels][..., 1:]
        loss = linear_cross_entropy(hidden[..., :-1, :], head.weight, targets, head.bias, chunk=chunk)
        return loss, int((targets != _IGNORED).sum())

    return forward


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

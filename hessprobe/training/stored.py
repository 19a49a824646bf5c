"""Stored tensors that can be the weights of a model: plain numbers of its kind, all of them there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hessprobe.errors import CheckpointError

_KEPT = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def require_numbers(name: str, given: Tensor, wanted: Tensor, source: str) -> None:
    """Refuse a stored tensor that copying into the model would turn into other numbers, or that has none.

    Args:
        name: of the tensor.
        given: from the file, of the shape of ``wanted``.
        wanted: of the model.
        source: what to call the file in a message.

    Raises:
        CheckpointError: sparse, quantised, without data (meta), expanded from fewer numbers, or of a dtype that is not
            that of weights (integers, booleans, complex numbers, float8).
    """
    kind = str(given.dtype).removeprefix("torch.")
    if given.is_meta:
        problem, mend = "without data (a meta tensor)", "Load the weights before saving"
    elif given.is_quantized:
        problem, mend = f"quantised ({kind})", "Save the weights before quantisation, or dequantize() them"
    elif given.layout != torch.strided:
        problem, mend = f"sparse ({str(given.layout).removeprefix('torch.')})", "Save to_dense() of it"
    elif given.numel() * given.element_size() > given.untyped_storage().nbytes():
        problem, mend = "expanded from fewer numbers", "Save a contiguous() copy of it"
    elif wanted.is_floating_point() and given.dtype not in _KEPT:
        problem, mend = f"as {kind}", "Convert it to a floating-point dtype that holds what the model used"
    elif not wanted.is_floating_point() and given.is_floating_point() | given.is_complex():
        problem, mend = f"as {kind}, where the model counts in {str(wanted.dtype).removeprefix('torch.')}", "Convert it"
    else:
        return
    raise CheckpointError(f"{source} has {name} {problem}, which cannot be measured as it is. {mend}.")


def widen(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Make ``model`` float64 where its weights are stored so; others are measured in its own dtype."""
    floating = [state_dict[name].dtype for name, _ in model.named_parameters() if name in state_dict]
    if torch.float64 in floating:
        model.double()

"""Character-level GPT: a causal transformer with pre-normalisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from hessprobe import checks

_INIT_STD = 0.02


class Attention(nn.Module):
    """Causal self-attention with ``n_heads`` heads of width d_model / n_heads."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.n_heads = n_heads

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, d_model) for (B, T, d_model)."""
        parts = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with a GELU layer of width 4 d_model."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, d_model) for (B, T, d_model)."""
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class GPT(nn.Module):
    """Decoder-only transformer with learned positions and, by default, tied input and output embeddings.

    Args:
        vocab_size: number of characters, >= 1.
        context: longest sequence T, >= 1.
        layers: transformer blocks, >= 1.
        d_model: width, a multiple of ``n_heads``.
        n_heads: attention heads, >= 1.
        tied: whether the output layer is the transposed input embedding (one parameter tensor for both).

    Raises:
        TypeError, ValueError: a size that is not a positive integer, or a width that the heads do not divide.

    References:
        Radford, Wu, Child, Luan, Amodei, Sutskever (2019), "Language models are unsupervised multitask learners".
    """

    def __init__(
        self,
        vocab_size: int = 65,
        context: int = 64,
        layers: int = 4,
        d_model: int = 128,
        n_heads: int = 4,
        tied: bool = True,
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "context": context, "layers": layers, "d_model": d_model, "n_heads": n_heads}
        for name, size in sizes.items():
            checks.positive_int(name, size)
        if d_model % n_heads:
            raise ValueError(
                f"d_model must be a multiple of n_heads = {n_heads}; got {d_model}. Change one of the two."
            )
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(context, d_model)
        self.blocks = nn.Sequential(*(TransformerBlock(d_model, n_heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        self._initialise(layers)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return next-character logits: integer tokens (B, T) with T <= context -> (B, T, vocab_size).

        Raises:
            ValueError: more tokens than ``context``.
        """
        length, context = tokens.shape[1], self.positions.num_embeddings
        if length > context:
            raise ValueError(f"tokens must be at most context = {context} long; got {length}. Cut the sequences.")
        places = torch.arange(length, device=tokens.device)
        logits: Tensor = self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions(places))))
        return logits

    def _initialise(self, layers: int) -> None:
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                # Two residual additions a block: their variances add up to that of one layer.
                residual = name.endswith(("attention.out", "mlp.2"))
                nn.init.normal_(module.weight, std=_INIT_STD / math.sqrt(2 * layers) if residual else _INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

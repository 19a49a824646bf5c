"""Transformers with pre-normalisation: a character-level GPT, and a vision transformer for small images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hessprobe import checks
from hessprobe.training.models.convolutional import sides

_INIT_STD = 0.02


class Attention(nn.Module):
    """Self-attention with ``n_heads`` heads of width d_model / n_heads; ``causal`` hides later positions."""

    def __init__(self, d_model: int, n_heads: int, causal: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.n_heads, self.causal = n_heads, causal

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, d_model) for (B, T, d_model)."""
        parts = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=self.causal)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with a GELU layer of width 4 d_model."""

    def __init__(self, d_model: int, n_heads: int, causal: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads, causal)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, d_model) for (B, T, d_model)."""
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


def initialise(module: nn.Module, layers: int) -> None:
    """Draw all linear and embedding weights of a transformer of ``layers`` blocks from N(0, 0.02^2), biases zero.

    The two layers of a block that add to the residual stream have their deviation divided by sqrt(2 layers), so that
    the variances of all additions add up to that of one layer.

    References:
        Radford, Wu, Child, Luan, Amodei, Sutskever (2019), "Language models are unsupervised multitask learners".
    """
    for name, part in module.named_modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            residual = name.endswith(("attention.out", "mlp.2"))
            nn.init.normal_(part.weight, std=_INIT_STD / math.sqrt(2 * layers) if residual else _INIT_STD)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def require_heads(d_model: int, n_heads: int) -> None:
    """Refuse a width that the heads do not divide.

    Raises:
        ValueError: with both numbers.
    """
    if d_model % n_heads:
        raise ValueError(f"d_model must be a multiple of n_heads = {n_heads}; got {d_model}. Change one of the two.")


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
        require_heads(d_model, n_heads)
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(context, d_model)
        self.blocks = nn.Sequential(*(TransformerBlock(d_model, n_heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        initialise(self, layers)
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


class ViT(nn.Module):
    """Patches embedded linearly, learned positions, pre-normalised transformer blocks, mean over patches, linear head.

    Args:
        image_size: pixels, one number for square images or height and width; multiples of ``patch``.
        patch: side of a patch in pixels, >= 1.
        layers: transformer blocks, >= 1.
        d_model: width, a multiple of ``n_heads``.
        n_heads: attention heads, >= 1.
        dropout: rate after the embedding, in [0, 1).
        in_channels: channels of the images, >= 1.
        n_classes: number of outputs, >= 1.

    Raises:
        TypeError, ValueError: a size that is not a positive integer, patches that do not tile the image, or a width
            that the heads do not divide.

    References:
        Dosovitskiy et al. (2021), "An image is worth 16x16 words"; the mean over patches in place of a class token is
        that of Beyer, Zhai, Kolesnikov (2022), "Better plain ViT baselines for ImageNet-1k".
    """

    def __init__(
        self,
        image_size: Sequence[int] | int = 32,
        patch: int = 4,
        layers: int = 6,
        d_model: int = 192,
        n_heads: int = 3,
        dropout: float = 0.0,
        in_channels: int = 3,
        n_classes: int = 10,
    ) -> None:
        super().__init__()
        height, width = sides(image_size)
        sizes = {"patch": patch, "layers": layers, "d_model": d_model, "n_heads": n_heads, "in_channels": in_channels}
        for name, size in {**sizes, "n_classes": n_classes}.items():
            checks.positive_int(name, size)
        checks.real("dropout", dropout, low=0, high=1, high_open=True)
        require_heads(d_model, n_heads)
        if height % patch or width % patch:
            raise ValueError(
                f"patch must divide the image of {height} x {width} pixels; got {patch}. Pass e.g. patch=2 or patch=4."
            )
        self.patch = patch
        self.embedding = nn.Linear(in_channels * patch * patch, d_model)
        self.positions = nn.Embedding(height * width // patch**2, d_model)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(TransformerBlock(d_model, n_heads, causal=False) for _ in range(layers)))
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, n_classes)
        initialise(self, layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: (B, in_channels, h, w) -> (B, n_classes)."""
        p = self.patch
        batch, channels, height, width = x.shape
        grid = x.reshape(batch, channels, height // p, p, width // p, p)
        patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        places = torch.arange(patches.shape[1], device=x.device)
        y = self.dropout(self.embedding(patches) + self.positions(places))
        logits: Tensor = self.head(self.norm(self.blocks(y)).mean(1))
        return logits

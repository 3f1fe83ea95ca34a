"""A decoder-only transformer over bytes (Vaswani et al., 2017; pre-norm and GELU as in GPT-2, Radford et al., 2019)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from mms_workloads.contract import LanguageModel

SYMBOLS = 256  # the values of a byte
_EXPANSION = 4  # of the feed-forward layer
_DEVIATION = 0.02  # of the initial weights


class Attention(nn.Module):
    def __init__(self, dimensions: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(dimensions, 3 * dimensions)
        self.output = nn.Linear(dimensions, dimensions)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dimensions = x.shape
        shape = (batch, length, self.heads, dimensions // self.heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.inputs(x).split(dimensions, dim=2))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, dimensions))
        return out


class Block(nn.Module):
    def __init__(self, dimensions: int, heads: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dimensions)
        self.attention = Attention(dimensions, heads)
        self.norm_forward = nn.LayerNorm(dimensions)
        self.widen = nn.Linear(dimensions, _EXPANSION * dimensions)
        self.narrow = nn.Linear(_EXPANSION * dimensions, dimensions)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        out: Tensor = x + self.narrow(functional.gelu(self.widen(self.norm_forward(x))))
        return out


def parameters(task: LanguageModel) -> int:
    """How many numbers the model is. Building it on torch's meta device would say so after seconds of imports, which a
    process that takes a dead one's place has not got.
    """
    d = task.dimensions
    linear = [(d, 3 * d), (d, d), (d, _EXPANSION * d), (_EXPANSION * d, d)]
    block = sum(inputs * outputs + outputs for inputs, outputs in linear) + 2 * 2 * d
    return (SYMBOLS + task.contextLength) * d + task.layers * block + 2 * d


class Transformer(nn.Module):
    """tokens int64 [B, L], L <= contextLength -> logits float32 [B, L, 256] of the byte that follows each."""

    def __init__(self, task: LanguageModel, seed: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(SYMBOLS, task.dimensions)
        self.positions = nn.Embedding(task.contextLength, task.dimensions)
        self.blocks = nn.ModuleList(Block(task.dimensions, task.heads) for _ in range(task.layers))
        self.norm = nn.LayerNorm(task.dimensions)
        self._initialise(torch.Generator().manual_seed(seed))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        # The matrix that reads bytes also predicts them (Press and Wolf, 2017).
        return functional.linear(self.norm(x), self.tokens.weight)

    def _initialise(self, rng: torch.Generator) -> None:
        """GPT-2's: normal, and less for what is added to the residual stream, by the number of additions."""
        residual = _DEVIATION / math.sqrt(2 * len(self.blocks))
        for name, parameter in self.named_parameters():
            with torch.no_grad():
                if parameter.dim() > 1:
                    small = name.endswith(("attention.output.weight", "narrow.weight"))
                    parameter.normal_(0.0, residual if small else _DEVIATION, generator=rng)
                elif name.endswith("bias"):
                    parameter.zero_()
                else:
                    parameter.fill_(1.0)

"""Small networks that need no pretrained weights and nothing of a batch's statistics."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 8  # of channels that are normalised together (Wu and He, 2018)
SMALLEST = 4  # pixels to each side that a picture is brought down to
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)  # others are subclasses of these


class Convolutions(nn.Module):
    """pixels float32 [n, C, H, W] -> float32 [n, channels, H / 2^halvings, W / 2^halvings]: pairs of 3 x 3 convolutions
    with group norm. coarse: the first halving is by the first convolution, which saves most of the work.
    """

    def __init__(self, inputs: int, width: int, halvings: int, *, coarse: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if coarse and halvings:
            layers += [nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.GroupNorm(GROUPS, width), nn.SiLU()]
            inputs = width
        for stage in range(1 if coarse and halvings else 0, halvings + 1):
            outputs = width * 2 ** min(stage, 2)
            if stage and layers and not (coarse and stage == 1):
                layers.append(nn.AvgPool2d(2, ceil_mode=True))
            for _ in range(2):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(GROUPS, outputs), nn.SiLU()]
                inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.channels = inputs

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.layers(pixels)
        return out


def halvings(height: int, width: int) -> int:
    """Until the shorter side is down to SMALLEST, four at most."""
    return max(0, min(4, int(math.log2(max(1, min(height, width) // SMALLEST)))))


class SmallClassifier(nn.Module):
    """pixels [n, C, H, W] -> logits [n, labels]."""

    def __init__(self, inputs: int, height: int, width: int, labels: int, channels: int = 32) -> None:
        super().__init__()
        self.features = Convolutions(inputs, channels, halvings(height, width))
        self.head = nn.Linear(self.features.channels, labels)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(pixels).mean(dim=(2, 3)))
        return out


class Attention(nn.Module):
    """x [n, L, d], mask bool [n, L] of what may be looked at."""

    def __init__(self, dimensions: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(dimensions, 3 * dimensions)
        self.output = nn.Linear(dimensions, dimensions)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, dimensions = x.shape
        shape = (batch, length, self.heads, dimensions // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in self.inputs(x).chunk(3, dim=2))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        out: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, dimensions))
        return out


class EncoderBlock(nn.Module):
    """Pre-norm, GELU."""

    def __init__(self, dimensions: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dimensions)
        self.attention = Attention(dimensions, heads)
        self.norm_forward = nn.LayerNorm(dimensions)
        self.widen = nn.Linear(dimensions, 4 * dimensions)
        self.narrow = nn.Linear(4 * dimensions, dimensions)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_attention(x), mask))
        out: Tensor = x + self.dropout(self.narrow(functional.gelu(self.widen(self.norm_forward(x)))))
        return out


def places(length: int, dimensions: int) -> Tensor:
    """float32 [length, dimensions]: sines and cosines of each place (Vaswani et al., 2017)."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, dimensions, 2, dtype=torch.float32) * (-math.log(10_000.0) / dimensions))
    found = torch.zeros(length, dimensions)
    found[:, 0::2] = torch.sin(position * rates)
    found[:, 1::2] = torch.cos(position * rates)[:, : dimensions // 2]
    return found

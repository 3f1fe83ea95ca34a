"""Networks that make a vector of a text, so that the cosine of two tells how near the texts are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mms_workloads.tasks import starting, texts
from mms_workloads.tasks import transformers_library as libraries
from mms_workloads.tasks.texts import Encoder
from mms_workloads.train import device

if TYPE_CHECKING:
    from mms_workloads.contract import Text
    from mms_workloads.tasks.starting import Start
    from mms_workloads.tasks.texts import Words

NEAR, FAR = 8.0, -4.0  # the logit of a cosine c is 8 c - 4 at first: 0 at the half
EPSILON = 1e-6


class SentenceEncoder(nn.Module):
    """tokens, mask int64 [n, L] -> sentence float32 [n, d] of length 1, calibration float32 [n, 2].

    The sentence is the mean of its tokens. How much a token counts is learnt; at first all count alike, and `head`
    changes nothing. A text without tokens is 0.
    """

    def __init__(self, encoder: nn.Module, dimensions: int, *, calibrated: tuple[float, float] | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.weigh = nn.Linear(dimensions, 1)
        self.head = nn.Linear(dimensions, dimensions, bias=False)
        self.line = nn.Parameter(torch.tensor(calibrated or (1.0, 0.0)), requires_grad=calibrated is not None)
        nn.init.zeros_(self.weigh.weight)
        nn.init.zeros_(self.weigh.bias)
        nn.init.eye_(self.head.weight)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoder(tokens, mask)
        seen = mask[:, :, None].to(x.dtype)
        weights = torch.softmax(self.weigh(x) - 1e4 * (1 - seen), dim=1) * seen
        mean = self.head((x * weights).sum(dim=1))
        sentence = mean / (mean.square().sum(dim=1, keepdim=True) + EPSILON).sqrt()
        return sentence, self.line.expand(sentence.shape[0], 2)


class LibraryEncoder(nn.Module):
    """A network of Transformers: tokens, mask int64 [n, L] -> float32 [n, L, d]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.network(input_ids=tokens, attention_mask=mask).last_hidden_state
        return out


def build(
    kind: str, spec: Text, words: Words, start: Start, *, seed: int, calibrated: tuple[float, float] | None
) -> nn.Module:
    """calibrated: what the calibration begins with; None: the cosine is the score. Raises JobError."""

    def library() -> nn.Module:
        from mms_workloads import vision  # noqa: F401, PLC0415 - before transformers, which looks for torchvision

        # isort: split
        from transformers import AutoModel  # noqa: PLC0415

        network: Any
        network, unset = libraries.make(AutoModel, start, seed)
        with device.seeded(seed):
            made = SentenceEncoder(LibraryEncoder(network), network.config.hidden_size, calibrated=calibrated)
        if start.kind is not None:
            starting.load(made, start)
        texts.fit(network, words, kind, spec, start)
        return starting.trained_parts(made, made.head, start, seed, unset=unset)

    network = texts.begun(
        kind,
        spec,
        start,
        small=lambda: SentenceEncoder(Encoder(spec, words), spec.dimensions, calibrated=calibrated),
        library=library,
        seed=seed,
    )
    network.get_parameter("line").requires_grad = calibrated is not None
    return network

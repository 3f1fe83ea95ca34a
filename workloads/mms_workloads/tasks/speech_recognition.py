"""speechRecognition: what is said, letter by letter. Log-mel energies, a transformer encoder, CTC; or a network of
Transformers that does the same (transformers_speech.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mms_workloads.contract import AudioInput, Pipeline, Reason
from mms_workloads.media import audio
from mms_workloads.media.images import MediaError
from mms_workloads.store import JobError
from mms_workloads.tasks import labels, starting, transcripts, transformers_library, transformers_speech
from mms_workloads.tasks.networks import EncoderBlock, places
from mms_workloads.tasks.transcripts import LETTERS
from mms_workloads.train import device

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import ModelTask, SpeechRecognition
    from mms_workloads.tasks.starting import Start
    from mms_workloads.tasks.task import Batch

BLANK = "<blank>"
WINDOW, HOP = 0.025, 0.010  # seconds
MELS = 80


class LogMel(nn.Module):
    """audio float32 [n, S], lengths int64 [n] -> energies [n, MELS, T], frames int64 [n]; each band of mean 0 and
    deviation 1 over the sound. As products with sines and cosines, which every runtime has. A sound that is too
    short for a frame has one.
    """

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.window, self.hop = round(WINDOW * rate), round(HOP * rate)
        size = 2 ** math.ceil(math.log2(self.window))
        angle = 2 * math.pi * torch.arange(size // 2 + 1)[:, None] * torch.arange(self.window) / size
        taper = torch.hann_window(self.window)
        self.register_buffer("waves", torch.cat((angle.cos(), angle.sin()))[:, None] * taper, persistent=False)
        self.register_buffer("bands", mel_bands(rate, size), persistent=False)

    def forward(self, sound: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        sound = functional.pad(sound, (0, self.window))
        parts = functional.conv1d(sound[:, None], self.waves, stride=self.hop)  # type: ignore[arg-type]
        real, imaginary = parts.chunk(2, dim=1)
        energies = torch.log(self.bands @ (real.square() + imaginary.square()) + 1e-6)  # type: ignore[operator]
        frames = self.frames(lengths)
        seen = (torch.arange(energies.shape[2], device=sound.device) < frames[:, None])[:, None].float()
        count = seen.sum(dim=2, keepdim=True)
        mean = (energies * seen).sum(dim=2, keepdim=True) / count
        apart = (energies - mean) * seen
        deviation = (apart.square().sum(dim=2, keepdim=True) / count + 1e-5).sqrt()
        return apart / deviation, frames

    def frames(self, lengths: Tensor) -> Tensor:
        """Of sounds of so many samples."""
        return ((lengths - self.window) // self.hop + 1).clamp(min=1)


def mel_bands(rate: int, size: int) -> Tensor:
    """float32 [MELS, size / 2 + 1]: triangles that are evenly spaced in mel (O'Shaughnessy, 1987)."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, MELS + 2, dtype=torch.float64) / 2595) - 1)
    frequencies = torch.linspace(0, rate / 2, size // 2 + 1, dtype=torch.float64)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0).float()


class Recogniser(nn.Module):
    """audio float32 [n, S], lengths int64 [n] -> logits [n, T, labels], two hops a step. A sound is told as if it were
    alone; steps that are not its own are told as silence.
    """

    silent: Tensor

    def __init__(self, spec: SpeechRecognition, labels: int) -> None:
        super().__init__()
        size = spec.dimensions
        self.mel = LogMel(spec.sampleRate)
        self.enter = nn.Conv1d(MELS, size, 5, padding=2)
        self.halve = nn.Conv1d(size, size, 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(EncoderBlock(size, spec.heads, spec.dropout) for _ in range(spec.layers))
        self.near = nn.ModuleList(nn.Conv1d(size, size, 9, padding=4, groups=size) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, labels)
        self.dropout = nn.Dropout(spec.dropout)
        most = math.ceil(spec.maxSeconds * spec.sampleRate) // self.mel.hop + 1  # frames, of what fills up a sound, too
        self.register_buffer("places", places((most - 1) // 2 + 1, size), persistent=False)
        self.register_buffer("silent", transformers_speech.silence(labels), persistent=False)

    def forward(self, audio: Tensor, lengths: Tensor) -> Tensor:
        x, frames = self.mel(audio, lengths)
        heard = torch.arange(x.shape[2], device=x.device) < frames[:, None]
        x = functional.gelu(self.enter(x)) * heard[:, None]
        x = functional.gelu(self.halve(x)).transpose(1, 2)
        seen = torch.arange(x.shape[1], device=x.device) < steps(frames)[:, None]
        x = self.dropout(x + self.places[: x.shape[1]])  # type: ignore[index]
        for block, near in zip(self.blocks, self.near, strict=True):
            x = x * seen[:, :, None]
            x = x + near(x.transpose(1, 2)).transpose(1, 2)
            x = block(x, seen)
        logits = self.head(self.norm(x))
        return torch.where(seen[:, :, None], logits, self.silent.to(logits.dtype))

    def steps(self, lengths: Tensor) -> Tensor:
        """Of sounds of so many samples."""
        return steps(self.mel.frames(lengths))


def steps(frames: Tensor) -> Tensor:
    """Of `halve`."""
    return (frames - 1) // 2 + 1


@dataclass(slots=True)
class SpeechRecogniser:
    spec: SpeechRecognition
    start: Start
    kind: ModelTask = "speechRecognition"
    metric: str = "characterErrorRate"
    compared: int = 100

    @property
    def classes(self) -> list[str]:
        return [BLANK, *transcripts.letters(self.spec.alphabet)]

    @property
    def heard(self) -> transformers_speech.Sound:
        """Raises JobError."""
        rate = self.spec.sampleRate
        if transformers_library.is_start(self.start, self.kind):
            return transformers_speech.sound(self.start, self.spec)
        return transformers_speech.Sound(rate, normalise=False, stride=2 * round(HOP * rate))

    def build(self, seed: int) -> nn.Module:
        if transformers_library.is_start(self.start, self.kind):
            return transformers_speech.build(self.spec, self.classes, self.start, seed)
        if self.spec.architecture == "Pretrained":
            raise transformers_library.missing(self.start, self.kind)
        with device.seeded(seed):
            network = Recogniser(self.spec, len(self.classes))
        if self.start.folder is None:
            return network
        starting.load_own(network, self.start, self.kind, network.head)
        return starting.trained_parts(network, network.head, self.start, seed)

    def prepare(self, records: Sequence[Mapping[str, Any]]) -> Batch:
        """Audio float32 [n, S], lengths, letters int64 [n, LETTERS] with 0 at the end. Those records are left out that
        the counting pass let through, and that have more letters than this very network has steps for.
        """
        place = {letter: number for number, letter in enumerate(self.classes)}
        heard = self.heard
        kept = []
        for record in records:
            try:
                sound = audio.decode(record["input"], self.spec.sampleRate)
            except MediaError as error:
                raise JobError(Reason.DATA_UNREADABLE, f"{record.get('source', 'a record')}: {error}") from error
            said = transcripts.written(str(record["label"]), self.spec.alphabet)
            if not transcripts.unfit(said, sound.size, self.spec, heard.stride):
                letters = [place[letter] for letter in said]
                kept.append((audio.normalised(sound) if heard.normalise else sound, letters))
        size = max((sound.size for sound, _ in kept), default=1)
        batch = {
            "audio": torch.zeros(len(kept), size),
            "lengths": torch.tensor([sound.size for sound, _ in kept], dtype=torch.int64),
            "letters": torch.zeros(len(kept), LETTERS, dtype=torch.int64),
        }
        for row, (sound, letters) in enumerate(kept):
            batch["audio"][row, : sound.size] = torch.from_numpy(sound)
            batch["letters"][row, : len(letters)] = torch.tensor(letters)
        return batch

    def augment(self, batch: Batch, transform: str, generator: torch.Generator) -> Batch:
        from mms_workloads.data import augmentation  # noqa: PLC0415

        return {**batch, "audio": augmentation.apply_audio(transform, batch["audio"], batch["lengths"], generator)}

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Of each record divided by its letters; their sum."""
        del generator
        logits, taken = self._logits(network, batch)
        letters = batch["letters"]
        counts = (letters > 0).sum(dim=1)
        chances = functional.log_softmax(logits, dim=2).transpose(0, 1)
        on = logits.device
        each = functional.ctc_loss(
            chances, device.moved(letters, on), taken, counts, reduction="none", zero_infinity=True
        )
        return (each / device.moved(counts, on)).sum()

    def measure(self, network: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """characterErrorRate, wordErrorRate: changes, additions and omissions that make what is told what was said, by
        the letters and words that were said. The likeliest letter at each step is taken.
        """
        wrong = {"characterErrorRate": 0, "wordErrorRate": 0}
        said = dict.fromkeys(wrong, 0)
        for batch in batches:
            logits, taken = self._logits(network, batch)
            best = logits.argmax(dim=2).cpu()
            for row in range(len(best)):
                want = self._text(batch["letters"][row].tolist())
                have = self._text(collapsed(best[row][: int(taken[row])].tolist()))
                for name, a, b in (
                    ("characterErrorRate", list(want), list(have)),
                    ("wordErrorRate", want.split(), have.split()),
                ):
                    wrong[name] += labels.edits(a, b)
                    said[name] += len(a)
        return {name: wrong[name] / max(1, said[name]) for name in wrong}

    def _text(self, numbers: Sequence[int]) -> str:
        return "".join(self.classes[number] for number in numbers if number)

    def _logits(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """[n, T, labels], and of each how many steps are its own."""
        on = next(network.parameters()).device
        longest = int(batch["lengths"].max())
        lengths = device.moved(batch["lengths"], on)
        logits: Tensor = network(audio=device.moved(batch["audio"][:, :longest], on), lengths=lengths).float()
        assert isinstance(network, Recogniser | transformers_speech.Letters)  # noqa: S101 - made by `build`
        return logits, network.steps(lengths).clamp(max=logits.shape[1])

    def exported(self, network: nn.Module) -> tuple[nn.Module, Batch, Mapping[str, Sequence[str]]]:
        rate = self.spec.sampleRate
        sound = torch.randn(2, rate, generator=torch.Generator().manual_seed(0)) / 10
        example = {"audio": sound, "lengths": torch.tensor([rate, rate // 2])}
        return network, example, {"audio": ("n", "S"), "lengths": ("n",)}

    def outputs(self) -> Sequence[str]:
        return ["logits"]

    def pipeline(self, folder: Path) -> Pipeline:
        del folder
        heard = self.heard
        given = AudioInput(sampleRate=heard.rate, maxSeconds=self.spec.maxSeconds, normalise=heard.normalise)
        return Pipeline(task=self.kind, labels=self.classes, audio=given)

    def questions(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, NDArray[np.generic]]]:
        """AUDIO [1, 1]: a WAV file."""
        return [{"AUDIO": np.array([[record["input"]]], dtype=np.object_)} for record in records]


def collapsed(path: Sequence[int]) -> list[int]:
    """Without repetitions, then without blanks."""
    return [one for place, one in enumerate(path) if one and (place == 0 or one != path[place - 1])]

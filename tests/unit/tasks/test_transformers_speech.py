"""speechRecognition from networks of Transformers: a sound is told as if alone, and as that library tells it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mms_workloads.contract import SpeechRecognition
from mms_workloads.serve import pipelines
from mms_workloads.store import JobError
from mms_workloads.tasks import starting, transformers_speech
from mms_workloads.tasks.speech_recognition import BLANK, SpeechRecogniser
from tests.unit.serve import transformers_folders
from tests.unit.tasks import datasets, taught
from tests.unit.tasks.test_task_runs import job

if TYPE_CHECKING:
    from pathlib import Path

SPEC = SpeechRecognition(architecture="Pretrained", alphabet=" abcdefghij")
CLASSES = [BLANK, *SPEC.alphabet]
ROWS = [0, 4, *range(5, 15)]  # of CLASSES in the folder's vocabulary
SOUNDS = torch.randn(2, 2000, generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([2000, 900])


def trained(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_sound_is_told_as_alone(tmp_path: Path, norm: str) -> None:
    """A group norm over time would hear what a sound is filled up with."""
    theirs, _ = transformers_folders.wav2vec2(tmp_path, norm)
    network = transformers_speech.build(SPEC, CLASSES, taught.start(tmp_path), 1).eval()
    own = network.steps(LENGTHS).tolist()
    with torch.no_grad():
        told = network(SOUNDS, LENGTHS)
        for row, length in enumerate(LENGTHS.tolist()):
            want = theirs(SOUNDS[row : row + 1, :length]).logits[0]
            assert len(want) == own[row]
            torch.testing.assert_close(told[row, : own[row]], want[:, ROWS], rtol=1e-4, atol=1e-5)
        assert told[1, own[1] :].argmax(dim=1).eq(0).all(), "what follows a sound is silence"
        short = network(SOUNDS[:, :5], torch.tensor([5, 1]))
    assert bool(torch.isfinite(short).all()), "a sound that is shorter than a step has an answer, too"


def test_known_characters_keep_what_was_learnt_of_them(tmp_path: Path) -> None:
    theirs, _ = transformers_folders.wav2vec2(tmp_path, "group")
    vocabulary = {letter.upper() if len(letter) == 1 else letter: row for row, letter in enumerate("abcdefghij", 5)}
    (tmp_path / "vocab.json").write_text(json.dumps({**vocabulary, "<pad>": 0, "|": 4, "<s>": 1}))
    spec = SPEC.model_copy(update={"alphabet": "xb a"})
    sizes = []
    for method in ("Head", "LoRA", "Full"):
        network = transformers_speech.build(spec, [BLANK, *spec.alphabet], taught.start(tmp_path, None, method), 1)
        head, old = network.network.lm_head, theirs.lm_head
        for row, there in ((0, 0), (2, 6), (3, 4), (4, 5)):
            assert torch.equal(head.weight[row], old.weight[there])
        assert not any(torch.equal(head.weight[1], row) for row in old.weight), "x is another one"
        sizes.append(trained(network))
    assert sizes[0] == 5 * (16 + 1)
    assert sizes == sorted(set(sizes))


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    transformers_folders.wav2vec2(tmp_path / "wav2vec2", "layer")
    other = SPEC.model_copy(update={"sampleRate": 8000})
    with pytest.raises(JobError, match=r"16000 samples a second: set task\.speechRecognition\.sampleRate"):
        SpeechRecogniser(other, taught.start(tmp_path / "wav2vec2")).build(1)
    with pytest.raises(JobError, match=r"architecture Pretrained needs pretrained"):
        SpeechRecogniser(SPEC, starting.NOTHING).build(1)
    adapted = taught.start(tmp_path / "wavlm", None, "LoRA")
    (tmp_path / "wavlm").mkdir()
    (tmp_path / "wavlm" / "config.json").write_text('{"model_type": "wavlm"}')
    with pytest.raises(JobError, match=r"attention of wavlm.*set pretrained\.method to Full or Head"):
        SpeechRecogniser(SPEC, adapted).build(1)
    (tmp_path / "whisper").mkdir()
    transformers_folders.whisper(tmp_path / "whisper")
    with pytest.raises(JobError, match=r"kind whisper.*letter by letter.*model\.pretrained of a ModelService"):
        SpeechRecogniser(SPEC, taught.start(tmp_path / "whisper")).build(1)


def test_it_is_trained_served_and_trained_further(tmp_path: Path, one_thread: None) -> None:
    """The artifact's network is built again from its config.json, and other characters have rows of their own."""
    folder = tmp_path / "wav2vec2"
    transformers_folders.wav2vec2(folder, "group")
    (folder / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 8000, "do_normalize": True}))
    uri = datasets.melodies(tmp_path / "data", 24)
    task: dict[str, Any] = {"architecture": "Pretrained", "alphabet": "abcd", "sampleRate": 8000, "maxSeconds": 2}
    given = {"store": {"uri": f"file://{folder}"}}
    one = taught.learner(job(tmp_path, {"speechRecognition": task}, uri, pretrained=given), tmp_path / "first")
    state, losses = taught.steps(one, 12, 0.02)
    assert losses[-1] < losses[0] / 2
    artifact = tmp_path / "artifact"
    assert set(taught.written(one, state, artifact)) == {"characterErrorRate", "wordErrorRate"}
    served = pipelines.open(artifact)
    assert served.pipeline.audio is not None
    assert served.pipeline.audio.normalise
    record = one.corpus.records(0)[0]
    answer = served.answer({"AUDIO": np.array([[record["input"]]], dtype=np.object_)})
    with torch.no_grad():
        logits, taken = one.task._logits(state.module.eval(), one.task.prepare([record]))  # type: ignore[attr-defined]
    best = logits[0, : int(taken[0])].argmax(dim=1)
    kept = [int(n) for n in torch.unique_consecutive(best) if n]
    assert answer["TEXT"][0, 0].decode() == "".join("abcd"[n - 1] for n in kept)

    spec = SpeechRecognition.model_validate({**task, "alphabet": "dxa"})
    again = SpeechRecogniser(spec, taught.start(artifact, "speechRecognition", "Head"))
    assert again.heard == transformers_speech.Sound(8000, normalise=True, stride=20)
    network, before = again.build(1), state.module
    theirs = before.state_dict()
    for name, tensor in network.state_dict().items():
        if "lm_head" not in name:
            assert torch.equal(tensor, theirs[name]), name
    assert torch.equal(network.network.lm_head.weight[[0, 1, 3]], before.network.lm_head.weight[[0, 4, 1]])  # type: ignore[union-attr,index]
    assert trained(network) == 4 * (16 + 1)

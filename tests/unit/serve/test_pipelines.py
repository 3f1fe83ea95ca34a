"""What clients send and get, with networks whose answers are known."""

from __future__ import annotations

import base64
import struct
import subprocess
import sys

import numpy as np
import pytest

from mms_workloads.contract import ImageInput, Statistics
from mms_workloads.serve import pipelines
from mms_workloads.serve.pipelines import FailedError, RequestError
from mms_workloads.serve.pipelines.detecting import overlaps, suppressed
from tests.unit.serve import networks
from tests.unit.serve.networks import of_one_colour, request


def test_an_image_file_and_its_pixels_get_the_same_answer(tmp_path):
    networks.colours(tmp_path)
    served = pipelines.open(tmp_path)
    assert served.model == "classify"
    found = served.answer({"IMAGE": request(of_one_colour((255, 0, 0)), of_one_colour((0, 0, 255), (9, 5)))})
    assert found["LABELS"].tolist() == [[b"red"], [b"blue"]]
    pixels = np.zeros((1, 3, 4, 4), np.float32)
    pixels[:, 0] = 1
    again = served.answer({"PIXELS": pixels})
    np.testing.assert_allclose(again["SCORES"], found["SCORES"][:1], atol=1e-6)


def test_k_labels_the_likeliest_first(tmp_path):
    networks.colours(tmp_path)
    served = pipelines.open(tmp_path)
    found = served.answer({"IMAGE": request(of_one_colour((20, 200, 100))), "K": np.array([[3]], np.int32)})
    assert found["LABELS"].tolist() == [[b"green", b"blue", b"red"]]
    assert found["SCORES"].sum() == pytest.approx(1, abs=1e-5)
    assert found["SCORES"].dtype == np.float32


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"IMAGE": request(b"no image")}, r"IMAGE\[0\]: 8 bytes that are no image"),
        ({"PIXELS": np.full((1, 3, 4, 4), np.nan, np.float32)}, "not finite"),
        ({"PIXELS": np.full((1, 3, 4, 4), 255, np.float32)}, "pixels are 0 to 1"),
        ({"PIXELS": np.zeros((1, 3, 5, 4), np.float32)}, r"must be \[rows, 3, 4, 4\]"),
        ({"PIXELS": request("text")}, r"shape is \[1, 1\]"),
        ({}, "exactly one of IMAGE and PIXELS"),
        ({"PICTURE": request(b"")}, "PICTURE: no input of this model"),
        ({"IMAGE": request(b""), "K": np.array([[0]], np.int32)}, "K: it must be 1 or more"),
        ({"IMAGE": request(b"", b""), "K": np.array([[1]], np.int32)}, "another input has 2"),
    ],
)
def test_what_is_no_request_is_refused_with_its_input(tmp_path, inputs, message):
    networks.colours(tmp_path)
    with pytest.raises(RequestError, match=message):
        pipelines.open(tmp_path).answer(inputs)


def test_requests_are_answered_together_and_a_bad_one_spoils_no_other(tmp_path):
    networks.colours(tmp_path)
    served = pipelines.open(tmp_path)
    asked = [
        {"IMAGE": request(of_one_colour((0, 255, 0)))},
        {"IMAGE": request(b"x")},
        {"IMAGE": request(of_one_colour((255, 0, 0)))},
    ]
    first, second, third = served.answers(asked)
    assert first["LABELS"].tolist() == [[b"green"]]
    assert isinstance(second, RequestError)
    assert third["LABELS"].tolist() == [[b"red"]]


class _Breaking:
    """A network that fails where the green channel is bright, alone or among others."""

    def __init__(self, network):
        self.network = network

    def run(self, feeds):
        if feeds["pixels"][:, 1].max() > 0.5:
            raise IndexError("green")
        return self.network.run(feeds)


def test_a_request_at_which_the_network_fails_spoils_no_other(tmp_path, caplog):
    networks.colours(tmp_path)
    served = pipelines.open(tmp_path)
    served.network = _Breaking(served.network)
    asked = [{"IMAGE": request(of_one_colour(one))} for one in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    first, second, third = served.answers(asked)
    assert [one["LABELS"].tolist() for one in (first, third)] == [[[b"red"]], [[b"blue"]]]
    assert isinstance(second, FailedError)
    assert str(second).startswith("model classify failed at this request (IndexError)")
    assert "green" not in str(second)
    assert "IndexError: green" in caplog.text
    with pytest.raises(IndexError, match="green"):
        served.answer(asked[1])


def test_a_request_that_cannot_be_prepared_spoils_no_other(tmp_path, monkeypatch):
    networks.colours(tmp_path)
    served = pipelines.open(tmp_path)
    prepare = served.steps.prepare

    def odd(inputs):
        if "K" in inputs:
            raise struct.error("odd")
        return prepare(inputs)

    monkeypatch.setattr(served.steps, "prepare", odd)
    red = {"IMAGE": request(of_one_colour((255, 0, 0)))}
    first, second = served.answers([red, {**red, "K": np.array([[1]], np.int32)}])
    assert first["LABELS"].tolist() == [[b"red"]]
    assert isinstance(second, FailedError)


def test_an_image_unlike_those_of_the_training_is_refused_counted_or_neither(tmp_path):
    known = Statistics(
        mean=[0.5] * 3,
        std=[0.2] * 3,
        imageMean=[0.5] * 3,
        imageMeanStd=[0.02] * 3,
        imageStd=[0.0] * 3,
        imageStdStd=[0.1] * 3,
    )
    pipeline = networks.colours(tmp_path).model_copy(update={"statistics": known})
    (tmp_path / "pipeline.json").write_text(pipeline.model_dump_json())
    usual, odd = request(of_one_colour((128, 130, 126))), request(of_one_colour((255, 255, 255)))
    with pytest.raises(RequestError, match=r"brightness is 2[45] standard deviations"):
        pipelines.open(tmp_path).answer({"IMAGE": odd})
    counting = pipelines.open(tmp_path, anomalies="Count")
    counting.answers([{"IMAGE": usual}, {"IMAGE": odd}])
    assert counting.odd == 1
    off = pipelines.open(tmp_path, anomalies="Off")
    off.answer({"IMAGE": odd})
    assert off.odd == 0


def test_text_and_its_tokens_get_the_same_answer(tmp_path):
    networks.words(tmp_path)
    served = pipelines.open(tmp_path)
    found = served.answer({"TEXT": request("good film", "a bad bad film", "")})
    assert found["LABELS"].tolist()[:2] == [[b"positive"], [b"negative"]]
    tokens = np.array([[2, 4]], np.int64)
    np.testing.assert_allclose(served.answer({"TOKENS": tokens})["SCORES"], found["SCORES"][:1], atol=1e-6)
    for wrong, message in (
        (np.array([[99]]), "99 is none of the tokenizer's"),
        (np.zeros((1, 17), np.int64), "takes 16 at most"),
    ):
        with pytest.raises(RequestError, match=message):
            served.answer({"TOKENS": wrong})


def test_texts_of_other_lengths_are_answered_together(tmp_path):
    networks.words(tmp_path)
    served = pipelines.open(tmp_path)
    asked = ["good", "good film", "bad film film", "film film good good"]
    alone = [served.answer({"TEXT": request(text)})["SCORES"] for text in asked]
    together = served.answers([{"TEXT": request(text)} for text in asked])
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other["SCORES"], atol=1e-6)


def test_boxes_are_parts_of_the_image_that_was_sent(tmp_path):
    """A wide image padded to a square: the boxes of the network are parts of the square."""
    places = np.array([[0.0, 0.25, 0.5, 0.75], [0.02, 0.25, 0.5, 0.75], [0.5, 0.25, 1.0, 0.75], [0, 0, 1, 1]])
    scores = np.array([[0.9, 0.1], [0.8, 0.1], [0.1, 0.7], [0.1, 0.2]])
    networks.boxes(tmp_path, places, scores, ImageInput(height=8, width=8, resize="Pad"))
    found = pipelines.open(tmp_path).answer({"IMAGE": request(of_one_colour((9, 9, 9), (16, 8)))})
    assert found["COUNT"].tolist() == [[2]]  # of two that overlap one stays, and the last is unlikely
    assert found["LABELS"].tolist() == [[b"thing 0", b"thing 1"]]
    np.testing.assert_allclose(found["BOXES"][0], [[0, 0, 0.5, 1], [0.5, 0, 1, 1]], atol=1e-6)
    np.testing.assert_allclose(found["SCORES"][0], [0.9, 0.7], atol=1e-6)


def test_an_image_without_things_has_an_answer(tmp_path):
    networks.boxes(tmp_path, np.zeros((2, 4)), np.zeros((2, 3)), ImageInput(height=8, width=8))
    found = pipelines.open(tmp_path).answer({"IMAGE": request(of_one_colour((9, 9, 9)))})
    assert (found["COUNT"].tolist(), found["BOXES"].shape, found["LABELS"].shape) == ([[0]], (1, 0, 4), (1, 0))


def test_overlap_of_boxes():
    one = np.array([0, 0, 2, 2], np.float32)
    others = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]], np.float32)
    np.testing.assert_allclose(overlaps(one, others), [1, 1 / 3, 0], atol=1e-6)


def test_boxes_of_other_labels_do_not_suppress_each_other():
    boxes = np.array([[0, 0, 1, 1]] * 3, np.float32)
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.1]], np.float32)
    assert suppressed(boxes, scores, 0.3, 0.5).tolist() == [[0, 0], [1, 1]]


def test_a_golden_case_holds_what_was_asked_in_tritons_form(tmp_path):
    networks.colours(tmp_path)
    image = of_one_colour((255, 0, 0))
    case = pipelines.golden_case(pipelines.open(tmp_path), {"IMAGE": request(image)})
    tensor = case.tensors["IMAGE"]
    assert (case.model, tensor.datatype, tensor.shape) == ("classify", "BYTES", [1, 1])
    assert base64.b64decode(tensor.raw) == len(image).to_bytes(4, "little") + image
    assert case.outputs["LABELS"] == ["red"]
    assert case.outputs["SCORES"] == [pytest.approx(0.9999, abs=1e-3)]


def test_a_network_of_other_tensors_is_refused_with_the_remedy(tmp_path):
    networks.words(tmp_path)
    pipeline = networks.words(tmp_path).model_copy(update={"tensors": {"tokens": "input_ids"}})
    (tmp_path / "pipeline.json").write_text(pipeline.model_dump_json())
    with pytest.raises(pipelines.NetworkError, match="its inputs are tokens, mask"):
        pipelines.open(tmp_path)


def test_onnx_needs_no_pytorch_and_neither_does_looking_at_the_package(tmp_path):
    networks.words(tmp_path)
    code = (
        "import sys, pathlib\nfrom mms_workloads.serve import pipelines\nassert 'onnxruntime' not in sys.modules\n"
        f"pipelines.open(pathlib.Path({str(tmp_path)!r}))\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": "workloads"})


def test_words_have_their_tags_and_places(tmp_path):
    networks.words(tmp_path, "tokenClassification", ("place", "O", "person"))
    served = pipelines.open(tmp_path)
    found = served.answer({"TEXT": request("Ada  liked Paris", "Ada")})
    assert found["WORDS"].tolist() == [[b"Ada", b"liked", b"Paris"], [b"Ada", b"", b""]]
    assert found["TAGS"][0].tolist()[::2] == [b"person", b"place"]
    assert found["STARTS"][0].tolist() == [0, 5, 11]
    assert found["ENDS"][0].tolist() == [3, 10, 16]
    assert found["COUNT"].tolist() == [[3], [1]]
    tokens = served.answer({"TOKENS": np.array([[5, 1, 6]]), "MASK": np.array([[1, 1, 0]])})
    assert tokens["TAGS"].tolist() == [[b"person", b"place"]]  # a row of zeros is the first label's


def test_a_line_that_becomes_far_too_wide_is_refused(tmp_path):
    networks.colours(tmp_path)
    given = ImageInput(height=4, width=4, resize="Line")
    pipeline = networks.colours(tmp_path).model_copy(update={"image": given})
    (tmp_path / "pipeline.json").write_text(pipeline.model_dump_json())
    with pytest.raises(RequestError, match=r"IMAGE\[0\]: a line of 20000 x 1 pixels becomes 80000 wide.*cut it"):
        pipelines.open(tmp_path).answer({"IMAGE": request(of_one_colour((9, 9, 9), (20_000, 1)))})


def test_texts_become_vectors(tmp_path):
    networks.words(tmp_path, "textEmbedding", ("first", "second"))
    found = pipelines.open(tmp_path).answer({"TEXT": request("good good", "bad")})
    assert found["VECTORS"].tolist() == [[0, 4], [2, 0]]


def _sound(*labels: int) -> np.ndarray:
    return np.repeat(np.array(labels, np.float32) / 10, 4)


def _without_rate(wav: bytes) -> bytes:
    return wav[:24] + bytes(4) + wav[28:]


def test_sound_becomes_text_whatever_it_is_batched_with(tmp_path):
    networks.sounds(tmp_path)
    served = pipelines.open(tmp_path)
    short, long = _sound(1, 1, 0, 1, 3, 2), _sound(2, 0, 2, 2, 0, 3, 1, 1)
    found = served.answers([{"SAMPLES": short[None]}, {"AUDIO": request(networks.wav(long, 8000))}])
    assert [one["TEXT"].tolist() for one in found] == [[[b"aa b"]], [[b"bb a"]]]
    both = np.zeros((2, len(long)), np.float32)
    both[0, : len(short)], both[1] = short, long
    lengths = np.array([[len(short)], [len(long)]])
    assert served.answer({"SAMPLES": both, "LENGTHS": lengths})["TEXT"].tolist() == [[b"aa b"], [b"bb a"]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"SAMPLES": np.full((1, 8), 3, np.float32)}, "samples beyond -1 to 1"),
        ({"SAMPLES": np.full((1, 8), np.inf, np.float32)}, "not finite"),
        ({"AUDIO": request(b"RIFF")}, r"AUDIO\[0\]: 4 bytes that are no WAV"),
        ({"SAMPLES": np.zeros((1, 8001 * 30), np.float32)}, "takes 30 s at most"),
        ({"AUDIO": request(networks.wav(np.zeros(31_000, np.float32), 1000))}, r"31\.0 s of sound, and 30 s at most"),
        ({"AUDIO": request(_without_rate(networks.wav(np.zeros(9, np.float32), 8000)))}, "0 samples per second"),
        ({"SAMPLES": np.zeros((1, 4), np.float32), "LENGTHS": np.array([[5]])}, "from 1 to the 4 samples"),
    ],
)
def test_what_is_no_sound_is_refused(tmp_path, inputs, message):
    networks.sounds(tmp_path)
    with pytest.raises(RequestError, match=message):
        pipelines.open(tmp_path).answer(inputs)


def test_a_seed_gives_the_same_image_again(tmp_path):
    networks.painter(tmp_path)
    served = pipelines.open(tmp_path)
    asked = {"LABEL": request("light", "dark"), "SEED": np.array([[7], [7]])}
    first, again = served.answer(asked), served.answer(asked)
    assert first["IMAGE"].tolist() == again["IMAGE"].tolist()
    assert first["IMAGE"][0, 0].startswith(b"\x89PNG")
    assert first["PIXELS"][0].mean() > first["PIXELS"][1].mean()
    free = [served.answer({"LABEL": request("light")}) for _ in range(2)]
    assert free[0]["SEED"] != free[1]["SEED"]
    np.testing.assert_array_equal(
        served.answer({"LABEL": request("light"), "SEED": free[0]["SEED"]})["PIXELS"], free[0]["PIXELS"]
    )
    case = pipelines.golden_case(served, asked)
    assert sorted(case.outputs) == ["PIXELS", "SEED"]
    with pytest.raises(RequestError, match="LABEL: 'green' is none of the model's: dark, light"):
        served.answer({"LABEL": request("green")})


def test_videos_are_looked_at_over_their_whole_length(tmp_path):
    networks.mover(tmp_path)
    served = pipelines.open(tmp_path)
    frames = [np.full((4, 4, 1), 60 * number, np.uint8) for number in range(5)]
    found = served.answer({"VIDEO": request(networks.gif(frames), networks.gif(frames[::-1]))})
    assert found["LABELS"].tolist() == [[b"brighter"], [b"darker"]]
    tensor = np.stack([one.astype(np.float32)[None, :, :, 0] / 255 for one in frames[::2]])[None]
    assert served.answer({"FRAMES": tensor})["LABELS"].tolist() == [[b"brighter"]]

"""Which transform a block has, and what each does to samples."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mms_workloads.contract import Data, Store
from mms_workloads.data import augmentation, blocks, dealing
from mms_workloads.sync.leases import Leases, Slice
from mms_workloads.tasks import texts

ALL = augmentation.IMAGE_TRANSFORMS


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    st.integers(0, 1 << 30),
    st.integers(1, 40),
    st.integers(1, 5),
    st.sampled_from(["Random", "Sequential"]),
    st.integers(1, 7),
)
@settings(max_examples=40)
def test_each_block_is_seen_under_each_transform_whoever_comes_and_goes(
    seed: int, count: int, workers: int, sharding: str, transforms: int
) -> None:
    """Leases as the master deals them, while workers are lost and join."""
    names, rng = ALL[:transforms], random.Random(seed)
    leases = Leases.start(
        Data.model_validate({"store": Store(uri="file:///x"), "sharding": sharding}), 3, transforms, range(count), count
    )
    seen: dict[int, list[str]] = {block: [] for block in range(count)}
    by_epoch: dict[int, Counter[str]] = {epoch: Counter() for epoch in range(transforms)}
    present = set(range(workers))
    while not leases.done():
        if rng.random() < 0.2:
            gone = rng.choice(sorted(present))
            leases.give_back([gone])
            present.discard(gone)
            present.add(max(present, default=gone) + 1)
        rank = rng.choice(sorted(present))
        lease = leases.take(rank)
        if lease is None:
            leases.give_back()
            continue
        if rng.random() < 0.3:
            leases.give_back([rank])  # it dies before its work is part of the parameters
            continue
        name = dealing.chosen(names, lease.block, lease.data_epoch)
        leases.commit([Slice(lease.data_epoch, lease.block, 0, 1, 1)])
        seen[lease.block].append(name)
        by_epoch[lease.data_epoch][name] += 1
    assert all(sorted(under) == sorted(names) for under in seen.values()), "each once in as many data epochs"
    for counts in by_epoch.values():
        held = [counts[name] for name in names]
        assert max(held) - min(held) <= 1, "all in equal parts"


@given(st.integers(2, 9), st.integers(1, 60), st.integers(0, 20), st.integers(1, 6))
def test_ranks_of_a_round_have_different_transforms(names: int, count: int, epoch: int, members: int) -> None:
    """Blocks are dealt around the ring: rank r of round i has block i * members + r."""
    names_ = [f"t{i}" for i in range(names)]
    for start in range(0, count, members):
        dealt = [dealing.chosen(names_, b, epoch) for b in range(start, min(count, start + members))]
        assert len(set(dealt)) == min(len(dealt), names)


@given(st.lists(st.integers(0, 9000), min_size=1, max_size=8), st.integers(100, 1000))
def test_blocks_of_different_sizes_hold_each_byte_once(sizes: list[int], block_bytes: int) -> None:
    varied = blocks.cut(sizes, block_bytes, varied=True)
    held = {(s.file, at) for block in varied for s in block for at in range(s.start, s.end or 0)}
    assert len(held) == sum(sizes) == sum((s.end or 0) - s.start for block in varied for s in block)
    lengths = [sum((s.end or 0) - s.start for s in block) for block in varied[:-1]]
    assert all(block_bytes // 2 <= length <= block_bytes + block_bytes // 2 for length in lengths)
    if len(lengths) >= 3:
        assert len(set(lengths)) > 1
        assert sum(lengths[:3]) == pytest.approx(3 * block_bytes, abs=3)


def test_without_transforms_nothing_is_done() -> None:
    assert dealing.chosen((), 7, 3) == "Identity"


@pytest.mark.parametrize("name", [name for name in ALL if name != "Mixup"])
@pytest.mark.parametrize("shape", [(20, 1, 12, 12), (9, 3, 16, 20), (5, 4, 3, 10, 12), (1, 3, 8, 8), (0, 3, 8, 8)])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_a_transform_keeps_shape_type_and_range(name: str, shape: tuple[int, ...], kind: torch.dtype) -> None:
    pixels = torch.randint(0, 256, shape, generator=seeded(), dtype=torch.uint8)
    pixels = pixels if kind == torch.uint8 else pixels.float() / 255
    before = pixels.clone()
    made = augmentation.apply_images(name, pixels, seeded())
    assert (made.shape, made.dtype) == (pixels.shape, pixels.dtype)
    assert torch.equal(pixels, before), "what was given stays as it is"
    assert torch.equal(made, augmentation.apply_images(name, pixels, seeded())), "the same from the same generator"
    if pixels.numel():
        assert float(made.min()) >= 0
        assert float(made.max()) <= (255 if kind == torch.uint8 else 1)
        assert (name == "Identity") == torch.equal(made, pixels)


@pytest.mark.parametrize("name", ["Crop", "Rotate", "Colour", "Noise"])
def test_samples_of_a_batch_are_changed_in_different_ways(name: str) -> None:
    one = torch.randint(0, 256, (3, 16, 16), generator=seeded(), dtype=torch.uint8)
    made = augmentation.apply_images(name, one.expand(64, -1, -1, -1).clone(), seeded())
    assert len({sample.numpy().tobytes() for sample in made}) >= 5


def test_all_frames_of_a_video_move_alike() -> None:
    still = torch.randint(0, 256, (6, 1, 3, 16, 16), generator=seeded(), dtype=torch.uint8).expand(-1, 5, -1, -1, -1)
    for name in ("Flip", "Crop", "Rotate", "Colour"):
        made = augmentation.apply_images(name, still.clone(), seeded())
        assert torch.equal(made, made[:, :1].expand_as(made)), name


@pytest.mark.parametrize("name", ["Flip", "Crop", "Rotate"])
def test_boxes_follow_their_pixels(name: str) -> None:
    pixels = torch.zeros(40, 1, 64, 64)
    boxes = torch.zeros(40, 3, 4)
    generator = seeded(5)
    for i in range(40):
        x, y = (int(v) for v in torch.randint(18, 34, (2,), generator=generator))
        pixels[i, :, y : y + 12, x : x + 9] = 1
        boxes[i, 0] = torch.tensor([x, y, x + 9, y + 12]) / 64
    made, moved = augmentation.apply_images(name, pixels, seeded(), boxes=boxes)
    assert torch.equal(moved[:, 1:], torch.zeros(40, 2, 4)), "what fills up stays empty"
    for image, box in zip(made, moved[:, 0] * 64, strict=True):
        rows, columns = torch.where(image[0] > 0.5)
        seen = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        slack = 4.0 if name == "Rotate" else 1.5  # the hull of a turned box is larger than what is in it
        assert float((seen - box).abs().max()) <= slack
    assert not torch.allclose(moved[:, 0], boxes[:, 0], atol=0.5 / 64)


def test_a_box_that_is_cropped_away_has_no_area() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.01, 0.01]]]).expand(64, 1, 4).clone()
    _, moved = augmentation.apply_images("Crop", torch.zeros(64, 1, 50, 50), seeded(), boxes=boxes)
    gone = moved[:, 0, 2] <= moved[:, 0, 0]
    assert bool(gone.any())
    assert torch.equal(moved[gone], torch.zeros_like(moved[gone]))


def test_mixup_mixes_each_sample_with_its_partner() -> None:
    pixels = torch.randint(0, 256, (10, 1, 4, 4), generator=seeded(), dtype=torch.uint8)
    mixed, partner, part = augmentation.mixup(pixels, seeded())
    own = part.view(-1, 1, 1, 1)
    assert torch.allclose(mixed, own * pixels.float() + (1 - own) * pixels[partner].float())
    assert sorted(partner.tolist()) == list(range(10))


# Sound

LENGTHS = torch.tensor([4000, 1000, 2500])


def sound() -> torch.Tensor:
    audio = torch.randn(3, 4000, generator=seeded())
    for row, length in enumerate(LENGTHS):
        audio[row, int(length) :] = 0
    return audio


@pytest.mark.parametrize("name", augmentation.AUDIO_TRANSFORMS)
def test_sound_is_changed_within_its_length(name: str) -> None:
    audio = sound()
    made = augmentation.apply_audio(name, audio, LENGTHS, seeded())
    assert (made.shape, made.dtype) == (audio.shape, audio.dtype)
    assert torch.equal(made, augmentation.apply_audio(name, audio, LENGTHS, seeded()))
    for row, length in enumerate(LENGTHS):
        assert float(made[row, int(length) :].abs().sum()) == 0
        assert (name == "Identity") == torch.equal(made[row], audio[row])


def test_a_time_mask_silences_a_part() -> None:
    audio = sound()
    made = augmentation.apply_audio("TimeMask", audio, LENGTHS, seeded())
    for row, length in enumerate(LENGTHS):
        silent = (made[row] != audio[row]).nonzero()[:, 0]
        assert float(made[row][silent].abs().sum()) == 0
        assert 0 < len(silent) <= augmentation.MASKED * length
        assert int(silent[-1] - silent[0]) + 1 == len(silent), "one span"


def test_a_frequency_mask_takes_a_band_away() -> None:
    audio = torch.randn(4, 4096, generator=seeded())
    made = augmentation.apply_audio("FrequencyMask", audio, torch.full((4,), 4096), seeded())
    power, left = torch.fft.rfft(audio).abs(), torch.fft.rfft(made).abs()
    for row in range(4):
        gone = (left[row] < 1e-2 * power[row]).nonzero()[:, 0]
        assert 0 < len(gone) <= augmentation.MASKED * left.shape[1]
        kept = torch.ones(left.shape[1], dtype=torch.bool)
        kept[gone] = False
        assert torch.allclose(left[row][kept], power[row][kept], rtol=1e-2, atol=1e-2)


def test_another_medium_s_transform_is_refused() -> None:
    with pytest.raises(ValueError, match="no transform of sound"):
        augmentation.apply_audio("Flip", sound(), LENGTHS, seeded())
    with pytest.raises(ValueError, match="no transform of text"):
        augmentation.apply_text("Flip", torch.ones(1, 4, dtype=torch.int64), torch.ones(1, 4), seeded(), unknown=1)


# Text


def words() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = torch.arange(2, 42).expand(30, 40).clone()
    mask = torch.ones_like(tokens)
    mask[:, 35:] = 0
    return tokens, mask, tokens * 10


def test_dropped_words_become_unknown() -> None:
    tokens, mask, tags = words()
    made, same = augmentation.apply_text("WordDropout", tokens, mask, seeded(), unknown=1, tags=tags)
    assert same is tags
    changed = made != tokens
    assert bool((made[changed] == 1).all())
    assert not bool(changed[:, 35:].any())
    assert 0.05 < float(changed[:, :35].float().mean()) < 0.15


def test_swapped_words_take_their_tags_with_them() -> None:
    tokens, mask, tags = words()
    made, moved = augmentation.apply_text("WordSwap", tokens, mask, seeded(), unknown=1, tags=tags)
    assert moved is not None
    assert torch.equal(moved, made * 10)
    assert torch.equal(made.sort(dim=1).values, tokens), "none is lost"
    assert torch.equal(made[:, 35:], tokens[:, 35:])
    assert int((made - tokens).abs().max()) == 1, "with a neighbour"
    assert bool((made != tokens).any())


@pytest.mark.parametrize("name", ["WordDropout", "WordSwap"])
def test_what_a_tokenizer_puts_around_a_text_stays_there(name: str) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    special = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=special)
    held = texts.Words(tokenizer)
    tokens, mask, _ = held.numbers(["a b b a a odd " * (1 + i % 5) for i in range(40)], 100)
    made = texts.augmented({"tokens": tokens, "mask": mask}, held, name, seeded())["tokens"]
    for number in (0, 2, 3):
        assert torch.equal(made == number, tokens == number)
    assert not torch.equal(made, tokens)


def test_noise_is_as_loud_as_the_sound_however_long_the_others_are() -> None:
    audio = torch.randn(1, 4000, generator=seeded()) + 0.5
    padded = torch.cat((audio, torch.zeros(1, 36_000)), dim=1)
    lengths = torch.tensor([4000])
    level = float((augmentation.apply_audio("Noise", audio, lengths, seeded()) - audio).std())
    made = augmentation.apply_audio("Noise", padded, lengths, seeded())
    assert float((made[:, :4000] - audio).std()) == pytest.approx(level, rel=0.05)

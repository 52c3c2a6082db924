"""Image features are worked out once and are to the last bit what they were."""

import pytest
import torch
from merge_pico import same_bits
from transformers import AutoModelForImageTextToText

from merge.sweeping.features import remember_image_features


@pytest.fixture
def model(bf16_pair):
    return AutoModelForImageTextToText.from_pretrained(bf16_pair.vlm, dtype="auto").eval()


@pytest.fixture
def worked_out(model, monkeypatch) -> list[int]:
    """Tiles that went through the tower."""
    told: list[int] = []
    inner = model.model.vision_tower.forward

    def counting(pixel_values, *args, **kwargs):
        told.append(len(pixel_values))
        return inner(pixel_values, *args, **kwargs)

    monkeypatch.setattr(model.model.vision_tower, "forward", counting)
    return told


def tiles(number: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 3, 8, 8, generator=generator).bfloat16()


def features(model, pixels) -> torch.Tensor:
    with torch.no_grad():
        found = model.model.get_image_features(
            pixel_values=pixels, vision_feature_layer=-1, vision_feature_select_strategy="full"
        )
    return found.pooler_output


def test_the_same_batch_is_looked_up(model, worked_out):
    wanted = features(model, tiles(3))
    remember_image_features(model)
    for _ in range(3):
        assert same_bits(features(model, tiles(3)), wanted)
    assert worked_out == [3, 3]


@pytest.mark.parametrize(
    "other", [tiles(3, seed=1), tiles(2), tiles(3).flip(0), tiles(3).float().bfloat16() * 1.01]
)
def test_another_batch_is_not(other, model, worked_out):
    wanted = features(model, other)
    remember_image_features(model)
    features(model, tiles(3))
    assert same_bits(features(model, other), wanted)
    assert worked_out == [len(other), 3, len(other)]


def test_what_does_not_fit_is_worked_out_each_time(model, worked_out):
    wanted = features(model, tiles(3))
    size = wanted.nbytes
    remember_image_features(model, kept_bytes=size)
    for pixels in (tiles(3), tiles(3), tiles(1), tiles(1)):
        found = features(model, pixels)
    assert worked_out == [3, 3, 1, 1]
    assert len(found) == 1


def test_what_is_written_into_a_result_is_not_kept(model, worked_out):
    wanted = features(model, tiles(3)).clone()
    remember_image_features(model)
    for _ in range(3):
        found = features(model, tiles(3))
        assert same_bits(found, wanted)
        found.zero_()


def test_generation_goes_through_it_too(model, worked_out):
    ids = torch.tensor([[1, *[5] * 4, 9]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": tiles(1)}
    wanted = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    remember_image_features(model)
    for _ in range(2):
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), wanted)
    assert worked_out == [1, 1]

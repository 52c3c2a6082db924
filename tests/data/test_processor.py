"""Which tokenizer or processor a model config leads to, and that both see the same tiles."""

from pathlib import Path
from typing import Any

import pytest
import torch
from data_pico import TILE, noise
from transformers import AutoProcessor, SiglipVisionConfig

from configs.errors import CheckpointError
from configs.schema import DecoderConfig, ModelConfig, ModelKind, VisionTowerConfig
from data.processor import (
    build_processing_class,
    compose_processor,
    load_processor,
    patch_size_of,
    texts_for_tokenizer,
)
from data.rows import Row, question
from data.tokenizer import train_tokenizer

WORDS = ["a few words to learn from"] * 3
PHOTO = (400, 300)


def compose(tokenizer: Any, *, crop_to_patches: bool) -> Any:
    return compose_processor(
        tokenizer,
        image_size=TILE,
        patch_size=4,
        downsample_factor=2,
        crop_to_patches=crop_to_patches,
        max_patches=4,
    )


@pytest.mark.parametrize(("crop_to_patches", "num_tiles"), [(False, 1), (True, 5)])
def test_users_of_the_model_see_the_tiles_it_was_trained_on(
    tokenizer: Any, tmp_path: Path, crop_to_patches: bool, num_tiles: int
) -> None:
    """AyaVisionProcessor asks for crops against what its image processor was told (5.23)."""
    processor = compose(tokenizer, crop_to_patches=crop_to_patches)
    processor.save_pretrained(tmp_path)
    image, plain = noise(*PHOTO), AutoProcessor.from_pretrained(tmp_path)
    trained_on = processor.image_processor([image], return_tensors="pt")["pixel_values"]
    assert len(trained_on) == num_tiles
    for users in (processor, plain, load_processor(str(tmp_path))):
        seen = users(text="<image>", images=[image], return_tensors="pt")["pixel_values"]
        assert torch.equal(seen, trained_on)


def test_one_tile_is_the_whole_picture_resized(tokenizer: Any) -> None:
    kind = type(compose(tokenizer, crop_to_patches=False).image_processor)
    half = [0.5, 0.5, 0.5]
    plain = kind(
        size={"height": TILE, "width": TILE}, crop_to_patches=False, image_mean=half, image_std=half
    )
    ours = compose(tokenizer, crop_to_patches=False).image_processor
    for size in ((1, 1), (TILE, TILE), PHOTO, (20, 300)):
        pixels = ours([noise(*size)], return_tensors="pt")["pixel_values"]
        expected = plain([noise(*size)], return_tensors="pt")["pixel_values"]
        assert torch.equal(pixels, expected)
        assert pixels.abs().max() <= 1


def test_a_saved_processor_that_says_no_crops_is_read_as_it_acts(
    tokenizer: Any, tmp_path: Path
) -> None:
    """As released ones may: called, it crops, so training on it must, too."""
    processor = compose(tokenizer, crop_to_patches=True)
    processor.image_processor.crop_to_patches = False
    processor.save_pretrained(tmp_path)
    loaded, image = load_processor(str(tmp_path)), noise(*PHOTO)
    called = loaded(text="<image>", images=[image], return_tensors="pt")["pixel_values"]
    alone = loaded.image_processor([image], return_tensors="pt")["pixel_values"]
    assert torch.equal(called, alone)
    counted = loaded.image_processor.get_number_of_image_patches(PHOTO[1], PHOTO[0], {})
    assert counted == len(called) == 5


def test_a_fresh_text_lm_has_a_tokenizer() -> None:
    config = ModelConfig(kind=ModelKind.text_lm, decoder=DecoderConfig(vocab_size=300))
    made = build_processing_class(config, WORDS)
    assert not hasattr(made, "image_processor")
    assert len(made) <= 300


def test_a_composed_model_has_a_processor_of_its_shape() -> None:
    config = ModelConfig(
        kind=ModelKind.compose,
        decoder=DecoderConfig(vocab_size=300),
        vision_tower=VisionTowerConfig(image_size=48, patch_size=6),
        downsample_factor=4,
        crop_to_patches=True,
        max_patches=3,
    )
    made = build_processing_class(config, WORDS)
    assert made.image_processor.size["height"] == made.image_processor.size["width"] == 48
    assert made.image_processor.max_patches == 3
    # (48 / 6 / 4) squared image tokens a tile
    text = made.replace_image_token({"num_patches": [1]}, 0)
    assert text.count("<|IMG_PATCH|>") == 4


def test_a_composed_model_takes_over_its_decoders_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    config = ModelConfig(kind=ModelKind.compose, decoder=DecoderConfig(path=str(tmp_path)))
    made = build_processing_class(config, [])
    assert made.tokenizer.get_vocab() == tokenizer.get_vocab()
    alone = build_processing_class(
        ModelConfig(kind=ModelKind.text_lm, decoder=DecoderConfig(path=str(tmp_path))), []
    )
    assert alone.get_vocab() == tokenizer.get_vocab()


def test_a_vlm_brings_its_own(processor: Any, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path / "vlm")
    train_tokenizer(WORDS, vocab_size=300).save_pretrained(tmp_path / "text")
    made = build_processing_class(ModelConfig(kind=ModelKind.vlm, path=str(tmp_path / "vlm")), [])
    assert made.image_token_id == processor.image_token_id
    with pytest.raises(CheckpointError, match="holds no processor for pictures; a text LM is"):
        build_processing_class(ModelConfig(kind=ModelKind.vlm, path=str(tmp_path / "text")), [])


def test_a_folder_that_holds_nothing(tmp_path: Path) -> None:
    for kind, config in {
        "processor": ModelConfig(kind=ModelKind.vlm, path=str(tmp_path)),
        "tokenizer": ModelConfig(ModelKind.text_lm, decoder=DecoderConfig(path=str(tmp_path))),
    }.items():
        with pytest.raises(CheckpointError, match=f"no {kind} in '{tmp_path}': "):
            build_processing_class(config, [])


def test_the_patch_size_is_the_towers(tmp_path: Path) -> None:
    fresh = ModelConfig(ModelKind.compose, vision_tower=VisionTowerConfig(patch_size=8))
    assert patch_size_of(fresh) == 8
    SiglipVisionConfig(patch_size=14).save_pretrained(tmp_path)
    loaded = VisionTowerConfig(path=str(tmp_path), patch_size=8)
    assert patch_size_of(ModelConfig(ModelKind.compose, vision_tower=loaded)) == 14


def test_a_tokenizer_learns_from_the_rows_and_the_questions_to_come() -> None:
    rows = [Row("1", "a", "en", question("asked", "told"))]
    texts = list(texts_for_tokenizer(rows, ["fr"]))
    assert texts[:2] == ["asked", "told"]
    assert "Traduis en français." in texts
    assert not any("Translate" in text for text in texts)

"""Which tokenizer or processor a model config leads to, and that both see the same tiles."""

from pathlib import Path
from typing import Any

import pytest
import torch
from data_pico import TILE, noise
from pico_families import make_tokenizer
from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Siglip2Config,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipVisionConfig,
)

from configs.errors import CheckpointError
from configs.schema import DecoderConfig, ModelConfig, ModelKind, VisionTowerConfig
from data.processor import (
    build_processing_class,
    compose_processor,
    load_processor,
    texts_for_tokenizer,
    tile_shape,
)
from data.rows import Row, question
from data.tokenizer import prepare_for_images, train_tokenizer

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


# ------------------------------------------------------------------------ the tower's tiles


def shape_of(tower: VisionTowerConfig, downsample_factor: int = 2) -> tuple[int, int]:
    return tile_shape(
        ModelConfig(ModelKind.compose, vision_tower=tower, downsample_factor=downsample_factor)
    )


def test_a_fresh_tower_has_the_shape_that_is_configured() -> None:
    assert shape_of(VisionTowerConfig(patch_size=4)) == (64, 4)
    assert shape_of(VisionTowerConfig(patch_size=8, image_size=48)) == (48, 8)


@pytest.mark.parametrize(
    ("own", "given", "factor", "expected"),
    [
        ((384, 14), None, 2, 364),  # SigLIP2 so400m: 27 x 27, used at 26 x 26 (arXiv 2505.08751)
        ((224, 14), None, 2, 224),
        ((384, 16), None, 2, 384),
        ((378, 14), None, 2, 364),
        ((512, 16), None, 3, 480),
        ((384, 14), None, 3, 384),  # 27 x 27 is what it is, at the size it was trained with
        ((384, 14), None, 1, 384),
        ((384, 14), 448, 2, 448),
    ],
)
def test_a_loaded_tower_is_used_at_the_largest_size_that_can_be_shuffled(
    own: tuple[int, int], given: int | None, factor: int, expected: int, tmp_path: Path
) -> None:
    SiglipVisionConfig(image_size=own[0], patch_size=own[1]).save_pretrained(tmp_path)
    tower = VisionTowerConfig(path=str(tmp_path), image_size=given, patch_size=8)
    assert shape_of(tower, factor) == (expected, own[1])


def test_the_change_of_size_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    SiglipVisionConfig(image_size=384, patch_size=14).save_pretrained(tmp_path)
    with caplog.at_level("INFO"):
        shape_of(VisionTowerConfig(path=str(tmp_path)))
    assert "used at 364 pixels; at its own 384 the grid is 27 x 27, which" in caplog.text


def test_the_tower_of_a_whole_siglip_and_of_naflex(tmp_path: Path) -> None:
    SiglipConfig(vision_config={"image_size": 384, "patch_size": 14}).save_pretrained(
        tmp_path / "a"
    )
    assert shape_of(VisionTowerConfig(path=str(tmp_path / "a"))) == (364, 14)
    Siglip2Config(vision_config={"num_patches": 256}).save_pretrained(tmp_path / "b")
    assert shape_of(VisionTowerConfig(path=str(tmp_path / "b"))) == (256, 16)
    Siglip2VisionConfig(num_patches=225, patch_size=14).save_pretrained(tmp_path / "c")
    assert shape_of(VisionTowerConfig(path=str(tmp_path / "c"))) == (196, 14)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (384, r"at 384 pixels the vision tower has 27 x 27 patches, which "
              r"model.downsample_factor=2 does not divide; set model.vision_tower.image_size, "
              r"for example 364"),
        (7, r"has 0 x 0 patches, .* for example 28"),
    ],
)  # fmt: skip
def test_a_size_that_cannot_be_shuffled(size: int, message: str, tmp_path: Path) -> None:
    SiglipVisionConfig(image_size=384, patch_size=14).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        shape_of(VisionTowerConfig(path=str(tmp_path), image_size=size))


@pytest.mark.parametrize("config", [CLIPVisionConfig(), Dinov2Config(), CLIPConfig()])
def test_a_tower_of_another_kind(config: Any, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    message = rf"is a {config.model_type}, but a vision tower is a SigLIP or SigLIP2 model"
    with pytest.raises(CheckpointError, match=message):
        shape_of(VisionTowerConfig(path=str(tmp_path)))


def test_a_composed_model_reads_a_loaded_towers_shape(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "text")
    SiglipVisionConfig(image_size=36, patch_size=4).save_pretrained(tmp_path / "tower")
    made = build_processing_class(
        ModelConfig(
            ModelKind.compose,
            decoder=DecoderConfig(path=str(tmp_path / "text")),
            vision_tower=VisionTowerConfig(path=str(tmp_path / "tower")),
        ),
        [],
    )
    assert (made.img_size, made.patch_size) == (32, 8)
    assert made.image_processor.size["height"] == 32


def test_pictures_of_other_families_are_saved_with_their_own_names(tmp_path: Path) -> None:
    made = compose(prepare_for_images(make_tokenizer("gemma3_text")), crop_to_patches=True)
    made.save_pretrained(tmp_path)
    for processor in (made, AutoProcessor.from_pretrained(tmp_path)):
        assert processor.image_token == "<start_of_image>"
        called = processor(text="<start_of_image>q", images=[noise(*PHOTO)])
        assert len(called["pixel_values"]) == 5
        assert called["input_ids"][0].count(processor.image_token_id) == 5 * 16
        told = processor.tokenizer.decode(called["input_ids"][0])
        assert "<|TILE|>_1<|IMG_PATCH|>" in told
        assert "<|TILE_GLOBAL|><|IMG_PATCH|>" in told


def test_a_tokenizer_learns_from_the_rows_and_the_questions_to_come() -> None:
    rows = [Row("1", "a", "en", question("asked", "told"))]
    texts = list(texts_for_tokenizer(rows, ["fr"]))
    assert texts[:2] == ["asked", "told"]
    assert "Traduis en français." in texts
    assert not any("Translate" in text for text in texts)

"""Towers: whole or in half, at another size, of NaFlex; their weights are those of the file."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Siglip2Config,
    Siglip2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from configs.errors import CheckpointError
from configs.schema import VisionTowerConfig
from train.model.vision_tower import (
    POSITIONS,
    build_vision_tower,
    from_naflex,
    load_tower,
    resample_positions,
)

SIZES = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
TEXT = SIZES | dict(vocab_size=32)
F32 = torch.float32


def shake(model: Any) -> Any:
    """Random values everywhere: norms and biases too."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def make_tower(grid: int, **changes: Any) -> Any:
    """A tower of grid x grid patches of 4 pixels."""
    sizes = SIZES | dict(image_size=4 * grid, patch_size=4, vision_use_head=False) | changes
    return shake(SiglipVisionModel(SiglipVisionConfig(**sizes)))


def make_naflex(grid: int = 8, **changes: Any) -> Any:
    config = Siglip2VisionConfig(**SIZES | dict(num_patches=grid * grid, patch_size=4) | changes)
    return shake(Siglip2VisionModel(config))


def load(folder: Any, image_size: int, dtype: torch.dtype = F32) -> Any:
    config = VisionTowerConfig(path=str(folder))
    return build_vision_tower(config, image_size=image_size, dtype=dtype)


def states(tower: Any, pixels: torch.Tensor) -> list[torch.Tensor]:
    """The states of all layers of a fixed-resolution tower."""
    with torch.no_grad():
        out = tower(pixels, output_hidden_states=True)
    return [*out.hidden_states, out.last_hidden_state]


def naflex_states(tower: Any, pixels: torch.Tensor) -> list[torch.Tensor]:
    """The states of all layers of a NaFlex tower, patches cut by its own image processor."""
    patch, dtype = tower.config.patch_size, pixels.dtype
    side = pixels.shape[-1] // patch
    cut = [convert_image_to_patches(picture.float().numpy(), patch) for picture in pixels]
    patches = torch.stack([torch.from_numpy(rows) for rows in cut]).to(dtype)
    with torch.no_grad():
        out = tower(
            patches,
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int32),
            spatial_shapes=torch.tensor([[side, side]] * len(pixels)),
            output_hidden_states=True,
        )
    return [*out.hidden_states, out.last_hidden_state]


def worst(one: list[torch.Tensor], two: list[torch.Tensor]) -> float:
    """The largest difference, as a share of the largest state."""
    assert len(one) == len(two) >= 3
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, two, strict=True))


# ------------------------------------------------------------------------------ positions


def ramp(grid: int) -> torch.Tensor:
    """[P, V] positions that rise evenly across the picture, from 0 to 1 in x and to 10 in y."""
    centres = (torch.arange(grid) + 0.5) / grid
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, 10 * y] * 8, dim=-1).reshape(grid * grid, 16)


def positions(tower: Any) -> torch.Tensor:
    state: dict[str, torch.Tensor] = tower.state_dict()
    return state[POSITIONS]


@pytest.mark.parametrize(("old", "new"), [(27, 26), (9, 8), (8, 12)])
def test_positions_keep_their_place_in_the_picture(old, new):
    """An even ramp is the same ramp after resampling; its edges, held flat, are left out.

    Worst measured 3.5e-3, where one patch is 10 / 9.
    """
    tower = make_tower(old)
    with torch.no_grad():
        positions(tower).copy_(ramp(old))
    resampled = resample_positions(tower, 4 * new)
    found, wanted = (t.reshape(new, new, 16) for t in (positions(resampled), ramp(new)))
    inner = slice(3, new - 3)
    torch.testing.assert_close(found[inner, inner], wanted[inner, inner], rtol=0, atol=0.01)
    assert resampled.config.image_size == 4 * new
    assert resampled(torch.randn(1, 3, 4 * new, 4 * new)).last_hidden_state.shape[1] == new * new


def test_resampling_changes_nothing_else():
    tower = make_tower(9)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    after = resample_positions(tower, 32).state_dict()
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == [POSITIONS]


def test_the_size_it_has_is_not_resampled():
    tower = make_tower(9)
    assert resample_positions(tower, 36) is tower


def test_a_resampled_tower_is_one_of_that_size(tmp_path):
    """It is saved, loaded and run as any; no weight but positions is allocated a second time."""
    tower, pixels = make_tower(9), torch.randn(2, 3, 32, 32)
    places = {name: value.data_ptr() for name, value in tower.state_dict().items()}
    resampled = resample_positions(tower, 32)
    moved = {n for n, v in resampled.state_dict().items() if v.data_ptr() != places[n]}
    assert moved == {POSITIONS}
    assert not [name for name, value in resampled.named_buffers() if value.is_meta]
    resampled.save_pretrained(tmp_path)
    again: Any = SiglipVisionModel.from_pretrained(tmp_path)
    assert worst(states(again, pixels), states(resampled, pixels)) == 0


# --------------------------------------------------------------------------------- NaFlex


@pytest.mark.parametrize(("grid", "side"), [(8, 8), (16, 16), (16, 26), (8, 6), (9, 8)])
def test_naflex_weights_see_a_square_tile_as_its_own_class_does(grid, side):
    """All layers' states; as a share of the largest, worst measured 9.5e-7."""
    naflex, pixels = make_naflex(grid), torch.randn(2, 3, 4 * side, 4 * side)
    wanted = naflex_states(naflex, pixels)
    fixed = from_naflex(naflex, 4 * side)
    assert type(fixed) is SiglipVisionModel
    assert fixed.config.image_size == 4 * side
    assert worst(states(fixed, pixels), wanted) < 5e-6
    # A turned picture has other states: the order of pixels in a patch is told apart.
    assert worst(states(fixed, pixels.transpose(2, 3)), wanted) > 0.05
    assert worst(states(fixed, pixels.flip(1)), wanted) > 0.05


def test_naflex_in_half_precision_is_resampled_in_float32():
    naflex, pixels = make_naflex(16).bfloat16(), torch.randn(1, 3, 40, 40).bfloat16()
    wanted = naflex_states(naflex, pixels)
    fixed = from_naflex(naflex, 40)
    assert fixed.dtype == torch.bfloat16
    assert worst(states(fixed, pixels), wanted) < 0.02  # measured 0


@pytest.mark.parametrize("whole", [False, True])
def test_naflex_from_a_folder(whole, tmp_path):
    naflex = make_naflex()
    if whole:
        config = Siglip2Config(text_config=TEXT, vision_config=naflex.config.to_dict())
        both = shake(Siglip2Model(config))
        both.save_pretrained(tmp_path)
        naflex = both.vision_model
    else:
        naflex.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 24, 24)
    tower = load(tmp_path, 24)
    assert worst(states(tower, pixels), naflex_states(naflex, pixels)) < 5e-6
    assert not [name for name in tower.state_dict() if name.startswith("head.")]
    half = load(tmp_path, 24, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


# ------------------------------------------------------------------------------ from folders


@pytest.mark.parametrize("use_head", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_a_tower_from_a_folder(whole, use_head, tmp_path):
    """What the hub has: a tower alone, or text and vision in one, with a pooling head or not."""
    tower, pixels = make_tower(9, vision_use_head=use_head), torch.randn(2, 3, 36, 36)
    if whole:
        both = shake(SiglipModel(SiglipConfig(
            text_config=TEXT, vision_config=tower.config.to_dict()
        )))  # fmt: skip
        both.save_pretrained(tmp_path)
        tower = both.vision_model
    else:
        tower.save_pretrained(tmp_path)
    loaded = load(tmp_path, 36)
    assert worst(states(loaded, pixels), states(tower, pixels)) == 0
    assert loaded.config.vision_use_head is False
    assert not [name for name in loaded.state_dict() if name.startswith("head.")]
    smaller = load(tmp_path, 32)
    assert positions(smaller).shape[0] == 8 * 8


def test_a_tower_with_the_names_of_older_files(tmp_path):
    tower, pixels = make_tower(8), torch.randn(1, 3, 32, 32)
    tower.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    names = {
        f"vision_model.{n.removeprefix('vision_model.')}": v for n, v in load_file(file).items()
    }
    names["vision_model.embeddings.position_ids"] = torch.arange(64)[None]
    save_file(names, file, metadata={"format": "pt"})
    assert worst(states(load(tmp_path, 32), pixels), states(tower, pixels)) == 0


def test_weights_left_over_are_told(tmp_path):
    make_tower(8).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"registers": torch.ones(4, 16)}, file, metadata={"format": "pt"})
    message = r"holds 1 weights that a SiglipVisionModel has no place for, .*: registers"
    with pytest.raises(CheckpointError, match=message):
        load_tower(str(tmp_path), image_size=32, dtype=F32)


def test_a_tower_of_another_kind_is_refused(tmp_path):
    CLIPVisionModel(CLIPVisionConfig(**SIZES, image_size=16, patch_size=4)).save_pretrained(
        tmp_path
    )
    with pytest.raises(
        CheckpointError, match="is a clip_vision_model, but a vision tower is a Sig"
    ):
        load_tower(str(tmp_path), image_size=16, dtype=F32)

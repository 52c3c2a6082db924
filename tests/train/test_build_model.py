"""Composing and loading: weights are those of the files, and what would be made up is refused."""

import shutil
from typing import Any

import pytest
import torch
from pico_models import VOCABULARY, make_text_lm
from pico_runs import FAST, SCENES, grafted_on, vlm, weights
from safetensors.torch import save_file
from transformers import (
    CohereTokenizer,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from configs.command import load_config
from configs.errors import CheckpointError
from configs.schema import DecoderConfig, VisionTowerConfig
from data.tokenizer import IMAGE_TOKENS, TURN_TOKENS, prepare_for_images
from train.build_model import (
    build_decoder,
    build_vision_tower,
    compose,
    load_text_lm,
    load_vlm,
    resample_positions,
)
from train.parts import map_names
from train.run import train

POSITIONS = "embeddings.position_embedding.weight"


class Tokenizer:
    """As much of a tokenizer as `compose` looks at."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def convert_tokens_to_ids(self, token: str) -> int:
        assert token == "<|IMG_PATCH|>"
        return self.size - 1


def make_tower(grid: int, **changes: Any) -> Any:
    """A tower of grid x grid patches of 4 pixels, with random positions."""
    sizes = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        image_size=4 * grid, patch_size=4, vision_use_head=False,
    )  # fmt: skip
    torch.manual_seed(3)
    return SiglipVisionModel(SiglipVisionConfig(**(sizes | changes))).eval()


def compose_pico(*, tied: bool = True, size: int = VOCABULARY, grid: int = 4) -> tuple[Any, Any]:
    text_lm = make_text_lm("cohere2", tied=tied)
    return text_lm, compose(text_lm, make_tower(grid), Tokenizer(size), downsample_factor=2)


# ------------------------------------------------------------------------------ composing


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_text_logits_are_those_of_the_text_lm(tied):
    """To the last bit, once the factor that AyaVision leaves out is applied."""
    text_lm = make_text_lm("cohere2", tied=tied)
    ids = torch.arange(6, 40)[None]
    theirs = text_lm(input_ids=ids).logits
    ours = compose(text_lm, make_tower(4), Tokenizer(VOCABULARY), downsample_factor=2).eval()
    assert torch.equal(ours(input_ids=ids).logits * text_lm.config.logit_scale, theirs)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_tied_also_on_disk(tied, tmp_path):
    _, model = compose_pico(tied=tied)
    embedding, head = model.get_input_embeddings().weight, model.lm_head.weight
    assert (embedding is head) is tied
    model.save_pretrained(tmp_path)
    assert ("language_model.lm_head.weight" in weights(tmp_path)) is not tied
    again: Any = load_vlm(str(tmp_path), dtype=torch.float32)
    assert (again.get_input_embeddings().weight is again.lm_head.weight) is tied
    assert torch.equal(again.lm_head.weight, head)


def test_everything_is_real_and_in_place():
    text_lm, model = compose_pico()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert not [name for name, tensor in tensors if tensor.is_meta]
    assert model.model.language_model is text_lm.model
    projector = dict(model.model.multi_modal_projector.named_parameters())
    assert all(value.isfinite().all() for value in projector.values())
    assert all(value.std() > 0 for name, value in projector.items() if value.ndim > 1), projector
    assert model.config.alignment_intermediate_size == 7 * 32


def test_pictures_reach_the_decoder():
    _, model = compose_pico()
    ids = torch.tensor([[1, 7, *[VOCABULARY - 1] * 4, 9, 10]])
    picture = torch.randn(1, 3, 16, 16)
    one = model(input_ids=ids, pixel_values=picture).logits
    two = model(input_ids=ids, pixel_values=-picture).logits
    assert torch.equal(one[:, :2], two[:, :2])
    assert (one[:, 2:] - two[:, 2:]).abs().max() > 1e-3


def test_an_odd_grid_is_refused_with_a_size_that_works():
    message = r"has 5 x 5 patches, .*downsample_factor=2 does not divide; .* for example 16"
    with pytest.raises(CheckpointError, match=message):
        compose_pico(grid=5)


def test_new_tokens_get_new_rows_and_old_rows_stay():
    before = make_text_lm("cohere2").get_input_embeddings().weight.clone()
    _, model = compose_pico(size=VOCABULARY + 3)
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == VOCABULARY + 3
    assert torch.equal(weight[:VOCABULARY], before)
    assert model.lm_head.weight is weight
    assert model.config.text_config.vocab_size == VOCABULARY + 3
    assert model.config.image_token_index == VOCABULARY + 2


def test_a_padded_vocabulary_is_kept():
    """Embeddings have often more rows than the tokenizer has tokens; none is cut off."""
    _, model = compose_pico(size=VOCABULARY - 8)
    assert model.get_input_embeddings().weight.shape[0] == VOCABULARY


def test_a_tokenizer_without_image_tokens(tmp_path):
    """From a text LM's folder whose tokenizer knows no pictures to a VLM that trains."""
    texts = ["a text", "and another one", *"0123456789"]
    tokenizer = CohereTokenizer().train_new_from_iterator(
        texts, 320, new_special_tokens=TURN_TOKENS, show_progress=False
    )
    size = len(tokenizer)
    config = DecoderConfig(hidden_size=32, intermediate_size=48, num_attention_heads=4)
    text_lm: Any = build_decoder(config, tokenizer, dtype=torch.float32)
    text_lm.save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    assert prepare_for_images(tokenizer) == len(IMAGE_TOKENS)

    overrides = [*grafted_on(tmp_path / "text"), *SCENES, "stage=align", "data.max_tokens=1024"]
    config = load_config("train", [*FAST, *overrides, f"output_dir={tmp_path}/run"])
    train(config)
    old, new = weights(tmp_path / "text"), weights(tmp_path / "run/export")
    rows = new["language_model.model.embed_tokens.weight"]
    assert rows.shape[0] == size + len(IMAGE_TOKENS)
    assert torch.equal(rows[:size], old["model.embed_tokens.weight"])


# ------------------------------------------------------------------------------ the tower


def ramp(grid: int) -> torch.Tensor:
    """[P, V] positions that rise evenly across the picture, from 0 to 1 in x and to 10 in y."""
    centres = (torch.arange(grid) + 0.5) / grid
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, 10 * y] * 8, dim=-1).reshape(grid * grid, 16)


def positions(tower: Any) -> torch.Tensor:
    state = tower.state_dict()
    return state[next(name for name in state if name.endswith(POSITIONS))]


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
    assert [name.endswith(POSITIONS) for name in changed] == [True]


def test_the_size_it_has_is_not_resampled():
    tower = make_tower(9)
    assert resample_positions(tower, 36) is tower


def test_the_tower_of_a_whole_siglip(tmp_path):
    """What the hub has: text and vision in one folder, with a pooling head."""
    torch.manual_seed(4)
    vision = make_tower(9, vision_use_head=True).config.to_dict()
    text = dict(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                num_attention_heads=2)  # fmt: skip
    whole = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    whole.save_pretrained(tmp_path)
    config = VisionTowerConfig(path=str(tmp_path), image_size=36)
    tower = build_vision_tower(config, dtype=torch.float32).eval()
    picture = torch.randn(1, 3, 36, 36)
    with torch.no_grad():
        wanted = whole.vision_model(picture).last_hidden_state
        assert torch.equal(tower(picture).last_hidden_state, wanted)
    smaller = build_vision_tower(
        VisionTowerConfig(path=str(tmp_path), image_size=32), dtype=torch.float32
    )
    assert positions(smaller).shape[0] == 8 * 8


# ------------------------------------------------------------------------------ loading


def test_a_text_lm_is_no_vlm(pipeline, tmp_path):
    overrides = [*FAST, *vlm(pipeline.text), *SCENES, "stage=sft", f"output_dir={tmp_path}/run"]
    with pytest.raises(CheckpointError, match=r"holds no processor for pictures"):
        train(load_config("train", overrides))
    with pytest.raises(CheckpointError, match=r"no vision-language model in|lacks \d+ weights"):
        load_vlm(str(pipeline.text), dtype=torch.float32)
    assert not (tmp_path / "run").exists()


def test_a_vlm_is_no_text_lm(pipeline):
    with pytest.raises(CheckpointError, match=r"no text LM in|lacks \d+ weights"):
        load_text_lm(str(pipeline.sft), dtype=torch.float32)


def remove(folder: Any, *endings: str) -> None:
    kept = {name: value for name, value in weights(folder).items() if not name.endswith(endings)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name", ["layers.1.mlp.up_proj.weight", "multi_modal_projector.linear_1.bias", POSITIONS]
)
def test_a_missing_weight_is_refused(name, pipeline, tmp_path):
    shutil.copytree(pipeline.sft, tmp_path / "vlm")
    remove(tmp_path / "vlm", name)
    with pytest.raises(CheckpointError, match=rf"lacks 1 weights .*random: .*{name}"):
        load_vlm(str(tmp_path / "vlm"), dtype=torch.float32)


def test_a_weight_of_another_shape_is_refused(pipeline, tmp_path):
    shutil.copytree(pipeline.text, tmp_path / "text")
    tensors = weights(tmp_path / "text")
    tensors["model.norm.weight"] = torch.ones(33)
    save_file(tensors, tmp_path / "text/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight \(there \[33\], wanted \[64\]"):
        load_text_lm(str(tmp_path / "text"), dtype=torch.float32)


def test_a_folder_that_is_not_there():
    with pytest.raises(CheckpointError, match="no text LM in '/nowhere': there is no such folder"):
        load_text_lm("/nowhere", dtype=torch.float32)


def test_a_loaded_vlm_is_the_file(pipeline):
    model = load_vlm(str(pipeline.sft), dtype=torch.float32)
    stored = weights(pipeline.sft)
    places = map_names("aya_vision", dict(model.named_parameters()))
    live = {place: model.get_parameter(name) for name, place in places.items()}
    wanted = {place: stored[name] for name, place in map_names("aya_vision", stored).items()}
    assert live.keys() == wanted.keys()
    assert all(torch.equal(live[place], wanted[place]) for place in live)

"""train.model.parts against what the real classes name in memory and write to disk."""

import pytest
import torch
from pico_vlms import FAMILIES, SIGLIP, TEXT_CHANGES, make_text, make_vlm
from safetensors import safe_open
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    SiglipVisionConfig,
)

from configs.errors import CheckpointError
from train.model.parts import PARTS, TEXT_MODEL_TYPES, VLM_MODEL_TYPES, find_part, map_names


def make(model_type):
    family = FAMILIES[model_type]
    text = make_text(family.text, tied=family.tied)
    return make_vlm(model_type, text), text


def names_on_disk(model, folder):
    model.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


def test_every_family_has_a_pico_model():
    assert FAMILIES.keys() == VLM_MODEL_TYPES.keys()
    assert TEXT_CHANGES.keys() == TEXT_MODEL_TYPES.keys()


@pytest.mark.parametrize("model_type", VLM_MODEL_TYPES)
def test_vlm_names_on_disk_and_in_memory_agree(model_type, tmp_path):
    model, text = make(model_type)
    text_names = set(text.state_dict())

    memory = map_names(model_type, model.state_dict())
    disk = map_names(model_type, names_on_disk(model, tmp_path))

    assert {place.part for place in memory.values()} == set(PARTS)
    assert {place.name for place in memory.values() if place.part == "decoder"} == text_names
    tied = {place for place in memory.values() if place.name == "lm_head.weight"}
    assert set(memory.values()) - set(disk.values()) <= tied
    assert set(disk.values()) <= set(memory.values())


@pytest.mark.parametrize("model_type", VLM_MODEL_TYPES)
def test_parts_are_the_modules(model_type):
    """Each part holds exactly the tensors of its modules."""
    model, _ = make(model_type)
    family = FAMILIES[model_type]
    for name, place in map_names(model_type, model.state_dict()).items():
        if name.startswith((family.decoder, "lm_head.")):
            assert place.part == "decoder", name
        elif name.startswith(family.projector):
            assert place.part == "projector", name
        else:
            assert place.part == "vision_tower", name


@pytest.mark.parametrize("model_type", TEXT_MODEL_TYPES)
def test_a_graft_on_any_family_has_the_names_of_aya_vision(model_type, tmp_path):
    """Its decoder's names are those of the text LM, so that the two can be merged."""
    text = make_text(model_type)
    config = AyaVisionConfig(
        vision_config=SiglipVisionConfig(**SIGLIP, vision_use_head=False), text_config=text.config,
        alignment_intermediate_size=16, tie_word_embeddings=False,
    )  # fmt: skip
    model = AyaVisionForConditionalGeneration(config)
    wanted = set(text.state_dict())
    for names in (list(model.state_dict()), names_on_disk(model, tmp_path)):
        places = map_names("aya_vision", names).values()
        assert {place.name for place in places if place.part == "decoder"} == wanted
        assert {place.part for place in places} == set(PARTS)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", TEXT_MODEL_TYPES)
def test_text_names_are_canonical(model_type, tied, tmp_path):
    model = make_text(model_type, tied=tied)
    assert model.config.model_type == model_type
    for name in [*model.state_dict(), *names_on_disk(model, tmp_path)]:
        place = find_part(model_type, name)
        assert (place.part, place.name) == ("decoder", name)


@pytest.mark.parametrize(
    ("old", "part", "name"),
    [
        ("language_model.lm_head.weight", "decoder", "lm_head.weight"),
        ("language_model.model.norm.weight", "decoder", "model.norm.weight"),
        ("vision_tower.vision_model.head.probe", "vision_tower", "head.probe"),
        ("model.vision_tower.vision_model.head.probe", "vision_tower", "head.probe"),
        ("multi_modal_projector.linear_1.bias", "projector", "linear_1.bias"),
    ],
)
def test_names_before_4_52(old, part, name):
    place = find_part("aya_vision", old)
    assert (place.part, place.name) == (part, name)


@pytest.mark.parametrize(
    ("model_type", "name", "part", "canonical"),
    [
        ("llava_next", "image_newline", "projector", "image_newline"),
        ("llava_onevision", "model.image_newline", "projector", "image_newline"),
        ("qwen2_5_vl", "model.norm.weight", "decoder", "model.norm.weight"),
        ("qwen2_5_vl", "visual.merger.mlp.0.bias", "projector", "merger.mlp.0.bias"),
        ("qwen3_vl", "model.visual.deepstack_merger_list.2.norm.bias", "projector",
         "deepstack_merger_list.2.norm.bias"),
        ("qwen3_vl", "model.visual.pos_embed.weight", "vision_tower", "pos_embed.weight"),
        ("idefics3", "model.connector.modality_projection.proj.weight", "projector",
         "modality_projection.proj.weight"),
        ("gemma3", "multi_modal_projector.mm_soft_emb_norm.weight", "projector",
         "mm_soft_emb_norm.weight"),
    ],
)  # fmt: skip
def test_names_of_other_families(model_type, name, part, canonical):
    place = find_part(model_type, name)
    assert (place.part, place.name) == (part, canonical)


def test_unmapped_names_are_told_and_counted():
    names = [f"audio_tower.{i}" for i in range(7)] + ["lm_head.weight"]
    message = r"7 of 8 tensor names .* audio_tower\.0, .* audio_tower\.4 and 2 more"
    with pytest.raises(CheckpointError, match=message):
        map_names("aya_vision", names)


def test_two_names_of_one_tensor():
    with pytest.raises(CheckpointError, match=r"are both decoder 'lm_head.weight'"):
        map_names("aya_vision", ["lm_head.weight", "language_model.lm_head.weight"])


def test_unknown_model_type():
    with pytest.raises(CheckpointError, match=r"'qwen9' is not supported; known: aya_vision"):
        find_part("qwen9", "model.norm.weight")


def test_imports_no_torch():
    import subprocess
    import sys

    code = "import train.model.parts, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch is not None

"""train.model.parts against what the real classes name in memory and write to disk."""

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    CLIPVisionConfig,
    Cohere2Config,
    Cohere2ForCausalLM,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    CohereConfig,
    CohereForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
)

from configs.errors import CheckpointError
from train.model.parts import PARTS, TEXT_MODEL_TYPES, VLM_MODEL_TYPES, find_part, map_names

TEXT = dict(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
VISION = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=8,
    patch_size=2,
)
TEXT_CLASSES = {
    "cohere2": (Cohere2ForCausalLM, Cohere2Config),
    "cohere": (CohereForCausalLM, CohereConfig),
    "llama": (LlamaForCausalLM, LlamaConfig),
    "mistral": (MistralForCausalLM, MistralConfig),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    "gemma3_text": (Gemma3ForCausalLM, Gemma3TextConfig),
}


def make_vlm(model_type):
    """A pico VLM of the real class and the text config of its decoder."""
    if model_type == "llava":
        text, vision = LlamaConfig(**TEXT), CLIPVisionConfig(**VISION)
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
        return LlavaForConditionalGeneration(config)
    text, vision = Cohere2Config(**TEXT), SiglipVisionConfig(**VISION)
    sizes = dict(vision_config=vision, text_config=text, alignment_intermediate_size=16)
    if model_type == "aya_vision":
        config = AyaVisionConfig(image_token_index=5, **sizes)
        return AyaVisionForConditionalGeneration(config)
    config = Cohere2VisionConfig(image_token_id=5, **sizes)
    return Cohere2VisionForConditionalGeneration(config)


def names_on_disk(model, folder):
    model.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


@pytest.mark.parametrize("model_type", VLM_MODEL_TYPES)
def test_vlm_names_on_disk_and_in_memory_agree(model_type, tmp_path):
    model = make_vlm(model_type)
    text_class, _ = TEXT_CLASSES[model.config.text_config.model_type]
    text_names = set(text_class(model.config.text_config).state_dict())

    memory = map_names(model_type, model.state_dict())
    disk = map_names(model_type, names_on_disk(model, tmp_path))

    assert {place.part for place in memory.values()} == set(PARTS)
    assert {place.name for place in memory.values() if place.part == "decoder"} == text_names
    tied = {place for place in memory.values() if place.name == "lm_head.weight"}
    assert set(memory.values()) - set(disk.values()) <= tied
    assert set(disk.values()) <= set(memory.values())


@pytest.mark.parametrize("model_type", VLM_MODEL_TYPES)
def test_parts_are_the_modules(model_type):
    """Each part holds exactly the parameters of its module."""
    model = make_vlm(model_type)
    modules = {
        "vision_tower": model.model.vision_tower,
        "projector": model.model.multi_modal_projector,
    }
    places = map_names(model_type, model.state_dict())
    for part, module in modules.items():
        found = {place.name for place in places.values() if place.part == part}
        assert found == set(module.state_dict())


@pytest.mark.parametrize("model_type", TEXT_MODEL_TYPES)
def test_a_graft_on_any_family_has_the_names_of_aya_vision(model_type, tmp_path):
    """Its decoder's names are those of the text LM, so that the two can be merged."""
    text_class, config_class = TEXT_CLASSES[model_type]
    text = config_class(**TEXT, tie_word_embeddings=False)
    config = AyaVisionConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False), text_config=text,
        alignment_intermediate_size=16, tie_word_embeddings=False,
    )  # fmt: skip
    model = AyaVisionForConditionalGeneration(config)
    wanted = set(text_class(text).state_dict())
    for names in (list(model.state_dict()), names_on_disk(model, tmp_path)):
        places = map_names("aya_vision", names).values()
        assert {place.name for place in places if place.part == "decoder"} == wanted
        assert {place.part for place in places} == set(PARTS)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", TEXT_MODEL_TYPES)
def test_text_names_are_canonical(model_type, tied, tmp_path):
    text_class, config_class = TEXT_CLASSES[model_type]
    model = text_class(config_class(**TEXT, tie_word_embeddings=tied))
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
        ("multi_modal_projector.linear_1.bias", "projector", "linear_1.bias"),
    ],
)
def test_names_before_4_52(old, part, name):
    place = find_part("aya_vision", old)
    assert (place.part, place.name) == (part, name)


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

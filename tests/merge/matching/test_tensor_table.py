"""merge.matching.tensor_table: every tensor in one class, every misfit told."""

import pytest
import torch
from merge_pico import IMAGE_TOKEN, edit, edit_config

from configs.errors import CheckpointError
from merge.matching.plan import plan_merge
from merge.matching.tensor_table import build_table, check_roles, text_only
from merge.reading.checkpoint import read_checkpoint

NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"


def table(pair):
    return build_table(read_checkpoint(pair.vlm, "vlm"), read_checkpoint(pair.text, "text"))


def refuse(pair, message):
    with pytest.raises(CheckpointError, match=message):
        table(pair)


def put(name, value):
    return lambda tensors: tensors | {name: value}


def drop(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def test_classes(bf16_pair):
    plans = table(bf16_pair)
    by_part = {part: {p.tensor_class for p in plans if p.part == part} for part in
               ("vision_tower", "projector", "decoder")}  # fmt: skip
    assert by_part == {"vision_tower": {"copied"}, "projector": {"copied"}, "decoder": {"merged"}}
    rows = {plan.name: plan.vlm_rows for plan in plans if plan.vlm_rows}
    assert rows == {EMBEDDING: ((IMAGE_TOKEN, IMAGE_TOKEN + 1),)}
    assert all(plan.text.name == plan.name for plan in plans if plan.text)


def test_only_on_one_side(copy_pair):
    edit(copy_pair.text, drop(NORM))
    edit(copy_pair.text, put("model.extra", torch.ones(1)))
    refuse(copy_pair, rf"1 only in the vlm: {NORM}; 1 only in the text LM: model\.extra")


def test_other_shapes(copy_pair):
    edit(copy_pair.text, put(NORM, torch.ones(4)))
    refuse(copy_pair, r"1 of another shape: model.norm.weight \(vlm \[32\], text \[4\]\)")


def test_taller_text_vocabulary(copy_pair):
    edit(copy_pair.text, put(EMBEDDING, torch.ones(65, 32)))
    told = (
        r"embed_tokens.weight \(vlm \[64, 32\], text \[65, 32\]; its rows from 64 on may be dropped"
    )
    refuse(copy_pair, told + " only as padding, but it has no tokenizer.json to show that")


def test_quantised_dtype(copy_pair):
    edit(copy_pair.text, put(NORM, torch.ones(32, dtype=torch.int8)))
    refuse(copy_pair, r"of a dtype other than BF16, F16, F32: model.norm.weight .*text I8")


def test_unknown_names(copy_pair):
    edit(copy_pair.vlm, put("audio_tower.x", torch.ones(1)))
    refuse(copy_pair, "1 of 89 tensor names are unknown .*: audio_tower.x")


def test_image_token_outside(copy_pair):
    edit_config(copy_pair.vlm, image_token_index=64)
    refuse(copy_pair, "image token id 64 is outside the 64 rows")
    edit_config(copy_pair.vlm, image_token_index=None)
    refuse(copy_pair, "no image_token_index")


def test_lm_head_that_contradicts_the_config(copy_pair):
    edit(copy_pair.vlm, put("language_model.lm_head.weight", torch.ones(64, 32)))
    refuse(copy_pair, r"vlm=.* ties lm_head.weight .* but the file holds two different")


def test_text_lm_with_a_stored_tied_head(copy_pair):
    from merge_pico import load

    edit(copy_pair.text, put("lm_head.weight", load(copy_pair.text)[EMBEDDING].clone()))
    assert len(table(copy_pair)) == 88


def test_untied_text_and_tied_vlm(copy_pair):
    edit(copy_pair.text, put("lm_head.weight", torch.ones(64, 32)))
    edit_config(copy_pair.text, tie_word_embeddings=False)
    refuse(copy_pair, "has a lm_head.weight of its own, but vlm=.* ties it")


def test_untied_without_head(copy_pair):
    edit_config(copy_pair.text, tie_word_embeddings=False)
    refuse(copy_pair, "text=.* has no lm_head.weight, but its config says it is not tied")


def test_roles(bf16_pair):
    vlm, text = read_checkpoint(bf16_pair.vlm, "vlm"), read_checkpoint(bf16_pair.text, "text")
    check_roles(vlm, text)
    with pytest.raises(CheckpointError, match="swap them"):
        check_roles(read_checkpoint(bf16_pair.text, "vlm"), read_checkpoint(bf16_pair.vlm, "text"))
    with pytest.raises(CheckpointError, match=r"text=.* 'aya_vision', a VLM; a text LM is wanted"):
        check_roles(vlm, read_checkpoint(bf16_pair.vlm, "text"))
    with pytest.raises(CheckpointError, match=r"vlm=.* 'cohere2', a text LM; a VLM is wanted"):
        check_roles(read_checkpoint(bf16_pair.text, "vlm"), text)


def test_messages_say_what_to_do(copy_pair, bf16_pair):
    text = read_checkpoint(bf16_pair.text, "text")
    with pytest.raises(CheckpointError, match="Give the folder of a VLM trained from it"):
        check_roles(read_checkpoint(bf16_pair.text, "vlm"), text)
    with pytest.raises(CheckpointError, match="Give the folder of a text LM that it was built fr"):
        check_roles(read_checkpoint(bf16_pair.vlm, "vlm"), read_checkpoint(bf16_pair.vlm, "text"))
    edit(copy_pair.text, put(NORM, torch.ones(4)))
    refuse(copy_pair, "Give the text LM that the VLM was built from, neither quantised nor cut")
    edit(copy_pair.vlm, drop("language_model." + EMBEDDING))
    refuse(copy_pair, rf"vlm=.* has no {EMBEDDING}; is it an adapter or a part of a model")


def test_a_stranger_is_told_what_the_vlm_was_built_from(copy_pair):
    edit_config(copy_pair.text, logit_scale=0.125)
    message = r"logit_scale: vlm 0.25, text 0.125. Give the text LM that the VLM was built from"
    with pytest.raises(CheckpointError, match=message + ": with .* set force=true"):
        plan_merge(copy_pair.vlm, copy_pair.text)
    config = read_checkpoint(copy_pair.vlm, "vlm").config
    edit_config(copy_pair.vlm, text_config=config["text_config"] | {"_name_or_path": "org/base"})
    with pytest.raises(CheckpointError, match=message + r" \(its config.json names 'org/base'\)"):
        plan_merge(copy_pair.vlm, copy_pair.text)


def test_text_tensors_that_no_output_needs_are_told(copy_pair):
    from merge_pico import load

    angles = "model.layers.1.self_attn.rotary_emb.inv_freq"
    edit(copy_pair.text, put("lm_head.weight", load(copy_pair.text)[EMBEDDING].clone()))
    edit(copy_pair.text, put(angles, torch.ones(4)))
    told = plan_merge(copy_pair.vlm, copy_pair.text).relatives["text_tensors_not_merged"]
    assert told == {angles: "buffer", "lm_head.weight": f"tied to {EMBEDDING}"}


def test_every_tensor_of_both_is_in_one_class(copy_pair):
    plans = table(copy_pair)
    text = read_checkpoint(copy_pair.text, "text")
    assert [plan.vlm.name for plan in plans] == list(read_checkpoint(copy_pair.vlm, "vlm").tensors)
    read = [plan.text.name for plan in plans if plan.text]
    assert sorted([*read, *text_only(plans, text)]) == sorted(text.tensors)


def test_unknown_model_type(copy_pair):
    edit_config(copy_pair.text, model_type="gpt2")
    with pytest.raises(CheckpointError, match="'gpt2', which is not supported as a text LM"):
        check_roles(read_checkpoint(copy_pair.vlm, "vlm"), read_checkpoint(copy_pair.text, "text"))

"""Every family from two folders to a merged one: bit for bit, and end points in logits."""

import json
import shutil

import pytest
import torch
from family_pico import (
    AS_SAVED,
    head_name,
    layouts,
    rewrite,
    save_family,
)
from merge_pico import Pair, edit, edit_config, load, same_bits
from pico_vlms import FAMILIES, VOCABULARY
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from merge.api import merge_checkpoints
from merge.matching.plan import plan_merge
from train.model.parts import map_names

WEIGHTS = "model.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
EXACT = dict(attn_implementation="eager")  # Gemma 2 has no other
ALL_LAYOUTS = [(kind, layout) for kind in FAMILIES for layout in layouts(kind)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """{family: its pair on disk, made once}; never written to."""
    made = {}

    def pair_of(model_type):
        if model_type not in made:
            made[model_type] = save_family(model_type, tmp_path_factory.mktemp(model_type))
        return made[model_type]

    return pair_of


def merge(pair, out, alpha, **kwargs):
    return merge_checkpoints(vlm=pair.vlm, text=pair.text, out=out, alpha=alpha, **kwargs)


def expected_of(model_type, pair, alpha):
    """The naive way: fp32, one operation after the other, one cast; rows of the VLM put back."""
    vlm, text = load(pair.vlm), load(pair.text)
    for name, place in map_names(model_type, vlm).items():
        if place.part == "decoder":
            start, end = text[place.name].float().numpy(), vlm[name].float().numpy()
            merged = torch.from_numpy(start + start.dtype.type(alpha) * (end - start))
            merged = merged.to(vlm[name].dtype)
            if place.name == EMBEDDING:
                merged[FAMILIES[model_type].rows] = vlm[name][FAMILIES[model_type].rows]
            vlm[name] = merged
    return vlm


@pytest.mark.parametrize("model_type", FAMILIES)
def test_equals_the_naive_formula(model_type, pairs, tmp_path):
    pair = pairs(model_type)
    report = merge(pair, tmp_path / "out", 0.4, verify=True)
    assert_same(tmp_path / "out", expected_of(model_type, pair, 0.4))
    assert report["verified"]["loads_in_transformers"]
    kept = {int(row) for row in report["relatives"]["tokens"]["vlm_rows"]}
    assert kept == set(FAMILIES[model_type].rows)
    assert report["relatives"]["text_tensors_not_merged"] == {}
    assert set(report["relatives"]["weight_distances"]) == {f"model.layers.{i}" for i in range(4)}
    assert all(0.1 < value < 0.3 for value in report["relatives"]["weight_distances"].values())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_alpha_1_is_the_vlm_byte_for_byte(model_type, pairs, tmp_path):
    pair = pairs(model_type)
    merge(pair, tmp_path / "out", 1, verify=False)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (pair.vlm / WEIGHTS).read_bytes()


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_alpha_0_has_the_logits_of_the_text_lm(model_type, pairs, tmp_path):
    """For all tokens that the text LM has trained, to the last bit.

    Cohere's `logit_scale` is missing in transformers' VLM classes (to 5.23). PaliGemma counts
    positions from 1 and reads its prompt in both directions: what it is asked for here is an answer
    (token_type_ids of 1), against its text LM at the same positions.
    """
    assert_text_logits(model_type, pairs(model_type), tmp_path / "out")


@pytest.mark.parametrize(
    ("model_type", "text", "tied"),
    [
        ("aya_vision", "cohere", True), ("aya_vision", "gemma3_text", True),
        ("cohere2_vision", "cohere2", False), ("gemma3", "gemma3_text", False),
        ("idefics3", "llama", True), ("internvl", "qwen3", False), ("llava", "gemma", True),
        ("llava_next", "llama", False), ("llava_onevision", "qwen2", True),
        ("mistral3", "mistral", True), ("paligemma", "gemma2", True),
        ("qwen2_5_vl", "qwen2", True), ("qwen3_vl", "qwen3", True),
    ],
)  # fmt: skip
@torch.no_grad()
def test_other_decoders_and_heads(model_type, text, tied, tmp_path):
    """A family on another text LM, and the head it has less often."""
    pair = save_family(model_type, tmp_path, text=text, tied=tied)
    assert_text_logits(model_type, pair, tmp_path / "out")
    report = merge(pair, tmp_path / "half", 0.4, verify=True)
    assert_same(tmp_path / "half", expected_of(model_type, pair, 0.4))
    assert report["relatives"]["differences"] == []


def assert_text_logits(model_type, pair, out):
    """At alpha 0 the VLM has the text LM's logits, which the VLM before has not."""
    merge(pair, out, 0, verify=False)
    merged = AutoModelForImageTextToText.from_pretrained(out, **EXACT).eval()
    text = AutoModelForCausalLM.from_pretrained(pair.text, **EXACT).eval()
    special = FAMILIES[model_type].rows
    others = [row for row in range(VOCABULARY) if row not in special]
    ids = torch.tensor(others[3:])[None]
    ours, theirs = {}, {}
    if model_type == "paligemma":
        ours["token_type_ids"] = torch.ones_like(ids)
        theirs["position_ids"] = 1 + torch.arange(ids.shape[1])[None]
    scale = getattr(text.config, "logit_scale", None) or 1.0
    found = merged(input_ids=ids, **ours).logits[..., others] * scale
    wanted = text(input_ids=ids, **theirs).logits[..., others]
    assert wanted.std() > 0.01
    assert torch.equal(found, wanted)
    vlm = AutoModelForImageTextToText.from_pretrained(pair.vlm, **EXACT).eval()
    assert not torch.equal(vlm(input_ids=ids, **ours).logits[..., others] * scale, wanted)


@pytest.mark.parametrize(("model_type", "layout"), ALL_LAYOUTS)
def test_every_layout_gives_the_same_decoder(model_type, layout, pairs, tmp_path):
    """transformers loads each (verify), so that the layouts are ones; the tensors are the same."""
    rename = layouts(model_type)[layout]
    vlm = copy(pairs(model_type).vlm, tmp_path / "vlm")
    rewrite(vlm, rename)
    if layout == "before 4.52" and FAMILIES[model_type].tied:
        store_head(vlm, rename)
    pair = Pair(vlm, pairs(model_type).text)
    report = merge(pair, tmp_path / "out", 0.4, verify=True)
    expected, out = expected_of(model_type, pairs(model_type), 0.4), load(tmp_path / "out")
    for name, value in expected.items():
        assert same_bits(out.pop(rename(name)), value), name
    for name, value in out.items():  # a tied head
        assert name == head_name(rename)
        assert same_bits(value, expected["language_model.model.embed_tokens.weight"])
        assert {e["class"] for e in report["tensors"] if e["name"] == name} == {"tied"}


def test_layouts_differ(pairs):
    """No layout is tested twice under two names."""
    for model_type in FAMILIES:
        names = list(load(pairs(model_type).vlm))
        seen = {layout: tuple(map(rename, names)) for layout, rename in layouts(model_type).items()}
        assert len(seen) == len(set(seen.values())), model_type
        assert AS_SAVED in seen


@pytest.mark.parametrize("model_type", ["llava", "paligemma", "qwen2_5_vl"])
def test_tables_of_old_files(model_type, pairs, tmp_path):
    """Rope angles and numbers of patches: the VLM's stay, the text LM's are told and left alone."""
    pair = Pair(copy(pairs(model_type).vlm, tmp_path / "vlm"),
                copy(pairs(model_type).text, tmp_path / "text"))  # fmt: skip
    angles = "model.layers.0.self_attn.rotary_emb.inv_freq"
    in_vlm = angles if model_type == "qwen2_5_vl" else f"language_model.{angles}"
    added = {in_vlm: torch.full((4,), 2.0)}
    if model_type != "qwen2_5_vl":
        added["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(16)[None]
    edit(pair.vlm, lambda tensors: tensors | added)
    edit(pair.text, lambda tensors: tensors | {angles: torch.full((4,), 3.0)})
    report = merge(pair, tmp_path / "out", 0.4, verify=True)
    out = load(tmp_path / "out")
    assert all(same_bits(out[name], value) for name, value in added.items())
    classes = {entry["name"]: entry["class"] for entry in report["tensors"]}
    assert {classes[name] for name in added} == {"buffer"}
    assert report["relatives"]["text_tensors_not_merged"] == {angles: "buffer"}
    edit(pair.vlm, lambda tensors: {k: v for k, v in tensors.items() if k not in added})
    merge(pair, tmp_path / "without", 0.4, verify=False)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl"])
def test_config_of_before_4_52(model_type, pairs, tmp_path):
    """Qwen's had the decoder's settings beside their own; transformers 5 reads that too."""
    vlm = copy(pairs(model_type).vlm, tmp_path / "vlm")
    config = json.loads((vlm / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    old = {"rope_theta": rope["rope_theta"],
           "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}  # fmt: skip
    (vlm / "config.json").write_text(json.dumps(text | old | config))
    report = merge(Pair(vlm, pairs(model_type).text), tmp_path / "out", 0.4, verify=True)
    assert report["relatives"]["differences"] == []
    edit_config(vlm, rope_theta=1e4)
    assert plan_merge(vlm, pairs(model_type).text, force=True).relatives["differences"]


def test_an_untied_vlm_takes_a_tied_text_lm(pairs, tmp_path):
    """Its head is merged with the text LM's embedding, which is that one's head."""
    pair = Pair(pairs("llava").vlm, copy(pairs("llava").text, tmp_path / "text"))
    edit(pair.text, lambda tensors: {k: v for k, v in tensors.items() if k != HEAD})
    edit_config(pair.text, tie_word_embeddings=True)
    merge(pair, tmp_path / "out", 0, verify=False)
    out, text = load(tmp_path / "out"), load(pair.text)
    assert same_bits(out["language_model.lm_head.weight"], text[EMBEDDING])


def test_mistral_small_does_not_say_whether_it_ties(pairs, tmp_path):
    """As its first files: a head of its own, and nothing in config.json; its class ties by default,
    and transformers leaves the two heads apart since they differ."""
    pair = Pair(copy(pairs("mistral3").vlm, tmp_path / "vlm"), pairs("mistral3").text)
    config = json.loads((pair.vlm / "config.json").read_text())
    text_config = {k: v for k, v in config["text_config"].items() if k != "tie_word_embeddings"}
    edit_config(pair.vlm, tie_word_embeddings=None, text_config=text_config)
    merge(pair, tmp_path / "out", 0.4, verify=True)
    assert_same(tmp_path / "out", expected_of("mistral3", pair, 0.4))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is not model.get_input_embeddings().weight


def test_equal_heads_that_are_not_tied_part(pairs, tmp_path):
    """The vlm's head happens to be its embedding; its config says they are two, so they are."""
    pair = Pair(copy(pairs("llava").vlm, tmp_path / "vlm"), pairs("llava").text)
    name, head = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
    edit(pair.vlm, lambda tensors: tensors | {head: tensors[name].clone()})
    merge(pair, tmp_path / "out", 0, verify=True)
    assert same_bits(load(tmp_path / "out")[head], load(pair.text)[HEAD])


def assert_same(folder, expected):
    out = load(folder)
    assert list(out) == list(expected)
    for name, value in out.items():
        assert same_bits(value, expected[name]), name


def copy(folder, target):
    return shutil.copytree(folder, target)


def store_head(folder, rename):
    """As files of before 5 hold a tied head: once more."""
    name = rename("language_model.model.embed_tokens.weight")
    edit(folder, lambda tensors: tensors | {head_name(rename): tensors[name].clone()})

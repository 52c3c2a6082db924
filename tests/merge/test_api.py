"""merge_checkpoints: the algebra, bit for bit, on real classes in every layout."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from merge_pico import (
    IMAGE_TOKEN,
    edit,
    edit_config,
    load,
    same_bits,
    save_pair,
    save_untied_pair,
    text_name,
)
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from configs.errors import CheckpointError, ConfigError
from merge.api import merge_checkpoints

EMBEDDING = "language_model.model.embed_tokens.weight"


def merge(pair, out, alpha, **kwargs):
    return merge_checkpoints(vlm=pair.vlm, text=pair.text, out=out, alpha=alpha, **kwargs)


def reference(text, vlm, alpha):
    """The naive way: fp32, one operation after the other, one cast."""
    text32, vlm32 = text.float().numpy(), vlm.float().numpy()
    delta = vlm32 - text32
    return torch.from_numpy(text32 + delta.dtype.type(alpha) * delta).to(vlm.dtype)


@pytest.mark.parametrize("alpha", [0.3, 0.4, 0.999])
def test_equals_the_naive_formula(pair, tmp_path, alpha):
    merge(pair, tmp_path / "out", alpha, verify=False)
    vlm, text, out = load(pair.vlm), load(pair.text), load(tmp_path / "out")
    assert list(out) == list(vlm)
    for name, value in out.items():
        expected = vlm[name]
        if decoder_name := text_name(name):
            expected = reference(text[decoder_name], vlm[name], alpha)
        if name == EMBEDDING:
            expected[IMAGE_TOKEN] = vlm[name][IMAGE_TOKEN]
        assert same_bits(value, expected), name


def test_alpha_0_is_the_text_lm(pair, tmp_path):
    report = merge(pair, tmp_path / "out", 0)
    vlm, text, out = load(pair.vlm), load(pair.text), load(tmp_path / "out")
    for name, value in text.items():
        if name == "model.embed_tokens.weight":
            value[IMAGE_TOKEN] = vlm[EMBEDDING][IMAGE_TOKEN]
        assert same_bits(out[f"language_model.{name}"], value), name
    assert report["changes"]["num_changed_elements"] == 0


@torch.no_grad()
def test_alpha_0_has_the_logits_of_the_text_lm(pair, tmp_path):
    """AyaVision leaves `logit_scale` out of its logits (5.23): they differ by exactly that."""
    merge(pair, tmp_path / "out", 0, verify=False)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    text = AutoModelForCausalLM.from_pretrained(pair.text).eval()
    ids = torch.arange(8, 32).unsqueeze(0)
    ours, theirs = merged(input_ids=ids).logits, text(input_ids=ids).logits
    # The tied head shows the image token's row, which is the VLM's.
    others = [i for i in range(theirs.shape[-1]) if i != IMAGE_TOKEN]
    ours, theirs = ours[..., others], theirs[..., others]
    assert theirs.abs().max() > 0
    assert torch.equal(ours * text.config.logit_scale, theirs) or torch.equal(ours, theirs)


def test_alpha_1_is_the_vlm_byte_for_byte(pair, tmp_path):
    merge(pair, tmp_path / "out", 1)
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (pair.vlm / name).read_bytes()


def test_a_model_merged_with_itself_is_itself(pair, tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "self").mkdir()
    (tmp_path / "self/config.json").write_bytes((pair.text / "config.json").read_bytes())
    own = {text_name(name): value for name, value in load(pair.vlm).items() if text_name(name)}
    save_file(own, tmp_path / "self/model.safetensors")
    report = merge_checkpoints(
        vlm=pair.vlm, text=tmp_path / "self", out=tmp_path / "out", alpha=0.37, verify=False
    )
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (pair.vlm / name).read_bytes()
    assert report["changes"]["num_changed_elements"] == 0
    assert set(report["relatives"]["weight_distances"].values()) == {0.0}


def test_sharded_gives_the_same_tensors_in_the_vlms_shards(bf16_pair, tmp_path):
    sharded = save_pair(tmp_path / "in", torch.bfloat16, max_shard_size="20KB")
    merge(sharded, tmp_path / "sharded", 0.4)
    merge(bf16_pair, tmp_path / "single", 0.4, verify=False)
    shards = {path.name: path.stat().st_size for path in sharded.vlm.glob("*.safetensors")}
    written = (tmp_path / "sharded").glob("*.safetensors")
    assert len(shards) > 3
    assert {path.name: path.stat().st_size for path in written} == shards
    index = "model.safetensors.index.json"
    assert (tmp_path / "sharded" / index).read_bytes() == (sharded.vlm / index).read_bytes()
    first, second = load(tmp_path / "sharded"), load(tmp_path / "single")
    assert first.keys() == second.keys()
    assert all(same_bits(first[name], second[name]) for name in first)


def test_layout_before_4_52(copy_pair, tmp_path):
    """Old names, and a stored lm_head that stays equal to the embedding, hence tied."""

    def rename(tensors):
        old = {
            k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in tensors.items()
        }
        return old | {"language_model.lm_head.weight": tensors[EMBEDDING].clone()}

    merge(copy_pair, tmp_path / "new", 0.4, verify=False)
    edit(copy_pair.vlm, rename)
    report = merge(copy_pair, tmp_path / "old", 0.4)
    new, old = load(tmp_path / "new"), load(tmp_path / "old")
    assert all(same_bits(old[name], value) for name, value in rename(new).items())
    classes = {entry["name"]: entry["class"] for entry in report["tensors"]}
    assert classes["language_model.lm_head.weight"] == "tied"
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "old")
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_fp32_text_into_bf16_vlm(copy_pair, tmp_path):
    edit(copy_pair.text, lambda tensors: {k: v.float() * 1.001 for k, v in tensors.items()})
    merge(copy_pair, tmp_path / "out", 0.4)
    vlm, text, out = load(copy_pair.vlm), load(copy_pair.text), load(tmp_path / "out")
    name = "model.layers.2.mlp.up_proj.weight"
    expected = reference(text[name], vlm[f"language_model.{name}"], 0.4)
    assert same_bits(out[f"language_model.{name}"], expected)


def test_one_case_by_hand(copy_pair, tmp_path):
    """text 1, 2, -4 and vlm 3, 2, 4 at alpha 0.25: 1.5, 2, -2; also at the ends."""
    name = "model.norm.weight"

    def put(key, values):
        def change(tensors):
            tensors[key][:3] = torch.tensor(values, dtype=torch.bfloat16)
            return tensors

        return change

    edit(copy_pair.text, put(name, [1.0, 2.0, -4.0]))
    edit(copy_pair.vlm, put(f"language_model.{name}", [3.0, 2.0, 4.0]))
    for alpha, wanted in ((0.25, [1.5, 2, -2]), (0, [1, 2, -4]), (1, [3, 2, 4])):
        merge(copy_pair, tmp_path / f"out{alpha}", alpha, verify=False)
        assert load(tmp_path / f"out{alpha}")[f"language_model.{name}"][:3].tolist() == wanted


def test_taller_vlm_vocabulary_keeps_its_rows(copy_pair, tmp_path):
    extra = torch.full((3, 32), 0.125, dtype=torch.bfloat16)

    def grow(tensors):
        return tensors | {EMBEDDING: torch.cat([tensors[EMBEDDING], extra])}

    merge(copy_pair, tmp_path / "before", 0.4, verify=False)
    edit(copy_pair.vlm, grow)
    config = json.loads((copy_pair.vlm / "config.json").read_text())
    edit_config(copy_pair.vlm, text_config=config["text_config"] | {"vocab_size": 67})
    report = merge(copy_pair, tmp_path / "out", 0.4)
    assert same_bits(load(tmp_path / "out")[EMBEDDING], grow(load(tmp_path / "before"))[EMBEDDING])
    entry = next(entry for entry in report["tensors"] if entry["name"] == EMBEDDING)
    assert entry["vlm_rows"] == [[5, 6], [64, 67]]


def test_untied_head_is_merged(tmp_path):
    pair = save_untied_pair(tmp_path)
    merge(pair, tmp_path / "out", 0.5)
    name = "language_model.lm_head.weight"
    expected = reference(load(pair.text)["lm_head.weight"], load(pair.vlm)[name], 0.5)
    assert same_bits(load(tmp_path / "out")[name], expected)


def test_report_accounts_for_every_tensor(bf16_pair, tmp_path):
    seen = []
    report = merge(bf16_pair, tmp_path / "out", 0.4, progress=lambda *x: seen.append(x))
    assert json.loads((tmp_path / "out/merge_report.json").read_text()) == report
    vlm = load(bf16_pair.vlm)
    assert {entry["name"] for entry in report["tensors"]} == set(vlm)
    assert sum(part["num_tensors"] for part in report["parts"].values()) == len(vlm)
    total = sum(value.nbytes for value in vlm.values())
    assert sum(part["num_bytes"] for part in report["parts"].values()) == total
    assert seen[-1] == (total, total) and seen == sorted(seen)
    changed = sum(entry["num_changed"] or 0 for entry in report["tensors"])
    assert report["changes"]["num_changed_elements"] == changed > 0
    assert report["method"]["alpha"] == 0.4 and report["verified"]["loads_in_transformers"]


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_outside(bf16_pair, tmp_path, alpha):
    with pytest.raises(ConfigError, match=r"outside \[0, 1\]"):
        merge(bf16_pair, tmp_path / "out", alpha)


def test_same_folders(bf16_pair, tmp_path):
    vlm, text, out = bf16_pair.vlm, bf16_pair.text, tmp_path / "out"
    for kwargs, message in (
        (dict(vlm=vlm, text=vlm, out=out), "vlm and text are the same folder"),
        (dict(vlm=vlm, text=text, out=vlm), "out and vlm are the same folder"),
        (dict(vlm=vlm, text=text, out=text / "../text"), "out and text are the same folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            merge_checkpoints(**kwargs, alpha=0.4)


def test_strangers_by_config_and_by_weights(copy_pair, tmp_path):
    edit_config(copy_pair.text, logit_scale=0.125)
    with pytest.raises(CheckpointError, match=r"1 settings\): logit_scale: vlm 0.25, text 0.125"):
        merge(copy_pair, tmp_path / "out", 0.4)
    edit_config(copy_pair.text, logit_scale=0.25)
    edit(copy_pair.text, lambda tensors: {k: -v.flip(0) for k, v in tensors.items()})
    with pytest.raises(CheckpointError, match=r"relative weight distance above 1.0 in 4 of 4"):
        merge(copy_pair, tmp_path / "out", 0.4)
    report = merge(copy_pair, tmp_path / "out", 0.4, force=True, verify=False)
    assert report["relatives"]["force"] is True
    assert all(1.2 < value < 1.7 for value in report["relatives"]["weight_distances"].values())


def test_planning_imports_neither_torch_nor_transformers():
    code = "import merge.api, sys; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_card_is_that_of_the_merge(bf16_pair, tmp_path):
    """The VLM's own card would show the figures of another model."""
    (bf16_pair.vlm / "README.md").write_text("# sft\n| numbers | exact_match | 0.113 |")
    merge_checkpoints(
        vlm=bf16_pair.vlm, text=bf16_pair.text, out=tmp_path / "out", alpha=0.4, verify=False
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "at alpha 0.4" in card
    assert "0.113" not in card
    (bf16_pair.vlm / "README.md").unlink()


def test_names_that_are_no_utf8(bf16_pair, tmp_path):
    """Nothing is lost at the end of a long merge for the name of a folder."""
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(bf16_pair.vlm, odd)
    merge_checkpoints(vlm=odd, text=bf16_pair.text, out=tmp_path / "out", verify=False)
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text(encoding="utf-8"))
    assert report["inputs"]["vlm"]["folder"] == str(odd)
    assert b"caf\xe9" in (tmp_path / "out" / "README.md").read_bytes()


def test_rounding_of_what_is_not_finite_is_still_json(copy_pair, tmp_path):
    def damage(tensors):
        tensors["language_model.model.layers.1.mlp.up_proj.weight"][0, 0] = torch.inf
        return tensors

    edit(copy_pair.vlm, damage)
    report = merge_checkpoints(
        vlm=copy_pair.vlm,
        text=copy_pair.text,
        out=tmp_path / "out",
        allow_nonfinite=True,
        verify_logits=False,
    )
    assert report["rounding"]["all"]["kept_ratio"] is None
    assert report["rounding"]["layer 0"]["kept_ratio"] > 0
    json.dumps(report, allow_nan=False)


def test_an_index_without_metadata(bf16_pair, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(bf16_pair.vlm)
    model.save_pretrained(tmp_path / "vlm", max_shard_size="40KB")
    index = tmp_path / "vlm" / "model.safetensors.index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"metadata": None}))
    merge_checkpoints(vlm=tmp_path / "vlm", text=bf16_pair.text, out=tmp_path / "out", verify=False)
    written = json.loads((tmp_path / "out" / index.name).read_text())
    assert written["metadata"]["total_size"] > 0

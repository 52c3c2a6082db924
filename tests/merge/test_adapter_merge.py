"""Base + adapter + alpha straight to the merged checkpoint, against PEFT and the naive formula."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_pico import PROJECTOR, folded, on_disk, save_adapter
from merge_pico import DTYPES, IMAGE_TOKEN, Pair, edit, load, same_bits, save_pair
from safetensors.torch import load_file, save_file

from configs.errors import CheckpointError
from merge.api import merge_checkpoints, verify_folder

EMBEDDING = "language_model.model.embed_tokens.weight"
Q_PROJ = "language_model.model.layers.1.self_attn.q_proj.weight"
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": dict(use_rslora=True),
    "dora": dict(use_dora=True),
    "patterns": dict(
        rank_pattern={r"layers\.0\..*q_proj": 2}, alpha_pattern={r"layers\.1\..*q_proj": 20}
    ),
    "projector_whole": dict(modules_to_save=PROJECTOR),
    "projector_and_tower": dict(
        target_modules=r".*(language_model.*q_proj|multi_modal_projector.linear_1|vision_tower.*fc1)"
    ),
}


def merge(pair: Pair, out: Path, alpha: object = 0.4, **options: Any) -> dict[str, Any]:
    return merge_checkpoints(vlm=pair.vlm, text=pair.text, out=out, alpha=alpha, **options)


def expected(
    pair: Pair, adapter: Path, alpha: float, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """PEFT's tuned model in float32, the formula, one rounding."""
    text, vlm = load(pair.text), load(pair.vlm)
    wanted = {}
    for name, tuned in folded(pair.vlm, adapter).items():
        stored, value = on_disk(name), tuned
        text_name = stored.removeprefix("language_model.")
        if stored.startswith("language_model."):
            start = text[text_name].float()
            value = start + alpha * (tuned - start)
        value = value.to(dtype)
        if stored == EMBEDDING:
            value[IMAGE_TOKEN] = vlm[EMBEDDING][IMAGE_TOKEN]
        wanted[stored] = value
    return wanted


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_peft_then_the_formula(variant, pair, tmp_path):
    """PEFT multiplies whole matrices, we a few rows at a time: the last bit of float32 may differ,
    which moves at most a handful of roundings to bfloat16 (measured: none)."""
    adapter = save_adapter(pair.vlm, tmp_path / "adapter", **VARIANTS[variant])
    report = merge(pair, tmp_path / "out", lora=adapter)
    out = load(tmp_path / "out")
    dtype = out[EMBEDDING].dtype
    wanted = expected(pair, adapter, 0.4, dtype)
    assert out.keys() == wanted.keys()
    bound = 0.0 if dtype == torch.bfloat16 else 3e-7
    for name, value in wanted.items():
        apart = (out[name].float() - value.float()).abs().max()
        assert apart <= bound * max(1, value.abs().max()), (name, apart)
    assert report["inputs"]["lora"]["num_low_rank"] > 0
    assert report["verified"]["loads_in_transformers"]


def test_equals_the_merge_of_the_tuned_model(tmp_path):
    """No full tuned model in between, and the same checkpoint as with one in float32."""
    pair = save_pair(tmp_path, DTYPES["fp32"])
    adapter = save_adapter(pair.vlm, tmp_path / "adapter", modules_to_save=PROJECTOR)
    tuned = tmp_path / "tuned"
    shutil.copytree(pair.vlm, tuned)
    values = {on_disk(name): value for name, value in folded(pair.vlm, adapter).items()}
    save_file(values, tuned / "model.safetensors", metadata={"format": "pt"})
    merge(pair, tmp_path / "straight", lora=adapter, dtype="bfloat16")
    merge(Pair(tuned, pair.text), tmp_path / "around", dtype="bfloat16")
    one, two = load(tmp_path / "straight"), load(tmp_path / "around")
    assert one.keys() == two.keys()
    assert all(same_bits(one[name], two[name]) for name in one)


def test_equals_scaling_the_adapter_when_the_base_is_the_text_lm(tmp_path):
    """text + alpha * (text + s BA - text) is text + (alpha s) BA, but for float32's rounding."""
    pair = save_pair(tmp_path, DTYPES["fp32"])
    text = {f"language_model.{name}": value for name, value in load(pair.text).items()}
    values = load(pair.vlm) | text
    save_file(values, pair.vlm / "model.safetensors", metadata={"format": "pt"})
    adapter = save_adapter(pair.vlm, tmp_path / "adapter")
    merge(pair, tmp_path / "out", 0.4, lora=adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["lora_alpha"] *= 0.4
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    scaled, out = folded(pair.vlm, adapter), load(tmp_path / "out")
    for name, value in scaled.items():
        apart = (out[on_disk(name)] - value).abs().max() / value.abs().max().clamp(min=1e-12)
        assert apart < 2e-7, name
    assert (out[Q_PROJ] - text[Q_PROJ]).abs().max() > 1e-3


@pytest.mark.parametrize("alpha", [0, 1])
def test_end_points(alpha, pair, tmp_path):
    adapter = save_adapter(pair.vlm, tmp_path / "adapter")
    merge(pair, tmp_path / "out", alpha, lora=adapter)
    out, text = load(tmp_path / "out"), load(pair.text)
    if alpha == 0:
        assert same_bits(out[Q_PROJ], text[Q_PROJ.removeprefix("language_model.")])
        return
    tuned = {on_disk(name): value for name, value in folded(pair.vlm, adapter).items()}
    rounded = {name: value.to(out[name].dtype) for name, value in tuned.items()}
    bound = 0.0 if out[Q_PROJ].dtype == torch.bfloat16 else 3e-7
    for name, value in rounded.items():
        assert (out[name].float() - value.float()).abs().max() <= bound, name


def test_verified_again_and_damage_found(pair, tmp_path):
    adapter = save_adapter(pair.vlm, tmp_path / "adapter", modules_to_save=PROJECTOR)
    merge(pair, tmp_path / "out", lora=adapter)
    assert verify_folder(tmp_path / "out")["every_element"]
    file = tmp_path / "out/model.safetensors"
    for name in (Q_PROJ, "multi_modal_projector.linear_1.weight"):
        kept = file.read_bytes()
        values = load_file(file)
        values[name].view(-1)[3] += 1
        save_file(values, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=f"1 of 88 tensors .*{name}"):
            verify_folder(tmp_path / "out", logits=False)
        file.write_bytes(kept)
    weights = adapter / "adapter_model.safetensors"
    changed = {name: value + 1 for name, value in load_file(weights).items()}
    save_file(changed, weights)
    with pytest.raises(CheckpointError, match="is not the lora that was merged"):
        verify_folder(tmp_path / "out")


def test_one_thread_a_core_gives_the_same_bytes(bf16_pair, tmp_path):
    adapter = save_adapter(bf16_pair.vlm, tmp_path / "adapter")
    for threads in (1, 5):
        merge(bf16_pair, tmp_path / f"{threads}", lora=adapter, num_threads=threads, verify=False)
    name = "model.safetensors"
    assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "5" / name).read_bytes()


# ------------------------------------------------------------------------------- refused


def change_config(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(peft_type="IA3"), "peft_type is 'IA3'; LORA is wanted"),
        (dict(fan_in_fan_out=True), "cannot be folded in here: fan_in_fan_out=True"),
        (dict(init_lora_weights="pissa_niter_16"), "it changes the base weights too"),
        (dict(bias="all"), "bias='all'"),
        (dict(target_parameters=["a"]), "target_parameters"),
    ],
)
def test_adapters_of_another_kind(bf16_pair, tmp_path, changes, message):
    adapter = save_adapter(bf16_pair.vlm, tmp_path / "adapter")
    change_config(adapter, **changes)
    with pytest.raises(CheckpointError, match=message):
        merge(bf16_pair, tmp_path / "out", lora=adapter)


def test_an_adapter_of_another_model(bf16_pair, tmp_path):
    adapter = save_adapter(bf16_pair.vlm, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    values = load_file(file)
    a = next(name for name in values if name.endswith("q_proj.lora_A.weight"))
    save_file(values | {a: torch.zeros(4, 7)}, file)
    with pytest.raises(CheckpointError, match=r"1 have another shape: .*adapter \[32, 7\]"):
        merge(bf16_pair, tmp_path / "out", lora=adapter)
    moved = {name.replace("layers.3.", "layers.9."): value for name, value in values.items()}
    save_file(moved, file)
    with pytest.raises(CheckpointError, match=r"3 belong to no tensor: model.layers.9"):
        merge(bf16_pair, tmp_path / "out", lora=adapter)
    save_file({name.replace("lora_B", "lora_C"): v for name, v in values.items()}, file)
    with pytest.raises(CheckpointError, match="of a kind that cannot be folded in"):
        merge(bf16_pair, tmp_path / "out", lora=adapter)
    del values[a]
    save_file(values, file)
    with pytest.raises(CheckpointError, match="has no lora_A"):
        merge(bf16_pair, tmp_path / "out", lora=adapter)


def test_a_tied_head_cannot_go_its_own_way(bf16_pair, copy_pair, tmp_path):
    """Written as the embedding is, it would lose what was trained, in silence."""
    embedding = load(copy_pair.vlm)["language_model.model.embed_tokens.weight"]
    edit(copy_pair.vlm, lambda tensors: {**tensors, "language_model.lm_head.weight": embedding})
    adapter = save_adapter(bf16_pair.vlm, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    head = {
        "base_model.model.lm_head.lora_A.weight": torch.ones(4, 32),
        "base_model.model.lm_head.lora_B.weight": torch.ones(64, 4),
    }
    save_file(load_file(file) | head, file)
    with pytest.raises(CheckpointError, match=r"changes lm_head.weight, which the vlm ties to"):
        merge(copy_pair, tmp_path / "out", lora=adapter, force=True)


def test_factors_that_do_not_belong_together(bf16_pair, tmp_path):
    adapter = save_adapter(bf16_pair.vlm, tmp_path / "adapter", use_dora=True)
    file = adapter / "adapter_model.safetensors"
    values = load_file(file)
    magnitude = next(name for name in values if "magnitude" in name)
    for changed, message in (
        (torch.ones(3), r"a lora_magnitude_vector \[3\]; wanted is one number a row"),
        (values[magnitude].double(), "is F64; known are BF16, F16, F32"),
    ):
        save_file(values | {magnitude: changed}, file)
        with pytest.raises(CheckpointError, match=message):
            merge(bf16_pair, tmp_path / "out", lora=adapter)
    save_file(values, file)
    change_config(adapter, use_dora=False)
    with pytest.raises(CheckpointError, match=r"a lora_magnitude_vector, but .* use_dora=False"):
        merge(bf16_pair, tmp_path / "out", lora=adapter)
    change_config(adapter, use_dora=True, lora_alpha=None)
    with pytest.raises(CheckpointError, match="has no lora_alpha"):
        merge(bf16_pair, tmp_path / "out", lora=adapter)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_factors_of_a_dtype_that_is_not_read(dtype, bf16_pair, tmp_path):
    """Bytes of float8 would pass as bfloat16's, and be verified by the same reading."""
    adapter = save_adapter(bf16_pair.vlm, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    save_file({name: value.to(dtype) for name, value in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match=r"lora_A of .* is F(64|8_E4M3); known are BF16"):
        merge(bf16_pair, tmp_path / "out", lora=adapter)


def test_magnitudes_that_do_not_fit(bf16_pair, tmp_path):
    adapter = save_adapter(bf16_pair.vlm, tmp_path / "adapter", use_dora=True)
    file = adapter / "adapter_model.safetensors"
    values = load_file(file)
    name = next(name for name in values if "magnitude" in name)
    save_file(values | {name: values[name][:3].clone()}, file)
    with pytest.raises(CheckpointError, match=r"lora_magnitude_vector \[3\]; wanted is one"):
        merge(bf16_pair, tmp_path / "out", lora=adapter)
    save_file({k: v for k, v in values.items() if k != name}, file)
    with pytest.raises(CheckpointError, match=r"has no lora_magnitude_vector, but .*=True"):
        merge(bf16_pair, tmp_path / "out", lora=adapter)
    save_file(values, file)
    change_config(adapter, use_dora=False)
    with pytest.raises(CheckpointError, match=r"has a lora_magnitude_vector, but .*=False"):
        merge(bf16_pair, tmp_path / "out", lora=adapter)
    change_config(adapter, use_dora=True, lora_alpha=None)
    with pytest.raises(CheckpointError, match="has no lora_alpha"):
        merge(bf16_pair, tmp_path / "out", lora=adapter)


def test_a_change_of_a_tied_head_is_not_lost(copy_pair, tmp_path):
    """Where the file holds the head beside its embedding there is a place for it, and no row."""
    head = "language_model.lm_head.weight"
    edit(copy_pair.vlm, lambda tensors: tensors | {head: tensors[EMBEDDING].clone()})
    adapter = save_adapter(copy_pair.vlm, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    values, prefix = load_file(file), "base_model.model."
    factors = {"lora_A": torch.ones(4, 32), "lora_B": torch.ones(64, 4)}
    changes = {f"{prefix}lm_head.{kind}.weight": value for kind, value in factors.items()}
    whole = load(copy_pair.vlm)[EMBEDDING].float() + 1
    trained = {f"{prefix}lm_head.weight": whole}
    for more in (changes, trained):
        save_file(values | more, file)
        with pytest.raises(CheckpointError, match=r"changes lm_head.weight, which the vlm ties"):
            merge(copy_pair, tmp_path / "out", lora=adapter, force=True)
    both = trained | {f"{prefix}model.language_model.embed_tokens.weight": whole.clone()}
    save_file(values | both, file)
    merge(copy_pair, tmp_path / "out", lora=adapter)
    out = load(tmp_path / "out")
    assert same_bits(out[head], out[EMBEDDING])


def test_an_adapter_that_was_trained_on_another_model(bf16_pair, copy_pair, tmp_path):
    """Shapes fit, and what comes out is nonsense: an adapter applied twice, for one."""
    adapter = save_adapter(bf16_pair.vlm, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"was trained on .*Give vlm=.*or set force=true"):
        merge(copy_pair, tmp_path / "out", lora=adapter)
    merge(copy_pair, tmp_path / "forced", lora=adapter, force=True, verify=False)
    change_config(adapter, base_model_name_or_path="CohereLabs/a-hub-id")
    merge(copy_pair, tmp_path / "out", lora=adapter, verify=False)


def test_missing_and_pickled_adapters(bf16_pair, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no adapter_config.json; give a PEFT adapter"):
        merge(bf16_pair, tmp_path / "out", lora=bf16_pair.text)
    adapter = save_adapter(bf16_pair.vlm, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model.bin is a pickle"):
        merge(bf16_pair, tmp_path / "out", lora=adapter)


def test_the_folder_of_an_export_is_found(bf16_pair, tmp_path):
    save_adapter(bf16_pair.vlm, tmp_path / "export/adapter")
    report = merge(bf16_pair, tmp_path / "out", lora=tmp_path / "export", verify=False)
    assert report["inputs"]["lora"]["folder"].endswith("export/adapter")


@pytest.mark.parametrize("given", ["adapter", "export", "run", "checkpoint"])
def test_what_a_training_leaves_behind(given, pipeline, tmp_path):
    """The projector trained whole, the decoder by LoRA; equal to merging the folded export."""
    run = pipeline.lora.parent
    folders = {
        "adapter": pipeline.lora / "adapter",
        "export": pipeline.lora,
        "run": run,
        "checkpoint": max((run / "checkpoints").glob("checkpoint-*")),
    }
    straight = Pair(pipeline.align, pipeline.text)
    report = merge(straight, tmp_path / "straight", lora=folders[given])
    merge(Pair(pipeline.lora, pipeline.text), tmp_path / "around")
    one, two = load(tmp_path / "straight"), load(tmp_path / "around")
    assert one.keys() == two.keys()
    for name, value in two.items():
        apart = (one[name] - value).abs().max() / value.abs().max().clamp(min=1e-12)
        assert apart < 1e-6, name
    kinds = {entry["part"]: entry["class"] for entry in report["tensors"] if entry["lora"]}
    assert kinds == {"decoder": "merged", "projector": "adapted"}
    assert "picture" in report["verified"]["logits_compared"]
    card = (tmp_path / "straight/README.md").read_text()
    assert "projector are the VLM's, with what the adapter changes in them" in card


def test_factors_of_rank_0_and_weights_in_float64(bf16_pair, copy_pair, tmp_path):
    adapter = save_adapter(bf16_pair.vlm, tmp_path / "adapter", modules_to_save=PROJECTOR)

    def widen(tensors):
        return {k: v.double() if "projector" in k else v for k, v in tensors.items()}

    edit(copy_pair.vlm, widen)
    with pytest.raises(CheckpointError, match=r"multi_modal_projector\S* is F64; an adapter goes"):
        merge(copy_pair, tmp_path / "out", lora=adapter, force=True)
    file = adapter / "adapter_model.safetensors"
    none = {k: v[:0] if "lora_A" in k else v[:, :0] for k, v in load_file(file).items()
            if "lora_" in k}  # fmt: skip
    save_file({k: v.contiguous() for k, v in none.items()}, file)
    with pytest.raises(CheckpointError, match=r"has lora_A \[0, 48\] and lora_B"):
        merge(bf16_pair, tmp_path / "out", lora=adapter)

"""FLOPs of packs against torch's own counter, product by product."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pico_models import (
    IMAGE_SIZE,
    TEXT_CONFIGS,
    WINDOW,
    make_aya,
    make_sample,
    make_text_lm,
    pack,
)
from torch.utils.flop_counter import FlopCounterMode

from configs.schema import AdapterConfig, PartConfig, PartMode, PartsConfig
from train.model.loss import add_token_losses
from train.model.parts import TEXT_MODEL_TYPES
from train.model.what_trains import set_what_trains
from train.planning.flops import FlopShape, attended_pairs, flop_shape, flops_of_pack, peak_flops

full, lora = PartConfig(mode=PartMode.full), PartConfig(mode=PartMode.lora)
STAGES = {
    "align": PartsConfig(projector=full),
    "align_with_tower": PartsConfig(projector=full, vision_tower=full),
    "sft": PartsConfig(projector=full, decoder=full),
    "sft_lora": PartsConfig(projector=full, decoder=lora),
    "lora_alone": PartsConfig(decoder=lora),
    "lora_on_tower": PartsConfig(vision_tower=lora, decoder=lora),
    "scratch": PartsConfig(projector=full, decoder=full, vision_tower=full),
}
TEXT_STAGES = {"full": PartsConfig(decoder=full), "lora": PartsConfig(decoder=lora)}
PICTURES = ((23, 2, 7), (11, 1, 3), (6, 0, 2))  # tokens, tiles, supervised tokens
TEXT = ((23, 0, 7), (11, 0, 3))
ONE = ((23, 2, 7),)


def prepare(model: Any, parts: PartsConfig) -> Any:
    add_token_losses(model)
    model, _ = set_what_trains(model, parts, AdapterConfig(r=3))
    return model.train()


def counted(model: Any, shapes: Any) -> tuple[int, int]:
    """FLOPs by torch's counter of a pack: of the products of weights, and of batched products.

    It knows no fused attention on a CPU; transformers' eager one is batched products.
    """
    torch.manual_seed(0)
    batch = pack([make_sample(t, num_tiles=n, num_supervised=s) for t, n, s in shapes])
    with FlopCounterMode(display=False) as counter:
        model(**batch, token_losses=True).sum().backward()
    counts = counter.get_flop_counts()
    by_kind = {str(kind): n for kind, n in counts["Global"].items()}
    # transformers 5.17 works out the angles of positions by a product.
    angles = sum(sum(c.values()) for name, c in counts.items() if name.endswith("rotary_emb"))
    batched = by_kind.pop("aten.bmm", 0) - angles
    return sum(by_kind.values()), batched


def ours(shape: FlopShape, shapes: Any, **options: Any) -> float:
    lengths, tiles, supervised = zip(*shapes, strict=True)
    return flops_of_pack(shape, lengths, sum(supervised), sum(tiles), **options)


def attention_of_towers(shapes: Any, *, trains: bool) -> int:
    """By hand: 2 layers of 2 heads of 8, every patch of a tile sees all 16."""
    num_patches = (IMAGE_SIZE // 4) ** 2
    once = 2 * (2 * num_patches**2 * 8 * 2) * 2
    return sum(tiles for _, tiles, _ in shapes) * once * (3 if trains else 1)


@pytest.mark.parametrize("stage", STAGES)
def test_products_of_weights_are_exact(stage: str) -> None:
    model = prepare(make_aya(), STAGES[stage])
    shape = replace(flop_shape(model), pairs=())
    trains = STAGES[stage].vision_tower.mode is not PartMode.frozen
    weights, batched = counted(model, PICTURES)
    assert batched == 0
    tower = attention_of_towers(PICTURES, trains=trains)
    # Logits of a head that trains are computed again.
    again = shape.head.again * sum(supervised for _, _, supervised in PICTURES)
    assert ours(shape, PICTURES) + again == weights + tower


@pytest.mark.parametrize("stage", TEXT_STAGES)
@pytest.mark.parametrize("kind", [kind for kind in TEXT_CONFIGS if kind in TEXT_MODEL_TYPES])
@pytest.mark.parametrize("tied", [True, False])
def test_text_lms_are_exact(kind: str, stage: str, tied: bool) -> None:
    """LoRA without pictures: nothing before the first layer's adapters has a gradient."""
    model = prepare(make_text_lm(kind, tied=tied), TEXT_STAGES[stage])
    weights, _ = counted(model, TEXT)
    shape = replace(flop_shape(model), pairs=())
    assert ours(shape, TEXT, recompute=True) == weights


@pytest.mark.parametrize("stage", ["align", "sft_lora", "scratch"])
def test_attention_is_exact_but_for_what_masks_leave_out(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eager attention computes the whole square of one sample and masks it; we count what is seen.

    It computes no product twice in backward, as MFU counts.
    """
    model = prepare(make_aya(), STAGES[stage])
    model.set_attn_implementation("eager")
    _, batched = counted(model, ONE)
    monkeypatch.setattr("train.planning.flops.attended_pairs", lambda length, window: length**2)
    only_pairs = replace(flop_shape(model), token=ZERO, head=ZERO, tile=ZERO)
    trains = STAGES[stage].vision_tower.mode is not PartMode.frozen
    assert ours(only_pairs, ONE) == batched - attention_of_towers(ONE, trains=trains)


ZERO = flop_shape(make_text_lm("llama")).tile


@pytest.mark.parametrize(("length", "window"), [(1, None), (7, None), (5, 9), (9, 9), (23, 6)])
def test_pairs_are_those_of_the_mask(length: int, window: int | None) -> None:
    at = torch.arange(length)
    distance = at[:, None] - at[None]
    mask = (distance >= 0) & (distance < (window or length))
    assert attended_pairs(length, window) == int(mask.sum())


def test_windows_are_those_of_the_layers() -> None:
    model = prepare(make_text_lm("cohere2"), TEXT_STAGES["full"])
    pairs = dict(flop_shape(model).pairs)
    assert set(pairs) == {WINDOW, None}
    assert pairs[WINDOW].forward == 3 * pairs[None].forward == 3 * 4 * 32


def test_a_live_model_with_checkpointing_is_at_most_what_hardware_use_says() -> None:
    """torch stops to compute a layer again at its last product, which nothing needs: 4 of them.

    So the count is too high by the output projection of each MLP (base and adapter), and exact
    otherwise; fused attention is not in torch's count.
    """
    model = prepare(make_aya(), STAGES["sft_lora"])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    shape = replace(flop_shape(model, gradient_checkpointing=True), pairs=())
    weights, _ = counted(model, PICTURES)
    tower = attention_of_towers(PICTURES, trains=False)
    num_tokens = sum(length for length, _, _ in PICTURES)
    too_much = ours(shape, PICTURES, recompute=True) - weights - tower
    last_products = 4 * 2 * 3 * 32 * num_tokens  # lora_B of down_proj
    assert too_much == last_products
    assert ours(shape, PICTURES) < ours(shape, PICTURES, recompute=True) - too_much


@pytest.mark.parametrize("stage", TEXT_STAGES)
def test_logits_of_a_head_that_trains_are_computed_again_but_are_no_work(stage: str) -> None:
    model = prepare(make_text_lm("llama"), TEXT_STAGES[stage])
    shape = replace(flop_shape(model), pairs=())
    weights, _ = counted(model, TEXT)
    assert ours(shape, TEXT, recompute=True) == weights
    assert (ours(shape, TEXT) < weights) is (stage == "full")


def test_a_pack_without_pictures_runs_a_black_tile_that_is_no_work() -> None:
    model = prepare(make_aya(), STAGES["align"])
    shape = replace(flop_shape(model), pairs=())
    weights, _ = counted(model, TEXT)
    black_tile = attention_of_towers(ONE, trains=False) // 2
    assert ours(shape, TEXT, recompute=True) == weights + black_tile
    assert ours(shape, TEXT) == weights - (shape.tile.forward + shape.tile.backward - black_tile)


def test_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    names = {
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA H200": 989,
        "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA GeForce RTX 4090": 165,
        "AMD Instinct MI300X": 1307,
    }
    for name, tflops in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_flops(None, gpu) == tflops * 1e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA GeForce GT 710")
    assert peak_flops(None, gpu) is None
    assert peak_flops(None, torch.device("cpu")) is None
    assert peak_flops(3.5, torch.device("cpu")) == 3.5e12

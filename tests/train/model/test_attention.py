"""What each attention does with packs, padding and generation; where it is refused.

That packed samples are kept apart is proven in test_isolation.py.
"""

import logging
from collections import defaultdict
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from pico_models import (
    TEXT,
    WINDOW,
    gradients,
    largest_difference,
    make_aya,
    make_sample,
    make_samples,
    make_text_lm,
    pack,
)
from pico_runs import MIXED, SHAPES, TOWER, run, vlm
from transformers import Cohere2Config, Cohere2ForCausalLM, Cohere2Model
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_flash_attention_utils import _process_flash_attention_kwargs

from configs.errors import ConfigError
from configs.schema import Attention
from train.model.attention import FLASH, check_attention, choose_attention, set_attention
from train.model.loss import add_token_losses

WORST_LOSS = 5e-6  # nats; measured 9.5e-7
WORST_NAIVE = 2e-5  # nats, against a softmax in plain steps; measured 5.8e-6
WORST_GRADIENT = 5e-5  # share of the largest gradient of a tensor
WORST_KERNEL = 1e-5  # of values up to 10; measured 1.2e-6
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
FLEX = {"text_config": "flex_attention", "vision_config": "sdpa"}  # as set_attention with a GPU


def make(kind: str) -> Any:
    model = make_aya() if kind == "aya" else make_text_lm(kind)
    add_token_losses(model)
    return model


@pytest.mark.parametrize("kind", ["cohere2", "gemma3_text", "qwen3"])
@pytest.mark.parametrize("length", [1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_the_window_counts_from_the_start_of_each_sample(length, kind):
    model = make(kind)
    set_attention(model, Attention.sdpa_by_sample)
    torch.manual_seed(2)
    samples = [make_sample(WINDOW + 3), make_sample(length, num_supervised=length - 1)]
    with torch.no_grad():
        alone = torch.cat([model(**s.batch(), token_losses=True) for s in samples])
        packed = model(**pack(samples), token_losses=True)
    assert len(packed) == 4 + length - 1
    assert float((packed - alone).abs().max()) < WORST_LOSS


def test_a_pack_of_one_is_that_sample():
    model, sample = make("aya"), make_sample(3 * WINDOW)
    set_attention(model, Attention.sdpa_by_sample)
    with torch.no_grad():
        alone = model(**sample.batch(), token_losses=True)
        assert torch.equal(model(**pack([sample]), token_losses=True), alone)


def test_no_mask_of_the_whole_pack_is_made(monkeypatch):
    """What makes it cheaper than sdpa: no [T, T] anywhere, each sample attended on its own."""
    model, samples = make("aya"), make_samples(pictures=True)
    set_attention(model, Attention.sdpa_by_sample)
    shapes = []
    inner = torch.nn.functional.scaled_dot_product_attention

    def spy(query, *args, attn_mask=None, **kwargs):
        shapes.append((query.shape[2], None if attn_mask is None else attn_mask.shape[-1]))
        return inner(query, *args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model(**pack(samples), token_losses=True)
    tower, decoder = shapes[:2], shapes[2:]
    assert tower == [(16, None)] * 2  # one call a layer for all tiles
    sliding = [(23, 23), (5, None), (11, 11), (6, None)]
    assert decoder == sliding * 3 + [(n, None) for n, _ in sliding]


@pytest.mark.parametrize(
    "attention", [Attention.sdpa_by_sample, Attention.flex_attention], ids=lambda item: item.value
)
@pytest.mark.parametrize("lengths", [(9, 9), (9, 14, 5)])
@torch.compiler.set_stance("force_eager")
def test_padded_batches_and_generation_are_those_of_sdpa(lengths, attention):
    model = make("aya")
    torch.manual_seed(3)
    ids = [make_sample(length).ids for length in lengths]
    longest = max(lengths)
    padded = torch.stack([torch.cat([x.new_zeros(longest - len(x)), x]) for x in ids])
    inputs = {"input_ids": padded, "attention_mask": (padded != 0).long()}
    kwargs = dict(max_new_tokens=2 * WINDOW, do_sample=False, eos_token_id=None, pad_token_id=0)
    model.generation_config.eos_token_id = None
    set_attention(model, Attention.sdpa)
    wanted = model.generate(**inputs, **kwargs)
    model.set_attn_implementation({"text_config": attention.value, "vision_config": "sdpa"})
    assert torch.equal(model.generate(**inputs, **kwargs), wanted)
    assert wanted.shape == (len(lengths), longest + 2 * WINDOW)


def test_the_tower_keeps_sdpa():
    model = make("aya")
    set_attention(model, Attention.sdpa_by_sample)
    assert model.config.text_config._attn_implementation == "sdpa_by_sample"
    assert model.config.vision_config._attn_implementation == "sdpa"


def test_a_decoder_with_another_mask_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2)
    with pytest.raises(
        ConfigError, match=r"proven for cohere, cohere2, .*, not for gpt2; use sdpa"
    ):
        set_attention(GPT2LMHeadModel(config), Attention.sdpa_by_sample)


def test_a_decoder_that_sees_what_it_is_to_learn_is_refused():
    """An option of Gemma 3, for embedding models: neither causal nor kept apart in packs."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(**TEXT, head_dim=8, use_bidirectional_attention=True)
    for attention in (Attention.sdpa_by_sample, Attention.sdpa):
        with pytest.raises(
            ConfigError, match="use_bidirectional_attention, with which a token sees"
        ):
            set_attention(Gemma3ForCausalLM(config), attention)


# --------------------------------------------------------------------- choice, FlashAttention


@pytest.mark.parametrize(
    ("changes", "half", "wanted", "why"),
    [
        ({}, True, Attention.flash_attention_2, "it is installed"),
        ({"hopper": True}, True, Attention.flash_attention_3, "it is installed"),
        ({"two": False}, True, Attention.sdpa_by_sample, "flash-attn is not installed"),
        ({}, False, Attention.sdpa_by_sample, "it computes in float32"),
        ({"gpu": False}, True, Attention.sdpa_by_sample, "there is no GPU"),
        ({"head_dim": 512}, True, Attention.sdpa_by_sample, "heads of 512 are too wide"),
        ({"supported": False}, True, Attention.sdpa_by_sample, "transformers has none for cohere2"),
        ({"gpu": False, "kind": "gpt2"}, True, Attention.sdpa, "gpt2 is not proven by sample"),
    ],
)
def test_the_choice_and_its_reason_are_told(changes, half, wanted, why, monkeypatch):
    gpu, hopper = changes.get("gpu", True), changes.get("hopper", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0) if hopper else (8, 0))
    module = "train.model.attention.is_flash_attn_{}_available"
    monkeypatch.setattr(module.format(2), lambda: gpu and changes.get("two", True))
    monkeypatch.setattr(module.format(3), lambda: gpu)
    config = Cohere2Config(**TEXT, head_dim=changes.get("head_dim", 8))
    config.model_type = changes.get("kind", "cohere2")
    with torch.device("meta"):
        decoder = Cohere2Model(config)
    decoder._supports_flash_attn = changes.get("supported", True)
    chosen, told = choose_attention(decoder, half=half)
    assert chosen is wanted and why in told


def test_a_model_gets_what_was_chosen_and_the_log_says_so(caplog):
    model = make("aya")
    with caplog.at_level(logging.INFO):
        set_attention(model, Attention.auto)
    if not torch.cuda.is_available():
        assert model.config.text_config._attn_implementation == "sdpa_by_sample"
        assert "sdpa_by_sample (no FlashAttention: there is no GPU)" in caplog.text


@pytest.mark.parametrize("attention", FLASH)
def test_flash_is_refused_where_it_is_not(attention, monkeypatch):
    for number in (2, 3):
        monkeypatch.setattr(
            f"train.model.attention.is_flash_attn_{number}_available", lambda: False
        )
    with pytest.raises(ConfigError, match=f"{attention.value}: there is no GPU, or its package"):
        check_attention(attention)


def naive_varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, cu_seqlens_q: torch.Tensor,
    max_seqlen_q: int, softmax_scale: float, causal: bool, window_size: Any = (-1, -1), **_: Any,
) -> torch.Tensor:  # fmt: skip
    """What flash_attn_varlen_func promises, for [T, heads, d]: each sample alone."""
    assert causal and max_seqlen_q == int(cu_seqlens_q.diff().max())
    found = []
    for start, end in pairwise(cu_seqlens_q.tolist()):
        one, two, three = (x[start:end].transpose(0, 1) for x in (q, k, v))
        groups = one.shape[0] // two.shape[0]
        two, three = two.repeat_interleave(groups, 0), three.repeat_interleave(groups, 0)
        at = torch.arange(end - start)
        seen = at[None] <= at[:, None]
        if window_size[0] >= 0:
            seen &= at[:, None] - at[None] <= window_size[0]
        scores = (one @ two.transpose(1, 2) * softmax_scale).masked_fill(~seen, float("-inf"))
        found.append((scores.softmax(-1) @ three).transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("kind", ["aya", "cohere2", "llama", "mistral", "qwen3"])
def test_flash_is_told_where_samples_begin(kind, monkeypatch):
    """With its kernel's promise in its place, for it runs on GPUs alone: losses and gradients."""
    model, batch = make(kind), pack(make_samples(pictures=kind == "aya"))
    set_attention(model, Attention.sdpa_by_sample)
    ours = model(**batch, token_losses=True)
    ours.sum().backward()
    wanted = gradients(model)
    process = partial(
        _process_flash_attention_kwargs,
        supports_mapping=defaultdict(lambda: True),
    )
    functions = (None, naive_varlen, None, None, None)
    module = "transformers.modeling_flash_attention_utils.lazy_import_flash_attention"
    # Since 5.19 it also gives a function for paged attention.
    given = process if Version(transformers.__version__) < Version("5.19") else (process, None)
    monkeypatch.setattr(module, lambda _: (functions, given))
    # Nothing is found out at each layer: without what we give there would be no pack.
    finds_pack = "transformers.modeling_flash_attention_utils._is_packed_sequence"
    monkeypatch.setattr(finds_pack, lambda *_, **__: False)
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    flash = model(**batch, token_losses=True)
    flash.sum().backward()
    assert float((flash - ours).detach().abs().max()) < WORST_NAIVE
    assert largest_difference(gradients(model), wanted) < WORST_GRADIENT


def strict_kernel(*args: Any, **kwargs: Any) -> torch.Tensor:
    """FlashAttention's own refusals, but for the device: it takes half precision alone."""
    if args[0].dtype not in (torch.bfloat16, torch.float16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    return naive_varlen(*args, **kwargs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_with_flash_starts_computes_and_exports(dtype, pipeline, tmp_path, monkeypatch):
    """Only what is trained runs through the kernel, and that in half precision."""
    process = partial(_process_flash_attention_kwargs, supports_mapping=defaultdict(lambda: True))
    calls = []

    def kernel(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(args[0].dtype)
        return strict_kernel(*args, **kwargs)

    given = process if Version(transformers.__version__) < Version("5.19") else (process, None)
    utils = "transformers.modeling_flash_attention_utils"
    functions = (None, kernel, None, None, None)
    monkeypatch.setattr(f"{utils}.lazy_import_flash_attention", lambda _: (functions, given))
    chosen = (Attention.flash_attention_2, "it is installed")
    monkeypatch.setattr("train.model.attention.choose_attention", lambda *_, **__: chosen)
    monkeypatch.setattr("train.model.attention.check_attention", lambda _: None)
    for check in ("_check_and_adjust_attn_implementation", "get_correct_attn_implementation"):
        name = f"transformers.PreTrainedModel.{check}"
        monkeypatch.setattr(name, lambda _, wanted, *__, **___: wanted or "sdpa")
    run(
        *vlm(pipeline.align), *MIXED, "stage=sft", "optim.max_steps=1", "engine.bf16=true",
        f"model.dtype={dtype}", "evaluation.eval_on_start=false", "evaluation.generate=false",
        "data.held_out={}", f"output_dir={tmp_path}/run",
    )  # fmt: skip
    assert calls and set(calls) == {torch.bfloat16}
    assert "Reloaded before" in (tmp_path / "run/export/README.md").read_text()


def test_lengths_are_read_once_for_all_layers(monkeypatch):
    model, batch = make("aya"), pack(make_samples(pictures=False))
    set_attention(model, Attention.sdpa_by_sample)
    reads = []
    inner = torch.Tensor.nonzero
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda self: reads.append(1) or inner(self))
    model(**batch, token_losses=True)
    assert len(reads) == 1


# ------------------------------------------------------------------------ flex_attention

LENGTHS = (43, 2, 1, 6, 24, 7, 60, 6)  # 149 tokens: more than one block of 128


def positions_of(lengths: tuple[int, ...]) -> torch.Tensor:
    return torch.cat([torch.arange(length) for length in lengths])[None]


def flex_mask(model: Any, make_mask: Any, positions: torch.Tensor) -> Any:
    """The BlockMask that transformers makes of the positions of a pack."""
    model.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"):
        return make_mask(
            config=model.config,
            inputs_embeds=torch.zeros(1, positions.shape[1], 1, device=positions.device),
            attention_mask=None,
            past_key_values=None,
            position_ids=positions,
        )


@pytest.mark.parametrize(
    ("make_mask", "window"),
    [(create_causal_mask, 149), (create_sliding_window_causal_mask, WINDOW)],
    ids=["full", "sliding"],
)
def test_the_mask_of_flex_knows_samples_and_window(make_mask, window):
    """Pair by pair, and no block is left out that holds a pair."""
    mask = flex_mask(make_text_lm("cohere2"), make_mask, positions_of(LENGTHS))
    at = torch.arange(149)
    sample = torch.repeat_interleave(torch.arange(8), torch.tensor(LENGTHS))
    distance = at[:, None] - at[None, :]
    wanted = (sample[:, None] == sample[None, :]) & (distance >= 0) & (distance < window)
    zero = torch.tensor(0)
    assert torch.equal(mask.mask_mod(zero, zero, at[:, None], at[None, :]), wanted)
    blocks = torch.nn.functional.pad(wanted, (0, 107, 0, 107)).view(2, 128, 2, 128).any(3).any(1)
    assert torch.equal(mask.to_dense()[0, 0].bool(), blocks)
    assert blocks.tolist() == [[True, False], [True, True]]


@pytest.mark.slow
@torch.no_grad()
def test_the_compiled_kernel_of_flex_is_the_masked_sum():
    """One sliding layer; 15 s to compile on a free core, 4 s once torch has it in its cache."""
    model, positions = make_text_lm("cohere2"), positions_of(LENGTHS)
    torch.manual_seed(0)
    states = torch.randn(1, 149, 32)
    layer, rotation = model.model.layers[0].self_attn, model.model.rotary_emb(states, positions)
    mask = flex_mask(model, create_sliding_window_causal_mask, positions)
    found, _ = layer(states, position_embeddings=rotation, attention_mask=mask)
    zero, at = torch.tensor(0), torch.arange(149)
    dense = mask.mask_mod(zero, zero, at[:, None], at[None, :])[None, None]
    model.set_attn_implementation("sdpa")
    wanted, _ = layer(states, position_embeddings=rotation, attention_mask=dense)
    assert float((found - wanted).abs().max()) < WORST_KERNEL


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex_attention trains on a GPU alone")
def test_the_compiled_kernels_of_flex_train_alike():
    """Forward and backward. Written where no GPU was: its limits are guesses, not measured."""
    torch.manual_seed(0)
    heads = dict(num_attention_heads=2, num_key_value_heads=1)  # of 16, the least that it takes
    model: Any = Cohere2ForCausalLM(Cohere2Config(**TEXT | heads, sliding_window=WINDOW)).cuda()
    add_token_losses(model)
    samples = make_samples(pictures=False)
    model.set_attn_implementation("eager")
    alone = torch.cat([model(**on_gpu(s.batch()), token_losses=True) for s in samples])
    alone.sum().backward()
    wanted = gradients(model)
    set_attention(model, Attention.flex_attention)
    packed = model(**on_gpu(pack(samples)), token_losses=True)
    packed.sum().backward()
    assert float((packed - alone).detach().abs().max()) < 1e-4
    assert largest_difference(gradients(model), wanted) < 1e-3


def on_gpu(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.cuda() for name, value in batch.items()}


def test_flex_is_refused_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ConfigError,
        match=r"attn_implementation=flex_attention trains on a GPU alone, .* use sdpa_by_sample",
    ):
        set_attention(make("aya"), Attention.flex_attention)
    for attention in (Attention.sdpa_by_sample, Attention.sdpa, Attention.eager):
        check_attention(attention)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_attention(Attention.flex_attention)


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU the run begins")
def test_a_run_is_refused_before_it_writes(tmp_path):
    with pytest.raises(ConfigError, match="flex_attention trains on a GPU alone"):
        run("model=pico_vlm", *SHAPES, *TOWER, "data.sources.scenes.num_rows=2",
            "model.attn_implementation=flex_attention", f"output_dir={tmp_path}/run")  # fmt: skip
    assert not (tmp_path / "run").exists()


@torch.compiler.set_stance("force_eager")
def test_torch_itself_refuses_it_on_the_cpu():
    """What our refusal stands for; where this fails, torch has learned it and ours can go."""
    model, batch = make("aya"), pack(make_samples(pictures=True))
    model.set_attn_implementation(FLEX)
    with torch.no_grad():
        assert len(model(**batch, token_losses=True)) == 13
    with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
        model(**batch, token_losses=True)

"""Grafting: the text LM stays what it was, pictures are as large as words, strangers refused."""

from typing import Any

import pytest
import torch
from pico_families import FAMILIES, save_text_lm
from pico_models import TEXT, VOCABULARY, make_text_lm
from pico_runs import FAST, SCENES, grafted_on, weights
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CohereTokenizer,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    PhiConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from configs.command import load_config
from configs.errors import CheckpointError
from configs.schema import DecoderConfig
from data.processor import compose_processor
from data.tokenizer import IMAGE_TOKENS, TURN_TOKENS, ids_added, prepare_for_images
from train.model.compose import compose, embedding_size, make_rows
from train.model.load import build_decoder, load_vlm
from train.model.loss import add_token_losses, check_against_text_class, logit_scale_of
from train.run import train

TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
EVERY_FAMILY = pytest.mark.parametrize("name", FAMILIES)


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


def make_tower(grid: int = 4, **changes: Any) -> Any:
    """A tower of grid x grid patches of 4 pixels."""
    sizes = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        image_size=4 * grid, patch_size=4, vision_use_head=False,
    )  # fmt: skip
    torch.manual_seed(3)
    return SiglipVisionModel(SiglipVisionConfig(**(sizes | changes))).eval()


def compose_pico(*, tied: bool = True, size: int = VOCABULARY, grid: int = 4) -> tuple[Any, Any]:
    text_lm = make_text_lm("cohere2", tied=tied)
    return text_lm, compose(text_lm, make_tower(grid), Tokenizer(size), downsample_factor=2)


def graft(folder: Any) -> tuple[Any, Any, Any]:
    """The text LM of a folder, the model grafted on it, and its processor."""
    from transformers import AutoTokenizer

    text_lm = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = prepare_for_images(AutoTokenizer.from_pretrained(folder))
    processor = compose_processor(
        tokenizer, image_size=16, patch_size=4, downsample_factor=2, crop_to_patches=False,
        max_patches=1,
    )  # fmt: skip
    model = compose(
        text_lm, make_tower(), tokenizer, downsample_factor=2, added_ids=ids_added(tokenizer)
    )
    return text_lm, model.eval(), processor


def picture_ids(processor: Any) -> torch.Tensor:
    """[1, T] of a text with one picture of 4 image tokens."""
    text = "ab" + processor.replace_image_token({"num_patches": [1]}, 0) + "cd"
    return torch.tensor([processor.tokenizer(text, add_special_tokens=False).input_ids])


# -------------------------------------------------------------------------- every family


@TIED
@EVERY_FAMILY
@torch.no_grad()
def test_the_text_lm_is_in_it_bit_for_bit(name, tied, tmp_path):
    """Logits, once the factor that AyaVision leaves out is applied; live and loaded again."""
    plain = save_text_lm(name, tmp_path / "text", tied=tied)
    ids = torch.arange(6, 60)[None]
    rows = plain.config.vocab_size
    wanted = plain(input_ids=ids).logits
    _, model, processor = graft(tmp_path / "text")
    untouched = [i for i in range(rows) if i not in ids_added(processor.tokenizer)]
    model.save_pretrained(tmp_path / "vlm")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "vlm").eval()
    for found in (model, again):
        logits = found(input_ids=ids).logits * logit_scale_of(found)
        assert torch.equal(logits[..., untouched], wanted[..., untouched])
        assert logits.shape[-1] == max(rows, len(processor.tokenizer))


@TIED
@EVERY_FAMILY
@torch.no_grad()
def test_it_is_saved_whole_and_loaded_with_pictures(name, tied, tmp_path):
    save_text_lm(name, tmp_path / "text", tied=tied)
    _, model, processor = graft(tmp_path / "text")
    ids, picture = picture_ids(processor), torch.randn(1, 3, 16, 16)
    assert int((ids == model.config.image_token_index).sum()) == 4
    wanted = model(input_ids=ids, pixel_values=picture).logits
    assert not torch.equal(model(input_ids=ids, pixel_values=-picture).logits, wanted)
    model.save_pretrained(tmp_path / "vlm")
    for again in (
        AutoModelForImageTextToText.from_pretrained(tmp_path / "vlm"),
        load_vlm(str(tmp_path / "vlm"), dtype=torch.float32),
    ):
        found: Any = again
        assert torch.equal(found.eval()(input_ids=ids, pixel_values=picture).logits, wanted)
        assert (found.lm_head.weight is found.get_input_embeddings().weight) is tied
    assert ("language_model.lm_head.weight" in weights(tmp_path / "vlm")) is not tied


@EVERY_FAMILY
def test_our_loss_is_that_of_the_text_class(name, tmp_path):
    save_text_lm(name, tmp_path)
    _, model, _ = graft(tmp_path)
    add_token_losses(model)
    assert check_against_text_class(model) < 1e-5  # measured 9.5e-7


@EVERY_FAMILY
def test_a_projected_picture_is_as_large_as_a_word(name, tmp_path):
    """Also where the LM scales its embeddings on the way, as Gemma does: by 5.7 here, 45 at 2B."""
    torch.manual_seed(0)
    save_text_lm(name, tmp_path, hidden_size=64, head_dim=16)
    text_lm, model, processor = graft(tmp_path)
    known = torch.arange(min(ids_added(processor.tokenizer)))
    with torch.no_grad():
        words = float(text_lm.get_input_embeddings()(known).square().mean().sqrt())
        pictures = torch.randn(64, 3, 16, 16)
        image = model.get_image_features(pixel_values=pictures, return_dict=True).pooler_output
    size = float(torch.cat(tuple(image)).square().mean().sqrt())
    assert 0.6 < size / words < 1.6, size / words  # measured 0.997 to 1.02


# ---------------------------------------------------------------------------- embeddings


@TIED
@EVERY_FAMILY
@torch.no_grad()
def test_new_tokens_start_at_the_mean_of_trained_rows(name, tied, tmp_path):
    """Whether they fall on rows beyond the tokenizer's or need new ones; all others stay."""
    plain = save_text_lm(name, tmp_path, tied=tied)
    before = plain.get_input_embeddings().weight.clone(), plain.lm_head.weight.clone()
    _, model, processor = graft(tmp_path)
    added, rows = ids_added(processor.tokenizer), before[0].shape[0]
    assert model.config.text_config.vocab_size == max(rows, len(processor.tokenizer))
    assert model.config.text_config is model.model.language_model.config
    for old, now in zip(before, (model.get_input_embeddings(), model.lm_head), strict=True):
        assert now.weight.shape[0] == model.config.text_config.vocab_size
        kept = [i for i in range(rows) if i not in added]
        assert torch.equal(now.weight[kept], old[kept])
        mean = old[: min(added)].mean(0)
        torch.testing.assert_close(
            now.weight[added], mean.expand(len(added), -1), rtol=0, atol=1e-7
        )
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied


def test_rows_that_the_lm_itself_never_had_are_at_the_mean_too():
    """Some LMs have more tokens than rows: padding was added, and nothing trained on it."""
    text_lm = make_text_lm("llama")
    mean = text_lm.get_input_embeddings().weight.detach().mean(0)
    make_rows(text_lm, VOCABULARY + 3, [VOCABULARY + 1, VOCABULARY + 2])
    rows = text_lm.get_input_embeddings().weight[VOCABULARY:]
    torch.testing.assert_close(rows, mean.expand(3, -1), rtol=0, atol=1e-7)
    assert text_lm.lm_head.weight is text_lm.get_input_embeddings().weight


def test_rows_in_half_precision_are_averaged_in_float32():
    text_lm = make_text_lm("llama").bfloat16()
    before = text_lm.get_input_embeddings().weight.detach().clone()
    make_rows(text_lm, VOCABULARY + 1, [VOCABULARY])
    row = text_lm.get_input_embeddings().weight[VOCABULARY]
    assert torch.equal(row, before.float().mean(0).bfloat16())


def test_without_new_tokens_no_row_changes():
    text_lm = make_text_lm("cohere2")
    before = text_lm.get_input_embeddings().weight.detach().clone()
    make_rows(text_lm, VOCABULARY - 8, [])  # padded: none is cut off
    assert torch.equal(text_lm.get_input_embeddings().weight, before)


def test_the_size_of_words_is_that_of_known_ones():
    text_lm = make_text_lm("gemma3_text")
    with torch.no_grad():
        text_lm.get_input_embeddings().weight[:10] = 2.0
    scale = 32**0.5
    assert embedding_size(text_lm, before=10) == pytest.approx(2 * scale)
    assert embedding_size(text_lm, before=VOCABULARY) < 2 * scale


# ------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize(
    ("own", "stops", "expected"),
    [
        (2, [2], 2),
        (2, [7], [2, 7]),
        ([2, 9], [7], [2, 9, 7]),
        (None, [7], [2, 7]),
        (7, [7], [7, 2]),
    ],
)
def test_generation_ends_where_the_template_ends_a_turn(own, stops, expected):
    text_lm = make_text_lm("llama")
    text_lm.generation_config.eos_token_id = own
    text_lm.generation_config.pad_token_id = None
    model = compose(
        text_lm, make_tower(), Tokenizer(VOCABULARY), downsample_factor=2, stop_ids=stops
    )
    assert model.generation_config.eos_token_id == expected
    assert model.generation_config.pad_token_id == 0


# -------------------------------------------------------------------------------- refusals

SMALL = {key: TEXT[key] for key in ("vocab_size", "hidden_size", "pad_token_id", "bos_token_id",
                                    "eos_token_id", "num_hidden_layers")}  # fmt: skip
BLOCK = dict(intermediate_size=48, num_attention_heads=4, num_key_value_heads=2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            Gemma2Config(**SMALL, **BLOCK, head_dim=8),
            r"final_logit_softcapping=30.0 cannot be graf",
        ),
        (
            GraniteConfig(**SMALL, **BLOCK, logits_scaling=8.0),
            r"logits_scaling=8.0 cannot be grafted",
        ),
        (
            GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2),
            r"GPT2LMHeadModel cannot be gra",
        ),
        (PhiConfig(**SMALL, **BLOCK), r"PhiForCausalLM cannot be .* linear `lm_head` without bias"),
    ],
    ids=["gemma2", "granite", "gpt2", "phi"],
)
def test_what_aya_vision_would_compute_otherwise_is_refused(config, message):
    text_lm = AutoModelForCausalLM.from_config(config)
    with pytest.raises(CheckpointError, match=message):
        compose(text_lm, make_tower(), Tokenizer(VOCABULARY), downsample_factor=2)


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SMALL, **BLOCK, head_dim=8, final_logit_softcapping=None),
        GraniteConfig(**SMALL, **BLOCK, embedding_multiplier=3.0),
    ],
    ids=["gemma2", "granite"],
)
@torch.no_grad()
def test_the_same_families_without_it_are_grafted_on(config):
    text_lm = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(6, 40)[None]
    wanted = text_lm(input_ids=ids).logits
    model = compose(text_lm, make_tower(), Tokenizer(VOCABULARY), downsample_factor=2).eval()
    assert torch.equal(model(input_ids=ids).logits, wanted)


def test_an_odd_grid_is_refused_with_a_size_that_works():
    message = r"has 5 x 5 patches, .*downsample_factor=2 does not divide; .* for example 16"
    with pytest.raises(CheckpointError, match=message):
        compose_pico(grid=5)


# ------------------------------------------------------------------------------ the whole


def test_everything_is_real_and_in_place():
    text_lm, model = compose_pico()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert not [name for name, tensor in tensors if tensor.is_meta]
    assert model.model.language_model is text_lm.model
    projector = dict(model.model.multi_modal_projector.named_parameters())
    assert all(value.isfinite().all() for value in projector.values())
    assert all(value.std() > 0 for name, value in projector.items() if value.ndim > 1), projector
    assert model.config.alignment_intermediate_size == 7 * 32


def test_no_weight_is_allocated_twice():
    """An 8B text LM is taken over tensor by tensor; what is new is the projector."""
    text_lm, tower = make_text_lm("cohere2"), make_tower()
    known = {p.data_ptr() for part in (text_lm, tower) for p in part.parameters()}
    model = compose(text_lm, tower, Tokenizer(VOCABULARY), downsample_factor=2)
    new = {name for name, p in model.named_parameters() if p.data_ptr() not in known}
    assert new
    assert all(name.startswith("model.multi_modal_projector.") for name in new)


def test_pictures_reach_the_decoder():
    _, model = compose_pico()
    ids = torch.tensor([[1, 7, *[VOCABULARY - 1] * 4, 9, 10]])
    picture = torch.randn(1, 3, 16, 16)
    one = model(input_ids=ids, pixel_values=picture).logits
    two = model(input_ids=ids, pixel_values=-picture).logits
    assert torch.equal(one[:, :2], two[:, :2])
    assert (one[:, 2:] - two[:, 2:]).abs().max() > 1e-3


def test_a_text_lm_without_image_tokens_or_template(tmp_path):
    """From a folder whose tokenizer knows no pictures to a VLM that trains."""
    texts = ["a text", "and another one", *"0123456789"]
    tokenizer = CohereTokenizer().train_new_from_iterator(
        texts, 320, new_special_tokens=TURN_TOKENS, show_progress=False
    )
    size = len(tokenizer)
    config = DecoderConfig(hidden_size=32, intermediate_size=48, num_attention_heads=4)
    text_lm: Any = build_decoder(config, tokenizer, dtype=torch.float32)
    text_lm.save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")

    overrides = [*grafted_on(tmp_path / "text"), *SCENES, "stage=align", "data.max_tokens=1024"]
    train(load_config("train", [*FAST, *overrides, f"output_dir={tmp_path}/run"]))
    old, new = weights(tmp_path / "text"), weights(tmp_path / "run/export")
    rows = new["language_model.model.embed_tokens.weight"]
    assert rows.shape[0] == size + len(IMAGE_TOKENS)
    assert torch.equal(rows[:size], old["model.embed_tokens.weight"])

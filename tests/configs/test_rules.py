"""Ranges, and keys that need each other: one case a rule, all told together."""

from dataclasses import replace

import pytest

from configs.command import load_config
from configs.errors import ConfigError
from configs.languages import LANGUAGES
from configs.rules import check_rules
from configs.schema import DataConfig, InspectConfig, ModelConfig, ModelKind
from data.number_words import LARGEST

MERGE = ["vlm=a", "text=b", "out=c"]


def refused(command: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(command, list(overrides))
    return str(caught.value)


BROKEN = {
    "seed=-1": "seed: is -1, but it is at least 0",
    "optim.max_steps=0": "optim.max_steps: is 0, but it is at least 1",
    "optim.warmup_steps=-1": "optim.warmup_steps: is -1, but it is at least 0",
    "optim.min_lr_ratio=1.5": "optim.min_lr_ratio: is 1.5, but it is a share between 0 and 1",
    "optim.adam_beta2=1": "optim.adam_beta2: is 1.0, but it is at least 0 and below 1",
    "optim.weight_decay=-0.1": "optim.weight_decay: is -0.1, but it is at least 0",
    "optim.num_epochs=inf": "optim.num_epochs: is inf, but it is a finite number",
    "optim.max_grad_norm=nan": "optim.max_grad_norm: is nan, but it is a finite number",
    "adapter.lora_dropout=1.0": "adapter.lora_dropout: is 1.0, but it is at least 0 and below 1",
    "tracker.project=team/vlm": "tracker.project: is 'team/vlm', which holds /, which W&B refuses",
    "tracker.logging_steps=0": "tracker.logging_steps: is 0, but it is at least 1",
    "adapter.r=0": "adapter.r: is 0, but it is at least 1",
    "data.max_tokens=0": "data.max_tokens: is 0, but it is at least 1",
    "data.packs_per_step=0": "data.packs_per_step: is 0, but it is at least 1",
    "data.num_workers=-1": "data.num_workers: is -1, but it is at least 0",
    "data.max_bad_ratio=2": "data.max_bad_ratio: is 2.0, but it is a share between 0 and 1",
    "data.languages=[en,xx,en]": "data.languages: 'xx' is not one of ar, cs, de",
    "data.sources.scenes.weight=-1": "data.sources.scenes.weight: is -1.0, but it is at least 0",
    "data.sources.scenes.num_rows=0": "data.sources.scenes.num_rows: is 0, but it is at least 1",
    "data.sources.scenes.languages=[zz]": "data.sources.scenes.languages: 'zz' is not one of",
    "data.sources.scenes.language=english": "data.sources.scenes.language: 'english' is not",
    "data.sources.scenes.kind=dataset": "data.sources.scenes.path: required when kind=dataset",
    "data.held_out.numbers.max_number=10000": "numbers.max_number: is 10000, but it is at most",
    "data.held_out.scenes.max_number=9": "scenes.max_number: is 9, but it is at least 10",
    "stage.parts.decoder.learning_rate=-1": "stage.parts.decoder.learning_rate: is -1.0, but",
    "stage.parts.projector.mode=lora": "stage.parts.projector.mode: lora is for pretrained parts",
    "model.path=x": "model.path: is only read when model.kind=vlm",
    "model.kind=text_lm": "stage.parts.vision_tower.mode: a text LM has no vision_tower",
}
# The language named twice, the text LM's projector, two keys that their kind does not read.
LINES_BESIDE = 4


@pytest.fixture(scope="module")
def told() -> str:
    """What is said when all of them are broken at once."""
    return refused("train", *BROKEN)


@pytest.mark.parametrize("override", BROKEN)
def test_a_broken_rule_is_told(told: str, override: str) -> None:
    assert BROKEN[override] in told


def test_nothing_else_is_told(told: str) -> None:
    assert "data.languages: ['en', 'xx', 'en'] names a language twice" in told
    assert len(told.splitlines()) == len(BROKEN) + LINES_BESIDE


def test_float16_is_not_trained_in() -> None:
    told = refused("train", "model=vlm", "model.path=x", "model.dtype=float16")
    assert "model.dtype: is float16, but half precision is computed in bfloat16" in told


def test_offloading_where_layers_are_computed_again_otherwise() -> None:
    given = ["model=vlm", "model.path=x", "stage=sft_lora", "engine=zero3"]
    saving = ["engine.gradient_checkpointing=true", "engine.activation_offloading=true"]
    told = refused("train", *given, *saving)
    assert "engine.activation_offloading: with engine=zero3 and LoRA" in told
    assert load_config("train", [*given[:-1], "engine=fsdp2", *saving])


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_deepspeed_would_round_what_is_float32(engine: str) -> None:
    given = ["model=vlm", "model.path=x", f"engine={engine}", "engine.bf16=true"]
    told = refused("train", *given)
    assert f"model.dtype: is float32, but engine={engine} with engine.bf16=true rounds" in told
    assert load_config("train", [*given, "model.dtype=bfloat16"])
    assert load_config("train", given[:-1])


def test_keys_that_a_kind_does_not_read(told: str) -> None:
    """An option that does nothing is an error, as a key that does not exist."""
    assert "scenes.languages: is not read by kind=dataset" in told
    assert "scenes.max_number: is not read by kind=emoji_scenes" in told
    names = "+data.held_out.n={kind:concept_names,num_rows:2,held_out:true}"
    assert refused("train", names).endswith("n.held_out: is not read by kind=concept_names")


def test_a_shape_that_a_loaded_model_brings_itself() -> None:
    """It would be ignored in silence; the size of tiles is for both."""
    loaded = ["model=compose", "model.decoder.path=a", "model.vision_tower.path=b"]
    told = refused(
        "train", *loaded, "model.decoder.hidden_size=96", "model.vision_tower.patch_size=14"
    )
    assert [line.strip() for line in told.splitlines()] == [
        f"model.{key}: is of a fresh one; that of model.{part}.path brings its own"
        for part, key in (("decoder", "decoder.hidden_size"),
                          ("vision_tower", "vision_tower.patch_size"))
    ]  # fmt: skip
    assert load_config("train", [*loaded, "model.vision_tower.image_size=364"])


def test_a_part_of_a_model_that_is_not_put_together() -> None:
    vlm = ["model=vlm", "model.path=a"]
    assert "model.decoder.path: is not read when model.kind=vlm" in refused(
        "train", *vlm, "model.decoder.path=b"
    )
    assert "model.vision_tower.path: is only read when model.kind=compose" in refused(
        "train", *vlm, "model.vision_tower.path=b"
    )


def test_an_adapter_for_nobody() -> None:
    assert refused("train", "adapter.r=8").startswith(
        "adapter: is given, but no part has mode lora"
    )
    assert load_config("train", ["stage=sft_lora", "adapter.r=8"]).adapter.r == 8


def test_a_sweep_needs_the_text_lm() -> None:
    assert "alphas: 0 is not among them" in refused("sweep", *MERGE[:3], "alphas=[0.3,1]")
    assert "max_text_loss_increase: is -1.0, but it is at least 0" in refused(
        "sweep", *MERGE, "max_text_loss_increase=-1"
    )


def test_heads_that_do_not_divide() -> None:
    told = refused("train", "model.decoder.num_attention_heads=5")
    assert "model.decoder.num_attention_heads: 5 does not divide hidden_size=192" in told


def test_no_languages() -> None:
    assert refused("train", "data.languages=[]") == "data.languages: is empty, give at least one"


def test_a_vlm_without_a_path() -> None:
    assert refused("train", "model.kind=vlm").startswith("model.path: required when model.kind=vlm")


def test_a_stage_in_which_nothing_trains() -> None:
    frozen = [
        f"stage.parts.{part}.mode=frozen" for part in ("vision_tower", "projector", "decoder")
    ]
    assert refused("train", *frozen) == "stage.parts: every part is frozen, so nothing would train"


def test_every_alpha_of_a_sweep_is_a_share() -> None:
    message = refused("sweep", *MERGE, "alphas=[0,-0.1,nan,1.01]")
    assert [line.split(", but")[0].strip() for line in message.splitlines()] == [
        "alphas: is -0.1", "alphas: is nan", "alphas: is 1.01",
    ]  # fmt: skip


def test_alphas_outside_where_that_is_asked_for() -> None:
    outside = ["alphas=[0,-0.1,1.5]", "extrapolate=true"]
    assert load_config("sweep", [*MERGE, *outside]).alphas == [0, -0.1, 1.5]
    assert refused("sweep", *MERGE, "alphas=[0,inf]", outside[1]).startswith("alphas: is inf, but")


def test_an_alpha_named_twice() -> None:
    assert "alphas: [0.0, 0.5, 0.5] names an alpha twice" in refused(
        "sweep", *MERGE, "alphas=[0,0.5,0.5]"
    )


def test_schedules_have_free_names_that_can_be_files() -> None:
    told = "schedules={falling: {alpha: [0.8, 0.2]}, b-2: {alpha_overrides: {embeddings: 0}}}"
    found = load_config("sweep", [*MERGE, told, "schedules.more.alpha=[[0,1],[1,0]]"]).schedules
    assert {name: (item.alpha, item.alpha_overrides) for name, item in found.items()} == {
        "falling": ([0.8, 0.2], {}),
        "b-2": (0.4, {"embeddings": 0}),
        "more": ([[0, 1], [1, 0]], {}),
    }
    for name in ("text_lm", "../up", "a.b", "9b"):
        message = refused("sweep", *MERGE, f"schedules={{{name}: {{alpha: 1}}}}")
        assert "the name is that of a file" in message
    message = refused("sweep", *MERGE, "schedules={a: {alhpa: 1}}")
    assert message == "schedules.a.alhpa: no such key (did you mean schedules.a.alpha?)"


def test_a_sweep_over_nothing() -> None:
    assert "alphas: is empty" in refused("sweep", *MERGE, "alphas=[]")


def test_the_ends_are_allowed() -> None:
    assert load_config("merge", [*MERGE, "alpha=0"]).alpha == 0.0
    assert load_config("sweep", [*MERGE, "alphas=[0,1]"]).alphas == [0.0, 1.0]
    assert load_config(
        "train", ["data.sources.scenes.weight=0", "data.max_bad_ratio=1", "optim.min_lr_ratio=0"]
    )


def test_the_rules_hold_for_the_model_of_inspect() -> None:
    config = InspectConfig(model=ModelConfig(kind=ModelKind.compose), data=DataConfig(sources={}))
    check_rules(config)
    with pytest.raises(ConfigError, match=r"model\.path: required when model\.kind=vlm"):
        check_rules(replace(config, model=ModelConfig(kind=ModelKind.vlm)))


def test_the_numbers_that_have_words() -> None:
    """Contract: the rule's largest number is the largest of data.number_words."""
    assert load_config("train", [f"data.held_out.numbers.max_number={LARGEST}"])
    assert "at most" in refused("train", f"data.held_out.numbers.max_number={LARGEST + 1}")


def test_the_languages_are_the_papers_23() -> None:
    paper = "ar cs de el en es fa fr he hi id it ja ko nl pl pt ro ru tr uk vi zh"
    assert list(LANGUAGES) == paper.split()


def test_artifacts_and_tensorboard_where_they_can_be():
    upload = "tracker.artifacts=upload"
    assert "artifacts are W&B's: tracker.wandb=true" in refused("train", "tracker=jsonl", upload)
    assert load_config("train", [upload]).tracker.wandb
    assert "tracker.project: is '', which is empty" in refused("train", "tracker.project=''")
    for command, given in (("merge", MERGE), ("evaluate", ["models={a: b}", "out=c"])):
        assert "there is no curve to show" in refused(command, *given, "tracker=tensorboard")
        assert load_config(command, [*given, "tracker=wandb"]).tracker.wandb

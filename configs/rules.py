"""What a value may be beyond its type: ranges, and keys that need each other.

Each rule yields lines; `check_rules` tells all of them together.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any
from urllib.parse import urlsplit

from configs.errors import ConfigError
from configs.languages import LANGUAGES
from configs.schema import (
    DEEPSPEED,
    AdapterConfig,
    Artifacts,
    DataConfig,
    Dtype,
    EngineKind,
    JudgeConfig,
    MeasureConfig,
    ModelConfig,
    ModelKind,
    NonFinite,
    PartMode,
    Quantization,
    SourceConfig,
    SourceKind,
    SweepConfig,
    TrackerConfig,
    TrainConfig,
)

# Whole numbers that make no sense below this; everything else that counts must be positive.
MINIMUM = {
    "num_workers": 0,
    "eval_steps": 0,
    "num_choices": 0,
    "warmup_steps": 0,
    "seed": 0,
    "drop_seed": 0,
    "max_number": 10,
    "num_retries": 0,
}
MAXIMUM = {"max_number": 9999}  # what data.number_words has words for
SHARES = ("max_bad_ratio", "min_lr_ratio")
SHARES_BELOW_ONE = ("lora_dropout", "adam_beta1", "adam_beta2", "confidence")
AT_LEAST_ZERO = (
    "weight",
    "learning_rate",
    "weight_decay",
    "max_grad_norm",
    "num_epochs",
    "initializer_range",
    "max_text_loss_increase",
)
POSITIVE = (
    "logit_scale",
    "rope_theta",
    "language_temperature",
    "spike_deviations",
    "peak_tflops",
    "device_memory_gib",
    "timeout_seconds",
    "watch_seconds",
    "backoff_seconds",
    "max_backoff_seconds",
)
NOT_IN_PROJECTS = "/\\#?%:"  # wandb 0.31, Settings.validate_project
SCHEDULE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
TEXT_LM = "text_lm"  # what a sweep calls the text LM where alpha 0 of its method is something else
BY_METHOD = ("alpha", "text_weight", "density")  # merge.recipe knows what a method can take
REAL = (
    *SHARES,
    *SHARES_BELOW_ONE,
    *AT_LEAST_ZERO,
    *POSITIVE,
    *BY_METHOD,
)  # whole when they are written so


def check_rules(config: Any) -> None:
    """Raise ConfigError with every broken rule of a checked config."""
    problems = [*_ranges(config, "")]
    if isinstance(getattr(config, "model", None), ModelConfig):
        problems += _model_rules(config.model)
    if isinstance(config, TrainConfig):
        problems += _stage_rules(config)
        problems += _engine_rules(config)
        problems += _best_rules(config)
        problems += _reference_rules(config)
    if isinstance(getattr(config, "evaluation", None), MeasureConfig):
        problems += _measure_rules(config.evaluation)
    if isinstance(config, SweepConfig):
        problems += _sweep_rules(config)
    if isinstance(getattr(config, "tracker", None), TrackerConfig):
        problems += _tracker_rules(
            config.tracker, has_curves=isinstance(config, TrainConfig | SweepConfig)
        )
    if isinstance(config, JudgeConfig):
        problems += _judge_rules(config)
    if isinstance(getattr(config, "data", None), DataConfig):
        problems += _data_rules(config.data)
    if problems:
        raise ConfigError("\n  ".join(problems) if len(problems) > 1 else problems[0])


def _ranges(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for name, item in node.items():
            yield from _ranges(item, f"{prefix}{name}.")
        return
    if not is_dataclass(node):
        return
    for item in fields(node):
        value, path = getattr(node, item.name), f"{prefix}{item.name}"
        if is_dataclass(value) or isinstance(value, dict):
            yield from _ranges(value, f"{path}.")
        elif isinstance(value, bool):
            continue
        elif isinstance(value, int) and item.name not in REAL:
            yield from _whole_ranges(item.name, path, value)
        elif isinstance(value, int | float):
            yield from _real_ranges(item.name, path, value)


def _whole_ranges(name: str, path: str, value: int) -> Iterator[str]:
    least, most = MINIMUM.get(name, 1), MAXIMUM.get(name, value)
    if value < least:
        yield f"{path}: is {value}, but it is at least {least}"
    if value > most:
        yield f"{path}: is {value}, but it is at most {most}"


def _real_ranges(name: str, path: str, value: float) -> Iterator[str]:
    if not math.isfinite(value):
        yield f"{path}: is {value}, but it is a finite number"
        return
    if name in SHARES_BELOW_ONE and not 0 <= value < 1:
        yield f"{path}: is {value}, but it is at least 0 and below 1"
    if name in SHARES and not 0 <= value <= 1:
        yield f"{path}: is {value}, but it is a share between 0 and 1"
    if name in POSITIVE and value <= 0:
        yield f"{path}: is {value}, but it is above 0"
    if name in AT_LEAST_ZERO and value < 0:
        yield f"{path}: is {value}, but it is at least 0"


def _sweep_rules(config: SweepConfig) -> Iterator[str]:
    for alpha in config.alphas:
        if not math.isfinite(alpha):
            yield f"alphas: is {alpha}, but it is a finite number"
        elif not (0 <= alpha <= 1 or config.extrapolate):
            yield (
                f"alphas: is {alpha}, but it is the share of the VLM, between 0 and 1 "
                "(extrapolate=true allows it)"
            )
    if not config.alphas:
        yield "alphas: is empty, give at least one"
    elif 0 not in config.alphas:
        yield "alphas: 0 is not among them: the text LM, to hold the others against"
    if len(set(config.alphas)) < len(config.alphas):
        yield f"alphas: {config.alphas} names an alpha twice"
    for name in config.schedules:
        if not SCHEDULE_NAME.fullmatch(name) or name == TEXT_LM:
            yield (
                f"schedules.{name}: the name is that of a file; a letter, then letters, digits, "
                f"_ or -, and not {TEXT_LM}"
            )


def _tracker_rules(tracker: TrackerConfig, *, has_curves: bool) -> Iterator[str]:
    if tracker.artifacts is Artifacts.upload and not tracker.wandb:
        yield "tracker.artifacts: is upload, but artifacts are W&B's: tracker.wandb=true"
    wrong = [char for char in NOT_IN_PROJECTS if char in tracker.project]
    if wrong or not tracker.project:
        told = f"holds {' '.join(wrong)}, which W&B refuses" if wrong else "is empty"
        yield f"tracker.project: is {tracker.project!r}, which {told}; an account is tracker.entity"
    if tracker.tensorboard and not has_curves:
        yield "tracker.tensorboard: there is no curve to show; tracker=wandb keeps the report"


def _judge_rules(config: JudgeConfig) -> Iterator[str]:
    if config.evaluation is None and None in (config.a, config.b):
        yield "evaluation: give the folder with both models' answers, or one for each in a and b"
    if config.evaluation is not None and (config.a, config.b) != (None, None):
        yield "evaluation: holds both models, a and b one each: give one or the other"
    if config.evaluation is not None and not config.models:
        yield "models: required with evaluation: the two names in it, such as [before,after]"
    if config.models and len(config.models) != 2:
        yield f"models: names {len(config.models)}, but it is two: [a, b]"
    url = urlsplit(config.endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        yield f"endpoint: is {config.endpoint!r}, but it is a URL such as http://localhost:8000/v1"
    elif url.query or url.fragment or "@" in url.netloc:  # it is written into the results
        yield "endpoint: holds a query or a user; a key goes into the variable named by api_key_env"
    for name in sorted({"messages", "model", "stream", "n"} & config.request.keys()):
        yield f"request.{name}: is set by the judge itself"


def _model_rules(model: ModelConfig) -> Iterator[str]:
    if model.kind is ModelKind.vlm and model.path is None:
        yield "model.path: required when model.kind=vlm: the folder or hub id of the model"
    if model.kind is not ModelKind.vlm and model.path is not None:
        yield (
            "model.path: is only read when model.kind=vlm; "
            "a text LM is model.decoder.path, a vision tower model.vision_tower.path"
        )
    if model.kind is not ModelKind.compose and model.vision_tower.path is not None:
        yield "model.vision_tower.path: is only read when model.kind=compose"
    if model.kind is ModelKind.vlm and model.decoder.path is not None:
        yield "model.decoder.path: is not read when model.kind=vlm; the model is model.path"
    if model.kind is ModelKind.vlm:
        for key in ("crop_to_patches", "max_patches", "downsample_factor"):
            if getattr(model, key) != getattr(ModelConfig, key):
                yield f"model.{key}: is for composed models; a VLM brings its own processor"
    for name in ("decoder", "vision_tower"):
        shape = getattr(model, name)
        if shape.path is not None:
            yield from _ignored_shape(f"model.{name}", shape)
        if shape.hidden_size % shape.num_attention_heads:
            yield (
                f"model.{name}.num_attention_heads: {shape.num_attention_heads} does not divide "
                f"hidden_size={shape.hidden_size}"
            )
    if model.decoder.num_attention_heads % model.decoder.num_key_value_heads:
        yield "model.decoder.num_key_value_heads: does not divide num_attention_heads"


def _ignored_shape(key: str, shape: Any) -> Iterator[str]:
    """What is said of the shape of a model that is loaded, and has its own."""
    for item in fields(shape):
        is_read = item.name in ("path", "image_size")
        if not is_read and getattr(shape, item.name) != item.default:
            yield f"{key}.{item.name}: is of a fresh one; that of {key}.path brings its own"


def _stage_rules(config: TrainConfig) -> Iterator[str]:
    if config.data.streaming and config.optim.max_steps is None:
        yield "optim.max_steps: required with data.streaming, which knows no length of an epoch"
    modes = {item.name: getattr(config.stage.parts, item.name).mode for item in _parts(config)}
    if all(mode is PartMode.frozen for mode in modes.values()):
        yield "stage.parts: every part is frozen, so nothing would train"
    if config.model.kind is ModelKind.text_lm:
        for name in ("vision_tower", "projector"):
            if modes[name] is not PartMode.frozen:
                yield f"stage.parts.{name}.mode: a text LM has no {name}; it must be frozen"
    if modes["projector"] is PartMode.lora and config.model.kind is not ModelKind.vlm:
        yield "stage.parts.projector.mode: lora is for pretrained parts; use full or frozen"
    may_be_lora = ["vision_tower"] + ["projector"] * (config.model.kind is ModelKind.vlm)
    beside = [name for name in may_be_lora if modes[name] is PartMode.lora]
    if modes["decoder"] is PartMode.full and beside:
        yield (
            f"stage.parts.decoder.mode: is full beside {beside[0]}.mode=lora, but PEFT would train "
            "a copy of the decoder that its tied head does not follow; use lora for both, or full"
        )
    if PartMode.lora not in modes.values() and config.adapter != AdapterConfig():
        yield "adapter: is given, but no part has mode lora; use stage=sft_lora"
    if config.adapter.quantization is not Quantization.none:
        yield from _quantization_rules(config)


def _engine_rules(config: TrainConfig) -> Iterator[str]:
    engine, dtype, kind = config.engine, config.model.dtype, config.engine.kind.value
    is_deepspeed = engine.kind in DEEPSPEED
    if config.optim.on_nonfinite is NonFinite.skip and is_deepspeed:
        yield (
            f"optim.on_nonfinite: is skip, but engine={kind} makes the step before its gradient "
            "can be looked at; use stop, or engine=fsdp2 or ddp"
        )
    if dtype is Dtype.float16:
        yield (
            "model.dtype: is float16, but half precision is computed in bfloat16, to which float16 "
            "weights would be rounded; use bfloat16, or float32"
        )
    if is_deepspeed and engine.bf16 and dtype is Dtype.float32:
        yield (
            f"model.dtype: is float32, but engine={kind} with engine.bf16=true rounds all weights "
            "to bfloat16, also those that do not train, and the export would hold them so; set "
            "model.dtype=bfloat16, or take engine=fsdp2 or ddp"
        )
    if engine.activation_offloading and not engine.gradient_checkpointing:
        yield (
            "engine.activation_offloading: moves what gradient checkpointing keeps; "
            "set engine.gradient_checkpointing=true too"
        )
    modes = [getattr(config.stage.parts, item.name).mode for item in _parts(config)]
    if engine.activation_offloading and kind == "zero3" and PartMode.lora in modes:
        yield (
            "engine.activation_offloading: with engine=zero3 and LoRA TRL computes layers again in "
            "a way that would move all they hold; use engine=fsdp2, or do without"
        )


def _quantization_rules(config: TrainConfig) -> Iterator[str]:
    key, kind = "adapter.quantization", config.engine.kind
    if config.stage.parts.decoder.mode is not PartMode.lora:
        yield f"{key}: is for a decoder whose weights stay; needs stage.parts.decoder.mode=lora"
    if config.model.path is None and config.model.decoder.path is None:
        yield f"{key}: is for a decoder that is loaded; a fresh one has learned nothing to keep"
    if kind not in (EngineKind.single, EngineKind.ddp):
        yield (
            f"{key}: packs weights in blocks that engine={kind.value} does not share out; "
            "use engine=ddp, whose processes each hold them all, or quantization=none"
        )


def _best_rules(config: TrainConfig) -> Iterator[str]:
    metric, groups = config.checkpoint.best_metric, config.data.held_out
    key = "checkpoint.best_metric"
    if metric is None:
        if config.checkpoint.best_is_highest:
            yield "checkpoint.best_is_highest: says nothing without checkpoint.best_metric"
        return
    if config.evaluation.eval_steps == 0:
        yield f"{key}: is measured at the end alone; set evaluation.eval_steps"
    if "blind_" in metric or "choice_accuracy" in metric:
        yield f"{key}: is {metric!r}, which is measured at start and end alone"
    stable = groups and metric.startswith(("retention/", "caption/"))
    if not stable and not any(metric.startswith(f"eval/{name}/") for name in groups):
        names = ", ".join(f"eval/{name}/nll" for name in groups) or "none, data.held_out is empty"
        yield f"{key}: is {metric!r}, which is never measured; measured are, for example: {names}"


def _reference_rules(config: TrainConfig) -> Iterator[str]:
    key, mode = "evaluation.reference", config.stage.parts.decoder.mode
    if config.evaluation.reference is None or mode is PartMode.full:
        return
    if mode is PartMode.lora:
        yield f"{key}: with LoRA the original is at hand with the adapters off; leave it null"
    else:
        yield f"{key}: stage.parts.decoder.mode={mode.value} does not move the decoder"


def _measure_rules(evaluation: MeasureConfig) -> Iterator[str]:
    if evaluation.num_choices == 1:
        yield "evaluation.num_choices: is 1, the right caption alone; give 2 or more, or 0"


def _parts(config: TrainConfig) -> Any:
    return fields(config.stage.parts)


def _data_rules(data: DataConfig) -> Iterator[str]:
    if not data.languages:
        yield "data.languages: is empty, give at least one"
    yield from _language_rules("data.languages", data.languages)
    if len(data.background) != 3 or not all(0 <= value <= 255 for value in data.background):
        yield f"data.background: is {data.background}, but it is [red, green, blue], each 0 to 255"
    if data.streaming:
        yield from _stream_rules(data)
    for group in ("sources", "held_out"):
        for name, source in getattr(data, group).items():
            key = f"data.{group}.{name}"
            if source.kind in NEEDS_PATH and source.path is None:
                kind = source.kind
                yield f"{key}.path: required when kind={kind.value}: {NEEDS_PATH[kind]}"
            yield from _source_rules(key, source)
            yield from _language_rules(f"{key}.languages", source.languages)
            if source.language is not None:
                yield from _language_rules(f"{key}.language", [source.language])
            yield from _prompt_rules(f"{key}.prompts", source.prompts)


def _stream_rules(data: DataConfig) -> Iterator[str]:
    if data.language_temperature != 1:
        yield "data.language_temperature: needs the number of rows, which data.streaming never has"
    if data.verify_pixels:
        yield "data.verify_pixels: is of the index, which data.streaming goes without"
    for name, source in data.sources.items():
        if source.kind in NEEDS_PATH and source.num_rows is not None:
            yield f"data.sources.{name}.num_rows: is not read with data.streaming"
        if source.weight == 0:
            yield f"data.sources.{name}.weight: is 0, so data.streaming would never draw from it"


NEEDS_PATH = {
    SourceKind.dataset: "builder, hub id or folder",
    SourceKind.files: "file, folder or glob",
}
# What each kind of source reads besides `kind`; anything else would be ignored in silence.
_SHIPPED = {"weight", "languages", "num_rows"}
READ_BY: dict[SourceKind, set[str]] = {
    SourceKind.emoji_scenes: {*_SHIPPED, "held_out"},
    SourceKind.concept_names: _SHIPPED,
    SourceKind.number_words: {*_SHIPPED, "held_out", "max_number"},
    SourceKind.udhr: {*_SHIPPED, "held_out"},
    SourceKind.dataset: {item.name for item in fields(SourceConfig)}
    - {"languages", "held_out", "max_number"},
    SourceKind.files: {item.name for item in fields(SourceConfig)}
    - {"languages", "held_out", "max_number", "name", "split", "data_files"},
}


def _source_rules(key: str, source: SourceConfig) -> Iterator[str]:
    default = SourceConfig()
    for item in fields(source):
        given = getattr(source, item.name) != getattr(default, item.name)
        if item.name != "kind" and given and item.name not in READ_BY[source.kind]:
            yield f"{key}.{item.name}: is not read by kind={source.kind.value}"


def _prompt_rules(key: str, prompts: dict[str, list[str]]) -> Iterator[str]:
    yield from _language_rules(key, list(prompts))
    for language, words in prompts.items():
        if not words or not all(text.strip() for text in words):
            yield f"{key}.{language}: holds no words to ask with"


def _language_rules(key: str, codes: list[str]) -> Iterator[str]:
    for code in codes:
        if code not in LANGUAGES:
            yield f"{key}: {code!r} is not one of {', '.join(LANGUAGES)}"
    if len(set(codes)) < len(codes):
        yield f"{key}: {codes} names a language twice"

"""The truth about every knob: type, default, one line of meaning with its unit and range.

YAML files beside this one hold only differences. A required value is `MISSING` (`???` in YAML),
a choice is an `Enum`. Nothing here imports torch.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class PartMode(Enum):
    """What happens to one part of the model in training."""

    frozen = "frozen"  # no gradient
    lora = "lora"  # low-rank adapters on its linear layers, see `adapter`
    full = "full"  # every parameter trains


class Quantization(Enum):
    """How the frozen weights of a decoder with adapters are held."""

    none = "none"  # as the model is
    nf4 = "nf4"  # bitsandbytes: 4 bits (QLoRA, arXiv 2305.14314); engine=ddp or single


class ModelKind(Enum):
    """Where the model comes from."""

    text_lm = "text_lm"  # a text LM alone (stage=text)
    compose = "compose"  # a text LM, a vision tower, a fresh projector
    vlm = "vlm"  # a vision-language model from a folder or the hub


class Dtype(Enum):
    """Number format of the weights in memory and export; what trains is float32 in memory."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Attention(Enum):
    """Attention implementation. All keep packed samples apart and give the same loss."""

    auto = "auto"  # FlashAttention where it is installed and can be used, else sdpa_by_sample or
    # sdpa; which one and why is logged
    flash_attention_2 = "flash_attention_2"  # package flash-attn: a GPU, half precision
    flash_attention_3 = "flash_attention_3"  # package flash-attn-3: likewise, on Hopper
    sdpa_by_sample = "sdpa_by_sample"  # ours: each sample of a pack on its own
    sdpa = "sdpa"  # transformers': a dense mask over the pack
    eager = "eager"  # transformers': without fused kernels
    flex_attention = "flex_attention"  # torch's: compiled blocks; trains on a GPU alone


class SourceKind(Enum):
    """What a data source is read from."""

    emoji_scenes = "emoji_scenes"  # shipped: pictures composed of emoji, captions in 23 languages
    concept_names = "concept_names"  # shipped: names of those emoji from one language to another
    number_words = "number_words"  # made: numbers written in words, 23 languages
    udhr = "udhr"  # shipped: Universal Declaration of Human Rights, 23 languages
    dataset = "dataset"  # anything `datasets.load_dataset` reads: hub, parquet, image folder
    files = "files"  # JSONL, JSON, CSV, a folder with metadata, WebDataset tar shards


class BadRow(Enum):
    """What to do with a row that cannot be used."""

    error = "error"  # stop and name the row
    skip = "skip"  # leave it out, count it, name it in rows.jsonl


class NonFinite(Enum):
    """What to do with a step whose gradient is infinite or not a number."""

    stop = "stop"  # end the run, naming the rows; the last checkpoint is not touched
    skip = "skip"  # leave the step out, count it, name its rows in the log


class WandbMode(Enum):
    """How to talk to Weights & Biases."""

    auto = "auto"  # online when a key is at hand, else offline; never asks
    online = "online"
    offline = "offline"


class Alarm(Enum):
    """What to do when held-out text has lost more than it may."""

    warn = "warn"  # say so, with the languages that lost most
    stop = "stop"  # also save a checkpoint and end the run, exit code 1


class Artifacts(Enum):
    """Exports, merges and checkpoints that are kept, as artifacts of W&B with their lineage."""

    none = "none"
    reference = "reference"  # names, sizes and checksums of files; the files stay where they are
    upload = "upload"  # the files too


class EngineKind(Enum):
    """How several processes share the work."""

    single = "single"  # one process; more are refused
    ddp = "ddp"  # each holds the whole model; one process is a run like `single`
    zero2 = "zero2"  # DeepSpeed: gradients and optimizer state are shared out
    zero3 = "zero3"  # DeepSpeed: the weights too
    fsdp2 = "fsdp2"  # torch: weights, gradients and optimizer state are shared out


DEEPSPEED = (EngineKind.zero2, EngineKind.zero3)


class MergeMethod(Enum):
    """How two decoders become one; formulas and sources are in merge/recipe/."""

    linear = "linear"  # text + alpha * (vlm - text)
    slerp = "slerp"  # along the great circle between the two
    task_arithmetic = "task_arithmetic"  # weighted sum of both task vectors, on a base
    ties = "ties"  # task vectors trimmed, one sign elected an element
    dare = "dare"  # task vectors thinned out at random, the rest scaled up
    dare_ties = "dare_ties"  # both


class OutputDtype(Enum):
    """The dtype of the weights that are written."""

    same = "same"  # each tensor as in the VLM
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


# --------------------------------------------------------------------------------- model


@dataclass
class DecoderConfig:
    """The text LM. With `path` it is loaded; without, a fresh Cohere2 of this shape is made."""

    path: str | None = None  # folder or hub id of a text LM
    vocab_size: int = 2048  # tokens, of the tokenizer that is trained for a fresh decoder
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 4  # every fourth is full attention without positions
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    sliding_window: int = 4096  # tokens
    max_position_embeddings: int = 8192  # tokens
    rope_theta: float = 50000.0
    logit_scale: float = 0.25  # Command R7B's
    initializer_range: float = 0.02  # standard deviation of fresh weights


@dataclass
class VisionTowerConfig:
    """The SigLIP tower. With `path` it is loaded; without, a fresh one of this shape is made."""

    path: str | None = None  # folder or hub id of a SigLIP or SigLIP2 model, NaFlex too
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    # Pixels a tile side; position embeddings of a loaded tower are resampled to it. null: its own,
    # or the largest below it whose patches downsample_factor divides; 64 for a fresh one.
    image_size: int | None = None
    patch_size: int = 8  # pixels, of a fresh tower


@dataclass
class ModelConfig:
    """Which model, and how it is held in memory."""

    kind: ModelKind = MISSING
    path: str | None = None  # kind=vlm: folder or hub id of a vision-language model
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    vision_tower: VisionTowerConfig = field(default_factory=VisionTowerConfig)
    projector_intermediate_size: int | None = None  # rows before the SwiGLU; null: 7 x hidden_size
    downsample_factor: int = 2  # pixel shuffle: this many squared patches become one image token
    crop_to_patches: bool = False  # composed models: cut large pictures into tiles
    max_patches: int = 12  # composed models: most tiles a picture, without the thumbnail
    dtype: Dtype = Dtype.float32
    attn_implementation: Attention = Attention.auto


# ---------------------------------------------------------------------------------- data


@dataclass
class SourceConfig:
    """One source of rows. From `path` on: what kinds `dataset` and `files` read."""

    kind: SourceKind = MISSING
    weight: float = 1.0  # times each row is seen an epoch; 0.5: about half, drawn anew each epoch
    # (data.streaming: how often the source is drawn from, relative to the others)
    languages: list[str] = field(default_factory=list)  # empty: data.languages
    num_rows: int | None = None  # rows to make (shipped kinds) or to take at most (others)
    held_out: bool = False  # shipped kinds: the part that training never sees
    max_number: int = 9999  # number_words: largest number
    # Where from
    path: str | None = None  # files: file, folder or glob; dataset: builder, hub id or folder
    name: str | None = None  # dataset: configuration name of a hub data set
    split: str = "train"  # dataset: split, slices allowed ("train[:1%]")
    data_files: list[str] = field(default_factory=list)  # dataset: files of a builder, or globs
    # What of it: names of columns
    id_field: str | None = None  # a unique id; null: where the row stands
    image_field: str | None = "image"  # picture, path, URL, or list of them; null: text alone
    image_root: str | None = None  # folder that relative paths start from and may not leave
    caption_field: str = "caption"  # the answer, or plain text
    prompt_field: str | None = None  # the question; null: drawn from `prompts`
    messages_field: str | None = None  # a conversation, instead of the two above
    image_placeholder: str = "<image>"  # in the words of a conversation or prompt: a picture
    language_field: str | None = None  # the language code
    language: str | None = None  # where no column has it
    prompts: dict[str, list[str]] = field(
        default_factory=dict
    )  # language -> what may ask for a caption, drawn by seed and row; a language without: ours


@dataclass
class DataConfig:
    """What is trained on, what is held out, and how it is packed."""

    sources: dict[str, SourceConfig] = MISSING  # name -> source
    held_out: dict[str, SourceConfig] = field(default_factory=dict)  # evaluated, never trained on
    languages: list[str] = field(default_factory=lambda: ["en", "es", "fr", "hi"])
    max_tokens: int = 2048  # budget of a pack, in tokens
    max_tiles: int = 64  # budget of a pack, in image tiles
    packs_per_step: int = 2  # packs in a global batch, over all ranks and accumulation steps
    on_bad_row: BadRow = BadRow.error
    max_bad_ratio: float = 0.05  # with on_bad_row=skip: more than this share stops the run
    language_temperature: float = 1.0  # T of p ~ n^(1/T) over languages; 1: as they come
    max_pixels: int = 178_956_970  # pixels in a picture; above it is refused as a bomb
    max_image_bytes: int = 67_108_864  # bytes of an encoded picture; above it is refused
    background: list[int] = field(
        default_factory=lambda: [255, 255, 255]
    )  # red, green, blue behind transparent pictures
    allow_urls: bool = False  # fetch pictures named by http(s) URLs, once, into cache_dir
    verify_pixels: bool = False  # decode each picture once while indexing, not its header alone
    num_workers: int = 0  # processes a rank that prepare batches
    num_index_workers: int | None = None  # processes that measure rows; null: one a core
    cache_dir: str | None = None  # of measured rows; null: cache.dir, $VISIONGRAFT_CACHE or
    # ~/.cache/visiongraft
    streaming: bool = False  # read in order, without an index: for sets too large for one
    buffer_rows: int = 1024  # streaming: rows that are packed together


# ------------------------------------------------------------------------------ training


@dataclass
class PartConfig:
    """How one part of the model trains."""

    mode: PartMode = PartMode.frozen
    learning_rate: float = 1e-4  # peak


@dataclass
class PartsConfig:
    """The three parts every tensor belongs to."""

    vision_tower: PartConfig = field(default_factory=PartConfig)
    projector: PartConfig = field(default_factory=PartConfig)
    decoder: PartConfig = field(default_factory=PartConfig)


@dataclass
class StageConfig:
    """A preset of what trains."""

    name: str = MISSING
    parts: PartsConfig = field(default_factory=PartsConfig)


@dataclass
class AdapterConfig:
    """LoRA through PEFT, for parts whose mode is `lora`."""

    r: int = 16  # rank
    lora_alpha: int = 32
    lora_dropout: float = 0.0  # in [0, 1)
    use_rslora: bool = False  # scale by alpha / sqrt(r)
    use_dora: bool = False  # learn magnitude and direction apart
    target_modules: list[str] = field(
        default_factory=list
    )  # last names of linear layers, such as q_proj; empty: all of each part with mode lora
    quantization: Quantization = Quantization.none  # of the decoder's linear layers


@dataclass
class OptimConfig:
    """AdamW and its schedule (warm-up, then cosine to a share of the peak)."""

    max_steps: int | None = None  # optimizer steps; null: num_epochs decides
    num_epochs: float = 1.0  # passes over the data
    warmup_steps: int | None = None  # null: the paper's 200, but at most a tenth of the run
    min_lr_ratio: float = 0.1  # learning rate at the end as a share of the peak
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    on_nonfinite: NonFinite = NonFinite.stop  # skip: not with DeepSpeed, which steps by itself
    spike_deviations: float | None = 6.0  # a step's loss so many standard deviations above those
    # of the 100 steps before it is told, with its rows; null: never


@dataclass
class ThreadsConfig:
    """What a command that runs in one process may use."""

    num_threads: int | None = None  # CPU threads a process; null: torch's choice


@dataclass
class EngineConfig(ThreadsConfig):
    """Processes, threads, memory."""

    kind: EngineKind = EngineKind.ddp
    gradient_checkpointing: bool = False  # recompute activations in backward
    activation_offloading: bool = (
        False  # keep what checkpointing keeps, one state a layer, in host memory
    )
    bf16: bool = (
        False  # compute in bfloat16 (autocast) over float32 weights; so too if dtype is half
    )
    timeout_seconds: float = 1800.0  # that a process waits for another at most, then it ends; a
    # checkpoint must be written, and a batch of held-out rows measured, within it
    peak_tflops: float | None = (
        None  # a device's dense bfloat16 TFLOP/s, for MFU and the plan; null: its datasheet's
    )
    # What dry_run plans for where the devices are not at hand:
    plan_ranks: int | None = None  # processes; null, or under torchrun: those that were started
    device_memory_gib: float | None = None  # of a device; read only where there is no GPU


@dataclass
class CheckpointConfig:
    """Checkpoints to resume from. They appear whole or not at all.

    SIGTERM and SIGUSR1 write one after the step that is at work and end the run with exit code 75:
    run the same command again. A second signal ends it at once.
    """

    save_steps: int = 500
    save_total_limit: int = 2  # newest ones kept
    best_metric: str | None = None  # such as eval/scenes/nll: the best by it is kept beside them
    best_is_highest: bool = False  # of best_metric, for matches and chrF; false: the lowest is best


@dataclass
class ExportOptions:
    """The Hugging Face folder that a run ends with."""

    verify: bool = True  # reload it in plain transformers and compare before it is called done


@dataclass
class MeasureConfig:
    """How much is measured on data.held_out."""

    max_rows: int = 128  # rows of a source and language at most
    generate: bool = True  # also answer by greedy search, for exact match, chrF, BLEU and CIDEr
    max_answers: int = 128  # rows of a source and language that are answered, the first ones
    max_new_tokens: int = 48
    batch_size: int = 32  # conversations answered at once
    num_choices: int = 0  # captions among which the right one is to be found; 0: not measured
    blind: bool = False  # measure all that is about pictures once more with the pictures blanked


@dataclass
class EvaluationConfig(MeasureConfig):
    """What is measured on data.held_out, and when: at step 0, every eval_steps, and at the end."""

    max_rows: int = 32  # the same rows each time
    max_answers: int = 16
    num_choices: int = 4  # at step 0 and at the end
    blind: bool = True  # at step 0 and at the end
    # Steps between measurements. null: a tenth of the run, at least 100; 0: at start and end alone
    eval_steps: int | None = None
    eval_on_start: bool = True  # false: of step 0, only the text losses that later ones are held
    # against
    # Folder or hub id of the LM that the decoder was: KL to it is measured where the decoder trains
    # in full. With LoRA it is at hand, with the adapters off, and none is given
    reference: str | None = None
    # Nats a token that a group of held-out text may lose over step 0, mean over languages; null: no
    # alarm. At the end of a run it warns in any case: nothing is left to stop
    max_text_loss_increase: float | None = 0.05
    on_text_loss_increase: Alarm = Alarm.warn


@dataclass
class TrackerConfig:
    """Where metrics go besides metrics.jsonl, which is always written."""

    wandb: bool = True
    tensorboard: bool = False  # events in tensorboard/ of the run folder; both may be on
    mode: WandbMode = WandbMode.auto
    project: str = "visiongraft"
    entity: str | None = None
    group: str | None = None  # one group for the runs of a pipeline
    artifacts: Artifacts = Artifacts.reference
    logging_steps: int = 10


@dataclass
class CacheConfig:
    """Where models and sets of the hub, measured rows and compiled kernels are kept."""

    dir: str | None = None  # on a fast disk; null: where $HF_HOME, $VISIONGRAFT_CACHE etc. say
    # One process fetches or measures while the others wait: seconds without a sign of life from it
    # after which they give up
    timeout_seconds: float = 600.0


@dataclass
class TrainConfig:
    """`torchrun train/main.py`"""

    output_dir: str = MISSING  # run folder; holds one run
    seed: int = 0
    dry_run: bool = False  # check everything, print the plan, train nothing
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    export: ExportOptions = field(default_factory=ExportOptions)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)


# ------------------------------------------------------------------------- other commands


@dataclass
class AlphaConfig:
    """The VLM's share in each tensor of the decoder."""

    # A number in [0, 1]; numbers spread over the depth, first layer to last ([0.8, 0.2]); or
    # [depth, alpha] points ([[0, 0.8], [0.5, 0.6], [1, 0]]). The paper's is 0.4 (arXiv 2505.08751)
    alpha: Any = 0.4
    # The same for kinds of modules (embeddings, attention, mlp, norms, head) and for regular
    # expressions on names such as model.layers.0.mlp.up_proj.weight; the last that fits decides
    alpha_overrides: dict[str, Any] = field(default_factory=dict)


@dataclass
class MethodConfig:
    """How the two decoders are merged. What a method does not read must stay null."""

    method: MergeMethod = MergeMethod.linear
    base: str | None = None  # folder of a third model that both decoders were trained from
    text_weight: float | None = None  # of the text LM's task vector text - base; null: 1
    density: float | None = None  # share of each task vector that is kept, in (0, 1]
    normalize: bool | None = None  # divide by the weights that act on an element; null: false
    drop_seed: int | None = None  # of what is dropped at random; null: 0
    extrapolate: bool = False  # allow alphas outside [0, 1]


@dataclass
class MergeConfig(AlphaConfig, MethodConfig):
    """`python -m merge`"""

    vlm: str = MISSING  # folder of the vision-tuned model
    text: str = MISSING  # folder of the text LM it was grafted on
    out: str = MISSING  # folder to write; must not exist or be empty
    # Folder of a LoRA run trained on `vlm`, of a checkpoint or an export of it, or of an adapter of
    # PEFT: folded in on the way, no tuned model is written
    lora: str | None = None
    dtype: OutputDtype = OutputDtype.same
    force: bool = False  # merge although the two do not look related
    allow_nonfinite: bool = False  # merge although an input holds NaN or Inf
    verify: bool = True  # read the result back and compare it with what was asked
    verify_logits: bool = True  # also load it, and compare logits, where memory allows
    # That read, compute and write; null: one a core, as far as 256 MiB allow (8; 4 with torch)
    num_threads: int | None = None
    dry_run: bool = False  # check everything, print the plan, write nothing
    tracker: TrackerConfig = field(default_factory=TrackerConfig)  # W&B, where it is asked for


@dataclass
class VerifyMergeConfig:
    """`python -m merge --verify DIR`"""

    folder: str = MISSING  # that a merge has written
    vlm: str | None = None  # where an input was moved to; null: where the report says
    text: str | None = None
    base: str | None = None
    lora: str | None = None
    verify_logits: bool = True  # also load it, and compare logits, where memory allows


@dataclass
class SweepConfig(MethodConfig):
    """`python -m merge.sweep`, under torchrun too: its processes share out what is measured"""

    vlm: str = MISSING
    text: str = MISSING
    lora: str | None = None  # of a LoRA run on `vlm`, as for merge
    out: str = MISSING  # folder for tables, plot and finished points; the same command goes on
    # One alpha of all tensors each; 0, the text LM, must be among them
    alphas: list[float] = field(default_factory=lambda: [i / 10 for i in range(11)])
    # name -> alpha by depth or kind of module, measured beside `alphas`, such as
    # {falling: {alpha: [0.8, 0.2]}, no_embeddings: {alpha: 0.4, alpha_overrides: {embeddings: 0}}}
    schedules: dict[str, AlphaConfig] = field(default_factory=dict)
    max_text_loss_increase: float = 0.05  # nats a token over the text LM that the choice may cost
    # Folder to write the chosen model to, as `python -m merge` would; null: no model is written
    write_to: str | None = None
    force: bool = False  # sweep although the two do not look related
    seed: int = (
        0  # changes no figure: rows are fixed, answers greedy; one override serves a pipeline
    )
    dry_run: bool = False  # check everything, print the plan, measure nothing
    data: DataConfig = field(default_factory=DataConfig)  # `held_out` of it is read
    engine: ThreadsConfig = field(default_factory=ThreadsConfig)
    evaluation: MeasureConfig = field(default_factory=MeasureConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)


@dataclass
class CompareConfig(MeasureConfig):
    """What is measured of finished models."""

    num_choices: int = 4
    blind: bool = True
    reference: str | None = None  # folder or hub id of the text LM that KL is measured to


@dataclass
class EvaluateConfig:
    """`python -m train.evaluate`, under torchrun too"""

    # Name in the table -> folder or hub id of a text LM or vision-language model; model=DIR is one
    models: dict[str, str] = MISSING
    out: str = MISSING  # folder for evaluation.json, report.md, report.html and pictures
    seed: int = (
        0  # changes no figure: rows are fixed, answers greedy; one override serves a pipeline
    )
    dry_run: bool = False  # check everything, print the plan, measure nothing
    data: DataConfig = field(default_factory=DataConfig)  # `held_out` of it is read
    engine: ThreadsConfig = field(default_factory=ThreadsConfig)
    evaluation: CompareConfig = field(default_factory=CompareConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)  # W&B, where it is asked for


@dataclass
class ExportConfig(ExportOptions):
    """`python -m train.export_checkpoint`"""

    run: str = MISSING  # run folder of a training, finished or not
    out: str = MISSING  # folder to write; must not exist or be empty
    checkpoint: str = (
        "newest"  # newest, best (by checkpoint.best_metric), or such as checkpoint-500
    )
    dry_run: bool = False  # check everything, print the plan, write nothing
    engine: ThreadsConfig = field(default_factory=ThreadsConfig)


@dataclass
class DashboardConfig:
    """`python -m launch.dashboard`"""

    project: str = "visiongraft"  # as tracker.project
    entity: str | None = None  # user or team; null: the default one of who is logged in
    name: str = "visiongraft"  # of the saved view
    # Names in data.held_out whose answers are shown as tables
    held_out: list[str] = field(default_factory=lambda: ["scenes", "numbers"])
    dry_run: bool = False  # print what would be saved as JSON; no account is needed


@dataclass
class SyncConfig:
    """`python -m launch.sync`"""

    folder: str = MISSING  # searched for offline W&B runs, with all that is below it
    watch_seconds: float | None = None  # look again after so many, until Ctrl-C; null: once
    dry_run: bool = False  # list what would be sent; no account is needed


@dataclass
class InspectConfig:
    """`python -m data.inspect`"""

    num_rows: int = 3  # rows a source to show, spread over its languages
    html: str | None = None  # file to write a page to, with pictures; `--html FILE` is the same
    seed: int = 0  # of what is drawn: rows to show, prompts, shipped rows
    model: ModelConfig = field(default_factory=ModelConfig)  # for its processor; no weights load
    data: DataConfig = field(default_factory=DataConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)


@dataclass
class JudgeConfig:
    """`python -m train.judge`"""

    # Folder of `train.evaluate` with both models, named by `models`; or one for each in `a` and `b`
    evaluation: str | None = None
    a: str | None = None  # folder of `train.evaluate`, or a file evaluation/step-*.json of a run
    b: str | None = None
    models: list[str] = field(default_factory=list)  # [a, b]; where an evaluation holds several
    groups: list[str] = field(default_factory=list)  # of held-out rows; empty: all with answers
    num_rows: int | None = None  # judged of each language of a group; null: all
    endpoint: str = MISSING  # OpenAI-compatible, up to /v1
    judge_model: str = MISSING  # its name there (`model` is a config group to Hydra)
    out: str = MISSING  # folder for judge.json, judge.md and verdicts.jsonl; goes on there
    with_pictures: bool = True  # show the judge the picture; false: the reference in its place
    prompt_file: str | None = None  # YAML with `system` and `user`; null: train/judging/prompt.yaml
    api_key_env: str = "OPENAI_API_KEY"  # environment variable that holds the key; unset: no key
    num_concurrent: int = 8  # requests at once
    timeout_seconds: float = 120.0  # for one try of a request
    num_retries: int = 5  # after a full or failing server, a lost connection, no answer in time
    backoff_seconds: float = 1.0  # before the first retry; doubled each time, Retry-After wins
    max_backoff_seconds: float = 120.0  # longest wait, whatever the server asks for
    max_tokens: int = 1024  # of the judge's reply
    # Further fields of a request's body, such as {reasoning_effort: low}; null takes one out
    request: dict[str, Any] = field(default_factory=dict)
    num_resamples: int = 2000  # of the bootstrap behind the intervals
    confidence: float = 0.95  # of the intervals
    seed: int = 0  # of the requests, the rows drawn and the bootstrap
    dry_run: bool = False  # check everything, tell the number of requests, ask nothing

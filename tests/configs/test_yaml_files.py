"""Every YAML file under configs/ composes, validates, and says what ends up in the config."""

import re
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from configs.command import CONFIG_DIR, SCHEMAS, config_groups, load_config
from configs.errors import ConfigError

REQUIRED = re.compile(r"(\S+): required, give it a value")
FILES = sorted(path.relative_to(CONFIG_DIR) for path in CONFIG_DIR.rglob("*.yaml"))
GROUP_FILES = [path for path in FILES if len(path.parts) > 1]
GIVEN = {"models": "={a: b}", "endpoint": "=http://given/v1"}
# What else must be said for a choice to make sense.
TOGETHER = {"model/pico_text": ["stage=text"], "model/text_lm": ["stage=text"]}
TOGETHER["stage/text"] = ["model=pico_text"]
TOGETHER["adapter/lora_r256"] = ["stage=sft_lora"]
TOGETHER["judge"] = ["a=one", "b=other"]


def groups_of(command: str) -> list[str]:
    """The config groups in a command's defaults."""
    defaults = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / f"{command}.yaml"))["defaults"]
    names = [name for entry in defaults if isinstance(entry, dict) for name in entry]
    return [name for name in names if not name.startswith("override")]


def compose(command: str, overrides: list[str]) -> Any:
    """Compose and check, giving every required value that is still missing a text."""
    try:
        return load_config(command, overrides)
    except ConfigError as error:
        missing = REQUIRED.findall(str(error))
        if not missing:
            raise
        given = [GIVEN.get(key, "=given") for key in missing]
        return load_config(
            command, overrides + [k + g for k, g in zip(missing, given, strict=True)]
        )


def plain(value: Any) -> Any:
    """Enums by name, all the way down."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.name if isinstance(value, Enum) else value


def assert_holds(config: Any, said: Any, path: str) -> None:
    """Every leaf that a file says is in the config."""
    if isinstance(said, dict) and isinstance(config, dict):
        for key, value in said.items():
            assert key in config, f"{path}.{key}"
            assert_holds(config[key], value, f"{path}.{key}")
    elif said in ("???", "${required:}"):
        assert config == "given", path
    elif not (isinstance(said, str) and "${" in said):
        assert config == said, path


def test_there_are_files() -> None:
    assert {"train.yaml", "merge.yaml", "sweep.yaml", "evaluate.yaml", "inspect.yaml"} <= {
        str(path) for path in FILES
    }
    assert len(GROUP_FILES) > 15


def test_every_file_is_a_command_or_in_a_group_of_one() -> None:
    reachable = groups_of("train")
    assert all(set(groups_of(command)) <= set(reachable) for command in SCHEMAS)
    for path in FILES:
        if len(path.parts) == 1:
            assert path.stem in SCHEMAS, f"{path} is no command's"
        else:
            assert path.parts[0] in reachable, f"no command has the group of {path}"
            assert len(path.parts) == 2, f"{path} is nested deeper than a command can choose"


@pytest.mark.parametrize("command", SCHEMAS)
def test_a_command_composes_with_nothing_but_what_is_required(command: str) -> None:
    assert isinstance(compose(command, TOGETHER.get(command, [])), SCHEMAS[command])


@pytest.mark.parametrize("command", ["evaluate", "sweep", "inspect"])
def test_the_help_names_the_groups_that_a_command_reads(command: str) -> None:
    text = (CONFIG_DIR / f"{command}.yaml").read_text()
    lines = [
        f"      {group}: {', '.join(sorted(p.stem for p in (CONFIG_DIR / group).glob('*.yaml')))}\n"
        for group in groups_of(command)
    ]
    assert f"==\n\n{''.join(lines)}\n      ==" in text


@pytest.mark.parametrize("path", GROUP_FILES, ids=str)
def test_a_group_file_composes_and_arrives(path: Path) -> None:
    group, option = path.parts[0], path.stem
    said = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / path))
    assert isinstance(said, dict)
    said.pop("defaults", None)
    is_global = "@package _global_" in (CONFIG_DIR / path).read_text()
    extra = TOGETHER.get(f"{group}/{option}", [])
    config = plain(asdict(compose("train", [f"{group}={option}", *extra])))
    assert_holds(config if is_global else config[group], said, str(path))


@pytest.mark.parametrize("option", ["text_lm", "compose", "vlm"])
def test_a_model_that_needs_a_path_does_not_come_without(option: str) -> None:
    """A fresh small model in place of the one that was forgotten would train for nothing."""
    with pytest.raises(ConfigError, match=r"model\.(decoder\.)?path: required"):
        load_config("train", [f"model={option}", *TOGETHER.get(f"model/{option}", [])])


def test_groups_are_the_folders() -> None:
    assert config_groups() == sorted({path.parts[0] for path in GROUP_FILES})


def test_loading_a_config_leaves_hydra_as_it_was() -> None:
    first = load_config("train", ["seed=1"])
    assert load_config("train", []).seed == 0
    assert load_config("train", ["seed=1"]) == first


EXPERIMENTS = [path.stem for path in GROUP_FILES if path.match("experiment/aya_vision_*.yaml")]


def test_the_recipes_are_there() -> None:
    assert EXPERIMENTS == [
        "aya_vision_32b_sft_lora",
        "aya_vision_8b_align",
        "aya_vision_8b_sft_full",
        "aya_vision_8b_sft_lora",
    ]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_recipe_says_where_it_is_from_and_what_to_expect(name: str) -> None:
    text = (CONFIG_DIR / "experiment" / f"{name}.yaml").read_text()
    for words in ("2505.08751", f"experiment={name}", "Hardware:", "Expected", "Not run by us"):
        assert words in text, words
    config = compose("train", [f"experiment={name}"])
    assert "muP" in text
    assert config.model.dtype.value == "bfloat16" and config.engine.gradient_checkpointing
    assert config.data.max_tokens == 8192 and config.optim.warmup_steps == 200
    assert config.optim.min_lr_ratio == 0.1 and config.optim.adam_beta2 == 0.95
    assert config.data.packs_per_step % config.engine.plan_ranks == 0


@pytest.mark.parametrize(
    ("name", "mode", "learning_rate", "max_steps", "engine"),
    [
        ("aya_vision_8b_align", "frozen", 1e-4, 9_700, "ddp"),
        ("aya_vision_8b_sft_lora", "lora", 1e-4, 31_000, "ddp"),
        ("aya_vision_8b_sft_full", "full", 1e-5, 31_000, "zero2"),
        ("aya_vision_32b_sft_lora", "lora", 1e-4, 31_000, "fsdp2"),
    ],
)
def test_a_recipe_is_the_papers_but_for_mup(
    name: str, mode: str, learning_rate: float, max_steps: int, engine: str
) -> None:
    """The paper's 1e-4 (8B) and 5e-4 (32B) hold under muP; outside it full takes about 1e-5."""
    config = compose("train", [f"experiment={name}"])
    decoder = config.stage.parts.decoder
    assert (decoder.mode.value, decoder.learning_rate) == (mode, learning_rate)
    assert (config.optim.max_steps, config.engine.kind.value) == (max_steps, engine)
    assert config.stage.parts.vision_tower.mode.value == "frozen"
    if mode == "lora":
        assert (config.adapter.r, config.adapter.lora_alpha) == (256, 512)

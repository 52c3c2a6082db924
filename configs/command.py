"""What every command does around its work: compose, check, log, end with one clear message.

An entry point is `run_command("train", TrainConfig, "train.run:train")`. The task is named, not
imported, so that `--help`, `--cfg job` and a wrong key answer before torch is loaded.
"""

import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from configs.errors import ConfigError, VisiongraftError
from configs.rules import check_rules
from configs.schema import (
    EvaluateConfig,
    InspectConfig,
    MergeConfig,
    SweepConfig,
    TrainConfig,
)
from configs.strict import check_override_keys, to_dataclass

CONFIG_DIR = Path(__file__).resolve().parent
SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "merge": MergeConfig,
    "sweep": SweepConfig,
    "evaluate": EvaluateConfig,
    "inspect": InspectConfig,
}
EXIT_INTERRUPTED = 128 + signal.SIGINT  # what a shell reports for a program ended by Ctrl-C


def run_command(config_name: str, task: str) -> None:
    """Compose `configs/<config_name>.yaml`, check it, and call `task` ("module:function") with it.

    Errors a user can cause are printed as one message, without frames, and end with exit code 1
    (2 for the config, 130 for Ctrl-C).
    """
    schema = SCHEMAS[config_name]
    register_schemas()

    def call(config: DictConfig) -> None:
        _guarded(lambda: _check_and_call(config, schema, task))

    def main() -> None:
        check_override_keys(_command_line_keys(), schema, config_groups())
        hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(call)()

    _guarded(main)


def register_schemas() -> None:
    """Tell Hydra the defaults of every command, under `<name>_schema`."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        # As plain values: what is unknown is then found by us, all at once, with a better hint.
        values = OmegaConf.to_container(OmegaConf.structured(schema), enum_to_str=True)
        store.store(name=f"{name}_schema", node=values)


def load_config(config_name: str, overrides: list[str]) -> Any:
    """Compose and check a config without a command line, for tests and scripts."""
    schema = SCHEMAS[config_name]
    register_schemas()
    check_override_keys(_keys_of(overrides), schema, config_groups())
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config: Any = to_dataclass(hydra.compose(config_name, overrides), schema)
    check_rules(config)
    return config


def config_groups() -> list[str]:
    """Return the names of the folders in `configs/`, each a group of alternatives."""
    return sorted(p.name for p in CONFIG_DIR.iterdir() if p.is_dir() and any(p.glob("*.yaml")))


def setup_logging() -> None:
    """Log to the terminal, from the first process only."""
    level = logging.INFO if is_first_process() else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in (
        "httpx",
        "filelock",
        "urllib3",
        "datasets",
        "deepspeed",
        "matplotlib",
        "bitsandbytes",
    ):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def is_first_process() -> bool:
    """True on global rank 0, also before torch is imported."""
    return os.environ.get("RANK", "0") == "0"


def _check_and_call(config: DictConfig, schema: type, task: str) -> None:
    plain: Any = to_dataclass(config, schema)
    if HydraConfig.get().mode == RunMode.MULTIRUN and hasattr(plain, "output_dir"):
        plain = replace(plain, output_dir=f"{plain.output_dir}/{HydraConfig.get().job.num}")
    check_rules(plain)
    setup_logging()
    module, function = task.split(":")
    getattr(importlib.import_module(module), function)(plain)


def _guarded(call: Callable[[], None]) -> None:
    try:
        call()
    except VisiongraftError as error:
        _exit(f"error: {error}", error.exit_code)
    except HydraException as error:
        _exit(f"error: {error}", ConfigError.exit_code)
    except KeyboardInterrupt:
        _exit("interrupted; the same command goes on from the last checkpoint", EXIT_INTERRUPTED)


def _exit(message: str, code: int) -> None:
    if is_first_process():
        sys.stderr.write(f"\n{message}\n")
    sys.stderr.flush()
    sys.exit(code)


def _command_line_keys() -> list[tuple[str, str]]:
    return _keys_of([a for a in sys.argv[1:] if not a.startswith("-") and ("=" in a or "~" in a)])


def _keys_of(overrides: list[str]) -> list[tuple[str, str]]:
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [(item.key_or_group, str(item.value())) for item in parsed]

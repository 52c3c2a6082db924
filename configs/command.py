"""What every command does around its work: compose, check, log, end with one clear message.

An entry point is `run_command("train", "train.start:start")`. The task is named, not
imported, so that `--help`, `--cfg job` and a wrong key answer before torch is loaded.
"""

import functools
import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from configs.disks import set_caches
from configs.errors import ConfigError, Preempted, VisiongraftError
from configs.rules import check_rules
from configs.schema import (
    DashboardConfig,
    EvaluateConfig,
    ExportConfig,
    InspectConfig,
    JudgeConfig,
    MergeConfig,
    SweepConfig,
    SyncConfig,
    TrainConfig,
    VerifyMergeConfig,
)
from configs.signals import tell_exit, when_nothing_is_lost
from configs.strict import (
    MISSING_MARK,
    check_override_keys,
    is_below_free_name,
    to_dataclass,
)
from configs.submitted import is_submitted, run_submitted

CONFIG_DIR = Path(__file__).resolve().parent
SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "merge": MergeConfig,
    "verify_merge": VerifyMergeConfig,
    "sweep": SweepConfig,
    "evaluate": EvaluateConfig,
    "judge": JudgeConfig,
    "inspect": InspectConfig,
    "export": ExportConfig,
    "dashboard": DashboardConfig,
    "sync": SyncConfig,
}
IN_SEVERAL_PROCESSES = (TrainConfig, SweepConfig, EvaluateConfig)
FOLDERS = ("output_dir", "out")  # the key that names where a command writes
AGAIN = {
    "train": "; the same command goes on from the last checkpoint, or anew where there is none yet",
    "sweep": "; the same command goes on with what is not measured yet",
    "judge": "; the same command goes on with what is not judged yet",
    "sync": "; the same command goes on with what is not sent yet",
}
TELLING_SECONDS = 5.0  # that the first process has at most to tell what is wrong
EXIT_INTERRUPTED = 128 + signal.SIGINT  # what a shell reports for a program ended by Ctrl-C


def run_command(config_name: str, task: str) -> None:
    """Compose `configs/<config_name>.yaml`, check it, and call `task` ("module:function") with it.

    Errors a user can cause are printed as one message, without frames, and end with exit code 1
    (2 for the config, 130 for Ctrl-C, 75 where SIGTERM or SIGUSR1 ended a run with a checkpoint).
    """
    schema = SCHEMAS[config_name]
    register_schema(config_name)
    # Read once, when torch is imported. Threads that spin while they wait make a small model's step
    # on a busy 2-core machine over 15 times as long (measured, docs/BENCHMARKS.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "WORLD_SIZE" not in os.environ:  # one process is for one device; torchrun is for several
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

    def call(config: DictConfig) -> None:
        if is_submitted():
            register_schema(config_name)  # a new process, with Hydra's memory alone
            run_submitted(lambda: _check_and_call(config, schema, task))
        else:
            # torchrun also sends SIGTERM to those that are left when one has failed; what ended a
            # run of its processes, launch/agent.py knows.
            if schema is TrainConfig and "RANK" not in os.environ and not config.get("dry_run"):
                when_nothing_is_lost()
            _guarded(lambda: _check_and_call(config, schema, task), config_name)

    def main() -> None:
        # Hydra would print errors with its own frames; this hands them on to us.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        sys.argv[1:] = as_hydra_takes_them(sys.argv[1:], schema)
        hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(call)()

    # What an earlier start has told, before torchrun started this one (--max-restarts), is over: an
    # error without a code of ours would be taken for a run that was stopped with a checkpoint.
    tell_exit(None)
    _guarded(main, config_name)


@functools.cache
def register_schema(config_name: str) -> None:
    """Tell Hydra the defaults of one command, under `<name>_schema`.

    For `--help` Hydra (1.3) copies its list of sources 90 times, and with it the store of what it
    was told: two thirds of all the time. Nobody writes to the store then; one serves them all.
    """
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    # `path: ???` in a YAML file would not stand against a default of null: OmegaConf merges a
    # missing value over nothing. `path: ${required:}` does.
    OmegaConf.register_new_resolver("required", lambda: MISSING_MARK, replace=True)
    # As plain values: what is unknown is then found by us, all at once, with a better hint.
    schema = OmegaConf.structured(SCHEMAS[config_name])
    values = OmegaConf.to_container(schema, enum_to_str=True)
    ConfigStore.instance().store(name=f"{config_name}_schema", node=values)


def load_config(config_name: str, overrides: list[str]) -> Any:
    """Compose and check a config without a command line, for tests and scripts."""
    schema = SCHEMAS[config_name]
    register_schema(config_name)
    given = as_hydra_takes_them(overrides, schema)
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config: Any = to_dataclass(hydra.compose(config_name, given), schema)
    check_rules(config)
    return config


def as_hydra_takes_them(arguments: list[str], schema: type) -> list[str]:
    """Check the keys of a command line; return it with what Hydra wants before some of them."""
    spelt = [_spell_out(text, schema) for text in arguments]
    check_override_keys(_keys_of(filter(_is_override, spelt)), schema, config_groups())
    return [_for_hydra(text, schema) if _is_override(text) else text for text in spelt]


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
    if HydraConfig.get().mode == RunMode.MULTIRUN:  # a folder for each run
        for key in FOLDERS:
            if hasattr(plain, key):
                path = f"{getattr(plain, key)}/{HydraConfig.get().job.num}"
                plain = replace(plain, **{key: path})
    if schema not in IN_SEVERAL_PROCESSES and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            "only train, sweep and evaluate run in several processes; start this without torchrun"
        )
    check_rules(plain)
    if hasattr(plain, "cache"):
        set_caches(plain.cache)
    setup_logging()
    module, function = task.split(":")
    getattr(importlib.import_module(module), function)(plain)


def _guarded(call: Callable[[], None], config_name: str) -> None:
    try:
        call()
        tell_exit(0)
    except Preempted as stop:  # not an error; every rank would say the same
        _exit(str(stop) if is_first_process() else None, stop.exit_code)
    except VisiongraftError as error:
        _exit(f"error: {error}", error.exit_code)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        _exit(f"error: {error}", ConfigError.exit_code)
    except OSError as error:
        _exit(f"error: {error}", VisiongraftError.exit_code)
    except KeyboardInterrupt:
        again = AGAIN.get(config_name, "")
        if "hydra/launcher=submitit_slurm" in sys.argv:
            again = "; its jobs go on: squeue --me shows them, scancel ends them"
        _exit(f"interrupted{again}", EXIT_INTERRUPTED)


def _exit(message: str | None, code: int) -> None:
    """Print the message and end; what every rank would say of the config, the first one says."""
    rank = os.environ.get("RANK", "0")
    if message is None:
        pass
    elif rank == "0":
        sys.stderr.write(f"\n{message}\n")
    elif code != ConfigError.exit_code:
        sys.stderr.write(f"\n[rank {rank}] {message}\n")
    sys.stderr.flush()
    tell_exit(code)
    if rank != "0" and code == ConfigError.exit_code:
        time.sleep(TELLING_SECONDS)  # torchrun ends the first one as soon as this one has ended
    sys.exit(code)


def _is_override(argument: str) -> bool:
    return not argument.startswith("-") and ("=" in argument or "~" in argument)


def _keys_of(overrides: Iterable[str]) -> list[tuple[str, str]]:
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [
        (item.key_or_group, typed if item.is_sweep_override() else str(item.value()))
        for item in parsed
        for typed in [str(item.input_line).partition("=")[2]]
    ]


def _spell_out(argument: str, schema: type) -> str:
    """Return `models.model=DIR` for evaluate's `model=DIR`: to Hydra that is the group `model`."""
    short = schema is EvaluateConfig and argument.startswith("model=")
    return f"models.{argument}" if short else argument


def _for_hydra(override: str, schema: type) -> str:
    """Put `++` before a key below a free name, such as `data.sources.captions.image_root`.

    Hydra refuses it otherwise where no YAML file mentions it. That it is in the schema was checked.
    So too before a group of free names at the root, such as `schedules`: no YAML file fills one.
    """
    item = OverridesParser.create().parse_override(override)
    key = item.key_or_group
    is_free = is_below_free_name(key if "." in key else f"{key}.name", schema)
    return f"++{override}" if is_free and item.type is OverrideType.CHANGE else override

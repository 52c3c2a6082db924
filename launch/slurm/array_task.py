"""The overrides of one task of a SLURM job array: one combination of a sweep, as Hydra counts them.

    python -m launch.slurm.array_task train seed=0,1,2 optim.warmup_steps=0,10

Task N of `sbatch --array=0-5` gets what `visiongraft train --multirun` would run as number N, and
the same folder, `output_dir/N`. `launch/slurm/run.sbatch` calls this; a NUL ends each override.
"""

import os
import sys
from collections.abc import Mapping, Sequence

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from configs.command import (
    CONFIG_DIR,
    FOLDERS,
    SCHEMAS,
    as_hydra_takes_them,
    load_config,
    register_schema,
)
from configs.errors import ConfigError, VisiongraftError


def main() -> None:
    """Write the overrides of this task to standard output, or one message and end with code 2."""
    try:
        if len(sys.argv) < 2 or sys.argv[1] not in SCHEMAS:
            raise ConfigError(f"name a command: {', '.join(SCHEMAS)}")
        task = task_overrides(sys.argv[1], sys.argv[2:], os.environ)
    except (VisiongraftError, HydraException, OmegaConfBaseException) as error:
        sys.stderr.write(f"\nerror: {error}\n")
        sys.exit(ConfigError.exit_code)
    sys.stdout.buffer.write(b"".join(os.fsencode(text) + b"\0" for text in task))


def task_overrides(command: str, overrides: list[str], environment: Mapping[str, str]) -> list[str]:
    """Return the overrides of the task that SLURM's variables name.

    Raises:
        ConfigError: no combinations, more or fewer of them than tasks, or a wrong combination.
    """
    of_hydra, combinations = expand(command, overrides)
    number = _number_of_task(environment, len(combinations))
    config = load_config(command, combinations[number])
    task = [*of_hydra, *combinations[number]]
    for key in FOLDERS:
        if hasattr(config, key):
            task = [text for text in task if text.split("=")[0].lstrip("+") != key]
            folder = QuotedString(f"{getattr(config, key)}/{number}", Quote.single)
            task.append(f"{key}={folder.with_quotes()}")
    return task


def expand(command: str, overrides: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return overrides of Hydra's own keys, and all combinations of the others in Hydra's order."""
    given = as_hydra_takes_them(overrides, SCHEMAS[command])
    register_schema(command)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        # With a loader, for glob(*) is over the files of a group.
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(given)
        ConfigLoaderImpl.validate_sweep_overrides_legal(parsed, RunMode.MULTIRUN, from_shell=True)
        own = [item for item in parsed if item.is_hydra_override()]
        ours = [item for item in parsed if not item.is_hydra_override()]
        _check_sweep(own, ours)
        (combinations,) = BasicSweeper.split_arguments(ours, max_batch_size=None)
    return [str(item.input_line) for item in own], combinations


def _check_sweep(own: Sequence[Override], ours: Sequence[Override]) -> None:
    for item in own:
        if item.key_or_group.replace("/", ".").startswith(("hydra.sweeper", "hydra.launcher")):
            raise ConfigError(f"{item.input_line} is of --multirun; a job array needs none")
    sweeps = {item.input_line: item.value() for item in ours if item.is_sweep_override()}
    for typed, sweep in sweeps.items():
        if getattr(sweep, "shuffle", False):
            raise ConfigError(f"{typed}: each task would draw an order of its own")
    if not sweeps:
        raise ConfigError(
            "a job array, and no override has several values, such as seed=0,1,2: "
            "every task would do the same"
        )


def _number_of_task(environment: Mapping[str, str], num_combinations: int) -> int:
    """Return SLURM_ARRAY_TASK_ID, where the array is one for this many combinations."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        raise ConfigError("SLURM_ARRAY_TASK_ID is not set; sbatch --array=0-N sets it")
    number = int(environment["SLURM_ARRAY_TASK_ID"])
    first = int(environment.get("SLURM_ARRAY_TASK_MIN", number))
    last = int(environment.get("SLURM_ARRAY_TASK_MAX", number))
    count = int(environment.get("SLURM_ARRAY_TASK_COUNT", 1))
    whole = f"--array=0-{num_combinations - 1}"
    if last >= num_combinations:
        # Told by every task: who is wrong here is as often the sweep as the array.
        raise ConfigError(
            f"the array goes up to {last}, and there are {num_combinations} combinations: {whole}"
        )
    # One task, or some with gaps, are chosen; from 0 on without a gap looks like a wrong count.
    if first == 0 and 1 < count == last + 1 < num_combinations:
        raise ConfigError(
            f"--array=0-{last} is {count} of {num_combinations} combinations: {whole} "
            "(tasks that are done end at once; single ones are --array=1, --array=0,2)"
        )
    return number


if __name__ == "__main__":
    main()

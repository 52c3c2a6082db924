"""Which engine can train with how many processes; light, for the plan asks it too."""

from importlib.metadata import version

from packaging.version import Version

from configs.errors import ConfigError
from configs.schema import DEEPSPEED, EngineKind, TrainConfig
from train.ranks import is_under_torchrun, num_ranks

# Its Trainer is the first to leave a model alone that is sharded already; 5.17 shards it again.
SHARDS_AT_LOAD = Version("5.23.0.dev0")


def check_ranks(config: TrainConfig, planned: int | None = None) -> None:
    """Refuse what a number of processes cannot do, before anything is read or written.

    Args:
        config: of the run.
        planned: processes of a run that is planned for elsewhere; None: those of this run.

    Raises:
        ConfigError: the global batch cannot be shared out, or the engine is for fewer or more
            processes.
    """
    packs, kind = config.data.packs_per_step, config.engine.kind
    ranks = num_ranks() if planned is None else planned
    if packs % ranks:
        raise ConfigError(
            f"data.packs_per_step={packs} cannot be shared by {ranks} processes; "
            f"give a multiple of {ranks}"
        )
    if kind in DEEPSPEED and planned is None and not is_under_torchrun():
        raise ConfigError(
            f"engine={kind.value} needs torchrun, also for one process: "
            "torchrun --nproc_per_node 1 train/main.py ..."
        )
    if kind is EngineKind.single and ranks > 1:
        given = f"torchrun started {ranks}" if planned is None else f"engine.plan_ranks={ranks}"
        raise ConfigError(
            f"engine=single is for one process, but {given}; take engine=ddp, or start one"
        )
    if kind is EngineKind.fsdp2:
        _check_fsdp2(ranks)


def _check_fsdp2(ranks: int) -> None:
    if ranks == 1:
        raise ConfigError(
            "engine=fsdp2 shares a model out over several processes, but there is one: "
            "torchrun --nproc_per_node 2 train/main.py ..., or engine=single"
        )
    here = version("transformers")
    if Version(here) < SHARDS_AT_LOAD:
        raise ConfigError(
            f"engine=fsdp2 needs a transformers whose Trainer leaves a sharded model as it is, "
            f"5.23 or newer; here is {here}: use engine=zero3, or a newer one"
        )

"""The folder of a sweep: whose it is, and what is refused before anything loads."""

import json
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError, ConfigError
from configs.schema import SweepConfig
from merge.proof.report import fingerprint
from merge.reading.adapter import read_adapter
from merge.reading.checkpoint import Role, read_checkpoint
from train.saving.disk import write_text
from train.saving.run_folder import to_plain

# What may change between a sweep and its continuation: more candidates may be added to one, and
# each point holds the recipe it is of.
FREE = (
    *("alphas", "schedules", "max_text_loss_increase", "write_to"),
    *("out", "tracker", "engine", "dry_run"),
)
MOST_SHOWN = 4  # keys that differ


def check_folders(config: SweepConfig) -> None:
    """Refuse inputs that are not there, a folder of another sweep, and a target that is taken.

    Raises CheckpointError for inputs, ConfigError for `out` and `write_to`.
    """
    for key in ("vlm", "text"):
        if not Path(getattr(config, key)).is_dir():
            raise CheckpointError(f"{key}={getattr(config, key)!r} is not a folder")
    _check_out(Path(config.out), config)
    if config.write_to is not None:
        _check_target(Path(config.write_to), config)


def claim(config: SweepConfig) -> None:
    """Write down whose folder it is, and make room for its points."""
    out = Path(config.out)
    (out / "points").mkdir(parents=True, exist_ok=True)
    write_text(out / "config.json", json.dumps(_identity(config), indent=1))


def _check_out(out: Path, config: SweepConfig) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    file = out / "config.json"
    if not file.is_file():
        raise ConfigError(
            f"out={config.out!r} holds something else than a sweep; give a new folder"
        )
    then, now = _flat(json.loads(file.read_text(encoding="utf-8"))), _flat(_identity(config))
    differing = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if differing:
        told = [f"{key} {then.get(key)!r} there, {now.get(key)!r} now" for key in differing]
        more = f"; and {len(told) - MOST_SHOWN} more" if len(told) > MOST_SHOWN else ""
        raise ConfigError(
            f"out={config.out!r} holds something else than this sweep: "
            f"{'; '.join(told[:MOST_SHOWN])}{more}; give a new folder"
        )


def _check_target(target: Path, config: SweepConfig) -> None:
    for key in ("vlm", "text", "out"):
        if target.resolve() == Path(getattr(config, key)).resolve():
            raise ConfigError(f"write_to={config.write_to!r} is {key} too; give a new folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"write_to={config.write_to!r} is taken; remove it, or give a new folder")


def _identity(config: SweepConfig) -> dict[str, Any]:
    """What makes two sweeps the same."""
    plain: dict[str, Any] = to_plain(config)
    kept = {key: value for key, value in plain.items() if key not in FREE}
    return kept | {"files": _fingerprints(config)}


def _fingerprints(config: SweepConfig) -> dict[str, Any]:
    """{role: {file: fingerprint}}: weights that were trained anew in the same folder are others."""
    roles: tuple[Role, ...] = ("vlm", "text", "base")
    found: dict[str, Any] = {}
    for role in roles:
        folder = getattr(config, role)
        if folder is not None:
            shards = read_checkpoint(Path(folder), role).shards
            found[role] = {shard.file.name: fingerprint(shard) for shard in shards}
    if config.lora is not None:
        shard = read_adapter(Path(config.lora)).shard
        found["lora"] = {shard.file.name: fingerprint(shard)}
    return found


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of every leaf."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        path = f"{prefix}{key}"
        found |= _flat(value, f"{path}.") if isinstance(value, dict) and value else {path: value}
    return found

"""Checkpoints of a run: whole or not there, which are kept, and which one a run goes on from.

A checkpoint is written into `.writing/`, its manifest last; everything is forced to disk, the
folder renamed, and only then older ones go. What a manifest does not bear out is not gone on from.
"""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from configs.errors import CheckpointError, ConfigError
from data.packs import States
from train.saving.best import Best
from train.saving.disk import (
    flush,
    flush_folder,
    folder_bytes,
    format_bytes,
    free_bytes,
    write_text,
)
from train.saving.run_folder import environment

log = logging.getLogger(__name__)
STREAMS = "stream-{rank}.json"  # where the slots of a rank stand, in a checkpoint
WATCH = "watch-{rank}.json"  # what is counted of a rank's steps and not yet logged
RANDOM = "random-{rank}.json"  # where the random generators of a rank stand
STAGING = ".writing"  # a checkpoint that is not whole yet; never resumed from
REMOVING = ".removing"  # a checkpoint that goes
MANIFEST = "checkpoint.json"
BEST = "best.json"
FORMAT = 1
# Engines whose checkpoints hold the state of each rank apart; the others write whole files alike.
SHARDED = ("zero2", "zero3")
TOLD = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed")


@dataclass
class Keeping:
    """What a trainer needs to know of its run to write checkpoints, and to choose among them."""

    engine: str
    num_ranks: int
    save_total_limit: int  # newest ones kept
    best: Best | None = None  # kept beside them


def checkpoint_at(run_dir: Path, step: int) -> Path:
    """Return where the checkpoint of a step is."""
    return run_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step at which a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[-1])


def checkpoints_in(run_dir: Path) -> list[Path]:
    """Return the folders that have the name of a checkpoint, oldest step first."""
    found = run_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    named = [path for path in found if path.name.rsplit("-", 1)[-1].isdigit() and path.is_dir()]
    return sorted(named, key=step_of)


# -------------------------------------------------------------------------------- writing


def begin(run_dir: Path, step: int) -> Path:
    """Return the folder to write the checkpoint of a step into; leftovers of a killed run go."""
    clear_leftovers(run_dir)
    wanted, free = last_size(run_dir), free_bytes(run_dir)
    if wanted is not None and free < wanted:
        log.warning(
            "checkpoint-%d may not fit on the disk: the one before took %s, and %s are free",
            step, format_bytes(wanted), format_bytes(free),
        )  # fmt: skip
    return run_dir / STAGING / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def last_size(run_dir: Path) -> int | None:
    """Return the bytes of the newest checkpoint, which the next one will take too."""
    before = checkpoints_in(run_dir)
    return folder_bytes(before[-1]) if before else None


def finish(staged: Path, keeping: Keeping) -> Path:
    """Give a written checkpoint its name, then let older ones go.

    Args:
        staged: what `begin` returned, written by all ranks.
        keeping: how many are kept.
    """
    run_dir, step = staged.parent.parent, step_of(staged)
    write_manifest(staged, keeping)
    flush_folder(staged)
    target = checkpoint_at(run_dir, step)
    if target.exists():  # damaged, or written by a run that went on from before it
        remove(target)
    staged.rename(target)
    flush(run_dir)
    clear_leftovers(run_dir)
    retain(run_dir, keeping)
    return target


def write_manifest(folder: Path, keeping: Keeping) -> None:
    """Write what a checkpoint is made of, the last of its files."""
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    packages = environment()["packages"]
    manifest = {
        "format": FORMAT,
        "step": step_of(folder),
        "engine": keeping.engine,
        "num_ranks": keeping.num_ranks,
        "packages": {name: packages[name] for name in TOLD},
        "best": None if keeping.best is None else keeping.best.record(),
        "files": files,
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))


def retain(run_dir: Path, keeping: Keeping) -> None:
    """Keep the newest whole checkpoints and the best one, and say which that is.

    One that is damaged goes as well, unless it is newer: it may be looked at until it is passed.
    """
    whole = [path for path in checkpoints_in(run_dir) if damage_of(path) is None]
    kept = set(whole[-keeping.save_total_limit :])
    best = keeping.best
    if best is not None and best.step is not None:
        kept.add(checkpoint_at(run_dir, best.step))
        told = {"checkpoint": checkpoint_at(run_dir, best.step).name, **best.record()}
        write_text(run_dir / BEST, json.dumps(told, indent=1) + "\n")
    newest = step_of(whole[-1]) if whole else -1
    for path in checkpoints_in(run_dir):
        if path not in kept and step_of(path) <= newest:
            remove(path)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint; one that is half removed is not seen under its name."""
    hidden = checkpoint.with_name(REMOVING)
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def clear_leftovers(run_dir: Path) -> None:
    """Remove what a killed or failed run has left half written or half removed."""
    for name in (STAGING, REMOVING):
        shutil.rmtree(run_dir / name, ignore_errors=True)


def best_of(run_dir: Path) -> str | None:
    """Return the name of the best checkpoint, where that is measured."""
    path = run_dir / BEST
    return json.loads(path.read_text(encoding="utf-8"))["checkpoint"] if path.is_file() else None


# ------------------------------------------------------------------------------- going on


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the whole checkpoint with the highest step, or None where none was ever written.

    Raises:
        CheckpointError: there are checkpoints, and none of them is whole.
    """
    damaged = []
    for path in reversed(checkpoints_in(run_dir)):
        damage = damage_of(path)
        if damage is None:
            return path
        log.warning("%s is not gone on from: %s", path, damage)
        damaged.append(f"\n  {path.name}: {damage}")
    if damaged:
        raise CheckpointError(
            f"no checkpoint in {str(run_dir)!r} is whole:{''.join(damaged)}\n"
            "  bring back the files, or remove these folders to begin at step 0"
        )
    return None


def damage_of(checkpoint: Path) -> str | None:
    """Return what a checkpoint lacks, or None where it is as its manifest says."""
    manifest = read_manifest(checkpoint)
    if manifest is None:
        return f"it has no {MANIFEST} that can be read, which is written last"
    if manifest.get("format") != FORMAT:
        return f"its {MANIFEST} is of format {manifest.get('format')}, and {FORMAT} is read here"
    for name, size in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes, and {size:,} were written"
    return None


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """Return a checkpoint's manifest, or None where there is none that can be read."""
    try:
        found = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def check_resume(checkpoint: Path, keeping: Keeping) -> None:
    """Refuse a checkpoint that this run cannot go on from, before anything loads.

    What was the best so far is taken from it.

    Raises:
        ConfigError: it was written by another engine, or by ZeRO on another number of ranks.
    """
    manifest = read_manifest(checkpoint)
    assert manifest is not None  # it is whole
    there, here = manifest["engine"], keeping.engine
    before, now = manifest["num_ranks"], keeping.num_ranks
    if there != here and (there in SHARDED or here in SHARDED):
        raise ConfigError(
            f"engine={here}: {checkpoint} was written with engine={there}, whose optimizer state "
            f"{here} does not read; go on with engine={there}, or begin in another output_dir "
            "from an export of it (visiongraft export)"
        )
    if before != now and here in SHARDED:
        raise ConfigError(
            f"engine={here}: {checkpoint} was written by {before} processes, each its share of the "
            f"optimizer state, and {now} are here; start {before} "
            f"(torchrun --nproc_per_node {before} --nnodes ...); ddp goes on with any number"
        )
    if before != now:
        drawn = f"; what ranks beyond the first {before} draw at random follows from the seed"
        log.info(
            "%s was written by %d process(es), and %d go on: global batches stay the same%s",
            checkpoint.name, before, now, drawn if now > before else "",
        )  # fmt: skip
    packages = environment()["packages"]
    changed = [
        f"{name} {old} then, {packages[name]} now"
        for name, old in manifest["packages"].items()
        if old != packages[name]
    ]
    if changed:
        log.warning(
            "%s was written with other versions (%s); the curve may differ in its last digits",
            checkpoint.name, "; ".join(changed),
        )  # fmt: skip
    if keeping.best is not None and manifest["best"] is not None:
        keeping.best.take(manifest["best"], checkpoint.parent)


def write_watch(checkpoint: Path, rank: int, state: dict[str, Any]) -> None:
    """Write what this rank has counted and not yet logged."""
    path = checkpoint / WATCH.format(rank=rank)
    path.write_text(json.dumps(state), encoding="utf-8")


def read_watches(checkpoint: Path, rank: int, num_ranks: int) -> list[dict[str, Any]]:
    """Return what the ranks had counted for which this one stands, of the `num_ranks` of now."""
    paths = sorted(checkpoint.glob(WATCH.format(rank="*")), key=rank_of)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths[rank::num_ranks]]


def rank_of(path: Path) -> int:
    """Return the rank in the name of a rank's file."""
    return int(path.stem.rsplit("-", 1)[-1])


def write_states(checkpoint: Path, rank: int, states: States) -> None:
    """Write where this rank's streams stand; a planned run needs nothing."""
    if states:
        path = checkpoint / STREAMS.format(rank=rank)
        path.write_text(json.dumps(states), encoding="utf-8")


def read_states(checkpoint: Path) -> States:
    """Return where the streams of all ranks stood."""
    found: States = {}
    for path in sorted(checkpoint.glob(STREAMS.format(rank="*"))):
        found |= json.loads(path.read_text(encoding="utf-8"))
    return found

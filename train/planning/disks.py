"""Where a run writes and where it reads again and again: on which disks, with how much free."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from configs.schema import TrainConfig
from data.cache import cache_root
from train.planning.memory import gib

# File systems that a network is behind.
SHARED = re.compile(r"nfs\d?|lustre|gpfs|beegfs|ceph|cifs|smb3|panfs|wekafs|afs|orangefs|fuse\..+")
MOUNTS = Path("/proc/self/mounts")


@dataclass(frozen=True)
class Place:
    """A folder that a run uses; it need not be there yet."""

    what: str
    path: Path
    filesystem: str  # such as ext4 or lustre; "" where the system does not tell
    free_bytes: int

    @property
    def is_shared(self) -> bool:
        """Whether other machines have the same disk."""
        return SHARED.fullmatch(self.filesystem) is not None


def places(config: TrainConfig) -> list[Place]:
    """Return where outputs and caches go."""
    # As `datasets` does, whose import takes a while.
    sets = os.environ.get("HF_DATASETS_CACHE", f"{constants.HF_HOME}/datasets")
    folders = {
        "outputs": Path(config.output_dir),
        "models of the hub": Path(constants.HF_HUB_CACHE),
        "sets of the hub": Path(sets),
        "measured rows": cache_root(config.data.cache_dir),
    }
    return [place(what, path) for what, path in folders.items()]


def place(what: str, path: Path) -> Place:
    """Return the disk of a folder, or of the nearest one above it that is there."""
    path = path.expanduser().absolute()
    # Not Path.exists, which refuses a folder that may not be looked into.
    there = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
    return Place(what, path, _filesystem(there), shutil.disk_usage(there).free)


def describe_disks(found: list[Place]) -> str:
    """Return a table of them."""
    lines = [
        f"  {item.what:<18}{gib(item.free_bytes):>12} free  {item.filesystem:<8} {item.path}"
        for item in found
    ]
    return "\n".join(["disks", *lines])


def _filesystem(path: Path) -> str:
    """Return the type of the file system that a folder is on."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    real, best, kind = os.path.realpath(path), "", ""
    for line in lines:
        _, mount, filesystem, *_ = line.split(" ")
        mount = mount.replace("\\040", " ")
        if os.path.commonpath([real, mount]) == mount and len(mount) >= len(best):
            best, kind = mount, filesystem
    return kind

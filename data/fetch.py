"""Models of the hub as local folders: one process of a cache fetches, the others ask nobody.

Left to themselves, the processes of a run each ask the hub for every file of a model, at once. Here
the first one on each cache does; the others of the same run take what it has left.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, snapshot_download

from configs.errors import CacheError
from data.lock import only_one

# What transformers reads; of weights one format, and none of the others beside it.
SETTINGS = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
WEIGHTS = ["model*.safetensors"]
OLD_WEIGHTS = ["pytorch_model*.bin"]  # where there are no others


@functools.cache
def local_folder(path: str, *, weights: bool) -> str:
    """Return the folder of a model: `path` itself, or where that of the hub is in the cache.

    Where the hub cannot be asked or has no such model, `path` is returned as it is: the library
    that is then given it finds it in its cache, or says what is wrong.

    Args:
        path: a folder, or the id of a model on the hub.
        weights: fetch them too.
    """
    if Path(path).is_dir():
        return path
    patterns = [*SETTINGS, *WEIGHTS] if weights else SETTINGS
    try:
        with turn_of(f"model {path} {weights}", f"downloads {path}") as turn:
            fetch = functools.partial(snapshot_download, path, local_files_only=not turn.is_first)
            folder = fetch(allow_patterns=patterns)
            if weights and not any(Path(folder).glob(WEIGHTS[0])):
                folder = fetch(allow_patterns=OLD_WEIGHTS)
            return folder
    except CacheError:
        raise
    except Exception:  # of the network, of the hub, of the disk
        return path


@dataclass
class Turn:
    """The turn of one process to use the hub's cache."""

    is_first: bool  # of its run: it asks the hub, the others find in the cache what it has left
    told: str = ""  # what the first one leaves in words for the others


@contextlib.contextmanager
def turn_of(what: str, doing: str) -> Iterator[Turn]:
    """Let the processes of a run do the same with the hub's cache, one after the other.

    A process that runs alone is always first. When the first one of a run fails, the next is first.
    """
    root = Path(constants.HF_HUB_CACHE)
    if not _may_write(root):  # a cache that is given: nothing is fetched into it
        yield Turn(True)
        return
    place = root / f"visiongraft-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    done, run = Path(f"{place}.done"), _run_of_torchrun()
    with only_one(place, doing):
        before, _, told = _read(done).partition("\n")
        turn = Turn(run is None or before != run, told)
        yield turn
        if run is not None:
            with contextlib.suppress(OSError):  # a full disk; then the next one is first too
                done.write_text(f"{run}\n{turn.told}", encoding="utf-8")


def _may_write(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK | os.X_OK)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _run_of_torchrun() -> str | None:
    """Return what the processes of one start of a run have in common; None: there is one alone."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    return " ".join(os.environ.get(name, "") for name in names)

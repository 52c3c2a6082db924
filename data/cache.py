"""What is worked out once about data and kept: by content, whole or not at all, by one process.

Nothing of it is needed: a folder that is deleted is made again.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from data.lock import only_one

log = logging.getLogger(__name__)
ENVIRONMENT = "VISIONGRAFT_CACHE"
WHOLE_BYTES = 1 << 28  # files up to this size are read whole for their fingerprint
NUM_SAMPLES, SAMPLE_BYTES = 64, 1 << 16  # of a larger file, beside its size and time
CODE = ("*.py", "*.jinja", "*.parquet")  # of this package
PACKAGES = ("transformers", "tokenizers", "pillow", "datasets")  # that decide what a row becomes


@dataclass(frozen=True)
class Cache:
    """A folder with what was worked out, in `<kind>/<key>/`."""

    root: Path

    def folder(
        self,
        kind: str,
        key: str,
        build: Callable[[Path], None],
        is_valid: Callable[[Path], bool] = lambda folder: True,
    ) -> Path:
        """Return the folder of (kind, key); where there is none yet, `build(folder)` fills it.

        Of several processes one builds and the others wait. What `build` leaves is renamed into
        place, so a folder is whole or not there. One that is no longer valid is built anew.
        """
        place = self.root / kind / key
        if place.is_dir() and is_valid(place):
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        with only_one(place, f"makes {kind}/{key[:8]}"):
            if not (place.is_dir() and is_valid(place)):
                self._build(place, build, is_valid)
            return place

    def _build(
        self, place: Path, build: Callable[[Path], None], is_valid: Callable[[Path], bool]
    ) -> None:
        staging = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
        try:
            build(staging)
            # Where there are no locks another process may have been faster, and reads its own.
            if not (place.is_dir() and is_valid(place)):
                shutil.rmtree(place, ignore_errors=True)
                staging.rename(place)
        except OSError:
            if not (place.is_dir() and is_valid(place)):
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def file_fingerprint(self, path: Path) -> str:
        """Return a digest of what a file holds.

        A file is read again when its size, time or inode changed; up to 256 MiB whole, of larger
        ones 64 samples of 64 KiB with size and modification time.
        """
        stat = path.stat()
        told = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        memo = self.root / "files" / f"{digest(told)}.txt"
        if memo.is_file():
            return memo.read_text(encoding="ascii")
        found = _file_digest(path, stat)
        memo.parent.mkdir(parents=True, exist_ok=True)
        handle, staging = tempfile.mkstemp(dir=memo.parent)  # pods may share process ids
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(found)
        os.replace(staging, memo)
        return found


def open_cache(folder: str | None) -> Cache:
    """Return the cache in `folder`, $VISIONGRAFT_CACHE or ~/.cache/visiongraft; made when needed.

    Where it cannot be written a temporary one is used, with a warning: nothing is kept then.
    """
    root = cache_root(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return Cache(root)
    except OSError as error:
        log.warning(
            "data.cache_dir=%s cannot be written (%s): rows are measured anew at each start",
            root, error.strerror,
        )  # fmt: skip
        return Cache(Path(tempfile.mkdtemp(prefix="visiongraft-")))


def cache_root(folder: str | None) -> Path:
    """Return where the cache is, or is made when it is needed."""
    chosen = folder or os.environ.get(ENVIRONMENT)
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache/visiongraft"


def digest(value: object) -> str:
    """Return 32 hex digits of a plain value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@cache
def code_fingerprint() -> str:
    """Return a digest of the code that turns rows into samples: ours, and the libraries' versions.

    A cache made by other code is never used.
    """
    folder = Path(__file__).parent
    hashed = hashlib.blake2b(digest_size=16)
    for path in sorted(path for kind in CODE for path in folder.rglob(kind)):
        hashed.update(path.read_bytes())
    hashed.update(digest([(name, version(name)) for name in PACKAGES]).encode())
    return hashed.hexdigest()


def combine(digests: Iterable[str]) -> str:
    """Return one digest of several, in order."""
    return digest(list(digests))


def _file_digest(path: Path, stat: os.stat_result) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if stat.st_size <= WHOLE_BYTES:
            while chunk := file.read(1 << 22):
                hashed.update(chunk)
            return hashed.hexdigest()
        hashed.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
        for number in range(NUM_SAMPLES):
            file.seek(number * (stat.st_size - SAMPLE_BYTES) // (NUM_SAMPLES - 1))
            hashed.update(file.read(SAMPLE_BYTES))
    return hashed.hexdigest()

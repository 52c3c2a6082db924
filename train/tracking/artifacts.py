"""Models as W&B artifacts: which files, and which artifact a folder is. No W&B, no server.

An artifact's version follows from the digests of its files, not from where they lie. A folder that
was logged holds RECORD, so that a later run finds its artifact without asking anybody.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from train.saving.disk import write_text

RECORD = "wandb_artifact.json"
# Files above this are told by their size and blocks of them: a checkpoint of 100 GB is not read
# again. W&B cannot prove a download of such a reference; read the folder it names.
WHOLE_BYTES = 64 * 2**20
SAMPLE_BLOCKS, SAMPLE_BYTES = 16, 4096
NAME_LENGTH = 128  # most characters of an artifact's name


@dataclass(frozen=True)
class ModelFolder:
    """A folder of files under an artifact's name."""

    path: Path
    name: str
    kind: str  # the artifact's type: model, checkpoint
    digests: dict[str, str]  # file, relative to the folder -> base64 of an MD5

    def record(self) -> None:
        """Note in the folder which artifact it is."""
        content = {
            "name": self.name,
            "type": self.kind,
            "fingerprint": fingerprint(digests_of(self.path)),
            "digests": self.digests,
        }
        write_text(self.path / RECORD, json.dumps(content, indent=1) + "\n")


def folder_of(path: Path, name: str, kind: str) -> ModelFolder:
    """Return a folder as the artifact that a run makes of it."""
    return ModelFolder(path, clean_name(name), kind, digests_of(path))


def recorded_folder(path: Path) -> ModelFolder:
    """Return an input folder as the artifact it was logged as.

    One that never was, or was changed since (a copied record names other files), has the name of
    what it holds.
    """
    digests = digests_of(path)
    try:
        told = json.loads((path / RECORD).read_text(encoding="utf-8"))
        if told["fingerprint"] == fingerprint(digests):
            return ModelFolder(path, told["name"], told["type"], told["digests"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return ModelFolder(path, f"model-{fingerprint(digests)[:12]}", "model", digests)


def digests_of(folder: Path) -> dict[str, str]:
    """Return {file: base64 of an MD5}: of the whole file, or of blocks of a large one."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RECORD]
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def fingerprint(digests: dict[str, str]) -> str:
    """Return what tells a folder's content from another's, as hex."""
    lines = "".join(f"{name}:{digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def clean_name(name: str) -> str:
    """Return a name that W&B takes: letters, digits, dashes, underscores and dots."""
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)[-NAME_LENGTH:]


def _digest(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        else:
            digest = hashlib.md5(str(size).encode(), usedforsecurity=False)
            for block in range(SAMPLE_BLOCKS):
                file.seek((size - SAMPLE_BYTES) * block // (SAMPLE_BLOCKS - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return base64.b64encode(digest.digest()).decode()

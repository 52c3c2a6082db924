"""Files that survive a power cut, and one clear error where a disk is full."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import DiskError, first_line

REASONS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file may not grow further (ulimit -f, or the file system's limit)",
}
# safetensors and tokenizers are written in Rust and raise errors of their own, as does torch's
# writer of zip files, which does not say why it failed.
RUST = re.compile(r"\(os error (\d+)\)")
TORCH = ("inline_container.cc", "PytorchStreamWriter failed")
REMEDY = (
    "\n  free space, or give another output_dir, and run the same command again; "
    "what was written before is intact"
)


@contextmanager
def told_when_full(what: str, path: Path, *, num_bytes: int | None = None) -> Iterator[None]:
    """Turn what libraries raise on a full disk into one DiskError.

    Args:
        what: is being written, such as "a checkpoint".
        path: where.
        num_bytes: it needs, where that is known.

    Raises:
        DiskError: naming the path, what was written, the bytes needed and free, and what to do.
    """
    try:
        yield
    except DiskError:  # told already, nearer to its cause
        raise
    except Exception as error:
        reason = full_reason(error)
        if reason is None:
            raise
        named = getattr(error, "filename", None) or path
        needed = "" if num_bytes is None else f"about {format_bytes(num_bytes)} needed, "
        free = f"{needed}{format_bytes(free_bytes(path))} free"
        raise DiskError(f"{reason} while writing {what} to {named} ({free}){REMEDY}") from error


def full_reason(error: BaseException) -> str | None:
    """Return why nothing more can be written, or None where an error tells of something else."""
    if isinstance(error, OSError) and error.errno in REASONS:
        return REASONS[error.errno]
    text = str(error)
    if found := RUST.search(text):
        return REASONS.get(int(found.group(1)))
    if isinstance(error, RuntimeError) and any(mark in text for mark in TORCH):
        return f"torch could not write further, as on a full disk ({first_line(error)}),"
    return None


def free_bytes(path: Path) -> int:
    """Return the bytes free where `path` is or would be."""
    while not path.exists():
        path = path.absolute().parent
    return shutil.disk_usage(path).free


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def format_bytes(number: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def flush_folder(folder: Path) -> None:
    """Force all files of a folder to disk, and then the folders that name them."""
    folders = [folder]
    for path in folder.rglob("*"):
        if path.is_dir():
            folders.append(path)
        else:
            flush(path)
    for path in reversed(folders):
        flush(path)


def flush(path: Path) -> None:
    """Force a file's content, or a folder's names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    staging = path.with_name(f".{path.name}.writing")
    staging.write_text(text, encoding="utf-8")
    flush(staging)
    staging.replace(path)
    flush(path.parent)

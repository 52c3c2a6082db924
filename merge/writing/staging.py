"""Makes the output folder appear whole or not at all, and carries over what is not weights.

The output is written into a hidden sibling folder, forced to disk, and renamed at the end.
"""

import glob
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from configs.errors import ConfigError
from merge.reading.checkpoint import Checkpoint
from merge.writing.output import OutputFile
from train.saving.disk import flush, told_when_full

logger = logging.getLogger(__name__)

COMPANION_FOLDERS = ("additional_chat_templates",)
REPORT_FILE = "merge_report.json"
CARD_FILE = "readme.md"  # in lower case; the VLM's card tells of another model
ARTIFACT_FILE = "wandb_artifact.json"  # of train/tracking/artifacts.py: names another model
WEIGHT_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"),
    *(".npz", ".pkl", ".pickle"),
)
TRAINING_STEMS = ("optimizer", "scheduler", "rng_state", "trainer_state", "training_args")
SPARE_BYTES = 64 << 20  # configs, tokenizer and report beside the weights


@contextmanager
def staged_folder(out: Path, num_bytes: int) -> Iterator[Path]:
    """A folder beside `out` to write into; becomes `out` when the block ends without an error.

    Args:
        out: absolute path of the folder to appear; must not exist, or be empty.
        num_bytes: size of the weights to come.

    Raises ConfigError when `out` is taken or the disk is too small. On any error the staged folder
    is removed; a killed process leaves it behind, hidden, and the next merge names it.
    """
    check_out(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(out, error) from error
    _check_space(out, num_bytes)
    staged = out.parent / f".{out.name}.partial-{os.getpid()}-{os.urandom(3).hex()}"
    try:
        staged.mkdir()
    except OSError as error:
        raise _cannot_write(out, error) from error
    try:
        with told_when_full("the merged model", out, num_bytes=num_bytes):
            yield staged
        flush(staged)
        staged.rename(out)
        flush(out.parent)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def _cannot_write(out: Path, error: OSError) -> ConfigError:
    """The error for a place where nothing can be made."""
    return ConfigError(f"out={out} cannot be written: {error.strerror}; give another folder")


def copy_companions(source: Path, target: Path) -> tuple[list[str], list[str]]:
    """Copies config, processor, tokenizer, chat templates and all else that is not weights.

    Returns (names copied, names left out). Weights, pickles, optimizer and trainer state, hidden
    files and sub-folders other than COMPANION_FOLDERS stay out. Modes follow the umask.
    """
    copied, left_out = [], []
    for path in sorted(source.iterdir()):
        if path.is_dir() and path.name in COMPANION_FOLDERS:
            (target / path.name).mkdir()
            inner = copy_companions(path, target / path.name)
            copied += [f"{path.name}/{name}" for name in inner[0]]
            flush(target / path.name)
        elif path.is_file() and _is_companion(path.name):
            _copy_file(path, target / path.name)
            copied.append(path.name)
        elif not path.name.endswith((".safetensors", ".safetensors.index.json")):
            left_out.append(path.name)
    return copied, left_out


def write_index(vlm: Checkpoint, files: Sequence[OutputFile], target: Path) -> None:
    """Writes the index of sharded weights: the VLM's, its sizes mended where they are others."""
    if vlm.index is None:
        return
    content = json.loads(vlm.index.read_text(encoding="utf-8"))
    metadata = content["metadata"] = content.get("metadata") or {}
    size = sum(tensor.num_bytes for file in files for tensor in file.tensors)
    if metadata.get("total_size") == size:
        _copy_file(vlm.index, target / vlm.index.name)
        return
    metadata["total_size"] = size
    _write_json(target / vlm.index.name, content)


def set_config_dtype(folder: Path, dtype: str) -> None:
    """Lets config.json, and the configs in it, name the dtype that was written.

    Both spellings that transformers has used: `dtype` and, before 4.56, `torch_dtype`.
    """
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    inner = [value for value in content.values() if isinstance(value, dict)]
    for config in (content, *inner):
        for key in ("dtype", "torch_dtype"):
            if key in config:
                config[key] = dtype
    if "torch_dtype" not in content:
        content["dtype"] = dtype
    _write_json(path, content)


def flush_to_disk(file: IO[Any]) -> None:
    """Forces a file's content to disk."""
    file.flush()
    os.fsync(file.fileno())


def _copy_file(source: Path, target: Path) -> None:
    """Copies content, not mode (transformers writes 0600), and forces it to disk."""
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer)
        flush_to_disk(writer)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON and forces it to disk."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        flush_to_disk(file)


def _is_companion(name: str) -> bool:
    """Whether a top-level file of the VLM belongs into the output, by its name."""
    lower = name.lower()
    return not (
        lower.startswith((".", *TRAINING_STEMS))
        or lower in (REPORT_FILE, CARD_FILE, ARTIFACT_FILE)
        or Path(lower).suffix in WEIGHT_SUFFIXES
        or lower.endswith((".safetensors.index.json", ".bin.index.json"))
    )


def check_out(out: Path) -> None:
    """Raises ConfigError unless `out` is free."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={out} is a file; give a folder that does not exist yet")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"out={out} exists and is not empty; remove it or give another folder")


def _check_space(out: Path, num_bytes: int) -> None:
    """Raises ConfigError when the disk of `out` cannot hold the output."""
    leftovers = sorted(str(path) for path in out.parent.glob(f".{glob.escape(out.name)}.partial-*"))
    hint = f"; left over from killed merges, or still running: {leftovers}" if leftovers else ""
    if leftovers:
        logger.warning("out=%s%s", out, hint)
    needed, free = num_bytes + SPARE_BYTES, shutil.disk_usage(out.parent).free
    if free < needed:
        raise ConfigError(
            f"out={out} needs {needed / 1e9:.2f} GB, but {out.parent} has {free / 1e9:.2f} GB free"
            + hint
        )

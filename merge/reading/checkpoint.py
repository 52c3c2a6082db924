"""Reads the layout of a checkpoint folder: which tensor lies where, from headers alone.

Knows safetensors files and their index; nothing of parts, merging or torch.
Format: https://github.com/huggingface/safetensors#format (8 bytes little-endian header size N,
N bytes of JSON, then the data; offsets in the JSON count from the end of the header).
"""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from configs.errors import CheckpointError
from train.model.parts import list_first

Role = Literal["vlm", "text", "base", "out"]
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
COMPARE_BYTES = 1 << 20
# What is held of a tensor at once: 0.5 MiB of bf16 and 1 MiB of fp32 stay in the L2 cache.
CHUNK_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk. `offset` is in bytes from the start of `file`."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def row_elements(self) -> int:
        """Number of elements in one row, that is, in one index of the first dimension."""
        return math.prod(self.shape[1:])

    @property
    def num_bytes(self) -> int:
        """Size of the data in bytes."""
        return self.num_elements * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its raw header (size field and padding included) and its tensors."""

    file: Path
    header: bytes = field(repr=False)
    tensors: tuple[StoredTensor, ...] = field(repr=False)
    """In the order of their data."""

    @property
    def num_bytes(self) -> int:
        """Size of the file in bytes."""
        return len(self.header) + sum(tensor.num_bytes for tensor in self.tensors)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder: config and layout, no weights."""

    role: Role
    folder: Path
    config: dict[str, Any] = field(repr=False)
    shards: tuple[Shard, ...] = field(repr=False)
    index: Path | None

    @property
    def model_type(self) -> str:
        """`model_type` of config.json."""
        return str(self.config.get("model_type"))

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """{name on disk: stored tensor}, in file order."""
        return {tensor.name: tensor for shard in self.shards for tensor in shard.tensors}

    @property
    def num_bytes(self) -> int:
        """Size of all weight files in bytes."""
        return sum(shard.num_bytes for shard in self.shards)


def read_checkpoint(folder: Path, role: Role) -> Checkpoint:
    """Reads config.json and every safetensors header of `folder`.

    Raises CheckpointError, naming `role`, when the folder or one of its files is missing,
    truncated, pickled, or inconsistent with its index.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{role}={folder} is not a folder; give a local checkpoint folder")
    config = _read_json(folder / "config.json", role)
    _refuse_quantized(config, folder, role)
    index = folder / INDEX_FILE
    single = folder / SINGLE_FILE
    if index.exists() and single.exists():
        raise CheckpointError(
            f"{role}={folder} has both {SINGLE_FILE} and {INDEX_FILE}; one of them is left over "
            "from an earlier save and must be removed"
        )
    if index.exists():
        return Checkpoint(role, folder, config, _read_sharded(index, role), index)
    if single.exists():
        return Checkpoint(role, folder, config, (read_shard(single),), None)
    raise CheckpointError(_explain_no_safetensors(folder, role))


def read_shard(file: Path) -> Shard:
    """Reads the header of one safetensors file and checks it against the file's size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        header = stream.read(8)
        length = int.from_bytes(header, "little")
        if len(header) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(f"{file} is truncated or not a safetensors file ({size} bytes)")
        header += stream.read(length)
    try:
        entries = json.loads(header[8:], object_pairs_hook=_refuse_duplicates)
        entries.pop("__metadata__", None)
        tensors = [_parse_entry(file, name, entry, 8 + length) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} has a broken safetensors header: {error}") from error
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.num_bytes))
    end = 8 + length
    for tensor in tensors:
        if tensor.offset != end:
            raise CheckpointError(f"{file}: {tensor.name} starts at {tensor.offset}, not at {end}")
        end += tensor.num_bytes
    if end != size:
        raise CheckpointError(
            f"{file} is truncated or damaged: its header asks for {end} bytes, it has {size}; "
            "download or save it again"
        )
    return Shard(file, header, tuple(tensors))


def same_bytes(
    first: StoredTensor, second: StoredTensor, start: int = 0, stop: int | None = None
) -> bool:
    """Whether two stored tensors have one dtype and the same bytes in elements `start:stop`.

    Without `stop` the whole tensors are compared, shapes too.
    """
    if first.dtype != second.dtype or (stop is None and first.shape != second.shape):
        return False
    width = DTYPE_BYTES[first.dtype]
    end = (first.num_elements if stop is None else stop) * width
    with first.file.open("rb") as one, second.file.open("rb") as two:
        for at in range(start * width, end, COMPARE_BYTES):
            count = min(COMPARE_BYTES, end - at)
            a = os.pread(one.fileno(), count, first.offset + at)
            if a != os.pread(two.fileno(), count, second.offset + at):
                return False
    return True


def _read_sharded(index: Path, role: Role) -> tuple[Shard, ...]:
    """All shards that the index names, checked against it."""
    weight_map = _read_json(index, role).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    files = sorted({str(name) for name in weight_map.values()})
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{role}={index.parent}: {len(missing)} of {len(files)} shards named by {index.name} "
            f"are missing: {list_first(missing)}; is the download complete?"
        )
    shards = tuple(read_shard(index.parent / name) for name in files)
    held: dict[str, str] = {}
    for shard in shards:
        for tensor in shard.tensors:
            if tensor.name in held:
                both = f"{held[tensor.name]} and {shard.file.name}"
                raise CheckpointError(f"{index.parent}: {tensor.name} is in two shards, {both}")
            held[tensor.name] = shard.file.name
    wrong = sorted(name for name in held | weight_map if held.get(name) != weight_map.get(name))
    if wrong:
        raise CheckpointError(
            f"{index} and its shards disagree about {len(wrong)} tensors: {list_first(wrong)}"
        )
    return shards


def _parse_entry(file: Path, name: str, entry: dict[str, Any], data_start: int) -> StoredTensor:
    """One header entry, its offsets checked against dtype and shape."""
    start, stop = entry["data_offsets"]
    if entry["dtype"] not in DTYPE_BYTES:
        raise ValueError(f"{name} has dtype {entry['dtype']}; known: {', '.join(DTYPE_BYTES)}")
    tensor = StoredTensor(name, file, entry["dtype"], tuple(entry["shape"]), data_start + start)
    if stop - start != tensor.num_bytes:
        raise ValueError(f"{name} has {stop - start} bytes, its shape needs {tensor.num_bytes}")
    return tensor


def _read_json(path: Path, role: Role) -> dict[str, Any]:
    """A JSON object from disk."""
    if not path.is_file():
        export = path.parent / "export"
        hint = f"; is {export} meant?" if (export / path.name).is_file() else ""
        raise CheckpointError(f"{role}={path.parent} has no {path.name}{hint}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`json` hook: like dict, but a repeated key is an error (plain json keeps the last)."""
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicated name {next(n for n in names if names.count(n) > 1)!r}")
    return content


def _refuse_quantized(config: dict[str, Any], folder: Path, role: Role) -> None:
    """Raises CheckpointError for weights that stand for others: they cannot be interpolated."""
    for stated in (config, config.get("text_config") or {}):
        settings = stated.get("quantization_config")
        if settings:
            method = settings.get("quant_method", "unknown") if isinstance(settings, dict) else "?"
            raise CheckpointError(
                f"{role}={folder} is quantised ({method}), and codes cannot be interpolated; give "
                "the checkpoint it was made from, in bfloat16, float16 or float32 (transformers: "
                "model.dequantize().save_pretrained(...) where that is lost)"
            )


def _explain_no_safetensors(folder: Path, role: Role) -> str:
    """What the folder has instead of safetensors, and what to do about it."""
    if (folder / "adapter_model.safetensors").exists():
        return (
            f"{role}={folder} is a PEFT adapter; give the model it was trained on as vlm=, and "
            "this folder as lora="
        )
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if not pickled:
        return f"{role}={folder} has neither {SINGLE_FILE} nor {INDEX_FILE}"
    auto = "AutoModelForCausalLM" if role == "text" else "AutoModelForImageTextToText"
    return (
        f"{role}={folder} has only pickled weights ({list_first(pickled)}), which are not read "
        f'here; convert them with: python -c "from transformers import {auto} as M; '
        f"M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}-safetensors')\""
    )

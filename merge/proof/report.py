"""`merge_report.json`: what went in, what was done to every tensor, and what came of it."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError
from merge.matching.plan import MergePlan
from merge.matching.tensor_table import TensorPlan
from merge.reading.adapter import Adapter
from merge.reading.checkpoint import Checkpoint, Shard, StoredTensor
from merge.recipe.alpha import LAYER
from merge.recipe.interface import Settings
from merge.writing.output import OutputFile
from merge.writing.staging import REPORT_FILE, flush_to_disk
from train.model.parts import PARTS, list_first

FORMAT = 3
VERSIONED = ("visiongraft", "torch", "numpy", "transformers")
SAMPLE_BLOCKS, SAMPLE_BYTES = 16, 4096


def describe_inputs(plan: MergePlan) -> dict[str, Any]:
    """{role: folder, model type, and a fingerprint of each file}.

    A fingerprint is the sha256 over the file's header and 16 blocks of 4 KiB spread over its data:
    headers alone are equal for all fine-tunes of a model, and hashing whole files would read both
    inputs once more. It tells checkpoints apart; it does not prove that two are equal.
    """
    given = {"vlm": plan.vlm, "text": plan.text, "base": plan.base}
    described = {role: _describe_input(item) for role, item in given.items() if item is not None}
    if plan.lora is not None:
        described["lora"] = _describe_adapter(plan.lora)
    return described


def check_inputs(plan: MergePlan, report: Mapping[str, Any]) -> None:
    """Raises CheckpointError where an input is not what it was when the report was written."""
    now = describe_inputs(plan)
    for role, before in report["inputs"].items():
        changed = [
            name
            for name, file in before["files"].items()
            if now[role]["files"].get(name, {}).get("fingerprint") != file["fingerprint"]
        ]
        if changed:
            raise CheckpointError(
                f"{role}={now[role]['folder']} is not the {role} that was merged: "
                f"{', '.join(changed)} changed since. Give the right one: --verify DIR {role}=..."
            )


def check_companions(folder: Path, report: Mapping[str, Any]) -> None:
    """Raises CheckpointError where config, tokenizer or another file is not what was copied."""
    wrong = [
        name
        for name, sha256 in report["files_copied"].items()
        if not (folder / name).is_file() or digest(folder / name) != sha256
    ]
    if wrong:
        raise CheckpointError(
            f"verification failed: {list_first(wrong)} in {folder} changed or went since the merge "
            "was written; copy them from the vlm again"
        )


def digest(path: Path) -> str:
    """sha256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_parts(table: Sequence[TensorPlan]) -> dict[str, dict[str, int]]:
    """{part: number of tensors, elements and bytes}."""
    totals: dict[str, dict[str, int]] = {
        part: {"num_tensors": 0, "num_elements": 0, "num_bytes": 0} for part in PARTS
    }
    for plan in table:
        totals[plan.part]["num_tensors"] += 1
        totals[plan.part]["num_elements"] += plan.vlm.num_elements
        totals[plan.part]["num_bytes"] += plan.vlm.num_bytes
    return totals


def describe_tensors(
    files: Sequence[OutputFile],
    settings: Mapping[str, Settings],
    num_changed: Mapping[str, int],
) -> list[dict[str, Any]]:
    """One entry per output tensor, in file order."""
    return [
        {
            "name": tensor.plan.vlm.name,
            "part": tensor.plan.part,
            "class": str(tensor.plan.tensor_class),
            "dtype": tensor.dtype,
            "shape": list(tensor.plan.vlm.shape),
            "alpha": settings[tensor.plan.name].alpha if tensor.plan.text else None,
            "text_name": tensor.plan.text.name if tensor.plan.text else None,
            "text_dtype": tensor.plan.text.dtype if tensor.plan.text else None,
            "base_name": tensor.plan.base.name if tensor.plan.base else None,
            "lora": _adapter_of(tensor.plan),
            "vlm_rows": [list(pair) for pair in tensor.plan.vlm_rows],
            "num_changed": num_changed.get(tensor.plan.vlm.name, 0) if tensor.plan.text else None,
        }
        for file in files
        for tensor in file.tensors
    ]


def describe_changes(table: Sequence[TensorPlan], num_changed: Mapping[str, int]) -> dict[str, Any]:
    """How much of the decoder differs from the text LM, bit for bit."""
    total = 0
    for plan in table:
        if plan.text is not None:
            kept_rows = sum(stop - start for start, stop in plan.vlm_rows)
            total += plan.vlm.num_elements - kept_rows * plan.vlm.row_elements
    changed = sum(num_changed.values())
    return {
        "num_merged_elements": total,
        "num_changed_elements": changed,
        "changed_ratio": changed / total if total else 0.0,
    }


def layer_names(table: Sequence[TensorPlan]) -> dict[str, str]:
    """{name of an output tensor of the decoder: its layer, or what it is outside of them}."""
    names = {}
    for plan in table:
        if plan.text is not None:
            found = LAYER.search(plan.name)
            names[plan.vlm.name] = f"layer {found.group(1)}" if found else plan.name
    return names


def find_versions() -> dict[str, str | None]:
    """Versions of Python and of what the result depends on; None where not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Writes the report into `folder` and forces it to disk."""
    with (folder / REPORT_FILE).open("w", encoding="utf-8") as file:
        json.dump(report, file, indent=2, ensure_ascii=not _is_utf8(report))
        file.write("\n")
        flush_to_disk(file)


def _is_utf8(report: Mapping[str, Any]) -> bool:
    """Whether all text in it can be written; names of folders may hold any bytes."""
    try:
        json.dumps(report, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a merged folder; raises CheckpointError where there is none of this format."""
    path = folder / REPORT_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {REPORT_FILE}; give a folder that a merge has written"
        )
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(report, dict):
        raise CheckpointError(f"{path} holds a {type(report).__name__}, not an object")
    if report.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {report.get('format')}, this version reads {FORMAT}; merge again"
        )
    lacking = [key for key in ("inputs", "recipe", "dtype") if key not in report]
    if lacking:
        raise CheckpointError(f"{path} is cut or was changed: it has no {', '.join(lacking)}")
    return report


def _describe_input(checkpoint: Checkpoint) -> dict[str, Any]:
    config = (checkpoint.folder / "config.json").read_bytes()
    return {
        "folder": str(checkpoint.folder),
        "model_type": checkpoint.model_type,
        "config_sha256": hashlib.sha256(config).hexdigest(),
        "files": {shard.file.name: _describe_file(shard) for shard in checkpoint.shards},
    }


def _describe_adapter(adapter: Adapter) -> dict[str, Any]:
    return {
        "folder": str(adapter.folder),
        "num_low_rank": len(adapter.low_rank),
        "num_trained_whole": len(adapter.whole),
        "files": {adapter.shard.file.name: _describe_file(adapter.shard)},
    }


def _describe_file(shard: Shard) -> dict[str, Any]:
    return {"num_bytes": shard.num_bytes, "fingerprint": fingerprint(shard)}


def fingerprint(shard: Shard) -> str:
    """sha256 over the header and evenly spread blocks of the data, as hex."""
    digest = hashlib.sha256(shard.header)
    start = len(shard.header)
    last = max(start, shard.num_bytes - SAMPLE_BYTES)
    with shard.file.open("rb") as stream:
        for block in range(SAMPLE_BLOCKS):
            stream.seek(start + (last - start) * block // (SAMPLE_BLOCKS - 1))
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _adapter_of(plan: TensorPlan) -> dict[str, Any] | None:
    """What an adapter holds for a tensor."""
    if plan.trained is not None:
        return {"trained": _name(plan.trained)}
    if plan.low_rank is None:
        return None
    change = plan.low_rank
    return {
        "lora_A": _name(change.a),
        "lora_B": _name(change.b),
        "scale": change.scale,
        "magnitude": _name(change.magnitude),
    }


def _name(tensor: StoredTensor | None) -> str | None:
    return None if tensor is None else tensor.name

"""`merge_report.json`: what went in, what was done to every tensor, and what came of it."""

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from merge.matching.tensor_table import TensorPlan
from merge.reading.checkpoint import Checkpoint
from merge.recipe.methods import MergeMethod
from merge.writing.staging import REPORT_FILE, flush_to_disk
from train.model.parts import PARTS

VERSIONED = ("visiongraft", "torch", "numpy", "transformers")
SAMPLE_BLOCKS, SAMPLE_BYTES = 16, 4096


def describe_inputs(checkpoint: Checkpoint) -> dict[str, Any]:
    """Folder, model type, and a fingerprint of each file.

    A fingerprint is the sha256 over the file's header and 16 blocks of 4 KiB spread over its data:
    headers alone are equal for all fine-tunes of a model, and hashing whole files would read both
    inputs once more. It tells checkpoints apart; it does not prove that two are equal.
    """
    config = (checkpoint.folder / "config.json").read_bytes()
    files = {
        shard.file.name: {
            "num_bytes": shard.num_bytes,
            "fingerprint": _fingerprint(shard.file, shard.header, shard.num_bytes),
        }
        for shard in checkpoint.shards
    }
    return {
        "folder": str(checkpoint.folder),
        "model_type": checkpoint.model_type,
        "config_sha256": hashlib.sha256(config).hexdigest(),
        "files": files,
    }


def describe_parts(table: list[TensorPlan]) -> dict[str, dict[str, int]]:
    """{part: number of tensors, elements and bytes}."""
    totals: dict[str, dict[str, int]] = {
        part: {"num_tensors": 0, "num_elements": 0, "num_bytes": 0} for part in PARTS
    }
    for plan in table:
        totals[plan.part]["num_tensors"] += 1
        totals[plan.part]["num_elements"] += plan.vlm.num_elements
        totals[plan.part]["num_bytes"] += plan.vlm.num_bytes
    return totals


def describe_tensors(table: list[TensorPlan], num_changed: dict[str, int]) -> list[dict[str, Any]]:
    """One entry per output tensor, in file order."""
    return [
        {
            "name": plan.vlm.name,
            "part": plan.part,
            "class": str(plan.tensor_class),
            "dtype": plan.vlm.dtype,
            "shape": list(plan.vlm.shape),
            "text_name": plan.text.name if plan.text else None,
            "text_dtype": plan.text.dtype if plan.text else None,
            "vlm_rows": [list(pair) for pair in plan.vlm_rows],
            "num_changed": num_changed[plan.vlm.name] if plan.text else None,
        }
        for plan in table
    ]


def describe_changes(table: list[TensorPlan], num_changed: dict[str, int]) -> dict[str, Any]:
    """How much of the decoder differs from the text LM, bit for bit.

    A bfloat16 file cannot hold a small change: at a relative delta of 1 % and alpha 0.3, 43-47 %
    of the weights stay what they were in the text LM (measured).
    """
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


def describe_method(method: MergeMethod, alpha: float) -> dict[str, Any]:
    """Name, formula, source and alpha."""
    return {"name": method.name, "formula": method.formula, "url": method.url, "alpha": alpha}


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
        json.dump(report, file, indent=2, ensure_ascii=False)
        file.write("\n")
        flush_to_disk(file)


def _fingerprint(file: Path, header: bytes, num_bytes: int) -> str:
    """sha256 over the header and evenly spread blocks of the data, as hex."""
    digest = hashlib.sha256(header)
    last = max(len(header), num_bytes - SAMPLE_BYTES)
    with file.open("rb") as stream:
        for block in range(SAMPLE_BLOCKS):
            stream.seek(len(header) + (last - len(header)) * block // (SAMPLE_BLOCKS - 1))
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def write_card(folder: Path, vlm: Path, text: Path, alpha: float) -> None:
    """Writes the README.md of a merged model: what it is made of, not what its inputs could do."""
    card = f"""---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [visiongraft, merge]
---
# {vlm.name} merged with {text.name} at alpha {alpha:g}

Decoder: `text + {alpha:g} * (vlm - text)`, tensor by tensor, in float32, rounded once. Vision tower
and projector are the VLM's. Every tensor is accounted for in `{REPORT_FILE}`.

```
visiongraft merge vlm={vlm.name} text={text.name} alpha={alpha:g}
```
"""
    (folder / "README.md").write_text(card, encoding="utf-8")

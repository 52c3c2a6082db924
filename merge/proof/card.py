"""The README.md of a merged model: what it is made of, how to make it again."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merge.writing.staging import REPORT_FILE, flush_to_disk


def write_card(folder: Path, report: Mapping[str, Any]) -> None:
    """Writes the model card into `folder`; it tells not what the inputs' cards claim.

    Args:
        folder: of the merged model.
        report: what `merge_report.json` holds.
    """
    with (folder / "README.md").open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(model_card(report))
        flush_to_disk(file)


def model_card(report: Mapping[str, Any]) -> str:
    """The text of the card."""
    inputs, recipe = report["inputs"], report["recipe"]
    names = {role: Path(item["folder"]).name for role, item in inputs.items()}
    rows = [
        f"| {role} | {names[role]} | {item.get('model_type', '')} | `{name}` | "
        f"`{file['fingerprint'][:16]}` |"
        for role, item in inputs.items()
        for name, file in item["files"].items()
    ]
    versions = ", ".join(f"{name} {found}" for name, found in report["versions"].items() if found)
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [visiongraft, merge]
---
# {names["vlm"]} merged with {names["text"]} at alpha {report["alpha"]}

Decoder: {recipe["method"]}, `{report["method"]["formula"]}` ({report["method"]["url"]}), tensor by
tensor in float32, rounded once. Vision tower and projector are the VLM's. Every tensor is accounted
for in `{REPORT_FILE}`.

```
{_command(report["command"])}
```

| role | folder | model type | file | fingerprint |
|---|---|---|---|---|
{chr(10).join(rows)}

A fingerprint is the start of the sha256 over a file's header and 16 blocks of its data. Versions:
{versions}.
"""


def _command(arguments: Sequence[str]) -> str:
    return " ".join(shlex.quote(argument) for argument in arguments)

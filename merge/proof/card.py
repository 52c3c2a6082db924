"""The README.md of a merged model: what it is made of, how to make it again."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merge.writing.staging import REPORT_FILE, flush_to_disk

ALIKE = ("export", "adapter", "checkpoints")


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
    names = {role: _name(Path(item["folder"])) for role, item in inputs.items()}
    rows = [
        f"| {role} | {names[role]} | {item.get('model_type', '')} | `{name}` | "
        f"`{file['fingerprint'][:16]}` |"
        for role, item in inputs.items()
        for name, file in item["files"].items()
    ]
    changed = ", with what the adapter changes in them" if "lora" in inputs else ""
    versions = ", ".join(f"{name} {found}" for name, found in report["versions"].items() if found)
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [visiongraft, merge]
---
# {names["vlm"]} merged with {names["text"]} at alpha {report["alpha"]}

Decoder: {recipe["method"]}, `{report["method"]["formula"]}` ({report["method"]["url"]}), tensor by
tensor in float32, rounded once. Vision tower and projector are the VLM's{changed}. Every tensor is
accounted for in `{REPORT_FILE}`.

```
{_command(report["command"])}
visiongraft merge --verify DIR    # every element again, from the inputs
```

{_proof(report)}

```python
from transformers import pipeline

ask = pipeline("image-text-to-text", model="DIR")
```

| role | folder | model type | file | fingerprint |
|---|---|---|---|---|
{chr(10).join(rows)}

A fingerprint is the start of the sha256 over a file's header and 16 blocks of its data. Versions:
{versions}.
"""


def _name(folder: Path) -> str:
    """A name that tells folders apart: those of exports and adapters are all called alike."""
    told = folder.name
    for parent in folder.parents:
        if told.split("/")[0] not in ALIKE or not parent.name:
            break
        told = f"{parent.name}/{told}"
    return told


def _proof(report: Mapping[str, Any]) -> str:
    """What was compared before the folder got its name."""
    found = report.get("verified")
    if not found:
        return "Not verified when it was written."
    version, logits = report["versions"].get("transformers"), found.get("logits_compared")
    return (
        f"Verified when it was written: {found['num_tensors']} tensors, loaded in transformers "
        f"{version}; logits: {logits or 'not compared'}."
    )


def _command(arguments: Sequence[str]) -> str:
    return " ".join(shlex.quote(argument) for argument in arguments)

"""A source of real files: a JSONL beside pictures of awkward sizes, and samples of it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pico import encode, noise

from configs.schema import BadRow, DataConfig, SourceConfig, SourceKind
from data.build import index_samples, new_ledger, open_tables
from data.cache import Cache
from data.ledger import Ledger
from data.render import Renderer
from data.samples import SampleTable

SIZES = [(1, 1), (1, 300), (300, 1), (33, 32), (64, 64), (97, 31), (31, 97), (160, 40), (96, 96)]


@dataclass
class Files:
    """`rows.jsonl` and `pictures/` in a folder."""

    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def jsonl(self) -> Path:
        """The file of rows."""
        return self.folder / "rows.jsonl"

    def picture(self, name: str, size: tuple[int, int], seed: int = 0) -> str:
        """Write a picture; return its path for a row."""
        path = self.folder / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(noise(*size, seed)))
        return f"pictures/{name}"

    def write(self) -> None:
        """Write the rows."""
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        self.jsonl.write_text("".join(lines), encoding="utf-8")


def captioned(folder: Path, num_rows: int) -> Files:
    """Rows with a picture each, in four languages, of lengths that differ."""
    files = Files(folder)
    for number in range(num_rows):
        size = SIZES[number % len(SIZES)]
        name = f"{size[0]}x{size[1]}.png"
        files.rows.append(
            {
                "image": f"pictures/{name}",
                "caption": f"Number {number}. " + "word " * (number * 7 % 23),
                "language": ("en", "fr", "hi", "ja")[number % 4],
            }
        )
    for size in SIZES:
        files.picture(f"{size[0]}x{size[1]}.png", size)
    files.write()
    return files


def config(files: Files, *, skip: bool = False, **changes: Any) -> DataConfig:
    """A data config that reads the files."""
    source = SourceConfig(kind=SourceKind.files, path=str(files.jsonl), language_field="language")
    for name in [name for name in changes if hasattr(source, name)]:
        setattr(source, name, changes.pop(name))
    bad = BadRow.skip if skip else BadRow.error
    settings: dict[str, Any] = dict(max_bad_ratio=1.0, num_index_workers=1, max_tokens=4096)
    return DataConfig(sources={"mine": source}, on_bad_row=bad, **(settings | changes))


def indexed(
    data: DataConfig, renderer: Renderer, cache: Path, *, seed: int = 0
) -> tuple[SampleTable, Ledger]:
    """Measure the sources of a config."""
    ledger, kept = new_ledger(data), Cache(cache)
    tables = open_tables("sources", data, kept, seed=seed)
    samples = index_samples(tables, data.sources, data, renderer, kept, ledger, seed=seed)
    return samples, ledger

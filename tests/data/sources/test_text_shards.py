"""Rows of JSONL and CSV files in order: as by number, and from behind any of them."""

import gzip
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.errors import DataError
from data.cache import Cache
from data.sources import text_spans
from data.sources.records import Found
from data.sources.text_files import TextRecords, TextShard

MESSY = {
    "rows.jsonl": '\ufeff{"a": 1}\r\n\r\n{"a": \n"猫"\n  \n{"a": "猫"}\n\n\n{"a": 2}',
    "rows.csv": '\ufeff\na,b\r\n1,"2\n\n""3"\r\n\n4,5,6\n猫,\n"",5" x\n\n\n7,"8',
    "rows.tsv": 'a\tb\n1\t"2\n"\n\n3,4\n5\t6\n\n',
}


@pytest.fixture(params=[1, 23, 1 << 20])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks so small that rows, quotes and characters lie across their ends."""
    monkeypatch.setattr(text_spans, "BLOCK_BYTES", request.param)
    return int(request.param)


@pytest.fixture(params=[*MESSY, *(f"{name}.gz" for name in MESSY)])
def messy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file with blank lines and bad rows, and the same compressed."""
    plain = tmp_path / request.param.removesuffix(".gz")
    plain.write_bytes(MESSY[plain.name].encode())
    packed = tmp_path / f"{plain.name}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    return tmp_path / str(request.param)


def outcome(columns: Callable[[], Any]) -> Any:
    """What a row holds, or what is wrong with it."""
    try:
        return columns()
    except DataError as error:
        return str(error)


def told(found: Found) -> tuple[Any, ...]:
    return found.number, found.place, outcome(found.columns), found.after


def test_a_shard_reads_what_records_read(messy: Path, tmp_path: Path, block_bytes: int) -> None:
    shard = TextShard(messy)
    assert shard.name == messy.name and shard.root == messy.parent
    plain = messy.with_name(messy.name.removesuffix(".gz"))
    records = TextRecords([plain], Cache(tmp_path / "cache"))
    found = list(shard.read())
    wanted = [outcome(lambda index=index: records.columns(index)) for index in range(len(records))]
    assert [row.number for row in found] == list(range(len(records)))
    assert [outcome(row.columns) for row in found] == wanted
    assert [row.place.replace(".gz:", ":") for row in found] == [
        records.place(index) for index in range(len(records))
    ]
    assert any(isinstance(row, str) for row in wanted)  # bad ones among them


def test_a_shard_goes_on_behind_any_row(messy: Path, block_bytes: int) -> None:
    shard = pickle.loads(pickle.dumps(TextShard(messy)))
    rows = [told(row) for row in shard.read()]
    assert len(rows) >= 3
    for number in range(len(rows)):
        cursor = json.loads(json.dumps(rows[number][-1]))  # as a checkpoint keeps it
        assert [told(row) for row in shard.read(cursor)] == rows[number + 1 :]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_shard_parses_and_reads_no_more_than_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(text_spans, "BLOCK_BYTES", 16)
    raw = b'{"a": 1}\nbad\n' + os.urandom(1 << 16).replace(b"\n", b"") + b"\n"
    packed = gzip.compress(raw)[:-40_000]  # breaks off in the third row
    (tmp_path / name).write_bytes(packed if name.endswith("gz") else raw)
    rows = TextShard(tmp_path / name).read()
    first, second = next(rows), next(rows)
    assert first.columns() == {"a": 1}
    with pytest.raises(DataError, match=r"^is not JSON: Expecting value at column 1$"):
        second.columns()
    if name.endswith("gz"):
        with pytest.raises(DataError, match=r"rows\.jsonl\.gz: cannot be read to its end"):
            next(rows)


def test_a_shard_that_is_shorter_than_its_cursor_is_told(messy: Path) -> None:
    with pytest.raises(DataError, match=f"{messy.name}: ends before byte 9999"):
        next(TextShard(messy).read([9999, 3, 4]))


def test_a_packed_shard_that_breaks_before_its_cursor_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(os.urandom(1 << 16))[:-40_000])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: cannot be unpacked up to byte 60000"):
        next(TextShard(path).read([60_000, 3, 4]))
    path.write_bytes(b"{}\n")
    with pytest.raises(DataError, match=r"cannot be read to its end: Not a gzipped file"):
        next(TextShard(path).read())


def test_shards_take_another_name_and_refuse_other_files(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    shard = TextShard(tmp_path / "rows.jsonl", "en/rows.jsonl")
    assert shard.name == "en/rows.jsonl" and next(shard.read()).place == "en/rows.jsonl:1"
    with pytest.raises(DataError, match=r"is one JSON list, which cannot be streamed; write a row"):
        TextShard(tmp_path / "rows.json")
    with pytest.raises(DataError, match=r"rows\.txt: is streamed from files of \.jsonl"):
        TextShard(tmp_path / "rows.txt")

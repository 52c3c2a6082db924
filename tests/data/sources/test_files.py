"""Which reader takes what a path, folder or glob names."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from data_pico import encode, noise

from configs.errors import DataError
from data.cache import Cache
from data.sources.files import open_files, open_shards
from data.sources.tar_shards import TarRecords
from data.sources.text_files import TextRecords


def jsonl(path: Path, *captions: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"caption": c}) + "\n" for c in captions))
    return path


def tar(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w") as file:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            file.addfile(member, io.BytesIO(b"abc"))
    return path


def captions(path: Path | str, cache: Path) -> list[str]:
    records = open_files(str(path), Cache(cache))
    return [records.columns(index)["caption"] for index in range(len(records))]


def test_a_file(tmp_path: Path) -> None:
    assert captions(jsonl(tmp_path / "a.jsonl", "A", "B"), tmp_path / "cache") == ["A", "B"]


def test_a_glob_in_order_of_names(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        jsonl(tmp_path / f"part-{number}.jsonl", f"{number}")
    assert captions(tmp_path / "part-*.jsonl", tmp_path / "cache") == ["0", "1", "2"]


def test_a_glob_through_folders(tmp_path: Path) -> None:
    jsonl(tmp_path / "x/y/a.jsonl", "deep")
    jsonl(tmp_path / "a.jsonl", "flat")
    assert sorted(captions(tmp_path / "**/*.jsonl", tmp_path / "cache")) == ["deep", "flat"]


def test_a_folder_of_shards(tmp_path: Path) -> None:
    for number in (1, 0):
        jsonl(tmp_path / f"rows/part-{number}.jsonl", f"{number}")
    (tmp_path / "rows/README.md").write_text("Not rows.")
    assert captions(tmp_path / "rows", tmp_path / "cache") == ["0", "1"]


def test_a_folder_with_metadata(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(noise(4, 4)))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "A"}\n')
    records = open_files(str(tmp_path), Cache(tmp_path / "cache"))
    assert records.columns(0)["image"] == "a.png"
    assert records.root == tmp_path


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert isinstance(open_files(str(tar(tmp_path / "a.tar", "1.txt")), cache), TarRecords)
    assert isinstance(open_files(str(jsonl(tmp_path / "a.jsonl", "A")), cache), TextRecords)


def test_shards_of_a_stream(tmp_path: Path) -> None:
    for number in range(3):
        tar(tmp_path / f"{number}.tar", "1.txt")
    shards = open_shards(str(tmp_path / "*.tar"))
    assert [shard.name for shard in shards] == ["0.tar", "1.tar", "2.tar"]


@pytest.mark.parametrize("path", ["none.jsonl", "none-*.tar", "none/"])
def test_nothing_there(tmp_path: Path, path: str) -> None:
    for open_it in (lambda p: open_files(p, Cache(tmp_path / "cache")), open_shards):
        with pytest.raises(DataError, match="there is no such file or folder, and no file matches"):
            open_it(str(tmp_path / path))


def test_two_kinds_at_once(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", "A")
    tar(tmp_path / "a.tar", "1.txt")
    with pytest.raises(DataError, match=r"names 2 files of \.jsonl, \.tar; rows are read from fil"):
        open_files(str(tmp_path / "a.*"), Cache(tmp_path / "cache"))


def test_what_datasets_reads_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"parquet is read by kind=dataset path=parquet data_files"):
        open_files(str(tmp_path / "a.parquet"), Cache(tmp_path / "cache"))


def test_a_folder_of_pictures_is_not_streamed(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "A"}\n')
    with pytest.raises(DataError, match="is a folder of pictures, which is not streamed"):
        open_shards(str(tmp_path))

"""Data sets of `datasets`, in order: shards, going on, damage; and no picture decoded anywhere."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
from data_pico import encode, noise
from datasets import Dataset, Features, Image, List, Value

from configs.errors import DataError
from configs.schema import SourceConfig, SourceKind
from data.sources.hub import HubRecords, hub_shards

KEY = "data.sources.mine"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def parquet(folder: Path, num_shards: int = 3, rows: int = 7) -> SourceConfig:
    """Shards of rows with a picture, another picture, and pictures in messages."""
    picture = {"bytes": encode(noise(9, 9)), "path": None}
    content = [{"type": "image", "image": picture}, {"type": "text", "image": None}]
    features = Features({
        "caption": Value("string"), "image": Image(), "other": Image(),
        "messages": List({"content": List({"type": Value("string"), "image": Image()})}),
    })  # fmt: skip
    for shard in range(num_shards):
        Dataset.from_dict(
            {
                "caption": [f"{shard}-{number}" for number in range(rows)],
                "image": [picture] * rows,
                "other": [picture] * rows,
                "messages": [[{"content": content}]] * rows,
            },
            features=features,
        ).to_parquet(folder / f"{shard}.parquet")
    files = [str(folder / "*.parquet")]
    return SourceConfig(kind=SourceKind.dataset, path="parquet", data_files=files)


def captions(shard: Any, cursor: Any = None) -> list[str]:
    return [found.columns()["caption"] for found in shard.read(cursor)]


def test_shards_are_the_files(tmp_path: Path) -> None:
    shards = hub_shards(KEY, parquet(tmp_path))
    assert [captions(shard) for shard in shards] == [
        [f"{shard}-{number}" for number in range(7)] for shard in range(3)
    ]
    assert captions(shards[1]) == captions(shards[1])  # from the start again


def test_going_on_behind_any_row_through_a_checkpoint(tmp_path: Path) -> None:
    config = parquet(tmp_path)
    (_, shard, _), (_, again, _) = hub_shards(KEY, config), hub_shards(KEY, config)
    whole = captions(shard)
    for number in range(7):
        *_, found = islice(shard.read(), number + 1)
        assert (found.number, found.place) == (number, f"1-{number}")
        cursor = json.loads(json.dumps(found.after))
        assert captions(again, cursor) == whole[number + 1 :]


@pytest.mark.parametrize("streamed", [False, True])
def test_no_picture_is_decoded_wherever_it_is(
    streamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parquet(tmp_path)
    monkeypatch.setattr("PIL.Image.open", None)  # calling it would fail
    if streamed:
        columns = next(iter(hub_shards(KEY, config)[0].read())).columns()
    else:
        columns = HubRecords(KEY, config).columns(0)
    pieces = columns["messages"][0]["content"]
    for picture in (columns["image"], columns["other"], pieces[0]["image"]):
        assert picture["bytes"].startswith(b"\x89PNG")


def test_a_damaged_shard_is_told_with_its_row(tmp_path: Path) -> None:
    config = parquet(tmp_path)
    path = tmp_path / "1.parquet"
    data = bytearray(path.read_bytes())
    data[40:400] = bytes(360)
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"data\.sources\.mine: shard 1 cannot be read behind row 0"
    ):
        captions(hub_shards(KEY, config)[1])


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = parquet(tmp_path)
    config.caption_field = "text"
    with pytest.raises(DataError, match=r"data\.sources\.mine\.caption_field=text: no such column"):
        hub_shards(KEY, config)

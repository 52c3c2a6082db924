"""Rows of tables that `datasets` reads: pictures, paths, captions, conversations, and bad rows.

What columns become is tested in test_columns.py; here it comes the whole way from a file.
"""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from data_pico import encode, noise
from datasets import Dataset, Features, Image, List, Value

from configs.errors import DataError
from configs.schema import BadRow, DataConfig, SourceConfig, SourceKind
from data.build import index_samples, new_ledger, open_tables
from data.cache import Cache
from data.images import BytesImage, FileImage, ImageRules
from data.ledger import Ledger
from data.prompts import draw_prompt
from data.render import Renderer
from data.rows import IMAGE, Row
from data.samples import SampleTable

RULES = ImageRules(178_956_970, 67_108_864)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the cache of `datasets` out of the home folder, and stay off the hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def jsonl(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def parquet(folder: Path, columns: dict[str, list[Any]], **kinds: Any) -> str:
    path = folder / "rows.parquet"
    features = Features(
        {name: kinds.get(name, Value("string")) for name in columns}
    )  # text where nothing else is said
    Dataset.from_dict(columns, features=features).to_parquet(path)
    return str(path)


def config(file: str, **changes: Any) -> SourceConfig:
    builder = "parquet" if file.endswith(".parquet") else "json"
    settings = {"kind": SourceKind.dataset, "path": builder, "data_files": [file]}
    return SourceConfig(**(settings | changes))


def read(source: SourceConfig) -> list[Row]:
    """Every row of a source; the first bad one raises."""
    data = DataConfig(sources={"mine": source})
    table = open_tables("sources", data, Cache(Path("nowhere")), seed=0)["mine"]
    return [table.row(number) for number in range(len(table))]


def refused(source: SourceConfig) -> str:
    with pytest.raises(DataError) as caught:
        read(source)
    return str(caught.value)


def indexed(
    source: SourceConfig, renderer: Renderer, folder: Path, **changes: Any
) -> tuple[SampleTable, Ledger]:
    """The usable rows of a source, and what is told of the others."""
    data = DataConfig(sources={"mine": source}, num_index_workers=1, **changes)
    ledger, cache = new_ledger(data), Cache(folder / "index")
    tables = open_tables("sources", data, cache, seed=0)
    return index_samples(tables, data.sources, data, renderer, cache, ledger, seed=0), ledger


def asked(row: Row) -> str:
    return draw_prompt(row.language, {}, 0, "mine", row.id)


def test_parquet_with_pictures(tmp_path: Path) -> None:
    pictures = [{"bytes": encode(noise(20, 10, seed)), "path": None} for seed in range(3)]
    file = parquet(
        tmp_path,
        {"name": ["a", "b", "c"], "image": pictures, "caption": ["A.", "B.", "C."],
         "lang": ["en", "hi", "ja"]},
        image=Image(),
    )  # fmt: skip
    rows = read(config(file, id_field="name", language_field="lang"))
    assert [row.id for row in rows] == ["a", "b", "c"]
    assert [row.language for row in rows] == ["en", "hi", "ja"]
    assert [row.turns[1].text for row in rows] == ["A.", "B.", "C."]
    for seed, row in enumerate(rows):
        assert row.source == "mine"
        assert row.turns[0].content == (IMAGE, asked(row))
        (image,) = row.images
        assert isinstance(image, BytesImage)  # still encoded
        assert image.size() == (20, 10)
        assert image.load().tobytes() == noise(20, 10, seed).tobytes()


def test_several_pictures_a_row(tmp_path: Path) -> None:
    pictures = [{"bytes": encode(noise(20, 10, seed)), "path": None} for seed in range(3)]
    file = parquet(
        tmp_path,
        {"images": [pictures[:2], pictures[2:]], "caption": ["A.", "B."]},
        images=List(Image()),
    )
    rows = read(config(file, image_field="images"))
    assert [len(row.images) for row in rows] == [2, 1]
    assert rows[0].turns[0].content == (IMAGE, IMAGE, asked(rows[0]))
    assert rows[0].images[1].load().tobytes() == noise(20, 10, 1).tobytes()


def test_jsonl_with_paths_below_a_root(tmp_path: Path) -> None:
    (tmp_path / "images/deep").mkdir(parents=True)
    noise(20, 10).save(tmp_path / "images/deep/a.png")
    file = jsonl(tmp_path, [{"image": "deep/a.png", "caption": "Ein Bild.", "question": "Was?"}])
    source = config(
        file, image_root=str(tmp_path / "images"), prompt_field="question", language="de"
    )
    (row,) = read(source)
    assert row.id == "0"
    assert row.language == "de"
    assert [turn.content for turn in row.turns] == [(IMAGE, "Was?"), ("Ein Bild.",)]
    assert row.images == (FileImage(tmp_path / "images/deep/a.png", RULES),)
    assert row.images[0].size() == (20, 10)


def test_a_folder_with_metadata(tmp_path: Path) -> None:
    for name in ("a", "b"):
        noise(20, 10).save(tmp_path / f"{name}.png")
    lines = [{"file_name": f"{name}.png", "caption": name.upper()} for name in ("a", "b")]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read(SourceConfig(SourceKind.dataset, path=str(tmp_path)))
    assert [row.turns[1].text for row in rows] == ["A", "B"]
    for row in rows:
        assert isinstance(row.images[0], FileImage)
        assert row.images[0].load().tobytes() == noise(20, 10).tobytes()


def test_several_captions_a_row(tmp_path: Path) -> None:
    file = parquet(
        tmp_path,
        {"image": [b"..."] * 9, "caption": [["A.", "B."]] * 9},
        image=Value("binary"), caption=List(Value("string")),
    )  # fmt: skip
    assert {row.turns[1].text for row in read(config(file))} == {"A.", "B."}


CHAT = [
    {"role": "user", "content": [{"type": "text", "text": "Here: "}, {"type": "image"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A key."}]},
]


@pytest.mark.parametrize("as_text", [False, True])
def test_messages_of_pieces(tmp_path: Path, as_text: bool) -> None:
    """`datasets` gives each piece all keys; some files hold the messages as JSON text."""
    noise(20, 10).save(tmp_path / "a.png")
    messages = json.dumps(CHAT) if as_text else CHAT
    file = jsonl(tmp_path, [{"image": "a.png", "messages": messages}])
    (row,) = read(config(file, messages_field="messages", image_root=str(tmp_path)))
    assert [turn.content for turn in row.turns] == [("Here: ", IMAGE), ("A key.",)]
    assert row.images == (FileImage(tmp_path / "a.png", RULES),)


def test_messages_that_hold_their_pictures(tmp_path: Path) -> None:
    noise(20, 10).save(tmp_path / "a.png")
    pieces = [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What?"}]
    chat = [{"role": "user", "content": pieces}, CHAT[1]]
    file = jsonl(tmp_path, [{"messages": chat}])
    settings = {"messages_field": "messages", "image_field": None}
    (row,) = read(config(file, image_root=str(tmp_path), **settings))
    assert row.turns[0].content == (IMAGE, "What?")
    assert row.images == (FileImage(tmp_path / "a.png", RULES),)


def test_llava(tmp_path: Path) -> None:
    """Rows of text alone have no picture: null, once `datasets` has read them."""
    noise(20, 10).save(tmp_path / "a.png")
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A key."}]
    text = [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]
    file = jsonl(
        tmp_path, [{"image": "a.png", "conversations": talk}, {"conversations": text}]
    )  # fmt: skip
    rows = read(config(file, messages_field="conversations", image_root=str(tmp_path)))
    assert [row.turns[0].content for row in rows] == [(IMAGE, "What?"), ("1 + 1?",)]
    assert [len(row.images) for row in rows] == [1, 0]


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = jsonl(tmp_path, [{"picture": "a.png", "text": "A."}])
    source = config(file, id_field="key", language_field="lang")
    assert refused(source) == (
        "data.sources.mine.id_field=key, data.sources.mine.language_field=lang, "
        "data.sources.mine.caption_field=caption, data.sources.mine.image_field=image: no such "
        "column; the data set has picture, text (image_field=null for text alone)"
    )


def test_a_caption_column_is_not_asked_for_beside_messages(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    file = jsonl(tmp_path, [{"messages": chat}])
    (row,) = read(config(file, messages_field="messages", image_field=None))
    assert [turn.text for turn in row.turns] == ["1 + 1?", "2"]


@pytest.mark.parametrize(
    "changes", [{"data_files": ["/no/such/file.jsonl"]}, {"split": "test"}, {"path": "no_builder"}]
)
def test_a_data_set_that_cannot_be_read(tmp_path: Path, changes: dict[str, Any]) -> None:
    source = config(jsonl(tmp_path, [{"caption": "A."}]), **changes)
    message = refused(source)
    assert message.startswith(f"data.sources.mine: cannot read path={source.path!r}, data_files=")
    assert len(message.splitlines()) == 1


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{broken\n")
    assert "data.sources.mine: cannot read path='json'" in refused(
        config(str(tmp_path / "rows.jsonl"))
    )


def test_num_rows_takes_the_first_ones(tmp_path: Path) -> None:
    file = jsonl(tmp_path, [{"caption": str(number), "q": "?"} for number in range(5)])
    text = {"image_field": None, "prompt_field": "q"}
    assert [row.id for row in read(config(file, num_rows=2, **text))] == ["0", "1"]
    assert len(read(config(file, num_rows=9, **text))) == 5


def test_an_id_that_comes_twice_is_named(tmp_path: Path, renderer: Renderer) -> None:
    rows = [{"key": key, "caption": "A.", "q": "?"} for key in ("x", "y", "x")]
    source = config(
        jsonl(tmp_path, rows), id_field="key", image_field=None, prompt_field="q"
    )  # fmt: skip
    skip = {"on_bad_row": BadRow.skip, "max_bad_ratio": 0.5}
    samples, ledger = indexed(source, renderer, tmp_path, **skip)
    assert [samples.sample(number).row.id for number in range(len(samples))] == ["x", "y"]
    assert [(bad.id, bad.reason[:27]) for bad in ledger.bad] == [
        ("x", "an earlier row has the same")
    ]


def test_bad_rows_are_told_and_the_others_stay_in_order(tmp_path: Path, renderer: Renderer) -> None:
    noise(20, 10).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    pairs = zip(("good", "gone", "good", "bad", "good"), ("A.", "B.", "", "D.", "E."), strict=True)
    rows = [{"image": f"{image}.png", "caption": caption} for image, caption in pairs]
    source = config(jsonl(tmp_path, rows), image_root=str(tmp_path))
    skip = {"on_bad_row": BadRow.skip, "max_bad_ratio": 0.6}
    samples, ledger = indexed(source, renderer, tmp_path, **skip)
    assert [samples.sample(number).row.id for number in range(len(samples))] == ["0", "4"]
    reasons = {bad.id: bad.reason for bad in ledger.bad}
    assert list(reasons) == ["1", "2", "3"]
    assert reasons["1"] == f"image '{tmp_path}/gone.png' does not exist"
    assert reasons["2"] == "column 'caption' is empty"
    assert reasons["3"].startswith(f"image '{tmp_path}/bad.png' cannot be read: cannot identify")
    with pytest.raises(DataError, match=r"mine/1: image .* does not exist"):
        indexed(source, renderer, tmp_path)

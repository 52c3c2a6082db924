"""Rows of tables that `datasets` reads: pictures, paths, captions, conversations, and bad rows."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from data_pico import encode, noise
from datasets import Dataset, Features, Image, List, Value

from configs.errors import DataError
from configs.schema import BadRow, DataConfig, SourceConfig, SourceKind
from data.columns import make_row, read_table
from data.images import BytesImage, FileImage, ImageRules
from data.instructions import DESCRIBE
from data.ledger import Ledger
from data.render import Renderer
from data.rows import IMAGE, Row, plain_text
from data.sources.build import new_ledger, read_rows, render_rows

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


def read(source: SourceConfig, *, skip: bool = False, **changes: Any) -> tuple[list[Row], Ledger]:
    data = DataConfig(
        sources={"mine": source}, on_bad_row=BadRow.skip if skip else BadRow.error, **changes
    )
    ledger = new_ledger(data)
    return read_rows(data, data.sources, ledger, seed=0)["mine"], ledger


def refused(source: SourceConfig, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(source, **changes)
    return str(caught.value)


def test_parquet_with_pictures(tmp_path: Path) -> None:
    pictures = [{"bytes": encode(noise(20, 10, seed)), "path": None} for seed in range(3)]
    file = parquet(
        tmp_path,
        {"name": ["a", "b", "c"], "image": pictures, "caption": ["A.", "B.", "C."],
         "lang": ["en", "hi", "ja"]},
        image=Image(),
    )  # fmt: skip
    rows, ledger = read(config(file, id_field="name", language_field="lang"))
    assert [row.id for row in rows] == ["a", "b", "c"]
    assert [row.language for row in rows] == ["en", "hi", "ja"]
    assert [row.turns[1].text for row in rows] == ["A.", "B.", "C."]
    for seed, row in enumerate(rows):
        assert row.source == "mine"
        assert row.turns[0].content == (IMAGE, DESCRIBE[row.language][0])
        (image,) = row.images
        assert isinstance(image, BytesImage)  # still encoded
        assert image.size() == (20, 10)
        assert image.load().tobytes() == noise(20, 10, seed).tobytes()
    assert ledger.bad == []


def test_several_pictures_a_row(tmp_path: Path) -> None:
    pictures = [{"bytes": encode(noise(20, 10, seed)), "path": None} for seed in range(3)]
    file = parquet(
        tmp_path,
        {"images": [pictures[:2], pictures[2:]], "caption": ["A.", "B."]},
        images=List(Image()),
    )
    rows, _ = read(config(file, image_field="images"))
    assert [len(row.images) for row in rows] == [2, 1]
    assert rows[0].turns[0].content == (IMAGE, IMAGE, DESCRIBE["en"][0])
    assert rows[0].images[1].load().tobytes() == noise(20, 10, 1).tobytes()


def test_jsonl_with_paths_below_a_root(tmp_path: Path) -> None:
    (tmp_path / "images/deep").mkdir(parents=True)
    noise(20, 10).save(tmp_path / "images/deep/a.png")
    file = jsonl(tmp_path, [{"image": "deep/a.png", "caption": "Ein Bild.", "question": "Was?"}])
    source = config(
        file, image_root=str(tmp_path / "images"), prompt_field="question", language="de"
    )
    ((row,), _) = read(source)
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
    rows, _ = read(SourceConfig(SourceKind.dataset, path=str(tmp_path)))
    assert [row.turns[1].text for row in rows] == ["A", "B"]
    for row in rows:
        assert isinstance(row.images[0], FileImage)
        assert row.images[0].load().tobytes() == noise(20, 10).tobytes()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret.png", "image '../secret.png' leaves image_root"),
        ("/etc/passwd", "image '/etc/passwd' leaves image_root"),
        ("https://a/b.png", "image 'https://a/b.png' is a URL"),
        ("gone.png", "gone.png' does not exist"),
    ],
)
def test_a_picture_that_cannot_be_had(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "images").mkdir()
    noise(2, 2).save(tmp_path / "secret.png")
    source = config(
        jsonl(tmp_path, [{"image": path, "caption": "A."}]), image_root=str(tmp_path / "images")
    )
    message = refused(source)
    assert message.startswith("row mine/0: ")
    assert reason in message
    assert "data.on_bad_row=skip" in message


def test_text_alone(tmp_path: Path) -> None:
    file = jsonl(tmp_path, [{"prompt": "1 + 1?", "reply": "2"}, {"prompt": "2 + 2?", "reply": "4"}])
    rows, _ = read(config(file, image_field=None, prompt_field="prompt", caption_field="reply"))
    assert [[turn.text for turn in row.turns] for row in rows] == [["1 + 1?", "2"], ["2 + 2?", "4"]]
    assert not any(row.images for row in rows)


def test_numbers_are_text(tmp_path: Path) -> None:
    file = jsonl(tmp_path, [{"prompt": "0 + 0?", "caption": 0}])
    ((row,), _) = read(config(file, image_field=None, prompt_field="prompt"))
    assert row.turns[1].text == "0"


def test_nothing_is_asked_to_be_described_without_a_picture(tmp_path: Path) -> None:
    file = jsonl(tmp_path, [{"caption": "A.", "image": None}])
    assert "row mine/0: has no picture to describe" in refused(config(file))


def test_plain_text_is_read_without_a_question(tmp_path: Path) -> None:
    """`image_field=null` and no question: a corpus, trained on from its first word."""
    file = jsonl(tmp_path, [{"text": "Once upon a time."}])
    source = config(file, image_field=None, caption_field="text")
    [(row_id, columns)] = read_table("mine", source)
    row = make_row("mine", row_id, columns, source, rules=ImageRules(100, 10_000))
    assert row.turns == plain_text("Once upon a time.")
    assert row.images == ()


def test_what_is_no_text_is_not_made_text(tmp_path: Path) -> None:
    """`str([...])` would train the model to write Python."""
    file = jsonl(tmp_path, [{"prompt": "q", "caption": ["one", "two"]}])
    source = config(file, image_field=None, prompt_field="prompt")
    assert "row mine/0: column caption holds \"['one', 'two']\", not text" in refused(source)
    file = jsonl(tmp_path, [{"prompt": "q", "caption": "a"}, {"prompt": None, "caption": "a"}])
    assert "row mine/1: column prompt holds 'None', not text" in refused(source)


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is this?"},
    {"role": "assistant", "content": "A key."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


def test_messages_with_pictures_that_have_no_place(tmp_path: Path) -> None:
    """They go before the first question."""
    for name in ("a", "b"):
        noise(20, 10).save(tmp_path / f"{name}.png")
    file = jsonl(tmp_path, [{"image": ["a.png", "b.png"], "messages": CHAT}])
    ((row,), _) = read(config(file, messages_field="messages", image_root=str(tmp_path)))
    assert [turn.role for turn in row.turns] == [message["role"] for message in CHAT]
    assert row.turns[1].content == (IMAGE, IMAGE, "What is this?")
    assert row.turns[3].content == ("Sure?",)
    assert len(row.images) == 2


def test_messages_with_places_for_pictures(tmp_path: Path) -> None:
    noise(20, 10).save(tmp_path / "a.png")
    content = [
        {"type": "text", "text": "Here: "},
        {"type": "image", "text": None},
        {"type": "text", "text": "?"},
    ]
    chat = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "A key."}]},
    ]
    file = jsonl(tmp_path, [{"image": "a.png", "messages": chat}])
    ((row,), _) = read(config(file, messages_field="messages", image_root=str(tmp_path)))
    assert row.turns[0].content == ("Here: ", IMAGE, "?")
    assert row.turns[1].content == ("A key.",)


def test_messages_without_pictures(tmp_path: Path) -> None:
    file = jsonl(tmp_path, [{"messages": CHAT}])
    ((row,), _) = read(config(file, messages_field="messages", image_field=None))
    assert [turn.text for turn in row.turns] == [message["content"] for message in CHAT]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "its messages are not a list of role and content"),
        ("hello", "its messages are not a list of role and content"),
        (None, "its messages are not a list of role and content"),
        ([{"from": "human", "value": "hello"}], "has no role and content"),
        ([{"role": "human", "content": "hello"}], "role 'human', which is not one of system, user"),
        ([{"role": "user", "content": None}], "which is neither text nor a picture"),
        ([{"role": "user", "content": [{"type": "audio", "text": "x"}]}], "neither text nor a"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "neither text nor a"),
    ],
)
def test_messages_that_are_not_understood(tmp_path: Path, messages: Any, reason: str) -> None:
    file = jsonl(tmp_path, [{"messages": messages, "other": 1}])
    message = refused(config(file, messages_field="messages", image_field=None))
    assert message.startswith("row mine/0: ")
    assert reason in message


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = jsonl(tmp_path, [{"picture": "a.png", "text": "A."}])
    source = config(file, id_field="key", language_field="lang")
    assert refused(source) == (
        "data.sources.mine.id_field=key, data.sources.mine.language_field=lang, "
        "data.sources.mine.caption_field=caption, data.sources.mine.image_field=image: no such "
        "column; the data set has picture, text (image_field=null for text alone)"
    )


def test_a_caption_column_is_not_asked_for_beside_messages(tmp_path: Path) -> None:
    file = jsonl(tmp_path, [{"messages": CHAT}])
    assert read(config(file, messages_field="messages", image_field=None))[0]


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


def test_a_language_that_is_not_known(tmp_path: Path) -> None:
    file = jsonl(tmp_path, [{"caption": "A.", "q": "?", "lang": "xx"}])
    source = config(file, language_field="lang", image_field=None, prompt_field="q")
    assert "row mine/0: language 'xx' is not one of ar, cs, de" in refused(source)


def test_the_column_tells_the_language_and_the_config_where_it_does_not(tmp_path: Path) -> None:
    rows = [{"caption": "A.", "q": "?", "lang": code} for code in ("hi", None, "ja")]
    file = jsonl(tmp_path, rows)
    text = {"image_field": None, "prompt_field": "q"}
    made, _ = read(config(file, language_field="lang", language="ko", **text))
    assert [row.language for row in made] == ["hi", "ko", "ja"]
    made, _ = read(config(file, language="ko", **text))
    assert [row.language for row in made] == ["ko"] * 3
    made, _ = read(config(file, **text))
    assert [row.language for row in made] == ["en"] * 3


def test_num_rows_takes_the_first_ones(tmp_path: Path) -> None:
    file = jsonl(tmp_path, [{"caption": str(number), "q": "?"} for number in range(5)])
    text = {"image_field": None, "prompt_field": "q"}
    assert [row.id for row in read(config(file, num_rows=2, **text))[0]] == ["0", "1"]
    assert len(read(config(file, num_rows=9, **text))[0]) == 5


def test_an_id_that_comes_twice_is_named(tmp_path: Path) -> None:
    rows = [{"key": key, "caption": "A.", "q": "?"} for key in ("x", "y", "x")]
    source = config(
        jsonl(tmp_path, rows), id_field="key", image_field=None, prompt_field="q"
    )  # fmt: skip
    assert refused(source).startswith("row mine/x: an earlier row has the same id; 'key' is no ")
    made, ledger = read(source, skip=True)
    assert [row.id for row in made] == ["x", "y"]
    assert [(row["id"], row["reason"][:13]) for row in ledger.bad] == [("x", "an earlier ro")]


def test_bad_rows_go_to_the_ledger_in_both_stages(tmp_path: Path, renderer: Renderer) -> None:
    """Rows that cannot be made, then rows that cannot be rendered; the good ones stay in order."""
    noise(20, 10).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows = [
        {"image": image, "caption": caption}
        for image, caption in [
            ("good.png", "A."),
            ("gone.png", "B."),
            ("good.png", ""),
            ("bad.png", "D."),
            ("good.png", "E."),
        ]
    ]
    source = config(jsonl(tmp_path, rows), image_root=str(tmp_path))
    data = DataConfig(sources={"mine": source}, on_bad_row=BadRow.skip, max_bad_ratio=0.6)
    ledger = new_ledger(data)
    read_all = read_rows(data, data.sources, ledger, seed=0)
    samples = render_rows(read_all, renderer, data, ledger)
    assert [sample.row.id for sample in samples["mine"]] == ["0", "4"]
    assert ledger.num_used == {"mine": 2}
    reasons = {row["id"]: row["reason"] for row in ledger.bad}
    assert set(reasons) == {"1", "2", "3"}
    assert "does not exist" in reasons["1"]
    assert "not text" in reasons["2"]
    assert "cannot be read" in reasons["3"]
    ledger = new_ledger(DataConfig(sources={}, on_bad_row=BadRow.skip, max_bad_ratio=0.5))
    read_all = read_rows(data, data.sources, ledger, seed=0)
    with pytest.raises(DataError, match=r"3 of 5 rows are bad \(60\.0%\)"):
        render_rows(read_all, renderer, data, ledger)


def test_a_picture_that_breaks_off_is_left_out_before_the_run(
    tmp_path: Path, renderer: Renderer
) -> None:
    """Its header is good, so only decoding finds it; the packs must not be planned with it."""
    whole = encode(noise(64, 64), "JPEG")
    for name, content in (("a.jpg", whole), ("b.jpg", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(content)
    file = jsonl(tmp_path, [{"image": "a.jpg", "caption": "a"}, {"image": "b.jpg", "caption": "b"}])
    source = config(file, image_root=str(tmp_path))
    rows, ledger = read(source, skip=True, max_bad_ratio=1.0)
    data = DataConfig(sources={"mine": source}, on_bad_row=BadRow.skip, max_bad_ratio=1.0)
    samples = render_rows({"mine": rows}, renderer, data, ledger)["mine"]
    assert [sample.row.id for sample in samples] == ["0"]
    assert [bad["id"] for bad in ledger.bad] == ["1"]
    assert "truncated" in ledger.bad[0]["reason"]

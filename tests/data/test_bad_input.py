"""Each kind of bad input, from a file on disk to the message a user reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_pico import encode, noise, png_header
from index_pico import Files, captioned, config, indexed

from configs.errors import DataError
from data.render import Renderer

NUMBER = 3  # of the row that is spoiled, from 0: line 4
PLACE = "mine/rows.jsonl:4"
REMEDY = "mend the row, or leave such rows out with data.on_bad_row=skip"


def picture(data: bytes) -> Callable[[Files], None]:
    """Spoil the row by its picture."""

    def spoil(files: Files) -> None:
        (files.folder / "pictures/bad.png").write_bytes(data)
        files.rows[NUMBER]["image"] = "pictures/bad.png"

    return spoil


def says(**columns: Any) -> Callable[[Files], None]:
    """Spoil the row by what it says."""
    return lambda files: files.rows[NUMBER].update(columns)


def two_pictures(files: Files) -> None:
    messages = [
        {"role": "user", "content": "<image> What?"},
        {"role": "assistant", "content": "This."},
    ]
    for row in files.rows:
        row["messages"] = messages
    files.rows[NUMBER]["image"] = [files.rows[NUMBER]["image"]] * 2


CUT = encode(noise(64, 64), "JPEG")[:900]
SPOILED: dict[str, tuple[Callable[[Files], None], dict[str, Any], str]] = {
    "zero bytes": (picture(b""), {}, "pictures/bad.png' cannot be read: it is empty (0 bytes)"),
    "truncated JPEG": (picture(CUT), dict(verify_pixels=True), "cannot be read: image file is tr"),
    "text named .png": (picture(b"No picture."), {}, "cannot be read: cannot identify image file"),
    "bomb": (picture(png_header(60_000, 60_000)), {}, "has 60000 x 60000 pixels, more than"),
    "large": (picture(png_header(15_000, 15_000)), {}, "has 15000 x 15000 pixels, more than data."),
    "too many bytes": (picture(bytes(30_000)), dict(max_image_bytes=29_999),
                       "has 30,000 bytes, more than data.max_image_bytes=29999"),
    "missing file": (says(image="pictures/no.png"), {}, "pictures/no.png' does not exist"),
    "escaping path": (says(image="../secret.png"), {}, "image '../secret.png' leaves image_root"),
    "absolute path": (says(image="/etc/hostname"), {}, "image '/etc/hostname' leaves image_root"),
    "URL": (says(image="https://example.org/a.png"), {}, "is a URL; set data.allow_urls=true"),
    "2 pictures, 1 place": (two_pictures, dict(messages_field="messages"),
                            "has 2 pictures and 1 place for them (<image>)"),
    "empty answer": (says(caption="  "), {}, "column 'caption' is empty"),
    "no answer": (lambda files: files.rows[NUMBER].pop("caption"), {}, "has no column 'caption'"),
    "too long": (says(caption="word " * 900), dict(max_tokens=300), "than data.max_tokens=300"),
    "language": (says(language="tlh"), {}, "language 'tlh' is not one of ar, cs, de"),
    "special token": (says(caption="So <|END_OF_TURN_TOKEN|>."), {}, "END_OF_TURN_TOKEN"),
}  # fmt: skip


def spoiled(kind: str, folder: Path) -> tuple[Files, dict[str, Any], str]:
    """Files with one spoiled row, the settings that show it, and the reason to be told."""
    spoil, settings, reason = SPOILED[kind]
    files = captioned(folder / "rows", 8)
    spoil(files)
    files.write()
    (folder / "secret.png").write_bytes(encode(noise(4, 4)))
    return files, settings, reason


@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_row_is_named_with_the_reason_and_the_remedy(
    kind: str, tmp_path: Path, tiling_renderer: Renderer
) -> None:
    files, settings, reason = spoiled(kind, tmp_path)
    with pytest.raises(DataError) as caught:
        indexed(config(files, **settings), tiling_renderer, tmp_path / "cache")
    told, remedy = str(caught.value).rsplit("\n", 1)
    assert told.startswith(f"row {PLACE}: ")
    assert reason in told
    assert remedy.strip() == REMEDY


@pytest.mark.parametrize("kind", SPOILED)
def test_skipped_it_is_in_the_ledger_and_the_others_are_used(
    kind: str, tmp_path: Path, tiling_renderer: Renderer
) -> None:
    files, settings, reason = spoiled(kind, tmp_path)
    samples, ledger = indexed(
        config(files, skip=True, **settings), tiling_renderer, tmp_path / "cache"
    )
    (bad,) = ledger.bad
    assert str(bad).startswith(PLACE)
    assert reason in bad.reason
    assert [samples.row_name(i) for i in range(len(samples))] == [
        f"mine/rows.jsonl:{line}" for line in (1, 2, 3, 5, 6, 7, 8)
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"image": "pictures/1x1.png", "caption": ', "is not JSON: "),
        (b'{"image": "pictures/1x1.png", "caption": "caf\xe9"}', "is not UTF-8 at byte "),
        (b'["pictures/1x1.png", "A."]', "is a list, not an object"),
    ],
    ids=["not JSON", "not UTF-8", "a list"],
)
def test_a_line_that_is_no_row_is_named_by_its_number(
    line: bytes, reason: str, tmp_path: Path, tiling_renderer: Renderer
) -> None:
    files = captioned(tmp_path, 8)
    lines = files.jsonl.read_bytes().splitlines()
    lines[NUMBER] = line
    files.jsonl.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError) as caught:
        indexed(config(files), tiling_renderer, tmp_path / "cache")
    assert str(caught.value).startswith(f"row {PLACE}: {reason}")
    samples, ledger = indexed(config(files, skip=True), tiling_renderer, tmp_path / "cache")
    assert [str(row)[: len(PLACE)] for row in ledger.bad] == [PLACE] and len(samples) == 7


def test_an_empty_source(tmp_path: Path, tiling_renderer: Renderer) -> None:
    files = Files(tmp_path)
    files.write()
    with pytest.raises(DataError, match=r"^data\.sources\.mine: path='.*rows.jsonl' holds no rows"):
        indexed(config(files), tiling_renderer, tmp_path / "cache")


def test_a_source_of_nothing_but_bad_rows(tmp_path: Path, tiling_renderer: Renderer) -> None:
    files = Files(tmp_path, [{"caption": ""}] * 3)
    files.write()
    with pytest.raises(DataError, match=r"no usable row: all 3 rows are bad\n  mine/rows"):
        indexed(config(files, skip=True), tiling_renderer, tmp_path / "cache")


def test_ids_that_come_twice(tmp_path: Path, tiling_renderer: Renderer) -> None:
    files = Files(tmp_path, [{"caption": "A.", "id": i % 2, "language": "en"} for i in range(3)])
    files.write()
    data = config(files, id_field="id", image_field=None)
    with pytest.raises(DataError, match="row mine/0: an earlier row has the same id; id_field"):
        indexed(data, tiling_renderer, tmp_path / "cache")

"""The length index: exact, made once, in parallel, and never out of date."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_pico import encode, noise
from index_pico import SIZES, Files, captioned, config, indexed

from configs.errors import DataError
from data import index as module
from data.index import FIELDS, LANGUAGE_NUMBER
from data.render import Renderer

Count = list[str]


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> Count:
    """The ids of rows that were rendered, in order."""
    ids: Count = []
    render = Renderer.render

    def noted(self: Renderer, row: Any, **kwargs: Any) -> Any:
        ids.append(row.id)
        return render(self, row, **kwargs)

    monkeypatch.setattr(Renderer, "render", noted)
    return ids


def test_the_index_is_what_rendering_gives(tmp_path: Path, tiling_renderer: Renderer) -> None:
    samples, ledger = indexed(config(captioned(tmp_path, 40)), tiling_renderer, tmp_path / "c")
    assert len(samples) == 40 and ledger.num_used == {"mine": 40} and not ledger.bad
    token = tiling_renderer.processing_class.image_token_id
    for number, measured in enumerate(samples.lengths):
        sample = samples.sample(number)
        assert measured["num_tokens"] == len(sample.input_ids)
        assert measured["num_supervised"] == sample.supervised.sum()
        assert measured["num_image_tokens"] == (sample.input_ids == token).sum()
        assert measured["num_tiles"] == sum(sample.num_tiles)
        assert measured["language"] == LANGUAGE_NUMBER[sample.row.language]
        assert samples.row_name(number) == str(sample.row)
    assert len(set(samples.lengths["num_tiles"].tolist())) > 3  # the sizes are awkward enough


def test_no_pixel_is_decoded(
    tmp_path: Path, tiling_renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = config(captioned(tmp_path, 20))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)  # calling it would fail
    indexed(data, tiling_renderer, tmp_path / "cache")


def test_the_second_start_renders_nothing(
    tmp_path: Path, tiling_renderer: Renderer, rendered: Count
) -> None:
    data = config(captioned(tmp_path, 20))
    first, _ = indexed(data, tiling_renderer, tmp_path / "cache")
    assert len(rendered) == 20
    second, _ = indexed(data, tiling_renderer, tmp_path / "cache")
    assert len(rendered) == 20
    assert np.array_equal(first.lengths, second.lengths)


@pytest.mark.parametrize(
    "change",
    [
        dict(max_tokens=60),
        dict(max_tiles=3),
        dict(packs_per_step=4),
        dict(weight=3.0),
        dict(skip=True),
        dict(num_index_workers=2),
    ],
    ids=str,
)
def test_what_decides_nothing_measures_nothing_anew(
    tmp_path: Path, tiling_renderer: Renderer, rendered: Count, change: dict[str, Any]
) -> None:
    files = captioned(tmp_path, 20)
    indexed(config(files, skip=True), tiling_renderer, tmp_path / "cache")
    indexed(config(files, **({"skip": True} | change)), tiling_renderer, tmp_path / "cache")
    assert len(rendered) == 20


@pytest.mark.parametrize(
    "change",
    [dict(caption_field="language"), dict(image_field=None, prompt_field="language")],
    ids=str,
)
def test_what_decides_something_measures_anew(
    tmp_path: Path, tiling_renderer: Renderer, rendered: Count, change: dict[str, Any]
) -> None:
    files = captioned(tmp_path, 20)
    indexed(config(files), tiling_renderer, tmp_path / "cache")
    indexed(config(files, **change), tiling_renderer, tmp_path / "cache")
    assert len(rendered) == 40


def test_another_seed_draws_other_prompts(
    tmp_path: Path, tiling_renderer: Renderer, rendered: Count
) -> None:
    data = config(captioned(tmp_path, 20))
    one, _ = indexed(data, tiling_renderer, tmp_path / "cache", seed=1)
    two, _ = indexed(data, tiling_renderer, tmp_path / "cache", seed=2)
    assert len(rendered) == 40
    asked = [[t.sample(i).row.turns[0].text for i in range(20)] for t in (one, two)]
    assert asked[0] != asked[1]


def test_another_processor_measures_anew(
    tmp_path: Path, tiling_renderer: Renderer, renderer: Renderer
) -> None:
    data = config(captioned(tmp_path, 20))
    many, _ = indexed(data, tiling_renderer, tmp_path / "cache")
    one, _ = indexed(data, renderer, tmp_path / "cache")
    assert many.lengths["num_tiles"].max() > one.lengths["num_tiles"].max() == 1


def test_an_edited_row_is_noticed(tmp_path: Path, tiling_renderer: Renderer) -> None:
    files = captioned(tmp_path, 20)
    before, _ = indexed(config(files), tiling_renderer, tmp_path / "cache")
    was = before.lengths["num_tokens"].copy()
    files.rows[3]["caption"] += " and more"
    files.write()
    after, _ = indexed(config(files), tiling_renderer, tmp_path / "cache")
    assert np.flatnonzero(after.lengths["num_tokens"] != was).tolist() == [3]


def test_an_edited_picture_is_noticed(tmp_path: Path, tiling_renderer: Renderer) -> None:
    files = captioned(tmp_path, 20)
    before, _ = indexed(config(files), tiling_renderer, tmp_path / "cache")
    was = before.lengths["num_tiles"].copy()
    files.picture("64x64.png", (300, 1))
    after, _ = indexed(config(files), tiling_renderer, tmp_path / "cache")
    changed = [i for i, row in enumerate(files.rows) if row["image"] == "pictures/64x64.png"]
    assert np.flatnonzero(after.lengths["num_tiles"] != was).tolist() == changed


def test_a_deleted_picture_is_noticed(tmp_path: Path, tiling_renderer: Renderer) -> None:
    files = captioned(tmp_path, 20)
    indexed(config(files, skip=True), tiling_renderer, tmp_path / "cache")
    (tmp_path / "pictures/64x64.png").unlink()
    samples, ledger = indexed(config(files, skip=True), tiling_renderer, tmp_path / "cache")
    assert [row.id for row in ledger.bad] == ["rows.jsonl:5", "rows.jsonl:14"]
    assert all("does not exist" in row.reason for row in ledger.bad)
    assert len(samples) == 18


def test_a_row_that_changes_while_the_run_goes_on(
    tmp_path: Path, tiling_renderer: Renderer
) -> None:
    files = captioned(tmp_path, 20)
    samples, _ = indexed(config(files), tiling_renderer, tmp_path / "cache")
    files.picture("64x64.png", (300, 1))
    message = r"row mine/rows.jsonl:5: has changed since it was measured: it had .* start the run"
    with pytest.raises(DataError, match=message):
        samples.sample(4)


def spoil(files: Files) -> Files:
    """Make five of the rows bad, in five ways."""
    files.rows[2]["caption"] = " "
    files.rows[11]["image"] = "../outside.png"
    files.rows[12]["language"] = "tlh"
    files.rows[30] = {"caption": "no picture"}
    (files.folder / "pictures/text.png").write_text("this is no picture")
    files.rows[33]["image"] = "pictures/text.png"
    files.write()
    return files


def test_several_processes_measure_what_one_does(
    tmp_path: Path, tiling_renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SERIAL", 1)
    monkeypatch.setattr(module, "CHUNK", 4)
    files = spoil(captioned(tmp_path, 41))
    results = [
        indexed(config(files, skip=True, num_index_workers=n), tiling_renderer, tmp_path / str(n))
        for n in (1, 3)
    ]
    (one, ledger), (three, other) = results
    assert np.array_equal(one.lengths, three.lengths)
    assert np.array_equal(one.row_of, three.row_of)
    assert ledger == other
    assert [row.id for row in ledger.bad] == [f"rows.jsonl:{n}" for n in (3, 12, 13, 31, 34)]


def test_bad_rows_are_the_same_from_the_cache(tmp_path: Path, tiling_renderer: Renderer) -> None:
    data = config(spoil(captioned(tmp_path, 41)), skip=True)
    _, first = indexed(data, tiling_renderer, tmp_path / "cache")
    _, second = indexed(data, tiling_renderer, tmp_path / "cache")
    assert first == second and len(first.bad) == 5


def test_a_row_among_the_first_ends_the_measuring(
    tmp_path: Path, tiling_renderer: Renderer, rendered: Count
) -> None:
    files = captioned(tmp_path, 300)
    for row in files.rows:
        row["text"] = row.pop("caption")
    files.write()
    with pytest.raises(DataError) as caught:
        indexed(config(files), tiling_renderer, tmp_path / "cache")
    lines = str(caught.value).splitlines()
    assert lines[0] == "100 rows cannot be used:"
    assert lines[1].startswith("  mine/rows.jsonl:1: has no column 'caption'")
    assert lines[6:] == [
        "  and 95 more",
        "  mend them, or leave such rows out with data.on_bad_row=skip",
    ]
    assert not rendered


def test_later_bad_rows_are_told_together_and_not_measured_again(
    tmp_path: Path, tiling_renderer: Renderer, rendered: Count
) -> None:
    files = captioned(tmp_path, 120)
    files.rows[110]["caption"] = files.rows[115]["caption"] = ""
    files.write()
    with pytest.raises(DataError, match="2 rows cannot be used") as caught:
        indexed(config(files), tiling_renderer, tmp_path / "cache")
    assert "mine/rows.jsonl:111: " in str(caught.value)
    measured = len(rendered)
    samples, _ = indexed(config(files, skip=True), tiling_renderer, tmp_path / "cache")
    assert len(samples) == 118 and len(rendered) == measured


def test_rows_over_a_budget_are_named(tmp_path: Path, tiling_renderer: Renderer) -> None:
    data = config(captioned(tmp_path, 20), skip=True, max_tiles=3, max_tokens=150)
    samples, ledger = indexed(data, tiling_renderer, tmp_path / "cache")
    assert samples.lengths["num_tiles"].max() <= 3
    assert samples.lengths["num_tokens"].max() <= 150
    reasons = {row.reason.split(", ")[1] for row in ledger.bad}
    assert reasons == {"more than data.max_tokens=150", "more than data.max_tiles=3"}
    assert len(samples) + len(ledger.bad) == 20


def test_repeated_ids(tmp_path: Path, tiling_renderer: Renderer) -> None:
    files = captioned(tmp_path, 20)
    for number, row in enumerate(files.rows):
        row["name"] = f"row-{number % 18}"
    files.write()
    data = config(files, skip=True, id_field="name")
    _, ledger = indexed(data, tiling_renderer, tmp_path / "cache")
    assert [(row.id, row.reason) for row in ledger.bad] == [
        (f"row-{n}", "an earlier row has the same id; id_field names no column of unique ids")
        for n in (0, 1)
    ]
    with pytest.raises(DataError, match="mine/row-0: an earlier row has the same id"):
        indexed(replace(data, on_bad_row="error"), tiling_renderer, tmp_path / "cache")


def test_two_ids_of_one_hash_are_two_ids(
    tmp_path: Path, tiling_renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = captioned(tmp_path, 6)
    for number, row in enumerate(files.rows):
        row["name"] = f"row-{number}"
    files.write()
    real = module.digest
    monkeypatch.setattr(
        module, "digest", lambda v: "0" * 32 if str(v).startswith("row-") else real(v)
    )
    samples, ledger = indexed(config(files, id_field="name"), tiling_renderer, tmp_path / "cache")
    assert len(samples) == 6 and not ledger.bad
    assert set(samples.lengths["id_hash"].tolist()) == {0}


def test_broken_pixels_behind_a_good_header(tmp_path: Path, tiling_renderer: Renderer) -> None:
    files = captioned(tmp_path, 12)
    whole = encode(noise(*SIZES[4]), "JPEG")
    (tmp_path / "pictures/cut.jpg").write_bytes(whole[: len(whole) // 2])
    files.rows[7]["image"] = "pictures/cut.jpg"
    files.write()
    _, ledger = indexed(config(files, skip=True), tiling_renderer, tmp_path / "cache")
    assert not ledger.bad  # headers alone
    data = config(files, skip=True, verify_pixels=True)
    _, ledger = indexed(data, tiling_renderer, tmp_path / "cache")
    assert [row.id for row in ledger.bad] == ["rows.jsonl:8"]
    assert "truncated" in ledger.bad[0].reason


def test_an_index_takes_few_bytes_a_row() -> None:
    assert FIELDS.itemsize <= 32


def test_nothing_of_the_index_is_a_pickle(tmp_path: Path, tiling_renderer: Renderer) -> None:
    indexed(config(captioned(tmp_path, 5)), tiling_renderer, tmp_path / "cache")
    (folder,) = [path for path in (tmp_path / "cache/index").iterdir() if path.is_dir()]
    assert sorted(os.listdir(folder)) == [
        "bad.jsonl", "lengths.npy", "pictures.txt",
    ]  # fmt: skip
    assert np.load(folder / "lengths.npy", allow_pickle=False).dtype == FIELDS
    assert [json.loads(line) for line in (folder / "bad.jsonl").open()] == []


def test_a_missing_picture_that_is_put_back_is_found(
    tmp_path: Path, tiling_renderer: Renderer
) -> None:
    files = captioned(tmp_path, 20)
    path = tmp_path / "pictures/64x64.png"
    whole = path.read_bytes()
    path.unlink()
    _, ledger = indexed(config(files, skip=True), tiling_renderer, tmp_path / "cache")
    assert len(ledger.bad) == 2
    path.write_bytes(whole)
    _, ledger = indexed(config(files, skip=True), tiling_renderer, tmp_path / "cache")
    assert not ledger.bad


def test_the_same_rows_beside_other_pictures_are_other_rows(
    tmp_path: Path, tiling_renderer: Renderer
) -> None:
    one, two = captioned(tmp_path / "one", 20), captioned(tmp_path / "two", 20)
    two.picture("64x64.png", (300, 1))
    first, _ = indexed(config(one), tiling_renderer, tmp_path / "cache")
    other, _ = indexed(config(two), tiling_renderer, tmp_path / "cache")
    assert not np.array_equal(first.lengths["num_tiles"], other.lengths["num_tiles"])
    assert len({samples.sample(4).num_tiles for samples in (first, other)}) == 2


def test_a_row_that_changed_is_measured_again_at_the_next_start(
    tmp_path: Path, tiling_renderer: Renderer
) -> None:
    files = captioned(tmp_path, 20)
    samples, _ = indexed(config(files), tiling_renderer, tmp_path / "cache")
    files.picture("64x64.png", (300, 1))
    with pytest.raises(DataError, match="start the run again"):
        samples.sample(4)
    again, _ = indexed(config(files), tiling_renderer, tmp_path / "cache")
    assert again.sample(4).num_tiles != (samples.lengths["num_tiles"][4],)


def test_a_process_that_dies_while_it_measures_is_told(
    tmp_path: Path, tiling_renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SERIAL", 1)
    monkeypatch.setattr(module, "CHUNK", 4)
    data = config(captioned(tmp_path, 40), skip=True, num_index_workers=2)
    render = Renderer.render

    def die(self: Renderer, row: Any, **kwargs: Any) -> Any:
        if row.id == "rows.jsonl:22":
            os.kill(os.getpid(), signal.SIGKILL)
        return render(self, row, **kwargs)

    monkeypatch.setattr(Renderer, "render", die)
    with pytest.raises(DataError, match=r"a process that measured rows died, among rows \d+ and"):
        indexed(data, tiling_renderer, tmp_path / "cache")


def test_an_id_that_is_half_a_character(tmp_path: Path, tiling_renderer: Renderer) -> None:
    files = captioned(tmp_path, 4)
    for number, row in enumerate(files.rows):
        row["name"] = f"row-{number}"
    files.rows[2] |= {"name": "\ud800", "caption": ""}
    files.jsonl.write_text("".join(json.dumps(row) + "\n" for row in files.rows))
    data = config(files, skip=True, id_field="name")
    for _ in range(2):  # measured, and from the cache
        _, ledger = indexed(data, tiling_renderer, tmp_path / "cache")
        assert [row.id for row in ledger.bad] == ["\ud800"]


def test_a_column_of_languages_that_is_not_read_is_told(
    tmp_path: Path, tiling_renderer: Renderer, caplog: pytest.LogCaptureFixture
) -> None:
    files = captioned(tmp_path, 4)
    indexed(config(files), tiling_renderer, tmp_path / "cache")
    assert not caplog.text
    indexed(config(files, language_field=None), tiling_renderer, tmp_path / "cache")
    assert "set data.sources.mine.language_field=language" in caplog.text


def test_no_more_chunks_are_measured_ahead_than_fit_in_memory(
    tmp_path: Path, tiling_renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 1)
    rows = [range(i, i + 1) for i in range(200)]
    log = tmp_path / "log"

    def measure(chunk: range) -> Any:
        with log.open("a") as file:
            file.write(f"{chunk.start}\n")
        return chunk.start

    done = module._mapped(measure, rows, 2)  # type: ignore[arg-type]
    assert next(done) == 0
    time.sleep(0.3)
    assert len(log.read_text().splitlines()) <= module.AHEAD * 2 + 2
    assert list(done) == list(range(1, 200))

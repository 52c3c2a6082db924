"""`python -m data.inspect`: it marks what is supervised, and counts what there is."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_pico import PLENTY, asked, picture, row
from index_pico import Files, captioned, config, indexed

from configs.command import load_config
from configs.errors import ConfigError, DataError
from configs.flags import with_key
from configs.schema import InspectConfig
from data.inspect_html import Table
from data.inspect_run import check_supervision, choose_rows, inspect, listed
from data.inspect_tables import (
    Inspection,
    budget_table,
    charts_of,
    kind_of,
    language_table,
    ledger_tables,
    tables_of,
)
from data.inspect_text import describe_sample, mark_supervised, tell, text_table, write
from data.ledger import BadRow
from data.render import Renderer, Sample
from data.rows import IMAGE, Row, question

ROOT = Path(__file__).resolve().parents[2]
OVERRIDES = ["data.sources.scenes.num_rows=12", "num_rows=4", "data.languages=[en,de]",
             "model.decoder.vocab_size=400", "data.packs_per_step=1"]  # fmt: skip
MARKED = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
SHOWN = re.compile(r"^(\w+)/(\S+) \((\w\w), (\d+) tokens, (\d+) supervised[^\n]*\)$", re.MULTILINE)
ANSI = "\033["


def some(renderer: Renderer) -> list[Sample]:
    """Samples of two sources in three languages."""
    rows = []
    for number in range(20):
        name, language = ("talk", "pics")[number % 2], ("en", "ar", "fr")[number % 3]
        images = (picture(9 + number, 9),) if name == "pics" else ()
        turns = question("q", "a " * (number + 1), num_images=len(images))
        rows.append(Row(str(number), name, language, turns, images))
    return [renderer.render(given) for given in rows]


@pytest.fixture
def found(renderer: Renderer) -> Inspection:
    packs = [list(range(10)), [*range(10, 20), 19]]  # one row twice, as a weight above 1 gives
    return listed(some(renderer), ["talk", "pics", "none"], renderer, packs=packs)


# --------------------------------------------------------------------------------- rows


def test_each_answer_is_marked_whole(renderer: Renderer) -> None:
    given = row(
        ("system", ["Be brief."]),
        ("user", [IMAGE, "What is this?"]),
        ("assistant", ["A key."]),
        ("user", ["Sure?"]),
        ("assistant", ["Yes."]),
        images=[picture(20, 20)],
    )
    shown = mark_supervised(renderer.render(given, **PLENTY), renderer, colour=False)
    assert shown == (
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|><|START_OF_IMG|>TILE_GLOBAL<|IMG_PATCH|>x16"
        "<|END_OF_IMG|>What is this?<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>[[A key.<|END_OF_TURN_TOKEN|>]]"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Sure?<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>[[Yes.<|END_OF_TURN_TOKEN|>]]"
    )


def test_on_a_terminal_the_marks_are_colours(renderer: Renderer) -> None:
    sample = renderer.render(asked("q", "a"), **PLENTY)
    shown = mark_supervised(sample, renderer, colour=True)
    assert shown.endswith(f"{ANSI}1;32ma<|END_OF_TURN_TOKEN|>{ANSI}0m")
    assert "[[" not in shown


def test_a_row_cannot_steer_the_terminal(renderer: Renderer) -> None:
    sample = renderer.render(asked("clear \033[2J me\n\tkept", "bell\a"))
    shown = mark_supervised(sample, renderer, colour=False)
    assert "clear \\x1b[2J me\n\tkept" in shown
    assert "[[bell\\x07<|END_OF_TURN_TOKEN|>]]" in shown


def test_a_row_is_told_with_its_pictures(tiling_renderer: Renderer) -> None:
    sample = tiling_renderer.render(asked("q", "a", picture(70, 30), picture(1200, 30)))
    assert [*sample.num_tiles] == [3, 7]
    assert describe_sample(sample) == (
        f"tests/7 (en, {sample.num_tokens} tokens, 2 supervised, 70 x 30 pixels in 3 tiles, "
        "1,200 x 30 pixels in 7 tiles)"
    )


def test_rows_are_spread_over_sources_and_languages(found: Inspection) -> None:
    def languages(chosen: Sequence[int]) -> Counter[tuple[str, str]]:
        rows = [found.sample(number).row for number in chosen]
        return Counter((given.source, given.language) for given in rows)

    chosen = choose_rows(found.lengths, found.source_of, 6, seed=0)
    assert languages(chosen) == {
        (source, code): 2 for source in ("talk", "pics") for code in ("en", "ar", "fr")
    }
    assert len(set(chosen)) == 12
    assert chosen == choose_rows(found.lengths, found.source_of, 6, seed=0)
    assert chosen != choose_rows(found.lengths, found.source_of, 6, seed=1)
    fewer = choose_rows(found.lengths, found.source_of, 2, seed=0)
    assert fewer == [*chosen[:2], *chosen[6:8]]
    assert sorted(choose_rows(found.lengths, found.source_of, 99, seed=0)) == list(range(20))


# ------------------------------------------------------------------------------- tables


def test_the_token_budget_is_that_of_the_packs(found: Inspection) -> None:
    settings = load_config("inspect", ["data.max_tokens=1000", "data.packs_per_step=2"])
    table = budget_table(found, settings)
    taken = [found.sample(number) for pack in found.packs for number in pack]
    image_id = found.renderer.processing_class.image_token_id
    supervised = sum(int(sample.supervised.sum()) for sample in taken)
    image = sum(sample.input_ids.tolist().count(image_id) for sample in taken)
    tokens = sum(sample.num_tokens for sample in taken)
    assert image == 16 * 11  # ten pictures, the last row twice
    numbers = {name: int(number.replace(",", "")) for name, number, _ in table.rows}
    assert numbers == {
        "supervised": supervised,
        "prompt and tags": tokens - supervised - image,
        "image": image,
        "unused": 2000 - tokens,
    }
    assert sum(numbers.values()) == 2000
    assert table.rows[0][2] == f"{supervised / 2000:.1%}"
    assert table.note == (
        "an epoch: 21 rows in 2 packs of 1,000 tokens and 64 tiles; 1 steps of 2 packs"
    )


def test_lengths_by_language(found: Inspection) -> None:
    table = language_table(found)
    assert [line[0] for line in table.rows] == ["ar", "en", "fr"]
    for code, *numbers, supervised in table.rows:
        mine = [s for s in map(found.sample, range(20)) if s.row.language == code]
        lengths = sorted(sample.num_tokens for sample in mine)
        assert [int(number) for number in numbers] == [
            len(mine), sum(lengths), lengths[(len(mine) + 1) // 2 - 1], lengths[-1], lengths[-1]
        ]  # fmt: skip
        marked = sum(int(sample.supervised.sum()) for sample in mine)
        assert supervised == f"{marked / sum(lengths):.1%}"


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("has 2,104 tokens, more than data.max_tokens=2048",
         "has N tokens, more than data.max_tokens=2048"),
        ("image 'a 1.png' cannot be read: 17 bytes", "image '...' cannot be read: N bytes"),
        ("the row's picture isn't there", "the row's picture isn't there"),
        ('column "x" holds 3.25\nmore of 9', 'column \'...\' holds N'),
        ("", ""),
    ],
)  # fmt: skip
def test_reasons_of_one_kind_are_told_alike(reason: str, kind: str) -> None:
    assert kind_of(reason) == kind


def test_the_ledger_names_the_first_rows_and_counts_the_others() -> None:
    bad = [BadRow("mine", f"r{i}", f"has {i} image tiles, more than 9") for i in range(30)]
    kinds, rows = ledger_tables([*bad, BadRow("mine", "last", "has an empty answer")])
    assert kinds.rows == [["has N image tiles, more than N", "30"], ["has an empty answer", "1"]]
    assert [line[0] for line in rows.rows] == [f"mine/r{i}" for i in range(20)]
    assert rows.rows[3][1] == "has 3 image tiles, more than 9"
    assert rows.note == "and 11 more"
    assert ledger_tables([]) == []


def test_rows_over_the_budget_are_counted(tmp_path: Path, renderer: Renderer) -> None:
    """They are left out, so the ledger knows of them and the index does not."""
    data = config(captioned(tmp_path, 46), skip=True, max_tokens=80)
    samples, ledger = indexed(data, renderer, tmp_path / "cache")
    assert 0 < len(ledger.bad) < 46
    found = Inspection(
        samples.lengths, samples.source_of, samples.source_names, samples.sample, renderer, [],
        ledger.bad,
    )  # fmt: skip
    tokens, supervised, tiles = charts_of(found, InspectConfig(data=data))
    assert tokens.note.endswith(f"over the budget of 80, and so left out: {len(ledger.bad)}")
    assert tokens.histogram.counts.sum() == 46 - len(ledger.bad)
    assert supervised.note.startswith("p50 ")
    assert tiles.note.endswith("over the budget of 64, and so left out: 0")


def test_arrays_of_samples_at_hand_are_those_of_an_index(
    tmp_path: Path, tiling_renderer: Renderer
) -> None:
    samples, _ = indexed(config(captioned(tmp_path, 12)), tiling_renderer, tmp_path / "cache")
    found = listed([samples.sample(number) for number in range(12)], ["mine"], tiling_renderer)
    told = ["num_tokens", "num_supervised", "num_image_tokens", "num_tiles", "language"]
    for name in told:
        assert found.lengths[name].tolist() == samples.lengths[name].tolist()
        assert len(set(found.lengths[name].tolist())) > 1
    assert found.source_of.tolist() == samples.source_of.tolist()


def test_tables_render_no_row(found: Inspection) -> None:
    """So that a million rows take no more than their index."""

    def never(number: int) -> Sample:
        raise AssertionError(f"row {number} was rendered")

    settings = load_config("inspect", [])
    silent = replace(found, sample=never)
    tables_of(silent, settings), charts_of(silent, settings)
    asked_for: list[int] = []
    watched = replace(found, sample=lambda n: asked_for.append(n) or found.sample(n))
    list(tell(watched, [3, 7], settings, colour=False))
    assert asked_for == [3, 7]


def test_columns_are_in_line() -> None:
    table = Table("t", ["name", "n"], [["a\a", "1,000"], ["longer name", "2"]], note="two")
    assert text_table(table).splitlines() == [
        "t",
        "name             n",
        "a\\x07        1,000",
        "longer name      2",
        "two",
    ]


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        write(["text"] * 20_000)
        write(["more"])


# -------------------------------------------------------------------------- supervision


def test_supervision_that_makes_no_sense_is_refused(found: Inspection) -> None:
    check_supervision(found, range(20))
    lengths = found.lengths.copy()
    lengths["num_supervised"][found.source_of == 1] = 0
    with pytest.raises(DataError, match="source pics: no token of it would be supervised"):
        check_supervision(replace(found, lengths=lengths), [])

    def everywhere(number: int) -> Sample:
        sample = found.sample(number)
        return replace(sample, supervised=np.ones(sample.num_tokens, dtype=np.bool_))

    with pytest.raises(DataError, match=r"row pics/1: .*an image token would be supervised"):
        check_supervision(replace(found, sample=everywhere), [1])


# --------------------------------------------------------------------------- the command


def test_the_output_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    inspect(load_config("inspect", OVERRIDES))
    out = capsys.readouterr().out
    assert ANSI not in out
    shown = SHOWN.findall(out)
    assert [source for source, *_ in shown] == ["scenes"] * 4
    assert Counter(language for _, _, language, _, _ in shown) == {"en": 2, "de": 2}
    for answer in MARKED.findall(out):
        assert answer.endswith("<|END_OF_TURN_TOKEN|>")
        assert "IMG_PATCH" not in answer
    assert len(MARKED.findall(out)) == 4
    places = [out.index(title) for title in (
        "\nsources and languages\n", "\ntokens a row\n", "\nsupervised tokens a row\n",
        "\ntiles a row\n", "\ntoken budget\n", "\ntokens a row by language\n",
    )]  # fmt: skip
    assert places == sorted(places)
    assert re.search(r"^scenes +12 +0 ", out, re.MULTILINE)
    assert "an epoch: 12 rows in 1 packs" in out
    assert "left out\n" not in out.split("tokens a row by language")[1]


def test_what_was_left_out_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    skip = ["data.on_bad_row=skip", "data.max_bad_ratio=1", "data.sources.udhr={kind: udhr}"]
    inspect(load_config("inspect", [*OVERRIDES, *skip, "data.max_tokens=100"]))
    out = capsys.readouterr().out
    reason = r"has \d+ tokens, more than data.max_tokens=100"
    assert re.search(rf"^udhr/\w\w-\d\d +{reason}$", out, re.MULTILINE)
    (number,) = re.findall(r"^has N tokens, more than data.max_tokens=100 +(\d+)$", out, re.M)
    assert f"over the budget of 100, and so left out: {number}" in out
    assert {source for source, *_ in SHOWN.findall(out)} == {"scenes", "udhr"}


def test_a_text_lm_is_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    text: list[Any] = ["model=pico_text", "data=text", "data.languages=[en]"]
    less = ["data.sources.numbers.num_rows=20", "data.sources.names.num_rows=20", "num_rows=1"]
    inspect(load_config("inspect", [*text, *less]))
    out = capsys.readouterr().out
    assert len(MARKED.findall(out)) == 3
    assert out.count("<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>") == 2
    assert out.count("<BOS_TOKEN><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>[[") == 1  # plain text


def test_of_a_stream_the_first_rows_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    streamed = ["data.streaming=true", "data.buffer_rows=9", "data.max_tokens=200"]
    inspect(load_config("inspect", [*OVERRIDES, *streamed]))
    out = capsys.readouterr().out
    assert len(SHOWN.findall(out)) == 4
    (number,) = re.findall(r"the rows read: (\d+) rows in \d+ packs of 200 tokens", out)
    assert 9 <= int(number) <= 12


@pytest.mark.parametrize("html", ["", " ", "."])
def test_what_is_no_file_is_refused_before_the_work(html: str) -> None:
    settings = replace(load_config("inspect", []), html=html)
    settings.data.sources = {}
    with pytest.raises(ConfigError, match=r"html: is '.?', but it is a file to write: html="):
        inspect(settings)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        (["data=text", "--help"], ["data=text", "--help"]),
        (["--html", "a.html", "seed=1"], ["html='a.html'", "seed=1"]),
        (["--html=a b,c.html"], ["html='a b,c.html'"]),
        (["--html", "it's.html"], ["html='it\\'s.html'"]),
    ],
)
def test_html_may_be_given_as_a_flag(given: list[str], expected: list[str]) -> None:
    assert with_key(given, "--html", "html", "a file to write") == expected
    if expected and "html" in expected[0]:
        path = (given[0].partition("=")[2] or given[1]) if given else ""
        assert load_config("inspect", [expected[0]]).html == path


@pytest.mark.parametrize("given", [["--html"], ["--html="], ["--html", "data=text"],
                                   ["--html", "--help"]])  # fmt: skip
def test_the_flag_needs_a_file(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        with_key(given, "--html", "html", "a file to write")
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("\nerror: --html takes a file to write")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "data.inspect", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120, encoding="utf-8",
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.slow
def test_piped_there_are_no_colours(tmp_path: Path) -> None:
    """Nor is there anything that an old terminal's encoding could not write."""
    target = tmp_path / "new folder" / "it's.html"
    done = run(*OVERRIDES, "data.languages=[en,hi]", "--html", str(target),
               PYTHONIOENCODING="latin-1")  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert ANSI not in done.stdout
    assert len(MARKED.findall(done.stdout)) == 4
    assert "\\u09" in done.stdout
    assert done.stdout.endswith(f"wrote {target}: 4 rows, {target.stat().st_size:,} bytes\n\n")
    assert target.read_text(encoding="utf-8").count("<article") == 4
    assert [path.name for path in target.parent.iterdir()] == ["it's.html"]


@pytest.mark.slow
def test_a_row_that_would_teach_pictures_is_refused(tmp_path: Path) -> None:
    """With exit code 1 and one message, and without a page."""
    files = Files(tmp_path, [{"caption": "It is TILE_GLOBAL there."}])
    files.write()
    target = tmp_path / "a.html"
    done = run("data=files", f"data.sources.files.path={files.jsonl}", "--html", str(target),
               "data.sources.files.image_field=null", "model.decoder.vocab_size=400")  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    assert re.search(r"row files/rows.jsonl:1: .*image token would be supervised", done.stderr)
    assert not target.exists()

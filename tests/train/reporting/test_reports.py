"""Reports say what the files say, all of it; foreign text stays text; broken files are told."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import (
    ATTACK,
    CODES,
    ENVIRONMENT,
    HELD_OUT,
    MEASURES,
    WORDS,
    groups,
    make_run,
    value,
)
from pico_runs import Pipeline

from configs.errors import ConfigError
from train.measuring.results import Answer, measure_of
from train.reporting.any_folder import write_any_report
from train.reporting.axes import running_mean, spread, thin
from train.reporting.content import Column, Heading, Table, Text
from train.reporting.examples import compare
from train.reporting.pictures import MOST_BYTES
from train.reporting.pipeline_report import read_pipeline
from train.reporting.preface import Preface, write_preface
from train.reporting.run_report import write_run_report

ROOT = Path(__file__).resolve().parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
VOID = {"meta", "link", "img", "br"}


@dataclass
class Page(HTMLParser):
    """Tags with their attributes, cells of tables, and all words; tags must match."""

    html: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)
    words: str = ""
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: text or "" for name, text in attrs}))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: text or "" for name, text in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data
        if self.open and {"td", "th"} & set(self.open):
            self.cells[-1] += data


def report(folder: Path) -> tuple[Page, str]:
    """The page and the Markdown of a folder."""
    return (
        Page((folder / "report.html").read_text(encoding="utf-8")),
        (folder / "report.md").read_text(encoding="utf-8"),
    )


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in 23 languages; its report is written."""
    folder = make_run(tmp_path_factory.mktemp("crowded") / "run")
    write_run_report(folder)
    return folder


def test_every_figure_of_the_last_measurement_is_in_both(crowded: Path) -> None:
    page, text = report(crowded)
    cells = {" ".join(cell.replace("(worse)", "").replace("(better)", "").split())
             for cell in page.cells}  # fmt: skip
    in_text = set(re.split(r"[|\s*]+", text))
    for group, measures in MEASURES.items():
        for measure in measures:
            if measure == "nll_increase":
                continue  # the change of the loss tells it
            told = measure_of(measure)
            assert told.title in page.words, measure
            for code in CODES:
                shown = told.form.format(value(measure, code, 400, 400))
                assert shown in cells, (group, measure, code, shown)
                assert shown in in_text, (group, measure, code, shown)
    for code in CODES:
        assert re.search(rf"\b{code}, \w", page.words)


def test_a_row_holds_its_own_start_end_and_change(crowded: Path) -> None:
    _, text = report(crowded)
    for code in ("ar", "de", "zh"):
        start, end = value("nll", code, 0, 400), value("nll", code, 400, 400)
        row = rf"\| {code}, \w+ \| {start:.3f} \| {end:.3f} \| \{end - start:+.3f}"
        assert re.search(row.replace("\\-", "-").replace("\\+", r"\+"), text), row


def test_the_headline_names_the_worst_languages(crowded: Path) -> None:
    page, text = report(crowded)
    losses = {code: value("nll_increase", code, 400, 400) for code in CODES}
    worst = sorted(losses, key=lambda code: -losses[code])[:3]
    told = "worst: " + ", ".join(f"{code} {losses[code]:+.3f}" for code in worst)
    assert told in page.words
    assert told in text
    mean = sum(losses.values()) / len(losses)
    assert f"| Text loss over step 0 | **{mean:+.3f}** |" in text


def test_both_tell_the_same_figures(crowded: Path) -> None:
    """Every number in a table or headline of the Markdown is in the page, as often or more."""
    page, text = report(crowded)
    tables = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    numbers = set(re.findall(r"[+-]?\d[\d,.]*%?", tables.replace("\\", "")))
    assert len(numbers) > 300
    hrefs = {n for n in numbers if f"{n}png" in tables or f"{n}.png" in tables}
    assert not {n for n in numbers - hrefs if n.rstrip(".,") not in page.words}


def test_the_page_stands_alone(crowded: Path) -> None:
    page, _ = report(crowded)
    html = page.html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http:" not in html.lower()
    assert "https:" not in html.lower()
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed")
        for name in ("src", "href"):
            target = attributes.get(name, "#")
            assert target.startswith(("#", "data:")), (tag, target)
    assert any(tag == "img" and a["src"].startswith("data:image/webp") for tag, a in page.tags)
    assert len(page.html) < 3_000_000


def test_foreign_text_says_its_language_and_finds_its_direction(crowded: Path) -> None:
    page, _ = report(crowded)
    for code, (question, reference, answer) in WORDS.items():
        for text in (question, reference, answer):
            assert text in page.words
        marked = [a for _, a in page.tags if a.get("lang") == code]
        assert len(marked) > 8
        assert all(a.get("dir") == "auto" for a in marked)


def test_headings_go_in_order_and_pictures_have_words(crowded: Path) -> None:
    page, _ = report(crowded)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(a.get("alt") for tag, a in page.tags if tag == "img")
    assert all(a.get("aria-label") for tag, a in page.tags if tag == "svg")


def test_a_hostile_caption_stays_text(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", codes=["en", "ar"], num_steps=4, every=2, answer=ATTACK)
    with (folder / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"source": ATTACK, "id": ATTACK, "reason": ATTACK}) + "\n")
    write_run_report(folder)
    page, text = report(folder)
    assert ATTACK in page.words
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert all(a["src"].startswith("data:") for tag, a in page.tags if tag == "img")
    assert "<script" not in text.replace("\\<", "")
    assert "](http://evil" not in text.replace("\\]", "")
    assert "default-src 'none'" in page.html


def test_answers_are_shown_at_the_first_the_previous_and_the_last_time(crowded: Path) -> None:
    page, text = report(crowded)
    assert page.words.count("a higher chrF against it") == 1
    assert "Of the rows shown, since the measurement before:" in page.words
    assert re.search(r"step 0\s*…\s*step 360\s*key better\s*step 400\s*key same\s*blind\s*a ball",
                     page.words)  # fmt: skip
    assert "46 of 92 rows are shown, at most 2 a language" in page.words
    assert "| step 0 | step 360 | step 400 | blind |" in text
    assert f"](evaluation/pictures/{CODES.index('he')}.png)" in text


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [("a key", "a key ", "same"), ("cat", "key, sun", "better"), ("key, sun", "key", "worse"),
     ("key, moo", "cat", "worse"), ("zzz", "qqq", "other words"), ("", "key", "better")],
)  # fmt: skip
def test_an_answer_is_better_when_it_is_nearer(before: str, after: str, told: str) -> None:
    one, two = (Answer("r", "en", "?", "key, sun", text) for text in (before, after))
    assert compare(one, two) == told


def test_data_and_what_was_run_are_told(crowded: Path) -> None:
    page, text = report(crowded)
    for told in ("a broken picture", "longer than max_tokens", "pangea/row-1", "1,234", "0123abc",
                 "train/main.py 'experiment=made up'", "5.23.0"):  # fmt: skip
        assert told in page.words
        assert told.replace("_", "\\_") in text or told in text
    codes = f"{', '.join(sorted(CODES))}: 4 each"
    for row in (("scenes", "emoji_scenes", "92", codes), ("udhr", "udhr rights", "92", codes)):
        assert _is_row(row, page, text)
    assert "vision_tower: {mode: frozen}" in page.words or "mode: frozen" in page.words


# ------------------------------------------------------------------ folders that are not whole


def test_an_unfinished_run_says_where_it_stands(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", codes=["en"], num_steps=8, every=4, finished=False)
    (folder / "checkpoints/checkpoint-4").mkdir(parents=True)
    write_run_report(folder)
    for told in report(folder)[0].words, report(folder)[1]:
        assert "not finished: logged up to step 8 of 8, checkpoint-4 is the last" in told


def test_a_run_on_text_alone_has_no_part_on_pictures(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", codes=["en", "fr"], num_steps=8, every=4)
    for path in (folder / "evaluation").glob("step-*.json"):
        content = json.loads(path.read_text())
        del content["groups"]["scenes"]
        path.write_text(json.dumps(content))
    write_run_report(folder)
    page, _ = report(folder)
    assert "Pictures seen" not in page.words
    assert "Text kept" in page.words


def test_an_empty_folder_has_a_report_that_says_so(tmp_path: Path) -> None:
    write_run_report(tmp_path)
    page, text = report(tmp_path)
    assert "nothing was logged yet" in page.words
    for name in ("config.yaml", "metrics.jsonl", "environment.jsonl", "rows.jsonl"):
        assert f"{name} is not there" in page.words
        assert f"{name} is not there" in text


BROKEN = [b"", b"\xff\xfe\x00junk", b"[1, 2]", b"{", b"null", b'{"step": "x", "groups": []}',
          b'{"step": 3, "groups": {"scenes": {"kind": "other"}, "udhr": 4}}',
          b'{"a": {"b": [[[[]]]]}, "packages": 3, "command": 7, "points": [1], "models": {"a": 1}}',
          b'{"settings": {"data": 4}, "environment": [1], "signatures": {"chrf": 5, "x": {"y": 1}},'
          b' "vlm": 3, "files": {"vlm": 5}, "data": {"held_out": [2]}, "point": {}, "recipe": 1}',
          b"stage: [1, 2]\ndata: {sources: 3, languages: 4}\nmodel: 5\n",
          b'{"seconds": "x", "steps": null, "samples": [], "by_language": {"en": 3}}']  # fmt: skip


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_file_is_no_exception(tmp_path: Path, content: bytes) -> None:
    made = make_run(tmp_path / "made", codes=["en"], num_steps=4, every=2)
    names = ["config.yaml", "environment.jsonl", "data.json", "data_summary.json", "rows.jsonl",
             "metrics.jsonl", "finished.json", "evaluation/step-000000.json",
             "evaluation/step-000004.json", "evaluation/pictures.json",
             "evaluation/pictures/0.png"]  # fmt: skip
    for name in names:
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)
        (folder / name).write_bytes(content)
        write_run_report(folder)
        assert "Training loss" in report(folder)[1] or name == "metrics.jsonl"


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", codes=["en"], num_steps=4, every=2)
    (folder / "evaluation/step-000002.json").write_text("{")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/loss": 1')
    write_run_report(folder)
    for told in report(folder)[0].words, report(folder)[1].replace("\\", ""):
        assert "evaluation/step-000002.json cannot be read" in told
        assert "metrics.jsonl: 1 broken lines left out, the first is 5" in told


def test_values_that_are_no_numbers_are_no_exception(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", codes=["en"], num_steps=4, every=2)
    path = folder / "evaluation/step-000004.json"
    content = json.loads(path.read_text())
    content["groups"]["udhr"]["by_language"]["nll"]["en"] = float("nan")
    content["groups"]["udhr"]["by_language"]["new"] = {"en": 1.0}
    path.write_text(json.dumps(content))
    write_run_report(folder)
    page, _ = report(folder)
    assert "a measure 'new' is unknown here and left out" in page.words


# ---------------------------------------------------------------- sweeps, evaluations, pipelines


SIGNATURES = {"chrf": {"ar": "nrefs:1|nc:6", "en": "nrefs:1|nc:6", "he": "nrefs:1|nc:6"},
              "bleu": {"ar": "tok:13a", "en": "tok:13a", "ja": "tok:ja-mecab"}}  # fmt: skip


def make_pipeline(folder: Path, codes: list[str]) -> Path:
    """Two runs, a sweep, a merge and a comparison."""
    for stage in ("align", "sft"):
        make_run(folder / stage, codes=codes, num_steps=8, every=4)
    sweep = folder / "sweep"
    (sweep / "points").mkdir(parents=True)
    points = []
    for alpha in (0.0, 0.4, 1.0):
        point = {"name": f"{alpha:g}", "alpha": alpha, "text_nll": 2 + alpha / 7,
                 "text_exact_match": 0.5, "caption_nll": 3 - alpha, "picture_gap": alpha,
                 "caption_exact_match": None, "caption_chrf": 31 * alpha}  # fmt: skip
        points.append(point)
        results = groups(int(10 * alpha), 10, codes)
        (sweep / f"points/alpha-{alpha:g}.json").write_text(
            json.dumps({"point": point, "results": results, "recipe": recipe_of(alpha)})
        )
    chosen = {"name": "0.4", "alpha": 0.4, "rule": "largest chrF"}
    (sweep / "sweep.json").write_text(
        json.dumps({"chosen": chosen, "text_lm": "0", "points": points})
    )
    config = {
        "vlm": "sft/export",
        "text": "text/export",
        "base": None,
        "data": {"held_out": HELD_OUT},
        "files": {"vlm": {"model.safetensors": "fedcba98"}},
    }
    (sweep / "config.json").write_text(json.dumps(config))
    (folder / "merged").mkdir()
    file = {"num_bytes": 12, "fingerprint": "abcdef0123"}
    vlm = {"folder": "sft/export", "files": {"model.safetensors": file}}
    merge = {"alpha": "0.4", "method": {"name": "linear"}, "inputs": {"vlm": vlm}}
    (folder / "merged/merge_report.json").write_text(json.dumps(merge))
    (folder / "comparison").mkdir()
    models = {name: {"path": name, "groups": groups(step, 10, codes, answer=f"said by {name}")}
              for name, step in (("before", 0), ("after", 10), ("merged", 4))}  # fmt: skip
    evaluation = {
        "schema": 1, "models": models, "signatures": SIGNATURES,
        "settings": {"seed": 4711, "data": {"held_out": HELD_OUT}},
        "environment": {**ENVIRONMENT, "command": ["visiongraft evaluate", "++out=some where"]},
    }  # fmt: skip
    (folder / "comparison/evaluation.json").write_text(json.dumps(evaluation))
    after = datetime(2026, 11, 26, 12, tzinfo=UTC).timestamp()  # what made_up_runs tells of runs
    for name in ("sweep/sweep.json", "merged/merge_report.json", "comparison/evaluation.json"):
        os.utime(folder / name, (after, after))
    return folder


def recipe_of(alpha: float) -> dict[str, Any]:
    """What a point of a sweep says of its recipe."""
    return {"name": "ties", "formula": "text + alpha * trimmed", "url": "https://arxiv.org/abs/1",
            "alpha": alpha, "alpha_overrides": {"lm_head": alpha / 8}, "density": 0.2}  # fmt: skip


def test_a_pipeline_is_one_story(tmp_path: Path) -> None:
    codes = ["ar", "en", "he"]
    rise = value("nll", "he", 10, 10) - value("nll", "he", 0, 10)
    folder = make_pipeline(tmp_path / "demo", codes)
    write_any_report(folder)
    page, text = report(folder)
    order = [text.index(f"| {name} |") if f"| {name} |" in text else text.index(f"| [{name}](")
             for name in ("align", "sft", "merged", "sweep", "comparison")]  # fmt: skip
    assert order == sorted(order)
    for step in (0, 4, 10):
        for code in codes:
            for measure in ("nll", "kl", "chrf", "bleu", "blind_chrf"):
                shown = measure_of(measure).form.format(value(measure, code, step, 10))
                assert shown in page.words, (measure, code)
                assert shown in text
    assert f"he, after: {rise:+.3f}" in page.html  # of the chart, on hovering
    for told in ("said by before", "said by after", "said by merged", "abcdef0123",
                 "0.4 (chosen)", "+0.057", "12.4"):  # fmt: skip
        assert told in page.words
        assert told in text
    names = re.findall(r"\(report_charts/([^)]+)\)", text)
    assert len(names) == len(set(names)) > 8
    assert all((folder / "report_charts" / name).is_file() for name in names)
    assert any(a.get("src", "").startswith("data:image") for _, a in page.tags)


def test_steps_are_told_in_the_order_of_their_times(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "demo", ["en"])
    run = folder / "align" / "environment.jsonl"
    run.write_text(json.dumps({"time": "2026-11-26T12:00:00+0000"}) + "\n")
    early, late = (datetime(2026, 11, 26, hour, tzinfo=UTC).timestamp() for hour in (11, 13))
    os.utime(folder / "comparison/evaluation.json", (early, early))
    os.utime(folder / "merged/merge_report.json", (late, late))
    os.utime(folder / "sweep/sweep.json", (late + 1, late + 1))
    found = read_pipeline(folder).order
    assert [path.name for path in found] == ["sft", "comparison", "align", "merged", "sweep"]


def test_one_is_not_told_as_many_and_models_have_names(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "demo", ["en"])
    path = folder / "comparison/evaluation.json"
    content = json.loads(path.read_text())
    content["models"] = {"before": content["models"]["before"]}
    path.write_text(json.dumps(content))
    config = {"model": {"kind": "compose"}, "stage": {"name": "align"}}
    (folder / "align/config.yaml").write_text(json.dumps(config))
    (folder / "align/finished.json").write_text('{"steps": 1}')
    for one in (folder / "comparison", folder / "align"):
        write_any_report(one)
    assert "\n1 model on the same held-out rows\n" in report(folder / "comparison")[1]
    assert "\nA new composed VLM; finished after 1 step\n" in report(folder / "align")[1]


def test_a_report_made_anew_keeps_what_the_maker_of_the_folder_said(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "demo", ["en"])
    table = Table("In short", [Column("", is_number=False), Column("lost")], [["a|b", "3%"]])
    write_preface(folder, Preface("A title", [table, Text("A lead.")], ["visiongraft x 'a b'"],
                                  [Heading("Then"), Text("A note.")]))  # fmt: skip
    write_any_report(folder)
    page, text = report(folder)
    assert text.startswith("# A title\n")
    assert "| a\\|b | 3% |" in text
    for told in ("In short", "3%", "A lead.", "visiongraft x 'a b'", "Then", "A note."):
        assert told in page.words
        assert told in text
    for broken in (
        '{"lead": [{"kind": "code", "text": "x"}]}',
        '{"lead": 3}',
        "[]",
        "{",
        '{"lead": [{"kind": "table", "caption": "", "columns": [], "rows": [["x"]]}]}',
    ):
        (folder / "preface.json").write_text(broken)
        write_any_report(folder)
        assert report(folder)[1].startswith("# Pipeline: demo\n")
        assert "preface.json" in report(folder)[0].words


def test_each_kind_of_folder_has_its_report(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "demo", ["en"])
    for name, title in {"sft": "sft", "sweep": "Sweep: sweep",
                        "comparison": "Side by side: comparison"}.items():  # fmt: skip
        write_any_report(folder / name)
        assert report(folder / name)[1].startswith(f"# {title}\n")


def test_an_evaluation_says_what_was_run(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "demo", ["ar", "en", "he"]) / "comparison"
    write_any_report(folder)
    page, text = report(folder)
    for told in ("visiongraft evaluate 'out=some where'", "machine", "0123abc", "5.23.0",
                 "seed: 4711"):  # fmt: skip
        assert told in page.words
        assert told in text
    rows = [("chrF", "ar, en, he", "nrefs:1|nc:6"), ("BLEU", "ar, en", "tok:13a"),
            ("BLEU", "ja", "tok:ja-mecab"), ("scenes", "emoji_scenes", "12", "ar, en, he: 4 each"),
            ("udhr", "udhr rights", "12", "ar, en, he: 4 each")]  # fmt: skip
    for row in rows:
        assert _is_row(row, page, text)
    assert re.search("<details><summary>How scores were computed</summary>", page.html)


def test_models_that_read_other_rows_are_told(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "demo", ["ar", "en", "he"]) / "comparison"
    content = json.loads((folder / "evaluation.json").read_text())
    del content["models"]["before"]["groups"]["scenes"]  # a text LM
    content["models"]["merged"]["groups"]["scenes"]["num_rows"]["nll"]["he"] = 3
    (folder / "evaluation.json").write_text(json.dumps(content))
    write_any_report(folder)
    page, text = report(folder)
    assert _is_row(("scenes", "emoji_scenes", "12", "ar, en, he: 4 each"), page, text)
    for told in page.words, text:
        assert "merged read 11 rows of scenes." in told
        assert "before read" not in told


def test_an_evaluation_from_before_it_was_kept_has_a_report(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "demo", ["en"]) / "comparison"
    content = json.loads((folder / "evaluation.json").read_text())
    for key in ("settings", "environment", "signatures"):
        del content[key]
    (folder / "evaluation.json").write_text(json.dumps(content))
    write_any_report(folder)
    page, text = report(folder)
    assert _is_row(("scenes", "–", "4", "en: 4"), page, text)
    for absent in ("How scores were computed", "Versions", "Resolved config"):
        assert absent not in page.words


def test_a_sweep_says_of_what_it_is_made(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "demo", ["ar", "en"])
    write_any_report(folder / "sweep")
    page, text = report(folder / "sweep")
    rows = [("method", "ties"), ("formula", "text + alpha * trimmed"), ("density", "0.2"),
            ("alpha of some tensors", "lm_head: 0.05"),  # of the choice
            ("vlm", "sft/export", "model.safetensors", "fedcba98"), ("text", "text/export", "–"),
            ("scenes", "emoji_scenes", "8", "ar, en: 4 each")]  # fmt: skip
    rows += [(f"{a:g}", "ties", str(a),
              f"lm_head: {a / 8}", "0.2") for a in (0.0, 0.4, 1.0)]  # fmt: skip
    for row in rows:
        assert _is_row(row, page, text)
    assert "vlm: sft/export" in page.words
    write_any_report(folder)
    assert _is_row(("alpha of some tensors", "lm_head: 0.05"), *report(folder))


def _is_row(row: tuple[str, ...], page: Page, text: str) -> bool:
    """Whether cells follow each other in a row of both."""
    cells = " | ".join(row)
    return f"| {cells} |" in text.replace("\\", "") and any(
        page.cells[n : n + len(row)] == list(row) for n in range(len(page.cells))
    )


@pytest.mark.parametrize("content", BROKEN)
def test_a_pipeline_with_a_broken_file_is_no_exception(tmp_path: Path, content: bytes) -> None:
    folder = make_pipeline(tmp_path / "demo", ["en"])
    for name in ("sweep/sweep.json", "sweep/config.json",
                 "sweep/points/alpha-1.json", "merged/merge_report.json",
                 "comparison/evaluation.json", "comparison/pictures.json"):  # fmt: skip
        before = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_bytes(content)
        for one in (folder, folder / "sweep", folder / "comparison"):
            write_any_report(one)
        if before is not None:
            (folder / name).write_bytes(before)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder; give the folder of a run"):
        write_any_report(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no run, sweep, merge or evaluation of ours"):
        write_any_report(tmp_path)
    for file, told in {"merge_report.json": r"is a merge: it has README\.md",
                       "judge.json": r"is of a judge: it has judge\.md",
                       "verdicts.jsonl": r"is of a judge that is not done: it has judge\.md"
                       }.items():  # fmt: skip
        (folder := tmp_path / file.split(".")[0]).mkdir()
        (folder / file).write_text("{}")
        with pytest.raises(ConfigError, match=told):
            write_any_report(folder)


def test_the_command_writes_reports_without_torch(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", codes=["en"], num_steps=4, every=2)
    code = (
        "import sys; from launch.cli import main; sys.argv[1:] = ['report', sys.argv[1]]; main(); "
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)],
                          cwd=ROOT, capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").is_file()


def test_real_runs_have_reports_with_all_that_was_logged(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    folder = tmp_path / "pico"
    for export in (pipeline.text, pipeline.sft):
        run = folder / export.parent.name
        shutil.copytree(export.parent, run, ignore=shutil.ignore_patterns("export", "checkpoints"))
        write_run_report(run)
        page, text = report(run)
        assert "What could not be read" not in page.words
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        for name, number in last.items():
            measure = name.split("/")[-1] if name.startswith("retention/mean/") else "step"
            if measure in ("nll", "chrf"):
                assert measure_of(measure).form.format(number) in page.words, name
        counts = json.loads((run / "data_summary.json").read_text())
        by_language = counts["by_language"].values()
        assert counts["tokens"] == sum(one["tokens"] for one in by_language) > 1000
        assert counts["samples"] == json.loads((run / "data.json").read_text())["samples"]
        assert f"{counts['tokens']:,} tokens" in page.words
        assert f"{counts['tokens']:,} tokens" in text
    shutil.copytree(pipeline.merged, folder / "merged")
    write_any_report(folder)
    assert "text + alpha \\* (vlm - text)" in report(folder)[1]


# ------------------------------------------------------------------------------------- pieces


def test_a_thinned_line_keeps_its_ends_and_its_spikes() -> None:
    points = [(float(x), 0.0) for x in range(10_000)]
    points[777], points[5555] = (777.0, 50.0), (5555.0, -9.0)
    kept = thin(points)
    assert len(kept) <= 120
    assert {points[0], points[777], points[5555], points[-1]} <= set(kept)
    assert kept == sorted(kept)


def test_a_running_mean_of_a_straight_line_is_the_line() -> None:
    points = [(float(x), 2.0 * x + 1) for x in range(100)]
    means = running_mean(points)
    assert [x for x, _ in means] == [x for x, _ in points]
    assert [y for _, y in means[1:-1]] == pytest.approx([y for _, y in points[1:-1]])


def test_labels_keep_apart_and_inside() -> None:
    places = spread([100, 101, 99, 100], gap=13, low=10, high=120)
    ordered = sorted(places)
    assert all(b - a >= 13 for a, b in itertools.pairwise(ordered))
    assert max(places) <= 120


def test_pictures_are_bounded(tmp_path: Path) -> None:
    assert MOST_BYTES * 4 / 3 < 2_500_000  # as base64, beside the rest of a page


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_does_not_scroll_sideways_nor_complain(
    crowded: Path, tmp_path: Path, width: int
) -> None:
    """The page is put into a frame of that width, and measured from outside."""
    write_any_report(folder := make_pipeline(tmp_path / "demo", CODES))
    for number, page in enumerate((crowded / "report.html", folder / "report.html")):
        # Its policy lets no script run, also none of ours: it is measured without it.
        html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "",
                      page.read_text(encoding="utf-8"))  # fmt: skip
        (tmp_path / "page.html").write_text(html, encoding="utf-8")
        (tmp_path / "frame.html").write_text(
            f'<body><iframe id=f src=page.html style="border:0;width:{width}px;height:900px">'
            "</iframe><script>onload = () => { const d = f.contentDocument.documentElement;"
            "document.title = d.scrollWidth + ' of ' + d.clientWidth; }</script>"
        )
        told = _chromium(tmp_path / "frame.html", tmp_path / f"profile{number}",
                         "--allow-file-access-from-files", "--hide-scrollbars",
                         "--dump-dom")  # fmt: skip
        assert f"<title>{width} of {width}</title>" in told.stdout
        profile = tmp_path / f"other{number}"
        told = _chromium(page, profile, "--enable-logging=stderr", "--dump-dom")
        assert "CONSOLE" not in told.stderr


def _chromium(page: Path, profile: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *flags,
               f"--user-data-dir={profile}", f"file://{page}"]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=60)

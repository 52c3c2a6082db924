"""`python -m data.inspect`: what it marks is what is supervised, and nothing else."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_pico import PLENTY, asked, picture, row

from configs.command import load_config
from configs.errors import DataError
from data.inspect_run import check_supervision, inspect, mark_supervised
from data.render import Renderer, Sample
from data.rows import IMAGE

ROOT = Path(__file__).resolve().parents[2]
OVERRIDES = ["data.sources.scenes.num_rows=12", "num_rows=4", "data.languages=[en,de]",
             "model.decoder.vocab_size=400", "data.packs_per_step=1"]  # fmt: skip
MARKED = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
ANSI = "\033["


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


def test_the_output_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    inspect(load_config("inspect", OVERRIDES))
    out = capsys.readouterr().out
    assert ANSI not in out
    header, counts = out.splitlines()[:2]
    assert header.split() == ["source", "rows", "tokens", "supervised", "tiles", "languages"]
    assert counts.split()[:2] == ["scenes", "12"]
    assert counts.endswith("de, en")
    assert "0 rows left out" in out
    shown = re.findall(r"^scenes/(\w\w)-\d+ \(\1, (\d+) tokens\)\n(.*)$", out, re.MULTILINE)
    assert [language for language, _, _ in shown] == ["en", "de", "en", "de"]
    for _, _, text in shown:
        (answer,) = MARKED.findall(text)
        assert text.endswith(f"<|CHATBOT_TOKEN|>[[{answer}]]")
        assert answer.endswith("<|END_OF_TURN_TOKEN|>")
        assert "IMG_PATCH" not in answer


def test_what_was_left_out_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    skip = ["data.on_bad_row=skip", "data.max_bad_ratio=1", "data.sources.udhr={kind: udhr}"]
    inspect(load_config("inspect", [*OVERRIDES, *skip, "data.max_tokens=100"]))
    out = capsys.readouterr().out
    assert re.search(
        r"left out: udhr/\w\w-\d\d: has \d+ tokens, more than data.max_tokens=100", out
    )


def supervised_everywhere(sample: Sample, value: bool) -> Sample:
    mask = np.full(sample.num_tokens, value)
    return Sample(sample.row, sample.input_ids, mask, sample.num_tiles)


def test_supervision_that_makes_no_sense_is_refused(renderer: Renderer) -> None:
    sample = renderer.render(asked("q", "a", picture(9, 9)), **PLENTY)
    check_supervision({"mine": [sample], "empty": []}, renderer)
    nothing = {"mine": [supervised_everywhere(sample, False)]}
    with pytest.raises(DataError, match="source mine: no token of it would be supervised"):
        check_supervision(nothing, renderer)
    everything = {"mine": [supervised_everywhere(sample, True)]}
    with pytest.raises(DataError, match="row tests/7: an image token would be supervised"):
        check_supervision(everything, renderer)


def test_a_text_lm_is_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    text: list[Any] = ["model=pico_text", "data=text", "data.languages=[en]"]
    less = ["data.sources.numbers.num_rows=20", "data.sources.names.num_rows=20", "num_rows=1"]
    inspect(load_config("inspect", [*text, *less]))
    out = capsys.readouterr().out
    assert len(MARKED.findall(out)) == 3
    assert out.count("<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>") == 2
    assert out.count("<BOS_TOKEN><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>[[") == 1  # plain text


@pytest.mark.slow
def test_piped_there_are_no_colours() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "data.inspect", *OVERRIDES],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert ANSI not in done.stdout
    assert len(MARKED.findall(done.stdout)) == 4

"""The demo's commands are commands a user can type, and a folder holds one demo."""

import json
import shlex
from pathlib import Path

import pytest

from configs.command import load_config
from launch import demo
from launch.demo import Step, plan_steps, run_step
from launch.demo_report import summarise, write_report
from train.reporting.any_folder import write_any_report


def test_every_step_is_a_valid_command() -> None:
    for step in plan_steps(Path("somewhere")):
        command, *overrides = step.arguments
        assert load_config(command, overrides)


def test_the_steps_hand_on_what_they_make() -> None:
    steps = plan_steps(Path("out"))
    text = load_config("train", list(steps[0].arguments[1:]))
    align = load_config("train", list(steps[1].arguments[1:]))
    merge = load_config("merge", list(steps[3].arguments[1:]))
    assert align.model.decoder.path == f"{text.output_dir}/export" == merge.text
    assert merge.alpha == demo.ALPHA


@pytest.fixture
def step(tmp_path: Path) -> Step:
    return Step("touch a file", ("train", f"output_dir={tmp_path}"), tmp_path / "result")


def test_a_step_is_done_once(step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def pretend(command: list[str]) -> int:
        ran.append(command)
        step.result.touch()
        return 0

    monkeypatch.setattr(demo, "_run", pretend)
    run_step(step, ["seed=1"], 1, 1, tmp_path)
    run_step(step, ["seed=1"], 1, 1, tmp_path)
    assert len(ran) == 1
    typed = json.loads((tmp_path / "commands.json").read_text())
    assert [shlex.split(line)[-1] for line in typed] == ["seed=1"]


def test_other_overrides_do_not_show_old_results(
    step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_run", lambda _: step.result.touch() or 0)
    run_step(step, ["seed=1"], 1, 1, tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_step(step, ["seed=2"], 1, 1, tmp_path)
    assert ended.value.code == 2
    assert "was made by another command" in capsys.readouterr().err


def test_a_step_that_fails_ends_the_demo(
    step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_run", lambda _: 130)
    with pytest.raises(SystemExit) as ended:
        run_step(step, [], 1, 1, tmp_path)
    assert ended.value.code == 130
    assert not (tmp_path / "commands.json").exists()


def test_the_report_made_anew_is_the_report_of_the_demo(tmp_path: Path) -> None:
    points = [{"name": f"{alpha:g}", "alpha": alpha, "text_exact_match": 0.5, "picture_gap": 1.0,
               "caption_exact_match": alpha} for alpha in (0.0, 0.4, 1.0)]  # fmt: skip
    for name, content in {
        "sweep/sweep.json": {"points": points, "chosen": points[1], "text_lm": "0"},
        "merged/merge_report.json": {"alpha": "0.4", "method": {"alpha": 0.4}},
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(content))
    write_report(tmp_path, [["visiongraft", "merge", "out=some where"]])
    made = {name: (tmp_path / name).read_text() for name in ("report.html", "report.md")}
    assert "In short" in made["report.md"]
    assert "visiongraft merge 'out=some where'" in made["report.md"]
    write_any_report(tmp_path)
    assert {name: (tmp_path / name).read_text() for name in made} == made


def test_the_summary_says_what_the_figures_say() -> None:
    def point(alpha: float, text: float, caption: float) -> dict[str, float]:
        return {"alpha": alpha, "text_exact_match": text, "caption_exact_match": caption,
                "picture_gap": caption}  # fmt: skip

    sweep = {"points": [point(0, 0.8, 0.1), point(0.4, 0.6, 0.5), point(1, 0.0, 1.0)],
             "chosen": {"name": "0.4", "alpha": 0.4}}  # fmt: skip
    told = summarise(sweep, alpha=0.4)
    assert "SFT on captions left 0% of what the text LM could do" in told
    assert "has 75% of it, with 50% of the captioning" in told
    assert told.endswith("The sweep chose alpha 0.4.")
    sweep["points"].append(point(0.4, 0.1, 0.1) | {"alpha": None})  # a schedule
    assert summarise(sweep, alpha=0.4) == told

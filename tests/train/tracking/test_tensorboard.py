"""TensorBoard's own reader finds in its events what the run's files hold."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.command import load_config
from configs.errors import ConfigError
from configs.schema import TrackerConfig
from train.tracking.tensorboard import TensorBoard
from train.tracking.tracker import check_tracker, start_tracker


def read(folder: Path) -> Any:
    """All events, as the program shows them: without those that a later file has purged."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    return events.Reload()


def scalars(events: Any, name: str) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in events.Scalars(name)]


@pytest.mark.slow
def test_every_number_of_a_run_that_was_gone_on_with_is_shown_once(stages):
    events = read(stages["sft"] / "tensorboard")
    told: dict[str, dict[int, float]] = {}
    for line in (stages["sft"] / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        for name, value in values.items():
            told.setdefault(name, {})[step] = value
    assert len(told) > 40
    for name, values in told.items():
        shown = scalars(events, name)
        assert [step for step, _ in shown] == sorted(values), name
        assert [v for _, v in shown] == pytest.approx([values[s] for s in sorted(values)], rel=1e-6)


@pytest.mark.slow
def test_answers_are_tables_of_words_beside_their_pictures(stages):
    events = read(stages["sft"] / "tensorboard")
    tags = events.Tags()
    (last, *_) = reversed(events.Tensors("eval/scenes/answers/text_summary"))
    table = last.tensor_proto.string_val[0].decode()
    path = stages["sft"] / "evaluation/step-000004.json"
    answers = json.loads(path.read_text())["groups"]["scenes"]["answers"]
    assert last.step == 4 and len(table.splitlines()) == 2 + len(answers)
    assert table.splitlines()[0].startswith("| row |") and "picture" not in table.splitlines()[0]
    for answer in answers:
        assert f"| {answer['row_id']} |" in table and answer["reference"] in table
        assert f"eval/scenes/answers/{answer['row_id']}" in tags["images"]
    config = events.Tensors("resolved_config.yaml/text_summary")[-1]
    assert "tensorboard: true" in config.tensor_proto.string_val[0].decode()


def test_what_lies_behind_the_checkpoint_is_purged(tmp_path):
    first = TensorBoard(tmp_path)
    for step in range(5):
        first.log({"train/loss": 10.0 + step}, step)
        first.log_table("answers", ["row", "answer"], [["a", "b"]], step)
    first.finish()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])  # a record that a kill cut short
    second = TensorBoard(tmp_path, done=2)
    second.log({"train/loss": 0.5}, 3)
    second.finish()
    assert scalars(read(tmp_path), "train/loss") == [(0, 10.0), (1, 11.0), (2, 12.0), (3, 0.5)]
    assert [e.step for e in read(tmp_path).Tensors("answers/text_summary")] == [0, 1, 2]
    third = TensorBoard(tmp_path)  # from the start, as no checkpoint was written
    third.log({"train/loss": 7.0}, 0)
    third.finish()
    assert scalars(read(tmp_path), "train/loss") == [(0, 7.0)]


def test_a_picture_is_written_once_and_cells_keep_their_table(tmp_path):
    board = TensorBoard(tmp_path)
    columns, picture = ["row", "picture", "answer"], Image.new("RGBA", (4, 3), "red")
    for step in (1, 2):
        board.log_table("answers", columns, [["a", picture, "x|y\nz"], ["b", None, None]], step)
    board.finish()
    events = read(tmp_path)
    (image,) = events.Images("answers/a")
    assert (image.width, image.height, image.step) == (4, 3, 1)
    text = events.Tensors("answers/text_summary")[1].tensor_proto.string_val[0].decode()
    assert text == "| row | answer |\n| --- | --- |\n| a | x\\|y<br>z |\n| b |  |"


def test_words_are_no_scalars(tmp_path):
    board = TensorBoard(tmp_path)
    board.log({"sweep/chosen": "0.5", "sweep/chosen_alpha": 0.5}, 3)
    board.finish()
    events = read(tmp_path)
    assert scalars(events, "sweep/chosen_alpha") == [(3, 0.5)]
    assert events.Tensors("sweep/chosen/text_summary")[0].tensor_proto.string_val == [b"0.5"]


def test_it_says_how_to_install_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    config = TrackerConfig(wandb=False, tensorboard=True)
    with pytest.raises(ConfigError, match=r'pip install "tensorboard>=2\.20"'):
        check_tracker(config)
    with pytest.raises(ConfigError, match="not installed"):
        start_tracker(config, tmp_path, job_type="sft", run_config={}, first_process=True)


def test_one_key_turns_on_both_or_either():
    for override, wandb, tensorboard in (
        (["tracker=tensorboard"], False, True),
        (["tracker=tensorboard", "tracker.wandb=true"], True, True),
        (["tracker.tensorboard=true"], True, True),
        (["tracker=jsonl"], False, False),
        ([], True, False),
    ):
        tracker = load_config("train", override).tracker
        assert (tracker.wandb, tracker.tensorboard) == (wandb, tensorboard)

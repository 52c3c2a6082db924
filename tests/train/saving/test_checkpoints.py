"""Checkpoints as folders: what is picked up, what is kept, what is refused. Nothing is trained."""

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import CheckpointError, ConfigError
from train.saving.best import Best
from train.saving.checkpoints import (
    Keeping,
    begin,
    check_resume,
    checkpoint_at,
    damage_of,
    finish,
    newest_checkpoint,
    step_of,
)
from train.saving.random_state import derive_random_state, random_state, set_random_state


def keeping(**changes: Any) -> Keeping:
    return Keeping(**{"engine": "ddp", "num_ranks": 1, "save_total_limit": 2, **changes})


def write(run_dir: Path, step: int, kept: Keeping | None = None) -> Path:
    """A checkpoint of two files, written as the trainer does."""
    staged = begin(run_dir, step)
    (staged / "shards").mkdir(parents=True)
    (staged / "model.safetensors").write_bytes(b"x" * 100)
    (staged / "shards/optimizer.pt").write_bytes(b"y" * 50)
    return finish(staged, kept or keeping())


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.iterdir())


def change_manifest(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --------------------------------------------------------------------------- picking up


def test_the_newest_whole_one_is_taken(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for step in (2, 10):
        write(tmp_path, step)
    (tmp_path / ".writing/checkpoint-12").mkdir(parents=True)
    (tmp_path / "checkpoint-best").mkdir()
    newest = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "checkpoint-10" and step_of(newest) == 10


def shorten(checkpoint: Path) -> None:
    (checkpoint / "shards/optimizer.pt").write_bytes(b"y" * 49)


def lose(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()


def lose_manifest(checkpoint: Path) -> None:
    (checkpoint / "checkpoint.json").unlink()


def cut_manifest(checkpoint: Path) -> None:
    path = checkpoint / "checkpoint.json"
    path.write_text(path.read_text()[:-5])


def outdate(checkpoint: Path) -> None:
    change_manifest(checkpoint, format=99)


DAMAGES = {
    shorten: "shards/optimizer.pt has 49 bytes, and 50 were written",
    lose: "model.safetensors is missing",
    lose_manifest: "it has no checkpoint.json that can be read",
    cut_manifest: "it has no checkpoint.json that can be read",
    outdate: "its checkpoint.json is of format 99, and 1 is read here",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_named_and_the_one_before_taken(damage, tmp_path, caplog):
    for step in (2, 4):
        write(tmp_path, step)
    damage(checkpoint_at(tmp_path, 4))
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path) == checkpoint_at(tmp_path, 2)
    assert f"checkpoint-4 is not gone on from: {DAMAGES[damage]}" in caplog.text


def test_where_all_are_damaged_nothing_begins_anew(tmp_path):
    for checkpoint in [write(tmp_path, step) for step in (2, 4)]:
        lose(checkpoint)
    with pytest.raises(CheckpointError, match=r"is whole:\n  checkpoint-4: .*\n  checkpoint-2: "):
        newest_checkpoint(tmp_path)


# --------------------------------------------------------------------------- what is kept


def test_the_newest_are_kept_and_the_best_beside_them(tmp_path):
    best = Best("eval/a/nll", is_highest=False)
    for step, value in ((2, 3.0), (4, 1.0), (6, 2.0), (8, float("nan")), (10, 1.0)):
        best.measure({"eval/a/nll": value}, step)
        write(tmp_path, step, keeping(best=best))
    assert names(tmp_path) == ["best.json", "checkpoint-10", "checkpoint-4", "checkpoint-8"]
    told = json.loads((tmp_path / "best.json").read_text())
    assert told == {"checkpoint": "checkpoint-4", "metric": "eval/a/nll", "is_highest": False,
                    "step": 4, "value": 1.0}  # fmt: skip
    again = Best("eval/a/nll", is_highest=False)
    check_resume(checkpoint_at(tmp_path, 10), keeping(best=again))
    assert again == best
    assert not again.measure({"eval/a/nll": 1.5}, 12)
    write(tmp_path, 12, keeping(best=again))
    assert {"checkpoint-4", "checkpoint-10", "checkpoint-12"} < set(names(tmp_path))


def test_the_best_is_that_of_the_checkpoint_gone_on_from(tmp_path):
    """What a lost checkpoint had measured later is measured again."""
    best = Best("eval/a/chrf", is_highest=True)
    for step, value in ((2, 10.0), (4, 20.0)):
        assert best.measure({"eval/a/chrf": value}, step)
        write(tmp_path, step, keeping(best=best))
    lose(checkpoint_at(tmp_path, 4))
    again = Best("eval/a/chrf", is_highest=True)
    check_resume(newest_checkpoint(tmp_path), keeping(best=again))
    assert (again.step, again.value) == (2, 10.0)
    other = Best("eval/a/nll", is_highest=False)
    check_resume(newest_checkpoint(tmp_path), keeping(best=other))
    assert other.step is None


def test_a_measure_that_is_not_there_is_told_with_those_that_are():
    best = Best("eval/a/nil", is_highest=False)
    with pytest.raises(
        ConfigError, match=r"best_metric='eval/a/nil' is not .*are eval/a/nll, eval"
    ):
        best.measure({"eval/a/nll": 1.0, "eval/a/nll/en": 1.0, "perf/x": 1.0}, 0)
    assert not Best("eval/a/nll", is_highest=False).measure({"eval/a/nll": 1.0}, 0)


def test_a_damaged_one_goes_once_it_is_passed(tmp_path):
    write(tmp_path, 2)
    lose(write(tmp_path, 4))
    write(tmp_path, 6)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]
    lose(write(tmp_path, 8))
    write(tmp_path, 8)  # gone on from 6, at the same step again
    assert names(tmp_path) == ["checkpoint-6", "checkpoint-8"]
    assert damage_of(checkpoint_at(tmp_path, 8)) is None


def test_a_disk_too_small_for_the_next_is_told_before(tmp_path, monkeypatch, caplog):
    write(tmp_path, 2)
    monkeypatch.setattr("train.saving.checkpoints.free_bytes", lambda path: 10)
    begin(tmp_path, 4)
    assert "checkpoint-4 may not fit on the disk: the one before took" in caplog.text
    assert "and 10 bytes are free" in caplog.text


# ------------------------------------------------------------------------ who may go on


@pytest.mark.parametrize(
    ("there", "here", "told"),
    [
        (("ddp", 1), ("zero3", 1), r"engine=zero3: .*checkpoint-2 was written with engine=ddp"),
        (("zero2", 2), ("ddp", 2), r"engine=ddp: .* was written with engine=zero2"),
        (("zero2", 2), ("zero3", 2), r"engine=zero3: .* was written with engine=zero2"),
        (("zero3", 2), ("zero3", 4), r"was written by 2 processes.* and 4 are here; start 2"),
    ],
)
def test_another_engine_or_number_of_ranks_is_refused(there, here, told, tmp_path):
    checkpoint = write(tmp_path, 2, keeping(engine=there[0], num_ranks=there[1]))
    with pytest.raises(ConfigError, match=told):
        check_resume(checkpoint, keeping(engine=here[0], num_ranks=here[1]))


@pytest.mark.parametrize(
    ("there", "here"),
    [(("ddp", 1), ("ddp", 2)), (("fsdp2", 2), ("ddp", 1)), (("zero3", 2), ("zero3", 2))],
)
def test_what_writes_alike_may_go_on(there, here, tmp_path, caplog):
    checkpoint = write(tmp_path, 2, keeping(engine=there[0], num_ranks=there[1]))
    with caplog.at_level(logging.INFO):
        check_resume(checkpoint, keeping(engine=here[0], num_ranks=here[1]))
    assert ("global batches stay the same" in caplog.text) is (there[1] != here[1])
    assert "other versions" not in caplog.text


def test_other_versions_are_told(tmp_path, caplog):
    checkpoint = write(tmp_path, 2)
    packages = json.loads((checkpoint / "checkpoint.json").read_text())["packages"]
    change_manifest(checkpoint, packages=packages | {"torch": "2.0.0"})
    check_resume(checkpoint, keeping())
    assert f"other versions (torch 2.0.0 then, {torch.__version__.split('+')[0]}" in caplog.text


# ---------------------------------------------------------------------------- random state


def draw() -> tuple[float, float, float, float]:
    return random.random(), random.gauss(0, 1), np.random.normal(), float(torch.rand(()))


def test_the_random_state_goes_through_json():
    draw()  # gauss and normal keep one number back
    state = json.loads(json.dumps(random_state()))
    drawn = [draw() for _ in range(3)]
    draw()
    set_random_state(state)
    assert [draw() for _ in range(3)] == drawn


def test_a_rank_that_was_not_there_draws_its_own_numbers_always_the_same():
    drawn = {}
    for place in ((0, 4, 1), (0, 4, 2), (0, 5, 1), (1, 4, 1)):
        derive_random_state(*place)
        drawn[place] = draw()
        derive_random_state(*place)
        assert draw() == drawn[place]
    assert len(set(drawn.values())) == 4

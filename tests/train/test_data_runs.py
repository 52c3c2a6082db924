"""Runs on files: streamed or planned, going on exactly, bad rows met on the way, workers, ranks."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico_runs import FAST, losses, metrics, run, same_weights, vlm
from PIL import Image

from configs.errors import DataError
from train.trainer import GraftTrainer

ROOT = Path(__file__).resolve().parents[2]
NUM_SHARDS, ROWS_A_SHARD = 3, 24
LENGTH = ["optim.max_steps=8", "checkpoint.save_steps=2", "stage=sft"]
QUIET = ["~data.held_out", "+data.held_out={}", "evaluation.eval_on_start=false"]
STREAMED = ["data.streaming=true", "data.buffer_rows=10", "data.packs_per_step=2"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSONL shards with pictures of which two are cut off behind their header."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for shard in range(NUM_SHARDS):
        lines = []
        for number in range(ROWS_A_SHARD):
            name = f"{shard}-{number}.jpg"
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
            caption = f"It shows {number} things. " + "More. " * (number % 5)
            lines.append(json.dumps({"image": name, "caption": caption, "id": f"{shard}-{number}"}))
        (folder / f"shard-{shard}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def broken(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but three pictures are cut off behind their header and one line is no JSON."""
    folder = tmp_path_factory.mktemp("broken") / "rows"
    shutil.copytree(shards, folder)
    for name in ("0-3", "1-11", "2-20"):
        path = folder / f"{name}.jpg"
        path.write_bytes(path.read_bytes()[:700])
    with (folder / "shard-1.jsonl").open("a") as file:
        file.write("{\n")
    return folder


def sources(folder: Path) -> list[str]:
    """Overrides that read the shards."""
    source = f"{{kind: files, path: '{folder}/shard-*.jsonl', id_field: id}}"
    return ["data=files", "~data.sources.files", f"+data.sources.mine={source}", *QUIET]


SKIP = ["data.on_bad_row=skip", "data.max_bad_ratio=0.2"]


def overrides(kind: str, folder: Path, pipeline: Any) -> list[str]:
    streamed = STREAMED if kind == "streamed" else ["data.packs_per_step=2"]
    return [*vlm(pipeline.align), *sources(folder), *LENGTH, *streamed]


def stop_before(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt the next run when it asks for the batch of a step."""
    fetch = GraftTrainer.get_batch_samples

    def fetch_or_stop(self: GraftTrainer, *args: Any) -> Any:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return fetch(self, *args)

    monkeypatch.setattr(GraftTrainer, "get_batch_samples", fetch_or_stop)


def ledger(folder: Path) -> list[dict[str, Any]]:
    """The lines of rows.jsonl."""
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(broken: Path, pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Undisturbed runs on the broken shards, planned and streamed."""
    root = tmp_path_factory.mktemp("unbroken")
    return {
        kind: run(*overrides(kind, broken, pipeline), *SKIP, f"output_dir={root}/{kind}")
        for kind in ("planned", "streamed")
    }


def test_a_planned_run_leaves_out_and_names_what_it_meets(unbroken: dict[str, Path]) -> None:
    lines = ledger(unbroken["planned"])
    assert lines[0] == {"source": "mine", "used": 72, "bad": 1}
    assert lines[1]["id"] == "shard-1.jsonl:25"
    assert "is not JSON" in lines[1]["reason"]
    met = lines[2:]
    assert sorted({line["id"] for line in met}) == ["0-3", "1-11", "2-20"]
    assert all("cannot be read" in line["reason"] and line["step"] >= 1 for line in met)


def test_a_streamed_run_leaves_out_and_names_what_it_meets(unbroken: dict[str, Path]) -> None:
    lines = ledger(unbroken["streamed"])
    met = Counter(line["id"] for line in lines if "reason" in line)
    assert met.keys() <= {"0-3", "1-11", "2-20", "shard-1.jsonl:25"} and met
    assert lines[-1] == {"step": 8, "source": "mine", "used": lines[-1]["used"]}
    assert lines[-1]["used"] > 8


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["planned", "streamed"])
def test_going_on_is_exact_in_losses_weights_and_ledger(
    kind: str, num_workers: int, broken: Path, unbroken: dict[str, Path], pipeline: Any,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    command = [*overrides(kind, broken, pipeline), *SKIP, f"output_dir={tmp_path}/run"]
    command += [f"data.num_workers={num_workers}"]
    for step in (3, 7):
        with monkeypatch.context() as patch:
            stop_before(step, patch)
            with pytest.raises(KeyboardInterrupt):
                run(*command)
    resumed = run(*command)
    assert "rows proved bad while training and were left out: " in caplog.text
    assert metrics(resumed) == metrics(unbroken[kind])
    assert sorted(losses(resumed)) == list(range(1, 9))
    assert ledger(resumed) == ledger(unbroken[kind])
    assert same_weights(resumed / "export", unbroken[kind] / "export")


def test_where_no_row_may_be_skipped_a_broken_picture_ends_the_run(
    broken: Path, pipeline: Any, tmp_path: Path
) -> None:
    lines = (broken / "shard-0.jsonl").read_text()
    (tmp_path / "shard-0.jsonl").write_text(lines)
    for path in broken.glob("0-*.jpg"):
        shutil.copy(path, tmp_path)
    command = [*overrides("planned", tmp_path, pipeline), f"output_dir={tmp_path}/run"]
    with pytest.raises(DataError, match=r"row mine/0-3: image '.*0-3\.jpg' cannot be read: "):
        run(*command)


@pytest.mark.parametrize(("kind", "ratio"), [("planned", "0.02"), ("streamed", "0.0")])
def test_too_many_bad_rows_met_on_the_way_end_the_run(
    kind: str, ratio: str, broken: Path, pipeline: Any, tmp_path: Path
) -> None:
    limit = ["data.on_bad_row=skip", f"data.max_bad_ratio={ratio}", f"output_dir={tmp_path}/run"]
    with pytest.raises(DataError, match=rf"of \d+ rows are bad \(.*data\.max_bad_ratio={ratio}"):
        run(*overrides(kind, broken, pipeline), *limit)


def test_a_dying_worker_ends_the_run_with_one_message(
    shards: Path, pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import data.images

    load = data.images.FileImage.load

    def die_at(self: Any) -> Any:
        if self.path.name == "1-7.jpg":
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self)

    monkeypatch.setattr(data.images.FileImage, "load", die_at)
    command = [*overrides("planned", shards, pipeline), "data.num_workers=2"]
    with pytest.raises(DataError, match=r"a data worker died while it prepared row mine/1-7: "):
        run(*command, "optim.max_steps=40", f"output_dir={tmp_path}/run")


@pytest.mark.slow
def test_two_processes_stream_what_one_streams(
    broken: Path, unbroken: dict[str, Path], pipeline: Any, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\n"
        "from configs.command import load_config\n"
        "from train.run import train\n"
        "train(load_config('train', json.loads(sys.argv[1])))\n"
    )
    command = [*FAST, *overrides("streamed", broken, pipeline), *SKIP, f"output_dir={tmp_path}/run"]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [sys.executable, *launch, str(script), json.dumps(command)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = losses(unbroken["streamed"]), losses(tmp_path / "run")
    assert one.keys() == two.keys()
    worst = max(abs(one[step] - two[step]) for step in one)
    assert worst < 5e-6, worst  # nats
    assert ledger(tmp_path / "run") == ledger(unbroken["streamed"])


def test_a_run_does_not_go_on_with_other_rows(
    shards: Path, pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(shards, tmp_path / "rows")
    command = [*overrides("planned", tmp_path / "rows", pipeline), f"output_dir={tmp_path}/run"]
    with monkeypatch.context() as patch:
        stop_before(3, patch)
        with pytest.raises(KeyboardInterrupt):
            run(*command)
    with (tmp_path / "rows/shard-0.jsonl").open("a") as file:
        file.write(json.dumps({"image": "0-1.jpg", "caption": "One more.", "id": "new"}) + "\n")
    with pytest.raises(DataError, match=r"the data has changed .* 72 samples then, 73 now"):
        run(*command)

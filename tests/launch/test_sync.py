"""`visiongraft sync`: the real `wandb sync` talks to a small server; every row arrives once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from wandb_server import FakeServer

from configs.command import load_config
from configs.errors import DataError
from configs.flags import with_first
from configs.schema import Artifacts, TrackerConfig, WandbMode
from launch.syncing.log_file import HEADER, LogReader, LogWriter
from launch.syncing.offline_runs import find_runs
from launch.syncing.rows import RowsOnce, later_values
from train.tracking.metrics_file import truncate_metrics
from train.tracking.tracker import Tracker, start_tracker

ROOT = Path(__file__).resolve().parents[2]
OFFLINE = TrackerConfig(mode=WandbMode.offline, group="pico", artifacts=Artifacts.reference)
# What a training on a node was told, and the login node may be told as well.
OF_TRAININGS = {"WANDB_MODE": "offline", "WANDB_RUN_ID": "another", "WANDB_RESUME": "must"}
AGES_AGO = 1_700_000_000
SECONDS = 60  # at most, until what should come has come


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.close()


@pytest.fixture(scope="module", autouse=True)
def no_agent() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_MODE", "WANDB_DATA_DIR"):
            patch.delenv(name, raising=False)
        yield


def begin(folder: Path, **config: Any) -> Tracker:
    """A run that logs as a training does; the second one in a folder goes on with the first."""
    folder.mkdir(parents=True, exist_ok=True)
    if list(folder.glob("wandb/offline-run-*")):
        time.sleep(1.1)  # W&B names folders by the second
    return start_tracker(OFFLINE, folder, job_type="sft", run_config=config, first_process=True)


def end(tracker: Tracker, **how: bool) -> None:
    import wandb

    tracker.finish(**how)
    wandb.teardown()  # it writes the file


def log_steps(tracker: Tracker, steps: Sequence[int], attempt: int = 0) -> None:
    for step in steps:
        values = {"train/loss": 1 / (step + 1), "perf/mfu": float(100 * attempt + step)}
        tracker.log(values | {f"train/loss/language/{n}": float(n) for n in range(5)}, step)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that were offline: whole, and broken off after step 4 with a checkpoint of step 2."""
    root = tmp_path_factory.mktemp("made")
    tracker = begin(root / "whole", seed=0)
    log_steps(tracker, range(40))
    tracker.log_table("eval/a", ["picture"], [[Image.new("RGB", (4, 4), "red")]], 40)
    tracker.log({"eval/a/nll": 1.0}, 40)
    end(tracker)
    tracker = begin(root / "broken", steps=5)
    log_steps(tracker, range(5))
    end(tracker, failed=True)
    truncate_metrics(root / "broken/metrics.jsonl", 2)
    tracker = begin(root / "broken", steps=8)
    log_steps(tracker, range(3, 8), attempt=1)
    tracker.log({"eval/a/nll": 1.0}, 7)
    end(tracker)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def copies(made: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    def copy(name: str, into: str | None = None) -> Path:
        return Path(shutil.copytree(made[name], tmp_path / (into or name), symlinks=True))

    return copy


def run_sync(server: FakeServer, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=os.environ | server.environment() | OF_TRAININGS,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "launch.sync", *map(str, arguments)]


def run_id(folder: Path) -> str:
    return (folder / "wandb_id.txt").read_text()


def metrics(folder: Path) -> dict[int, dict[str, Any]]:
    """What the run's own file says of each step."""
    found: dict[int, dict[str, Any]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        found.setdefault(values.pop("step"), {}).update(values)
    return found


def history(server: FakeServer, folder: Path) -> dict[int, dict[str, Any]]:
    """What the server says of each step; tables and what W&B adds left out."""
    return {
        line["_step"]: {
            key: value
            for key, value in line.items()
            if not key.startswith("_") and not isinstance(value, dict)
        }
        for line in server.runs[run_id(folder)].lines
        if line is not None
    }


def wait_for(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.05)


def the_file(folder: Path) -> Path:
    return min(folder.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
def test_every_row_of_a_run_arrives_and_its_folder_is_as_it_was(server, copies, tmp_path):
    folder = copies("whole")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    done = run_sync(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"sent: {server.url}/me/visiongraft/runs/{run_id(folder)}\n" in done.stderr
    run = server.runs[run_id(folder)]
    assert run.steps == list(range(41))
    assert history(server, folder) == metrics(folder)
    assert run.exit_codes == [0] and run.config()["seed"] == 0
    assert run.upserts[0]["displayName"] == "whole" and run.upserts[0]["groupName"] == "pico"
    assert any(name.startswith("media/table/eval/a_") for name in run.files)
    (table,) = server.artifacts.values()
    assert table["state"] == "COMMITTED"
    assert any(raw.startswith(b"\x89PNG") for raw in table["files"].values())
    after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert {p: after.get(p) for p in before} == before
    assert {p.name for p in after.keys() - before.keys()} == {
        f"run-{run_id(folder)}.sent.json",
        f"run-{run_id(folder)}.wandb.synced",
    }


@pytest.mark.slow
def test_what_was_sent_is_not_looked_at_again(server, copies, tmp_path):
    folder = copies("whole")
    assert run_sync(server, folder).returncode == 0
    for number in range(100):
        shutil.copytree(folder, tmp_path / f"more/{number}", symlinks=True)
    server.asked.clear()
    done = run_sync(server, tmp_path)
    assert "0 of 101 runs sent" in done.stderr
    assert server.asked == ["Viewer", "GetDefaultEntity"]


@pytest.mark.slow
def test_two_at_once_send_every_row_once(server, copies):
    folder = copies("whole")
    both = [
        subprocess.Popen(
            command(folder), cwd=ROOT, env=os.environ | server.environment() | OF_TRAININGS,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    told = [process.communicate(timeout=60)[1] for process in both]
    assert server.runs[run_id(folder)].steps == list(range(41)), told
    assert sorted(process.returncode for process in both) == [0, 1], told
    assert sum("another sync sends it" in text for text in told) == 1, told


@pytest.mark.slow
def test_another_server_has_nothing_of_it(server, copies):
    folder = copies("whole")
    note = folder / f"wandb/run-{run_id(folder)}.sent.json"
    sizes = {the_file(folder).parent.name: the_file(folder).stat().st_size}
    note.write_text(json.dumps({"server": "https://api.wandb.ai", "bytes": sizes}))
    assert "1 of 1 runs sent" in run_sync(server, folder).stderr
    assert json.loads(note.read_text()) == {"server": server.url, "bytes": sizes}


@pytest.mark.slow
def test_a_folder_that_may_not_be_written_to(server, copies):
    folder = copies("whole")
    (folder / f"wandb/run-{run_id(folder)}.sent.json").mkdir()  # root may write anywhere else
    for _ in range(2):
        done = run_sync(server, folder)
        assert done.returncode == 0, done.stderr
        assert "sent, but not noted beside it: [Errno" in done.stderr
    assert server.runs[run_id(folder)].steps == list(range(41))


@pytest.mark.slow
def test_a_run_that_was_gone_on_with_is_one_run(server, copies):
    folder = copies("broken")
    assert run_sync(server, folder / "wandb" / the_file(folder).parent.name).returncode == 0
    run = server.runs[run_id(folder)]
    assert run.steps == list(range(8))
    assert history(server, folder) == metrics(folder)  # of steps 3 and 4 what the later part has
    assert run.exit_codes == [0]
    assert run.config()["steps"] == 8  # the later part's
    assert None not in run.events and len(run.events) >= 2  # system metrics of both


@pytest.mark.slow
def test_the_second_part_comes_after_the_first_was_sent(server, copies, tmp_path):
    folder = copies("broken")
    second = sorted(folder.glob("wandb/offline-run-*"))[1]
    second.rename(tmp_path / second.name)
    assert run_sync(server, folder).returncode == 0
    run = server.runs[run_id(folder)]
    assert (run.steps, run.exit_codes) == ([0, 1, 2, 3, 4], [1])
    assert not list(folder.rglob("*.synced"))  # `wandb clean` is to leave it
    (tmp_path / second.name).rename(second)
    assert run_sync(server, folder).returncode == 0
    assert (run.steps, run.exit_codes) == (list(range(8)), [1, 0])
    expected = metrics(folder)
    for step in (3, 4):  # made twice, but the first was sent
        expected[step]["perf/mfu"] -= 100
    assert history(server, folder) == expected
    # Where a part is gone, nobody can tell which rows the server has.
    shutil.rmtree(the_file(folder).parent)
    os.utime(second / f"run-{run_id(folder)}.wandb")
    (second / f"run-{run_id(folder)}.wandb").open("ab").write(b"more")
    done = run_sync(server, folder)
    assert done.returncode == 1
    assert "was sent and is not there any more; put it back" in done.stderr
    assert run.steps == list(range(8))


@pytest.mark.slow
def test_a_run_is_sent_while_it_is_written_and_again_when_it_has_ended(server, copies):
    folder = copies("whole")
    file, whole = the_file(folder), the_file(folder).read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 5])  # in the middle of a record
    done = run_sync(server, folder)
    assert done.returncode == 0, done.stderr
    assert "is still written; watch_seconds=60 follows it" in done.stderr
    run = server.runs[run_id(folder)]
    assert 5 < len(run.lines) < 35
    assert run.exit_codes == []  # it is not shown as failed
    file.write_bytes(whole)
    assert run_sync(server, folder).returncode == 0
    assert (run.steps, run.exit_codes) == (list(range(41)), [0])
    assert history(server, folder) == metrics(folder)


@pytest.mark.slow
def test_a_run_that_was_killed_is_sent_as_failed(server, copies):
    folder = copies("whole")
    file, whole = the_file(folder), the_file(folder).read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 5])
    os.utime(file, (AGES_AGO, AGES_AGO))
    done = run_sync(server, folder)
    assert "sent, as broken off" in done.stderr
    assert server.runs[run_id(folder)].exit_codes == [1]
    server.asked.clear()
    assert "0 of 1 runs sent" in run_sync(server, folder).stderr


@pytest.mark.slow
def test_a_running_job_is_followed_until_ctrl_c(server, copies, tmp_path):
    folder = copies("whole")
    file, whole = the_file(folder), the_file(folder).read_bytes()
    file.write_bytes(b"")  # it has just begun
    watching = subprocess.Popen(
        command(folder, "watch_seconds=0.3"), cwd=ROOT, text=True, stderr=subprocess.PIPE,
        env=os.environ | server.environment() | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        run = lambda: server.runs[run_id(folder)]  # noqa: E731
        file.write_bytes(whole[: len(whole) // 4])
        wait_for(lambda: run_id(folder) in server.runs and len(run().lines) > 3)
        for share in (0.5, 0.8):
            before = len(run().lines)
            with file.open("ab") as grows:
                grows.write(whole[file.stat().st_size : int(len(whole) * share)])
            wait_for(lambda before=before: len(run().lines) > before)
        assert run().exit_codes == []
        with file.open("ab") as grows:
            grows.write(whole[file.stat().st_size :])
        wait_for(lambda: run().exit_codes == [0])
        assert history(server, folder) == metrics(folder)
        assert run().steps == list(range(41))
        assert server.asked.count("UpsertBucket") <= 4  # one process from the beginning to the end
        wait_for(lambda: bool(list(folder.rglob("*.sent.json"))))
    finally:
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=SECONDS)
    assert watching.returncode == 130, said
    assert "interrupted; the same command goes on with what is not sent yet" in said
    assert not list(tmp_path.glob("visiongraft-sync-*"))


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_follows_a_run(server, copies, tmp_path, signum):
    folder = copies("whole")
    file, whole = the_file(folder), the_file(folder).read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    watching = subprocess.Popen(
        command(folder, "watch_seconds=60"), cwd=ROOT, stderr=subprocess.DEVNULL,
        env=os.environ | server.environment() | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        wait_for(lambda: run_id(folder) in server.runs and bool(server.runs[run_id(folder)].lines))
        children = children_of(watching.pid)
    finally:
        watching.send_signal(signum)
        code = watching.wait(SECONDS)
    assert code == 128 + signum
    assert children
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    file.write_bytes(whole)
    assert run_sync(server, folder).returncode == 0
    assert server.runs[run_id(folder)].steps == list(range(41))
    assert server.runs[run_id(folder)].exit_codes == [0]


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [child for own in map(int, text.split()) for child in (own, *children_of(own))]


@pytest.mark.slow
@pytest.mark.parametrize("request_name", ["UpsertBucket", "file_stream"])
def test_one_that_fails_leaves_the_others_alone(server, copies, tmp_path, request_name):
    """Of both `wandb sync` says nothing in its exit code, and the second it marks as synced."""
    bad = copies("broken", "bad")
    (bad / "wandb_id.txt").write_text("bad")
    for part in bad.glob("wandb/offline-run-*"):
        rename_run(part, run_id(copies("broken", "gone")), "bad")
        shutil.rmtree(tmp_path / "gone")
    good = copies("whole")
    server.refuses = lambda name, run: (name, run) == (request_name, "bad")
    done = run_sync(server, tmp_path)
    assert done.returncode == 1
    assert f"1 not sent; the next call tries again\n  {bad} (bad): " in done.stderr
    assert "500" in done.stderr
    assert server.runs[run_id(good)].steps == list(range(41))
    assert not server.runs.get("bad") or server.runs["bad"].lines == []
    server.refuses = lambda name, run: False
    server.asked.clear()
    done = run_sync(server, tmp_path)
    assert (done.returncode, "1 of 2 runs sent" in done.stderr) == (0, True)
    assert server.runs["bad"].steps == list(range(8))
    assert server.runs[run_id(good)].steps == list(range(41))


def rename_run(part: Path, old: str, new: str) -> None:
    """Give an offline run another id, as if it were another run."""
    from wandb.proto import wandb_internal_pb2 as pb

    file = part / f"run-{old}.wandb"
    writer = LogWriter(part / f"run-{new}.wandb")
    for raw in LogReader(file).read():
        record = pb.Record.FromString(raw)
        if record.WhichOneof("record_type") == "run":
            record.run.run_id = new
        writer.write(record.SerializeToString())
    writer.close()
    file.unlink()
    part.rename(part.with_name(part.name.replace(old, new)))


@pytest.mark.slow
def test_a_pipeline_is_sent_in_its_order_with_its_lineage(server, tmp_path):
    folders = [tmp_path / name for name in ("z_text", "m_align", "a_sft")]
    for number, folder in enumerate(folders):
        tracker = begin(folder)
        if number:
            tracker.use_model("model", str(folders[number - 1] / "export"))
        log_steps(tracker, range(2))
        (folder / "export").mkdir()
        (folder / "export/config.json").write_text(folder.name)
        tracker.log_model(folder / "export", "model", label="export")
        end(tracker)
    moved = tmp_path.with_name(f"{tmp_path.name}_elsewhere")
    tmp_path.rename(moved)  # the login node may have another path; references stay as they were
    text = run_id(moved / "z_text")
    server.refuses = lambda name, run: run == text  # those that use its model wait for it
    done = run_sync(server, moved)
    assert done.returncode == 1 and server.order == []
    assert done.stderr.count("which made a model that it uses") == 2 * 2
    server.refuses = lambda name, run: False
    done = run_sync(server, moved)
    assert done.returncode == 0, done.stderr
    ids = [run_id(moved / folder.name) for folder in folders]
    assert server.order == ids
    models = {a["name"]: a for a in server.artifacts.values()}
    assert list(models) == [f"pico-{folder.name}-export" for folder in folders]
    assert [a["run"] for a in models.values()] == ids
    assert [a.get("used_by", []) for a in models.values()] == [[ids[1]], [ids[2]], []]
    assert not any(a["files"] for a in models.values())  # by reference


@pytest.mark.slow
def test_staged_pictures_are_found_where_the_folder_has_another_path(server, made, tmp_path):
    tracker = begin(tmp_path / "there")
    tracker.log_table("eval/a", ["picture"], [[Image.new("RGB", (4, 4), "red")]], 0)
    end(tracker)
    (tmp_path / "there").rename(tmp_path / "here")
    done = run_sync(server, tmp_path / "here")
    assert done.returncode == 0, done.stderr
    (table,) = server.artifacts.values()
    assert table["state"] == "COMMITTED" and len(table["files"]) == 2


@pytest.mark.slow
def test_what_wandb_sync_does_alone(server, copies):
    """What we go around: where this fails, W&B has mended it."""
    folder = copies("whole")
    sync = [sys.executable, "-m", "wandb", "sync", "--include-synced", str(the_file(folder).parent)]
    environment = os.environ | server.environment() | {"WANDB_DIR": str(folder)}
    for _ in range(2):
        subprocess.run(sync, env=environment, check=True, capture_output=True, timeout=60)
    assert server.runs[run_id(folder)].steps == [*range(41), *range(41)]
    done = run_sync(server, folder)
    assert done.returncode == 1
    assert "W&B has 82 rows of it and its files have 41: it was sent by something" in done.stderr


def test_a_file_that_is_written_anew_is_the_same(made, tmp_path):
    for folder in made.values():
        file = the_file(folder)
        writer = LogWriter(tmp_path / "copy")
        for record in LogReader(file).read():
            writer.write(record)
        writer.close()
        assert (tmp_path / "copy").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("num_bytes", [0, 1, 32754, 32755, 32761, 32762, 100_000])
def test_records_of_all_sizes(tmp_path, num_bytes):
    records = [bytes([n]) * num_bytes for n in range(1, 4)] + [b"end"]
    writer = LogWriter(tmp_path / "log")
    for record in records:
        writer.write(record)
    writer.close()
    assert list(LogReader(tmp_path / "log").read()) == records
    # As it grows, byte by byte at its end, and each record comes once.
    whole = (tmp_path / "log").read_bytes()
    reader, found = LogReader(tmp_path / "growing"), []
    for cut in (*range(0, len(whole), 997), len(whole)):
        (tmp_path / "growing").write_bytes(whole[:cut])
        found += reader.read()
    assert found == records


def test_a_file_of_another_kind_is_told(tmp_path):
    (tmp_path / "log").write_bytes(HEADER[:-1] + b"\x01" + bytes(50))
    with pytest.raises(DataError, match=r"begins with b':W&B.*, but wandb 0.31 has b':W&B"):
        list(LogReader(tmp_path / "log").read())


def test_a_damaged_record_ends_what_is_read(tmp_path, made):
    file = the_file(made["whole"])
    raw, num_records = bytearray(file.read_bytes()), len(list(LogReader(file).read()))
    raw[len(raw) // 2] ^= 1
    (tmp_path / "log").write_bytes(raw)
    assert 0 < len(list(LogReader(tmp_path / "log").read())) < num_records


def test_dry_run_lists_without_an_account(made, tmp_path):
    done = subprocess.run(
        command(made["whole"].parent, "dry_run=true"), cwd=ROOT, text=True, capture_output=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    whole, broken = done.stdout.splitlines()
    assert whole.startswith(f"{made['whole']} ({run_id(made['whole'])}): visiongraft/whole, 1 part")
    assert "visiongraft/broken, 2 part(s)" in broken


def test_who_is_not_logged_in_is_told(made, tmp_path):
    done = subprocess.run(
        command(made["whole"]), cwd=ROOT, text=True, capture_output=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "nobody is logged in here: `wandb login` or $WANDB_API_KEY" in done.stderr


def test_a_folder_that_is_none(tmp_path):
    done = subprocess.run(command(tmp_path / "no"), cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2 and f"folder: {tmp_path}/no is not a folder" in done.stderr


def test_a_server_that_does_not_answer(server, made, tmp_path):
    environment = server.environment() | {"WANDB_BASE_URL": "http://127.0.0.1:1"}
    done = subprocess.run(
        command(made["whole"]), cwd=ROOT, text=True, capture_output=True, timeout=60,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 1
    assert "W&B does not answer, nothing was sent" in done.stderr


def rows_of(*parts: dict[int, dict[str, float]]) -> list[dict[str, float]]:
    """What is sent of parts that are {step: values}."""
    from wandb.proto import wandb_internal_pb2 as pb

    def record(step: int, values: dict[str, float]) -> Any:
        items = [pb.HistoryItem(nested_key=[k], value_json=json.dumps(v))
                 for k, v in {"_step": step, **values}.items()]  # fmt: skip
        return pb.HistoryRecord(item=items, step=pb.HistoryStep(num=step))

    made = [[record(step, values) for step, values in part.items()] for part in parts]
    rows = RowsOnce(later_values(made))
    taken = [history for part in made for history in part if rows.take(history)]
    assert rows.num_rows == len(taken)
    return [{i.nested_key[0]: json.loads(i.value_json) for i in h.item} for h in taken]


def test_a_step_that_was_made_twice_is_one_row_with_the_later_values():
    assert rows_of({0: {"a": 0}, 1: {"a": 1}}, {1: {"a": 10}, 2: {"a": 20}}) == [
        {"_step": 0, "a": 0}, {"_step": 1, "a": 10}, {"_step": 2, "a": 20},
    ]  # fmt: skip


def test_what_only_the_later_part_measured_is_not_lost():
    """As rows that were there may have been sent, it is a row behind them."""
    assert rows_of({0: {"a": 0}, 1: {"a": 1}}, {1: {"a": 1, "eval": 5}, 2: {"a": 2}}) == [
        {"_step": 0, "a": 0}, {"_step": 1, "a": 1}, {"_step": 1, "eval": 5}, {"_step": 2, "a": 2},
    ]  # fmt: skip


def test_three_parts():
    rows = rows_of({n: {"a": n} for n in range(5)}, {n: {"a": 10 + n} for n in range(2, 7)},
                   {n: {"a": 20 + n} for n in range(4, 8)})  # fmt: skip
    assert [row["_step"] for row in rows] == list(range(8))
    assert [row["a"] for row in rows] == [0, 1, 12, 13, 24, 25, 26, 27]


def test_the_order_is_that_of_time(made, tmp_path):
    for stamp, name in (("20260102_000000", "a"), ("20260101_000000", "b")):
        part = tmp_path / name / f"wandb/offline-run-{stamp}-{name}"
        part.mkdir(parents=True)
        (part / f"run-{name}.wandb").write_bytes(b"")
    assert [run.run_id for run in find_runs(tmp_path, pytest.fail)] == ["b", "a"]
    errors: list[OSError] = []
    assert find_runs(tmp_path / "no", errors.append) == []
    assert [Path(error.filename) for error in errors] == [tmp_path / "no"]


def test_a_path_stands_for_itself():
    assert with_first(["a=b"], "folder") == ["a=b"]
    assert with_first(["--help"], "folder") == ["--help"]
    config = load_config("sync", with_first(["it's here", "watch_seconds=60"], "folder"))
    assert (config.folder, config.watch_seconds) == ("it's here", 60)

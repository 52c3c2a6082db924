"""A full disk: one clear error, nothing half written left, the last good checkpoint as it was."""

import errno
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_runs import MIXED, metrics, run, same_weights, vlm
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from configs.errors import CheckpointError, DiskError, VisiongraftError
from train.saving.checkpoints import damage_of, newest_checkpoint
from train.saving.disk import folder_bytes, full_reason, told_when_full
from train.saving.export import export_model

REMEDY = r"free space, or give another output_dir, and run the same command again"


PAGE = 4096  # bytes: what the smallest file takes of a tmpfs


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A file system of its own; skips the test where none may be mounted."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def unbroken(pipeline, tmp_path_factory) -> Path:
    return run(*command(pipeline), f"output_dir={tmp_path_factory.mktemp('unbroken') / 'run'}")


def command(pipeline: Any) -> list[str]:
    return [*vlm(pipeline.align), *MIXED, "stage=align"]


@pytest.mark.slow
def test_a_run_on_a_disk_for_one_checkpoint(unbroken, pipeline, tmp_path, caplog):
    """Full at the second checkpoint, then in the export; each time the same command goes on."""
    size = folder_bytes(unbroken / "checkpoints/checkpoint-4")
    with small_disk(tmp_path / "disk", int(1.6 * size)) as disk:
        folder = disk / "run"
        overrides = [*command(pipeline), f"output_dir={folder}"]
        with pytest.raises(DiskError) as told:
            run(*overrides)
        assert told.match(r"while writing checkpoint-4 to .* \(about \d+ MB needed, \d+ .B free\)")
        assert told.match(REMEDY)
        assert "checkpoint-4 may not fit on the disk" in caplog.text
        assert isinstance(told.value, VisiongraftError) and told.value.exit_code == 1
        left = [path.name for path in (folder / "checkpoints").iterdir()]
        assert left == ["checkpoint-2"]
        assert damage_of(newest_checkpoint(folder / "checkpoints")) is None

        # Measurements, pictures and reports lie beside checkpoints and export.
        beside = sum(
            -(-path.stat().st_size // PAGE) * PAGE
            for path in unbroken.rglob("*")
            if path.is_file()
            and not {"checkpoints", "export"} & {*path.relative_to(unbroken).parts}
        )
        room = int(2.1 * size) + beside
        subprocess.run(["mount", "-o", f"remount,size={room}", str(disk)], check=True)
        with pytest.raises(DiskError, match=rf"while writing the export to (.|\n)*{REMEDY}"):
            run(*overrides)  # room for two checkpoints, but not for one and the export
        assert sorted(path.name for path in folder.iterdir() if "export" in path.name) == []
        assert newest_checkpoint(folder / "checkpoints").name == "checkpoint-4"

        subprocess.run(["mount", "-o", f"remount,size={4 * size}", str(disk)], check=True)
        run(*overrides)
        assert metrics(folder) == metrics(unbroken)
        assert same_weights(folder / "export", unbroken / "export")


@pytest.mark.parametrize("what", ["metrics.jsonl", "rows.jsonl"])
def test_lines_that_no_longer_fit(what, pipeline, tmp_path, monkeypatch):
    """Without a disk of its own: the write itself fails."""
    inner = Path.open

    def full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if path.name in (what, f".{what}") and mode != "r":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return inner(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"[Nn]o space left .*") as told:
        run(*command(pipeline), f"output_dir={tmp_path}/run")
    assert what in str(told.value)


def test_what_each_library_raises_is_known(tmp_path):
    """On a disk that is full: text, torch, safetensors, tokenizers."""
    tokenizer = Tokenizer(models.WordLevel({f"word{i}": i for i in range(20_000)}, "word0"))
    values = {"a": torch.zeros(100_000)}
    writes = {
        "text": lambda path: path.write_text("x" * 400_000),
        "torch": lambda path: torch.save(values, path),
        "safetensors": lambda path: save_file(values, path),
        "tokenizers": lambda path: tokenizer.save(str(path)),
    }
    with small_disk(tmp_path / "disk", 100_000) as disk:
        for name, write in writes.items():
            path = disk / name
            wanted = rf"(on the disk|torch could not).*{disk}"
            with pytest.raises(DiskError, match=wanted), told_when_full(name, path):
                write(path)
            path.unlink(missing_ok=True)


def test_a_file_that_may_not_grow(tmp_path):
    """Where nothing may be mounted: the limit on the size of a file, which Python reports alike."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        path = tmp_path / "x.safetensors"
        wanted = r"may not grow further .* writing it to .*x\.safe"
        with pytest.raises(DiskError, match=wanted), told_when_full("it", path):
            save_file({"a": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory"),
        OSError(errno.EACCES, "Permission denied"),
        CheckpointError("is damaged (os error 2)"),
        ValueError("No space left on device"),
    ],
)
def test_other_errors_stay_what_they_are(error, tmp_path):
    assert full_reason(error) is None
    with pytest.raises(type(error)) as told, told_when_full("it", tmp_path):
        raise error
    assert told.value is error


def test_a_quota_is_told(tmp_path):
    wanted = r"^the disk quota is used up while writing it to"
    with pytest.raises(DiskError, match=wanted), told_when_full("it", tmp_path):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")


def test_a_failed_export_leaves_the_one_before(pipeline, tmp_path, monkeypatch):
    from data.processor import load_processor
    from train.model.load import load_vlm

    (tmp_path / "out").mkdir()
    (tmp_path / "out/old.txt").write_text("")

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("train.saving.export.follow_umask", full)
    model = load_vlm(str(pipeline.sft), dtype=torch.float32)
    processor = load_processor(str(pipeline.sft))
    with pytest.raises(DiskError, match="while writing the export"):
        export_model(model, processor, tmp_path / "out", dtype=torch.float32, card="")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/old.txt").exists()

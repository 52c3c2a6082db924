"""merge.writing.staging: whole or not at all, companions, modes, space."""

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pytest

from configs.errors import ConfigError
from merge.api import merge_checkpoints, verify_folder
from merge.writing.staging import copy_companions, staged_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from merge.api import merge_checkpoints, verify_folder
def progress(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
vlm, text, out = map(Path, sys.argv[1:])
merge_checkpoints(vlm=vlm, text=text, out=out, alpha=0.4, verify=False, progress=progress)
"""


def merge(pair, out, **kwargs):
    return merge_checkpoints(
        vlm=pair.vlm, text=pair.text, out=out, alpha=0.4, verify=False, **kwargs
    )


def test_killed_leaves_nothing_and_the_next_one_works(bf16_pair, tmp_path, caplog):
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(bf16_pair.vlm), str(bf16_pair.text), str(out)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert not out.exists()
    assert len(list(tmp_path.glob(".out.partial-*"))) == 1
    merge(bf16_pair, out)
    assert "left over from killed merges" in caplog.text
    assert (out / "merge_report.json").exists()


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from merge.api import merge_checkpoints, verify_folder
left = int(sys.argv[4])
def counted(call):
    def inner(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return inner
for name in ("pwrite", "copy_file_range", "fsync", "fdatasync", "ftruncate"):
    setattr(os, name, counted(getattr(os, name)))
Path.rename = counted(Path.rename)
vlm, text, out = map(Path, sys.argv[1:4])
merge_checkpoints(vlm=vlm, text=text, out=out, alpha=0.4, verify=False)
print(10**6 - left if left > 10**5 else left)
"""


@pytest.mark.slow
def test_killed_at_any_moment_leaves_nothing_or_the_whole(bf16_pair, tmp_path):
    """Before, in between and after the writes, forced writes and the renaming."""

    def run(name, at):
        code = [sys.executable, "-c", KILLED_AT]
        paths = [str(bf16_pair.vlm), str(bf16_pair.text), str(tmp_path / name)]
        return subprocess.run([*code, *paths, str(at)], capture_output=True, text=True)

    whole = run("whole", 10**6)
    num_calls = int(whole.stdout)
    assert num_calls > 40
    for at in (1, 2, num_calls // 3, num_calls - 6, num_calls - 2, num_calls - 1, num_calls):
        out = tmp_path / f"out{at}"
        assert run(out.name, at).returncode == -signal.SIGKILL, at
        if out.exists():
            assert verify_folder(out, logits=False)["every_element"]
        assert out.exists() == (at == num_calls), at  # the last call forces the new name to disk


TERMINATED = """
import os, signal, sys
import merge.run as run
from configs.command import load_config
inner = run.Bar.show
def show(self, done, total):
    os.kill(os.getpid(), signal.SIGTERM)
    inner(self, done, total)
run.Bar.show = show
run.merge(load_config("merge", sys.argv[1:]))
"""


def test_sigterm_leaves_nothing(bf16_pair, tmp_path):
    arguments = [f"vlm={bf16_pair.vlm}", f"text={bf16_pair.text}", f"out={tmp_path}/out"]
    done = subprocess.run([sys.executable, "-c", TERMINATED, *arguments, "verify=false"])
    assert done.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_nothing_at_all(bf16_pair, tmp_path):
    def progress(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(bf16_pair, tmp_path / "out", progress=progress)
    assert list(tmp_path.iterdir()) == []


def test_taken_and_free_outputs(bf16_pair, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("keep")
    with pytest.raises(ConfigError, match=r"taken exists and is not empty"):
        merge(bf16_pair, taken)
    with pytest.raises(ConfigError, match=r"mine is a file"):
        merge(bf16_pair, taken / "mine")
    assert (taken / "mine").read_text() == "keep"
    (tmp_path / "empty").mkdir()
    merge(bf16_pair, tmp_path / "empty")
    merge(bf16_pair, tmp_path / "new/deeper")
    assert (tmp_path / "empty/config.json").exists()
    assert (tmp_path / "new/deeper/config.json").exists()


def test_too_little_space(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(0, 0, 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = r"needs 3\.\d\d GB, but .* has 1\.00 GB free"
    with pytest.raises(ConfigError, match=message), staged_folder(tmp_path / "out", 3 * 10**9):
        pass


def test_companions(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    kept = ["config.json", "chat_template.jinja", "tokenizer.json", "tokenizer.model",
            "preprocessor_config.json", "processor_config.json", "generation_config.json",
            ]  # fmt: skip
    dropped = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin",
               "trainer_state.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
               ".gitattributes", "merge_report.json", "state.pkl", "README.md"]  # fmt: skip
    for name in [*kept, *dropped, "model.safetensors", "model.safetensors.index.json"]:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/tool_use.jinja").write_text("x")
    (source / "checkpoint-10").mkdir()
    target.mkdir()
    copied, left_out = copy_companions(source, target)
    assert sorted(copied) == sorted([*kept, "additional_chat_templates/tool_use.jinja"])
    assert sorted(left_out) == sorted([*dropped, "checkpoint-10"])
    assert (target / "additional_chat_templates/tool_use.jinja").read_text() == "x"
    assert all((target / name).read_text() == name for name in kept)


def test_modes_follow_the_umask(copy_pair, tmp_path):
    """safetensors writes 0600; a shared merge must be readable as the umask says."""
    assert (copy_pair.vlm / "model.safetensors").stat().st_mode & 0o777 == 0o600
    before = os.umask(0o027)
    try:
        merge(copy_pair, tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == {0o640}

"""Which disk a folder is on is told, and what is read over the network is noted."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.command import load_config
from train.planning import disks
from train.planning.advice import _caches
from train.planning.disks import Place, describe_disks, place, places

MOUNTS = """\
rootfs / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
server:/home/fast /home/fast\\040disk xfs rw 0 0
fs /lustre lustre rw 0 0
x /sshfs fuse.sshfs rw 0 0
"""


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    monkeypatch.setattr(disks, "MOUNTS", tmp_path / "mounts")


@pytest.mark.parametrize(
    ("path", "filesystem", "is_shared"),
    [
        ("/", "ext4", False),
        ("/homes", "ext4", False),
        ("/home", "nfs4", True),
        ("/home/me", "nfs4", True),
        ("/home/fast disk/cache", "xfs", False),
        ("/lustre/me/outputs", "lustre", True),
        ("/sshfs", "fuse.sshfs", True),
    ],
)
def test_the_innermost_mount_decides(mounts: None, path: str, filesystem: str, is_shared: bool):
    assert disks._filesystem(Path(path)) == filesystem
    assert Place("", Path(path), filesystem, 0).is_shared is is_shared


def test_what_is_not_there_yet_will_be_on_the_disk_of_its_parent(tmp_path: Path) -> None:
    there, to_come = place("here", tmp_path), place("to come", tmp_path / "a/b")
    assert (there.filesystem, to_come.path) == (to_come.filesystem, tmp_path / "a/b")
    assert to_come.free_bytes > 0


def test_outputs_and_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VISIONGRAFT_CACHE", str(tmp_path / "rows"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "sets"))
    found = places(load_config("train", [f"output_dir={tmp_path}/run"]))
    assert [item.path.name for item in found] == ["run", "hub", "sets", "rows"]
    told = describe_disks(found)
    assert told.startswith("disks\n  outputs ")
    assert f"{tmp_path}/rows" in told


@pytest.mark.parametrize(
    ("filesystems", "cache_dir", "note"),
    [
        (["nfs4", "ext4", "ext4"], None, ""),
        (["ext4", "lustre", "lustre"], None, "models and rows are read over the network (lustre)"),
        (["ext4", "lustre", "nfs"], "/lustre/fast", ""),  # it was chosen
    ],
)
def test_the_note(filesystems: list[str], cache_dir: str | None, note: str) -> None:
    names = ["outputs", "models", "rows"]
    found = [Place(n, Path("/"), f, 0) for n, f in zip(names, filesystems, strict=True)]
    config = SimpleNamespace(cache=SimpleNamespace(dir=cache_dir))
    plan: Any = SimpleNamespace(places=found, config=config)
    told = list(_caches(plan))
    assert told == [] if not note else told[0].startswith(note)

"""Caches go where `cache.dir` says, for every library, and the login of the hub stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.command import load_config
from configs.disks import FOLDERS, set_caches
from configs.errors import ConfigError
from configs.schema import CacheConfig

ROOT = Path(__file__).resolve().parents[2]
SHOW = r"""
from configs.disks import set_caches
from configs.schema import CacheConfig
import sys
set_caches(CacheConfig(dir=sys.argv[1], timeout_seconds=7))
import datasets, huggingface_hub.constants as hub, torch.utils.cpp_extension as extension
from data.cache import open_cache
from configs.disks import TIMEOUT
import os
print(hub.HF_HUB_CACHE, hub.HF_XET_CACHE, datasets.config.HF_DATASETS_CACHE, sep="\n")
print(open_cache(None).root, extension._get_build_directory("op", False), sep="\n")
print(os.environ[TIMEOUT], hub.HF_TOKEN_PATH, sep="\n")
"""


def test_every_library_looks_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW, str(tmp_path / "fast")],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    *places, op, timeout, token = done.stdout.split("\n")[:-1]
    fast = tmp_path / "fast"
    assert places == [str(fast / name) for name in ("hub", "xet", "datasets", "visiongraft")]
    assert op.startswith(str(fast / "torch_extensions"))
    assert timeout == "7"
    assert token == str(tmp_path / "home/token")


def test_without_a_folder_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FOLDERS:
        monkeypatch.setenv(name, "as it was")
    monkeypatch.setenv("VISIONGRAFT_CACHE_TIMEOUT", "1")
    set_caches(CacheConfig())
    assert {os.environ[name] for name in FOLDERS} == {"as it was"}
    assert os.environ["VISIONGRAFT_CACHE_TIMEOUT"] == "600.0"


def test_a_folder_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONGRAFT_CACHE_TIMEOUT", "1")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cache\.dir='.*file/cache' cannot be made: Not a dir"):
        set_caches(CacheConfig(dir=str(tmp_path / "file/cache")))


def test_the_limit_is_positive() -> None:
    with pytest.raises(ConfigError, match=r"cache\.timeout_seconds"):
        load_config("train", ["cache.timeout_seconds=0"])

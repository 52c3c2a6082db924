"""From a hub on this machine, over HTTP: the processes of a run ask it as much as one does."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from fake_hub import Hub, served

ROOT = Path(__file__).resolve().parents[2]
LOAD = """
import json, os, sys
import torch
from transformers import AutoTokenizer
from configs.schema import SourceConfig, SourceKind
from data.processor import load
from data.sources.hub import HubRecords
from train.model.load import load_text_lm

tokenizer = load("tokenizer", AutoTokenizer, "org/lm")
model = load_text_lm("org/lm", dtype=torch.float32)
table = HubRecords("mine", SourceConfig(kind=SourceKind.dataset, path="org/set", split=sys.argv[1]))
names = [tokenizer.name_or_path, model.name_or_path, model.config.name_or_path]
total = sum(p.double().sum().item() for p in model.parameters())
rows = [table.columns(number)["caption"] for number in range(len(table))]
print(json.dumps([names, total, rows, table.fingerprint()]))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, pipeline: Any) -> dict[Any, Path]:
    shards = tmp_path_factory.mktemp("set") / "data"
    for shard in range(2):
        rows = {"caption": [f"{shard}-{row}" for row in range(5)], "image": ["a.png"] * 5}
        Dataset.from_dict(rows).to_parquet(shards / f"train-0000{shard}-of-00002.parquet")
    return {("models", "org/lm"): Path(pipeline.text), ("datasets", "org/set"): shards.parent}


def load_in(processes: int, hub: Hub, cache: Path, *, split: str = "train") -> list[Any]:
    """Let the processes of one run load model and set; return what each of them has got."""
    env = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache / "hub"),
        "HF_DATASETS_CACHE": str(cache / "datasets"), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0", "WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_RUN_ID": f"run {processes} {split}",
    }  # fmt: skip
    command = [sys.executable, "-c", LOAD, split]
    started = [
        subprocess.Popen(
            command, env={**env, "RANK": str(rank)}, cwd=ROOT, text=True, stdout=subprocess.PIPE
        )
        for rank in range(processes)
    ]
    return [json.loads(process.communicate(timeout=200)[0].splitlines()[-1]) for process in started]


@pytest.mark.timeout(600)
def test_the_processes_of_a_run_ask_as_much_as_one_does(
    folders: dict[Any, Path], tmp_path: Path
) -> None:
    with served(folders) as hub:
        alone = load_in(1, hub, tmp_path / "one")
        asked_alone = Counter(hub.asked)
        hub.asked.clear()
        together = load_in(3, hub, tmp_path / "three")
        asked_together = Counter(hub.asked)
        hub.asked.clear()
        part = load_in(2, hub, tmp_path / "three", split="train[:30%]")
        asked_again = Counter(hub.asked)
    assert asked_together == asked_alone
    assert asked_alone["GET /org/lm/resolve/" + "a" * 40 + "/model.safetensors"] == 1
    assert together == alone * 3
    names, _, rows, _ = alone[0]
    assert names == ["org/lm"] * 3  # and not where the cache happens to be
    assert rows == [f"{shard}-{row}" for shard in range(2) for row in range(5)]
    assert part[0] == part[1] and part[0][2] == rows[:3]
    assert not any("safetensors" in line or ".parquet" in line for line in asked_again)


OLD = """
import torch
from train.model.load import load_text_lm

load_text_lm("org/old", dtype=torch.float32)
"""


def test_weights_of_before_safetensors(folders: dict[Any, Path], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    old = tmp_path / "old"
    shutil.copytree(folders[("models", "org/lm")], old)
    torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    with served({("models", "org/old"): old}) as hub:
        done = subprocess.run(
            [sys.executable, "-c", OLD], cwd=ROOT, capture_output=True, text=True, timeout=200,
            env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "hub"),
                 "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_cache_that_may_only_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from data import fetch

    monkeypatch.setattr(fetch.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(fetch.os, "access", lambda *_: False)
    with fetch.turn_of("model", "downloads") as turn:
        assert turn.is_first
    assert not list((tmp_path / "hub").iterdir())


def test_when_the_first_fails_the_next_is_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from data.fetch import constants, turn_of

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OSError, match="no network"), turn_of("model", "downloads"):
        raise OSError("no network")
    with turn_of("model", "downloads") as turn:
        assert turn.is_first
        turn.told = "fingerprint"
    with turn_of("model", "downloads") as turn:
        assert not turn.is_first and turn.told == "fingerprint"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with turn_of("model", "downloads") as turn:
        assert turn.is_first

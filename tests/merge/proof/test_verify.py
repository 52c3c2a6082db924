"""merge.proof: a merged folder proven again, by the call and by the command."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_pico import Pair, edit, edit_config, load
from safetensors.torch import load_file, save_file

from configs.errors import CheckpointError, ConfigError
from merge.api import merge_checkpoints, verify_folder
from merge.proof.logits import check_loads
from merge.proof.report import digest
from merge.run import typed

UP = "language_model.model.layers.0.mlp.up_proj.weight"
NORM = "language_model.model.norm.weight"
WEIGHTS = "model.safetensors"


@pytest.fixture
def merged(copy_pair: Pair, tmp_path: Path) -> Path:
    merge_checkpoints(
        vlm=copy_pair.vlm, text=copy_pair.text, out=tmp_path / "out", alpha=0.4, verify=False
    )
    return tmp_path / "out"


def flip(folder: Path, name: str, place: int) -> None:
    """Changes the last bit of one element."""
    file = folder / WEIGHTS
    values = load_file(file)
    values[name].view(torch.int16).view(-1)[place] ^= 1
    save_file(values, file, metadata={"format": "pt"})


def test_every_element_is_compared(merged):
    found = verify_folder(merged)
    total = sum(value.numel() for value in load(merged).values())
    assert found["num_elements_copied"] + found["num_elements_recomputed"] == total
    assert found["num_tensors_compared_once_loaded"] == found["num_tensors"]
    assert found["logits_compared"] == "text"


@pytest.mark.parametrize("place", [0, 777, -1])
@pytest.mark.parametrize("name", [UP, "vision_tower.head.probe", NORM])
def test_one_bit_is_found_anywhere(merged, name, place):
    place %= load(merged)[name].numel()
    flip(merged, name, place)
    with pytest.raises(CheckpointError, match=rf"1 of 88 tensors .*linear at alpha 0.4 .*{name}"):
        verify_folder(merged, logits=False)


def test_a_config_that_says_something_else(merged):
    """Tensors are right, and the model is another one: only its logits tell."""
    config = json.loads((merged / "config.json").read_text())
    text = config["text_config"]
    text["layer_norm_eps"] = 0.3
    edit_config(merged, text_config=text)
    with pytest.raises(CheckpointError, match=r"config.json in .* changed or went since the merge"):
        verify_folder(merged, logits=False)
    path = merged / "merge_report.json"  # as if it had been written so
    report = json.loads(path.read_text())
    report["files_copied"]["config.json"] = digest(merged / "config.json")
    path.write_text(json.dumps(report))
    verify_folder(merged, logits=False)
    with pytest.raises(CheckpointError, match="gives other logits for a text prompt"):
        verify_folder(merged)


def test_what_the_vlm_itself_has_left_over(copy_pair, tmp_path):
    """The head of a tower that does not use it: transformers reports it, for the VLM too."""
    config = json.loads((copy_pair.vlm / "config.json").read_text())
    edit_config(copy_pair.vlm, vision_config=config["vision_config"] | {"vision_use_head": False})
    pair = {"vlm": copy_pair.vlm, "text": copy_pair.text}
    report = merge_checkpoints(**pair, out=tmp_path / "out", alpha=0.4)
    found = report["verified"]
    num_left = sum(".head." in name for name in load(copy_pair.vlm))
    assert found["num_tensors"] - found["num_tensors_compared_once_loaded"] == num_left > 0
    assert merge_checkpoints(**pair, out=tmp_path / "two", verify_logits=False)["verified"]
    edit(tmp_path / "out", lambda tensors: tensors | {"vision_tower.more": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"loads with unexpected_keys: .*vision_tower.more"):
        check_loads(tmp_path / "out", copy_pair.vlm)


def test_missing_and_further_tensors(merged):
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**{k: v for k, v in tensors.items() if k != UP}, "more": torch.zeros(3)}

    edit(merged, change)
    with pytest.raises(CheckpointError, match=rf"2 tensors in .* are missing, .*: {UP}, more"):
        verify_folder(merged)


def test_inputs_that_moved_and_inputs_that_changed(merged, copy_pair, tmp_path):
    shutil.move(copy_pair.text, tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"is not there any more; say where it is now"):
        verify_folder(merged)
    assert verify_folder(merged, text=tmp_path / "elsewhere")
    edit(tmp_path / "elsewhere", lambda tensors: {k: v * 2 for k, v in tensors.items()})
    with pytest.raises(CheckpointError, match=r"is not the text that was merged"):
        verify_folder(merged, text=tmp_path / "elsewhere")


def test_a_folder_that_no_merge_has_written(copy_pair):
    with pytest.raises(CheckpointError, match=r"has no merge_report.json; give a folder that"):
        verify_folder(copy_pair.vlm)
    (copy_pair.vlm / "merge_report.json").write_text('{"format": 1}')
    with pytest.raises(CheckpointError, match=r"has format 1, this version reads 3; merge again"):
        verify_folder(copy_pair.vlm)
    (copy_pair.vlm / "merge_report.json").write_text('{"format": 3, "dtype": "same"}')
    with pytest.raises(CheckpointError, match=r"is cut or was changed: it has no inputs, recipe"):
        verify_folder(copy_pair.vlm)
    (copy_pair.vlm / "merge_report.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"holds a list, not an object"):
        verify_folder(copy_pair.vlm)


def test_the_command_can_be_typed_again():
    assert typed(["/a/merge/__main__.py", "alpha=0"]) == ["python", "-m", "merge", "alpha=0"]
    assert typed(["/bin/visiongraft", "merge", "alpha=0"]) == ["visiongraft", "merge", "alpha=0"]


def test_too_little_memory_for_logits(merged, monkeypatch, caplog):
    import merge.proof.logits

    monkeypatch.setattr(merge.proof.logits, "free_memory", lambda: 1000)
    found = verify_folder(merged)
    assert found["logits_compared"] == "no: too little memory"
    assert "logits are not compared: the model takes" in caplog.text


def command(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "merge", *map(str, arguments)], capture_output=True, text=True
    )


def test_the_command(merged):
    done = command("--verify", merged)
    assert done.returncode == 0, done.stderr
    assert f"{merged} is what its merge_report.json says" in done.stderr
    flip(merged, UP, 5)
    done = command(f"--verify={merged}", "verify_logits=false")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: verification failed: 1 of 88 tensors" in done.stderr
    assert "--verify takes a merged folder" in command("--verify").stderr


def test_an_input_that_was_not_merged(merged, copy_pair):
    with pytest.raises(ConfigError, match=r"lora: .* was merged without; it was made of vlm, text"):
        verify_folder(merged, lora=copy_pair.vlm)

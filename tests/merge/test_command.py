"""`visiongraft merge` as it is typed: help, messages, what is told at the end."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_pico import Pair, edit, load


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "merge", *map(str, arguments)], capture_output=True, text=True
    )


def given(pair: Pair, out: Path) -> list[str]:
    return [f"vlm={pair.vlm}", f"text={pair.text}", f"out={out}"]


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_of_both():
    """Without torch, transformers or numpy: within a second on an idle machine (measured 0.25)."""
    for arguments, told in (("--help", "task_arithmetic"), ("--verify --help", "folder: ???")):
        started = cpu_seconds()
        done = run(*arguments.split())
        assert done.returncode == 0 and told in done.stdout, done.stderr
        assert cpu_seconds() - started < 1


def test_what_is_told_of_a_merge(bf16_pair, tmp_path):
    out = tmp_path / "out"
    done = run(*given(bf16_pair, out), "alpha=[0.8,0.2]", "alpha_overrides={layers.0.: 1}",
               "verify_logits=false")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "merged by linear at alpha 0.8 -> 0.2 (layers.0.: 1) into" in done.stderr
    assert "(--verify: all of them); logits once loaded: not compared" in done.stderr
    card = (out / "README.md").read_text()
    assert "python -m merge vlm=" in card and "'alpha_overrides={layers.0.: 1}'" in card
    assert "visiongraft merge --verify DIR" in card and "++" not in card


def test_a_plan_tells_rows_and_distance(bf16_pair, tmp_path):
    done = run(*given(bf16_pair, tmp_path / "out"), "dry_run=true")
    assert done.returncode == 0 and not (tmp_path / "out").exists()
    assert "rows of model.embed_tokens.weight that stay the VLM's: 5" in done.stderr
    assert "relative weight distance by layer: 0.2" in done.stderr


def test_a_vlm_that_has_not_learnt_is_told(copy_pair, tmp_path):
    """`lora=` forgotten, or the align export given."""
    start = {f"language_model.{name}": value for name, value in load(copy_pair.text).items()}
    edit(copy_pair.vlm, lambda tensors: tensors | start)
    done = run(*given(copy_pair, tmp_path / "out"), "verify=false")
    assert "the vlm's decoder is the text LM's: was another vlm, or lora=, meant?" in done.stderr


def test_relatives_that_are_far_apart_are_told(copy_pair, tmp_path):
    """Another stage of the same text LM passes the limit for strangers."""
    torch.manual_seed(3)

    def move(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: v + (0.014 * torch.randn(v.shape)).to(v.dtype) for k, v in tensors.items()}

    edit(copy_pair.text, move)
    done = run(*given(copy_pair, tmp_path / "out"), "verify=false")
    assert done.returncode == 0
    assert "far for a fine-tuned decoder, which moves by some per cent" in done.stderr


@pytest.mark.parametrize("place", ["inside", "run", "denied"])
def test_places_that_cannot_be(place, copy_pair, tmp_path):
    pair, out, message = copy_pair, tmp_path / "out", ""
    if place == "inside":
        out, message = pair.vlm / "merged", f"lies inside vlm={pair.vlm}"
    elif place == "run":
        (tmp_path / "run").mkdir()
        pair.vlm.rename(tmp_path / "run/export")
        pair, message = Pair(tmp_path / "run", pair.text), "run/export meant?"
    else:
        (tmp_path / "file").write_text("")
        out, message = tmp_path / "file/out", "cannot be written"
    done = run(*given(pair, out))
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert message in done.stderr, done.stderr


def test_a_base_that_is_a_stranger(bf16_pair, copy_pair, tmp_path):
    torch.manual_seed(4)
    edit(copy_pair.text, lambda tensors: {
        k: (0.02 * torch.randn(v.shape)).to(v.dtype) for k, v in tensors.items()
    })  # fmt: skip
    done = run(*given(bf16_pair, tmp_path / "out"), f"base={copy_pair.text}",
               "method=task_arithmetic", "verify=false")  # fmt: skip
    assert done.returncode == 1
    assert "the base and this text LM are no relatives" in done.stderr

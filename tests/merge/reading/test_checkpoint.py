"""merge.reading.checkpoint: layouts read, damage refused."""

import json
import re

import pytest
import torch
from merge_pico import edit_config, load, save_pair
from safetensors.torch import save_file

from configs.errors import CheckpointError
from merge.reading.checkpoint import read_checkpoint

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path):
    return save_pair(tmp_path, torch.float32, max_shard_size="40KB").vlm


def write_raw(file, header, data=b""):
    raw = header.encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def refuse(folder, message):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder, "vlm")


def test_layout_is_what_safetensors_says(sharded):
    checkpoint = read_checkpoint(sharded, "vlm")
    tensors = load(sharded)
    assert len(checkpoint.shards) > 2 and checkpoint.tensors.keys() == tensors.keys()
    for name, stored in checkpoint.tensors.items():
        data = stored.file.read_bytes()[stored.offset : stored.offset + stored.num_bytes]
        assert data == tensors[name].numpy().tobytes() and stored.shape == tensors[name].shape
    assert checkpoint.num_bytes == sum(p.stat().st_size for p in sharded.glob("*.safetensors"))


def test_missing_folder(tmp_path):
    refuse(tmp_path / "no", "is not a folder")


def test_missing_or_broken_config(tmp_path):
    refuse(tmp_path, r"has no config\.json")
    (tmp_path / "config.json").write_text("{")
    refuse(tmp_path, r"config\.json is not valid JSON")


def test_no_weights_pickles_and_adapters(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    refuse(tmp_path, "has neither model.safetensors nor")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    refuse(tmp_path, r"only pickled weights \(pytorch_model.bin\).*convert them with: python -c")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    refuse(tmp_path, "is a PEFT adapter; give the model it was trained on as vlm=")


@pytest.mark.parametrize("inside", [False, True])
def test_quantised_inputs(copy_pair, inside):
    stated = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    edit_config(copy_pair.vlm, **({"text_config": stated} if inside else stated))
    refuse(copy_pair.vlm, r"is quantised \(bitsandbytes\).*give the checkpoint it was made from")


def test_index_names_a_missing_shard(sharded):
    next(iter(sorted(sharded.glob("*.safetensors")))).unlink()
    refuse(sharded, r"1 of \d+ shards .* are missing: model-00001-of")


def test_index_and_shards_disagree(sharded):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["ghost"] = next(iter(index["weight_map"].values()))
    (sharded / INDEX).write_text(json.dumps(index))
    refuse(sharded, "disagree about 1 tensors: ghost")


def test_both_single_and_index(sharded):
    (sharded / "model.safetensors").write_bytes(b"")
    refuse(sharded, "has both model.safetensors and")


def test_tensor_in_two_shards(sharded):
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    from safetensors.torch import load_file

    held = load_file(first)
    name = next(iter(held))
    save_file(load_file(second) | {name: held[name]}, second)
    refuse(sharded, f"{re.escape(name)} is in two shards, {first.name} and {second.name}")


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_truncated(copy_pair, keep):
    file = copy_pair.vlm / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refuse(copy_pair.vlm, "truncated")


def test_broken_headers(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "model.safetensors"
    entry = '{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'
    write_raw(file, f'{{"a":{entry},"a":{entry}}}', b"xx")
    refuse(tmp_path, "duplicated name 'a'")
    write_raw(file, f'{{"a":{entry},"b":{entry}}}', b"xx")
    refuse(tmp_path, "b starts at")
    write_raw(file, '{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', b"x")
    refuse(tmp_path, "a has dtype F4; known")
    write_raw(file, '{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,2]}}', b"xx")
    refuse(tmp_path, "a has 2 bytes, its shape needs 3")
    write_raw(file, "[1]")
    refuse(tmp_path, "broken safetensors header")

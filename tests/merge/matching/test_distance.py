"""merge.matching.distance: every decoder layer, few bytes, strangers and stranger layers."""

import logging

import pytest
import torch
from merge_pico import edit, load

from configs.errors import CheckpointError
from merge.matching import distance
from merge.matching.distance import check_distances, measure_distances
from merge.matching.plan import plan_merge
from merge.matching.tensor_table import build_table
from merge.reading.checkpoint import read_checkpoint
from merge.reading.chunks import ChunkReader

LAYERS = [f"model.layers.{number}" for number in range(4)]


def table_of(pair):
    return build_table(read_checkpoint(pair.vlm, "vlm"), read_checkpoint(pair.text, "text"))


def change(tensors, layer, value):
    """Every matrix of one layer of a VLM made anew by `value`."""
    prefix = f"language_model.{layer}."
    return {k: value(v) if k.startswith(prefix) and v.ndim == 2 else v for k, v in tensors.items()}


def test_whole_matrices_where_they_are_small(bf16_pair):
    """Against the definition, over the two largest matrices of each layer."""
    found = measure_distances(table_of(bf16_pair))
    vlm, text = load(bf16_pair.vlm), load(bf16_pair.text)
    assert list(found) == LAYERS
    for layer, value in found.items():
        names = [f"{layer}.mlp.{name}_proj.weight" for name in ("down", "gate")]
        ours = torch.cat([vlm[f"language_model.{name}"].float().flatten() for name in names])
        theirs = torch.cat([text[name].float().flatten() for name in names])
        assert value == pytest.approx(float((ours - theirs).norm() / theirs.norm()), rel=1e-5)


def test_few_bytes_are_read(bf16_pair, monkeypatch):
    seen = []
    read = ChunkReader.read

    def count(self, tensor, start, stop):
        seen.append((tensor.name, start, stop))
        return read(self, tensor, start, stop)

    monkeypatch.setattr(ChunkReader, "read", count)
    monkeypatch.setattr(distance, "MAX_BYTES", 4096)
    found = measure_distances(table_of(bf16_pair))
    assert sum(2 * (stop - start) for _, start, stop in seen) <= 4096
    assert len(set(seen)) == 4 * 2 * 4 * 2  # layers, matrices, stretches, files
    assert all(0.2 < value < 0.4 for value in found.values())


@pytest.mark.parametrize("num_elements", [1, 3, 4, 7, 100, 1000])
@pytest.mark.parametrize("length", [1, 5, 24, 25, 26, 400])
def test_stretches(num_elements, length):
    """In order, apart, inside; all of a matrix that is no longer than they are."""
    found = list(distance._stretches(num_elements, length))
    places = [place for pair in found for place in range(*pair)]
    assert places == sorted(set(places)) and places[0] >= 0 and places[-1] < num_elements
    assert places[0] == 0 and places[-1] == num_elements - 1
    assert all(stop - start <= length for start, stop in found)
    if num_elements <= 4 * length:
        assert places == list(range(num_elements))
    else:
        assert len(found) == 4 and len(places) == 4 * length


def test_a_layer_made_anew_is_a_warning(copy_pair, caplog):
    torch.manual_seed(5)
    edit(copy_pair.vlm, lambda t: change(t, LAYERS[2], lambda v: 0.02 * torch.randn_like(v)))
    with caplog.at_level(logging.WARNING):
        relatives = plan_merge(copy_pair.vlm, copy_pair.text).relatives
    assert 1.2 < relatives["weight_distances"][LAYERS[2]] < 1.7
    (warning,) = relatives["warnings"]
    message = r"above 1.0 in 1 of 4 decoder layers (model.layers.2 1."
    assert message in warning and "made anew" in warning and warning in caplog.text


def test_most_layers_made_anew_are_a_stranger(copy_pair):
    torch.manual_seed(5)
    for layer in LAYERS[:3]:
        edit(copy_pair.vlm, lambda t, at=layer: change(t, at, lambda v: 0.02 * torch.randn_like(v)))
    with pytest.raises(
        CheckpointError, match=r"decoder and this text LM are no relatives: .* in 3 of 4 .*force"
    ):
        plan_merge(copy_pair.vlm, copy_pair.text)
    (warning,) = plan_merge(copy_pair.vlm, copy_pair.text, force=True).relatives["warnings"]
    assert "no relatives" in warning


def test_not_a_number_is_far(copy_pair):
    edit(copy_pair.vlm, lambda t: change(t, LAYERS[1], lambda v: v * float("nan")))
    assert plan_merge(copy_pair.vlm, copy_pair.text).relatives["weight_distances"][LAYERS[1]] > 1e9


def test_zeros():
    """An untouched layer of zeros is near; nothing to measure is no stranger."""
    assert check_distances({}) == []
    assert check_distances({"a": 0.0, "b": 0.5}) == []


def test_zero_text_layer(copy_pair):
    edit(copy_pair.text, lambda tensors: {
        k: v * 0 if k.startswith(LAYERS[0]) else v for k, v in tensors.items()
    })  # fmt: skip
    found = measure_distances(table_of(copy_pair))
    assert found[LAYERS[0]] == float("inf") and found[LAYERS[1]] < 1

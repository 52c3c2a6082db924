"""Floating-point operations of a pack: what MFU and the plan's ideal step time are made of.

Only matrix products count, 2 for each multiplication and addition. `flop_shape` reads a model once;
`flops_of_pack` is then a few sums, cheap enough for every micro-batch. What counts as work:

- decoder and head forward; the head at supervised positions alone, which is where ours is applied;
- attention of each sample on its own: a token sees itself and what lies before it, in a sliding
  layer at most the window. Kernels that compute a whole square and mask half of it gain nothing;
- vision tower and projector for each tile;
- backward: once the forward for what the gradient passes through, once more for weights that train.
  A frozen decoder under a projector that trains costs 1, not 2; a frozen tower costs 0.

What is computed again because of gradient checkpointing, of a head that trains or in attention's
backward is no work, it is the machine's business: `recompute=True` adds it, for hardware use (HFU).
(MFU and HFU as PaLM's appendix B defines them, arXiv 2204.02311.)
tests/train/planning/test_flops.py holds all of it against torch's FlopCounterMode.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from train.model.parts import Part
from train.model.what_trains import part_of, trainable_by_part

# Peak of dense bfloat16 matrix products in TFLOP/s, as datasheets give it: without sparsity, at
# boost clock, which no real product reaches. First match of `torch.cuda.get_device_name` wins.
PEAK_TFLOPS: tuple[tuple[str, float], ...] = (
    (r"B200", 2250.0),
    (r"H200 NVL|H100 NVL", 835.0),
    (r"H200|GH200", 989.0),
    (r"H100 PCIe", 756.0),
    (r"H100", 989.0),
    (r"A100", 312.0),
    (r"L40S", 362.0),
    (r"RTX 4090", 165.0),
    (r"MI300X", 1307.0),
)
# Linear layers that read what enters a layer of decoder or tower, in families of model/parts.py.
READS_INPUT = ("q_proj", "k_proj", "v_proj")
READS_NORMED = ("gate_proj", "up_proj", "fc1")  # the layer's input too, where both run in parallel


@dataclass(frozen=True)
class Cost:
    """FLOPs of one token, pair of tokens, tile."""

    forward: float = 0.0
    backward: float = 0.0
    again: float = 0.0  # computed once more in backward

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.forward + other.forward, self.backward + other.backward, self.again + other.again
        )

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.forward * times, self.backward * times, self.again * times)

    def total(self, *, recompute: bool) -> float:
        """Return forward and backward together."""
        return self.forward + self.backward + (self.again if recompute else 0.0)


@dataclass(frozen=True)
class FlopShape:
    """All that decides the FLOPs of a pack beside what is in it."""

    token: Cost  # decoder's linear layers, a token
    pairs: tuple[tuple[int | None, Cost], ...]  # sliding window and attention layers of it, a pair
    head: Cost  # LM head, a supervised token
    tile: Cost  # tower and projector, a tile
    vision_trains: bool  # packs without pictures run a black tile, see train/model/loss.py


def flops_of_pack(
    shape: FlopShape,
    sample_lengths: Iterable[int],
    num_supervised: int,
    num_tiles: int,
    *,
    recompute: bool = False,
) -> float:
    """Return the FLOPs of one pack, forward and backward.

    Args:
        shape: of the model and what trains of it.
        sample_lengths: tokens of each sample in the pack.
        num_supervised: tokens that have a label; the first of a sample never counts.
        num_tiles: image tiles.
        recompute: add what is computed more than once.
    """
    lengths = tuple(sample_lengths)
    flops = (shape.token * sum(lengths) + shape.tile * num_tiles).total(recompute=recompute)
    flops += (shape.head * num_supervised).total(recompute=recompute)
    for window, pair in shape.pairs:
        num_pairs = sum(attended_pairs(length, window) for length in lengths)
        flops += (pair * num_pairs).total(recompute=recompute)
    if recompute and shape.vision_trains and num_tiles == 0:
        flops += shape.tile.total(recompute=True)
    return flops


def attended_pairs(length: int, window: int | None) -> int:
    """Return how many (token, token it sees) a sample has under a causal (sliding) mask."""
    if window is None or length <= window:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window


def flop_shape(model: Any, *, gradient_checkpointing: bool = False) -> FlopShape:
    """Return what decides the FLOPs of a model's packs, after `set_what_trains`.

    Args:
        model: on any device, `meta` too; shared out or not: shapes of layers are read, no weight.
        gradient_checkpointing: whether layers are computed again in backward.
    """
    trains = set(trainable_by_part(model))
    vision_trains = bool(trains & {"vision_tower", "projector"})
    decoder = [layer for layer in _linear_layers(model) if layer.part == "decoder"]
    input_has_grad = vision_trains or _train(model, "embed_tokens")
    body = sum(
        (
            _linear(one, input_has_grad, gradient_checkpointing)
            for one in decoder
            if not one.is_head
        ),
        Cost(),
    )
    # Logits are computed again where the head trains (train/model/head.py).
    head = sum((_linear(one, True, one.trains) for one in decoder if one.is_head), Cost())
    return FlopShape(
        token=body,
        pairs=tuple(_pairs(model, gradient_checkpointing)),
        head=head,
        tile=_tile(model, trains, gradient_checkpointing),
        vision_trains=vision_trains,
    )


def peak_flops(tflops: float | None, device: torch.device | None = None) -> float | None:
    """Return the peak FLOP/s of a device: what the config says, else its datasheet, else None."""
    if tflops is not None:
        return tflops * 1e12
    if device is None or device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = (peak for pattern, peak in PEAK_TFLOPS if re.search(pattern, name))
    peak = next(found, None)
    return None if peak is None else peak * 1e12


# ------------------------------------------------------------------------------ the model


@dataclass(frozen=True)
class _Linear:
    """A linear layer, adapter or not; its base is one and so are both halves of an adapter."""

    part: Part
    leaf: str  # last name, without PEFT's
    num_weights: int
    trains: bool
    in_first_layer: bool
    in_parallel: bool  # attention and MLP of its layer both read the layer's input
    is_lora_b: bool  # the second half of an adapter, which reads what the first gives

    @property
    def is_head(self) -> bool:
        return self.leaf == "lm_head"


def _linear_layers(model: Any) -> Iterator[_Linear]:
    """Yield the linear layers that every token or patch goes through."""
    parallel = {name for name, module in model.named_modules() if _runs_in_parallel(module)}
    for name, module in model.named_modules():
        unused = ".head." in name or "original_module" in name  # pooling head; PEFT's kept copy
        if not isinstance(module, nn.Linear) or unused:
            continue
        plain, _, adapter = name.removesuffix(".base_layer").partition(".lora_")
        layer = re.match(r"(.*\.layers\.(\d+))\.", plain)
        yield _Linear(
            part=part_of(model, f"{name}.weight"),
            leaf=plain.rsplit(".", 1)[-1],
            num_weights=module.in_features * module.out_features,
            trains=bool(module.weight.requires_grad),
            in_first_layer=layer is not None and layer[2] == "0",
            in_parallel=layer is not None and layer[1] in parallel,
            is_lora_b=adapter.startswith("B"),
        )


def _runs_in_parallel(module: nn.Module) -> bool:
    """Whether a module is a layer with one norm before attention and MLP, as Cohere's."""
    return hasattr(module, "input_layernorm") and not hasattr(module, "post_attention_layernorm")


def _linear(layer: _Linear, input_has_grad: bool, again: bool) -> Cost:
    """Return the cost of a linear layer for one row.

    Args:
        layer: which one.
        input_has_grad: whether what enters the first layer of its stack has a gradient.
        again: whether it is computed again in backward.
    """
    reads_input = layer.leaf in READS_INPUT or (layer.in_parallel and layer.leaf in READS_NORMED)
    reads_first = layer.in_first_layer and reads_input and not layer.is_lora_b
    has_grad = input_has_grad or not reads_first
    once = 2.0 * layer.num_weights
    return Cost(once, once * (layer.trains + has_grad), once if again else 0.0)


def _pairs(model: Any, gradient_checkpointing: bool) -> Iterator[tuple[int | None, Cost]]:
    """Yield each window that layers of the decoder have, with the cost of one pair in all of them.

    The backward has four products (of values, probabilities, queries, keys) for two forward; fused
    kernels compute one of the two again.
    """
    config = model.config.get_text_config()
    width = config.num_attention_heads * head_dim(config)
    for window, num_layers in Counter(layer_windows(config)).items():
        once = 4.0 * width * num_layers
        yield window, Cost(once, 2 * once, once / 2 + (once if gradient_checkpointing else 0.0))


def head_dim(config: Any) -> int:
    """Return the width of an attention head of a decoder."""
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


def layer_windows(config: Any) -> list[int | None]:
    """Return the sliding window of each layer of a decoder, None where it sees all."""
    window = getattr(config, "sliding_window", None)
    types: Sequence[str] | None = getattr(config, "layer_types", None)
    if types is None:
        return [window] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in types]


def _tile(model: Any, trains: set[Part], gradient_checkpointing: bool) -> Cost:
    """Return the cost of one tile through tower and projector; nothing for a text LM."""
    vision = getattr(model.config, "vision_config", None)
    if vision is None:
        return Cost()
    tower_trains = "vision_tower" in trains
    num_patches = (vision.image_size // vision.patch_size) ** 2
    num_tokens = num_patches // getattr(model.config, "downsample_factor", 1) ** 2
    patches_train = _train(model, "patch_embedding")
    once = 2.0 * vision.num_channels * vision.patch_size**2 * vision.hidden_size
    total = Cost(once, once * patches_train) * num_patches
    for layer in _linear_layers(model):
        if layer.part == "vision_tower":
            cost = _linear(layer, patches_train, gradient_checkpointing)
            total += (cost if tower_trains else Cost(cost.forward)) * num_patches
        elif layer.part == "projector":
            # Also of its first: the norm before it trains with it.
            has_grad = bool(trains & {"vision_tower", "projector"})
            once = 2.0 * layer.num_weights
            total += Cost(once, once * (layer.trains + has_grad)) * num_tokens
    once = 4.0 * num_patches**2 * vision.hidden_size * vision.num_hidden_layers
    if not tower_trains:
        return total + Cost(once)
    return total + Cost(once, 2 * once, once / 2 + (once if gradient_checkpointing else 0.0))


def _train(model: Any, name: str) -> bool:
    return any(p.requires_grad for full, p in model.named_parameters() if name in full)

"""Maps (model type, tensor name) to (part, canonical name). The one place that knows name patterns.

Every tensor of a VLM belongs to one part: `vision_tower`, `projector` or `decoder`. Canonical
decoder names are those of the text LM (`model.layers.0...`, `lm_head.weight`); canonical tower and
projector names start inside the part (`encoder.layers.0...`, `linear_1.weight`).

Contract: each row is proven on a pico model of the real class, in every layout, by
tests/train/model/test_parts.py and tests/merge/test_families.py. A further family is a row here
plus a case in tests/pico_vlms.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from configs.errors import CheckpointError

Part = Literal["vision_tower", "projector", "decoder"]
PARTS: tuple[Part, ...] = ("vision_tower", "projector", "decoder")
NUM_SHOWN = 5


@dataclass(frozen=True)
class PartName:
    """Where a tensor belongs: its part and its canonical name inside that part."""

    part: Part
    name: str


@dataclass(frozen=True)
class Row:
    """Names that start with `prefix` belong to `part`; `canonical` replaces the prefix."""

    prefix: str
    part: Part
    canonical: str


# Files keep the names of before 4.52, which transformers 5.23 turns into those of memory when it
# loads and back when it saves (conversion_mapping.py, `llava`): 4.52 to 5.0 wrote them too. Towers
# lost their `vision_model.` in 5. The last row is the base class saved without a head.
_LLAVA_ON_DISK = (
    Row("language_model.model.", "decoder", "model."),
    Row("language_model.lm_head.", "decoder", "lm_head."),
    Row("multi_modal_projector.", "projector", ""),
    Row("vision_tower.vision_model.", "vision_tower", ""),
    Row("vision_tower.", "vision_tower", ""),
    Row("language_model.", "decoder", "model."),
)
_LLAVA_IN_MEMORY = (
    Row("model.language_model.", "decoder", "model."),
    Row("lm_head.", "decoder", "lm_head."),
    Row("model.multi_modal_projector.", "projector", ""),
    Row("model.vision_tower.vision_model.", "vision_tower", ""),
    Row("model.vision_tower.", "vision_tower", ""),
)
_LLAVA = _LLAVA_ON_DISK + _LLAVA_IN_MEMORY
# The embedding between rows of tiles: it stands in the sequence beside what the projector gives.
_LLAVA_WITH_NEWLINE = (
    *_LLAVA,
    Row("image_newline", "projector", "image_newline"),
    Row("model.image_newline", "projector", "image_newline"),
)
# What merges patches and leads to the decoder's width is Qwen's projector; it lies in the tower's
# module. Qwen 2 and 2.5 VL keep `model.layers...` and `visual...` on disk, Qwen 3 VL the names
# of memory; the rows without `model.` are those of the base class.
_QWEN_VL = (
    Row("model.", "decoder", "model."),
    Row("model.language_model.", "decoder", "model."),
    Row("language_model.", "decoder", "model."),
    Row("lm_head.", "decoder", "lm_head."),
    *(
        row
        for prefix in ("visual.", "model.visual.")
        for row in (
            Row(prefix, "vision_tower", ""),
            Row(f"{prefix}merger.", "projector", "merger."),
            Row(f"{prefix}deepstack_merger_list.", "projector", "deepstack_merger_list."),
        )
    ),
)
_IDEFICS = (  # one layout ever, on disk and in memory; without `model.` that of the base class
    Row("lm_head.", "decoder", "lm_head."),
    *(
        row
        for prefix in ("", "model.")
        for row in (
            Row(f"{prefix}text_model.", "decoder", "model."),
            Row(f"{prefix}connector.", "projector", ""),
            Row(f"{prefix}vision_model.", "vision_tower", ""),
        )
    ),
)
_TEXT_LM = (Row("model.", "decoder", "model."), Row("lm_head.", "decoder", "lm_head."))

VLM_MODEL_TYPES: Mapping[str, tuple[Row, ...]] = MappingProxyType(
    {
        "aya_vision": _LLAVA,
        "cohere2_vision": _LLAVA,
        "llava": _LLAVA,
        "llava_next": _LLAVA_WITH_NEWLINE,
        "llava_onevision": _LLAVA_WITH_NEWLINE,
        "gemma3": _LLAVA,
        "mistral3": _LLAVA,
        "internvl": _LLAVA,
        "paligemma": _LLAVA,
        "qwen2_vl": _QWEN_VL,
        "qwen2_5_vl": _QWEN_VL,
        "qwen3_vl": _QWEN_VL,
        "idefics3": _IDEFICS,
        "smolvlm": _IDEFICS,
    }
)
TEXT_MODEL_TYPES: Mapping[str, tuple[Row, ...]] = MappingProxyType(
    {
        "cohere2": _TEXT_LM,
        "cohere": _TEXT_LM,
        "llama": _TEXT_LM,
        "mistral": _TEXT_LM,
        "qwen2": _TEXT_LM,
        "qwen3": _TEXT_LM,
        "gemma": _TEXT_LM,
        "gemma2": _TEXT_LM,
        "gemma3_text": _TEXT_LM,
    }
)
# What `train/` is proven on: modules of the names it looks for, tiles as it packs them. The others
# are there to be merged.
TRAINED_MODEL_TYPES = frozenset(
    [
        *("aya_vision", "cohere2_vision", "llava"),
        *("cohere2", "cohere", "llama", "mistral", "qwen3", "gemma3_text"),
    ]
)


def find_part(model_type: str, tensor_name: str) -> PartName | None:
    """The part and canonical name of one tensor, or None when no row covers it.

    Raises CheckpointError when the model type itself has no rows.
    """
    rows = VLM_MODEL_TYPES.get(model_type) or TEXT_MODEL_TYPES.get(model_type)
    if rows is None:
        known = ", ".join([*VLM_MODEL_TYPES, *TEXT_MODEL_TYPES])
        raise CheckpointError(
            f"model_type {model_type!r} is not supported; known: {known}. "
            "A further family is a row in train/model/parts.py, with a test on a pico model."
        )
    matches = [row for row in rows if tensor_name.startswith(row.prefix)]
    if not matches:
        return None
    row = max(matches, key=lambda row: len(row.prefix))
    return PartName(row.part, row.canonical + tensor_name.removeprefix(row.prefix))


def map_names(model_type: str, tensor_names: Iterable[str]) -> dict[str, PartName]:
    """{tensor name: part and canonical name} for all names of one model.

    Raises CheckpointError for names that no row covers and for two names of one canonical tensor.
    """
    found = {name: find_part(model_type, name) for name in tensor_names}
    unmapped = [name for name, place in found.items() if place is None]
    if unmapped:
        raise CheckpointError(
            f"{len(unmapped)} of {len(found)} tensor names are unknown for model_type "
            f"{model_type!r}: {list_first(unmapped)}. Is config.json the one of these weights?"
        )
    places = {name: place for name, place in found.items() if place is not None}
    owners: dict[PartName, str] = {}
    for name, place in places.items():
        if place in owners:
            raise CheckpointError(
                f"{owners[place]!r} and {name!r} are both {place.part} {place.name!r} "
                f"in model_type {model_type!r}; remove one of them"
            )
        owners[place] = name
    return places


def list_first(items: list[str], num_shown: int = NUM_SHOWN) -> str:
    """The first few items joined by commas, and how many more there are."""
    more = len(items) - num_shown
    return ", ".join(items[:num_shown]) + (f" and {more} more" if more > 0 else "")

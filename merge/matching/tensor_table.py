"""Decides for every tensor of the two checkpoints where its output comes from.

The result is one `TensorPlan` per tensor of the VLM, in file order; every tensor of the text LM is
in exactly one of them (or tied away), else it is an error. Reads headers only, but for `lm_head`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from configs.errors import CheckpointError
from merge.matching.relatives import is_tied_by_config
from merge.reading.adapter import LowRank
from merge.reading.checkpoint import Checkpoint, StoredTensor, same_bytes
from train.model.parts import (
    TEXT_MODEL_TYPES,
    VLM_MODEL_TYPES,
    Part,
    PartName,
    list_first,
    map_names,
)

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
VOCABULARY_TENSORS = (EMBEDDING, LM_HEAD)
MERGED_DTYPES = ("BF16", "F16", "F32")


class TensorClass(StrEnum):
    """What happens to a tensor."""

    MERGED = "merged"
    """Decoder tensor of both sides: the merge formula."""
    COPIED = "copied"
    """Vision tower or projector: the VLM's bytes."""
    ADAPTED = "adapted"
    """Vision tower or projector with what an adapter holds for it, in full."""
    TIED = "tied"
    """`lm_head` stored beside the embedding it is tied to: stays equal to the merged embedding."""


@dataclass(frozen=True)
class TensorPlan:
    """One output tensor and its sources."""

    part: Part
    name: str
    """Canonical name inside the part."""
    tensor_class: TensorClass
    vlm: StoredTensor
    """Also gives the output's name, file, dtype, shape and place."""
    text: StoredTensor | None
    """None when copied."""
    vlm_rows: tuple[tuple[int, int], ...] = ()
    """Half-open row ranges, sorted and disjoint, that come from the VLM whatever alpha is."""
    base: StoredTensor | None = None
    """Of a third model that both decoders were trained from."""
    trained: StoredTensor | None = None
    """Of an adapter: the VLM's values, trained whole, instead of those in `vlm`."""
    low_rank: LowRank | None = None
    """Of an adapter: what is added to the VLM's values."""

    @property
    def source(self) -> StoredTensor:
        """Where the VLM's values are read, before a low-rank change."""
        return self.vlm if self.trained is None else self.trained


def check_roles(vlm: Checkpoint, text: Checkpoint) -> None:
    """Raises CheckpointError unless `vlm` is a VLM and `text` a text LM of known model types."""
    if vlm.model_type in TEXT_MODEL_TYPES and text.model_type in VLM_MODEL_TYPES:
        raise CheckpointError(
            f"vlm={vlm.folder} is a text LM ({vlm.model_type}) and text={text.folder} a VLM "
            f"({text.model_type}); swap them"
        )
    _check_role(vlm, "a VLM", VLM_MODEL_TYPES, TEXT_MODEL_TYPES)
    _check_role(text, "a text LM", TEXT_MODEL_TYPES, VLM_MODEL_TYPES)


def build_table(vlm: Checkpoint, text: Checkpoint) -> list[TensorPlan]:
    """One plan per tensor of the VLM, in file order.

    Raises CheckpointError for unknown names, tensors without a counterpart, and shapes or dtypes
    that cannot be merged.
    """
    vlm_places = map_names(vlm.model_type, vlm.tensors)
    text_tensors = _by_canonical_name(text, map_names(text.model_type, text.tensors))
    vlm_decoder = _by_canonical_name(vlm, vlm_places)
    vlm_tied, text_tied = _is_tied(vlm, vlm_decoder), _is_tied(text, text_tensors)
    if vlm_tied and not text_tied:
        raise CheckpointError(
            f"text={text.folder} has a {LM_HEAD} of its own, but vlm={vlm.folder} ties it to its "
            "embedding; the merged model could hold only one of them"
        )
    if text_tied:
        text_tensors[LM_HEAD] = text_tensors[EMBEDDING]
    _check_counterparts(vlm_decoder, text_tensors, ignore_lm_head=vlm_tied and text_tied)
    image_row = _image_token_row(vlm, vlm_decoder[EMBEDDING])
    return [
        _plan_tensor(tensor, vlm_places[tensor.name], text_tensors, vlm_tied, image_row)
        for tensor in vlm.tensors.values()
    ]


def image_token_id(vlm: Checkpoint) -> int:
    """The id whose embedding row only the VLM trains (4.x: `image_token_index`, 5.x: `_id`)."""
    for key in ("image_token_index", "image_token_id"):
        if isinstance(vlm.config.get(key), int):
            return int(vlm.config[key])
    raise CheckpointError(f"vlm={vlm.folder}: config.json has no image_token_index")


def _plan_tensor(
    tensor: StoredTensor,
    place: PartName,
    text_tensors: dict[str, StoredTensor],
    vlm_tied: bool,
    image_row: int,
) -> TensorPlan:
    """The plan of one VLM tensor, whose counterpart is known to fit."""
    if place.part != "decoder":
        return TensorPlan(place.part, place.name, TensorClass.COPIED, tensor, None)
    text = text_tensors[place.name]
    tied = place.name == LM_HEAD and vlm_tied
    rows: set[int] = set()
    if place.name == EMBEDDING or tied:
        rows.add(image_row)
    if place.name in VOCABULARY_TENSORS:
        rows.update(range(text.shape[0], tensor.shape[0]))
    tensor_class = TensorClass.TIED if tied else TensorClass.MERGED
    return TensorPlan("decoder", place.name, tensor_class, tensor, text, _row_ranges(rows))


def _check_role(
    checkpoint: Checkpoint, wanted: str, allowed: Iterable[str], opposite: Iterable[str]
) -> None:
    """Raises CheckpointError when the model type is not among the allowed ones."""
    if checkpoint.model_type in allowed:
        return
    what = f"{checkpoint.role}={checkpoint.folder} has model_type {checkpoint.model_type!r}"
    if checkpoint.model_type in opposite:
        kind = "a text LM" if wanted == "a VLM" else "a VLM"
        raise CheckpointError(f"{what}, {kind}; {wanted} is wanted here: {', '.join(allowed)}")
    raise CheckpointError(f"{what}, which is not supported as {wanted}: {', '.join(allowed)}")


def _by_canonical_name(
    checkpoint: Checkpoint, places: dict[str, PartName]
) -> dict[str, StoredTensor]:
    """{canonical name: tensor} of the decoder."""
    found = {
        place.name: checkpoint.tensors[name]
        for name, place in places.items()
        if place.part == "decoder"
    }
    if EMBEDDING not in found:
        raise CheckpointError(f"{checkpoint.role}={checkpoint.folder} has no {EMBEDDING}")
    return found


def _is_tied(checkpoint: Checkpoint, decoder: dict[str, StoredTensor]) -> bool:
    """Whether `lm_head` is the embedding, by the file; the config must not contradict it.

    transformers 5 keeps the two tied when their bytes are equal and unties them in silence when
    they differ (measured, 5.23), so that a config that ties and bytes that differ are an error.
    """
    by_config = is_tied_by_config(checkpoint.config)
    where = f"{checkpoint.role}={checkpoint.folder}"
    if LM_HEAD not in decoder:
        if not by_config:
            raise CheckpointError(f"{where} has no {LM_HEAD}, but its config says it is not tied")
        return True
    if same_bytes(decoder[LM_HEAD], decoder[EMBEDDING]):
        return True
    if by_config:
        raise CheckpointError(
            f"{where}: config.json ties {LM_HEAD} to {EMBEDDING}, but the file holds two different "
            f"tensors; remove {decoder[LM_HEAD].name} or set tie_word_embeddings to false"
        )
    return False


def _check_counterparts(
    vlm: dict[str, StoredTensor], text: dict[str, StoredTensor], ignore_lm_head: bool
) -> None:
    """Raises one CheckpointError that tells of every decoder tensor without a fitting partner."""
    ignored = {LM_HEAD} if ignore_lm_head else set()
    problems = {
        "only in the vlm": sorted(vlm.keys() - text.keys() - ignored),
        "only in the text LM": sorted(text.keys() - vlm.keys() - ignored),
        "of another shape": [
            f"{name} (vlm {list(vlm[name].shape)}, text {list(text[name].shape)})"
            for name in sorted(vlm.keys() & text.keys())
            if not _shapes_fit(name, vlm[name].shape, text[name].shape)
        ],
        f"of a dtype other than {', '.join(MERGED_DTYPES)}": [
            f"{name} (vlm {vlm[name].dtype}, text {text[name].dtype})"
            for name in sorted(vlm.keys() & text.keys())
            if not {vlm[name].dtype, text[name].dtype} <= set(MERGED_DTYPES)
        ],
    }
    told = [
        f"{len(names)} {what}: {list_first(names)}" for what, names in problems.items() if names
    ]
    if told:
        raise CheckpointError("decoder tensors that cannot be merged: " + "; ".join(told))


def _shapes_fit(name: str, vlm: tuple[int, ...], text: tuple[int, ...]) -> bool:
    """Equal shapes; the vocabulary of the VLM may be taller (its further rows are kept)."""
    if name in VOCABULARY_TENSORS and len(vlm) == len(text) == 2:
        return vlm[1] == text[1] and vlm[0] >= text[0]
    return vlm == text


def _image_token_row(vlm: Checkpoint, embedding: StoredTensor) -> int:
    """The image token's id, checked against the embedding's rows."""
    row = image_token_id(vlm)
    if not 0 <= row < embedding.shape[0]:
        raise CheckpointError(
            f"vlm={vlm.folder}: image token id {row} is outside the {embedding.shape[0]} rows of "
            f"{embedding.name}; is config.json the one of these weights?"
        )
    return row


def _row_ranges(rows: set[int]) -> tuple[tuple[int, int], ...]:
    """Sorted half-open ranges that cover exactly these rows."""
    ranges: list[tuple[int, int]] = []
    for row in sorted(rows):
        if ranges and ranges[-1][1] == row:
            ranges[-1] = (ranges[-1][0], row + 1)
        else:
            ranges.append((row, row + 1))
    return tuple(ranges)

"""Decides for every tensor of the two checkpoints where its output comes from.

The result is one `TensorPlan` per tensor of the VLM, in file order; every tensor of the text LM is
in one of them, or told by `text_only`, else it is an error. Reads headers only, but for `lm_head`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from configs.errors import CheckpointError
from merge.matching.relatives import is_tied_by_config
from merge.matching.tokens import Tokens, compare_tokens, image_token_id
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
RowRanges = tuple[tuple[int, int], ...]
"""Half-open, sorted and disjoint."""
# Tables of old files (rope angles, numbers of patches), which each model works out anew.
BUFFER = re.compile(r"(.*\.)?(inv_freq|position_ids)")


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
    BUFFER = "buffer"
    """A table of an old file, no weight: the VLM's bytes; the text LM's is left alone."""


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
    vlm_rows: RowRanges = ()
    """Half-open row ranges, sorted and disjoint, that come from the VLM whatever alpha is."""
    dropped_text_rows: tuple[int, int] | None = None
    """Half-open range of the text LM's rows that the VLM has no place for: padding."""
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


def build_table(
    vlm: Checkpoint, text: Checkpoint, *, tokens: Tokens | None = None
) -> list[TensorPlan]:
    """One plan per tensor of the VLM, in file order.

    Args:
        vlm: the vision-language model.
        text: the text LM.
        tokens: of the two, where they were compared before.

    Raises CheckpointError for unknown names, tensors without a counterpart, and shapes or dtypes
    that cannot be merged.
    """
    tokens = tokens or compare_tokens(vlm, text)
    vlm_places = map_names(vlm.model_type, vlm.tensors)
    text_tensors = _by_canonical_name(text, map_names(text.model_type, text.tensors))
    vlm_decoder = _by_canonical_name(vlm, vlm_places)
    vlm_tied, text_tied = _is_tied(vlm, vlm_decoder), _is_tied(text, text_tensors)
    if vlm_tied and not text_tied:
        raise CheckpointError(
            f"text={text.folder} has a {LM_HEAD} of its own, but vlm={vlm.folder} ties it to its "
            "embedding; the merged model could hold only one of them. Give a text LM that ties the "
            "two, or untie the vlm: give its file a copy of the embedding as head and set "
            "tie_word_embeddings to false in its config.json"
        )
    if text_tied:
        text_tensors[LM_HEAD] = text_tensors[EMBEDDING]
    _check_counterparts(vlm_decoder, text_tensors, tokens, ignore_lm_head=vlm_tied and text_tied)
    _check_image_token(vlm, vlm_decoder[EMBEDDING])
    return [
        _plan_tensor(tensor, vlm_places[tensor.name], text_tensors, vlm_tied, tokens)
        for tensor in vlm.tensors.values()
    ]


def text_only(table: list[TensorPlan], text: Checkpoint) -> dict[str, str]:
    """{name: why} of the text LM's tensors that no plan reads."""
    read = {plan.text.name for plan in table if plan.text is not None}
    return {
        name: "buffer" if BUFFER.fullmatch(name) else f"tied to {EMBEDDING}"
        for name in text.tensors
        if name not in read
    }


def num_vocabulary_rows(table: list[TensorPlan]) -> int:
    """Rows of the VLM's embedding."""
    return next(plan.vlm.shape[0] for plan in table if plan.name == EMBEDDING)


def _plan_tensor(
    tensor: StoredTensor,
    place: PartName,
    text_tensors: dict[str, StoredTensor],
    vlm_tied: bool,
    tokens: Tokens,
) -> TensorPlan:
    """The plan of one VLM tensor, whose counterpart is known to fit."""
    if BUFFER.fullmatch(place.name):
        return TensorPlan(place.part, place.name, TensorClass.BUFFER, tensor, None)
    if place.part != "decoder":
        return TensorPlan(place.part, place.name, TensorClass.COPIED, tensor, None)
    text = text_tensors[place.name]
    tied = place.name == LM_HEAD and vlm_tied
    tensor_class = TensorClass.TIED if tied else TensorClass.MERGED
    if place.name not in VOCABULARY_TENSORS:
        return TensorPlan("decoder", place.name, tensor_class, tensor, text)
    num_rows, num_text_rows = tensor.shape[0], text.shape[0]
    # A head of its own scores tokens: only rows of other tokens have another meaning there. What
    # is fed in is trained by the VLM alone where only it has pictures.
    rows = tokens.of_vlm if place.name == EMBEDDING or tied else tokens.own
    rows = {row for row in rows if 0 <= row < num_rows} | set(range(num_text_rows, num_rows))
    dropped = (num_rows, num_text_rows) if num_text_rows > num_rows else None
    return TensorPlan("decoder", place.name, tensor_class, tensor, text, row_ranges(rows), dropped)


def _check_role(
    checkpoint: Checkpoint, wanted: str, allowed: Iterable[str], opposite: Iterable[str]
) -> None:
    """Raises CheckpointError when the model type is not among the allowed ones."""
    if checkpoint.model_type in allowed:
        return
    what = f"{checkpoint.role}={checkpoint.folder} has model_type {checkpoint.model_type!r}"
    if checkpoint.model_type in opposite:
        kind = "a text LM" if wanted == "a VLM" else "a VLM"
        other = "trained from it" if wanted == "a VLM" else "that it was built from"
        raise CheckpointError(
            f"{what}, {kind}; {wanted} is wanted here: {', '.join(allowed)}. Give the folder of "
            f"{wanted} {other}"
        )
    raise CheckpointError(
        f"{what}, which is not supported as {wanted}: {', '.join(allowed)}. A further family is a "
        "row in train/model/parts.py and in merge/matching/config_defaults.py"
    )


def _by_canonical_name(
    checkpoint: Checkpoint, places: dict[str, PartName]
) -> dict[str, StoredTensor]:
    """{canonical name: tensor} of the decoder's weights."""
    found = {
        place.name: checkpoint.tensors[name]
        for name, place in places.items()
        if place.part == "decoder" and not BUFFER.fullmatch(place.name)
    }
    if EMBEDDING not in found:
        raise CheckpointError(
            f"{checkpoint.role}={checkpoint.folder} has no {EMBEDDING}; is it an adapter or a part "
            "of a model? A whole checkpoint is wanted"
        )
    return found


def _is_tied(checkpoint: Checkpoint, decoder: dict[str, StoredTensor]) -> bool:
    """Whether `lm_head` is the embedding, by the file; the config must not contradict it.

    transformers 5 keeps the two tied when their bytes are equal and unties them in silence when
    they differ (measured, 5.23), so that a config that ties and bytes that differ are an error.
    """
    by_config = is_tied_by_config(checkpoint.config)
    where = f"{checkpoint.role}={checkpoint.folder}"
    if LM_HEAD not in decoder:
        if by_config is False:
            raise CheckpointError(
                f"{where} has no {LM_HEAD}, but its config says it is not tied; is the file whole? "
                "If the head is the embedding, set tie_word_embeddings to true in config.json"
            )
        return True
    if by_config is False and checkpoint.role == "vlm":
        return False  # two tensors that happen to be equal, and may part in the merge
    if same_bytes(decoder[LM_HEAD], decoder[EMBEDDING]):
        return True
    if by_config:
        raise CheckpointError(
            f"{where}: config.json ties {LM_HEAD} to {EMBEDDING}, but the file holds two different "
            f"tensors; remove {decoder[LM_HEAD].name} or set tie_word_embeddings to false"
        )
    return False


def _check_counterparts(
    vlm: dict[str, StoredTensor],
    text: dict[str, StoredTensor],
    tokens: Tokens,
    ignore_lm_head: bool,
) -> None:
    """Raises one CheckpointError that tells of every decoder tensor without a fitting partner."""
    ignored = {LM_HEAD} if ignore_lm_head else set()
    both = sorted((vlm.keys() & text.keys()) - ignored)
    problems = {
        "only in the vlm": sorted(vlm.keys() - text.keys() - ignored),
        "only in the text LM": sorted(text.keys() - vlm.keys() - ignored),
        "of another shape": [
            f"{name} (vlm {list(vlm[name].shape)}, text {list(text[name].shape)}{why})"
            for name in both
            if (why := _misfit(name, vlm[name].shape, text[name].shape, tokens)) is not None
        ],
        f"of a dtype other than {', '.join(MERGED_DTYPES)}": [
            f"{name} (vlm {vlm[name].dtype}, text {text[name].dtype})"
            for name in both
            if not {vlm[name].dtype, text[name].dtype} <= set(MERGED_DTYPES)
        ],
    }
    told = [
        f"{len(names)} {what}: {list_first(names)}" for what, names in problems.items() if names
    ]
    if told:
        raise CheckpointError(
            "decoder tensors that cannot be merged: " + "; ".join(told) + ". Give the text LM that "
            "the VLM was built from, neither quantised nor cut"
        )


def _misfit(name: str, vlm: tuple[int, ...], text: tuple[int, ...], tokens: Tokens) -> str | None:
    """Why two shapes do not fit ("" where it shows), or None where they do.

    A vocabulary may be taller in the VLM, whose further rows are kept, or in the text LM, if its
    further rows are padding that no token of it needs.
    """
    if vlm == text:
        return None
    if name not in VOCABULARY_TENSORS or len(vlm) != 2 or len(text) != 2 or vlm[1] != text[1]:
        return ""
    if vlm[0] > text[0]:
        return None
    cut = f"; its rows from {vlm[0]} on may be dropped only as padding, but "
    if tokens.text_end is None:
        return f"{cut}it has no tokenizer.json to show that"
    if tokens.text_end > vlm[0]:
        return f"{cut}its tokens reach up to {tokens.text_end - 1}"
    return None


def _check_image_token(vlm: Checkpoint, embedding: StoredTensor) -> None:
    """Raises CheckpointError unless the image token has a row in the embedding."""
    row = image_token_id(vlm)
    if not 0 <= row < embedding.shape[0]:
        raise CheckpointError(
            f"vlm={vlm.folder}: image token id {row} is outside the {embedding.shape[0]} rows of "
            f"{embedding.name}; is config.json the one of these weights?"
        )


def row_ranges(rows: set[int]) -> RowRanges:
    """Sorted half-open ranges that cover exactly these rows."""
    ranges: list[tuple[int, int]] = []
    for row in sorted(rows):
        if ranges and ranges[-1][1] == row:
            ranges[-1] = (ranges[-1][0], row + 1)
        else:
            ranges.append((row, row + 1))
    return tuple(ranges)

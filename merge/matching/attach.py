"""Adds a third model or an adapter to a table: each of their tensors finds its place or is told."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from configs.errors import CheckpointError
from merge.matching.tensor_table import (
    EMBEDDING,
    LM_HEAD,
    MERGED_DTYPES,
    RowRanges,
    TensorClass,
    TensorPlan,
    row_ranges,
)
from merge.reading.adapter import Adapter, LowRank
from merge.reading.checkpoint import Checkpoint, StoredTensor, same_bytes
from train.model.parts import PartName, list_first, map_names


def attach_base(table: Sequence[TensorPlan], text_table: Sequence[TensorPlan]) -> list[TensorPlan]:
    """The table with the third model's tensors beside the text LM's.

    Args:
        table: of the VLM and the text LM.
        text_table: of the VLM and the third model, checked in the same way.

    Raises CheckpointError where the third model's shapes are not the text LM's.
    """
    wrong = [
        f"{plan.name} (text {list(plan.text.shape)}, base {list(other.text.shape)})"
        for plan, other in zip(table, text_table, strict=True)
        if plan.text is not None and other.text is not None and plan.text.shape != other.text.shape
    ]
    if wrong:
        raise CheckpointError(
            f"base: {len(wrong)} tensors have another shape than the text LM's: "
            f"{list_first(wrong)}; the base is what both models were trained from"
        )
    return [
        replace(plan, base=other.text, vlm_rows=_join(plan.vlm_rows, other.vlm_rows))
        for plan, other in zip(table, text_table, strict=True)
    ]


def _join(one: RowRanges, two: RowRanges) -> RowRanges:
    """Rows of either: where a token is another one in the third model, no task vector is right."""
    return row_ranges({row for pair in (*one, *two) for row in range(*pair)})


def attach_adapter(
    table: Sequence[TensorPlan], vlm: Checkpoint, adapter: Adapter
) -> list[TensorPlan]:
    """The table with each tensor's low-rank change, or the tensor that was trained whole.

    Raises CheckpointError for tensors of the adapter that belong to nothing in the VLM, or whose
    shape is another.
    """
    low_rank = _places(vlm, adapter, adapter.low_rank)
    whole = _places(vlm, adapter, adapter.whole)
    by_place = {PartName(plan.part, plan.name): plan for plan in table}
    wrong = [
        f"{place.name} (vlm {list(by_place[place].vlm.shape)}, adapter {shape})"
        for place, shape in (
            *((place, change.shape) for place, change in low_rank.items()),
            *((place, list(tensor.shape)) for place, tensor in whole.items()),
        )
        if place in by_place and list(by_place[place].vlm.shape) != shape
    ]
    unknown = [place.name for place in (*low_rank, *whole) if place not in by_place]
    head = PartName("decoder", LM_HEAD)
    if head in by_place and by_place[head].tensor_class is TensorClass.TIED:
        _check_tied_head(adapter, low_rank.get(head), whole.get(head), whole)
    if unknown or wrong:
        told = [
            *([f"{len(unknown)} belong to no tensor: {list_first(unknown)}"] if unknown else []),
            *([f"{len(wrong)} have another shape: {list_first(wrong)}"] if wrong else []),
        ]
        raise CheckpointError(
            f"lora={adapter.folder} does not fit vlm={vlm.folder}: {'; '.join(told)}. Give as "
            "vlm the model that the adapter was trained on"
        )
    return [_with_adapter(plan, low_rank, whole) for plan in table]


def check_adapter_base(vlm: Checkpoint, adapter: Adapter) -> None:
    """Raises CheckpointError where the adapter says that it was trained on another model.

    On a model of the same shape it fits, and makes nonsense of it.
    """
    named = adapter.config.get("base_model_name_or_path")
    if not isinstance(named, str) or not Path(named).is_dir():
        return  # a hub id, or a folder of another machine: nothing to compare with
    if Path(named).resolve() != vlm.folder.resolve():
        raise CheckpointError(
            f"lora={adapter.folder} was trained on {named}, and vlm={vlm.folder} is another "
            f"folder. Give vlm={named}, or set force=true if the two are copies"
        )


def _check_tied_head(
    adapter: Adapter,
    change: LowRank | None,
    trained: StoredTensor | None,
    whole: Mapping[PartName, StoredTensor],
) -> None:
    """Raises CheckpointError where the adapter takes a tied head away from its embedding.

    The head is written as the embedding is: a change of its own would be lost in silence.
    """
    embedding = whole.get(PartName("decoder", EMBEDDING))
    follows = trained is None or (embedding is not None and same_bytes(trained, embedding))
    if change is None and follows:
        return
    raise CheckpointError(
        f"lora={adapter.folder} changes {LM_HEAD}, which the vlm ties to {EMBEDDING}; the two "
        "would part. Fold it in with PEFT (merge_and_unload), untie the head, save that, and merge "
        "it as vlm="
    )


T = TypeVar("T")


def _places(vlm: Checkpoint, adapter: Adapter, entries: Mapping[str, T]) -> dict[PartName, T]:
    """{place in the VLM: entry}."""
    try:
        places = map_names(vlm.model_type, entries)
    except CheckpointError as error:
        raise CheckpointError(f"lora={adapter.folder}: {error}") from error
    return {places[name]: entry for name, entry in entries.items()}


def _with_adapter(
    plan: TensorPlan,
    low_rank: Mapping[PartName, LowRank],
    whole: Mapping[PartName, StoredTensor],
) -> TensorPlan:
    """One plan with what the adapter holds for it; a tied head goes with its embedding."""
    tied = plan.tensor_class is TensorClass.TIED
    place = PartName(plan.part, EMBEDDING if tied else plan.name)
    change, trained = low_rank.get(place), whole.get(place)
    if change is None and trained is None:
        return plan
    if change is not None and trained is not None:
        raise CheckpointError(f"adapter: {plan.name} is there whole and as a low-rank change")
    for given in (plan.vlm, trained):
        if given is not None and given.dtype not in MERGED_DTYPES:
            raise CheckpointError(
                f"{given.file}: {given.name} is {given.dtype}; an adapter goes onto "
                f"{', '.join(MERGED_DTYPES)}"
            )
    is_decoder = plan.text is not None
    kind = plan.tensor_class if is_decoder else TensorClass.ADAPTED
    return replace(plan, tensor_class=kind, low_rank=change, trained=trained)

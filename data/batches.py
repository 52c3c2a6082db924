"""Packed batches: the tensors of one pack, and the run's packs that one rank takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from configs.errors import DataError
from data.pack import PackPlan
from data.render import Sample

Batch = dict[str, torch.Tensor]


class PackedBatches(Dataset[Batch]):
    """Item i is the i-th micro-batch of this rank: pack i * num_ranks + rank of the run."""

    def __init__(
        self,
        samples: Sequence[Sample],
        plan: PackPlan,
        image_processor: Any,
        *,
        num_steps: int,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        """Take rendered samples and their plan; pixels are decoded item by item."""
        self.samples, self.plan, self.image_processor = samples, plan, image_processor
        self.rank, self.num_ranks = rank, num_ranks
        self.num_items = num_steps * plan.packs_per_step // num_ranks

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, index: int) -> Batch:
        pack = self.plan.pack(index * self.num_ranks + self.rank)
        return make_batch([self.samples[i] for i in pack], self.image_processor)


def make_batch(samples: Sequence[Sample], image_processor: Any) -> Batch:
    """Return one packed sequence of whole samples that do not see each other.

    Returns:
        input_ids [1, T] int64; position_ids [1, T] int64, from 0 again at every sample, which is
        how transformers' masks keep them apart; labels [1, T] int64, IGNORED where a token is not
        supervised; pixel_values [N, 3, H, W] float32, absent where no sample has a picture.
    """
    ids = np.concatenate([sample.input_ids for sample in samples]).astype(np.int64)
    labels = np.concatenate([sample.labels for sample in samples])
    positions = np.concatenate([np.arange(sample.num_tokens) for sample in samples])
    batch = {
        "input_ids": torch.from_numpy(ids)[None],
        "position_ids": torch.from_numpy(positions)[None],
        "labels": torch.from_numpy(labels)[None],
    }
    pixels = [load_pixels(sample, image_processor) for sample in samples if sample.row.images]
    if pixels:
        batch["pixel_values"] = torch.cat(pixels)
    return batch


def load_pixels(sample: Sample, image_processor: Any) -> torch.Tensor:
    """Return [N, 3, H, W] float32: the tiles of a sample's pictures.

    Raises:
        DataError: a picture cannot be decoded, or gives another number of tiles than its header
            promised; the message names the row.
    """
    try:
        images = [image.load() for image in sample.row.images]
    except DataError as error:
        raise DataError(f"row {sample.row}: {error}") from error
    processed = image_processor(images, return_tensors="pt")
    if len(processed["pixel_values"]) != sum(sample.num_tiles):
        raise DataError(
            f"row {sample.row}: {len(processed['pixel_values'])} image tiles where its header "
            f"promised {sum(sample.num_tiles)}"
        )
    pixels: torch.Tensor = processed["pixel_values"]
    return pixels


def take_first(items: list[Batch]) -> Batch:
    """Collate a list of one pack: the pack itself."""
    return items[0]

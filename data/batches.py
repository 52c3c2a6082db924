"""Packed batches: the tensors of one pack."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from configs.errors import DataError
from data.ledger import BadRow, refusal
from data.render import IGNORED, Sample
from data.tiles import make_tiles

Batch = dict[str, Any]
BAD_ROWS = "bad_rows"  # of a batch: the rows of its pack that proved unusable, for the ledger
SAMPLES = "samples"  # of a batch: a PackedSample for each that is in it, in order


@dataclass(frozen=True, slots=True)
class PackedSample:
    """What is told of a sample in a pack, beside its tensors."""

    source: str
    id: str
    language: str
    num_tokens: int
    num_supervised: int  # tokens that have a label; the first of a sample never has
    num_tiles: int
    num_images: int

    @classmethod
    def of(cls, sample: Sample) -> "PackedSample":
        """Return what is told of a rendered sample."""
        row, tiles = sample.row, sample.num_tiles
        supervised = int(sample.supervised[1:].sum())
        return cls(
            row.source, row.id, row.language, sample.num_tokens, supervised, sum(tiles), len(tiles)
        )

    def __str__(self) -> str:
        # A lone surrogate cannot be written to a terminal or a log; its escape can.
        return f"{self.source}/{self.id}".encode("utf-8", "backslashreplace").decode("utf-8")


def make_batch(
    samples: Sequence[Sample],
    image_processor: Any,
    *,
    skip: bool = False,
    on_sample: Callable[[int], Any] = int,
) -> Batch:
    """Return one packed sequence of whole samples that do not see each other.

    Args:
        samples: of one pack.
        image_processor: makes tiles of pictures.
        skip: leave out samples whose pictures cannot be decoded, and name them.
        on_sample: called with the place of each sample before its pictures are decoded.

    Returns:
        input_ids [1, T] int64; position_ids [1, T] int64, from 0 again at every sample, which is
        how transformers' masks keep them apart; labels [1, T] int64, IGNORED where a token is not
        supervised; pixel_values [N, 3, H, W] float32, absent where no sample has a picture;
        samples: PackedSample of each; bad_rows: BadRow of each sample left out, absent where none
        is.

    Raises:
        DataError: a picture cannot be decoded; the message names the row.
    """
    pixels = _Pixels(sum(sum(sample.num_tiles) for sample in samples))
    kept, bad = [], []
    for place, sample in enumerate(samples):
        on_sample(place)
        try:
            if sample.row.images:
                pixels.add(sample, image_processor)
            kept.append(sample)
        except DataError as error:
            if not skip:
                raise DataError(
                    refusal([BadRow(sample.row.source, sample.row.id, str(error))])
                ) from error
            bad.append(BadRow(sample.row.source, sample.row.id, str(error)))
    batch = _text_tensors(kept)
    batch[SAMPLES] = [PackedSample.of(sample) for sample in kept]
    if pixels.num_filled:
        batch["pixel_values"] = pixels.filled
    if bad:
        batch[BAD_ROWS] = bad
    return batch


class _Pixels:
    """The tiles of a pack, each written to its place: putting tensors together would copy them."""

    def __init__(self, num_tiles: int) -> None:
        self.num_tiles, self.num_filled = num_tiles, 0
        self.tiles: torch.Tensor | None = None  # [num_tiles, 3, H, W]

    def add(self, sample: Sample, image_processor: Any) -> None:
        end = self.num_filled + sum(sample.num_tiles)
        if self.tiles is None:  # the first one tells the size of a tile
            first = load_pixels(sample, image_processor)
            self.tiles = first.new_empty((self.num_tiles, *first.shape[1:]))
            self.tiles[:end] = first
        else:
            load_pixels(sample, image_processor, out=self.tiles[self.num_filled : end])
        self.num_filled = end

    @property
    def filled(self) -> torch.Tensor:
        assert self.tiles is not None
        return self.tiles[: self.num_filled]


def _text_tensors(samples: Sequence[Sample]) -> Batch:
    if not samples:  # all were left out: a rank still takes part in the step
        nothing = torch.zeros((1, 1), dtype=torch.int64)
        return {
            "input_ids": nothing,
            "position_ids": nothing,
            "labels": torch.full_like(nothing, IGNORED),
        }
    ids = np.concatenate([sample.input_ids for sample in samples]).astype(np.int64)
    labels = np.concatenate([sample.labels for sample in samples])
    positions = np.concatenate([np.arange(sample.num_tokens) for sample in samples])
    # Nothing stands before a sample's first token; in a pack another sample would.
    labels[positions == 0] = IGNORED
    return {
        "input_ids": torch.from_numpy(ids)[None],
        "position_ids": torch.from_numpy(positions)[None],
        "labels": torch.from_numpy(labels)[None],
    }


def load_pixels(
    sample: Sample, image_processor: Any, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return [N, 3, H, W] float32: the tiles of a sample's pictures, in `out` where it is given.

    Raises:
        DataError: a picture cannot be decoded, or gives another number of tiles than its header
            promised; without the row, which the caller names.
    """
    images = [image.load() for image in sample.row.images]
    promised = sum(sample.num_tiles)
    try:
        tiles = make_tiles(images, image_processor, out)
    except ValueError as error:  # `out` has no room for them
        tiles = make_tiles(images, image_processor)
        if len(tiles) == promised:
            raise DataError(
                f"its tiles are {list(tiles.shape[1:])}, those of another row in its pack are not: "
                "packs need an image processor with tiles of one size"
            ) from error
    if len(tiles) != promised:
        raise DataError(f"{len(tiles)} image tiles where its header promised {promised}")
    return tiles

"""The tiles of held-out pictures: decoded once to check them, kept as far as memory allows."""

import hashlib
import logging
from typing import Any

import torch

from configs.errors import DataError
from data.batches import load_pixels
from data.ledger import BadRow, refusal
from data.render import Sample

log = logging.getLogger(__name__)
KEPT_BYTES = 1 << 29  # of tiles; those beyond are decoded each time they are shown


class Pictures:
    """Tiles by sample."""

    def __init__(self, image_processor: Any) -> None:
        """Hold none yet."""
        self.image_processor = image_processor
        self._tiles: dict[int, torch.Tensor] = {}  # [N, 3, H, W] float32 by id of the sample
        self._digests: dict[int, str] = {}
        self._num_bytes = 0
        self.bad: list[BadRow] = []

    def check(self, sample: Sample, *, skip: bool) -> bool:
        """Whether the pictures of a sample can be decoded.

        Raises:
            DataError: they cannot, and `skip` is false; the message names the row.
        """
        if not sample.row.images:
            return True
        try:
            self._digests[id(sample)] = self._look_at(sample)
        except DataError as error:
            bad = BadRow(sample.row.source, sample.row.id, str(error))
            if not skip:
                raise DataError(refusal([bad])) from error
            self.bad.append(bad)
            log.warning("left out held-out row %s", bad)
            return False
        return True

    def _look_at(self, sample: Sample) -> str:
        """Decode the pictures of a sample and return their digest."""
        tiles = load_pixels(sample, self.image_processor)
        self._keep(sample, tiles)
        return hashlib.blake2b(tiles.numpy().tobytes()).hexdigest()

    def tiles(self, sample: Sample) -> torch.Tensor:
        """Return [N, 3, H, W] float32: the tiles of a sample that `check` has seen."""
        kept = self._tiles.get(id(sample))
        return load_pixels(sample, self.image_processor) if kept is None else kept

    def digest(self, sample: Sample) -> str:
        """Return what tells the tiles of two samples apart."""
        return self._digests[id(sample)]

    def _keep(self, sample: Sample, tiles: torch.Tensor) -> None:
        if self._num_bytes + tiles.nbytes <= KEPT_BYTES:
            self._num_bytes += tiles.nbytes
            self._tiles[id(sample)] = tiles

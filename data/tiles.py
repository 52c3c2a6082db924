"""Tiles of pictures, bit for bit those of transformers' GotOcr2ImageProcessorPil, made faster.

That class carries every picture from PIL to numpy and back for each resize, and reckons each tile
in float64. Here a picture stays in PIL until it has its size, and a value of a channel, one of 256,
is looked up among what the class itself makes of them. Any other class, setting or mode of picture
is left to the processor. Decoding is not done here (`data/images.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers.image_utils import SizeDict
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)

ARITHMETIC = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
CUTTING = ("do_resize", "size", "resample", "crop_to_patches", "min_patches", "max_patches")
IDLE = ("do_convert_rgb", "default_to_square")  # nothing to RGB pictures and a size of two sides


def make_tiles(
    images: Sequence[Image.Image], image_processor: Any, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return [N, 3, H, W] float32: the tiles of each picture, row by row, then its thumbnail.

    The same as `image_processor(images, return_tensors="pt")["pixel_values"]`, errors included.
    A picture that is cut has a thumbnail; one that fits a single tile has that tile alone.

    Args:
        images: in RGB, as `ImageRef.load` gives them.
        image_processor: of transformers; read anew at each call, so its settings may change.
        out: [N, 3, H, W] float32 on the CPU to write to, such as a part of a batch: putting tensors
            of 13 tiles together afterwards added 18 % to the time of a whole batch.

    Raises:
        ValueError: `out` has another shape or dtype; nothing is written to it.
    """
    cut = _read_settings(image_processor)
    if cut is None or any(image.mode != "RGB" for image in images):
        pixels = image_processor(list(images), return_tensors="pt")["pixel_values"]
        return pixels if out is None else _checked(out, pixels.shape, pixels.dtype).copy_(pixels)
    pieces = [piece for image in images for piece in cut.pieces(image)]
    shape = (len(pieces), 3, cut.height, cut.width)
    dtype = torch.float32
    tiles = torch.empty(shape, dtype=dtype) if out is None else _checked(out, shape, dtype)
    for tile, piece in zip(tiles.numpy(), pieces, strict=True):
        for channel in range(3):
            # A byte is always within the table; "clip" spares the buffer that "raise" writes first.
            cut.table[channel].take(piece[:, :, channel], out=tile[channel], mode="clip")
    return tiles


def _checked(out: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if tuple(out.shape) != tuple(shape) or out.dtype != dtype:
        raise ValueError(
            f"out is {list(out.shape)} {out.dtype}, but these pictures make {list(shape)} {dtype}; "
            "give a tensor of that shape, or none"
        )
    return out


@dataclass(frozen=True, slots=True)
class _Cut:
    """How a processor makes tiles."""

    height: int  # pixels a tile
    width: int
    resample: int  # a filter of PIL
    crops: bool
    min_patches: int  # tiles a picture, without the thumbnail
    max_patches: int
    table: npt.NDArray[np.float32]  # [3, 256] what becomes of each value of each channel

    def pieces(self, image: Image.Image) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield [H, W, 3] for each tile of an RGB picture."""
        columns, rows = self._grid(image)
        canvas = self._resized(image, columns, rows)
        for row, column in product(range(rows), range(columns)):
            top, left = row * self.height, column * self.width
            yield canvas[top : top + self.height, left : left + self.width]
        if columns * rows > 1:
            yield self._resized(image, 1, 1)

    def _grid(self, image: Image.Image) -> tuple[int, int]:
        """Return (columns, rows)."""
        if not self.crops:
            return 1, 1
        # Contract: what `get_number_of_image_patches` counts by, so tiles are as many as promised.
        size, tile = (image.height, image.width), (self.height, self.width)
        grid: tuple[int, int] = get_optimal_tiled_canvas(
            size, tile, self.min_patches, self.max_patches
        )
        return grid

    def _resized(self, image: Image.Image, columns: int, rows: int) -> npt.NDArray[np.uint8]:
        size = (columns * self.width, rows * self.height)
        return np.asarray(image.resize(size, self.resample))


def _read_settings(image_processor: Any) -> _Cut | None:
    """Return how a processor makes tiles, or None where it is not known to be done here alike."""
    # A subclass may do anything, and torchvision's class gives other bits.
    if type(image_processor) is not GotOcr2ImageProcessorPil:
        return None
    names = GotOcr2ImageProcessorPil.valid_kwargs.__annotations__
    settings: dict[str, Any] = {name: getattr(image_processor, name, None) for name in names}
    crops = bool(settings["crop_to_patches"] and settings["max_patches"] > 1)
    if not _known(settings, crops):
        return None
    table = _table(*(_hashable(settings[name]) for name in ARITHMETIC))
    if table.dtype != np.float32:  # neither rescaled nor normalised
        return None
    return _Cut(
        **dict(settings["size"]),
        resample=settings["resample"],
        crops=crops,
        min_patches=settings["min_patches"],
        max_patches=settings["max_patches"],
        table=table,
    )


def _known(settings: dict[str, Any], crops: bool) -> bool:
    """Whether pictures are brought to one height and width by PIL, and nothing else is asked."""
    size, others = settings["size"], settings.keys() - {*ARITHMETIC, *CUTTING, *IDLE}
    return (
        isinstance(size, dict | SizeDict)
        and dict(size).keys() == {"height", "width"}
        and isinstance(settings["resample"], int)
        and (settings["do_resize"] or crops)
        and all(settings[name] in (None, False) for name in others)
    )


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, np.ndarray)) else value


@lru_cache(maxsize=16)
def _table(*arithmetic: Any) -> npt.NDArray[Any]:
    """Return [3, 256]: what the class makes of the values 0 to 255 of each channel.

    The class itself is asked, so that no formula stands here that could round in another way.

    Args:
        arithmetic: values of the settings ARITHMETIC.
    """
    processor = GotOcr2ImageProcessorPil(do_resize=False, crop_to_patches=False)
    for name, value in zip(ARITHMETIC, arithmetic, strict=True):
        setattr(processor, name, value)
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    values: npt.NDArray[Any] = processor([grey], return_tensors="np")["pixel_values"]
    values.setflags(write=False)  # shared by all calls
    return values[0].reshape(3, 256)

"""Pictures from bytes and files: header first, pixels on demand, guards before either."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from configs.errors import DataError

ORIENTATION_TAG = 0x0112  # EXIF
SIDEWAYS = {5, 6, 7, 8}  # orientations that swap width and height
WHITE = (255, 255, 255)
DEEP_MODES = ("I", "F")  # 32 bits a channel, of no known range


@dataclass(frozen=True, slots=True)
class BytesImage:
    """An encoded picture held in memory."""

    data: bytes
    name: str  # for messages
    max_pixels: int

    def size(self) -> tuple[int, int]:
        """Return (width, height) after EXIF rotation, without decoding pixels."""
        return _size(io.BytesIO(self.data), self.name, self.max_pixels)

    def load(self) -> Image.Image:
        """Return the picture in RGB, rotated as EXIF says, on white where it is transparent."""
        return _load(io.BytesIO(self.data), self.name, self.max_pixels)


@dataclass(frozen=True, slots=True)
class FileImage:
    """A picture in a file."""

    path: Path
    max_pixels: int

    def size(self) -> tuple[int, int]:
        """Return (width, height) after EXIF rotation, without decoding pixels."""
        return _size(self.path, str(self.path), self.max_pixels)

    def load(self) -> Image.Image:
        """Return the picture in RGB, rotated as EXIF says, on white where it is transparent."""
        return _load(self.path, str(self.path), self.max_pixels)


def resolve_under(root: Path, reference: str) -> Path:
    """Return the file that `reference` names below `root`.

    Raises:
        DataError: it is a URL, leaves `root`, or does not exist.
    """
    if "://" in reference:
        raise DataError(f"image {reference!r} is a URL; download it and give its path")
    try:
        path = (root / reference).resolve()
        exists = path.is_file()
    except (OSError, ValueError) as error:  # too long (often base64), or a zero byte in it
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"image {_short(reference)} is not a path: {reason}") from error
    if not path.is_relative_to(root.resolve()):
        raise DataError(f"image {reference!r} leaves image_root {str(root)!r}")
    if not exists:
        raise DataError(f"image {str(path)!r} does not exist")
    return path


def _short(reference: str) -> str:
    return repr(reference if len(reference) <= 80 else f"{reference[:80]}...")


@contextmanager
def _opened(stream: io.BytesIO | Path, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Open a picture by its header; any error while it is open is told as a broken picture."""
    try:
        with Image.open(stream) as image:
            _check_header(image, name, max_pixels)
            # Read here, kept by PIL: PNG's own `getexif` decodes all pixels, to look behind them.
            Image.Image.getexif(image)
            yield image
    except DataError:
        raise
    except Exception as error:  # PIL's plugins raise a dozen kinds on broken bytes
        raise DataError(f"image {name!r} cannot be read: {error}") from error


def _check_header(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"image {name!r} has {width} x {height} pixels, more than data.max_pixels={max_pixels}"
        )
    if image.mode in DEEP_MODES:
        raise DataError(f"image {name!r} has 32 bits a channel; save it with 8 or 16")


def _size(stream: io.BytesIO | Path, name: str, max_pixels: int) -> tuple[int, int]:
    with _opened(stream, name, max_pixels) as image:
        width, height = image.size
        sideways = Image.Image.getexif(image).get(ORIENTATION_TAG) in SIDEWAYS
        if sideways and image.format != "TIFF":  # whose size PIL gives as turned already
            return height, width
        return width, height


def _load(stream: io.BytesIO | Path, name: str, max_pixels: int) -> Image.Image:
    with _opened(stream, name, max_pixels) as image:
        return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Return `image` in RGB, 8 bits a channel.

    `convert("RGB")` alone would paint transparency black and cut 16-bit grey off at 255.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (*WHITE, 255))
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return image.convert("RGB")

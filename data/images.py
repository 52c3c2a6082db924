"""Pictures from bytes and files: header first, pixels on demand, guards before either."""

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from configs.errors import DataError

ORIENTATION_TAG = 0x0112  # EXIF
SIDEWAYS = {5, 6, 7, 8}  # orientations that swap width and height
WHITE = (255, 255, 255)
BROKEN = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)


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
    path = (root / reference).resolve()
    if not path.is_relative_to(root.resolve()):
        raise DataError(f"image {reference!r} leaves image_root {str(root)!r}")
    if not path.is_file():
        raise DataError(f"image {str(path)!r} does not exist")
    return path


def _open(stream: io.BytesIO | Path, name: str, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(stream)
    except BROKEN as error:
        raise DataError(f"image {name!r} cannot be read: {error}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"image {name!r} has {width} x {height} pixels, more than data.max_pixels={max_pixels}"
        )
    return image


def _size(stream: io.BytesIO | Path, name: str, max_pixels: int) -> tuple[int, int]:
    with _open(stream, name, max_pixels) as image:
        width, height = image.size
        if image.getexif().get(ORIENTATION_TAG) in SIDEWAYS:
            return height, width
        return width, height


def _load(stream: io.BytesIO | Path, name: str, max_pixels: int) -> Image.Image:
    with _open(stream, name, max_pixels) as image:
        try:
            return to_rgb(ImageOps.exif_transpose(image))
        except BROKEN as error:
            raise DataError(f"image {name!r} cannot be decoded: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return `image` in RGB. `convert("RGB")` alone would paint transparency black."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (*WHITE, 255))
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return image.convert("RGB")

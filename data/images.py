"""Pictures from bytes and files: header first, pixels on demand, guards before either."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from configs.errors import DataError
from data.sources.records import FilePart

ORIENTATION_TAG = 0x0112  # EXIF
SIDEWAYS = {5, 6, 7, 8}  # orientations that swap width and height
DEEP_MODES = ("I", "F")  # 32 bits a channel, of no known range
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")
WHITE = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class ImageRules:
    """What a picture may be, and how it is shown."""

    max_pixels: int
    max_bytes: int  # of the encoded picture
    background: tuple[int, int, int] = WHITE  # behind transparency; red, green, blue


@dataclass(frozen=True, slots=True)
class BytesImage:
    """An encoded picture held in memory."""

    data: bytes
    name: str  # for messages
    rules: ImageRules

    def size(self) -> tuple[int, int]:
        """Return (width, height) after EXIF rotation, without decoding pixels."""
        return _size(self._stream(), self.name, self.rules)

    def load(self) -> Image.Image:
        """Return the picture in RGB, rotated as EXIF says, on the background where transparent."""
        return _load(self._stream(), self.name, self.rules)

    def _stream(self) -> io.BytesIO:
        _check_bytes(len(self.data), self.name, self.rules)
        return io.BytesIO(self.data)


@dataclass(frozen=True, slots=True)
class FileImage:
    """A picture in a file, or in a part of one such as a tar shard."""

    path: Path
    rules: ImageRules
    part: FilePart | None = None

    def size(self) -> tuple[int, int]:
        """Return (width, height) after EXIF rotation, without decoding pixels."""
        return _size(self._stream(), self.name, self.rules)

    def load(self) -> Image.Image:
        """Return the picture in RGB, rotated as EXIF says, on the background where transparent."""
        return _load(self._stream(), self.name, self.rules)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.part.name if self.part else str(self.path)

    def _stream(self) -> io.BytesIO | Path:
        if self.part is None:
            with _told(self.name):
                _check_bytes(self.path.stat().st_size, self.name, self.rules)
            return self.path
        _check_bytes(self.part.size, self.name, self.rules)
        with _told(self.name), self.path.open("rb") as file:
            file.seek(self.part.offset)
            return io.BytesIO(file.read(self.part.size))


def resolve_under(root: Path, reference: str) -> Path:
    """Return the file that `reference` names below `root`.

    Raises:
        DataError: it is a URL, leaves `root`, or does not exist.
    """
    if "://" in reference:
        raise DataError(f"image {reference!r} is a URL; download it and give its path")
    real_root = _real_folder(os.path.abspath(root))
    try:
        path, mode = _locate(real_root, reference)
    except (OSError, ValueError) as error:  # too long (often base64), or a zero byte in it
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"image {_short(reference)} is not a path: {reason}") from error
    if not f"{path}/".startswith(os.path.join(real_root, "")):
        raise DataError(f"image {reference!r} leaves image_root {str(root)!r}")
    if not stat.S_ISREG(mode):
        missing = DataError(f"image {path!r} does not exist")
        missing.path = path
        raise missing
    return Path(path)


@lru_cache
def _real_folder(root: str) -> str:
    return os.path.realpath(root)


def _locate(real_root: str, reference: str) -> tuple[str, int]:
    """Return the path without links that `reference` means, and its mode: 0 if nothing is there.

    Below a root without links only what follows needs a look: 34 us for two folders and a file
    where `Path.resolve` of both took 269, on the slow file system of a sandbox.
    """
    path, mode = real_root, 0
    with suppress(FileNotFoundError, NotADirectoryError):
        for part in reference.split("/"):
            path = os.path.join(path, part)
            mode = os.lstat(path).st_mode
            if part in ("", ".", "..") or stat.S_ISLNK(mode):  # "": absolute, or a double slash
                break
        else:
            return path, mode
    path = os.path.realpath(os.path.join(real_root, reference))
    with suppress(FileNotFoundError, NotADirectoryError):
        return path, os.stat(path).st_mode
    return path, 0


def _short(reference: str) -> str:
    return repr(reference if len(reference) <= 80 else f"{reference[:80]}...")


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Tell any error as a broken picture: PIL's plugins raise a dozen kinds on broken bytes."""
    try:
        yield
    except (DataError, MemoryError):  # of which the second says nothing about the picture
        raise
    except Exception as error:
        raise DataError(f"image {name!r} cannot be read: {error}") from error


@contextmanager
def _opened(stream: io.BytesIO | Path, name: str, rules: ImageRules) -> Iterator[Image.Image]:
    """Open a picture by its header; any error while it is open is told as a broken picture."""
    with _told(name), _open_header(stream) as image:
        _check_header(image, name, rules.max_pixels)
        # Read here, kept by PIL: PNG's own `getexif` decodes all pixels, to look behind them.
        Image.Image.getexif(image)
        yield image


@lru_cache
def _formats() -> list[str]:
    """Return the kinds of pictures that are opened. PIL knows more, some by calling programs."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _open_header(stream: io.BytesIO | Path) -> Image.Image:
    """Open a picture without PIL's own limit of pixels: ours, which is checked next, is the one."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(stream, formats=_formats())
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _check_bytes(size: int, name: str, rules: ImageRules) -> None:
    if size == 0:
        raise DataError(f"image {name!r} cannot be read: it is empty (0 bytes)")
    if size > rules.max_bytes:
        raise DataError(
            f"image {name!r} has {size:,} bytes, more than data.max_image_bytes={rules.max_bytes}"
        )


def _check_header(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"image {name!r} has {width} x {height} pixels, more than data.max_pixels={max_pixels}"
        )
    if image.mode in DEEP_MODES:
        raise DataError(f"image {name!r} has 32 bits a channel; save it with 8 or 16")


def _size(stream: io.BytesIO | Path, name: str, rules: ImageRules) -> tuple[int, int]:
    with _opened(stream, name, rules) as image:
        width, height = image.size
        sideways = Image.Image.getexif(image).get(ORIENTATION_TAG) in SIDEWAYS
        if sideways and image.format != "TIFF":  # whose size PIL gives as turned already
            return height, width
        return width, height


def _load(stream: io.BytesIO | Path, name: str, rules: ImageRules) -> Image.Image:
    with _opened(stream, name, rules) as image:
        ImageOps.exif_transpose(image, in_place=True)  # else it copies pictures that stand upright
        return to_rgb(image, rules.background)


def to_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Return `image` in RGB, 8 bits a channel, on `background` where it is transparent.

    `convert("RGB")` alone would paint transparency black and cut 16-bit grey off at 255.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (*background, 255))
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return image.convert("RGB")

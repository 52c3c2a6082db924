"""Pictures, rows and samples for the tests of data/, and a second, naive way to render."""

import io
import struct
import zlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from data.images import BytesImage, ImageRules
from data.render import Sample
from data.rows import IMAGE, Row, Turn, question

ASSETS = Path(__file__).resolve().parents[2] / "data/assets"
TILE = 32  # pixels a side
TOKENS_A_TILE = 16  # (32 / 4 / 2) squared
MAX_PIXELS = 10_000_000
MAX_BYTES = 10_000_000
PLENTY = dict(max_tokens=100_000, max_tiles=1_000)


def udhr() -> list[dict[str, str]]:
    """Every paragraph of the declaration in every language: id, language, text."""
    rows: list[dict[str, str]] = pq.read_table(ASSETS / "udhr23.parquet").to_pylist()
    return rows


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture in which every pixel differs, so that a crop or a turn shows."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and has none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b"")):
        chunks += struct.pack(">I", len(body)) + name + body
        chunks += struct.pack(">I", zlib.crc32(name + body))
    return chunks


def in_memory(data: bytes, max_pixels: int = MAX_PIXELS) -> BytesImage:
    return BytesImage(data, "a.png", ImageRules(max_pixels, MAX_BYTES))


def picture(width: int, height: int, seed: int = 0) -> BytesImage:
    return in_memory(encode(noise(width, height, seed)))


def row(*turns: tuple[str, Sequence[str | None]], images: Sequence[BytesImage] = ()) -> Row:
    """A row of (role, pieces) turns."""
    made = tuple(Turn(role, tuple(pieces)) for role, pieces in turns)
    return Row("7", "tests", "en", made, tuple(images))


def asked(text: str, answer: str, *images: BytesImage) -> Row:
    return Row("7", "tests", "en", question(text, answer, num_images=len(images)), images)


def bare_sample(num_tokens: int, first_id: int, num_supervised: int = 1) -> Sample:
    """A sample without pictures whose tokens are numbered, so that none can be confused."""
    ids = np.arange(first_id, first_id + num_tokens, dtype=np.int32)
    supervised = np.arange(num_tokens) >= num_tokens - num_supervised
    return Sample(asked("q", "a"), ids, supervised, ())


def naive_render(processor: Any, given: Row, tiles: Sequence[int]) -> tuple[list[int], list[bool]]:
    """Token ids and mask, put together piece by piece without any chat template.

    A special token always ends the one before it, so the pieces between them can be encoded alone.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    id_of = tokenizer.convert_tokens_to_ids
    roles = {
        "user": "<|USER_TOKEN|>",
        "assistant": "<|CHATBOT_TOKEN|>",
        "system": "<|SYSTEM_TOKEN|>",
    }
    ids, mask, tiles = [tokenizer.bos_token_id], [False], list(tiles)

    def add(new: list[int], supervised: bool) -> None:
        ids.extend(new)
        mask.extend([supervised] * len(new))

    for turn in given.turns:
        answer = turn.role == "assistant"
        add([id_of("<|START_OF_TURN_TOKEN|>"), id_of(roles[turn.role])], False)
        for is_picture, pieces in groupby(turn.content, key=lambda piece: piece is IMAGE):
            if is_picture:
                for _ in pieces:
                    add(naive_picture(tokenizer, tiles.pop(0)), False)
            else:
                add(tokenizer.encode("".join(pieces), add_special_tokens=False), answer)
        add([id_of("<|END_OF_TURN_TOKEN|>")], answer)
    assert not tiles
    return ids, mask


def naive_picture(tokenizer: Any, num_tiles: int) -> list[int]:
    """The tokens of a picture: numbered tiles, then the thumbnail (or the only tile)."""
    id_of = tokenizer.convert_tokens_to_ids
    patches = [id_of("<|IMG_PATCH|>")] * TOKENS_A_TILE
    ids = [id_of("<|START_OF_IMG|>")]
    for number in range(1, num_tiles):
        ids += [id_of("TILE"), *tokenizer.encode(f"_{number}", add_special_tokens=False), *patches]
    return [*ids, id_of("TILE_GLOBAL"), *patches, id_of("<|END_OF_IMG|>")]

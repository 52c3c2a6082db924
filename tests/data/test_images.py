"""Pictures of every kind and in every state: what is read, and what is refused by name."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_pico import encode, in_memory, noise, png_header
from PIL import Image

from configs.errors import DataError
from data.images import FileImage, ImageRules, resolve_under
from data.rows import ImageRef

WHITE, RED = (255, 255, 255), (255, 0, 0)
ORIENTATION = 0x0112


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def refused(do: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        do()
    return str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG", "GIF"])
def test_size_and_pixels_of_a_plain_picture(kind: str) -> None:
    lossless = {"WEBP": {"lossless": True}}.get(kind, {})
    image = in_memory(encode(noise(13, 7), kind, **lossless))
    assert image.size() == image.load().size == (13, 7)
    assert image.load().mode == "RGB"
    if kind not in ("JPEG", "GIF"):
        assert np.array_equal(pixels(image.load()), pixels(noise(13, 7)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.new("RGB", (48, 16), "white")
    stored.paste(RED, (0, 0, 16, 16))  # the left third, as stored
    image = in_memory(encode(stored, kind, exif=exif))
    upright = image.load()
    assert image.size() == upright.size == ((48, 16) if orientation < 5 else (16, 48))
    width, height = upright.size
    corner = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom",
              8: "bottom"}[orientation]  # fmt: skip
    place = {"left": (8, 8), "right": (width - 8, 8), "top": (8, 8), "bottom": (8, height - 8)}
    for name, at in place.items():
        if name in ("left", "right") if orientation < 5 else name in ("top", "bottom"):
            red, green, _ = upright.getpixel(at)
            assert (green < 100) == (name == corner), (name, red, green)


def test_the_size_of_a_png_is_read_without_decoding_it() -> None:
    """PIL's own getexif would, for a chunk behind the pixels, and fail on a cut file."""
    data = encode(noise(300, 200))
    image = in_memory(data[: len(data) // 2])
    assert image.size() == (300, 200)
    assert "cannot be read" in refused(image.load)


def test_exif_behind_the_pixels_is_left_alone_by_both() -> None:
    """Contract: `size` is the size of what `load` gives, whatever only the whole file tells."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    chunk = b"eXIf" + exif.tobytes()[6:]
    data, end = encode(noise(30, 20)), struct.pack(">I", len(chunk) - 4) + chunk
    end += struct.pack(">I", zlib.crc32(chunk))
    image = in_memory(data[:-12] + end + data[-12:])
    assert Image.open(io.BytesIO(image.data)).getexif()[ORIENTATION] == 6
    assert image.size() == image.load().size == (30, 20)


def transparent(mode: str) -> Image.Image:
    """Left half red or black, right half transparent over black."""
    image = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    image.paste((*RED, 255), (0, 0, 4, 4))
    if mode == "P":
        palette = Image.new("P", (8, 4), 0)
        palette.putpalette([0, 0, 0, *RED])
        palette.paste(1, (0, 0, 4, 4))
        return palette
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [("RGBA", "PNG", {}), ("RGBA", "WEBP", {"lossless": True}), ("LA", "PNG", {}),
     ("P", "PNG", {"transparency": 0}), ("P", "GIF", {"transparency": 0}),
     ("RGB", "PNG", {"transparency": (0, 0, 0)}), ("L", "PNG", {"transparency": 0})],
)  # fmt: skip
def test_transparency_is_white(mode: str, kind: str, options: dict[str, object]) -> None:
    loaded = in_memory(encode(transparent(mode), kind, **options)).load()
    assert loaded.mode == "RGB"
    assert loaded.getpixel((6, 2)) == WHITE
    assert loaded.getpixel((1, 2)) == (RED if mode in ("RGBA", "P", "RGB") else (76, 76, 76))


def test_half_transparency_is_mixed_with_white() -> None:
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert in_memory(encode(half)).load().getpixel((0, 0)) == (127, 127, 127)


def test_a_palette() -> None:
    palette = noise(16, 16).quantize(8)
    loaded = in_memory(encode(palette)).load()
    assert np.array_equal(pixels(loaded), pixels(palette.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_shades(kind: str) -> None:
    """`convert("RGB")` cuts off at 255, which makes nearly everything white."""
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    loaded = pixels(in_memory(encode(Image.fromarray(ramp), kind)).load())
    assert np.array_equal(loaded, np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_pictures_are_refused_from_their_header(mode: str) -> None:
    image = in_memory(encode(noise(8, 8).convert(mode), "TIFF"))
    expected = "image 'a.png' has 32 bits a channel; save it with 8 or 16"
    assert refused(image.size) == refused(image.load) == expected


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    kind = {"CMYK": "JPEG", "YCbCr": "TIFF"}.get(mode, "PNG")
    stored = Image.new("RGB", (32, 32), (200, 200, 200)).convert(mode)
    loaded = in_memory(encode(stored, kind)).load()
    assert loaded.mode == "RGB"
    expected = 200 if mode != "1" else float(np.asarray(stored).mean() * 255)
    assert pixels(loaded).mean() == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    image = in_memory(data)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert image.size() == (8, 8)
    assert image.load().getpixel((4, 4)) == RED


def test_a_cut_jpeg_has_a_size_and_no_pixels() -> None:
    data = encode(noise(200, 100), "JPEG")
    image = in_memory(data[: len(data) // 2])
    assert image.size() == (200, 100)
    message = refused(image.load)
    assert message.startswith("image 'a.png' cannot be read: ")
    assert "truncated" in message


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 100, b"<html>404 Not Found</html>", b"\x89PNG\r\n\x1a\n", b"GIF89a",
     b"\xff\xd8\xff", encode(noise(9, 9))[:20]],
    ids=["nothing", "zeros", "text", "png magic", "gif magic", "jpeg magic", "cut header"],
)  # fmt: skip
def test_what_is_no_picture(data: bytes) -> None:
    image = in_memory(data)
    assert refused(image.size).startswith("image 'a.png' cannot be read: ")
    assert refused(image.load).startswith("image 'a.png' cannot be read: ")


def test_a_bomb_is_refused_from_its_header() -> None:
    image = in_memory(png_header(4000, 3000), max_pixels=11_999_999)
    expected = "image 'a.png' has 4000 x 3000 pixels, more than data.max_pixels=11999999"
    assert refused(image.size) == refused(image.load) == expected
    assert in_memory(png_header(4000, 3000), max_pixels=12_000_000).size() == (4000, 3000)


def test_a_limit_beyond_pils_own_is_taken_at_its_word() -> None:
    huge, limit = png_header(50_000, 50_000), Image.MAX_IMAGE_PIXELS
    assert in_memory(huge, max_pixels=10**10).size() == (50_000, 50_000)
    assert "has 50000 x 50000 pixels" in refused(in_memory(huge, max_pixels=10**9).size)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "AVIF", "BMP"])
def test_damage_of_any_kind_is_a_data_error(kind: str) -> None:
    """PIL's plugins raise a dozen kinds of errors; all of them must become ours."""
    rng = np.random.default_rng(0)
    whole = np.frombuffer(encode(noise(40, 30), kind), dtype=np.uint8)
    num_refused = 0
    for _ in range(60):
        damaged = whole[: rng.integers(1, len(whole) + 1)].copy()
        reach = min(len(damaged), int(rng.choice([40, 200, len(whole)])))
        damaged[rng.integers(0, reach, size=rng.integers(1, 9))] = rng.integers(0, 256)
        for use in (in_memory(damaged.tobytes()).size, in_memory(damaged.tobytes()).load):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    use()
            except DataError:
                num_refused += 1
    assert num_refused > 30


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(noise(13, 7)))
    image: ImageRef = FileImage(path, ImageRules(100, 10_000))
    assert image.size() == image.load().size == (13, 7)
    path.write_bytes(b"text")
    assert refused(image.size).startswith(f"image '{path}' cannot be read: ")
    path.unlink()
    assert refused(image.load).startswith(f"image '{path}' cannot be read: ")


def test_paths_below_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "secret.png"
    (root / "deep").mkdir(parents=True)
    for path in (root / "deep/a.png", outside):
        path.write_bytes(b"")
    (root / "link.png").symlink_to(outside)
    assert resolve_under(root, "deep/a.png") == root / "deep/a.png"
    assert resolve_under(root, "deep/../deep/a.png") == root / "deep/a.png"
    assert resolve_under(root, str(root / "deep/a.png")) == root / "deep/a.png"
    for escape in ("../secret.png", str(outside), "link.png", "deep/../../secret.png"):
        assert refused(lambda e=escape: resolve_under(root, e)) == (
            f"image {escape!r} leaves image_root {str(root)!r}"
        )
    assert refused(lambda: resolve_under(root, "b.png")).endswith("b.png' does not exist")
    assert refused(lambda: resolve_under(root, "deep")).endswith("deep' does not exist")


def test_links_are_followed_to_where_they_end(tmp_path: Path) -> None:
    """Allowed is what ends below the root, whichever way leads there."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "deep", outside):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(b"")
    (root / "inside").symlink_to(root / "deep")
    (root / "out").symlink_to(outside)
    (root / "deep/back").symlink_to("..")
    (root / "loop.png").symlink_to("loop.png")
    (outside / "in").symlink_to(root / "deep")
    (tmp_path / "alias").symlink_to(root)
    for reference in ("inside/a.png", "deep/back/deep/a.png", "out/in/a.png", "deep//./a.png"):
        assert resolve_under(root, reference) == root / "deep/a.png"
    assert resolve_under(tmp_path / "alias", "deep/a.png") == root / "deep/a.png"
    assert resolve_under(root, str(tmp_path / "alias/deep/a.png")) == root / "deep/a.png"
    for escape in ("out/a.png", "deep/back/../outside/a.png", "out/gone.png", ".."):
        assert refused(lambda e=escape: resolve_under(root, e)) == (
            f"image {escape!r} leaves image_root {str(root)!r}"
        )
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2/a.png").write_bytes(b"")
    assert "leaves image_root" in refused(lambda: resolve_under(root, "../root2/a.png"))
    assert "Too many levels" in refused(lambda: resolve_under(root, "loop.png"))
    for folder in (".", "deep/", "deep/a.png/x"):
        assert "does not exist" in refused(lambda f=folder: resolve_under(root, f))


def test_a_relative_root_starts_where_the_process_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "root").mkdir(parents=True)
        (tmp_path / name / "root/a.png").write_bytes(b"")
        monkeypatch.chdir(tmp_path / name)
        assert resolve_under(Path("root"), "a.png") == tmp_path / name / "root/a.png"


@pytest.mark.parametrize(
    "url", ["http://a/b.png", "https://a/b.png", "file:///etc/passwd", "s3://a/b"]
)
def test_a_url_is_refused(tmp_path: Path, url: str) -> None:
    assert refused(lambda: resolve_under(tmp_path, url)) == (
        f"image {url!r} is a URL; download it and give its path"
    )


@pytest.mark.parametrize("reference", ["a\0b.png", "data:image/png;base64," + "A" * 5000])
def test_what_is_no_path(tmp_path: Path, reference: str) -> None:
    message = refused(lambda: resolve_under(tmp_path, reference))
    assert " is not a path: " in message
    assert len(message) < 200

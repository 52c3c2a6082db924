"""Tiles are, bit for bit, those of transformers' own class; what is not known is left to it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from data_pico import TILE, noise
from PIL import Image
from transformers import GotOcr2ImageProcessorPil
from transformers.utils import is_torchvision_available

from data.images import to_rgb
from data.tiles import make_tiles

AWKWARD_SIZES = [
    (1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (3, 3), (4, 4), (1, 97), (97, 1), (7, 5),
    (2, 400), (400, 2), (3, 500), (500, 3), (31, 31), (31, 32), (32, 31), (32, 32),
    (33, 32), (32, 33), (64, 32), (32, 64), (64, 64), (63, 65), (96, 64), (64, 96),
    (96, 32), (32, 97), (97, 96), (100, 30), (30, 100), (127, 65), (128, 96), (96, 128),
    (129, 95), (160, 32), (199, 32), (211, 107), (107, 211), (300, 200),
]  # width, height in pixels  # fmt: skip


def make_processor(**changes: Any) -> Any:
    """The class that `make_tiles` stands in for, cutting into up to 12 tiles of TILE pixels."""
    settings: dict[str, Any] = dict(
        size={"height": TILE, "width": TILE},
        crop_to_patches=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return GotOcr2ImageProcessorPil(**settings | changes)


def expected(images: list[Image.Image], processor: Any) -> torch.Tensor:
    return processor(images, return_tensors="pt")["pixel_values"]


def same(images: list[Image.Image], processor: Any) -> bool:
    """Whether both ways give equal bits; `torch.equal` does not look at the dtype."""
    ours, theirs = make_tiles(images, processor), expected(images, processor)
    return ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.fixture
def upstream_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures of each call that reaches transformers' class."""
    calls: list[int] = []
    preprocess: Callable[..., Any] = GotOcr2ImageProcessorPil._preprocess

    def counted(self: Any, images: list[Any], *args: Any, **kwargs: Any) -> Any:
        calls.append(len(images))
        return preprocess(self, images, *args, **kwargs)

    monkeypatch.setattr(GotOcr2ImageProcessorPil, "_preprocess", counted)
    return calls


@pytest.mark.parametrize("size", AWKWARD_SIZES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("max_patches", [1, 12])
def test_tiles_of_awkward_sizes(size: tuple[int, int], max_patches: int) -> None:
    processor, image = make_processor(max_patches=max_patches), noise(*size)
    assert same([image], processor)
    promised = processor.get_number_of_image_patches(size[1], size[0], {})
    assert len(make_tiles([image], processor)) == promised


def test_the_sizes_above_make_many_kinds_of_grids() -> None:
    processor = make_processor()
    counts = {processor.get_number_of_image_patches(h, w, {}) for w, h in AWKWARD_SIZES}
    assert {1, 3, 4, 5, 7, 13} <= counts


def test_several_pictures_stand_in_order() -> None:
    images = [noise(*size, seed) for seed, size in enumerate(AWKWARD_SIZES[::5])]
    processor = make_processor()
    assert same(images, processor)
    assert not torch.equal(make_tiles(images[::-1], processor), make_tiles(images, processor))


def test_tiles_of_aya_vision_8b() -> None:
    processor = make_processor(size={"height": 364, "width": 364})
    tiles = make_tiles([noise(1000, 750)], processor)
    assert tiles.shape == (13, 3, 364, 364)
    assert tiles.dtype == torch.float32
    assert torch.equal(tiles, expected([noise(1000, 750)], processor))


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "PA", "L", "1", "CMYK", "YCbCr", "I;16"])
def test_pictures_that_were_not_in_rgb(mode: str) -> None:
    if mode == "I;16":
        drawn = Image.fromarray(np.arange(70 * 40, dtype=np.uint16).reshape(40, 70) * 23)
    else:
        drawn = noise(70, 40).convert("LA" if mode == "PA" else mode).convert(mode)
    assert drawn.mode == mode
    if "A" in mode:
        drawn.putalpha(noise(70, 40, 1).convert("L"))
    assert same([to_rgb(drawn)], make_processor())


@pytest.mark.parametrize(
    "changes",
    [
        dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.268, 0.261, 0.275]),
        dict(image_mean=0.4, image_std=0.3),
        dict(rescale_factor=1 / 127.5, image_mean=[1.0, 1.0, 1.0], image_std=[1.0, 1.0, 1.0]),
        dict(rescale_factor=1),
        dict(do_normalize=False),
        dict(do_rescale=False, image_mean=[128.0, 100.0, 90.0], image_std=[64.0, 3.0, 0.7]),
        dict(size={"height": 24, "width": 40}),
        dict(min_patches=4, max_patches=6),
        dict(min_patches=7, max_patches=6),
        dict(crop_to_patches=False),
        dict(do_resize=False),  # which says nothing where pictures are cut
        *(dict(resample=filter) for filter in Image.Resampling),
    ],
    ids=str,
)
def test_other_settings(changes: dict[str, Any], upstream_calls: list[int]) -> None:
    processor, images = make_processor(**changes), [noise(100, 64), noise(16, 16, 1)]
    make_tiles(images, processor)  # asks once what becomes of the 256 values
    upstream_calls.clear()
    ours = make_tiles(images, processor)
    assert upstream_calls == []
    assert torch.equal(ours, expected(images, processor))
    assert ours.dtype == torch.float32


def test_every_value_of_every_channel() -> None:
    processor = make_processor(max_patches=1, image_mean=[0.1, 0.2, 0.3], image_std=[0.9, 0.8, 0.7])
    values = np.arange(TILE * TILE).reshape(TILE, TILE, 1) * (1, 3, 5) % 256
    image = Image.fromarray(values.astype(np.uint8))  # of a tile's size, so kept as it is
    assert same([image], processor)
    assert [len(plane.unique()) for plane in make_tiles([image], processor)[0]] == [256] * 3


@pytest.mark.parametrize(
    "changes",
    [
        dict(size={"shortest_edge": 24}, crop_to_patches=False),
        dict(do_resize=False, crop_to_patches=False),
        dict(do_resize=False, max_patches=1),  # which cuts nothing
        dict(do_rescale=False, do_normalize=False),
        dict(do_center_crop=True, crop_size={"height": 8, "width": 8}),
        dict(do_pad=True),
        dict(input_data_format="channels_first"),
    ],
    ids=str,
)
def test_settings_that_are_left_to_the_processor(
    changes: dict[str, Any], upstream_calls: list[int]
) -> None:
    processor = make_processor(**changes)
    assert same([noise(50, 40), noise(50, 40, 1)], processor)
    assert upstream_calls[-2:] == [2, 2]  # once for us, once to compare with


def test_other_modes_are_left_to_the_processor() -> None:
    grey = noise(50, 40).convert("L")
    assert same([grey, noise(50, 40)], make_processor())


def test_a_subclass_is_left_to_itself() -> None:
    class Inverted(GotOcr2ImageProcessorPil):
        def rescale(self, image: Any, scale: float, **kwargs: Any) -> Any:
            return 1 - super().rescale(image, scale, **kwargs)

    assert same([noise(50, 40)], Inverted(size={"height": TILE, "width": TILE}))


@pytest.mark.skipif(not is_torchvision_available(), reason="needs torchvision")
def test_torchvision_s_class_is_left_to_itself() -> None:
    from transformers import GotOcr2ImageProcessor

    processor = GotOcr2ImageProcessor(size={"height": TILE, "width": TILE}, crop_to_patches=True)
    assert same([noise(100, 50)], processor)


def test_settings_are_read_at_every_call() -> None:
    processor, image = make_processor(), noise(100, 64)
    assert len(make_tiles([image], processor)) > 1
    processor.max_patches, processor.image_mean = 1, [0.1, 0.2, 0.3]
    processor.size = {"height": 20, "width": 10}
    assert make_tiles([image], processor).shape == (1, 3, 20, 10)
    assert same([image], processor)
    processor.size = 12
    assert same([image], processor)


def test_what_the_processor_refuses_is_refused_alike() -> None:
    processor = make_processor()
    processor.image_mean = None
    with pytest.raises(ValueError, match="`image_mean` and `image_std` must both be specified"):
        make_tiles([noise(50, 40)], processor)
    processor.image_mean = [0.5, 0.5]
    with pytest.raises(ValueError, match="mean must have 3 elements"):
        make_tiles([noise(50, 40)], processor)


def test_tiles_may_be_written_to() -> None:
    """What is handed out shares no memory with the table."""
    processor, image = make_processor(max_patches=1), noise(TILE, TILE)
    first = make_tiles([image], processor)
    kept = first.clone()
    first.zero_()
    assert torch.equal(make_tiles([image], processor), kept)


@pytest.mark.parametrize("mode", ["RGB", "L"])  # made here, and left to the processor
def test_tiles_written_into_a_batch(mode: str) -> None:
    processor, image = make_processor(), noise(100, 64).convert(mode)
    tiles = expected([image], processor)
    batch = torch.full((len(tiles) + 2, *tiles.shape[1:]), 7.0)
    given = batch[1:-1]
    assert make_tiles([image], processor, out=given) is given
    assert torch.equal(batch[1:-1], tiles)
    assert batch[0].eq(7).all() and batch[-1].eq(7).all()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_batch_of_another_shape_or_dtype(mode: str) -> None:
    processor, image = make_processor(), noise(100, 64).convert(mode)
    shape = expected([image], processor).shape
    for out in (torch.full((1, 3, 32, 32), 7.0), torch.full(shape, 7.0, dtype=torch.float64)):
        message = rf"out is \[{len(out)}, 3, 32, 32\] {out.dtype}, but .* make \[{shape[0]}, 3, "
        with pytest.raises(ValueError, match=message):
            make_tiles([image], processor, out=out)
        assert out.eq(7).all()

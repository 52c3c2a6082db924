"""From JPEG files and words to a batch on one core: ours against TRL's collator for pictures.

    python tests/benchmarks/decode.py [pictures] [repeats]

Same files, same questions and answers, same AyaVisionProcessor; that the pixels are equal bit for
bit is checked. TRL's side is `datasets`' decoding and the collator of its SFTTrainer; ours is
`Renderer.render` and `make_batch`. Seconds are of CPU (`process_time`), so that they are for each
core and other jobs on the machine count less; medians of interleaved repeats.
"""

import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path[:] = [str(Path(__file__).resolve().parents[2]), *sys.path[1:]]

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from data.batches import make_batch
from data.images import FileImage, ImageRules
from data.processor import compose_processor
from data.render import Renderer
from data.rows import Row, question
from data.scenes import Concept, load_concepts
from data.tiles import make_tiles
from data.tokenizer import train_tokenizer

ASSETS = Path(__file__).resolve().parents[2] / "data/assets"
ROWS_A_BATCH = 4
SHORTEST, LONGEST = 320, 2000  # pixels a side
RULES = ImageRules(max_pixels=10_000_000, max_bytes=10_000_000)
ASK, ANSWER = "What does this picture show?", "A blurred landscape with a few things in front."

Measure = Callable[[slice], torch.Tensor | None]  # rows -> their pixels, where it makes any


def make_photo(rng: np.random.Generator, concepts: Sequence[Concept]) -> Image.Image:
    """Return smooth noise of several scales with grain and a few emoji: as hard as a photo."""
    long = int(np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST))))
    short = max(SHORTEST, int(long * rng.uniform(0.5, 1.0)))
    width, height = (long, short) if rng.random() < 0.7 else (short, long)
    photo = rng.normal(128, 4, (height, width, 3))
    for cells in (4, 16, 64):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layer = noise.resize((width, height), Image.Resampling.BICUBIC)
        photo += (np.asarray(layer) - 128.0) / np.sqrt(cells)
    image = Image.fromarray(photo.clip(0, 255).astype(np.uint8))
    for _ in range(5):
        side = int(rng.integers(40, 160))
        emoji = concepts[int(rng.integers(len(concepts)))].picture.resize((side, side))
        image.paste(emoji, (int(rng.integers(width - side)), int(rng.integers(height - side))))
    return image


def write_photos(folder: Path, num_photos: int) -> list[Path]:
    """Write JPEG files of quality 90."""
    rng = np.random.default_rng(0)
    concepts = load_concepts(ASSETS / "emoji23.parquet")
    paths = [folder / f"{number:03}.jpg" for number in range(num_photos)]
    for path in paths:
        make_photo(rng, concepts).save(path, quality=90)
    return paths


def make_processor(*, crop_to_patches: bool) -> Any:
    """Return a processor with the tiles of Aya Vision 8B."""
    texts = [row["text"] for row in pq.read_table(ASSETS / "udhr23.parquet").to_pylist()]
    return compose_processor(
        train_tokenizer(texts, vocab_size=2048),
        image_size=364,
        patch_size=14,
        downsample_factor=2,
        crop_to_patches=crop_to_patches,
        max_patches=12,
    )


class CountsOnly:
    """Stands for an image processor that takes no time: tells how many tiles, and makes none."""

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor

    def __getattr__(self, name: str) -> Any:
        if name == "image_processor":  # while it is being copied
            raise AttributeError(name)
        return getattr(self.image_processor, name)

    def __call__(self, images: Sequence[Sequence[Image.Image]], **_: Any) -> dict[str, list[int]]:
        sizes = [(image.height, image.width) for image in chain.from_iterable(images)]
        count = self.image_processor.get_number_of_image_patches
        return {"num_patches": [count(*size, {}) for size in sizes]}


def their_measures(paths: Sequence[Path], processor: Any) -> dict[str, Measure]:
    """Return what is timed of TRL's way."""
    words = {
        "prompt": [{"role": "user", "content": ASK}],
        "completion": [{"role": "assistant", "content": ANSWER}],
    }
    rows = datasets.Dataset.from_list([{"images": [str(path)]} | words for path in paths])
    rows = rows.cast_column("images", datasets.List(datasets.Image()))
    collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    without_pixels = copy.copy(processor)
    without_pixels.image_processor = CountsOnly(processor.image_processor)
    text_collator = DataCollatorForVisionLanguageModeling(without_pixels, completion_only_loss=True)

    def examples(chosen: slice) -> list[dict[str, Any]]:
        return rows.__getitems__(list(range(*chosen.indices(len(rows)))))

    def whole(chosen: slice) -> torch.Tensor:
        return collator(examples(chosen))["pixel_values"]

    def pixels(chosen: slice) -> torch.Tensor:
        images = [example["images"] for example in examples(chosen)]
        return processor.image_processor(images, return_tensors="pt")["pixel_values"]

    def text(chosen: slice) -> None:
        opened = [Image.open(path) for path in paths[chosen]]  # headers alone
        text_collator([{"images": [image]} | copy.deepcopy(words) for image in opened])

    return {"TRL: whole": whole, "TRL: text": text, "TRL: pixels": pixels}


def our_measures(paths: Sequence[Path], processor: Any) -> dict[str, Measure]:
    """Return what is timed of ours, and of the pixels alone with the tiles made either way."""
    turns = question(ASK, ANSWER, num_images=1)
    rows = [Row(path.stem, "photos", "en", turns, (FileImage(path, RULES),)) for path in paths]
    renderer = Renderer(processor)
    image_processor = processor.image_processor

    def render(chosen: slice) -> list[Any]:
        return [renderer.render(row, max_tokens=10_000, max_tiles=100) for row in rows[chosen]]

    def whole(chosen: slice) -> torch.Tensor:
        return make_batch(render(chosen), image_processor)["pixel_values"]

    def load(chosen: slice) -> list[Image.Image]:
        return [image.load() for row in rows[chosen] for image in row.images]

    return {
        "ours: whole": whole,
        "ours: text": lambda chosen: render(chosen) and None,
        "ours: decoding": lambda chosen: load(chosen) and None,
        "ours: pixels, make_tiles": lambda chosen: make_tiles(load(chosen), image_processor),
        "ours: pixels, image_processor": lambda chosen: image_processor(
            load(chosen), return_tensors="pt"
        )["pixel_values"],
    }


def run(measures: dict[str, Measure], num_rows: int, repeats: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each repeat over all rows; measures take turns at every batch."""
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for repeat in range(repeats + 1):
        for name in measures:
            seconds[name].append(0.0)
        for start in range(0, num_rows, ROWS_A_BATCH):
            found = {}
            for name, measure in measures.items():
                before = time.process_time()
                found[name] = measure(slice(start, start + ROWS_A_BATCH))
                seconds[name][-1] += time.process_time() - before
            if repeat == 0:
                check_equal(found)
    return {name: times[1:] for name, times in seconds.items()}  # the first one warms up


def check_equal(found: dict[str, torch.Tensor | None]) -> None:
    """Stop where one way gives other pixels than another."""
    expected = found["TRL: whole"]
    assert expected is not None
    for name, pixels in found.items():
        if pixels is not None and not torch.equal(pixels, expected):
            raise SystemExit(f"{name} gives other pixels than TRL; the figures would mean nothing")


def report(seconds: dict[str, list[float]], num_rows: int) -> None:
    """Print milliseconds a picture, pictures a second, and ratios to TRL in the same repeat."""
    for name, times in seconds.items():
        each = statistics.median(times) / num_rows
        print(f"  {name:<30}{1e3 * each:>8.1f} ms a picture{1 / each:>8.1f} pictures/s")

    def ratio(theirs: str, ours: str) -> float:
        pairs = zip(seconds[theirs], seconds[ours], strict=True)
        return statistics.median(one / two for one, two in pairs)

    print(f"  whole to whole {ratio('TRL: whole', 'ours: whole'):.2f}, pixels to pixels "
          f"{ratio('TRL: pixels', 'ours: pixels, make_tiles'):.2f}; text is "
          f"{ratio('TRL: text', 'TRL: whole'):.0%} of TRL's whole")  # fmt: skip


def main() -> None:
    """Print the figures for pictures cut into up to 12 tiles, and for one tile a picture."""
    num_photos = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), num_photos)
        for crop_to_patches in (True, False):
            processor = make_processor(crop_to_patches=crop_to_patches)
            measures = their_measures(paths, processor) | our_measures(paths, processor)
            tiles = "up to 12 tiles and a thumbnail" if crop_to_patches else "one tile"
            print(f"{num_photos} pictures, {tiles}; {type(processor.image_processor).__name__}")
            report(run(measures, num_photos, repeats), num_photos)


if __name__ == "__main__":
    main()

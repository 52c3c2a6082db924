"""Start and memory of a large JSONL with pictures: first start, second start, bytes a row.

    python tests/benchmarks/data.py            # 25,000 and 100,000 rows, about 6 minutes
    python tests/benchmarks/data.py 10000 40000

Each start is a process of its own, so imports are seen too. Memory is what the process alone holds
(Private_Dirty of /proc/self/smaps_rollup) after the plan, and after 500 packs of batches without
decoding (NUM_PACKS; rendered, not shown), each minus what it held before the rows were opened.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

START = time.perf_counter()
NUM_PICTURES = 50  # that differ; each row has a file of its own, a hard link to one of them
NUM_PACKS = int(os.environ.get("NUM_PACKS", "500"))  # that are iterated
SENTENCE = "a picture of some people who walk along the river"
REPEATS = 2


def private_bytes() -> int:
    """Bytes that this process holds and shares with none."""
    text = Path("/proc/self/smaps_rollup").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("Private_Dirty")]
    return int(line.split()[1]) * 1024


def write_rows(folder: Path, num_rows: int) -> None:
    """Write rows.jsonl and a picture file for each row."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "originals").mkdir()
    (folder / "pictures").mkdir()
    for number in range(NUM_PICTURES):
        width, height = rng.integers(200, 800, 2).tolist()
        color = tuple(rng.integers(0, 256, 3).tolist())
        Image.new("RGB", (width, height), color).save(folder / f"originals/{number}.jpg")
    words = [*SENTENCE.split(), "in", "the", "evening", "sun"]
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(num_rows):
            name = f"pictures/{number:07}.jpg"
            os.link(folder / f"originals/{number % NUM_PICTURES}.jpg", folder / name)
            caption = " ".join(rng.choice(words, int(rng.integers(5, 60))))
            language = ("en", "fr", "hi", "ja")[number % 4]
            row = {"id": number, "image": name, "caption": caption, "language": language}
            file.write(json.dumps(row) + "\n")


def start_once(folder: Path) -> None:
    """Open the rows, plan the packs, make the first batch; print what it took as JSON."""
    from configs.schema import DataConfig, SourceConfig, SourceKind
    from data.batches import make_batch
    from data.build import index_samples, new_ledger, open_tables, plan_packs
    from data.cache import Cache
    from data.processor import compose_processor
    from data.render import Renderer
    from data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer([SENTENCE] * 9, vocab_size=400)
    processor = compose_processor(
        tokenizer, image_size=364, patch_size=14, downsample_factor=2,
        crop_to_patches=True, max_patches=4,
    )  # fmt: skip
    source = SourceConfig(
        kind=SourceKind.files, path=str(folder / "rows.jsonl"), id_field="id",
        language_field="language",
    )  # fmt: skip
    data = DataConfig(sources={"rows": source}, max_tokens=8192, packs_per_step=4)
    imported, before = time.perf_counter(), private_bytes()
    ledger, cache = new_ledger(data), Cache(folder / "cache")
    tables = open_tables("sources", data, cache, seed=0)
    renderer = Renderer(processor)
    samples = index_samples(tables, data.sources, data, renderer, cache, ledger, seed=0)
    plan = plan_packs(samples, data, ledger, seed=0).plan
    assert plan is not None
    first = [samples.sample(i) for i in plan.pack(0)]
    make_batch(first, processor.image_processor)
    ready, planned = time.perf_counter(), private_bytes()
    for number in range(min(NUM_PACKS, len(plan.epoch(0)))):
        for sample in plan.pack(number):
            samples.sample(sample)
    print(json.dumps({
        "imports_seconds": imported - START,
        "first_batch_seconds": ready - imported,
        "planned_bytes": planned - before,
        "iterated_bytes": private_bytes() - before,
        "full": plan.fill_ratio(),
    }))  # fmt: skip


def run_once(folder: Path) -> dict[str, float]:
    """`start_once` in a new process."""
    command = [sys.executable, __file__, "--start", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(sizes: list[int]) -> None:
    """Print a line for each number of rows, and what a row costs."""
    planned = []
    for num_rows in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_rows(folder, num_rows)
            first = run_once(folder)
            later = [run_once(folder) for _ in range(REPEATS)]
            second = {key: median(run[key] for run in later) for key in first}
        planned.append((second["planned_bytes"], second["iterated_bytes"]))
        print(
            f"{num_rows:,} rows: first start {first['first_batch_seconds']:.1f} s, second "
            f"{second['first_batch_seconds']:.2f} s to the first batch (imports "
            f"{second['imports_seconds']:.1f} s); {second['planned_bytes'] / 1e6:.1f} MB when "
            f"planned, {second['iterated_bytes'] / 1e6:.1f} MB after {NUM_PACKS:,} packs; packs "
            f"{second['full']:.1%} full"
        )
    if len(sizes) > 1:
        rows = sizes[-1] - sizes[0]
        for what, at in (("planned", 0), ("iterated", 1)):
            grown = planned[-1][at] - planned[0][at]
            print(f"{what}: {grown / rows:.0f} bytes for each row more")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--start"]:
        start_once(Path(sys.argv[2]))
    else:
        main([int(text) for text in sys.argv[1:]] or [25_000, 100_000])

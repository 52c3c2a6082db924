"""Packed batches: shapes, restarts, labels, pixels in order, and no dependence on ranks."""

from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from data_pico import PLENTY, asked, bare_sample, encode, in_memory, noise, picture

from configs.errors import DataError
from data.batches import SAMPLES, make_batch
from data.loader import Job
from data.pack import PackPlan
from data.packs import PlannedPacks
from data.render import IGNORED, Renderer


def samples_of(renderer: Renderer) -> list[Any]:
    rows = [
        asked("Which?", "A key.", picture(100, 30)),
        asked("Say hello.", "Hello!"),
        asked("Compare.", "Alike.", picture(30, 100, 1), picture(20, 20, 2)),
    ]
    return [renderer.render(row, **PLENTY) for row in rows]


def test_a_batch_holds_its_samples_one_after_the_other(tiling_renderer: Renderer) -> None:
    samples = samples_of(tiling_renderer)
    batch = make_batch(samples, tiling_renderer.image_processor)
    total = sum(sample.num_tokens for sample in samples)
    for name in ("input_ids", "position_ids", "labels"):
        assert batch[name].shape == (1, total)
        assert batch[name].dtype == torch.int64
    start = 0
    for sample in samples:
        here = slice(start, start := start + sample.num_tokens)
        assert batch["input_ids"][0, here].tolist() == sample.input_ids.tolist()
        assert batch["position_ids"][0, here].tolist() == list(range(sample.num_tokens))
        labels = batch["labels"][0, here].numpy()
        assert np.array_equal(labels != IGNORED, sample.supervised)
        assert np.array_equal(labels[sample.supervised], sample.input_ids[sample.supervised])
    assert int(batch["position_ids"][0].eq(0).sum()) == len(samples)


def test_a_sample_never_predicts_the_first_token_of_the_next(renderer: Renderer) -> None:
    """Labels are shifted over the whole pack, so the first of each sample must be ignored."""
    samples = [
        replace(sample, supervised=np.ones_like(sample.supervised))  # plain text may be so
        for sample in samples_of(renderer)
    ]
    batch = make_batch([replace(s, row=replace(s.row, images=()), num_tiles=()) for s in samples],
                       None)  # fmt: skip
    starts = batch["position_ids"] == 0
    assert int(starts.sum()) == 3
    assert torch.equal(batch["labels"] == IGNORED, starts)
    assert [told.num_supervised for told in batch[SAMPLES]] == [s.num_tokens - 1 for s in samples]


def test_a_batch_tells_of_its_samples(tiling_renderer: Renderer) -> None:
    samples = samples_of(tiling_renderer)
    told = make_batch(samples, tiling_renderer.image_processor)[SAMPLES]
    for one, sample in zip(told, samples, strict=True):
        row = sample.row
        assert (one.source, one.id, one.language) == (row.source, row.id, row.language)
        assert (one.num_tokens, one.num_supervised) == (
            sample.num_tokens, int(sample.supervised.sum()),
        )  # fmt: skip
        assert (one.num_images, one.num_tiles) == (len(row.images), sum(sample.num_tiles))
        assert str(one) == f"{row.source}/{row.id}"


def test_pixels_stand_in_the_order_of_their_tokens(tiling_renderer: Renderer) -> None:
    samples, processor = samples_of(tiling_renderer), tiling_renderer.image_processor
    batch = make_batch(samples, processor)
    alone = [
        processor([image.load()], return_tensors="pt")["pixel_values"]
        for sample in samples
        for image in sample.row.images
    ]
    assert [len(tiles) for tiles in alone] == [n for s in samples for n in s.num_tiles]
    assert batch["pixel_values"].dtype == torch.float32
    assert torch.equal(batch["pixel_values"], torch.cat(alone))
    image_id = tiling_renderer.processing_class.image_token_id
    num_image_tokens = int((batch["input_ids"] == image_id).sum())
    assert num_image_tokens == 16 * len(batch["pixel_values"])


def test_text_alone_has_no_pixels(renderer: Renderer) -> None:
    assert set(make_batch([samples_of(renderer)[1]], None)) == {
        "input_ids", "position_ids", "labels", "samples",
    }  # fmt: skip


def test_a_picture_that_breaks_off_is_told_with_its_row(renderer: Renderer) -> None:
    data = encode(noise(200, 100), "JPEG")
    sample = renderer.render(asked("q", "a", in_memory(data[: len(data) // 2])), **PLENTY)
    with pytest.raises(DataError, match=r"^row tests/7: image 'a.png' cannot be read: .*truncated"):
        make_batch([sample], renderer.image_processor)


def test_a_picture_of_other_tiles_than_promised(
    renderer: Renderer, tiling_renderer: Renderer
) -> None:
    sample = renderer.render(asked("q", "a", picture(100, 30)), **PLENTY)
    with pytest.raises(DataError, match="row tests/7: 4 image tiles where its header promised 1"):
        make_batch([sample], tiling_renderer.image_processor)


def numbered(num_samples: int, packs_per_step: int) -> tuple[list[Any], PackPlan]:
    """Samples in which every token of every sample differs, and a plan for them."""
    lengths = np.random.default_rng(0).integers(5, 60, size=num_samples)
    starts = np.cumsum(lengths) - lengths
    samples = [bare_sample(int(n), int(s)) for n, s in zip(lengths, starts, strict=True)]
    plan = PackPlan(
        num_tokens=lengths,
        num_tiles=np.zeros_like(lengths),
        weights=np.ones(num_samples),
        max_tokens=128,
        max_tiles=4,
        packs_per_step=packs_per_step,
        seed=3,
    )
    return samples, plan


def token_ids(job: Job, samples: list[Any]) -> list[int]:
    """The token ids of a job's batch."""
    batch = make_batch([samples[i] for i in job.samples], None)
    ids: list[int] = batch["input_ids"][0].tolist()
    return ids


def global_batches(num_ranks: int, num_steps: int) -> list[list[list[int]]]:
    """For each step the sorted packs that all ranks take together, as token ids."""
    samples, plan = numbered(100, packs_per_step=4)
    jobs = [PlannedPacks(plan, rank=rank, num_ranks=num_ranks).jobs(0) for rank in range(num_ranks)]
    each = plan.packs_per_step // num_ranks
    return [
        sorted(token_ids(next(of_rank), samples) for of_rank in jobs for _ in range(each))
        for _ in range(num_steps)
    ]


def test_global_batches_are_the_same_for_any_number_of_ranks() -> None:
    num_steps = 3 * numbered(100, packs_per_step=4)[1].num_steps(1)  # three epochs
    alone = global_batches(1, num_steps)
    assert alone == global_batches(2, num_steps) == global_batches(4, num_steps)
    assert alone[0] != alone[1]


def test_an_epoch_of_batches_holds_every_token_once() -> None:
    samples, plan = numbered(100, packs_per_step=4)
    jobs = islice(PlannedPacks(plan, rank=0, num_ranks=1).jobs(0), 4 * plan.num_steps(1))
    ids = [token for job in jobs for token in token_ids(job, samples)]
    assert sorted(ids) == list(range(sum(sample.num_tokens for sample in samples)))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_going_on_from_a_step_is_what_an_unbroken_run_gives(num_ranks: int) -> None:
    _, plan = numbered(100, packs_per_step=4)
    for rank in range(num_ranks):
        each = 4 // num_ranks
        unbroken = list(islice(PlannedPacks(plan, rank=rank, num_ranks=num_ranks).jobs(0), 200))
        again = PlannedPacks(numbered(100, packs_per_step=4)[1], rank=rank, num_ranks=num_ranks)
        assert list(islice(again.jobs(37), 20)) == unbroken[37 * each : 37 * each + 20]

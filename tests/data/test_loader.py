"""The loader: packs in order for any number of workers, tensors in shared memory, deaths named."""

import gc
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from data_pico import PLENTY, asked, picture
from index_pico import captioned, config, indexed
from PIL import Image

from configs.errors import DataError
from data.batches import BAD_ROWS, SAMPLES
from data.ledger import BadRow
from data.loader import (
    Job,
    JobSampler,
    PackDataset,
    death_of_worker,
    make_loader,
    told_by_worker,
)
from data.render import Renderer, Sample
from data.rows import Row


@dataclass(frozen=True)
class Killer:
    """A picture whose decoder ends the process, as a crash in C code does."""

    sign: int = signal.SIGKILL

    def size(self) -> tuple[int, int]:
        return 20, 20

    def load(self) -> Image.Image:
        os.kill(os.getpid(), self.sign)
        raise AssertionError


@dataclass(frozen=True)
class Broken:
    """A picture whose pixels cannot be decoded."""

    def size(self) -> tuple[int, int]:
        return 20, 20

    def load(self) -> Image.Image:
        raise DataError("image 'b.png' cannot be read: truncated")


def named(renderer: Renderer, name: str, image: Any) -> Sample:
    row = asked("What?", f"A {name}.", image)
    return renderer.render(Row(name, "mine", "en", row.turns, row.images), **PLENTY)


@pytest.fixture(autouse=True)
def no_loader_is_left() -> Iterator[None]:
    """Let no loader with dead workers outlive its test.

    torch's handler of SIGCHLD raises for them wherever the next test happens to be, also while a
    pipe is being closed: the pipe after it has the same number then.
    """
    yield
    gc.collect()


def same_batch(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether two batches hold the same tensors and tell the same of their samples."""
    one, two = dict(one), dict(two)
    return one.pop(SAMPLES) == two.pop(SAMPLES) and all(
        torch.equal(one[name], two[name]) for name in one
    )


def load(
    renderer: Renderer, packs: list[list[Sample]], *, num_workers: int, skip: bool = False
) -> list[dict[str, Any]]:
    dataset = PackDataset(None, renderer.image_processor, skip=skip, num_workers=num_workers)

    def jobs() -> Iterator[Job]:
        yield from (Job(number, pack) for number, pack in enumerate(packs))

    sampler = JobSampler(jobs, len(packs))
    try:
        return list(make_loader(dataset, sampler, num_workers=num_workers))
    except (RuntimeError, ConnectionError, EOFError) as error:
        death = death_of_worker(error)
        if death is None:
            raise
        raise told_by_worker(death, dataset, sampler) from None


def test_any_number_of_workers_gives_the_same_batches(tmp_path: Path, renderer: Renderer) -> None:
    samples, _ = indexed(config(captioned(tmp_path, 24)), renderer, tmp_path / "cache")
    packs = [[i, i + 1, i + 2] for i in range(0, 24, 3)]
    found = []
    for num_workers in (0, 1, 3):
        dataset = PackDataset(
            samples, renderer.image_processor, skip=False, num_workers=num_workers
        )
        sampler = JobSampler(lambda: (Job(n, list(p)) for n, p in enumerate(packs)), len(packs))
        found.append(list(make_loader(dataset, sampler, num_workers=num_workers)))
    for batches in found[1:]:
        assert len(batches) == 8
        for one, other in zip(found[0], batches, strict=True):
            assert one.keys() == other.keys()
            assert same_batch(one, other)


def test_only_as_many_jobs_as_the_run_has(renderer: Renderer) -> None:
    sample = named(renderer, "a", picture(20, 20))

    def jobs() -> Iterator[Job]:
        number = 0
        while True:
            yield Job(number, [sample])
            number += 1

    sampler = JobSampler(jobs, 5)
    dataset = PackDataset(None, renderer.image_processor, skip=False, num_workers=0)
    loader = make_loader(dataset, sampler, num_workers=0)
    assert len(loader) == len(list(loader)) == 5


def test_the_global_generator_is_left_alone(renderer: Renderer) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load(renderer, [[named(renderer, "a", picture(20, 20))]], num_workers=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSEGV], ids=str)
def test_a_worker_that_dies_is_told_with_its_row(renderer: Renderer, sign: int) -> None:
    good = named(renderer, "good", picture(20, 20))
    packs = [[good], [good, named(renderer, "killer", Killer(sign)), good], [good]]
    with pytest.raises(DataError) as caught:
        load(renderer, packs, num_workers=2)
    message = str(caught.value)
    assert message.startswith("a data worker died while it prepared row mine/killer: ")
    assert "raise --shm-size or lower data.num_workers" in message


def test_a_signal_while_workers_start_ends_none(renderer: Renderer) -> None:
    """torchrun and SLURM send it to all processes of a rank: without care 38 of 40 died."""
    sample = named(renderer, "good", picture(20, 20))
    dataset = PackDataset(None, renderer.image_processor, skip=False, num_workers=2)
    for _ in range(3):
        sampler = JobSampler(lambda: (Job(number, [sample]) for number in range(4)), 4)
        batches: Any = iter(make_loader(dataset, sampler, num_workers=2))
        pids = [str(worker.pid) for worker in batches._workers]
        subprocess.run(["kill", "-TERM", *pids], check=True)  # not by their own main process
        assert len(list(batches)) == 4


def test_a_broken_connection_is_told_as_the_death_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The signal comes while the broken connection is being handled."""
    told = "DataLoader worker (pid 12345) is killed by signal: Killed."

    def interrupted(signum: int, frame: Any) -> None:
        raise RuntimeError(told)

    before = signal.signal(signal.SIGALRM, interrupted)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert str(death_of_worker(ConnectionResetError(104, "reset by peer"))) == told
    finally:
        signal.signal(signal.SIGALRM, before)
    monkeypatch.setattr("data.loader.SIGNAL_SECONDS", 0.01)
    assert death_of_worker(ConnectionResetError(104, "reset by peer")) is None
    assert death_of_worker(RuntimeError("CUDA out of memory")) is None


def test_a_worker_that_dies_idle(renderer: Renderer) -> None:
    dataset = PackDataset(None, renderer.image_processor, skip=False, num_workers=1)
    sampler = JobSampler(lambda: iter(()), 0)
    error = RuntimeError("DataLoader worker (pid(s) 12345) exited unexpectedly")
    assert "died between two rows: " in str(told_by_worker(error, dataset, sampler))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_picture_is_told_with_its_row(renderer: Renderer, num_workers: int) -> None:
    packs = [[named(renderer, "good", picture(20, 20)), named(renderer, "bad", Broken())]]
    with pytest.raises(DataError, match=r"row mine/bad: image 'b.png' .*: truncated"):
        load(renderer, packs, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_where_rows_may_be_skipped_a_broken_picture_leaves_its_pack(
    renderer: Renderer, num_workers: int
) -> None:
    good = [named(renderer, name, picture(20, 20, seed)) for seed, name in enumerate("ab")]
    bad = named(renderer, "bad", Broken())
    (found,) = load(renderer, [[good[0], bad, good[1]]], num_workers=num_workers, skip=True)
    (wanted,) = load(renderer, [good], num_workers=0)
    reason = "image 'b.png' cannot be read: truncated"
    assert found.pop(BAD_ROWS) == [BadRow("mine", "bad", reason)]
    assert found.keys() == wanted.keys()
    assert same_batch(found, wanted)


def test_a_pack_of_nothing_but_broken_pictures_is_a_batch_still(renderer: Renderer) -> None:
    (batch,) = load(renderer, [[named(renderer, "bad", Broken())]], num_workers=0, skip=True)
    assert len(batch.pop(BAD_ROWS)) == 1
    assert batch.pop(SAMPLES) == []
    assert {name: tuple(value.shape) for name, value in batch.items()} == dict.fromkeys(
        ("input_ids", "position_ids", "labels"), (1, 1)
    )
    assert batch["labels"].item() == -100


def test_pixels_travel_in_shared_memory(renderer: Renderer) -> None:
    pack = [named(renderer, str(seed), picture(40, 40, seed)) for seed in range(40)]
    (batch,) = load(renderer, [pack], num_workers=1)
    pixels = batch["pixel_values"]
    assert pixels.is_shared() and pixels.nbytes > 400_000
    assert len(ForkingPickler.dumps(batch)) < 4_000


def test_a_row_that_is_gone_leaves_its_pack_too(tmp_path: Path, renderer: Renderer) -> None:
    samples, _ = indexed(config(captioned(tmp_path, 6)), renderer, tmp_path / "cache")
    (tmp_path / "pictures/64x64.png").unlink()
    for skip in (True, False):
        dataset = PackDataset(samples, renderer.image_processor, skip=skip, num_workers=0)
        sampler = JobSampler(lambda: iter([Job(0, [3, 4, 5])]), 1)
        if not skip:
            with pytest.raises(DataError, match=r"row mine/rows\.jsonl:5: image .* does not exist"):
                list(make_loader(dataset, sampler, num_workers=0))
            continue
        (batch,) = make_loader(dataset, sampler, num_workers=0)
        (bad,) = batch[BAD_ROWS]
        assert (bad.id, "does not exist" in bad.reason) == ("rows.jsonl:5", True)
        assert int(batch["position_ids"].eq(0).sum()) == 2

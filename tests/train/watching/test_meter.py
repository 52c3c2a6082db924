"""What is counted over steps and ranks, and what becomes of it in metrics."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from data.batches import PackedSample
from train.watching.memory_peaks import RESET, MemoryPeaks
from train.watching.meter import Counts, Meter, add_counts, metrics_of


def sample(source: str, language: str, supervised: int, tiles: int = 0) -> PackedSample:
    return PackedSample(source, "row", language, 10, supervised, tiles, int(tiles > 0))


PACKS = [
    [sample("captions", "en", 2, tiles=3), sample("captions", "hi", 1, tiles=1)],
    [sample("numbers", "hi", 3)],
]
NATS = [[1.0, 2.0, 5.0], [1.0, 1.0, 4.0]]


def stepped(packs: Any = PACKS, nats: Any = NATS, **changes: Any) -> Meter:
    """A meter that has seen one step of a global batch of 12 supervised tokens."""
    meter = Meter(**({"max_tokens": 40} | changes))
    meter.begin_step(packs, 12, 0.5)
    for values in nats:
        meter.add_losses(torch.tensor(values))
    meter.end_step(meter.sample_nats())
    return meter


def test_a_step_is_counted_by_source_and_language() -> None:
    counts = stepped().take()
    assert counts.loss == pytest.approx(14 / 12) and counts.num_steps == 1
    assert counts.nats == {
        "source captions": 8, "language en": 3, "language hi": 11, "source numbers": 6,
    }  # fmt: skip
    assert counts.num == {
        "packs": 2, "samples": 3, "tokens": 30, "supervised_tokens": 6, "tiles": 4, "images": 2,
    }  # fmt: skip
    assert counts.budget_tokens == 80 and counts.data_wait_seconds == 0.5


def test_the_loss_of_a_wrong_row_is_its_own() -> None:
    meter = Meter(max_tokens=40)
    meter.begin_step(PACKS, 12, 0.0)
    for values in ([1.0, float("nan"), 5.0], NATS[1]):
        meter.add_losses(torch.tensor(values))
    nats = meter.sample_nats()
    assert np.isnan(nats).tolist() == [True, False, False]
    assert nats[1:].tolist() == [5, 6]


def test_a_sample_without_a_supervised_token_takes_none_of_the_others() -> None:
    packs = [[sample("a", "en", 0), sample("a", "en", 2), sample("a", "en", 0)]]
    meter = Meter(max_tokens=40)
    meter.begin_step(packs, 2, 0.0)
    meter.add_losses(torch.tensor([1.0, 2.0]))
    assert meter.sample_nats().tolist() == [0, 3, 0]


def test_metrics_of_two_ranks_are_those_of_the_global_batch() -> None:
    """Their packs shared out; losses and speeds add up, seconds do not."""
    one, two = (stepped([PACKS[i]], [NATS[i]]).take() for i in (0, 1))
    one.seconds = two.seconds = 2.0
    one.flops, two.flops = 3e12, 1e12
    one.peak_bytes, two.peak_bytes = {"forward": 2**30}, {"forward": 2**31, "backward": 2**29}
    found = metrics_of([one, two], peak_flops=4e12)
    assert found["train/loss"] == pytest.approx(14 / 12)
    assert found["train/loss/language/hi"] == pytest.approx((5 + 6) / 4)
    assert found["train/loss/language/en"] == pytest.approx(3 / 2)
    assert found["train/loss/source/captions"] == pytest.approx(8 / 3)
    assert found["perf/tokens_per_second"] == 15 and found["perf/images_per_second"] == 1
    assert found["perf/supervised_tokens_per_second"] == 3
    assert found["perf/data_wait_ratio"] == pytest.approx(1.0 / 4.0)
    assert found["perf/mfu"] == pytest.approx(4e12 / (2 * 2 * 4e12))
    assert found["data/padding_ratio"] == pytest.approx(1 - 30 / 80)
    assert found["perf/memory_peak_gib/forward"] == 2
    assert found["perf/memory_peak_gib/backward"] == 0.5
    assert "train/steps_skipped" not in found


def test_without_a_known_peak_no_mfu_is_told() -> None:
    counts = stepped(flops_of=lambda pack: 1e9 * len(pack)).take()
    assert counts.flops == 3e9
    assert "perf/mfu" not in metrics_of([counts])
    assert "perf/mfu" in metrics_of([counts], peak_flops=1e12)


def test_a_step_that_was_left_out_has_no_loss() -> None:
    meter = Meter(max_tokens=40)
    meter.begin_step(PACKS, 12, 0.0)
    meter.counts.num_skipped += 1
    found = metrics_of([meter.take()])
    assert "train/loss" not in found and found["train/steps_skipped"] == 1


def test_what_a_checkpoint_holds_goes_on_as_if_nothing_had_been() -> None:
    """Through JSON, and from the files of two ranks to one."""
    whole = stepped()
    whole.begin_step(PACKS, 12, 0.5)
    for values in NATS:
        whole.add_losses(torch.tensor(values))
    whole.end_step(whole.sample_nats())
    states = [json.loads(json.dumps(stepped([PACKS[i]], [NATS[i]]).state())) for i in (0, 1)]
    again = Meter(max_tokens=40)
    again.load_states(states)
    again.begin_step(PACKS, 12, 0.5)
    for values in NATS:
        again.add_losses(torch.tensor(values))
    again.end_step(again.sample_nats())
    one, two = whole.take(), again.take()
    one.seconds = two.seconds = 1.0
    one.data_wait_seconds = two.data_wait_seconds = 0.0
    assert metrics_of([two]) == pytest.approx(metrics_of([one]), rel=1e-12)  # another order
    same = Meter(max_tokens=40)
    same.load_states([json.loads(json.dumps(stepped().state()))])
    assert metrics_of([same.take()])["train/loss"] == metrics_of([stepped().take()])["train/loss"]


def test_evaluation_is_no_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("train.watching.meter.time.perf_counter", lambda: now[0])
    meter = Meter(max_tokens=40)
    now[0] = 2.0
    meter.pause()
    now[0] = 50.0
    meter.go_on()
    now[0] = 53.0
    assert meter.take().seconds == 5.0


def test_counts_of_no_rank_are_none() -> None:
    assert add_counts([]) == Counts()


@pytest.mark.skipif(torch.cuda.is_available() or not RESET.exists(), reason="reads /proc")
def test_memory_peaks_belong_to_their_phase() -> None:
    peaks = MemoryPeaks()
    peaks.enter("small")
    before = torch.ones(1000)
    peaks.enter("large")
    large = torch.ones(64 * 2**20)  # 256 MiB
    del large
    peaks.enter("after")
    del before
    found = peaks.take()
    assert found["large"] > found["small"] + 200 * 2**20
    assert found["after"] < found["large"] - 200 * 2**20
    assert set(peaks.take()) == {"after"}  # which still goes on

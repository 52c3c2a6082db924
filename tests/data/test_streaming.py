"""Streams: shares of shards, packs on any number of ranks, going on exactly, bad rows."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_pico import encode, noise
from index_pico import SIZES, captioned

from configs.errors import DataError
from configs.schema import BadRow, DataConfig, SourceConfig, SourceKind
from data.build import new_ledger, stream_packs, stream_sources
from data.cache import Cache
from data.loader import Job
from data.packs import Packs
from data.render import Renderer

FIRST = 12  # steps that are compared


def shards(folder: Path, num_shards: int, rows_a_shard: int = 30) -> str:
    """JSONL shards beside one folder of pictures; every row says who it is."""
    captioned(folder, 0)
    for shard in range(num_shards):
        rows = [
            {
                "id": f"{shard}-{number}",
                "image": "pictures/{}x{}.png".format(*SIZES[number % len(SIZES)]),
                "caption": f"Row {number} of {shard}. " + "word " * (number * 5 % 17),
            }
            for number in range(rows_a_shard)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"shard-{shard:02}.jsonl").write_text(lines)
    return str(folder / "shard-*.jsonl")


def config(path: str, *, packs_per_step: int = 4, skip: bool = False, **more: Any) -> DataConfig:
    mine = SourceConfig(kind=SourceKind.files, path=path, id_field="id", **more)
    return DataConfig(
        sources={"mine": mine},
        streaming=True,
        packs_per_step=packs_per_step,
        buffer_rows=20,
        max_tokens=700,
        on_bad_row=BadRow.skip if skip else BadRow.error,
        languages=["en"],
    )


def packs_of(
    data: DataConfig, renderer: Renderer, cache: Path, rank: int = 0, num_ranks: int = 1
) -> Packs:
    sources = stream_sources(data, Cache(cache), seed=5)
    made = stream_packs(sources, data, renderer, new_ledger(data), seed=5)
    return made.packs_of(rank, num_ranks)


def ids(jobs: Iterator[Job], number: int) -> list[list[str]]:
    """The ids in each of the next packs."""
    return [[sample.row.id for sample in job.samples] for job in islice(jobs, number)]  # type: ignore[union-attr]


@pytest.mark.parametrize("num_shards", [1, 3, 4, 9])
def test_an_epoch_is_every_row_once(
    tmp_path: Path, tiling_renderer: Renderer, num_shards: int
) -> None:
    data = config(shards(tmp_path, num_shards))
    (source,) = stream_sources(data, Cache(tmp_path / "cache"), seed=5)
    from data.streaming import Reader

    seen: Counter[str] = Counter()
    for slot in range(4):
        reader = Reader(source, slot, 4, seed=5)
        while True:
            _, found = reader.next()
            if reader.state[0] > 0:
                break
            seen[found.place] += 1
    assert len(seen) == 30 * num_shards
    assert set(seen.values()) == {1}


def test_a_pack_keeps_to_its_budget_and_holds_whole_rows(
    tmp_path: Path, tiling_renderer: Renderer
) -> None:
    packs = packs_of(config(shards(tmp_path, 4)), tiling_renderer, tmp_path / "cache")
    jobs = list(islice(packs.jobs(0), 40))
    assert [job.number for job in jobs] == list(range(40))
    for job in jobs:
        assert sum(sample.num_tokens for sample in job.samples) <= 700  # type: ignore[union-attr]


@pytest.mark.parametrize("num_shards", [1, 4, 9])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_global_batches_are_the_same_on_any_number_of_ranks(
    tmp_path: Path, tiling_renderer: Renderer, num_shards: int, num_ranks: int
) -> None:
    data = config(shards(tmp_path, num_shards))
    alone = ids(packs_of(data, tiling_renderer, tmp_path / "c").jobs(0), 4 * FIRST)
    for rank in range(num_ranks):
        packs = packs_of(data, tiling_renderer, tmp_path / "c", rank, num_ranks)
        assert ids(packs.jobs(0), 4 * FIRST // num_ranks) == alone[rank::num_ranks]


def test_a_rank_opens_only_its_shards(
    tmp_path: Path, tiling_renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = config(shards(tmp_path, 8))
    packs = packs_of(data, tiling_renderer, tmp_path / "cache", 1, 4)
    order = np.random.default_rng([5, 0]).permutation(8).tolist()
    mine = {str(shard) for shard in order[1::4]}
    seen = {row.split("-")[0] for pack in ids(packs.jobs(0), 8) for row in pack}
    assert seen <= mine


@pytest.mark.parametrize("step", [1, 2, 5, 7, 11])
@pytest.mark.parametrize("ranks", [(1, 1), (1, 2), (4, 2)], ids=str)
def test_going_on_from_a_step_is_exact_on_any_number_of_ranks(
    tmp_path: Path, tiling_renderer: Renderer, step: int, ranks: tuple[int, int]
) -> None:
    before, after = ranks
    data = config(shards(tmp_path, 3))
    unbroken = ids(packs_of(data, tiling_renderer, tmp_path / "c").jobs(0), 4 * FIRST)
    states: dict[str, Any] = {}
    for rank in range(before):
        packs = packs_of(data, tiling_renderer, tmp_path / "c", rank, before)
        jobs = packs.jobs(0)
        list(islice(jobs, step * 4 // before + 5))  # workers are ahead of the step
        states |= json.loads(json.dumps(packs.state_at(step)))
    for rank in range(after):
        packs = packs_of(data, tiling_renderer, tmp_path / "c", rank, after)
        packs.go_on(states)
        jobs = packs.jobs(step)
        wanted = unbroken[4 * step + rank :: after]
        assert ids(jobs, len(wanted)) == wanted
        later = json.loads(json.dumps(packs.state_at(FIRST)))  # and a second time
        again = packs_of(data, tiling_renderer, tmp_path / "c", rank, after)
        again.go_on(later)
        assert ids(again.jobs(FIRST), 3) == ids(jobs, 3)


def test_going_on_reads_one_buffer_and_decodes_nothing(
    tmp_path: Path, tiling_renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = config(shards(tmp_path, 4, 400), packs_per_step=1)
    packs = packs_of(data, tiling_renderer, tmp_path / "cache")
    list(islice(packs.jobs(0), 100))
    state = packs.state_at(100)
    rendered: list[str] = []
    render = Renderer.render
    monkeypatch.setattr(
        Renderer,
        "render",
        lambda self, row, **kw: rendered.append(row.id) or render(self, row, **kw),
    )
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    again = packs_of(data, tiling_renderer, tmp_path / "cache")
    again.go_on(state)
    next(again.jobs(100))
    assert len(rendered) == data.buffer_rows


def test_bad_rows_come_once_with_the_packs_they_were_met_for(
    tmp_path: Path, tiling_renderer: Renderer
) -> None:
    path = shards(tmp_path, 2)
    broken = tmp_path / "shard-01.jsonl"
    lines = broken.read_text().splitlines()
    lines[3], lines[7] = "{", json.dumps({"id": "1-7", "caption": ""})
    (tmp_path / "pictures/cut.png").write_bytes(encode(noise(9, 9))[:20])
    lines[9] = json.dumps({"id": "1-9", "caption": "x", "image": "pictures/cut.png"})
    broken.write_text("\n".join(lines) + "\n")
    data = config(path, packs_per_step=2, skip=True)
    packs = packs_of(data, tiling_renderer, tmp_path / "cache")
    jobs = list(islice(packs.jobs(0), 2 * 8))
    met = [(job.number, row.id) for job in jobs for row in job.bad_rows]
    bad_ids = ["shard-01.jsonl:4", "1-7", "1-9"]
    assert Counter(row for _, row in met).keys() == set(bad_ids)
    given = {sample.row.id for job in jobs for sample in job.samples}  # type: ignore[union-attr]
    assert not given & {"1-3", "1-7", "1-9"}
    # Going on behind them does not meet them again; from before, it does.
    last_step = met[2][0] // 2
    states = packs_of(data, tiling_renderer, tmp_path / "cache")
    ahead = states.jobs(0)
    list(islice(ahead, 2 * last_step + 2))
    again = packs_of(data, tiling_renderer, tmp_path / "cache")
    again.go_on(states.state_at(last_step))
    tail = [
        (job.number, row.id)
        for job in islice(again.jobs(last_step), 2 * (8 - last_step))
        for row in job.bad_rows
    ]
    assert tail == [entry for entry in met if entry[0] >= 2 * last_step]


def test_a_bad_row_stops_where_none_may_be_skipped(
    tmp_path: Path, tiling_renderer: Renderer
) -> None:
    path = shards(tmp_path, 1)
    with (tmp_path / "shard-00.jsonl").open("a") as file:
        file.write("this is no JSON\n")
    packs = packs_of(config(path, packs_per_step=1), tiling_renderer, tmp_path / "cache")
    with pytest.raises(DataError, match=r"row mine/shard-00\.jsonl:31: is not JSON") as caught:
        list(islice(packs.jobs(0), 40))
    assert "data.on_bad_row=skip" in str(caught.value)


def test_a_source_of_nothing_but_bad_rows(tmp_path: Path, tiling_renderer: Renderer) -> None:
    (tmp_path / "rows.jsonl").write_text("{\n" * 50)
    data = config(str(tmp_path / "rows.jsonl"), packs_per_step=1, skip=True)
    with pytest.raises(DataError, match="201 rows that cannot be used came before"):
        next(packs_of(data, tiling_renderer, tmp_path / "cache").jobs(0))


def test_fewer_rows_than_streams(tmp_path: Path, tiling_renderer: Renderer) -> None:
    data = config(shards(tmp_path, 1, rows_a_shard=3), packs_per_step=4)
    packs = packs_of(data, tiling_renderer, tmp_path / "cache")
    with pytest.raises(DataError, match="source mine has too few rows to stream"):
        list(islice(packs.jobs(0), 4))


def test_sources_are_drawn_by_their_weights(tmp_path: Path, tiling_renderer: Renderer) -> None:
    data = config(shards(tmp_path, 2), packs_per_step=1, weight=3.0)
    data.sources["udhr"] = SourceConfig(kind=SourceKind.udhr, weight=1.0)
    data.buffer_rows = 200
    packs = packs_of(data, tiling_renderer, tmp_path / "cache")
    jobs = islice(packs.jobs(0), 60)
    drawn = Counter(s.row.source for job in jobs for s in job.samples)  # type: ignore[union-attr]
    assert drawn["mine"] / drawn.total() == pytest.approx(0.75, abs=0.05)
    used = packs.num_used(60)
    assert used == drawn

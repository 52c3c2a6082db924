"""From the data config to what a run trains on: sources, their index, and the packs."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache as cache_results
from itertools import islice

import numpy as np
import numpy.typing as npt

from configs.errors import DataError
from configs.languages import LANGUAGES
from configs.schema import BadRow as OnBadRow
from configs.schema import DataConfig, ModelConfig, SourceConfig
from data.cache import Cache, open_cache
from data.columns import make_row
from data.index import Lengths, SourceIndex, build_index, settings_of
from data.ledger import Ledger
from data.mixture import describe_mixture, sample_weights
from data.pack import PackPlan
from data.packs import Packs, PlannedPacks, StreamedPacks
from data.processor import build_processing_class, texts_for_tokenizer
from data.render import Renderer
from data.rows import Row
from data.samples import SampleTable, join_samples, usable_rows
from data.sources.build import SHIPPED, open_stream, open_table, row_context
from data.sources.records import Columns, Shard
from data.sources.table import RowTable, TableShard
from data.streaming import Budget, SlotStream, StreamSource

log = logging.getLogger(__name__)
Rows = npt.NDArray[np.uint32]  # row numbers
Choose = Callable[[SourceIndex, Rows], Rows]


@dataclass(frozen=True)
class TrainingData:
    """Everything that is trained on."""

    ledger: Ledger
    packs_of: Callable[[int, int], Packs]  # of rank and num_ranks
    samples: SampleTable | None  # None: streamed
    plan: PackPlan | None  # None: streamed

    def fingerprint(self) -> dict[str, object]:
        """Return what tells whether a run goes on with the rows it began with; plain values."""
        if self.samples is None:  # a stream is not known before it is read
            return {}
        hashed = hashlib.blake2b(digest_size=16)
        for values in (self.samples.lengths, self.samples.source_of, self.samples.row_of):
            hashed.update(np.ascontiguousarray(values).tobytes())
        return {"samples": len(self.samples), "digest": hashed.hexdigest()}

    def summary(self) -> dict[str, object]:
        """Return samples and tokens, of all, by source and by language, for a report."""
        if self.samples is None:
            return {}
        lengths, names = self.samples.lengths, self.samples.source_names
        languages = [*LANGUAGES]
        return {
            **_counts(lengths),
            "by_source": {
                name: _counts(lengths[self.samples.source_of == number])
                for number, name in enumerate(names)
            },
            "by_language": {
                languages[number]: _counts(lengths[lengths["language"] == number])
                for number in np.unique(lengths["language"]).tolist()
            },
        }

    def epoch_of(self, step: int) -> float | None:
        """Return how many epochs lie before a step, where that is known."""
        return None if self.plan is None else self.plan.epoch_of(step)


def _counts(lengths: Lengths) -> dict[str, int]:
    return {
        "samples": len(lengths),
        "tokens": int(lengths["num_tokens"].sum()),
        "supervised_tokens": int(lengths["num_supervised"].sum()),
        "tiles": int(lengths["num_tiles"].sum()),
    }


def build_training_data(
    model: ModelConfig, data: DataConfig, *, seed: int
) -> tuple[Renderer, TrainingData]:
    """Return what writes rows for a model, and what is trained on: planned, or streamed.

    Args:
        model: whose tokenizer or processor is loaded, or made of the rows.
        data: sources, budgets, and what is done about bad rows.
        seed: of all that is drawn.

    Raises:
        DataError: a source cannot be read, or a bad row where none may be skipped.
    """
    cache, ledger = open_cache(data.cache_dir), new_ledger(data)
    if data.streaming:
        sources = stream_sources(data, cache, seed=seed)
        renderer = _renderer(model, data, rows_to_come(sources))
        return renderer, stream_packs(sources, data, renderer, ledger, seed=seed)
    tables = open_tables("sources", data, cache, seed=seed)
    renderer = _renderer(model, data, rows_at_hand(tables.values()))
    samples = index_samples(tables, data.sources, data, renderer, cache, ledger, seed=seed)
    return renderer, plan_packs(samples, data, ledger, seed=seed)


def _renderer(model: ModelConfig, data: DataConfig, rows: Iterable[Row]) -> Renderer:
    texts = texts_for_tokenizer(rows, data.languages)  # read only where a tokenizer is made
    return Renderer(build_processing_class(model, texts))


def new_ledger(data: DataConfig) -> Ledger:
    """Return an empty ledger with the config's rules."""
    return Ledger(skip=data.on_bad_row is OnBadRow.skip, max_bad_ratio=data.max_bad_ratio)


def open_tables(group: str, data: DataConfig, cache: Cache, *, seed: int) -> dict[str, RowTable]:
    """Return the rows of each source of `data.sources` or `data.held_out`; none is read yet."""
    sources: dict[str, SourceConfig] = getattr(data, group)
    return {
        name: open_table(f"data.{group}.{name}", name, data, source, cache, seed=seed)
        for name, source in sources.items()
    }


def rows_at_hand(tables: Iterable[RowTable]) -> Iterator[Row]:
    """Yield the rows of all sources that can be read, to train a tokenizer on."""
    for table in tables:
        for number in range(len(table)):
            with suppress(DataError):  # told when rows are measured
                yield table.row(number)


def index_samples(
    tables: dict[str, RowTable],
    sources: dict[str, SourceConfig],
    data: DataConfig,
    renderer: Renderer,
    cache: Cache,
    ledger: Ledger,
    *,
    seed: int,
    choose: Choose | None = None,
) -> SampleTable:
    """Return the usable rows of all sources as samples, measured or from the cache.

    Args:
        tables: rows by source.
        sources: their configs.
        data: what all sources share.
        renderer: of the model's processor.
        cache: where the index is kept.
        ledger: counts rows, and names those left out.
        seed: of what is drawn.
        choose: of a source's index and usable rows, those to take; None: all.

    Raises:
        DataError: a bad row where none may be skipped, too many, or no usable row in a source.
    """
    indexes, chosen = [], []
    for name, table in tables.items():
        source = sources[name]
        index = build_index(
            table,
            renderer,
            cache,
            settings=settings_of(source, seed=seed, urls=data.allow_urls, rules=_rules(data)),
            verify_pixels=data.verify_pixels,
            num_workers=data.num_index_workers,
            fail_early=not ledger.skip,
        )
        usable = usable_rows(
            table,
            index,
            max_tokens=data.max_tokens,
            max_tiles=data.max_tiles,
            check_ids=source.id_field is not None,
        )
        ledger.add(name, len(usable.rows), usable.bad)
        indexes.append(index)
        chosen.append(usable.rows if choose is None else choose(index, usable.rows))
    ledger.check()
    return join_samples(list(tables.values()), indexes, chosen, renderer)


def _rules(data: DataConfig) -> list[int]:
    return [data.max_pixels, data.max_image_bytes]


def plan_packs(
    samples: SampleTable, data: DataConfig, ledger: Ledger, *, seed: int
) -> TrainingData:
    """Return samples with the plan that packs them."""
    weights = mixture_weights(samples, data)
    plan = PackPlan(
        num_tokens=np.ascontiguousarray(samples.lengths["num_tokens"]),
        num_tiles=np.ascontiguousarray(samples.lengths["num_tiles"]),
        weights=weights,
        max_tokens=data.max_tokens,
        max_tiles=data.max_tiles,
        packs_per_step=data.packs_per_step,
        seed=seed,
    )

    def packs_of(rank: int, num_ranks: int) -> Packs:
        return PlannedPacks(plan, rank=rank, num_ranks=num_ranks)

    return TrainingData(ledger, packs_of, samples, plan)


def mixture_weights(samples: SampleTable, data: DataConfig) -> npt.NDArray[np.float64]:
    """Return how often each sample is seen an epoch."""
    return sample_weights(
        samples.source_of,
        samples.lengths["language"],
        [data.sources[name].weight for name in samples.source_names],
        data.language_temperature,
    )


def describe_samples(samples: SampleTable, weights: npt.NDArray[np.float64], ledger: Ledger) -> str:
    """Return the table of what an epoch is made of, by source and by language."""
    counts = dict.fromkeys(samples.source_names, 0)
    for row in ledger.bad:
        counts[row.source] += 1
    lengths = samples.lengths
    return describe_mixture(
        samples.source_names,
        list(LANGUAGES),
        samples.source_of,
        lengths["language"],
        weights,
        lengths["num_tokens"],
        lengths["num_tiles"],
        lengths["num_supervised"],
        counts,
    )


# ------------------------------------------------------------------------------- streamed


def stream_packs(
    sources: list[StreamSource], data: DataConfig, renderer: Renderer, ledger: Ledger, *, seed: int
) -> TrainingData:
    """Return packs of sources that are read in order; nothing is read yet."""
    budget = Budget(data.max_tokens, data.max_tiles, data.buffer_rows, ledger.skip)

    def packs_of(rank: int, num_ranks: int) -> Packs:
        num_slots = data.packs_per_step
        slots = [
            SlotStream(sources, renderer, budget, slot=slot, num_slots=num_slots, seed=seed)
            for slot in range(rank, num_slots, num_ranks)
        ]
        return StreamedPacks(slots)

    return TrainingData(ledger, packs_of, None, None)


def stream_sources(data: DataConfig, cache: Cache, *, seed: int) -> list[StreamSource]:
    """Return the sources of a config as streams; no row is read yet.

    Raises:
        DataError: a source cannot be read, or not in order.
    """
    return [
        _stream_source(name, source, data, cache, seed) for name, source in data.sources.items()
    ]


def rows_to_come(sources: Iterable[StreamSource], num_rows: int = 20_000) -> Iterator[Row]:
    """Yield the first rows of each source that can be read, to train a tokenizer on."""
    for source in sources:
        found = ((shard, row) for shard in source.shards for row in shard.read())
        for shard, row in islice(found, num_rows):
            with suppress(DataError):  # told when they are packed
                yield source.make_row(shard, row.place, row.columns())


def _stream_source(
    name: str, source: SourceConfig, data: DataConfig, cache: Cache, seed: int
) -> StreamSource:
    key = f"data.sources.{name}"
    if source.kind in SHIPPED:
        table = open_table(key, name, data, source, cache, seed=seed)
        return StreamSource(name, source.weight, [TableShard(table)], _row_at_hand, _place)

    field = source.id_field
    context = cache_results(lambda root: row_context(root, data, cache, seed))

    def make(shard: Shard, row_id: str, columns: Columns) -> Row:
        if field is not None and columns.get(field) is None:
            raise DataError(f"has no id: column {field!r} is missing or empty")
        return make_row(name, row_id, columns, source, context(shard.root))

    def row_id(place: str, columns: Columns) -> str:
        told = None if field is None else columns.get(field)
        return place if told is None else str(told)

    return StreamSource(name, source.weight, open_stream(key, source), make, row_id)


def _row_at_hand(shard: Shard, row_id: str, columns: Columns) -> Row:
    row: Row = columns["row"]
    return row


def _place(place: str, columns: Columns) -> str:
    return place

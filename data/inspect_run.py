"""The work of `python -m data.inspect`: measure what would be trained on, and tell it as text.

Tables are made from arrays of lengths; of the rows only those that are shown are rendered, so a
million rows take no more memory than their index. The page is made by `data/inspect_html.py`.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise, zip_longest

import numpy as np
import numpy.typing as npt
from omegaconf import OmegaConf

from configs.errors import DataError
from configs.languages import LANGUAGES
from configs.schema import InspectConfig
from data.build import (
    describe_samples,
    index_samples,
    new_ledger,
    open_tables,
    plan_packs,
    rows_at_hand,
    rows_to_come,
    stream_packs,
    stream_sources,
)
from data.cache import open_cache
from data.histogram import make_histogram, percentiles, text_bars
from data.index import FIELDS, LANGUAGE_NUMBER, Lengths
from data.inspect_html import (
    Chart,
    ShownRow,
    Table,
    check_target,
    page,
    visible,
    write_whole,
)
from data.ledger import BadRow
from data.processor import build_processing_class, texts_for_tokenizer
from data.render import Renderer, Sample

GREEN, PLAIN = "\033[1;32m", "\033[0m"
IMAGE_TOKENS = re.compile(r"(<\|IMG_PATCH\|>)+")
CODES = list(LANGUAGES)
NUM_BAD_SHOWN = 20
# A setting is the same for all rows, and stays; an apostrophe within a word quotes nothing.
VARIES = re.compile(
    r"(?P<setting>data\.\w+=[\d.]+)|(?P<quoted>(?<!\w)'[^']*'|\"[^\"]*\")|\d[\d,]*(\.\d+)?"
)
# Contract: how `data/samples.py` words that a row is over a budget.
TOO_LONG = re.compile(r"has \d+ tokens, more than data\.max_tokens=")
TOO_MANY_TILES = re.compile(r"has \d+ image tiles, more than data\.max_tiles=")


@dataclass(frozen=True)
class Inspection:
    """What would be trained on: arrays over all rows, and any row when it is asked for."""

    lengths: Lengths  # [samples]
    source_of: npt.NDArray[np.integer]  # [samples] number in `source_names`
    source_names: Sequence[str]
    sample: Callable[[int], Sample]
    renderer: Renderer
    packs: Sequence[Sequence[int]]  # of one epoch: numbers of samples
    bad: Sequence[BadRow]
    mixture: str = ""  # table of how sources and languages mix, as text; empty: not known


def inspect(config: InspectConfig) -> None:
    """Write rows and tables to standard output, and the page where one is asked for.

    Raises:
        ConfigError: `html` cannot be a file.
        DataError: a bad row where none may be skipped, or supervision that makes no sense.
    """
    target = None if config.html is None else check_target(config.html)
    found = stream(config) if config.data.streaming else measure(config)
    chosen = choose_rows(found.lengths, found.source_of, config.num_rows, seed=config.seed)
    check_supervision(found, chosen)
    write(tell(found, chosen, config, colour=sys.stdout.isatty()))
    if target is not None:
        size = write_whole(target, pieces_of_page(found, chosen, config))
        write([f"wrote {target}: {len(chosen)} rows, {size:,} bytes"])


def measure(config: InspectConfig) -> Inspection:
    """Return what an index tells of the sources."""
    data = config.data
    cache, ledger = open_cache(data.cache_dir), new_ledger(data)
    tables = open_tables("sources", data, cache, seed=config.seed)
    texts = texts_for_tokenizer(rows_at_hand(tables.values()), data.languages)
    renderer = Renderer(build_processing_class(config.model, texts))
    rows = index_samples(tables, data.sources, data, renderer, cache, ledger, seed=config.seed)
    if len(rows) < data.packs_per_step:  # a few are enough to look at, if not to train on
        data = replace(data, packs_per_step=1)
    plan = plan_packs(rows, data, ledger, seed=config.seed).plan
    assert plan is not None
    mixture = describe_samples(rows, plan.weights, ledger)
    names, packs = rows.source_names, plan.epoch(0)
    return Inspection(
        rows.lengths, rows.source_of, names, rows.sample, renderer, packs, ledger.bad, mixture
    )


def stream(config: InspectConfig) -> Inspection:
    """Return the first `data.buffer_rows` rows of sources that are read in order."""
    data = replace(config.data, packs_per_step=1)
    sources = stream_sources(data, open_cache(data.cache_dir), seed=config.seed)
    texts = texts_for_tokenizer(rows_to_come(sources), data.languages)
    renderer = Renderer(build_processing_class(config.model, texts))
    training = stream_packs(sources, data, renderer, new_ledger(data), seed=config.seed)
    packs: list[Sequence[int]] = []
    samples: list[Sample] = []
    bad: list[BadRow] = []
    for job in training.packs_of(0, 1).jobs(0):
        packs.append(range(len(samples), len(samples) + len(job.samples)))
        samples += [sample for sample in job.samples if isinstance(sample, Sample)]
        bad += [row for row in job.bad_rows if row not in bad]
        if len(samples) >= data.buffer_rows:
            break
    found = listed(samples, list(data.sources), renderer, packs=packs, bad=bad)
    told = f"streamed: the first {len(samples):,} rows that packs are made of; rows of a small set "
    return replace(found, mixture=f"{told}come more than once")


def listed(
    samples: Sequence[Sample],
    source_names: Sequence[str],
    renderer: Renderer,
    *,
    packs: Sequence[Sequence[int]] = (),
    bad: Sequence[BadRow] = (),
) -> Inspection:
    """Return an inspection of samples that are at hand."""
    image_token = getattr(renderer.processing_class, "image_token_id", None)
    lengths = np.zeros(len(samples), FIELDS)
    for number, sample in enumerate(samples):
        lengths[number]["num_tokens"] = sample.num_tokens
        lengths[number]["num_supervised"] = sample.supervised.sum()
        lengths[number]["num_image_tokens"] = (sample.input_ids == image_token).sum()
        lengths[number]["num_tiles"] = sum(sample.num_tiles)
        lengths[number]["language"] = LANGUAGE_NUMBER[sample.row.language]
    source_of = np.array([source_names.index(sample.row.source) for sample in samples], np.uint16)
    return Inspection(
        lengths, source_of, source_names, lambda number: samples[number], renderer, packs, bad
    )


def choose_rows(
    lengths: Lengths, source_of: npt.NDArray[np.integer], num_rows: int, *, seed: int
) -> list[int]:
    """Return numbers of samples to show: `num_rows` a source, spread over its languages.

    The same seed gives the same rows; more of them begin with the same ones.
    """
    chosen: list[int] = []
    for source in np.unique(source_of):
        rng = np.random.default_rng([seed, int(source)])
        mine = np.flatnonzero(source_of == source)
        languages = lengths["language"][mine]
        groups = [
            rng.permutation(mine[languages == language])[:num_rows].tolist()
            for language in rng.permutation(np.unique(languages))
        ]
        turns = zip_longest(*groups)  # the first of each language, then the second
        drawn = [number for turn in turns for number in turn if number is not None]
        chosen += drawn[:num_rows]
    return chosen


def check_supervision(found: Inspection, chosen: Sequence[int]) -> None:
    """Refuse sources of which nothing would be learned, and rows that would teach pictures.

    All rows count for the first; the second was asked of each when it was measured, and is asked
    once more of those that are shown.

    Raises:
        DataError: naming the source or the row.
    """
    learned = np.bincount(
        found.source_of, found.lengths["num_supervised"], minlength=len(found.source_names)
    )
    for number in np.unique(found.source_of):
        if not learned[number]:
            name = found.source_names[number]
            raise DataError(f"source {name}: no token of it would be supervised")
    for number in chosen:
        sample = found.sample(number)
        try:
            found.renderer.check_supervised(sample)
        except DataError as error:
            raise DataError(f"row {sample.row}: {error}") from error


# ------------------------------------------------------------------------------- tables


def tables_of(found: Inspection, config: InspectConfig) -> list[Table]:
    """Return what is told of all rows, as text and on the page alike."""
    return [budget_table(found, config), language_table(found), *ledger_tables(found.bad)]


def budget_table(found: Inspection, config: InspectConfig) -> Table:
    """Return a table of what an epoch's packs are filled with."""
    data = config.data
    taken = np.fromiter(chain.from_iterable(found.packs), np.int64)
    lengths = found.lengths[taken]
    budget, tokens = len(found.packs) * data.max_tokens, total(lengths, "num_tokens")
    supervised, image = total(lengths, "num_supervised"), total(lengths, "num_image_tokens")
    parts = {
        "supervised": supervised,
        "prompt and tags": tokens - supervised - image,
        "image": image,
        "unused": budget - tokens,
    }
    steps = -(-len(found.packs) // data.packs_per_step)
    of_what = "the rows read" if data.streaming else "an epoch"
    note = (
        f"{of_what}: {len(taken):,} rows in {len(found.packs):,} packs of {data.max_tokens:,} "
        f"tokens and {data.max_tiles:,} tiles; {steps:,} steps of {data.packs_per_step:,} packs"
    )
    rows = [[name, f"{number:,}", share(number, budget)] for name, number in parts.items()]
    return Table("token budget", ["tokens that are", "number", "share"], rows, note=note)


def language_table(found: Inspection) -> Table:
    """Return a table of languages: rows, tokens, and how long a row is."""
    rows = []
    for code in np.unique(found.lengths["language"]):
        lengths = found.lengths[found.lengths["language"] == code]
        ranked = percentiles(lengths["num_tokens"])
        tokens = total(lengths, "num_tokens")
        supervised = share(total(lengths, "num_supervised"), tokens)
        sizes = (len(lengths), tokens, ranked["p50"], ranked["p95"], ranked["max"])
        rows.append([CODES[code], *(f"{size:,}" for size in sizes), supervised])
    header = ["language", "rows", "tokens", "p50", "p95", "max", "supervised"]
    return Table("tokens a row by language", header, rows)


def ledger_tables(bad: Sequence[BadRow]) -> list[Table]:
    """Return why rows were left out, by kind of reason, and the first of them; none if none was."""
    if not bad:
        return []
    kinds = Counter(kind_of(row.reason) for row in bad)
    counts = [[reason, f"{number:,}"] for reason, number in kinds.most_common(NUM_BAD_SHOWN)]
    rows = [[f"{row.source}/{row.id}", row.reason] for row in bad[:NUM_BAD_SHOWN]]
    more = len(bad) - len(rows)
    return [
        Table("reasons for leaving rows out", ["reason", "rows"], counts),
        Table("rows left out", ["row", "reason"], rows, frozenset({0, 1}),
              note=f"and {more:,} more" if more else ""),
    ]  # fmt: skip


def kind_of(reason: str) -> str:
    """Return a reason without the names and numbers in it that differ from row to row."""

    def blank(found: re.Match[str]) -> str:
        setting, quoted = found["setting"], found["quoted"]
        return setting or ("'...'" if quoted else "N")

    return VARIES.sub(blank, reason.partition("\n")[0])


def charts_of(found: Inspection, config: InspectConfig) -> list[Chart]:
    """Return histograms of the lengths of rows, with what lies over the budget."""
    wanted = (
        ("tokens", "num_tokens", config.data.max_tokens, TOO_LONG),
        ("supervised tokens", "num_supervised", None, None),
        ("tiles", "num_tiles", config.data.max_tiles, TOO_MANY_TILES),
    )
    charts = []
    for unit, field, budget, reason in wanted:
        values = found.lengths[field]
        notes = [f"{name} {value:,}" for name, value in percentiles(values).items()]
        if budget is not None and reason is not None:
            left_out = sum(bool(reason.match(row.reason)) for row in found.bad)
            over = int((values > budget).sum()) + left_out
            notes.append(f"over the budget of {budget:,}, and so left out: {over:,}")
        charts.append(
            Chart(f"{unit} a row", unit.split()[-1], make_histogram(values), ", ".join(notes))
        )
    return charts


def total(lengths: Lengths, field: str) -> int:
    """Return the sum over rows, in whole numbers that cannot overflow."""
    return int(lengths[field].sum(dtype=np.int64))


def share(part: int, whole: int) -> str:
    """Return `part` of `whole` in percent, or a dash of nothing."""
    return f"{part / whole:.1%}" if whole else "-"


# --------------------------------------------------------------------------------- text


def tell(
    found: Inspection, chosen: Sequence[int], config: InspectConfig, *, colour: bool
) -> Iterator[str]:
    """Yield paragraphs: the chosen rows as the model reads them, then what is told of all."""
    for number in chosen:
        sample = found.sample(number)
        yield f"{describe_sample(sample)}\n{mark_supervised(sample, found.renderer, colour=colour)}"
    if found.mixture:
        yield f"sources and languages\n{found.mixture}"
    for chart in charts_of(found, config):
        yield f"{chart.title}\n{text_bars(chart.histogram, unit=chart.unit)}\n{chart.note}"
    yield from map(text_table, tables_of(found, config))


def describe_sample(sample: Sample) -> str:
    """Return the name of a row, its language and sizes."""
    told = [
        sample.row.language,
        f"{sample.num_tokens:,} tokens",
        f"{int(sample.supervised.sum()):,} supervised",
    ]
    for image, tiles in zip(sample.row.images, sample.num_tiles, strict=True):
        width, height = image.size()
        told.append(f"{width:,} x {height:,} pixels in {tiles} tile{'s' if tiles > 1 else ''}")
    return visible(f"{sample.row} ({', '.join(told)})")


def mark_supervised(sample: Sample, renderer: Renderer, *, colour: bool) -> str:
    """Return the text the model reads; supervised stretches are green, or in [[ ]] when piped."""
    before, after = (GREEN, PLAIN) if colour else ("[[", "]]")
    return "".join(
        f"{before}{visible(text)}{after}" if supervised else visible(text)
        for text, supervised in stretches(sample, renderer)
    )


def stretches(sample: Sample, renderer: Renderer) -> Iterator[tuple[str, bool]]:
    """Yield the text of tokens that follow each other, and whether they are supervised."""
    mask = sample.supervised
    cuts = [0, *(np.flatnonzero(mask[1:] != mask[:-1]) + 1).tolist(), len(mask)]
    for start, end in pairwise(cuts):
        text = renderer.tokenizer.decode(sample.input_ids[start:end].tolist())
        yield IMAGE_TOKENS.sub(_count_image_tokens, text), bool(mask[start])


def _count_image_tokens(found: re.Match[str]) -> str:
    token = "<|IMG_PATCH|>"
    return f"{token}x{len(found.group()) // len(token)}"


def text_table(table: Table) -> str:
    """Return a table with its columns in line: words left, numbers right."""
    lines = [table.header, *table.rows]
    widths = [max(len(visible(line[at])) for line in lines) for at in range(len(table.header))]

    def cell(at: int, text: str) -> str:
        return f"{visible(text):{'<' if at in table.words else '>'}{widths[at]}}"

    told = ["  ".join(cell(at, text) for at, text in enumerate(line)).rstrip() for line in lines]
    return "\n".join([table.title, *told, *([table.note] if table.note else [])])


def write(paragraphs: Iterable[str]) -> None:
    """Write to standard output; what it cannot encode is written out as a number."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        for text in paragraphs:
            whole = text.encode(encoding, "backslashreplace").decode(encoding)
            sys.stdout.write(f"{whole}\n\n")
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --------------------------------------------------------------------------------- page


def facts_of(config: InspectConfig) -> dict[str, str]:
    """Return what matters most of the config, in words."""
    model, data = config.model, config.data
    path = model.path or model.decoder.path or "fresh"
    sources = (
        f"{name} ({source.path or source.kind.value}, weight {source.weight:g})"
        for name, source in data.sources.items()
    )
    return {
        "model": f"{model.kind.value}: {path}",
        "sources": ", ".join(sources),
        "pack": f"{data.max_tokens:,} tokens, {data.max_tiles:,} tiles",
        "bad rows": data.on_bad_row.value,
        "seed": str(config.seed),
    }


def pieces_of_page(
    found: Inspection, chosen: Sequence[int], config: InspectConfig
) -> Iterator[str]:
    """Return the page, row after row, so that no more than one row's pictures are held."""
    processor = found.renderer.image_processor
    return page(
        title="What would be trained on",
        facts=facts_of(config),
        config=OmegaConf.to_yaml(OmegaConf.structured(config)),
        mixture=found.mixture,
        charts=charts_of(found, config),
        tables=tables_of(found, config),
        rows=(
            ShownRow(sample, list(stretches(sample, found.renderer)), processor)
            for sample in map(found.sample, chosen)
        ),
    )

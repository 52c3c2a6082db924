"""What `data.inspect` writes to a terminal or a pipe."""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from configs.schema import InspectConfig
from data.histogram import text_bars
from data.inspect_html import Table, visible
from data.inspect_tables import Inspection, charts_of, tables_of
from data.render import Renderer, Sample

GREEN, PLAIN = "\033[1;32m", "\033[0m"
IMAGE_TOKENS = re.compile(r"(<\|IMG_PATCH\|>)+")


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

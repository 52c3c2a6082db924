"""The work of `python -m data.inspect`."""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace

from configs.errors import DataError
from configs.schema import InspectConfig
from data.build import build_training_data, describe_samples
from data.processor import build_processing_class, texts_for_tokenizer
from data.render import Renderer, Sample
from data.sources.build import new_ledger, read_rows, render_rows

GREEN, PLAIN = "\033[1;32m", "\033[0m"
IMAGE_TOKENS = re.compile(r"(<\|IMG_PATCH\|>)+")


def inspect(config: InspectConfig) -> None:
    """Write the tables and a few rows of each source to standard output."""
    ledger = new_ledger(config.data)
    rows = read_rows(config.data, config.data.sources, ledger, seed=config.seed)
    texts = texts_for_tokenizer(rows, config.data.languages)
    renderer = Renderer(build_processing_class(config.model, texts))
    samples = render_rows(rows, renderer, config.data, ledger)
    # A few rows are enough to look at, however many a step of training takes.
    data = replace(config.data, packs_per_step=1)
    plan = build_training_data(samples, data, ledger, seed=config.seed).plan
    check_supervision(samples, renderer)
    out = [
        describe_samples(samples),
        f"\n{plan.num_steps(1)} steps an epoch, packs of {plan.max_tokens} tokens "
        f"{plan.fill_ratio():.1%} full; {len(ledger.bad)} rows left out",
    ]
    out += [f"left out: {row['source']}/{row['id']}: {row['reason']}" for row in ledger.bad[:20]]
    for group in samples.values():
        for sample in group[: config.num_rows]:
            out.append(f"\n{sample.row} ({sample.row.language}, {sample.num_tokens} tokens)")
            out.append(mark_supervised(sample, renderer, colour=sys.stdout.isatty()))
    sys.stdout.write("\n".join(out) + "\n")


def check_supervision(samples: dict[str, list[Sample]], renderer: Renderer) -> None:
    """Refuse data in which nothing, or an image token, would be supervised.

    Raises:
        DataError: naming the source or the row.
    """
    image_id = getattr(renderer.processing_class, "image_token_id", None)
    for name, group in samples.items():
        if group and not any(sample.supervised.any() for sample in group):
            raise DataError(f"source {name}: no token of it would be supervised")
        for sample in group:
            if image_id is not None and (sample.input_ids[sample.supervised] == image_id).any():
                raise DataError(f"row {sample.row}: an image token would be supervised")


def mark_supervised(sample: Sample, renderer: Renderer, *, colour: bool) -> str:
    """Return the text the model reads; supervised stretches are green, or in [[ ]] when piped."""
    before, after = (GREEN, PLAIN) if colour else ("[[", "]]")
    pieces = []
    for text, supervised in _stretches(sample, renderer):
        short = IMAGE_TOKENS.sub(_count_image_tokens, text)
        pieces.append(f"{before}{short}{after}" if supervised else short)
    return "".join(pieces)


def _count_image_tokens(found: re.Match[str]) -> str:
    token = "<|IMG_PATCH|>"
    return f"{token}x{len(found.group()) // len(token)}"


def _stretches(sample: Sample, renderer: Renderer) -> Iterator[tuple[str, bool]]:
    start = 0
    mask = sample.supervised
    for end in range(1, len(mask) + 1):
        if end == len(mask) or mask[end] != mask[start]:
            yield renderer.tokenizer.decode(sample.input_ids[start:end].tolist()), bool(mask[start])
            start = end

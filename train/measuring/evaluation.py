"""What the model knows, measured on held-out rows: text kept, pictures seen, answers given.

The same code measures while training, in the sweep over alpha, and from the command line. A
`HeldOut` is prepared once and measured on many models.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sacrebleu.metrics.chrf import CHRF

from data.batches import SAMPLES, make_batch
from data.ledger import BadRow
from data.render import Renderer, Sample
from train.measuring.pictures import Pictures
from train.measuring.results import Answer, GroupKind, GroupResult, Results, kind_of

log = logging.getLogger(__name__)
MAX_BATCH_TOKENS = 2048  # packed together when losses are measured


class HeldOut:
    """Held-out rows in groups, ready to be measured on any model with the same processor."""

    def __init__(
        self,
        groups: dict[str, list[Sample]],
        renderer: Renderer,
        *,
        batch_size: int,
        max_new_tokens: int,
        skip: bool = False,
        left_out: Sequence[BadRow] = (),
    ) -> None:
        """Take samples in groups.

        Args:
            groups: held-out samples by source.
            renderer: with the processor of the model to be measured.
            batch_size: conversations answered at once.
            max_new_tokens: of an answer.
            skip: leave out samples whose pictures cannot be decoded, and say so.
            left_out: rows that could not be made samples.

        Raises:
            DataError: a picture cannot be decoded.
        """
        self.renderer = renderer
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.pictures = Pictures(renderer.image_processor)
        readable = partial(self.pictures.check, skip=skip)
        self.groups = {name: list(filter(readable, group)) for name, group in groups.items()}
        self.left_out = [*left_out, *self.pictures.bad]

    @property
    def num_groups(self) -> int:
        """Groups that hold rows."""
        return sum(bool(group) for group in self.groups.values())

    def measure(self, model: Any, *, generate: bool = True) -> Results:
        """Measure every group. The model needs `add_token_losses`; its mode is put back."""
        was_training = model.training
        model.eval()
        with torch.no_grad():
            results = {
                name: self._measure_group(model, group, generate=generate)
                for name, group in self.groups.items()
                if group
            }
        model.train(was_training)
        return results

    def _measure_group(
        self, model: Any, samples: Sequence[Sample], *, generate: bool
    ) -> GroupResult:
        result = GroupResult(kind_of([sample.row for sample in samples]))
        nll = self.losses(model, samples, samples)
        result.add("nll", _by_language(samples, nll), _count(samples))
        if result.kind is GroupKind.captions:
            gap, compared = self._picture_gap(model, samples, nll)
            result.add("picture_gap", gap, _count(compared))
        # A paragraph without a question is for losses alone.
        asked = [sample for sample in samples if len(sample.row.turns) > 1]
        if generate and asked:
            result.answers = self.answers(model, asked)
            exact, chrf = _scores(result.answers)
            result.add("exact_match", exact, _count(asked))
            result.add("chrf", chrf, _count(asked))
        return result

    def _picture_gap(
        self, model: Any, samples: Sequence[Sample], right: Sequence[torch.Tensor]
    ) -> tuple[dict[str, float], list[Sample]]:
        """Return by language the nats a token that another row's picture costs, and the rows.

        A row for which no other picture of as many tiles and with another answer is held out has
        no gap and is left out of the mean.
        """
        others = _other_pictures(samples, [self.pictures.digest(sample) for sample in samples])
        compared = [i for i, other in enumerate(others) if other is not None]
        chosen = [samples[i] for i in compared]
        shown = [samples[other] for other in others if other is not None]
        if not chosen:
            return {}, []
        wrong = _by_language(chosen, self.losses(model, chosen, shown))
        base = _by_language(chosen, [right[i] for i in compared])
        return {code: value - base[code] for code, value in wrong.items()}, chosen

    def losses(
        self, model: Any, samples: Sequence[Sample], shown: Sequence[Sample]
    ) -> list[torch.Tensor]:
        """Return for each sample [S] nats of its supervised tokens, with pictures of `shown`."""
        found: list[torch.Tensor] = []
        for chunk in _chunks(samples):
            batch = make_batch([_without_images(samples[i]) for i in chunk], None)
            told = batch.pop(SAMPLES)
            tiles = [self.pictures.tiles(shown[i]) for i in chunk if shown[i].row.images]
            if tiles:
                batch["pixel_values"] = torch.cat(tiles).to(model.dtype)
            batch = {key: value.to(model.device) for key, value in batch.items()}
            losses = model(**batch, token_losses=True).cpu()
            found += losses.split([sample.num_supervised for sample in told])
        return found

    def answers(self, model: Any, samples: Sequence[Sample]) -> list[Answer]:
        """Answer the last question of each sample by greedy search, in batches."""
        tokenizer = self.renderer.tokenizer
        answers: list[str] = [""] * len(samples)
        # Alike lengths together: less padding, and fewer that wait for the longest answer.
        order = sorted(range(len(samples)), key=lambda i: samples[i].num_tokens)
        for start in range(0, len(order), self.batch_size):
            chunk = order[start : start + self.batch_size]
            inputs = self._prompts([samples[i] for i in chunk], model)
            out = model.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=self.renderer.stop_token_id,
            )
            texts = tokenizer.batch_decode(
                out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            for i, text in zip(chunk, texts, strict=True):
                answers[i] = text
        return [
            Answer(
                row_id=str(sample.row),
                language=sample.row.language,
                question=sample.row.turns[-2].text,
                reference=sample.row.turns[-1].text,
                answer=text,
            )
            for sample, text in zip(samples, answers, strict=True)
        ]

    def _prompts(self, samples: Sequence[Sample], model: Any) -> dict[str, torch.Tensor]:
        """Return left-padded prompts: input_ids and attention_mask [B, T], pixel_values."""
        encoded = self.renderer.tokenizer(
            [self.renderer.prompt(sample.row) for sample in samples],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        inputs = {name: encoded[name].to(model.device) for name in ("input_ids", "attention_mask")}
        shown = [self.pictures.tiles(sample) for sample in samples if sample.row.images]
        if shown:
            inputs["pixel_values"] = torch.cat(shown).to(model.device, model.dtype)
        return inputs


def _chunks(samples: Sequence[Sample]) -> Iterator[list[int]]:
    chunk: list[int] = []
    used = 0
    for index, sample in enumerate(samples):
        if chunk and used + sample.num_tokens > MAX_BATCH_TOKENS:
            yield chunk
            chunk, used = [], 0
        chunk.append(index)
        used += sample.num_tokens
    yield chunk


def _without_images(sample: Sample) -> Sample:
    row = sample.row
    bare = type(row)(row.id, row.source, row.language, row.turns)
    return Sample(bare, sample.input_ids, sample.supervised, sample.num_tiles)


def _other_pictures(samples: Sequence[Sample], digests: Sequence[str]) -> list[int | None]:
    """Return for each sample the next one with another picture, of as many tiles, and another
    answer. One picture captioned in several languages is one picture."""
    total = len(samples)

    def fits(index: int, other: int) -> bool:
        return (
            samples[other].num_tiles == samples[index].num_tiles
            and samples[other].row.turns[-1].text != samples[index].row.turns[-1].text
            and digests[other] != digests[index]
        )

    return [
        next((j % total for j in range(i + 1, i + total) if fits(i, j % total)), None)
        for i in range(total)
    ]


def _count(samples: Sequence[Sample]) -> dict[str, int]:
    """Return the number of rows of each language."""
    return dict(sorted(Counter(sample.row.language for sample in samples).items()))


def _by_language(samples: Sequence[Sample], losses: Sequence[torch.Tensor]) -> dict[str, float]:
    """Return the mean nats a token of each language."""
    groups: dict[str, list[torch.Tensor]] = {}
    for sample, values in zip(samples, losses, strict=True):
        groups.setdefault(sample.row.language, []).append(values)
    return {code: float(torch.cat(groups[code]).double().mean()) for code in sorted(groups)}


def _scores(answers: Sequence[Answer]) -> tuple[dict[str, float], dict[str, float]]:
    """Return exact match and chrF (sacrebleu) by language."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.language, []).append(answer)
    exact = {code: float(np.mean([a.is_exact for a in groups[code]])) for code in sorted(groups)}
    chrf = {
        code: CHRF().corpus_score(
            [a.answer for a in groups[code]], [[a.reference for a in groups[code]]]
        ).score
        for code in sorted(groups)
    }  # fmt: skip
    return exact, chrf

"""A model reads held-out samples: their losses in packed batches, its answers in padded ones."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from data.batches import SAMPLES, make_batch
from data.render import Renderer, Sample
from train.measuring.conversations import Scored
from train.measuring.original import AtHand
from train.measuring.pictures import Pictures

MAX_BATCH_TOKENS = 2048  # packed together when losses are measured
# Of prompts that are answered together, padding counted: their keys and values are held at once.
MAX_PROMPT_TOKENS, MAX_PROMPT_TILES = 16_384, 64
LossAndKL = tuple[torch.Tensor, torch.Tensor | None]


class Reader(Protocol):
    """How one model is asked; batches are decided apart from the asking, to be shared out."""

    @property
    def has_original(self) -> bool:
        """Whether there is an original to be held against."""
        ...

    def chunks(self, scored: Sequence[Scored]) -> list[list[int]]:
        """Return what is read together, as numbers of samples."""
        ...

    def losses(self, scored: Sequence[Scored], *, diverges: bool) -> Sequence[LossAndKL]:
        """Return for each [S] nats of its supervised tokens, and [S] nats of KL where asked for."""
        ...

    def batches(self, samples: Sequence[Sample], batch_size: int) -> list[list[int]]:
        """Return what is answered together, as numbers of samples."""
        ...

    def answers(self, samples: Sequence[Sample], *, is_blank: bool, in_step: bool) -> list[str]:
        """Answer the last question of each sample by greedy search."""
        ...


class PackedReader:
    """A model with `add_token_losses`, and the renderer of its training."""

    def __init__(
        self,
        model: Any,
        renderer: Renderer,
        pictures: Pictures,
        max_new_tokens: int,
        original: AtHand | None = None,
    ) -> None:
        """Take a model in eval mode."""
        self._model, self._renderer, self._pictures = model, renderer, pictures
        self._max_new_tokens, self._original = max_new_tokens, original

    @property
    def has_original(self) -> bool:
        """Whether there is an original to be held against."""
        return self._original is not None

    def chunks(self, scored: Sequence[Scored]) -> list[list[int]]:
        """Return samples in order, as many as MAX_BATCH_TOKENS hold.

        Those with pictures are apart from those without: vision parts are run for a chunk or
        not, on all ranks of an engine alike.
        """
        return [
            chunk
            for numbers in _by_pictures([item.sample for item in scored])
            for chunk in _filled(numbers, [item.sample.num_tokens for item in scored])
        ]

    def losses(self, scored: Sequence[Scored], *, diverges: bool = False) -> list[LossAndKL]:
        """Return for each [S] nats of its supervised tokens, and [S] nats of KL where asked for."""
        batch = make_batch([_without_images(item.sample) for item in scored], None)
        told = batch.pop(SAMPLES)
        tiles = [self._tiles(item.shown, item.is_blank) for item in scored if item.shown.row.images]
        if tiles:
            batch["pixel_values"] = torch.cat(tiles).to(self._model.dtype)
        batch = {key: value.to(self._model.device) for key, value in batch.items()}
        lengths = [sample.num_supervised for sample in told]
        if not diverges:
            losses = self._model(**batch, token_losses=True)
            return [(each, None) for each in _apart(losses, lengths)]
        assert self._original is not None
        original = self._original.of(batch)
        losses, divergence = self._model(**batch, token_losses=True, original=original)
        return list(zip(_apart(losses, lengths), _apart(divergence, lengths), strict=True))

    def batches(self, samples: Sequence[Sample], batch_size: int) -> list[list[int]]:
        """Return alike lengths together: less padding, fewer that wait for the longest answer."""
        found: list[list[int]] = []
        for numbers in _by_pictures(samples):
            order = sorted(numbers, key=lambda i: samples[i].num_tokens)
            found += _batches_of(order, samples, batch_size)
        return found

    def answers(
        self, samples: Sequence[Sample], *, is_blank: bool = False, in_step: bool = False
    ) -> list[str]:
        """Answer the last question of each sample by greedy search, as one batch.

        Args:
            samples: whose last questions are asked.
            is_blank: show blank pictures in place of theirs.
            in_step: go on until every process of the run is done.
        """
        tokenizer = self._renderer.tokenizer
        inputs = self._prompts(samples, is_blank)
        out = self._model.generate(
            **inputs,
            max_new_tokens=self._max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=self._renderer.stop_token_id,
            synced_gpus=in_step,
        )
        answers: list[str] = tokenizer.batch_decode(
            out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return answers

    def _prompts(self, samples: Sequence[Sample], is_blank: bool) -> dict[str, torch.Tensor]:
        """Return left-padded prompts: input_ids and attention_mask [B, T], pixel_values."""
        encoded = self._renderer.tokenizer(
            [self._renderer.prompt(sample.row) for sample in samples],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        device = self._model.device
        inputs = {name: encoded[name].to(device) for name in ("input_ids", "attention_mask")}
        shown = [self._tiles(sample, is_blank) for sample in samples if sample.row.images]
        if shown:
            inputs["pixel_values"] = torch.cat(shown).to(device, self._model.dtype)
        return inputs

    def _tiles(self, sample: Sample, is_blank: bool) -> torch.Tensor:
        """Return [N, 3, H, W]; blank ones are 0 after normalisation: SigLIP's middle grey."""
        tiles = self._pictures.tiles(sample)
        return torch.zeros_like(tiles) if is_blank else tiles


def _apart(values: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
    """Return the values of each sample in memory of their own: views are sent to ranks whole."""
    return [each.clone() for each in values.cpu().split(list(lengths))]


def _by_pictures(samples: Sequence[Sample]) -> Iterator[list[int]]:
    """Yield the numbers of samples with pictures, and of those without, where there are any."""
    for with_pictures in (True, False):
        numbers = [i for i, s in enumerate(samples) if bool(s.row.images) is with_pictures]
        if numbers:
            yield numbers


def _filled(numbers: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    chunk: list[int] = []
    used = 0
    for number in numbers:
        if chunk and used + lengths[number] > MAX_BATCH_TOKENS:
            yield chunk
            chunk, used = [], 0
        chunk.append(number)
        used += lengths[number]
    yield chunk


def _batches_of(
    order: Sequence[int], samples: Sequence[Sample], batch_size: int
) -> Iterator[list[int]]:
    """Yield batches of rising length: as many as are allowed, and as memory has to hold at once."""
    batch: list[int] = []
    tiles = 0
    for number in order:
        longest = max(1, samples[number].num_tokens)  # of those so far
        more = sum(samples[number].num_tiles)
        full = len(batch) == batch_size or (len(batch) + 1) * longest > MAX_PROMPT_TOKENS
        if batch and (full or tiles + more > MAX_PROMPT_TILES):
            yield batch
            batch, tiles = [], 0
        batch.append(number)
        tiles += more
    if batch:
        yield batch


def _without_images(sample: Sample) -> Sample:
    row = sample.row
    bare = type(row)(row.id, row.source, row.language, row.turns)
    return Sample(bare, sample.input_ids, sample.supervised, sample.num_tiles)

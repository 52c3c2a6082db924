"""What the model knows, measured on held-out rows: text kept, pictures seen, answers given.

The same code measures while training, in the sweep over alpha, and from the command line. A
`HeldOut` is prepared once and measured on many models. docs/EVALUATION.md tells each measure.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

import torch

from data.ledger import BadRow
from data.render import Sample
from train.measuring.conversations import Scored, other_answers, other_pictures, with_answer_of
from train.measuring.original import AtHand
from train.measuring.pictures import Pictures
from train.measuring.reading import PackedReader, Reader
from train.measuring.results import (
    BLIND,
    Answer,
    ByLanguage,
    GroupKind,
    GroupResult,
    Results,
    kind_of,
)
from train.measuring.scores import score_answers
from train.measuring.shares import ALONE, Ranks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class What:
    """What is measured beside losses and the picture gap."""

    generate: bool = True  # answers
    choose: bool = True  # among captions, where the rows were prepared for it
    blind: bool = False  # everything of pictures once more with the pictures blanked


class HeldOut:
    """Held-out rows in groups, ready to be measured on any model with the same processor."""

    def __init__(
        self,
        groups: dict[str, list[Sample]],
        renderer: Any,
        *,
        pictures: Any = None,
        batch_size: int,
        max_new_tokens: int,
        max_answers: int | None = None,
        num_choices: int = 0,
        skip: bool = False,
        left_out: Sequence[BadRow] = (),
    ) -> None:
        """Take samples in groups.

        Args:
            groups: held-out samples by source.
            renderer: a `Renderer` with the processor of the model to be measured.
            pictures: what decodes and keeps them; None: tiles of the renderer's processor.
            batch_size: conversations answered at once.
            max_new_tokens: of an answer.
            max_answers: rows of a group and language that are answered; None: all.
            num_choices: captions among which the right one is to be found; 0: not measured.
            skip: leave out samples whose pictures cannot be decoded, and say so.
            left_out: rows that could not be made samples.

        Raises:
            DataError: a picture cannot be decoded.
        """
        self.renderer = renderer
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.max_answers, self.num_choices = max_answers, num_choices
        self.pictures = Pictures(renderer.image_processor) if pictures is None else pictures
        readable = partial(self.pictures.check, skip=skip)
        self.groups = {name: list(filter(readable, group)) for name, group in groups.items()}
        self.left_out = [*left_out, *self.pictures.bad]
        self._partners: dict[int, list[int | None]] = {}  # by group

    @property
    def num_groups(self) -> int:
        """Groups that hold rows."""
        return sum(bool(group) for group in self.groups.values())

    @property
    def num_rows(self) -> int:
        """Rows of all groups."""
        return sum(map(len, self.groups.values()))

    def measure(
        self,
        model: Any,
        *,
        generate: bool = True,
        choose: bool = True,
        blind: bool = False,
        text_losses_alone: bool = False,
        ranks: Ranks = ALONE,
        original: AtHand | None = None,
    ) -> Results:
        """Measure every group. The model needs `add_token_losses`; its mode is put back.

        Args:
            model: whose answers and losses are measured.
            generate: let it answer.
            choose: let it choose among captions, where `num_choices` were asked for.
            blind: measure what is about pictures once more with the pictures blanked.
            text_losses_alone: measure the losses of groups of text, and nothing else.
            ranks: processes that measure together; all get all results.
            original: of which text rows tell how far the model is from it (KL).
        """
        reader = self._reader(model, original)
        was_training = getattr(model, "training", False)
        if was_training:
            model.eval()
        try:
            with torch.no_grad():
                return {
                    name: _Group(self, self._choices[name], reader, ranks).measure(
                        group, What(generate and not text_losses_alone, choose, blind)
                    )
                    for name, group in self.groups.items()
                    if group and not (text_losses_alone and _has_pictures(group))
                }
        finally:
            if was_training:
                model.train()

    def _reader(self, model: Any, original: AtHand | None) -> Reader:
        return PackedReader(model, self.renderer, self.pictures, self.max_new_tokens, original)

    @cached_property
    def _choices(self) -> dict[str, list[list[Sample]]]:
        """For each sample of a group, it and its rivals with other captions; empty without any."""
        found: dict[str, list[list[Sample]]] = {}
        for name, group in self.groups.items():
            found[name] = []
            if self.num_choices and kind_of([s.row for s in group]) is GroupKind.captions:
                rivals = other_answers(group, self.digests(group), self.num_choices - 1)
                if not all(rivals):
                    log.info("held-out %s: of %d rows %d lack %d other captions of their language",
                             name, len(group), rivals.count([]), self.num_choices - 1)  # fmt: skip
                found[name] = [
                    [s, *(with_answer_of(self.renderer, s, group[j]) for j in others)]
                    for s, others in zip(group, rivals, strict=True)
                    if others
                ]
        return found

    def partners(self, samples: Sequence[Sample]) -> list[int | None]:
        """Return for each sample of a group whose picture is shown in the place of its own."""
        key = id(samples)
        if key not in self._partners:
            self._partners[key] = other_pictures(samples, self.digests(samples))
        return self._partners[key]

    def digests(self, samples: Sequence[Sample]) -> list[str]:
        """Return what tells the pictures of samples apart."""
        return [self.pictures.digest(sample) for sample in samples]


class _Group:
    """One group of rows while it is measured on one model."""

    def __init__(
        self, held_out: HeldOut, choices: list[list[Sample]], reader: Reader, ranks: Ranks
    ) -> None:
        self._held_out, self._choices = held_out, choices
        self._reader, self._ranks = reader, ranks

    def measure(self, samples: Sequence[Sample], what: What) -> GroupResult:
        """Return everything that is asked for."""
        result = GroupResult(kind_of([sample.row for sample in samples]))
        right = self._add_losses(result, samples)
        has_pictures = result.kind is GroupKind.captions
        if has_pictures:
            self._add_gap(result, samples, right)
            blind = self._add_blind_losses(result, samples) if what.blind else None
            if what.choose:
                self._add_choice(result, samples, right)
                if blind is not None:
                    self._add_choice(result, samples, blind, is_blank=True)
        # A paragraph without a question is for losses alone.
        asked = [sample for sample in samples if len(sample.row.turns) > 1]
        asked = first_of_each_language(asked, self._held_out.max_answers)
        if what.generate and asked:
            self._add_answers(result, asked, blind=what.blind and has_pictures)
        return result

    def _add_losses(self, result: GroupResult, samples: Sequence[Sample]) -> list[torch.Tensor]:
        diverges = result.kind is GroupKind.text and self._reader.has_original
        scored = [Scored(sample, sample) for sample in samples]
        found = self._losses(scored, diverges=diverges)
        nll = [losses for losses, _ in found]
        result.add("nll", _by_language(samples, nll), _count(samples))
        if diverges:
            divergence = [values for _, values in found if values is not None]
            result.add("kl", _by_language(samples, divergence), _count(samples))
        return nll

    def _add_gap(
        self, result: GroupResult, samples: Sequence[Sample], right: Sequence[torch.Tensor]
    ) -> None:
        """By language the nats a token that another row's picture costs.

        A row for which no other picture of as many tiles and with another answer is held out has
        no gap and is left out of the mean.
        """
        others = self._held_out.partners(samples)
        pairs = [(i, other) for i, other in enumerate(others) if other is not None]
        if not pairs:
            return
        chosen = [samples[i] for i, _ in pairs]
        wrong = self._losses([Scored(samples[i], samples[other]) for i, other in pairs])
        base = _by_language(chosen, [right[i] for i, _ in pairs])
        shuffled = _by_language(chosen, [losses for losses, _ in wrong])
        gap = {code: value - base[code] for code, value in shuffled.items()}
        result.add("picture_gap", gap, _count(chosen))

    def _add_blind_losses(
        self, result: GroupResult, samples: Sequence[Sample]
    ) -> list[torch.Tensor]:
        found = self._losses([Scored(sample, sample, is_blank=True) for sample in samples])
        blind = [losses for losses, _ in found]
        result.add(f"{BLIND}nll", _by_language(samples, blind), _count(samples))
        return blind

    def _add_choice(
        self,
        result: GroupResult,
        samples: Sequence[Sample],
        losses: Sequence[torch.Tensor],
        *,
        is_blank: bool = False,
    ) -> None:
        """By language the share of rows whose own caption has the lowest loss, nats a token.

        Args:
            result: to add to.
            samples: all of the group.
            losses: of their own captions.
            is_blank: whether their pictures are blanked.
        """
        if not self._choices:
            return
        own = {id(sample): _mean(nats) for sample, nats in zip(samples, losses, strict=True)}
        rivals = [Scored(s, row[0], is_blank) for row in self._choices for s in row[1:]]
        means = iter([_mean(nats) for nats, _ in self._losses(rivals)])
        right = []
        for row in self._choices:
            others = [next(means) for _ in row[1:]]
            right.append(torch.tensor([float(own[id(row[0])] < min(others))]))
        rows = [row[0] for row in self._choices]
        name = f"{BLIND if is_blank else ''}choice_accuracy"
        result.add(name, _by_language(rows, right), _count(rows))

    def _add_answers(self, result: GroupResult, samples: Sequence[Sample], *, blind: bool) -> None:
        said = self._answers(samples, is_blank=False)
        blind_said = self._answers(samples, is_blank=True) if blind else [None] * len(samples)
        result.answers = [
            Answer(
                row_id=str(sample.row),
                language=sample.row.language,
                question=sample.row.turns[-2].text,
                reference=sample.row.turns[-1].text,
                answer=text,
                blind_answer=blind_text,
            )
            for sample, text, blind_text in zip(samples, said, blind_said, strict=True)
        ]
        for prefix, texts in (("", said), (BLIND, blind_said)):
            told = [text for text in texts if text is not None]
            if told:
                for name, values in self._score(result, told).items():
                    result.add(f"{prefix}{name}", values, _count(samples))

    def _score(self, result: GroupResult, said: list[str]) -> dict[str, ByLanguage]:
        return score_answers(
            [answer.language for answer in result.answers],
            said,
            [answer.reference for answer in result.answers],
            captions=result.kind is GroupKind.captions,
        )

    def _losses(
        self, scored: Sequence[Scored], *, diverges: bool = False
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Return for each [S] nats of its supervised tokens, and [S] nats of KL where asked for."""
        work = partial(self._reader.losses, diverges=diverges)
        return self._in_batches(scored, self._reader.chunks(scored), work)

    def _answers(self, samples: Sequence[Sample], *, is_blank: bool) -> list[str]:
        work = partial(self._reader.answers, is_blank=is_blank, in_step=self._ranks.in_step)
        batches = self._reader.batches(samples, self._held_out.batch_size)
        return self._in_batches(samples, batches, work)

    def _in_batches(
        self,
        items: Sequence[Any],
        batches: Sequence[Sequence[int]],
        work: Callable[[list[Any]], Sequence[Any]],
    ) -> list[Any]:
        """Return what `work` makes of each item, batch by batch over all ranks."""
        found: list[Any] = [None] * len(items)
        # Batches with pictures apart from those without: in step, all ranks run the vision parts.
        for _, alike in itertools.groupby(batches, lambda batch: bool(items[batch[0]].row.images)):
            together = list(alike)
            done = self._ranks.map(lambda batch: list(work([items[i] for i in batch])), together)
            for batch, values in zip(together, done, strict=True):
                for index, value in zip(batch, values, strict=True):
                    found[index] = value
        return found


class HasLanguage(Protocol):
    """A sample or an answer."""

    @property
    def language(self) -> str:
        """ISO 639-1."""
        ...


L = TypeVar("L", bound=HasLanguage)


def first_of_each_language(items: Sequence[L], most: int | None) -> list[L]:
    """Return the first ones of each language, `most` at most; None: all."""
    kept: list[L] = []
    seen: Counter[str] = Counter()
    for item in items:
        seen[item.language] += 1
        if most is None or seen[item.language] <= most:
            kept.append(item)
    return kept


def _has_pictures(samples: Sequence[Sample]) -> bool:
    return kind_of([sample.row for sample in samples]) is not GroupKind.text


def _count(samples: Sequence[Sample]) -> dict[str, int]:
    """Return the number of rows of each language."""
    return dict(sorted(Counter(sample.row.language for sample in samples).items()))


def _mean(losses: torch.Tensor) -> float:
    return float(losses.double().mean())


def _by_language(samples: Sequence[Sample], values: Sequence[torch.Tensor]) -> ByLanguage:
    """Return the mean of all values (nats a token) of each language."""
    groups: dict[str, list[torch.Tensor]] = {}
    for sample, found in zip(samples, values, strict=True):
        groups.setdefault(sample.row.language, []).append(found)
    return {code: float(torch.cat(groups[code]).double().mean()) for code in sorted(groups)}

"""Samples made of held-out samples: with another answer, with another picture, without one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from data.render import Renderer, Sample
from data.rows import Row


@dataclass(frozen=True)
class Scored:
    """A sample whose answer is scored, and what is shown with it."""

    sample: Sample
    shown: Sample  # whose pictures are
    is_blank: bool = False  # as many tiles, without anything on them

    @property
    def row(self) -> Row:
        """The row that is scored."""
        return self.sample.row


def other_pictures(samples: Sequence[Sample], digests: Sequence[str]) -> list[int | None]:
    """Return for each sample the next one with another picture, of as many tiles, and another
    answer. One picture captioned in several languages is one picture.

    Of its own language, where there is one: another word for the same thing is no other answer.
    """
    found = []
    for i, sample in enumerate(samples):
        other: int | None = None
        for j in _after(i, len(samples)):
            if samples[j].num_tiles != sample.num_tiles or not _differ(samples, digests, i, j):
                continue
            if samples[j].language == sample.language:
                other = j
                break
            other = j if other is None else other
        found.append(other)
    return found


def other_answers(
    samples: Sequence[Sample], digests: Sequence[str], num_others: int
) -> list[list[int]]:
    """Return for each sample the next `num_others` ones of its language with other pictures.

    All answers differ from each other. A sample with fewer such others has none: what is left to
    chance would not be the same for all.
    """
    found = []
    for i, sample in enumerate(samples):
        taken = {sample.row.turns[-1].text: i}
        for j in _after(i, len(samples)):
            if len(taken) > num_others:
                break
            alike = samples[j].row.language == sample.row.language
            if alike and _differ(samples, digests, i, j):
                taken.setdefault(samples[j].row.turns[-1].text, j)
        others = [j for j in taken.values() if j != i]
        found.append(others if len(others) == num_others else [])
    return found


def with_answer_of(renderer: Renderer, sample: Sample, other: Sample) -> Sample:
    """Return a sample as it would be with the last answer of another one."""
    turns = (*sample.row.turns[:-1], other.row.turns[-1])
    return renderer.render(replace(sample.row, turns=turns))


def _after(index: int, total: int) -> Iterator[int]:
    """Yield the other numbers below `total`, from the next one on and around."""
    for number in range(index + 1, index + total):
        yield number % total


def _differ(samples: Sequence[Sample], digests: Sequence[str], i: int, j: int) -> bool:
    different_answers = samples[i].row.turns[-1].text != samples[j].row.turns[-1].text
    return different_answers and digests[i] != digests[j]

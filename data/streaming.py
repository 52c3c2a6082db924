"""Packs from sources that are read in order, for sets too large to index.

A global batch has `packs_per_step` slots, and each slot is a stream of its own: it reads its share
of the shards, fills a buffer of rows, packs them, gives the packs out, and fills the buffer again.
Which rank serves a slot changes nothing of what the slot gives, so global batch k is the same on
any number of ranks. What a buffer holds follows from where reading stood before it: that place is
kept in checkpoints, and going on from a step reads one buffer again (text and headers, no pixels).
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from configs.errors import DataError
from data.ledger import BadRow, examples, refusal
from data.pack import pack_window
from data.render import Renderer, Sample
from data.rows import Row
from data.sources.records import Columns, Found, Shard

MAX_BAD_SHARE = 10  # bad rows met while one buffer is filled, as a multiple of its rows


@dataclass(frozen=True)
class StreamSource:
    """A source that is read in order."""

    name: str
    weight: float  # how often it is drawn from, relative to the others
    shards: Sequence[Shard]
    make_row: Callable[[Shard, str, Columns], Row]  # of a row's place and columns
    row_id: Callable[[str, Columns], str]


@dataclass(frozen=True)
class Place:
    """Where a slot stands before it fills its buffer. Plain values: it is written as JSON."""

    window: int  # buffers filled before
    first_pack: int  # packs given out before
    readers: dict[str, list[Any]]  # by source: epoch, shard, cursor
    num_used: dict[str, int]  # samples given out before, by source


class Reader:
    """The rows of one source that belong to one slot, epoch after epoch.

    Slots share out shards; where there is not one for each, several slots read one shard and each
    takes every n-th row of it.
    """

    def __init__(self, source: StreamSource, slot: int, num_slots: int, seed: int) -> None:
        """Stand before the first row."""
        self.source, self.slot, self.num_slots, self.seed = source, slot, num_slots, seed
        self.state: list[Any] = [0, 0, None]  # epoch, shard of this slot, cursor in it
        self._rows: Iterator[Found] | None = None
        self._shared: tuple[int, list[tuple[Shard, int, int]]] = (-1, [])  # epoch, its share

    def go_to(self, state: list[Any]) -> None:
        """Stand where `state` was taken."""
        if state != self.state:
            self.state, self._rows = list(state), None

    def next(self) -> tuple[Shard, Found]:
        """Return the next row of this slot, and its shard.

        Raises:
            DataError: the source has no row for this slot.
        """
        num_epochs = 0
        while num_epochs < 2:  # the rest of one and a whole one
            epoch, at, cursor = self.state
            shards = self._share(epoch)
            shard, step, part = shards[at]
            if self._rows is None:
                self._rows = shard.read(cursor)
            for found in self._rows:
                self.state[2] = found.after
                if found.number % step == part:
                    return shard, found
            self._rows, is_last = None, at + 1 == len(shards)
            self.state = [epoch + 1, 0, None] if is_last else [epoch, at + 1, None]
            num_epochs += is_last
        raise DataError(
            f"source {self.source.name} has too few rows to stream: data.packs_per_step="
            f"{self.num_slots} streams read it, and one of them found no row; leave out "
            "data.streaming or lower data.packs_per_step"
        )

    def _share(self, epoch: int) -> list[tuple[Shard, int, int]]:
        """Return this slot's shards in an epoch; it takes rows `part`, `part + step`, ... of each.

        Whole shards while there is one for every slot; of those left over several slots share one.
        """
        if self._shared[0] != epoch:
            shards, num_slots = self.source.shards, self.num_slots
            order = np.random.default_rng([self.seed, epoch]).permutation(len(shards)).tolist()
            whole = len(shards) // num_slots * num_slots
            mine = [(shards[i], 1, 0) for i in order[self.slot : whole : num_slots]]
            left = len(shards) - whole
            if left:
                shard = self.slot % left
                step = len(range(shard, num_slots, left))
                mine.append((shards[order[whole + shard]], step, self.slot // left))
            self._shared = epoch, mine
        return self._shared[1]


@dataclass(frozen=True)
class Budget:
    """How packs are put together."""

    max_tokens: int
    max_tiles: int
    buffer_rows: int
    skip: bool  # on_bad_row


class SlotStream:
    """The packs of one slot of the global batch, in order."""

    def __init__(
        self,
        sources: Sequence[StreamSource],
        renderer: Renderer,
        budget: Budget,
        *,
        slot: int,
        num_slots: int,
        seed: int,
    ) -> None:
        """Stand before the first pack; nothing is read yet."""
        self.sources, self.renderer, self.budget = sources, renderer, budget
        self.slot, self.seed = slot, seed
        self.readers = {s.name: Reader(s, slot, num_slots, seed) for s in sources}
        weights = np.array([source.weight for source in sources], dtype=np.float64)
        self.shares = weights / weights.sum()
        self.next_pack = 0
        self.place = Place(0, 0, self._reader_states(), {})
        # What was given out since the oldest step that may still be asked for: for each window its
        # place and the sources of each pack's samples. Workers are ahead of the trained step.
        self.held: deque[tuple[Place, list[Counter[str]]]] = deque()
        # First pack and rows of each window whose bad rows this process tells.
        self.told: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[list[Sample], list[BadRow]]]:
        """Yield packs from `next_pack` on, each with the bad rows met to put it together."""
        while True:
            begun = self.place
            packs, bad = self._fill(begun)
            counts = [Counter(sample.row.source for sample in pack) for pack in packs]
            self.held.append((begun, counts))
            if begun.first_pack >= self.next_pack:
                self.told.append((begun.first_pack, sum(map(len, packs))))
            used = sum(counts, Counter(begun.num_used))
            after = begun.first_pack + len(packs)
            self.place = Place(begun.window + 1, after, self._reader_states(), dict(used))
            for number, pack in enumerate(packs, begun.first_pack):
                if number >= self.next_pack:
                    yield pack, bad if number == begun.first_pack else []
            self.next_pack = max(self.next_pack, after)

    def state_at(self, pack: int) -> dict[str, Any]:
        """Return, as plain JSON values, what `go_on` needs to give `pack` next."""
        while self.held and self._end(self.held[0]) <= pack:
            self.held.popleft()
        return {"pack": pack, "place": asdict(self.held[0][0] if self.held else self.place)}

    def go_on(self, state: dict[str, Any]) -> None:
        """Stand where the same slot stood, in this run or another."""
        self.held.clear()
        self.told.clear()
        self.place, self.next_pack = Place(**state["place"]), state["pack"]

    def num_used(self, pack: int) -> Counter[str]:
        """Return the samples given out before `pack`, by source."""
        for place, counts in self.held:
            if place.first_pack <= pack < place.first_pack + len(counts):
                return sum(counts[: pack - place.first_pack], Counter(place.num_used))
        return Counter(self.place.num_used)

    def num_read(self, pack: int) -> int:
        """Return the usable rows of the buffers that packs before `pack` were the first of."""
        return sum(rows for first, rows in self.told if first < pack)

    def _end(self, held: tuple[Place, list[Counter[str]]]) -> int:
        return held[0].first_pack + len(held[1])

    def _reader_states(self) -> dict[str, list[Any]]:
        return {name: list(reader.state) for name, reader in self.readers.items()}

    def _fill(self, place: Place) -> tuple[list[list[Sample]], list[BadRow]]:
        """Return the packs of one buffer of rows, and the rows that could not be used."""
        for name, state in place.readers.items():
            self.readers[name].go_to(state)
        rng = np.random.default_rng([self.seed, self.slot, place.window])
        samples: list[Sample] = []
        bad: list[BadRow] = []
        while len(samples) < self.budget.buffer_rows:
            made = self._next_sample(self.sources[rng.choice(len(self.sources), p=self.shares)])
            if isinstance(made, Sample):
                samples.append(made)
            else:
                bad.append(made)
                self._refuse_many(bad)
        packs = pack_window(
            rng.permutation(len(samples)),
            np.array([sample.num_tokens for sample in samples]),
            np.array([sum(sample.num_tiles) for sample in samples]),
            max_tokens=self.budget.max_tokens,
            max_tiles=self.budget.max_tiles,
        )
        order = rng.permutation(len(packs)).tolist()
        return [[samples[i] for i in packs[at]] for at in order], bad

    def _next_sample(self, source: StreamSource) -> Sample | BadRow:
        shard, found = self.readers[source.name].next()
        row_id = found.place
        try:
            columns = found.columns()
            row_id = source.row_id(found.place, columns)
            row = source.make_row(shard, row_id, columns)
            return self.renderer.render(
                row,
                max_tokens=self.budget.max_tokens,
                max_tiles=self.budget.max_tiles,
                check=True,
            )
        except DataError as error:
            return BadRow(source.name, row_id, str(error))

    def _refuse_many(self, bad: Sequence[BadRow]) -> None:
        if not self.budget.skip:
            raise DataError(refusal(bad))
        if len(bad) > MAX_BAD_SHARE * self.budget.buffer_rows:
            raise DataError(
                f"{len(bad)} rows that cannot be used came before data.buffer_rows="
                f"{self.budget.buffer_rows} that can{examples(bad)}"
            )

"""Rows of anything `datasets.load_dataset` reads: the hub, parquet, folders it knows."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from configs.errors import CacheError, DataError, first_line
from configs.schema import SourceConfig
from data.cache import digest
from data.fetch import turn_of
from data.sources.records import Columns, Found


class HubRecords:
    """A data set of `datasets` on disk (Arrow, memory-mapped); pictures stay encoded."""

    def __init__(self, key: str, config: SourceConfig) -> None:
        """Load it.

        Raises:
            DataError: it cannot be read, or lacks a column that the config names.
        """
        self.root = Path.cwd()
        self.table = _load(key, config, streaming=False)
        _check_columns(key, config, self.table.column_names)

    def __len__(self) -> int:
        return len(self.table)

    def place(self, index: int) -> str:
        """Return the row's number."""
        return str(index)

    def columns(self, index: int) -> Columns:
        """Return row `index`."""
        try:
            columns: Columns = self.table[index]
        except Exception as error:  # pyarrow and datasets raise a dozen kinds
            raise DataError(f"cannot be read: {first_line(error)}") from error
        return columns

    def fingerprint(self) -> str:
        """Return the fingerprint that `datasets` keeps of files and of what was done to them."""
        return str(self.table._fingerprint)


@dataclass
class HubShard:
    """One shard of a streamed data set of `datasets`."""

    key: str  # of the source, for messages
    table: Any  # an IterableDataset of all shards
    number: int

    def __post_init__(self) -> None:
        self.root = Path.cwd()
        self.name = f"shard {self.number}"

    def read(self, cursor: Any = None) -> Iterator[Found]:
        """Yield rows in order; `after` is the rows read and the state that `datasets` tells."""
        rows = self.table.shard(num_shards=self.table.num_shards, index=self.number)
        number, state = cursor or (0, None)
        if state is not None:
            rows.load_state_dict(state)
        stream = iter(rows)
        while True:
            try:
                columns = next(stream)
            except StopIteration:
                return
            except Exception as error:  # what follows in the shard cannot be found any more
                raise DataError(
                    f"{self.key}: {self.name} cannot be read behind row {number}: "
                    f"{first_line(error)}"
                ) from error
            place, after = f"{self.number}-{number}", [number + 1, rows.state_dict()]
            yield Found(number, place, partial(_same, columns), after)
            number += 1


def hub_shards(key: str, config: SourceConfig) -> list[HubShard]:
    """Return the shards of a streamed data set.

    Raises:
        DataError: it cannot be read, or lacks a column that the config names.
    """
    table = _load(key, config, streaming=True)
    if table.column_names is not None:
        _check_columns(key, config, table.column_names)
    return [HubShard(key, table, number) for number in range(table.num_shards)]


def _same(columns: Columns) -> Columns:
    return columns


def _load(key: str, config: SourceConfig, *, streaming: bool) -> Any:
    assert config.path is not None
    try:
        table = _open(config, streaming=True) if streaming else _open_in_turn(config)
    except CacheError:
        raise
    except Exception as error:  # datasets raises a dozen kinds for what a user can cause
        if isinstance(error, StopIteration):
            error = FileNotFoundError("no file matches")
        reason = first_line(error)
        raise DataError(
            f"{key}: cannot read path={config.path!r}, "
            f"data_files={config.data_files}, split={config.split!r}: {reason}"
        ) from error
    return _keep_encoded(table)


def _open(config: SourceConfig, *, streaming: bool) -> Any:
    from datasets import load_dataset

    return load_dataset(
        str(config.path),
        config.name,
        split=config.split,
        data_files=config.data_files or None,
        streaming=streaming,
    )


def _open_in_turn(config: SourceConfig) -> Any:
    """Let one process of a run fetch and convert a set; the others open what it has left."""
    import datasets

    told = digest([config.path, config.name, config.split, config.data_files])
    with turn_of(f"set {told}", f"fetches and converts the set {config.path}") as turn:
        if not turn.is_first:
            before, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
            try:
                table = _open(config, streaming=False)
            except (
                Exception
            ):  # `datasets` finds what is in its cache by other rules than on the hub
                table = None
            finally:
                datasets.config.HF_HUB_OFFLINE = before
            if table is not None and table._fingerprint == turn.told:
                return table
        table = _open(config, streaming=False)
        turn.told = table._fingerprint
        return table


def _keep_encoded(table: Any) -> Any:
    """Return the table with no picture decoded, wherever in its columns one is."""
    for name, feature in (table.features or {}).items():
        encoded = _encoded(feature)
        if encoded != feature:
            table = table.cast_column(name, encoded)
    return table


def _encoded(feature: Any) -> Any:
    from datasets import Image, LargeList, List

    if isinstance(feature, Image):
        return Image(mode=feature.mode, decode=False)
    if isinstance(feature, dict):
        return {name: _encoded(inner) for name, inner in feature.items()}
    if isinstance(feature, List):
        return List(_encoded(feature.feature), length=feature.length)
    if isinstance(feature, LargeList):
        return LargeList(_encoded(feature.feature))
    return feature


def _check_columns(key: str, config: SourceConfig, present: list[str]) -> None:
    wanted = {
        "id_field": config.id_field,
        "prompt_field": config.prompt_field,
        "language_field": config.language_field,
        "messages_field": config.messages_field,
        "caption_field": None if config.messages_field else config.caption_field,
        "image_field": config.image_field,
    }
    lacking = [
        f"{key}.{name}={column}"
        for name, column in wanted.items()
        if column is not None and column not in present
    ]
    if lacking:
        raise DataError(
            f"{', '.join(lacking)}: no such column; the data set has {', '.join(present)}"
            " (image_field=null for text alone)"
        )

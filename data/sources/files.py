"""Rows in files: which reader takes what a path, folder or glob names."""

import glob
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.errors import DataError
from data.cache import Cache
from data.sources.names import distinct_names
from data.sources.records import Records, Shard
from data.sources.tar_shards import TarRecords, TarShard
from data.sources.text_files import TextRecords, TextShard, open_folder

TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
TAR = (".tar", ".tgz", ".tar.gz", ".tar.zst")
OTHER = {".parquet": "parquet", ".arrow": "arrow"}  # what `datasets` reads better
METADATA = ("metadata.jsonl", "metadata.csv")


def open_files(path: str, cache: Cache) -> Records:
    """Return the rows of a file, of all files of a glob, or of a folder with metadata.

    Raises:
        DataError: nothing is there, or no reader for it.
    """
    if Path(path).is_dir() and not _is_folder_of_shards(Path(path)):
        return open_folder(Path(path), cache)
    files, kind = _sorted_files(path)
    return TarRecords(files, cache) if kind == "tar" else TextRecords(files, cache)


def open_shards(path: str) -> Sequence[Shard]:
    """Return the files of a path as shards that are read in order.

    Raises:
        DataError: nothing is there, or no reader for it.
    """
    if Path(path).is_dir() and not _is_folder_of_shards(Path(path)):
        raise DataError(
            f"{path!r} is a folder of pictures, which is not streamed; leave out "
            "data.streaming, or name its metadata file and give image_root"
        )
    files, kind = _sorted_files(path)
    make: Callable[[Path, str], Shard] = TarShard if kind == "tar" else TextShard
    return [make(file, name) for file, name in zip(files, distinct_names(files), strict=True)]


def _is_folder_of_shards(folder: Path) -> bool:
    if any((folder / name).is_file() for name in METADATA):
        return False
    return any(_kind(file) for file in folder.iterdir())


def _sorted_files(path: str) -> tuple[list[Path], str]:
    """Return the files that `path` names, in order of their names, and the one kind they are of."""
    given = Path(path)
    if given.is_dir():
        files = sorted(file for file in given.iterdir() if file.is_file() and _kind(file))
    elif given.is_file():
        files = [given]
    else:
        files = sorted(Path(name) for name in glob.glob(path, recursive=True))
        files = [file for file in files if file.is_file()]
    if not files:
        raise DataError(f"path={path!r}: there is no such file or folder, and no file matches")
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1 or None in kinds:
        _refuse(path, files)
    return files, str(kinds.pop())


def _kind(file: Path) -> str | None:
    name = file.name.lower().removesuffix(".gz")
    if name.endswith(TAR):
        return "tar"
    return "text" if name.endswith(TEXT) else None


def _refuse(path: str, files: Sequence[Path]) -> None:
    suffixes = sorted({"".join(file.suffixes[-2:]) or "no suffix" for file in files})
    builder = next((OTHER[file.suffix] for file in files if file.suffix in OTHER), None)
    hint = f"; {builder} is read by kind=dataset path={builder} data_files=[...]" if builder else ""
    raise DataError(
        f"path={path!r} names {len(files)} files of {', '.join(suffixes)}; rows are read from "
        f"files of one kind: {', '.join(TEXT)} or {', '.join(TAR[:3])}{hint}"
    )
